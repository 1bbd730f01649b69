//! Who of the clients in the backlog comes in.

use std::{
    io::{self, IoSlice},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use super::{
    handshake::{self, Answer, Fault, Hello, Reply},
    peer::{Access, ImpersonationLevel},
};
use crate::pipe::mode::{Direction, PipeMode};
use crate::sys::{epoll::Poller, fd_free_stream::FdFreeStream, poll::Deadline, socket};

/// How long a client may take for its first 16 bytes. It sends them at once, so a client that has not is stuck or not ours.
const HELLO_WAIT: Duration = Duration::from_secs(5);

/// How many clients may be about to introduce themselves. The others wait in the backlog.
pub(super) const STRANGERS_MAX: usize = 256;

/// Under which the poller of a door reports; nobody asks it which it was.
const ANY_TOKEN: u64 = 0;

/// Whether clients introduce themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Greeting {
    None,
    Handshake,
}

/// What a client must be and say to come in.
#[derive(Debug)]
pub(super) struct Door {
    pub(super) mode: PipeMode,
    pub(super) direction: Direction,
    pub(super) access: Access,
    pub(super) greeting: Greeting,
    pub(super) send_buffer_size: Option<usize>,
    pub(super) our_uid: u32,
    pub(super) tally: Counters,
    /// With a handshake: who knocks, and who is half-way in.
    pub(super) moves: Option<Poller>,
}

/// A client that has not introduced itself yet.
#[derive(Debug)]
pub(super) struct Stranger {
    pub(super) socket: FdFreeStream,
    heard: Vec<u8>,
    pub(super) until: Deadline,
}

/// A client that may become a stream.
pub(super) struct Admitted {
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

impl Door {
    /// What shows that somebody moves at a door where clients introduce themselves: the listening socket alone would not.
    pub(super) fn moves(greeting: Greeting, listening: &OwnedFd) -> io::Result<Option<Poller>> {
        if greeting == Greeting::None {
            return Ok(None);
        }
        let moves = Poller::new()?;
        moves.add(listening, ANY_TOKEN)?;
        Ok(Some(moves))
    }

    /// What is to be done with a client from the backlog.
    pub(super) fn admit(&self, client: FdFreeStream, strangers: &mut Vec<Stranger>) -> io::Result<Option<Admitted>> {
        if !self.access.allows(client.as_fd(), self.our_uid)? {
            self.refuse(client.as_fd(), Answer::NotAllowed);
            return Ok(None);
        }
        if let Some(bytes) = self.send_buffer_size {
            socket::set_send_buffer(client.as_fd(), bytes)?;
        }
        if self.mode == PipeMode::Message {
            socket::receive_credentials(client.as_fd())?;
        }
        if self.greeting == Greeting::Handshake {
            if let Some(moves) = &self.moves {
                moves.add(&client, ANY_TOKEN)?;
            }
            strangers.push(Stranger { socket: client, heard: Vec::new(), until: Deadline::after(HELLO_WAIT) });
            return Ok(None);
        }
        Ok(Some(Admitted { socket: client.into_descriptor(), level: None }))
    }

    /// Hears what the strangers say, and answers the first one that says the right thing.
    pub(super) fn hear(&self, strangers: &mut Vec<Stranger>) -> Option<Admitted> {
        let mut at = 0;
        while let Some(stranger) = strangers.get_mut(at) {
            match stranger.listen() {
                Heard::Nothing if stranger.until.has_passed() => {
                    self.tally.refused.fetch_add(1, Ordering::Relaxed);
                    drop(self.take_out(strangers, at));
                }
                Heard::Nothing => at += 1,
                Heard::End => {
                    self.tally.vanished.fetch_add(1, Ordering::Relaxed);
                    drop(self.take_out(strangers, at));
                }
                Heard::Hello(hello) => {
                    let client = self.take_out(strangers, at);
                    if let Some(admitted) = self.answer(client, hello) {
                        return Some(admitted);
                    }
                }
            }
        }
        None
    }

    fn take_out(&self, strangers: &mut Vec<Stranger>, at: usize) -> FdFreeStream {
        let client = strangers.swap_remove(at).socket;
        if let Some(moves) = &self.moves {
            // Also where it is closed next: a program that is just being started may hold a copy. It was added, so it is there.
            drop(moves.remove(&client));
        }
        client
    }

    fn answer(&self, client: FdFreeStream, hello: Result<Hello, Fault>) -> Option<Admitted> {
        let Some(reply) = handshake::answer(hello, self.mode, self.direction) else {
            self.tally.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        if reply.answer != Answer::Accepted {
            self.refuse(client.as_fd(), reply.answer);
            return None;
        }
        // After this answer the client counts itself as accepted: nothing may fail any more.
        if socket::send(client.as_fd(), &[IoSlice::new(&reply.to_bytes())], &[]).is_err() {
            self.tally.vanished.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(Admitted { socket: client.into_descriptor(), level: hello.ok().map(|hello| hello.level) })
    }

    fn refuse(&self, client: BorrowedFd<'_>, answer: Answer) {
        self.tally.refused.fetch_add(1, Ordering::Relaxed);
        if self.greeting == Greeting::Handshake {
            let reply = Reply { answer, mode: self.mode, direction: self.direction };
            // 16 bytes always fit into a new socket; if the client is gone it does not need the answer.
            drop(socket::send(client, &[IoSlice::new(&reply.to_bytes())], &[]));
        }
    }
}

enum Heard {
    Nothing,
    End,
    Hello(Result<Hello, Fault>),
}

impl Stranger {
    fn listen(&mut self) -> Heard {
        let mut buffer = [0; handshake::BYTES];
        let room = handshake::BYTES - self.heard.len();
        match self.socket.receive(&mut buffer[..room]) {
            Ok(count @ 1..) => self.heard.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Heard::Nothing,
            // Descriptors; nobody is asked for them here.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => return Heard::Hello(Err(Fault::NotOurs)),
            Ok(0) | Err(_) => return Heard::End,
        }
        match self.heard.first_chunk() {
            Some(hello) => Heard::Hello(Hello::parse(*hello)),
            None => Heard::Nothing,
        }
    }
}
