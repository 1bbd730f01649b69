//! /proc (proc(5)): which processes there are, what they were given and what they hold.
//!
//! A number read here may be somebody else's by the time it is used: whoever acts on one opens a pidfd first, and looks again.

use super::{fd, pidfd::PidFd};
use std::{
    fs,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::Path,
    time::Duration,
};

/// The most that is told of a command line, in bytes.
const COMMAND_BYTES: u64 = 256;
/// The largest environment that is looked through, in bytes: more than the kernel allows a program by default.
const ENVIRONMENT_BYTES: u64 = 4 << 20;

/// All processes of our namespace that we may see, ourselves included.
pub(crate) fn all() -> io::Result<Vec<i32>> {
    let entries = fs::read_dir("/proc")?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
}

/// The number that was given last, to a process or a thread.
pub(crate) fn last_number() -> io::Result<i32> {
    let text = fs::read_to_string("/proc/loadavg")?;
    text.split_whitespace().last().and_then(|last| last.parse().ok()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Numbers are given in turn, up to this one, and then from the beginning again.
pub(crate) fn highest_number() -> i32 {
    let text = fs::read_to_string("/proc/sys/kernel/pid_max").unwrap_or_default();
    text.trim().parse().unwrap_or(32768) // include/linux/threads.h, PID_MAX_DEFAULT
}

/// `USER_HZ`: the same on every machine that Linux runs on today.
const TICKS_PER_SECOND: u64 = 100;

/// A process that carries a token in its environment, held so that no other can be taken for it.
#[derive(Debug)]
pub(crate) struct Carrier {
    pub(crate) pid: i32,
    pub(crate) pidfd: PidFd,
}

/// The process of this number, whichever that is.
pub(crate) fn hold(pid: i32) -> Option<Carrier> {
    PidFd::open(pid).ok().map(|pidfd| Carrier { pid, pidfd })
}

/// The process of this number, if its environment contains `token`. Not a zombie: those have none. Nor one that has become
/// another user's: that may not be looked at.
pub(crate) fn carrier(pid: i32, token: &[u8]) -> Option<Carrier> {
    if !carries(pid, token) {
        return None;
    }
    // The number may have changed hands before it was opened: so look again.
    let pidfd = PidFd::open(pid).ok()?;
    carries(pid, token).then_some(Carrier { pid, pidfd })
}

fn carries(pid: i32, token: &[u8]) -> bool {
    let Ok(file) = fs::File::open(format!("/proc/{pid}/environ")) else { return false };
    let mut environment = Vec::new();
    // What was read before an error is looked at.
    drop(file.take(ENVIRONMENT_BYTES).read_to_end(&mut environment));
    memchr::memmem::find(&environment, token).is_some()
}

/// What it was started with, words separated by spaces; its name in brackets where it has no arguments. Cut after 256 bytes.
pub(crate) fn command_line(pid: i32) -> String {
    let read = |name: &str| {
        let mut bytes = Vec::new();
        if let Ok(file) = fs::File::open(format!("/proc/{pid}/{name}")) {
            drop(file.take(COMMAND_BYTES).read_to_end(&mut bytes));
        }
        bytes
    };
    let bytes = read("cmdline");
    let words = String::from_utf8_lossy(&bytes).trim_end_matches('\0').replace('\0', " ");
    if words.is_empty() { format!("[{}]", String::from_utf8_lossy(&read("comm")).trim_end()) } else { words }
}

/// The inodes of what a process holds open, where we may see them.
pub(crate) fn held_inodes(pid: i32) -> Vec<u64> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    entries.filter_map(|entry| fs::metadata(entry.ok()?.path()).ok()).map(|held| held.ino()).collect()
}

/// Processor time and memory of a process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Use {
    pub(crate) cpu: Duration,
    pub(crate) resident_bytes: u64,
    /// It is stopped, by a signal or by whoever traces it.
    pub(crate) is_stopped: bool,
}

/// What a process uses now; nothing once it is reaped.
pub(crate) fn usage(pid: u32) -> Option<Use> {
    stat(&fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?)
}

/// The fields of `/proc/PID/stat` behind the name, which stands in parentheses and may contain some.
fn stat(text: &str) -> Option<Use> {
    let (_, rest) = text.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    // proc_pid_stat(5) counts from 1, and the state is number 3.
    let number = |position: usize| fields.get(position - 3).and_then(|field| field.parse::<u64>().ok());
    let is_stopped = matches!(fields.first(), Some(&"T" | &"t"));
    let ticks = number(14)?.saturating_add(number(15)?);
    let resident_bytes = number(24)?.saturating_mul(fd::page_bytes());
    Some(Use { cpu: Duration::from_millis(ticks.saturating_mul(1000 / TICKS_PER_SECOND)), resident_bytes, is_stopped })
}

/// The processes that descend from this one, as long as it and those between live: a child whose parent has ended is
/// somebody else's child.
pub(crate) fn descendants(ancestor: i32) -> Vec<i32> {
    let mut found = vec![ancestor];
    let mut at = 0;
    while let Some(&pid) = found.get(at) {
        at += 1;
        // One list for each of its threads: the thread that forked is the one that has the child.
        let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        for thread in threads.flatten() {
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            let children = children.split_whitespace().filter_map(|child| child.parse().ok());
            found.extend(children.filter(|child| !found.contains(child)).collect::<Vec<i32>>());
        }
    }
    found.remove(0);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_contain_anything() {
        let line = "17 (a) (b) S 1 17 17 0 -1 4194304 100 0 0 0 12 30 0 0 20 0 1 0 555 4096 7 18446744073709551615 1 1";
        assert_eq!(
            stat(line),
            Some(Use { cpu: Duration::from_millis(420), resident_bytes: 7 * fd::page_bytes(), is_stopped: false })
        );
        assert_eq!(stat("17 (x"), None);
        assert!(stat(&line.replace(" S ", " T ")).is_some_and(|state| state.is_stopped));
    }

    #[test]
    fn we_see_ourselves() {
        let own = super::super::pidfd::own_pid();
        assert!(all().unwrap().contains(&own));
        assert!(last_number().unwrap() > 0 && highest_number() >= 301);
        assert!(!command_line(own).is_empty());
        assert!(usage(own.unsigned_abs()).is_some_and(|usage| usage.resident_bytes > 0));
        assert!(carrier(own, b"no such thing in any environment").is_none());
    }
}
