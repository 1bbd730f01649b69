//! Signals to processes and groups by number, where no pidfd can be used.

use super::{cvt, this_process, this_process::own_pid};
use std::io;

/// Sends a signal by number, negative for a group: the caller knows that it has not been reused.
pub(crate) fn kill(number: libc::pid_t, signal: libc::c_int) -> io::Result<()> {
    // SAFETY: kill(2) takes two numbers.
    cvt(unsafe { libc::kill(number, signal) }).map(drop)
}

/// Sends SIGKILL to a process group by its number, which the caller knows not to have been reused.
pub(crate) fn kill_group(group: i32) -> io::Result<()> {
    // kill(2) gives 0 and -1 a special meaning.
    if group <= 1 || group == this_process::group() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    kill(-group, libc::SIGKILL)
}

/// Sends SIGKILL to a process by its PID.
pub(crate) fn kill_process(pid: i32) -> io::Result<()> {
    if pid <= 1 || pid == own_pid() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    kill(pid, libc::SIGKILL)
}

/// Whether this process may signal a group by number: sends signal 0 to its own group.
pub(crate) fn probe_own_group() -> io::Result<()> {
    Ok(rustix::process::test_kill_current_process_group()?)
}

/// Whether the process exists and is in this group.
pub(crate) fn is_in_group(pid: libc::pid_t, group: libc::pid_t) -> bool {
    // SAFETY: getpgid(2) takes a number.
    (unsafe { libc::getpgid(pid) }) == group
}
