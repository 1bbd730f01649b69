//! The named-pipe server to which all workers connect, and who has not said yet which worker it is.
//!
//! An address is the server's path and a key of one incarnation. Whoever connects shows a key first; whoever shows none in
//! time, a wrong one, or too much else, is put out. So it does not matter what else a user's processes try.

use crate::{
    pipe::named::{
        listener::{AcceptError, Listener, ListenerOptions},
        name::PipeName,
        peer::Access,
    },
    supervisor::{
        control::hello::{self, HandshakeError, Refusals, RejectedHandshake},
        reactor::arena::Key,
        sync::lock,
    },
    sys::{
        deferred_close,
        fd_free_stream::{self, FdFreeStream},
        identity, is_transient, random,
        socket::{self, Credentials},
    },
    wire::{
        framing::BYTE_ORDER_MARK,
        jsonrpc::{
            address::Address,
            encode,
            error::{INVALID_REQUEST, RpcError},
            message::RpcMessage,
            protocol::{HELLO, Hello},
        },
    },
};
use std::{
    collections::{HashMap, HashSet},
    io, mem,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

/// How long a visitor has to show its key.
pub(crate) const HELLO_TIME: Duration = Duration::from_secs(10);
/// The longest first line of a visitor, in bytes.
const HELLO_BYTES: usize = 4096;
/// The name of the server's socket in its directory.
const NAME: &str = "control";
/// How many connections of users that may not connect are closed in one turn of the loop.
const REFUSALS: usize = 64;
/// How many visitors may be unknown at once; the next ones wait in the backlog.
const VISITORS: usize = 256;

/// The server in the loop, and the users apart from ours whose processes may connect.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) listener: Listener,
    pub(crate) admitted: Admitted,
    /// Of the incarnations that are being started.
    pub(crate) keys: Keys,
}

/// Users that may connect apart from our own. Shared by the starter, which adds them before their workers start, and the loop.
#[derive(Debug, Clone, Default)]
pub(crate) struct Admitted(Arc<Mutex<Vec<u32>>>);

impl Admitted {
    pub(crate) fn add(&self, uid: u32) {
        let mut all = lock(&self.0);
        if !all.contains(&uid) {
            all.push(uid);
        }
    }

    pub(crate) fn others(&self) -> Vec<u32> {
        let us = identity::effective_uid();
        lock(&self.0).iter().copied().filter(|uid| *uid != us).collect()
    }

    fn allows(&self, uid: u32) -> bool {
        uid == identity::effective_uid() || lock(&self.0).contains(&uid)
    }
}

/// Starts the server in a directory that only its user may enter. Who connects is looked at here and not by the listener, since
/// workers may run as other users.
pub(crate) fn listen(directory: &Path) -> io::Result<(Listener, String)> {
    let path = directory.join(NAME);
    let name = PipeName::new(&path).map_err(io::Error::from)?;
    let listener = ListenerOptions::new().access(Access::Anyone).listen(&name).map_err(io::Error::from)?;
    // Where the kernel cannot (before 6.16), or somebody has come already, they are looked for.
    drop(fd_free_stream::refuse_descriptors(listener.as_fd()));
    Ok((listener, path.into_os_string().into_string().map_err(|_| io::ErrorKind::InvalidFilename)?))
}

/// The keys of incarnations whose start the loop has not heard of: a worker can connect before it does.
#[derive(Debug, Clone, Default)]
pub(crate) struct Keys(Arc<Mutex<HashSet<String>>>);

impl Keys {
    /// The address of a new incarnation.
    pub(crate) fn issue(&self, path: &str) -> io::Result<Issued> {
        let key = u128::from_ne_bytes(random::bytes()?);
        let address = Address { path: path.to_owned(), key: format!("{key:032x}") };
        lock(&self.0).insert(address.key.clone());
        Ok(Issued { address, keys: Some(self.clone()) })
    }

    fn has(&self, key: &str) -> bool {
        lock(&self.0).contains(key)
    }

    fn remove(&self, key: &str) {
        lock(&self.0).remove(key);
    }
}

/// The address of an incarnation that is being started. Its key is void when this is dropped.
#[derive(Debug)]
pub(crate) struct Issued {
    pub(crate) address: Address,
    keys: Option<Keys>,
}

impl Issued {
    /// The incarnation has started: the loop is about to [expect](Control::expect) this key.
    pub(crate) fn into_key(mut self) -> String {
        self.keys = None;
        mem::take(&mut self.address.key)
    }
}

impl Drop for Issued {
    fn drop(&mut self) {
        if let Some(keys) = &self.keys {
            keys.remove(&self.address.key);
        }
    }
}

/// Somebody who has connected.
#[derive(Debug)]
struct Visitor {
    socket: FdFreeStream,
    uid: u32,
    said: Vec<u8>,
    /// The length of its first line, once that was taken out of `said`.
    hello_bytes: u64,
    /// What it has shown, where nobody of that key is there yet: the start of a worker may be told after its first line.
    key: Option<String>,
}

/// Somebody who is known now, and what it has said behind its key.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) place: Key,
    pub(crate) socket: FdFreeStream,
    pub(crate) said: Vec<u8>,
    /// How many bytes came before `said`.
    pub(crate) hello_bytes: u64,
}

/// What has come of a visitor.
#[derive(Debug)]
pub(crate) enum Visit {
    GoesOn,
    /// It has shown a key of somebody whose start has not been told yet. What it says next stays in its socket until then, its
    /// end too.
    Waits,
    /// Gone by itself, without a word.
    Over,
    Refused(HandshakeError),
    Known(Known),
}

/// The loop's side of the server.
#[derive(Debug)]
pub(crate) struct Control {
    server: Server,
    visitors: HashMap<u64, Visitor>,
    last_visitor: u64,
    /// Who is expected, by key.
    expected: HashMap<String, Expected>,
    refusals: Refusals,
}

/// An incarnation that has not connected yet, and the user it may run as apart from ours.
#[derive(Debug, Clone, Copy)]
struct Expected {
    place: Key,
    user: Option<u32>,
}

impl Expected {
    /// A user that was named for one worker gets in with that worker's key alone.
    fn may_be(self, uid: u32) -> bool {
        uid == identity::effective_uid() || self.user == Some(uid)
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.server.listener.as_fd()
    }
}

impl Control {
    pub(crate) fn new(server: Server) -> Self {
        let (visitors, expected) = (HashMap::new(), HashMap::new());
        Self { server, visitors, last_visitor: 0, expected, refusals: Refusals::default() }
    }

    /// Another server in place of one whose name is gone. Gives that back.
    pub(crate) fn move_to(&mut self, server: Server) -> Listener {
        mem::replace(&mut self.server, server).listener
    }

    /// Takes one in, if there is one. An error where there is no room for one: too many visitors, or too many who do not close, or
    /// no descriptors, which leaves them in the backlog. A visitor that was refused, or has gone, is passed over by the listener.
    pub(crate) fn accept(&mut self) -> Result<Option<u64>, ()> {
        if self.visitors.len() >= VISITORS || deferred_close::is_saturated() {
            return Err(());
        }
        for _ in 0..REFUSALS {
            let stream = match self.server.listener.accept_timeout(Duration::ZERO) {
                Ok(stream) => stream,
                Err(AcceptError::TimedOut) => return Ok(None),
                Err(_) => return Err(()),
            };
            let socket = stream.into_fd().and_then(FdFreeStream::new).map_err(drop)?;
            let Ok(Credentials { uid, .. }) = socket::peer_credentials(socket.as_fd()) else { continue };
            if self.server.admitted.allows(uid) {
                self.last_visitor += 1;
                self.visitors
                    .insert(self.last_visitor, Visitor { socket, uid, said: Vec::new(), hello_bytes: 0, key: None });
                return Ok(Some(self.last_visitor));
            }
        }
        // The others are reported again.
        Ok(None)
    }

    /// Who has not said yet who it is.
    pub(crate) fn visitors(&self) -> Vec<u64> {
        self.visitors.iter().filter(|(_, visitor)| visitor.key.is_none()).map(|(id, _)| *id).collect()
    }

    pub(crate) fn visitor(&self, visitor: u64) -> Option<BorrowedFd<'_>> {
        self.visitors.get(&visitor).map(|visitor| visitor.socket.as_fd())
    }

    /// A worker was started. It may have connected already.
    pub(crate) fn expect(&mut self, key: String, place: Key, user: Option<u32>) -> Option<Known> {
        self.server.keys.remove(&key);
        let expected = Expected { place, user };
        let is_it = |visitor: &Visitor| visitor.key.as_deref() == Some(&key) && expected.may_be(visitor.uid);
        let early = self.visitors.iter().find(|(_, visitor)| is_it(visitor)).map(|(id, _)| *id);
        let Some(Visitor { socket, said, hello_bytes, .. }) = early.and_then(|id| self.visitors.remove(&id)) else {
            self.expected.insert(key, expected);
            return None;
        };
        Some(Known { place, socket, said, hello_bytes })
    }

    /// Nobody of this place is expected any more.
    pub(crate) fn forget(&mut self, place: Key) {
        self.expected.retain(|_, expected| expected.place != place);
    }

    /// A visitor has had its time.
    pub(crate) fn put_out(&mut self, visitor: u64) -> Option<FdFreeStream> {
        self.visitors.remove(&visitor).map(|visitor| visitor.socket)
    }

    /// Rejects a connection: sends an error line, unless the peer does not read. Returns what is to be reported, within the rate limit.
    pub(crate) fn refuse(
        &mut self,
        visitor: u64,
        fault: HandshakeError,
        now: Instant,
        received: u64,
    ) -> Option<RejectedHandshake> {
        let visitor = self.visitors.get(&visitor)?;
        let error = RpcError::new(INVALID_REQUEST, fault.to_string());
        if let Ok(line) = encode::error_without_id(&error) {
            drop(socket::send(visitor.socket.as_fd(), &[io::IoSlice::new(&line)], &[]));
        }
        let unreported = self.refusals.next(now, received)?;
        let pid = socket::peer_credentials(visitor.socket.as_fd()).ok().and_then(|peer| u32::try_from(peer.pid).ok());
        let pid = pid.filter(|pid| *pid > 0);
        Some(RejectedHandshake { fault, pid, excerpt: hello::excerpt(&visitor.said), unreported })
    }

    /// The warning of a refusal is the event of this number.
    pub(crate) fn refusal_reported_as(&mut self, event: u64) {
        self.refusals.reported_as(event);
    }

    /// A visitor has said something, or has gone.
    pub(crate) fn hear(&mut self, id: u64) -> Visit {
        let Some(visitor) = self.visitors.get_mut(&id) else { return Visit::Over };
        if visitor.key.is_some() {
            // What it says next is for later, though it was reported in the same moment as its key.
            return Visit::GoesOn;
        }
        let mut part = [0; HELLO_BYTES];
        let room = HELLO_BYTES.saturating_sub(visitor.said.len());
        let Some(part) = part.get_mut(..room).filter(|part| !part.is_empty()) else {
            // As much without a line end, or more behind a key than any client says before it is known.
            return Visit::Refused(HandshakeError::LineTooLong);
        };
        match visitor.socket.receive(part) {
            Err(error) if is_transient(&error) => return Visit::GoesOn,
            Ok(bytes @ 1..) => visitor.said.extend_from_slice(part.get(..bytes).unwrap_or_default()),
            Ok(_) | Err(_) if visitor.said.is_empty() => return Visit::Over,
            Ok(_) | Err(_) => return Visit::Refused(HandshakeError::Closed),
        }
        let Some(end) = memchr::memchr(b'\n', &visitor.said) else { return Visit::GoesOn };
        let Some(key) = key(visitor.said.get(..end).unwrap_or_default()) else {
            return Visit::Refused(HandshakeError::NotHello);
        };
        let expected = self.expected.get(&key).copied();
        if expected.map_or_else(|| !self.server.keys.has(&key), |one| !one.may_be(visitor.uid)) {
            return Visit::Refused(HandshakeError::UnknownKey);
        }
        visitor.said.drain(..=end);
        visitor.hello_bytes = end as u64 + 1;
        let Some(Expected { place, .. }) = expected else {
            visitor.key = Some(key);
            return Visit::Waits;
        };
        self.expected.remove(&key);
        let Some(Visitor { socket, said, hello_bytes, .. }) = self.visitors.remove(&id) else { return Visit::Over };
        Visit::Known(Known { place, socket, said, hello_bytes })
    }
}

/// The key in a first line.
fn key(line: &[u8]) -> Option<String> {
    let line = line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line);
    match RpcMessage::parse(line)? {
        RpcMessage::Notification { method, params: Some(params) } if method == HELLO => {
            serde_json::from_str::<Hello>(params.get()).ok().map(|hello| hello.key)
        }
        RpcMessage::Notification { .. }
        | RpcMessage::Request { .. }
        | RpcMessage::Response { .. }
        | RpcMessage::UnidentifiedError(_) => None,
    }
}
