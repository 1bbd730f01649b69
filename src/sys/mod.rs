//! The kernel, one facility a file, each behind a safe face: `OwnedFd`, `io::Result`, `Duration`. Knows no workers.
#![expect(unsafe_code, reason = "the only room with the key")]

pub(crate) mod cgroup;
pub(crate) mod child_setup;
pub(crate) mod clone;
mod clone3;
pub(crate) mod deferred_close;
pub(crate) mod epoll;
pub(crate) mod eventfd;
pub(crate) mod exec_format;
pub(crate) mod fd;
pub(crate) mod fd_free_stream;
pub(crate) mod fifo;
pub(crate) mod identity;
pub(crate) mod inotify;
pub(crate) mod kill;
pub(crate) mod lock;
pub(crate) mod pidfd;
pub(crate) mod poll;
pub(crate) mod proc;
pub(crate) mod random;
pub(crate) mod signals;
pub(crate) mod socket;
pub(crate) mod this_process;
pub(crate) mod write;
pub(crate) mod xattr;

use std::io;

/// Turns the kernel's -1 into the error it means.
pub(crate) fn cvt(result: i32) -> io::Result<i32> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// As [`cvt`], for calls that count bytes.
pub(crate) fn cvt_size(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Whether the kernel has refused a call for want of memory, which says nothing about the descriptor and passes.
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOMEM | libc::ENOBUFS))
}

/// Whether a call on a descriptor that is watched can succeed when it is tried again.
pub(crate) fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) || is_shortage(error)
}

/// Calls again as long as a signal interrupts.
pub(crate) fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}
