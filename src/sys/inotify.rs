//! inotify(7): "something appeared in this directory".

use rustix::{
    fs::inotify::{CreateFlags, WatchFlags},
    io::Errno,
};
use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use super::fd;

/// Watches one directory from the moment it is made: readable when a name has appeared there since, or when the directory
/// itself has gone.
#[derive(Debug)]
pub(crate) struct Appearances(OwnedFd);

impl Appearances {
    /// Fails with `EMFILE` beyond `/proc/sys/fs/inotify/max_user_instances` (128 as a rule) of one user.
    pub(crate) fn in_directory(directory: &Path) -> io::Result<Self> {
        let inotify = rustix::fs::inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let inotify = fd::dup_above(inotify, 3)?;
        // `link` and `bind` report as CREATE, `rename` as MOVED_TO; a socket that others may now write to, as ATTRIB.
        let events = WatchFlags::CREATE
            | WatchFlags::MOVED_TO
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        rustix::fs::inotify::add_watch(&inotify, directory, events)?;
        Ok(Self(inotify))
    }

    /// Forgets what has appeared so far.
    pub(crate) fn forget(&self) -> io::Result<()> {
        let mut events = [0_u8; 4096];
        loop {
            match rustix::io::read(&self.0, &mut events) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Appearances {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
