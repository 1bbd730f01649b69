//! The socket to which a worker tells how it is, by `sd_notify(3)`: one for each incarnation.
//!
//! It is a file, since an abstract name is out of reach for a worker in a network namespace of its own. The kernel says which
//! process sends, and as which user.

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

/// The longest datagram that is looked at; what is longer is cut.
const DATAGRAM_BYTES: usize = 4096;
/// How many datagrams' descriptors of one worker may be closing at once.
const CLOSERS: usize = 16;

#[derive(Debug)]
pub(crate) struct NotifySocket {
    socket: DeferredClose,
    path: PathBuf,
    /// The process that has bound it. A fork of it has a copy, whose drop must not remove the file.
    owner: i32,
    /// One for itself, and one for each thread that closes.
    closers: Arc<()>,
}

/// What one datagram says.
#[derive(Debug)]
pub(crate) struct Datagram {
    /// As the kernel knows it.
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
    /// A new one at this path, with this file mode, and what the worker finds in `NOTIFY_SOCKET`.
    pub(crate) fn bind(path: PathBuf, mode: u32) -> io::Result<(Self, String)> {
        let address = path.to_str().ok_or(io::ErrorKind::InvalidFilename)?.to_owned();
        let socket = UnixDatagram::bind(&path)?;
        let socket = fd::dup_above(OwnedFd::from(socket), fd::MIN_FD)?;
        let bound = Self { socket: DeferredClose::new(socket), path, owner: own_pid(), closers: Arc::default() };
        socket::receive_credentials(bound.as_fd())?;
        fs::set_permissions(&bound.path, Permissions::from_mode(mode))?;
        Ok((bound, address))
    }

    /// The next datagram; `None` where there is none for now.
    ///
    /// Descriptors that come along are closed: after `BARRIER=1` that tells the sender that everything before was dealt with. To
    /// close one can take as long as its sender likes (docs/gotchas.md, "Closing can block"), so that is done elsewhere.
    pub(crate) fn receive(&self) -> Option<Datagram> {
        let mut datagram = [0; DATAGRAM_BYTES];
        let received = socket::receive_message(self.as_fd(), &mut datagram, RecvAction::Descriptors).ok()?;
        self.close_elsewhere(received.descriptors);
        let bytes = datagram.get(..received.bytes.min(DATAGRAM_BYTES)).unwrap_or_default();
        Some(Datagram { sender: received.sender, notices: sd_notify::parse(bytes).collect() })
    }

    /// Too much of what it has sent does not close: it is not to be heard any more, or we would run out of descriptors.
    pub(crate) fn is_clogged(&self) -> bool {
        Arc::strong_count(&self.closers) > CLOSERS
    }

    fn close_elsewhere(&self, descriptors: Vec<OwnedFd>) {
        if !descriptors.is_empty() {
            // In this order: it counts until they are closed.
            deferred_close::close_in_background((descriptors, Arc::clone(&self.closers)));
        }
    }
}
