//! File descriptors: kind, access mode, flags and duplicates.

use rustix::{
    fs::{FileType, OFlags},
    io::{Errno, FdFlags, retry_on_intr},
};
use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

/// The lowest number for long-lived descriptors of this library: above 0 to 2, which a host may have closed and a child may inherit,
/// and above the small numbers at which programs expect inherited handles. A user's `Command` can use those only while they are free
/// in this process.
pub(crate) const MIN_FD: RawFd = 10;

/// The type of an open file, from `fstat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileKind {
    Fifo,
    Socket,
    RegularFile,
    Directory,
    CharacterDevice,
    BlockDevice,
    SymbolicLink,
    /// eventfd, epoll, pidfd and similar: no file type.
    KernelObject,
}

impl FileKind {
    /// With its article, for use in a sentence.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Fifo => "a pipe",
            Self::Socket => "a socket",
            Self::RegularFile => "a regular file",
            Self::Directory => "a directory",
            Self::CharacterDevice => "a character device",
            Self::BlockDevice => "a block device",
            Self::SymbolicLink => "a symbolic link",
            Self::KernelObject => "a kernel object without a file type (eventfd, epoll, pidfd, ...)",
        }
    }
}

/// The access mode of an open file description.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AccessMode {
    Read,
    Write,
    Both,
    /// `O_PATH`, or the undocumented mode 3 of Linux: usable for `ioctl` and `openat` only.
    Neither,
}

/// Takes ownership of a file descriptor, which is then closed on drop.
///
/// Whether a number already has an owner cannot be determined, so the safety depends on the callers. Each of them has checked, under
/// the lock of the registry in `pipe::anonymous::handle`, that the number is open, that it is not claimed, and that it was inherited
/// through exec: it is not close-on-exec, as every descriptor opened by std is.
pub(crate) fn adopt(number: RawFd) -> OwnedFd {
    assert!(number >= 0, "a descriptor is never negative");
    // SAFETY: an `OwnedFd` needs an open number (>= 0, checked) that has no other owner. The caller has verified that as described
    // above; numbers are per process (open(2)), so no other process can close it.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// Makes one call on a number that may not be open: then the call fails with `EBADF`.
fn with_number<T>(number: RawFd, call: impl FnOnce(BorrowedFd<'_>) -> rustix::io::Result<T>) -> io::Result<T> {
    if number < 0 {
        return Err(Errno::BADF.into());
    }
    // SAFETY: the number is not -1, and it is borrowed for one call that neither reads nor writes. The kernel looks it up, so a
    // number that is not open, or is closed concurrently, only causes an error.
    Ok(call(unsafe { BorrowedFd::borrow_raw(number) })?)
}

pub(crate) fn is_open(number: RawFd) -> bool {
    is_close_on_exec(number).is_ok()
}

pub(crate) fn is_close_on_exec(number: RawFd) -> io::Result<bool> {
    Ok(with_number(number, |fd| rustix::io::fcntl_getfd(fd))?.contains(FdFlags::CLOEXEC))
}

/// `FD_CLOEXEC` is the only file descriptor flag, so it is set without reading the others.
pub(crate) fn set_close_on_exec(fd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::io::fcntl_setfd(fd, FdFlags::CLOEXEC)?)
}

/// Duplicates the descriptor to the lowest free number from `at_least` on, close-on-exec, and closes the original. Returns it
/// unchanged if its number is already high enough.
pub(crate) fn dup_above(fd: OwnedFd, at_least: RawFd) -> io::Result<OwnedFd> {
    if fd.as_raw_fd() >= at_least { Ok(fd) } else { duplicate(fd.as_fd(), at_least) }
}

/// Duplicates the descriptor to the lowest free number from `at_least` on, close-on-exec.
pub(crate) fn duplicate(fd: BorrowedFd<'_>, at_least: RawFd) -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(fd, at_least)?)
}

/// As [`duplicate`], for a number without an owner.
pub(crate) fn duplicate_number(number: RawFd, at_least: RawFd) -> io::Result<OwnedFd> {
    with_number(number, |fd| rustix::io::fcntl_dupfd_cloexec(fd, at_least))
}

/// Atomically replaces a standard stream (0 to 2) by `target`.
pub(crate) fn redirect_standard(number: RawFd, target: BorrowedFd<'_>) -> io::Result<()> {
    // Any other number may have an owner that relies on it. These three have none: std uses them by number.
    Ok(retry_on_intr(|| match number {
        0 => rustix::stdio::dup2_stdin(target),
        1 => rustix::stdio::dup2_stdout(target),
        2 => rustix::stdio::dup2_stderr(target),
        _ => Err(Errno::BADF),
    })?)
}

/// As [`kind_of`], for a number without an owner.
pub(crate) fn file_kind(number: RawFd) -> io::Result<FileKind> {
    with_number(number, |fd| rustix::fs::fstat(fd)).map(|stat| kind(&stat))
}

pub(crate) fn kind_of(descriptor: &impl AsFd) -> io::Result<FileKind> {
    Ok(kind(&rustix::fs::fstat(descriptor)?))
}

fn kind(stat: &rustix::fs::Stat) -> FileKind {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Fifo => FileKind::Fifo,
        FileType::Socket => FileKind::Socket,
        FileType::RegularFile => FileKind::RegularFile,
        FileType::Directory => FileKind::Directory,
        FileType::CharacterDevice => FileKind::CharacterDevice,
        FileType::BlockDevice => FileKind::BlockDevice,
        FileType::Symlink => FileKind::SymbolicLink,
        FileType::Unknown => FileKind::KernelObject,
    }
}

pub(crate) fn access_mode(number: RawFd) -> io::Result<AccessMode> {
    let flags = with_number(number, |fd| rustix::fs::fcntl_getfl(fd))?;
    if flags.contains(OFlags::PATH) {
        return Ok(AccessMode::Neither);
    }
    Ok(match flags & OFlags::ACCMODE {
        OFlags::RDONLY => AccessMode::Read,
        OFlags::WRONLY => AccessMode::Write,
        OFlags::RDWR => AccessMode::Both,
        _ => AccessMode::Neither,
    })
}

/// Sets `O_NONBLOCK`. The flag belongs to the open file description: it affects all duplicates, in any process.
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::fs::fcntl_setfl(fd, rustix::fs::fcntl_getfl(fd)? | OFlags::NONBLOCK)?)
}

/// Clears `O_NONBLOCK`, with the same effect on duplicates.
pub(crate) fn set_blocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::fs::fcntl_setfl(fd, rustix::fs::fcntl_getfl(fd)? - OFlags::NONBLOCK)?)
}

pub(crate) fn page_bytes() -> u64 {
    // SAFETY: sysconf(3) takes a number.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

/// The inode number of the open file.
pub(crate) fn inode(descriptor: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(rustix::fs::fstat(descriptor)?.st_ino)
}
