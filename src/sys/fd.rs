//! What a descriptor number stands for, and its flags.

use rustix::{
    fs::{FileType, OFlags},
    io::{Errno, FdFlags, retry_on_intr},
};
use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

/// Where the loop's own descriptors live: not at 0 to 2, which a host may have closed and a child may inherit, and above the
/// small numbers at which programs expect their handles, which a user's own `Command` can give only while they are free here.
pub(crate) const MIN_FD: RawFd = 10;

/// What stands behind a descriptor, as `fstat` tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileKind {
    Fifo,
    Socket,
    RegularFile,
    Directory,
    CharacterDevice,
    BlockDevice,
    SymbolicLink,
    /// eventfd, epoll, pidfd and their like have no file type.
    KernelObject,
}

impl FileKind {
    /// With its article, to stand in a sentence.
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

/// What `open` or `pipe` allowed on a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AccessMode {
    Read,
    Write,
    Both,
    /// `O_PATH`, or Linux' undocumented mode 3: good for `ioctl` and `openat` only.
    Neither,
}

/// Makes the caller the owner of a number, which is then closed on drop.
///
/// No function can look up whether a number has an owner already, so this face is only as safe as its callers are careful.
/// Each of them has checked, under the lock of `pipe::handle`'s registry, that the number is open, that nobody claimed it
/// there, and that it came through `exec` (it is not close-on-exec, as everything is that Rust's own std opens).
pub(crate) fn adopt(number: RawFd) -> OwnedFd {
    assert!(number >= 0, "a descriptor is never negative");
    // SAFETY: an `OwnedFd` wants an open number (>= 0, checked) that nothing else will close. The caller has looked it up as
    // told above; open(2): numbers are per process, so no other process can take it away.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// Makes one call on a number of which it is not known whether it is open: then the call fails with `EBADF`.
fn with_number<T>(number: RawFd, call: impl FnOnce(BorrowedFd<'_>) -> rustix::io::Result<T>) -> io::Result<T> {
    if number < 0 {
        return Err(Errno::BADF.into());
    }
    // SAFETY: the number is not -1, and it is borrowed for one call only, which neither reads from it nor writes to it. The
    // kernel looks it up, so that a number that is not open, or is closed meanwhile, is an error and nothing worse.
    Ok(call(unsafe { BorrowedFd::borrow_raw(number) })?)
}

/// Whether the number stands for anything now.
pub(crate) fn is_open(number: RawFd) -> bool {
    is_close_on_exec(number).is_ok()
}

pub(crate) fn is_close_on_exec(number: RawFd) -> io::Result<bool> {
    Ok(with_number(number, |fd| rustix::io::fcntl_getfd(fd))?.contains(FdFlags::CLOEXEC))
}

/// `FD_CLOEXEC` is the only descriptor flag there is, so it is set without asking for the others first.
pub(crate) fn set_close_on_exec(fd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::io::fcntl_setfd(fd, FdFlags::CLOEXEC)?)
}

/// The same open file under the lowest free number from `at_least` on, close-on-exec; the old number is closed.
/// A number that is high enough stays as it is.
pub(crate) fn dup_above(fd: OwnedFd, at_least: RawFd) -> io::Result<OwnedFd> {
    if fd.as_raw_fd() >= at_least { Ok(fd) } else { duplicate(fd.as_fd(), at_least) }
}

/// One more number for the same open file, from `at_least` on, close-on-exec from the first moment.
pub(crate) fn duplicate(fd: BorrowedFd<'_>, at_least: RawFd) -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(fd, at_least)?)
}

/// As [`duplicate`], of a number without an owner.
pub(crate) fn duplicate_number(number: RawFd, at_least: RawFd) -> io::Result<OwnedFd> {
    with_number(number, |fd| rustix::io::fcntl_dupfd_cloexec(fd, at_least))
}

/// Lets a standard stream's number (0 to 2) stand for `target`, with no moment in which the number is free.
pub(crate) fn redirect_standard(number: RawFd, target: BorrowedFd<'_>) -> io::Result<()> {
    // Any other number may have an owner that does not expect this. These three have none: std uses them by their numbers,
    // whatever they stand for.
    Ok(retry_on_intr(|| match number {
        0 => rustix::stdio::dup2_stdin(target),
        1 => rustix::stdio::dup2_stdout(target),
        2 => rustix::stdio::dup2_stderr(target),
        _ => Err(Errno::BADF),
    })?)
}

pub(crate) fn file_kind(number: RawFd) -> io::Result<FileKind> {
    let stat = with_number(number, |fd| rustix::fs::fstat(fd))?;
    Ok(match FileType::from_raw_mode(stat.st_mode) {
        FileType::Fifo => FileKind::Fifo,
        FileType::Socket => FileKind::Socket,
        FileType::RegularFile => FileKind::RegularFile,
        FileType::Directory => FileKind::Directory,
        FileType::CharacterDevice => FileKind::CharacterDevice,
        FileType::BlockDevice => FileKind::BlockDevice,
        FileType::Symlink => FileKind::SymbolicLink,
        FileType::Unknown => FileKind::KernelObject,
    })
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

/// A read or write that finds nothing to do fails from now on. `O_NONBLOCK` lies on the open file description: everyone who
/// holds a duplicate, in any process, feels it.
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::fs::fcntl_setfl(fd, rustix::fs::fcntl_getfl(fd)? | OFlags::NONBLOCK)?)
}

/// A read or write that finds nothing to do waits from now on, for everyone as above.
pub(crate) fn set_blocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::fs::fcntl_setfl(fd, rustix::fs::fcntl_getfl(fd)? - OFlags::NONBLOCK)?)
}

/// The size of a page of memory, in bytes.
pub(crate) fn page_bytes() -> u64 {
    // SAFETY: sysconf(3) takes a number.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

/// The number of the file behind a descriptor, within its file system.
pub(crate) fn inode(descriptor: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(rustix::fs::fstat(descriptor)?.st_ino)
}
