//! flock(2), and directories held by a descriptor: who may act on a name.

use rustix::{
    fs::FlockOperation,
    io::{Errno, retry_on_intr},
};
use std::{fs::File, io, os::unix::fs::OpenOptionsExt, path::Path};

/// Locks the open file for us alone if nobody else has it locked; never waits. The lock ends with the last descriptor of this
/// open file, so with the process at the latest.
pub(crate) fn try_lock(file: &File) -> io::Result<bool> {
    match retry_on_intr(|| rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive)) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Opens or makes a lock file, which only its owner may read; a symbolic link is not followed, nor a special file waited for.
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

/// A directory to name things in, whatever the permission to list it. A symbolic link in the last place is refused
/// (`ENOTDIR`).
pub(crate) fn open_directory(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW).open(path)
}

/// A directory to be locked, which takes the right to list it. A symbolic link in the last place is refused (`ENOTDIR`).
pub(crate) fn open_to_lock(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW).open(path)
}

/// Holds on to a file of any kind, without a right to read it or write to it.
pub(crate) fn open_path(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(libc::O_PATH).open(path)
}
