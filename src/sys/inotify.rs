//! inotify(7): "something appeared in this directory".

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use super::{cvt, fd};

/// Watches one directory from the moment it is made: readable when a name has appeared there since, or when the directory
/// itself has gone.
#[derive(Debug)]
pub(crate) struct Appearances(OwnedFd);

impl Appearances {
    /// Fails with `EMFILE` beyond `/proc/sys/fs/inotify/max_user_instances` (128 as a rule) of one user.
    pub(crate) fn in_directory(directory: &Path) -> io::Result<Self> {
        let path = CString::new(directory.as_os_str().as_bytes())?;
        // SAFETY: inotify_init1(2) takes flags only.
        let number = cvt(unsafe { libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK) })?;
        // SAFETY: the kernel made this number a moment ago and for us alone.
        let inotify = fd::lift(unsafe { OwnedFd::from_raw_fd(number) }, 3)?;
        // `link` and `bind` report as CREATE, `rename` as MOVED_TO; a socket that others may now write to, as ATTRIB.
        let mask = libc::IN_CREATE
            | libc::IN_MOVED_TO
            | libc::IN_ATTRIB
            | libc::IN_DELETE_SELF
            | libc::IN_MOVE_SELF
            | libc::IN_ONLYDIR;
        // SAFETY: inotify_add_watch(2) reads a path that ends in NUL, as `CString` does.
        cvt(unsafe { libc::inotify_add_watch(inotify.as_raw_fd(), path.as_ptr(), mask) })?;
        Ok(Self(inotify))
    }

    /// Forgets what has appeared so far.
    pub(crate) fn forget(&self) -> io::Result<()> {
        let mut events = [0_u8; 4096];
        loop {
            // SAFETY: read(2) writes at most as many bytes as the array has.
            let answer = unsafe { libc::read(self.0.as_raw_fd(), events.as_mut_ptr().cast(), events.len()) };
            match super::cvt_size(answer) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsFd for Appearances {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
