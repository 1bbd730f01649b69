//! The socket to which one incarnation of a worker sends `sd_notify(3)` datagrams.
//!
//! It has a path, since an abstract name is not reachable from another network namespace. The kernel reports the process that sends, and
//! its user.

use crate::{
    sys::{
        deferred_close::{self, DeferredClose},
        fd,
        socket::{self, Credentials, RecvAction},
        this_process::own_pid,
    },
    wire::sd_notify::{self, Notice},
};
use std::{
    fs::{self, Permissions},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{fs::PermissionsExt, net::UnixDatagram},
    },
    path::PathBuf,
    sync::Arc,
};

/// The longest datagram that is read; a longer one is truncated.
const DATAGRAM_BYTES: usize = 4096;
/// The most datagrams of one worker whose file descriptors may be closing at once.
const CLOSING_MAX: usize = 16;

#[derive(Debug)]
pub(crate) struct NotifySocket {
    socket: DeferredClose,
    path: PathBuf,
    /// The process that has bound it. The drop of a copy in a fork must not remove the file.
    owner: i32,
    /// One reference for the socket, and one for each background close.
    closing: Arc<()>,
}

/// A received datagram.
#[derive(Debug)]
pub(crate) struct Datagram {
    /// The sender as reported by the kernel.
    pub(crate) sender: Option<Credentials>,
    pub(crate) notices: Vec<Notice>,
}

impl Drop for NotifySocket {
    fn drop(&mut self) {
        if self.owner == own_pid() {
            drop(fs::remove_file(&self.path));
        }
    }
}

impl AsFd for NotifySocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl NotifySocket {
    /// Binds a socket to `path` with the file mode `mode`. Returns it with the value of `NOTIFY_SOCKET`.
    pub(crate) fn bind(path: PathBuf, mode: u32) -> io::Result<(Self, String)> {
        let address = path.to_str().ok_or(io::ErrorKind::InvalidFilename)?.to_owned();
        let socket = UnixDatagram::bind(&path)?;
        let socket = fd::dup_above(OwnedFd::from(socket), fd::MIN_FD)?;
        let bound = Self { socket: DeferredClose::new(socket), path, owner: own_pid(), closing: Arc::default() };
        socket::receive_credentials(bound.as_fd())?;
        fs::set_permissions(&bound.path, Permissions::from_mode(mode))?;
        Ok((bound, address))
    }

    /// Returns the next datagram; `None` if there is none.
    ///
    /// File descriptors in a datagram are closed: after `BARRIER=1` this notifies the sender that everything before was processed. Closing
    /// can block as long as the sender likes (docs/gotchas.md, "Closing can block"), so it is done in the background.
    pub(crate) fn receive(&self) -> Option<Datagram> {
        let mut datagram = [0; DATAGRAM_BYTES];
        let received = socket::receive_message(self.as_fd(), &mut datagram, RecvAction::Descriptors).ok()?;
        self.close_in_background(received.descriptors);
        let bytes = datagram.get(..received.bytes.min(DATAGRAM_BYTES)).unwrap_or_default();
        Some(Datagram { sender: received.sender, notices: sd_notify::parse(bytes).collect() })
    }

    /// Whether too many of its file descriptors are still closing. The worker is then not read any more, or the host would run out of
    /// descriptors.
    pub(crate) fn has_close_backlog(&self) -> bool {
        Arc::strong_count(&self.closing) > CLOSING_MAX
    }

    fn close_in_background(&self, descriptors: Vec<OwnedFd>) {
        if !descriptors.is_empty() {
            // In this order: the reference counts until the descriptors are closed.
            deferred_close::close_in_background((descriptors, Arc::clone(&self.closing)));
        }
    }
}
