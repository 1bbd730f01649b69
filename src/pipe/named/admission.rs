//! Who of the clients in the backlog comes in.

use std::{
    io::{self, IoSlice},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use super::{
    handshake::{self, ClientHello, HandshakeAnswer, HandshakeError, ServerReply},
    peer::{Access, ImpersonationLevel},
};
use crate::deadline::Deadline;
use crate::pipe::mode::{Direction, PipeMode};
use crate::sys::{epoll::Poller, fd_free_stream::FdFreeStream, socket};

/// How long a client may take for its first 16 bytes. It sends them at once, so a client that has not is stuck or not ours.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// How many clients may be about to introduce themselves. The others wait in the backlog.
pub(super) const PENDING_CLIENTS_MAX: usize = 256;

/// Under which the poller of a admission reports; nobody asks it which it was.
const POLL_TOKEN: u64 = 0;

/// Whether clients introduce themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HandshakeMode {
    None,
    Handshake,
}

/// What a client must be and say to come in.
#[derive(Debug)]
pub(super) struct Admission {
    pub(super) mode: PipeMode,
    pub(super) direction: Direction,
    pub(super) access: Access,
    pub(super) handshake: HandshakeMode,
    pub(super) send_buffer_size: Option<usize>,
    pub(super) our_uid: u32,
    pub(super) counters: Counters,
    /// With a handshake: who knocks, and who is half-way in.
    pub(super) activity: Option<Poller>,
}

/// A client that has not introduced itself yet.
#[derive(Debug)]
pub(super) struct PendingClient {
    pub(super) socket: FdFreeStream,
    received: Vec<u8>,
    pub(super) until: Deadline,
}

/// A client that may become a stream.
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

/// How many clients a [`Listener`](super::Listener) has met. Each client that got as far as being looked at is in one of the three.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListenerStats {
    /// Returned by `accept`.
    pub accepted: u64,
    /// Put out: not allowed in, of another mode, direction or version, or not speaking our handshake at all.
    pub refused: u64,
    /// Gone before they were accepted. Without a handshake such a client is accepted, and its stream is at its end.
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
    /// What shows that somebody activity at a admission where clients introduce themselves: the listening socket alone would not.
    pub(super) fn activity(handshake: HandshakeMode, listening: &OwnedFd) -> io::Result<Option<Poller>> {
        if handshake == HandshakeMode::None {
            return Ok(None);
        }
        let activity = Poller::new()?;
        activity.add(listening, POLL_TOKEN)?;
        Ok(Some(activity))
    }

    /// What is to be done with a client from the backlog.
    pub(super) fn admit(
        &self,
        client: FdFreeStream,
        pending: &mut Vec<PendingClient>,
    ) -> io::Result<Option<AcceptedClient>> {
        if !self.access.allows(client.as_fd(), self.our_uid)? {
            self.refuse(client.as_fd(), HandshakeAnswer::NotAllowed);
            return Ok(None);
        }
        if let Some(bytes) = self.send_buffer_size {
            socket::set_send_buffer(client.as_fd(), bytes)?;
        }
        if self.mode == PipeMode::Message {
            socket::receive_credentials(client.as_fd())?;
        }
        if self.handshake == HandshakeMode::Handshake {
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

    /// Hears what the pending say, and answers the first one that says the right thing.
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
            // Also where it is closed next: a program that is just being started may hold a copy. It was added, so it is there.
            drop(activity.remove(&client));
        }
        client
    }

    fn answer(&self, client: FdFreeStream, hello: Result<ClientHello, HandshakeError>) -> Option<AcceptedClient> {
        let Some(reply) = handshake::answer(hello, self.mode, self.direction) else {
            self.counters.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        if reply.answer != HandshakeAnswer::Accepted {
            self.refuse(client.as_fd(), reply.answer);
            return None;
        }
        // After this answer the client counts itself as accepted: nothing may fail any more.
        if socket::send(client.as_fd(), &[IoSlice::new(&reply.to_bytes())], &[]).is_err() {
            self.counters.vanished.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(AcceptedClient { socket: client.into_descriptor(), level: hello.ok().map(|hello| hello.level) })
    }

    fn refuse(&self, client: BorrowedFd<'_>, answer: HandshakeAnswer) {
        self.counters.refused.fetch_add(1, Ordering::Relaxed);
        if self.handshake == HandshakeMode::Handshake {
            let reply = ServerReply { answer, mode: self.mode, direction: self.direction };
            // 16 bytes always fit into a new socket; if the client is gone it does not need the answer.
            drop(socket::send(client, &[IoSlice::new(&reply.to_bytes())], &[]));
        }
    }
}

enum HelloProgress {
    Nothing,
    End,
    ClientHello(Result<ClientHello, HandshakeError>),
}

impl PendingClient {
    fn read_hello(&mut self) -> HelloProgress {
        let mut buffer = [0; handshake::BYTES];
        let room = handshake::BYTES - self.received.len();
        match self.socket.receive(&mut buffer[..room]) {
            Ok(count @ 1..) => self.received.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return HelloProgress::Nothing,
            // Descriptors; nobody is asked for them here.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return HelloProgress::ClientHello(Err(HandshakeError::NotOurs));
            }
            Ok(0) | Err(_) => return HelloProgress::End,
        }
        match self.received.first_chunk() {
            Some(hello) => HelloProgress::ClientHello(ClientHello::parse(*hello)),
            None => HelloProgress::Nothing,
        }
    }
}
