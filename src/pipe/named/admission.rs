//! Admission of clients from the backlog: access check and handshake.

use std::{
    io::{self, IoSlice},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use super::{
    handshake::{self, ClientHello, HandshakeAnswer, InvalidHandshake, ServerReply},
    peer::{Access, ImpersonationLevel},
};
use crate::deadline::Deadline;
use crate::pipe::mode::{Direction, PipeMode};
use crate::sys::{epoll::Poller, fd_free_stream::FdFreeStream, socket};

/// Time a client has for the 16 bytes of its handshake. A client of this library sends them at once.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// Most clients in the handshake at one time. Further clients wait in the backlog.
pub(super) const PENDING_CLIENTS_MAX: usize = 256;

/// Token of all sockets in the poller, which only has to report that one of them is ready.
const POLL_TOKEN: u64 = 0;

/// Whether clients must perform the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HandshakeMode {
    None,
    Required,
}

/// Requirements for a client, and what accepted streams get.
#[derive(Debug)]
pub(super) struct Admission {
    pub(super) mode: PipeMode,
    pub(super) direction: Direction,
    pub(super) access: Access,
    pub(super) handshake: HandshakeMode,
    pub(super) send_buffer_size: Option<usize>,
    pub(super) own_uid: u32,
    pub(super) counters: Counters,
    /// With a handshake: polls the listening socket and the sockets of pending clients.
    pub(super) activity: Option<Poller>,
}

/// A client whose handshake is incomplete.
#[derive(Debug)]
pub(super) struct PendingClient {
    pub(super) socket: FdFreeStream,
    received: Vec<u8>,
    pub(super) until: Deadline,
}

/// An admitted client.
pub(super) struct AcceptedClient {
    pub(super) socket: OwnedFd,
    pub(super) level: Option<ImpersonationLevel>,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) accepted: AtomicU64,
    refused: AtomicU64,
    pub(super) vanished: AtomicU64,
}

/// Number of clients of a [`Listener`](super::Listener) by outcome. Each client taken from the backlog counts once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListenerStats {
    /// Returned by `accept`.
    pub accepted: u64,
    /// Rejected: not allowed, different mode, direction or version, or no valid handshake.
    pub refused: u64,
    /// Disconnected before being accepted. Without a handshake such a client is accepted, and its stream is at the end.
    pub vanished: u64,
}

impl Counters {
    pub(super) fn stats(&self) -> ListenerStats {
        ListenerStats {
            accepted: self.accepted.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
            vanished: self.vanished.load(Ordering::Relaxed),
        }
    }
}

impl Admission {
    /// Creates the poller for the handshake: the listening socket alone does not show activity of pending clients.
    pub(super) fn poller(handshake: HandshakeMode, listening: &OwnedFd) -> io::Result<Option<Poller>> {
        if handshake == HandshakeMode::None {
            return Ok(None);
        }
        let poller = Poller::new()?;
        poller.add(listening, POLL_TOKEN)?;
        Ok(Some(poller))
    }

    /// Checks a client from the backlog. Returns it if it is accepted without a handshake; with one, adds it to `pending`.
    pub(super) fn admit(
        &self,
        client: FdFreeStream,
        pending: &mut Vec<PendingClient>,
    ) -> io::Result<Option<AcceptedClient>> {
        if !self.access.allows(client.as_fd(), self.own_uid)? {
            self.refuse(client.as_fd(), HandshakeAnswer::NotAllowed);
            return Ok(None);
        }
        if let Some(bytes) = self.send_buffer_size {
            socket::set_send_buffer(client.as_fd(), bytes)?;
        }
        if self.mode == PipeMode::Message {
            socket::receive_credentials(client.as_fd())?;
        }
        if self.handshake == HandshakeMode::Required {
            if let Some(activity) = &self.activity {
                activity.add(&client, POLL_TOKEN)?;
            }
            pending.push(PendingClient {
                socket: client,
                received: Vec::new(),
                until: Deadline::after_now(HELLO_TIMEOUT),
            });
            return Ok(None);
        }
        Ok(Some(AcceptedClient { socket: client.into_descriptor(), level: None }))
    }

    /// Advances the handshakes of pending clients, and returns the first client that is accepted.
    pub(super) fn poll_pending(&self, pending: &mut Vec<PendingClient>) -> Option<AcceptedClient> {
        let mut at = 0;
        while let Some(client) = pending.get_mut(at) {
            match client.read_hello() {
                HelloProgress::Nothing if client.until.has_passed() => {
                    self.counters.refused.fetch_add(1, Ordering::Relaxed);
                    drop(self.remove_pending(pending, at));
                }
                HelloProgress::Nothing => at += 1,
                HelloProgress::End => {
                    self.counters.vanished.fetch_add(1, Ordering::Relaxed);
                    drop(self.remove_pending(pending, at));
                }
                HelloProgress::ClientHello(hello) => {
                    let client = self.remove_pending(pending, at);
                    if let Some(accepted) = self.answer(client, hello) {
                        return Some(accepted);
                    }
                }
            }
        }
        None
    }

    fn remove_pending(&self, pending: &mut Vec<PendingClient>, at: usize) -> FdFreeStream {
        let client = pending.swap_remove(at).socket;
        if let Some(activity) = &self.activity {
            // Even if it is closed next: a process that is being spawned may hold a copy, which would keep the registration.
            drop(activity.remove(&client));
        }
        client
    }

    fn answer(&self, client: FdFreeStream, hello: Result<ClientHello, InvalidHandshake>) -> Option<AcceptedClient> {
        let Some(reply) = handshake::answer(hello, self.mode, self.direction) else {
            self.counters.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        if reply.answer != HandshakeAnswer::Accepted {
            self.refuse(client.as_fd(), reply.answer);
            return None;
        }
        // After this reply the client considers itself accepted, so nothing may fail afterwards.
        if socket::send(client.as_fd(), &[IoSlice::new(&reply.to_bytes())], &[]).is_err() {
            self.counters.vanished.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(AcceptedClient { socket: client.into_descriptor(), level: hello.ok().map(|hello| hello.level) })
    }

    fn refuse(&self, client: BorrowedFd<'_>, answer: HandshakeAnswer) {
        self.counters.refused.fetch_add(1, Ordering::Relaxed);
        if self.handshake == HandshakeMode::Required {
            let reply = ServerReply { answer, mode: self.mode, direction: self.direction };
            // 16 bytes always fit into a new socket. A client that has disconnected needs no reply.
            drop(socket::send(client, &[IoSlice::new(&reply.to_bytes())], &[]));
        }
    }
}

enum HelloProgress {
    Nothing,
    End,
    ClientHello(Result<ClientHello, InvalidHandshake>),
}

impl PendingClient {
    fn read_hello(&mut self) -> HelloProgress {
        let mut buffer = [0; handshake::BYTES];
        let room = handshake::BYTES - self.received.len();
        match self.socket.receive(&mut buffer[..room]) {
            Ok(count @ 1..) => self.received.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return HelloProgress::Nothing,
            // The client sent file descriptors, which the handshake does not allow.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return HelloProgress::ClientHello(Err(InvalidHandshake::Unrecognized));
            }
            Ok(0) | Err(_) => return HelloProgress::End,
        }
        match self.received.first_chunk() {
            Some(hello) => HelloProgress::ClientHello(ClientHello::parse(*hello)),
            None => HelloProgress::Nothing,
        }
    }
}
