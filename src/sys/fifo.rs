//! What the kernel knows about a pipe: its size, and the bytes inside.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use super::cvt;

/// The longest write that reaches a pipe in one piece, and that waits for nobody once `POLLOUT` was seen (pipe(7)).
pub(crate) const ATOMIC_WRITE_BYTES: usize = libc::PIPE_BUF;

pub(crate) fn capacity(fd: BorrowedFd<'_>) -> io::Result<usize> {
    Ok(rustix::pipe::fcntl_getpipe_size(fd)?)
}

/// Returns what the kernel made of it: pages, and a power of two of them.
pub(crate) fn set_capacity(fd: BorrowedFd<'_>, bytes: usize) -> io::Result<usize> {
    Ok(rustix::pipe::fcntl_setpipe_size(fd, bytes)?)
}

/// Bytes that were written and not yet read. Both ends of a pipe tell the same; a socket tells what we have not read.
pub(crate) fn unread(fd: BorrowedFd<'_>) -> io::Result<usize> {
    usize::try_from(rustix::io::ioctl_fionread(fd)?).map_err(io::Error::other)
}

/// Memory of a local socket's messages that the other side has not read yet: more than its bytes, and 0 only when all is read.
pub(crate) fn unread_by_peer(fd: BorrowedFd<'_>) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: ioctl(2), TIOCOUTQ (unix(7) calls it SIOCOUTQ): writes one int to the pointer, which is valid for that.
    cvt(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) })?;
    usize::try_from(bytes).map_err(io::Error::other)
}
