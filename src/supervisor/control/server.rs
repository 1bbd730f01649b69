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
        control::hello::{self, HandshakeError, RejectedHandshake, RejectionLimiter},
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
pub(crate) struct ControlListener {
    pub(crate) listener: Listener,
    pub(crate) admitted: AdmittedUsers,
    /// Of the incarnations that are being started.
    pub(crate) keys: PendingKeys,
}

/// Users that may connect apart from our own. Shared by the starter, which adds them before their workers start, and the loop.
#[derive(Debug, Clone, Default)]
pub(crate) struct AdmittedUsers(Arc<Mutex<Vec<u32>>>);

impl AdmittedUsers {
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
pub(crate) struct PendingKeys(Arc<Mutex<HashSet<String>>>);

impl PendingKeys {
    /// The address of a new incarnation.
    pub(crate) fn issue(&self, path: &str) -> io::Result<IssuedAddress> {
        let key = u128::from_ne_bytes(random::bytes()?);
        let address = Address { path: path.to_owned(), key: format!("{key:032x}") };
        lock(&self.0).insert(address.key.clone());
        Ok(IssuedAddress { address, keys: Some(self.clone()) })
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
pub(crate) struct IssuedAddress {
    pub(crate) address: Address,
    keys: Option<PendingKeys>,
}

impl IssuedAddress {
    /// The incarnation has started: the loop is about to [expect](ControlServer::expect_key) this key.
    pub(crate) fn into_key(mut self) -> String {
        self.keys = None;
        mem::take(&mut self.address.key)
    }
}

impl Drop for IssuedAddress {
    fn drop(&mut self) {
        if let Some(keys) = &self.keys {
            keys.remove(&self.address.key);
        }
    }
}

/// Somebody who has connected.
#[derive(Debug)]
struct ControlHandshake {
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
pub(crate) struct AuthenticatedClient {
    pub(crate) place: Key,
    pub(crate) socket: FdFreeStream,
    pub(crate) said: Vec<u8>,
    /// How many bytes came before `said`.
    pub(crate) hello_bytes: u64,
}

/// What has come of a visitor.
#[derive(Debug)]
pub(crate) enum HandshakeResult {
    /// The first line is not complete.
    Incomplete,
    /// The key belongs to an incarnation whose start the loop has not heard of. The connection is not read until then, and its end is not
    /// noticed either.
    Early,
    /// The peer has closed the connection without sending anything.
    Closed,
    Rejected(HandshakeError),
    Authenticated(AuthenticatedClient),
}

/// The loop's side of the server.
#[derive(Debug)]
pub(crate) struct ControlServer {
    server: ControlListener,
    handshakes: HashMap<u64, ControlHandshake>,
    last_visitor: u64,
    /// Who is expected, by key.
    expected: HashMap<String, ExpectedWorker>,
    rejections: RejectionLimiter,
}

/// An incarnation that has not connected yet, and the user it may run as apart from ours.
#[derive(Debug, Clone, Copy)]
struct ExpectedWorker {
    place: Key,
    user: Option<u32>,
}

impl ExpectedWorker {
    /// A user that was named for one worker gets in with that worker's key alone.
    fn may_be(self, uid: u32) -> bool {
        uid == identity::effective_uid() || self.user == Some(uid)
    }
}

impl AsFd for ControlServer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.server.listener.as_fd()
    }
}

impl ControlServer {
    pub(crate) fn new(server: ControlListener) -> Self {
        let (handshakes, expected) = (HashMap::new(), HashMap::new());
        Self { server, handshakes, last_visitor: 0, expected, rejections: RejectionLimiter::default() }
    }

    /// Another server in place of one whose name is gone. Gives that back.
    pub(crate) fn replace_listener(&mut self, server: ControlListener) -> Listener {
        mem::replace(&mut self.server, server).listener
    }

    /// Takes one in, if there is one. An error where there is no room for one: too many visitors, or too many who do not close, or
    /// no descriptors, which leaves them in the backlog. A visitor that was refused, or has gone, is passed over by the listener.
    pub(crate) fn accept(&mut self) -> Result<Option<u64>, ()> {
        if self.handshakes.len() >= VISITORS || deferred_close::is_saturated() {
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
                self.handshakes.insert(
                    self.last_visitor,
                    ControlHandshake { socket, uid, said: Vec::new(), hello_bytes: 0, key: None },
                );
                return Ok(Some(self.last_visitor));
            }
        }
        // The others are reported again.
        Ok(None)
    }

    /// Who has not said yet who it is.
    pub(crate) fn unauthenticated(&self) -> Vec<u64> {
        self.handshakes.iter().filter(|(_, visitor)| visitor.key.is_none()).map(|(id, _)| *id).collect()
    }

    pub(crate) fn handshake_fd(&self, visitor: u64) -> Option<BorrowedFd<'_>> {
        self.handshakes.get(&visitor).map(|visitor| visitor.socket.as_fd())
    }

    /// A worker was started. It may have connected already.
    pub(crate) fn expect_key(&mut self, key: String, place: Key, user: Option<u32>) -> Option<AuthenticatedClient> {
        self.server.keys.remove(&key);
        let expected = ExpectedWorker { place, user };
        let is_it = |visitor: &ControlHandshake| visitor.key.as_deref() == Some(&key) && expected.may_be(visitor.uid);
        let early = self.handshakes.iter().find(|(_, visitor)| is_it(visitor)).map(|(id, _)| *id);
        let Some(ControlHandshake { socket, said, hello_bytes, .. }) = early.and_then(|id| self.handshakes.remove(&id))
        else {
            self.expected.insert(key, expected);
            return None;
        };
        Some(AuthenticatedClient { place, socket, said, hello_bytes })
    }

    /// Nobody of this place is expected any more.
    pub(crate) fn forget(&mut self, place: Key) {
        self.expected.retain(|_, expected| expected.place != place);
    }

    /// A visitor has had its time.
    pub(crate) fn remove(&mut self, visitor: u64) -> Option<FdFreeStream> {
        self.handshakes.remove(&visitor).map(|visitor| visitor.socket)
    }

    /// Rejects a connection: sends an error line, unless the peer does not read. Returns what is to be reported, within the rate limit.
    pub(crate) fn reject(
        &mut self,
        visitor: u64,
        fault: HandshakeError,
        now: Instant,
        received: u64,
    ) -> Option<RejectedHandshake> {
        let visitor = self.handshakes.get(&visitor)?;
        let error = RpcError::new(INVALID_REQUEST, fault.to_string());
        if let Ok(line) = encode::error_without_id(&error) {
            drop(socket::send(visitor.socket.as_fd(), &[io::IoSlice::new(&line)], &[]));
        }
        let unreported = self.rejections.next(now, received)?;
        let pid = socket::peer_credentials(visitor.socket.as_fd()).ok().and_then(|peer| u32::try_from(peer.pid).ok());
        let pid = pid.filter(|pid| *pid > 0);
        Some(RejectedHandshake { fault, pid, excerpt: hello::excerpt(&visitor.said), unreported })
    }

    /// The warning of a refusal is the event of this number.
    pub(crate) fn rejection_reported_as(&mut self, event: u64) {
        self.rejections.reported_as(event);
    }

    /// A visitor has said something, or has gone.
    pub(crate) fn read_hello(&mut self, id: u64) -> HandshakeResult {
        let Some(visitor) = self.handshakes.get_mut(&id) else { return HandshakeResult::Closed };
        if visitor.key.is_some() {
            // What it says next is for later, though it was reported in the same moment as its key.
            return HandshakeResult::Incomplete;
        }
        let mut part = [0; HELLO_BYTES];
        let room = HELLO_BYTES.saturating_sub(visitor.said.len());
        let Some(part) = part.get_mut(..room).filter(|part| !part.is_empty()) else {
            // As much without a line end, or more behind a key than any client says before it is known.
            return HandshakeResult::Rejected(HandshakeError::LineTooLong);
        };
        match visitor.socket.receive(part) {
            Err(error) if is_transient(&error) => return HandshakeResult::Incomplete,
            Ok(bytes @ 1..) => visitor.said.extend_from_slice(part.get(..bytes).unwrap_or_default()),
            Ok(_) | Err(_) if visitor.said.is_empty() => return HandshakeResult::Closed,
            Ok(_) | Err(_) => return HandshakeResult::Rejected(HandshakeError::Closed),
        }
        let Some(end) = memchr::memchr(b'\n', &visitor.said) else { return HandshakeResult::Incomplete };
        let Some(key) = key(visitor.said.get(..end).unwrap_or_default()) else {
            return HandshakeResult::Rejected(HandshakeError::NotHello);
        };
        let expected = self.expected.get(&key).copied();
        if expected.map_or_else(|| !self.server.keys.has(&key), |one| !one.may_be(visitor.uid)) {
            return HandshakeResult::Rejected(HandshakeError::UnknownKey);
        }
        visitor.said.drain(..=end);
        visitor.hello_bytes = end as u64 + 1;
        let Some(ExpectedWorker { place, .. }) = expected else {
            visitor.key = Some(key);
            return HandshakeResult::Early;
        };
        self.expected.remove(&key);
        let Some(ControlHandshake { socket, said, hello_bytes, .. }) = self.handshakes.remove(&id) else {
            return HandshakeResult::Closed;
        };
        HandshakeResult::Authenticated(AuthenticatedClient { place, socket, said, hello_bytes })
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
