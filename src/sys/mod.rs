//! System calls, one kernel facility per file, with safe interfaces: `OwnedFd`, `io::Result`, `Duration`. Nothing here knows workers.
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
pub(crate) mod splice;
pub(crate) mod terminal;
pub(crate) mod this_process;
pub(crate) mod write;
pub(crate) mod xattr;

use std::io;

/// Converts a return value of -1 into `errno`.
pub(crate) fn cvt(result: i32) -> io::Result<i32> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// As [`cvt`], for calls that return a number of bytes.
pub(crate) fn cvt_size(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Whether the kernel was short of memory: temporary, and unrelated to the file descriptor.
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOMEM | libc::ENOBUFS))
}

/// Whether a call on a polled file descriptor can succeed when it is repeated.
pub(crate) fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) || is_shortage(error)
}

/// Repeats the call while signals interrupt it.
pub(crate) fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}
