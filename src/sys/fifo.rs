//! What the kernel knows about a pipe: its size, and the bytes inside.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use super::cvt;

/// The longest write that reaches a pipe in one piece, and that waits for nobody once `POLLOUT` was seen (pipe(7)).
pub(crate) const ATOMIC_WRITE_BYTES: usize = libc::PIPE_BUF;

pub(crate) fn capacity(fd: BorrowedFd<'_>) -> io::Result<usize> {
    // SAFETY: fcntl(2): F_GETPIPE_SZ takes no argument and no pointer.
    count(cvt(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETPIPE_SZ) })?)
}

/// Returns what the kernel made of it: pages, and a power of two of them.
pub(crate) fn set_capacity(fd: BorrowedFd<'_>, bytes: usize) -> io::Result<usize> {
    let bytes = i32::try_from(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    // SAFETY: fcntl(2): F_SETPIPE_SZ takes an int and no pointer.
    count(cvt(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETPIPE_SZ, bytes) })?)
}

/// Bytes that were written and not yet read. Both ends of a pipe tell the same; a socket tells what we have not read.
pub(crate) fn unread(fd: BorrowedFd<'_>) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: ioctl(2), FIONREAD: writes one int to the pointer, which is valid for that.
    cvt(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut bytes) })?;
    count(bytes)
}

/// Memory of a local socket's messages that the other side has not read yet: more than its bytes, and 0 only when all is read.
pub(crate) fn unread_by_peer(fd: BorrowedFd<'_>) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: ioctl(2), TIOCOUTQ (unix(7) calls it SIOCOUTQ): writes one int to the pointer, which is valid for that.
    cvt(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) })?;
    count(bytes)
}

fn count(answer: i32) -> io::Result<usize> {
    usize::try_from(answer).map_err(|_| io::Error::other("the kernel counted below zero"))
}
