//! Which processes exist, and which descend from which.

use super::{mount, stat};
use std::{collections::HashSet, fs, io, iter};

/// The PIDs of all visible processes of this PID namespace, this process included. Fails where `/proc` shows another namespace.
pub(crate) fn all() -> io::Result<Vec<i32>> {
    if !mount::is_own() {
        return Err(io::ErrorKind::NotFound.into());
    }
    let entries = fs::read_dir("/proc")?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
}

/// The PID or thread id that was allocated last.
pub(crate) fn last_number() -> io::Result<i32> {
    let text = fs::read_to_string("/proc/loadavg")?;
    text.split_whitespace().last().and_then(|last| last.parse().ok()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// PIDs are allocated in increasing order below this limit, and then from the beginning again.
pub(crate) fn highest_number() -> i32 {
    let text = fs::read_to_string("/proc/sys/kernel/pid_max").unwrap_or_default();
    text.trim().parse().unwrap_or(32768) // include/linux/threads.h, PID_MAX_DEFAULT
}

/// The children of a process's main thread.
pub(crate) fn children_of_main_thread(pid: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().filter_map(|child| child.parse().ok()).collect()
}

/// The children of a process: the kernel has one list for each thread, of the children that this thread forked.
pub(crate) fn children(pid: i32) -> Vec<i32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = threads.map(|thread| fs::read_to_string(thread.path().join("children")).unwrap_or_default());
    lists.flat_map(|list| list.split_whitespace().filter_map(|child| child.parse().ok()).collect::<Vec<_>>()).collect()
}

/// The descendants of a process, as long as it and every process in between are alive: orphans have another parent. Empty where
/// `/proc` shows another PID namespace.
pub(crate) fn descendants(ancestor: i32) -> Vec<i32> {
    if !mount::is_own() {
        return Vec::new();
    }
    let (mut found, mut known) = (vec![ancestor], HashSet::from([ancestor]));
    let mut at = 0;
    while let Some(&pid) = found.get(at) {
        at += 1;
        found.extend(children(pid).into_iter().filter(|child| known.insert(*child)));
    }
    found.remove(0);
    found
}

/// Whether a process is `ancestor` or descends from it, as long as every process in between is alive.
pub(crate) fn descends(pid: i32, ancestor: u32) -> bool {
    /// Deeper than process trees are.
    const DEPTH: usize = 64;
    let parent = |pid: &u32| stat::parent(*pid).filter(|parent| *parent > 1);
    let own = u32::try_from(pid).ok().filter(|pid| *pid > 0);
    iter::successors(own, parent).take(DEPTH).any(|pid| pid == ancestor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_listed() {
        let own = crate::sys::this_process::own_pid();
        assert!(all().unwrap().contains(&own));
        assert!(last_number().unwrap() > 0 && highest_number() >= 301);
        assert!(descends(own, own.unsigned_abs()) && descends(own, crate::sys::this_process::parent().unsigned_abs()));
    }
}
