//! Identity and attributes of the calling process.

use rustix::process::Pid;
use std::{ffi::CStr, io};

/// The PID of this process. Not cached, so that it is right in a forked child.
pub(crate) fn own_pid() -> libc::pid_t {
    Pid::as_raw(Some(rustix::process::getpid()))
}

/// Whether the calling thread is the one that runs `main`, which lives as long as its process.
pub(crate) fn is_main_thread() -> bool {
    rustix::thread::gettid() == rustix::process::getpid()
}

/// The PID of the parent: the process that started this one, or the one that adopted it. 0 outside of this PID namespace.
pub(crate) fn parent() -> i32 {
    Pid::as_raw(rustix::process::getppid())
}

/// 0 where the group was made outside of this PID namespace, which rustix's type excludes.
pub(crate) fn group() -> i32 {
    // SAFETY: getpgrp(2) takes nothing and cannot fail.
    unsafe { libc::getpgrp() }
}

/// 0 where the session was made outside of this PID namespace, which rustix's type excludes.
pub(crate) fn session() -> i32 {
    // SAFETY: getsid(2) takes a number, 0 for the caller, for which it does not fail.
    unsafe { libc::getsid(0) }
}

/// The real user id.
pub(crate) fn real_uid() -> u32 {
    rustix::process::getuid().as_raw()
}

/// Makes orphaned descendants children of this process (`PR_SET_CHILD_SUBREAPER`).
pub(crate) fn become_subreaper() -> io::Result<()> {
    // Any PID stands for "yes".
    Ok(rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?)
}

/// Whether orphaned descendants become children of this process: as a subreaper, or as process 1.
pub(crate) fn is_reaper() -> bool {
    own_pid() == 1 || matches!(rustix::process::child_subreaper(), Ok(Some(_)))
}

/// Sets the name of the calling thread, cut after 15 bytes. The main thread's is that of the process in `ps`.
pub(crate) fn set_title(title: &CStr) {
    // It fails for no string.
    rustix::thread::set_name(title).unwrap_or_default();
}
