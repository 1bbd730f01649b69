//! What a descriptor number stands for, and its flags.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use super::cvt;

/// Where the loop's own descriptors live: not at 0 to 2, which a host may have closed and a child may inherit, and above the
/// small numbers at which programs expect their handles, which a user's own `Command` can give only while they are free here.
pub(crate) const OUT_OF_THE_WAY: RawFd = 10;

/// What stands behind a descriptor, as `fstat` tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
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

impl Kind {
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
pub(crate) enum Access {
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

/// Whether the number stands for anything now.
pub(crate) fn is_open(number: RawFd) -> bool {
    descriptor_flags(number).is_ok()
}

pub(crate) fn is_close_on_exec(number: RawFd) -> io::Result<bool> {
    Ok(descriptor_flags(number)? & libc::FD_CLOEXEC != 0)
}

fn descriptor_flags(number: RawFd) -> io::Result<i32> {
    // SAFETY: fcntl(2): F_GETFD takes no argument and no pointer; a number that is not open gives EBADF.
    cvt(unsafe { libc::fcntl(number, libc::F_GETFD) })
}

/// `FD_CLOEXEC` is the only descriptor flag there is, so it is set without asking for the others first.
pub(crate) fn set_close_on_exec(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: fcntl(2): F_SETFD takes an int and no pointer.
    cvt(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) }).map(drop)
}

/// The same open file under the lowest free number from `at_least` on, close-on-exec; the old number is closed.
/// A number that is high enough stays as it is.
pub(crate) fn lift(fd: OwnedFd, at_least: RawFd) -> io::Result<OwnedFd> {
    if fd.as_raw_fd() >= at_least { Ok(fd) } else { duplicate(fd.as_raw_fd(), at_least) }
}

/// One more number for the same open file, from `at_least` on, close-on-exec from the first moment.
pub(crate) fn duplicate(number: RawFd, at_least: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl(2): F_DUPFD_CLOEXEC takes an int and no pointer.
    let copy = cvt(unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, at_least) })?;
    assert!(copy >= at_least, "fcntl(2): the lowest free number greater than or equal to the argument");
    // SAFETY: the kernel made this number a moment ago and for us alone; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Lets a standard stream's number (0 to 2) stand for `target`, with no moment in which the number is free.
pub(crate) fn redirect_standard(number: RawFd, target: BorrowedFd<'_>) -> io::Result<()> {
    assert!((0..=2).contains(&number), "any other number may have an owner that does not expect this");
    // SAFETY: dup2(2) takes two ints. 0 to 2 belong to no `OwnedFd`: std uses them by their numbers, whatever they stand for.
    super::retry(|| cvt(unsafe { libc::dup2(target.as_raw_fd(), number) })).map(drop)
}

pub(crate) fn kind(number: RawFd) -> io::Result<Kind> {
    let mut stat = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: fstat(2) writes one `struct stat` to the pointer, which is valid for that; a closed number gives EBADF.
    cvt(unsafe { libc::fstat(number, stat.as_mut_ptr()) })?;
    // SAFETY: fstat returned 0, so it filled the structure.
    let stat = unsafe { stat.assume_init() };
    Ok(match stat.st_mode & libc::S_IFMT {
        libc::S_IFIFO => Kind::Fifo,
        libc::S_IFSOCK => Kind::Socket,
        libc::S_IFREG => Kind::RegularFile,
        libc::S_IFDIR => Kind::Directory,
        libc::S_IFCHR => Kind::CharacterDevice,
        libc::S_IFBLK => Kind::BlockDevice,
        libc::S_IFLNK => Kind::SymbolicLink,
        _ => Kind::KernelObject,
    })
}

pub(crate) fn access(number: RawFd) -> io::Result<Access> {
    let flags = status_flags(number)?;
    if flags & libc::O_PATH != 0 {
        return Ok(Access::Neither);
    }
    Ok(match flags & libc::O_ACCMODE {
        libc::O_RDONLY => Access::Read,
        libc::O_WRONLY => Access::Write,
        libc::O_RDWR => Access::Both,
        _ => Access::Neither,
    })
}

fn status_flags(number: RawFd) -> io::Result<i32> {
    // SAFETY: fcntl(2): F_GETFL takes no argument and no pointer; a number that is not open gives EBADF.
    cvt(unsafe { libc::fcntl(number, libc::F_GETFL) })
}

/// A read or write that finds nothing to do fails from now on. `O_NONBLOCK` lies on the open file description: everyone who
/// holds a duplicate, in any process, feels it.
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = status_flags(fd.as_raw_fd())? | libc::O_NONBLOCK;
    // SAFETY: fcntl(2): F_SETFL takes an int and no pointer.
    cvt(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags) }).map(drop)
}

/// A read or write that finds nothing to do waits from now on, for everyone as above.
pub(crate) fn set_blocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = status_flags(fd.as_raw_fd())? & !libc::O_NONBLOCK;
    // SAFETY: fcntl(2): F_SETFL takes an int and no pointer.
    cvt(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags) }).map(drop)
}

/// The size of a page of memory, in bytes.
pub(crate) fn page_bytes() -> u64 {
    // SAFETY: sysconf(3) takes a number.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

/// The number of the file behind a descriptor, within its file system.
pub(crate) fn inode(descriptor: BorrowedFd<'_>) -> io::Result<u64> {
    // SAFETY: all zero is a `struct stat`.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: fstat(2) writes one structure.
    cvt(unsafe { libc::fstat(descriptor.as_raw_fd(), &raw mut stat) })?;
    Ok(stat.st_ino)
}
