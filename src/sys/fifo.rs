//! Pipes and sockets: capacity and unread bytes.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
};

use super::{cvt, fd};

/// The longest atomic write to a pipe, which does not block after `POLLOUT` (pipe(7)).
pub(crate) const ATOMIC_WRITE_BYTES: usize = libc::PIPE_BUF;

/// The largest capacity that is requested, in bytes: the default of `/proc/sys/fs/pipe-max-size`.
pub(crate) const LARGEST_BYTES: usize = 1 << 20;

/// A pipe whose ends are close-on-exec and have high numbers.
pub(crate) fn pipe() -> io::Result<(File, File)> {
    let (reader, writer) = io::pipe()?;
    let lift = |end: OwnedFd| fd::dup_above(end, fd::MIN_FD).map(File::from);
    Ok((lift(reader.into())?, lift(writer.into())?))
}

/// The unit of a capacity, in bytes.
pub(crate) fn page_bytes() -> usize {
    usize::try_from(fd::page_bytes()).unwrap_or(4096).max(1)
}

pub(crate) fn capacity(fd: BorrowedFd<'_>) -> io::Result<usize> {
    Ok(rustix::pipe::fcntl_getpipe_size(fd)?)
}

/// Returns the capacity that the kernel has chosen: a power of two of pages.
pub(crate) fn set_capacity(fd: BorrowedFd<'_>, bytes: usize) -> io::Result<usize> {
    // rustix returns EPERM for a size that does not fit.
    if i32::try_from(bytes).is_err() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    Ok(rustix::pipe::fcntl_setpipe_size(fd, bytes)?)
}

/// The number of bytes written and not yet read. The same at both ends of a pipe; for a socket, the bytes that this side can read.
pub(crate) fn unread(fd: BorrowedFd<'_>) -> io::Result<usize> {
    usize::try_from(rustix::io::ioctl_fionread(fd)?).map_err(io::Error::other)
}

/// Memory of a local socket's messages that the peer has not read: more than their bytes, and 0 only when all are read.
pub(crate) fn unread_by_peer(fd: BorrowedFd<'_>) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: ioctl(2) TIOCOUTQ (SIOCOUTQ in unix(7)) writes one int to the pointer, which is valid for that.
    cvt(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) })?;
    usize::try_from(bytes).map_err(io::Error::other)
}
