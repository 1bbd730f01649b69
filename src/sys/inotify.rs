//! inotify(7): notification of new names in a directory.

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

/// Watches one directory: readable once a name has appeared in it since the watch was added, or once the directory was removed or
/// renamed.
#[derive(Debug)]
pub(crate) struct Appearances(OwnedFd);

impl Appearances {
    /// Fails with `EMFILE` beyond `/proc/sys/fs/inotify/max_user_instances` (128 by default) per user.
    pub(crate) fn in_directory(directory: &Path) -> io::Result<Self> {
        let inotify = rustix::fs::inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let inotify = fd::dup_above(inotify, 3)?;
        // `link` and `bind` report CREATE, `rename` MOVED_TO, and a change of the socket's permissions ATTRIB.
        let events = WatchFlags::CREATE
            | WatchFlags::MOVED_TO
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        rustix::fs::inotify::add_watch(&inotify, directory, events)?;
        Ok(Self(inotify))
    }

    /// Discards the events so far.
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
