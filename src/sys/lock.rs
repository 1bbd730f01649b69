//! flock(2), and opening lock files and directories.

use rustix::{
    fs::{FlockOperation, Mode, OFlags},
    io::{Errno, retry_on_intr},
};
use std::{fs::File, io, os::unix::fs::OpenOptionsExt, path::Path};

/// Tries to lock the open file exclusively. Never blocks. The lock is released with the last descriptor of this open file description,
/// at the latest when the process ends.
pub(crate) fn try_lock(file: &File) -> io::Result<bool> {
    match retry_on_intr(|| rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive)) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Opens or creates a lock file that only its owner may read. Follows no symbolic link and does not block on a special file.
pub(crate) fn open_lock_file(path: &Path) -> io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
}

/// Opens a directory to access names in it, without the right to list it. Refuses a symbolic link as last component (`ENOTDIR`).
pub(crate) fn open_directory(path: &Path) -> io::Result<File> {
    open_as_path(path, OFlags::DIRECTORY | OFlags::NOFOLLOW)
}

/// Opens a directory to lock it, which needs the right to list it. Refuses a symbolic link as last component (`ENOTDIR`).
pub(crate) fn open_to_lock(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW).open(path)
}

/// Opens a file of any type with `O_PATH`, without the right to read or write it.
pub(crate) fn open_path(path: &Path) -> io::Result<File> {
    open_as_path(path, OFlags::empty())
}

/// `OpenOptions::custom_flags` drops the bits of `O_ACCMODE`, and with musl these include `O_PATH`.
fn open_as_path(path: &Path, flags: OFlags) -> io::Result<File> {
    let flags = OFlags::PATH | OFlags::CLOEXEC | flags;
    Ok(retry_on_intr(|| rustix::fs::open(path, flags, Mode::empty()))?.into())
}
