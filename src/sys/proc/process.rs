//! What `/proc/PID` shows of one process without waiting for it: its place among others, its user, the pipes it holds.
//!
//! `stat`, `status`, `task` and the links of `fd` are answered from the kernel's own tables. `environ` and `cmdline` are read from
//! the memory of the process, which can block for as long as one of its page faults does: those are for a thread of their own.

use super::stat_fields;
use crate::sys::{
    identity,
    pidfd::{self, PidFd},
    poll,
};
use std::{
    fs, io,
    os::fd::AsFd,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

/// The most descriptors of one process that are looked at.
const DESCRIPTORS_MAX: usize = 1 << 16;

/// A process among others, from `/proc/PID/stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) pid: i32,
    pub(crate) parent: i32,
    pub(crate) group: i32,
    pub(crate) session: i32,
    /// Its main thread has ended, and others run on.
    pub(crate) is_leaderless: bool,
    /// All of it has ended, and it is not reaped.
    pub(crate) is_zombie: bool,
    /// When it was started, in ticks of the boot clock. With the number it names a process for good.
    pub(crate) start: u64,
}

impl Stat {
    pub(crate) fn of(pid: i32) -> io::Result<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        parse(pid, &text).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

fn parse(pid: i32, text: &str) -> Option<Stat> {
    let fields = stat_fields(text)?;
    let field = |position: usize| fields.get(position - super::FIRST_FIELD).copied();
    let number = |position: usize| field(position)?.parse::<i32>().ok();
    let has_ended = matches!(field(3)?, "Z" | "X" | "x");
    // A process that has ended counts its main thread until it is reaped.
    let has_threads = number(20)? > 1;
    Some(Stat {
        pid,
        parent: number(4)?,
        group: number(5)?,
        session: number(6)?,
        is_leaderless: has_ended && has_threads,
        is_zombie: has_ended && !has_threads,
        start: field(22)?.parse().ok()?,
    })
}

/// Now, in the ticks of [`Stat::start`], rounded down as the kernel rounds those.
pub(crate) fn boot_ticks() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: clock_gettime(2) writes one timespec. It does not fail for this clock, which every kernel has.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    let seconds = Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0));
    let since_boot = seconds + Duration::from_nanos(u64::try_from(time.tv_nsec).unwrap_or(0));
    let tick = Duration::from_secs(1) / u32::try_from(super::TICKS_PER_SECOND).unwrap_or(100);
    u64::try_from(since_boot.as_nanos() / tick.as_nanos()).unwrap_or(u64::MAX)
}

/// Whether this number is that of a thread, and not of its process. `/proc` answers for both, and lists the second only.
pub(crate) fn is_thread(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let leader = status.lines().find_map(|line| line.strip_prefix("Tgid:")?.trim().parse::<i32>().ok());
    leader.is_some_and(|leader| leader != pid)
}

/// The real user of a process.
pub(crate) fn real_uid(pid: i32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().next()?.parse().ok())
}

/// The directories in which a process shows itself: of its threads, where its main thread has ended and shows nothing any more.
pub(crate) fn places(stat: &Stat) -> Vec<PathBuf> {
    let own = PathBuf::from(format!("/proc/{}", stat.pid));
    if !stat.is_leaderless {
        return vec![own];
    }
    let threads = fs::read_dir(own.join("task")).into_iter().flatten().flatten().map(|entry| entry.path());
    threads.filter(|path| !path.ends_with(stat.pid.to_string())).collect()
}

/// The real user of this process.
pub(crate) fn own_real_uid() -> u32 {
    rustix::process::getuid().as_raw()
}

/// The session of this process; 0 where it was begun outside of our pid namespace.
pub(crate) fn own_session() -> i32 {
    // SAFETY: getsid(2) takes a number, 0 for the caller. It does not fail for that one.
    unsafe { libc::getsid(0) }
}

/// Has orphaned descendants become children of this process: prctl(2).
pub(crate) fn become_subreaper() -> io::Result<()> {
    // Any number but 0 stands for "yes".
    Ok(rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?)
}

/// Whether orphaned descendants become children of this process: as a subreaper, or as process 1.
pub(crate) fn is_reaper() -> bool {
    pidfd::own_pid() == 1 || matches!(rustix::process::child_subreaper(), Ok(Some(_)))
}

/// A process, held so that no other can be taken for it.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) pid: i32,
    start: u64,
    /// `None` where pidfds are denied: then the number counts as long as a process with this start has it.
    pidfd: Option<PidFd>,
}

impl Held {
    /// Holds the process that was seen; ESRCH if it is gone.
    pub(crate) fn open(seen: &Stat) -> io::Result<Self> {
        let pidfd = match PidFd::open(seen.pid) {
            Ok(pidfd) => Some(pidfd),
            Err(error) if pidfd::is_open_denied(&error) => None,
            Err(error) => return Err(error),
        };
        let held = Self { pid: seen.pid, start: seen.start, pidfd };
        // The number may have been given to another process before it was opened.
        if held.has_its_number() { Ok(held) } else { Err(io::Error::from_raw_os_error(libc::ESRCH)) }
    }

    fn has_its_number(&self) -> bool {
        Stat::of(self.pid).is_ok_and(|stat| stat.start == self.start)
    }

    /// Sends a signal; ESRCH if it is gone.
    pub(crate) fn signal(&self, signal: i32) -> io::Result<()> {
        let sent = self.pidfd.as_ref().map(|pidfd| pidfd.signal(signal));
        match sent {
            Some(Err(error)) if !pidfd::is_send_denied(&error) => Err(error),
            Some(Ok(())) => Ok(()),
            _ if self.has_its_number() => pidfd::kill(self.pid, signal),
            _ => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        }
    }

    /// Gives the descriptor back: the number and the start name it from now on.
    pub(crate) fn keep_number_only(&mut self) {
        self.pidfd = None;
    }

    /// To be watched for its end, which makes it readable.
    pub(crate) fn pidfd(&self) -> Option<&PidFd> {
        self.pidfd.as_ref()
    }

    pub(crate) fn has_ended(&self) -> bool {
        match &self.pidfd {
            Some(pidfd) => poll::is_readable(pidfd.as_fd()).unwrap_or(true),
            None => !Stat::of(self.pid).is_ok_and(|stat| stat.start == self.start && !stat.is_zombie),
        }
    }
}

/// Holds all that are listed: they are listed again when they are held, and what is in both lists is what is held.
pub(crate) fn hold(list: impl Fn() -> Vec<i32>) -> Vec<Held> {
    let open = |pid| Held::open(&Stat::of(pid).ok()?).ok();
    let mut held: Vec<Held> = list().into_iter().filter_map(open).collect();
    if !held.is_empty() {
        let still = list();
        held.retain(|process| still.contains(&process.pid));
    }
    held
}

/// The pipes that a process can write in and does not read from, by their inodes. One that holds both ends is a copy of the process
/// that made the pipe.
///
/// Only links are read: the target can be a file on a file system that does not answer.
pub(crate) fn pipes_written(place: &Path) -> io::Result<Vec<u64>> {
    let (mut written, mut read) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(place.join("fd"))?.take(DESCRIPTORS_MAX) {
        let path = entry?.path();
        let Ok(target) = fs::read_link(&path) else { continue };
        let Some(inode) = target.to_str().and_then(pipe_inode) else { continue };
        // The mode of the link itself: the permission bits say how the file is open.
        let mode = fs::symlink_metadata(&path).map_or(0, |link| link.permissions().mode());
        if mode & 0o200 != 0 {
            written.push(inode);
        }
        if mode & 0o400 != 0 {
            read.push(inode);
        }
    }
    written.retain(|inode| !read.contains(inode));
    Ok(written)
}

fn pipe_inode(target: &str) -> Option<u64> {
    target.strip_prefix("pipe:[")?.strip_suffix(']')?.parse().ok()
}

/// What of the other processes can be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Visibility {
    All,
    /// `/proc` is mounted with `hidepid`.
    Hidden,
    /// `/proc` is not mounted, or is not that of our pid namespace.
    Absent,
}

/// What of the other processes can be seen now.
pub(crate) fn visibility() -> Visibility {
    if !is_own() {
        return Visibility::Absent;
    }
    // Process 1 is another user's in most places, and there everywhere. Where it is ours, the mount is asked.
    match fs::metadata("/proc/1") {
        Ok(first) if first.uid() != identity::effective_uid() => {
            if fs::read("/proc/1/stat").is_ok() {
                Visibility::All
            } else {
                Visibility::Hidden
            }
        }
        Ok(_) if identity::effective_uid() != 0 && is_mounted_hidden() => Visibility::Hidden,
        Ok(_) => Visibility::All,
        Err(_) => Visibility::Hidden,
    }
}

/// Whether `/proc` is mounted, and has the numbers of our pid namespace: after `unshare --pid` it often still has those of another.
pub(crate) fn is_own() -> bool {
    let own = pidfd::own_pid().to_string();
    fs::read_link("/proc/self").is_ok_and(|target| target.to_str() == Some(&own))
}

fn is_mounted_hidden() -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut at_proc = mounts.lines().filter(|line| line.split(' ').nth(4) == Some("/proc"));
    at_proc.next_back().is_some_and(|line| {
        let options = line.split([' ', ',']);
        options.filter_map(|option| option.strip_prefix("hidepid=")).any(|value| !matches!(value, "0" | "off"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_without_its_main_thread_is_no_zombie() {
        let line = |state: &str, threads: u32| {
            format!("17 (a) b) {state} 5 6 7 0 -1 4194304 0 0 0 0 12 30 0 0 20 0 {threads} 0 555 4096 7 0 1 1")
        };
        let running = parse(17, &line("S", 1)).unwrap();
        let expected =
            Stat { pid: 17, parent: 5, group: 6, session: 7, is_leaderless: false, is_zombie: false, start: 555 };
        assert_eq!(running, expected);
        assert_eq!(parse(17, &line("Z", 2)), Some(Stat { is_leaderless: true, ..expected }));
        assert_eq!(parse(17, &line("Z", 1)), Some(Stat { is_zombie: true, ..expected }));
        assert_eq!(parse(17, "17 (a) S 5"), None);
    }

    #[test]
    fn this_process_started_before_now_and_writes_its_pipe() {
        let own = pidfd::own_pid();
        let stat = Stat::of(own).unwrap();
        assert!(stat.start <= boot_ticks() && !stat.is_zombie && !stat.is_leaderless, "{stat:?}");
        assert_eq!(real_uid(own), Some(own_real_uid()));
        let threads = fs::read_dir("/proc/self/task").unwrap().flatten();
        let threads: Vec<i32> = threads.map(|entry| entry.file_name().to_str().unwrap().parse().unwrap()).collect();
        assert!(threads.iter().all(|thread| is_thread(*thread) == (*thread != own)), "{threads:?}");
        let (reader, writer) = io::pipe().unwrap();
        let inode = crate::sys::fd::inode(writer.as_fd()).unwrap();
        let own = Path::new("/proc/self");
        assert!(!pipes_written(own).unwrap().contains(&inode), "this process holds both ends");
        drop(reader);
        assert!(pipes_written(own).unwrap().contains(&inode));
        drop(writer);
        assert_eq!(pipe_inode("pipe:[12]"), Some(12));
        assert_eq!(pipe_inode("socket:[12]"), None);
    }
}
