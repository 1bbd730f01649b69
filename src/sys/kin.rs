//! Processes by their relations: parent, group and session from /proc/PID/stat (proc(5)), and signals to groups by number.

use super::pidfd;
use rustix::process::Pid;
use std::{ffi::CStr, fs, io};

/// A process and its relations at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kin {
    pub(crate) pid: i32,
    pub(crate) parent: i32,
    pub(crate) group: i32,
    pub(crate) session: i32,
    /// In clock ticks since the machine started: with the number it names one process.
    pub(crate) started: u64,
    pub(crate) state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Lives,
    /// Its main thread has ended, others go on: /proc/PID/environ is not readable.
    Leaderless,
    /// It has ended and is not reaped.
    Zombie,
}

impl Kin {
    /// `None` where there is no such process, or no /proc.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        // The name stands in parentheses and may contain anything, also what is not UTF-8.
        let bytes = fs::read(format!("/proc/{pid}/stat")).ok()?;
        parse(pid, &String::from_utf8_lossy(&bytes))
    }
}

/// Whether a text is in the environment of one of a process's threads.
pub(crate) fn a_thread_carries(pid: i32, text: &[u8]) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut environments = threads.filter_map(|thread| fs::read(thread.path().join("environ")).ok());
    environments.any(|environment| memchr::memmem::find(&environment, text).is_some())
}

fn parse(pid: i32, stat: &str) -> Option<Kin> {
    /// The state is field 3.
    const FIRST_FIELD: usize = 3;
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split_whitespace().collect();
    let field = |position: usize| fields.get(position - FIRST_FIELD).copied();
    let number = |position| field(position)?.parse::<i32>().ok();
    let state = match (field(3)?, number(20)?) {
        ("Z" | "X", ..=1) => State::Zombie,
        ("Z" | "X", _) => State::Leaderless,
        _ => State::Lives,
    };
    let started = field(22)?.parse().ok()?;
    Some(Kin { pid, parent: number(4)?, group: number(5)?, session: number(6)?, started, state })
}

/// SIGKILL to a process group, by a number that the caller knows not to have been given anew.
pub(crate) fn kill_group(group: i32) -> io::Result<()> {
    // kill(2) gives 0 and -1 a meaning of their own.
    if group <= 1 || group == own_group() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    pidfd::kill(-group, libc::SIGKILL)
}

/// SIGKILL to a process by its number, where the kernel refuses pidfds.
pub(crate) fn kill(pid: i32) -> io::Result<()> {
    if pid <= 1 || pid == pidfd::own_pid() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    pidfd::kill(pid, libc::SIGKILL)
}

/// Whether a group can be signalled by number: the caller's own, with signal 0.
pub(crate) fn probe_own_group() -> io::Result<()> {
    Ok(rustix::process::test_kill_current_process_group()?)
}

fn own_group() -> i32 {
    // SAFETY: getpgrp(2) takes nothing and cannot fail.
    unsafe { libc::getpgrp() }
}

/// The process that started this one, or that has inherited it.
pub(crate) fn parent() -> i32 {
    Pid::as_raw(rustix::process::getppid())
}

/// Sets the name of the calling thread, which for the main thread is the process's in `ps`; cut after 15 bytes.
pub(crate) fn set_title(title: &CStr) {
    // It fails for no string.
    rustix::thread::set_name(title).unwrap_or_default();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relations_of_this_process() {
        let own = Kin::of(pidfd::own_pid()).unwrap();
        assert_eq!((own.parent, own.group, own.state), (parent(), own_group(), State::Lives));
        assert_eq!(Kin::of(i32::MAX), None);
        let stat = "17 (a) (b) Z 4 5 6 0 -1 4194304 100 0 0 0 12 30 0 0 20 0 1 0 555 4096 7";
        let kin = Kin { pid: 17, parent: 4, group: 5, session: 6, started: 555, state: State::Zombie };
        assert_eq!(parse(17, stat), Some(kin));
        let leaderless = parse(17, &stat.replace(" 1 0 555", " 2 0 555")).unwrap();
        assert_eq!(leaderless.state, State::Leaderless);
        assert_eq!(parse(17, "17 (a"), None);
    }
}
