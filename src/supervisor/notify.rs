//! The socket to which a worker tells how it is, by `sd_notify(3)`: one for each incarnation.
//!
//! Its name is abstract, so that nothing is left in the file system, and 128 random bits long; who sends is told by the kernel.
//! A worker in a network namespace of its own cannot reach it.

use crate::{
    sys::{
        closing::{self, ClosedElsewhere},
        fd, identity, random,
        socket::{self, Take},
    },
    wire::notify::{self, Notice},
};
use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram},
    },
    sync::Arc,
};

/// The longest datagram that is looked at; what is longer is cut.
const DATAGRAM_BYTES: usize = 4096;
/// How many datagrams' descriptors of one worker may be closing at once.
const CLOSERS: usize = 16;

#[derive(Debug)]
pub(super) struct NotifySocket {
    socket: ClosedElsewhere,
    /// One for itself, and one for each thread that closes.
    closers: Arc<()>,
}

impl AsFd for NotifySocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl NotifySocket {
    /// A new one, and what the worker finds in `NOTIFY_SOCKET`.
    pub(super) fn bind() -> io::Result<(Self, String)> {
        let name = format!("pipewright-{:032x}", u128::from_ne_bytes(random::bytes()?));
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
        let socket = fd::lift(OwnedFd::from(socket), fd::OUT_OF_THE_WAY)?;
        socket::receive_credentials(socket.as_fd())?;
        Ok((Self { socket: ClosedElsewhere::new(socket), closers: Arc::default() }, format!("@{name}")))
    }

    /// What the next datagram says; `None` where there is none for now. Only its own user and root are heard.
    ///
    /// Descriptors that come along are closed: after `BARRIER=1` that tells the sender that everything before was dealt with. To
    /// close one can take as long as its sender likes (docs/gotchas.md, "To close can wait"), so that is done elsewhere.
    pub(super) fn receive(&self) -> Option<Vec<Notice>> {
        let mut datagram = [0; DATAGRAM_BYTES];
        let received = socket::receive_message(self.as_fd(), &mut datagram, Take::Descriptors).ok()?;
        let may = received.sender.is_some_and(|sender| sender.uid == 0 || sender.uid == identity::effective_uid());
        self.close_elsewhere(received.descriptors);
        let bytes = datagram.get(..received.bytes.min(DATAGRAM_BYTES)).unwrap_or_default();
        Some(if may { notify::parse(bytes).collect() } else { Vec::new() })
    }

    /// Too much of what it has sent does not close: it is not to be heard any more, or we would run out of descriptors.
    pub(super) fn is_clogged(&self) -> bool {
        Arc::strong_count(&self.closers) > CLOSERS
    }

    fn close_elsewhere(&self, descriptors: Vec<OwnedFd>) {
        if !descriptors.is_empty() {
            // In this order: it counts until they are closed.
            closing::elsewhere((descriptors, Arc::clone(&self.closers)));
        }
    }
}
