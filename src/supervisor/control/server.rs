//! The named-pipe server to which all workers connect, and the connections that have not authenticated yet.
//!
//! An address is the path of the server and a key of one incarnation. A client sends its key first. A client that sends no key in time, a
//! wrong key or anything else is rejected, so that other processes of the user cannot interfere.

use crate::{
    ids::WorkerId,
    launch::child::ChildProcess,
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
        identity, is_shortage, is_transient, random,
        socket::{self, Credentials},
    },
    wire::jsonrpc::{
        address::Address,
        hello::{FirstLine, refused},
        message::RequestId,
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

/// The time for a client to send its key.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest first line of a client, in bytes.
const HELLO_BYTES: usize = 4096;
/// The name of the server's socket in its directory.
const NAME: &str = "control";
/// The most connections of other users that are closed in one turn of the loop.
const REJECTIONS_MAX: usize = 64;
/// The most unauthenticated connections; further ones wait in the backlog.
const HANDSHAKES_MAX: usize = 256;

/// The listener, the users that may connect apart from the host's own, and the keys that are valid.
#[derive(Debug)]
pub(crate) struct ControlListener {
    pub(crate) listener: Listener,
    pub(crate) admitted: AdmittedUsers,
    /// The keys of incarnations that are being started.
    pub(crate) keys: PendingKeys,
}

/// Users that may connect apart from the host's own. Shared by the loop and the spawner, which adds a user before its worker starts.
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

/// Starts the server in a directory that only its user may enter. The users of clients are checked here and not by the listener, since
/// workers may run as other users.
pub(crate) fn listen(directory: &Path) -> io::Result<(Listener, String)> {
    let path = directory.join(NAME);
    let name = PipeName::new(&path).map_err(io::Error::from)?;
    let listener = ListenerOptions::new().access(Access::Anyone).listen(&name).map_err(io::Error::from)?;
    // Where the kernel does not support that (before 6.16), or a client has connected already, received file descriptors are detected
    // later.
    drop(fd_free_stream::refuse_descriptors(listener.as_fd()));
    Ok((listener, path.into_os_string().into_string().map_err(|_| io::ErrorKind::InvalidFilename)?))
}

/// The keys of incarnations whose start the loop has not received: a worker may connect before.
#[derive(Debug, Clone, Default)]
pub(crate) struct PendingKeys(Arc<Mutex<HashSet<String>>>);

impl PendingKeys {
    /// Issues the address of a new incarnation.
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

/// The address of an incarnation that is being started. Dropping it revokes the key.
#[derive(Debug)]
pub(crate) struct IssuedAddress {
    pub(crate) address: Address,
    keys: Option<PendingKeys>,
}

impl IssuedAddress {
    /// The incarnation has started: returns the key, which the loop [expects](ControlServer::expect_key) next.
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

/// A connection that has not authenticated.
#[derive(Debug)]
struct ControlHandshake {
    socket: FdFreeStream,
    uid: u32,
    received: Vec<u8>,
    /// The length of the first line, once that was removed from `received`.
    hello_bytes: u64,
    /// A key that was issued and whose incarnation the loop has not received.
    key: Option<String>,
    /// The id of the first line, if that is a request.
    id: Option<RequestId>,
}

/// Who may connect with a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyOwner {
    Incarnation(Key),
    /// A process that is started elsewhere, and with which the first incarnation of this worker begins.
    Attached(WorkerId),
}

/// An authenticated connection, and the bytes received after its key.
#[derive(Debug)]
pub(crate) struct AuthenticatedClient {
    pub(crate) owner: KeyOwner,
    /// The process of an attached worker.
    pub(crate) process: Option<ChildProcess>,
    pub(crate) socket: FdFreeStream,
    pub(crate) received: Vec<u8>,
    /// The number of bytes received before `received`.
    pub(crate) hello_bytes: u64,
    /// The id of the first line, if that is a request: it has to be answered.
    pub(crate) id: Option<RequestId>,
}

impl ControlHandshake {
    fn authenticated(self, owner: KeyOwner, process: Option<ChildProcess>) -> AuthenticatedClient {
        let Self { socket, uid: _, received, hello_bytes, key: _, id } = self;
        AuthenticatedClient { owner, process, socket, received, hello_bytes, id }
    }

    /// The process that has connected, where its worker does not know it.
    fn process(&self, owner: KeyOwner) -> io::Result<Option<ChildProcess>> {
        match owner {
            KeyOwner::Incarnation(_) => Ok(None),
            KeyOwner::Attached(_) => ChildProcess::of_peer(self.socket.as_fd()).map(Some),
        }
    }
}

/// The state of a handshake.
#[derive(Debug)]
pub(crate) enum HandshakeResult {
    /// The first line is not complete.
    Incomplete,
    /// The key belongs to an incarnation whose start the loop has not heard of. The connection is not read until then, and its end is not
    /// noticed either.
    Early,
    /// The process of the peer cannot be determined for lack of a resource. [`read_hello`](ControlServer::read_hello) is to be repeated.
    Shortage,
    /// The peer has closed the connection without sending anything.
    Closed,
    Rejected(HandshakeError),
    Authenticated(AuthenticatedClient),
}

/// The server in the event loop.
#[derive(Debug)]
pub(crate) struct ControlServer {
    server: ControlListener,
    handshakes: HashMap<u64, ControlHandshake>,
    last_visitor: u64,
    /// The incarnations that may connect, by key.
    expected: HashMap<String, ExpectedWorker>,
    rejections: RejectionLimiter,
}

/// An incarnation that has not connected, and the user as which it may run apart from the host's own.
#[derive(Debug, Clone, Copy)]
struct ExpectedWorker {
    owner: KeyOwner,
    user: Option<u32>,
}

impl ExpectedWorker {
    /// A user that was set for one worker may connect with the key of that worker only.
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

    /// Replaces a listener whose socket file was removed, and returns the old one.
    pub(crate) fn replace_listener(&mut self, server: ControlListener) -> Listener {
        mem::replace(&mut self.server, server).listener
    }

    /// Accepts one connection; `None` without one. An error if there are too many unauthenticated or closing connections, or no file
    /// descriptors: the connections then wait in the backlog. Rejected and closed connections are skipped.
    pub(crate) fn accept(&mut self) -> Result<Option<u64>, ()> {
        if self.handshakes.len() >= HANDSHAKES_MAX || deferred_close::is_saturated() {
            return Err(());
        }
        for _ in 0..REJECTIONS_MAX {
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
                    ControlHandshake { socket, uid, received: Vec::new(), hello_bytes: 0, key: None, id: None },
                );
                return Ok(Some(self.last_visitor));
            }
        }
        // The kernel reports the rest again.
        Ok(None)
    }

    /// Returns the connections that have not sent a key.
    pub(crate) fn unauthenticated(&self) -> Vec<u64> {
        self.handshakes.iter().filter(|(_, handshake)| handshake.key.is_none()).map(|(id, _)| *id).collect()
    }

    pub(crate) fn handshake_fd(&self, handshake: u64) -> Option<BorrowedFd<'_>> {
        self.handshakes.get(&handshake).map(|handshake| handshake.socket.as_fd())
    }

    /// Accepts `key` from now on. Returns the connection if the worker has connected already.
    pub(crate) fn expect_key(
        &mut self,
        key: String,
        owner: KeyOwner,
        user: Option<u32>,
    ) -> Option<AuthenticatedClient> {
        self.server.keys.remove(&key);
        let expected = ExpectedWorker { owner, user };
        let matches =
            |handshake: &ControlHandshake| handshake.key.as_deref() == Some(&key) && expected.may_be(handshake.uid);
        let early = self.handshakes.iter().find(|(_, handshake)| matches(handshake)).map(|(id, _)| *id);
        let handshake = early.and_then(|id| self.handshakes.remove(&id));
        let early = handshake.and_then(|handshake| {
            let process = handshake.process(owner).ok()?;
            Some(handshake.authenticated(owner, process))
        });
        if early.is_none() {
            self.expected.insert(key, expected);
        }
        early
    }

    /// Revokes the key of this owner.
    pub(crate) fn forget(&mut self, owner: KeyOwner) {
        self.expected.retain(|_, expected| expected.owner != owner);
    }

    /// Removes an unauthenticated connection.
    pub(crate) fn remove(&mut self, handshake: u64) -> Option<FdFreeStream> {
        self.handshakes.remove(&handshake).map(|handshake| handshake.socket)
    }

    /// Rejects a connection: sends an error line, unless the peer does not read. Returns what is to be reported, within the rate limit.
    pub(crate) fn reject(
        &mut self,
        handshake: u64,
        fault: HandshakeError,
        now: Instant,
        received: u64,
    ) -> Option<RejectedHandshake> {
        let handshake = self.handshakes.get(&handshake)?;
        if let Some(line) = refused(handshake.id.as_ref(), &fault.rpc_error()) {
            drop(socket::send(handshake.socket.as_fd(), &[io::IoSlice::new(&line)], &[]));
        }
        let unreported = self.rejections.next(now, received)?;
        let pid = socket::peer_credentials(handshake.socket.as_fd()).ok().and_then(|peer| u32::try_from(peer.pid).ok());
        let pid = pid.filter(|pid| *pid > 0);
        Some(RejectedHandshake { fault, pid, excerpt: hello::excerpt(&handshake.received), unreported })
    }

    /// Records the number of the event that reports a rejection.
    pub(crate) fn rejection_reported_as(&mut self, event: u64) {
        self.rejections.reported_as(event);
    }

    /// Reads from an unauthenticated connection.
    pub(crate) fn read_hello(&mut self, id: u64) -> HandshakeResult {
        let Some(handshake) = self.handshakes.get_mut(&id) else { return HandshakeResult::Closed };
        if handshake.key.is_some() {
            // Data after the key is read later, though it was reported at the same time.
            return HandshakeResult::Incomplete;
        }
        if memchr::memchr(b'\n', &handshake.received).is_some() {
            return self.check_hello(id);
        }
        let mut part = [0; HELLO_BYTES];
        let room = HELLO_BYTES.saturating_sub(handshake.received.len());
        let Some(part) = part.get_mut(..room).filter(|part| !part.is_empty()) else {
            // The line is too long, or a client has sent more after its key than any does before it is authenticated.
            return HandshakeResult::Rejected(HandshakeError::LineTooLong);
        };
        match handshake.socket.receive(part) {
            Err(error) if is_transient(&error) => return HandshakeResult::Incomplete,
            Ok(bytes @ 1..) => handshake.received.extend_from_slice(part.get(..bytes).unwrap_or_default()),
            Ok(_) | Err(_) if handshake.received.is_empty() => return HandshakeResult::Closed,
            Ok(_) | Err(_) => return HandshakeResult::Rejected(HandshakeError::Closed),
        }
        if !FirstLine::may_begin_with(&handshake.received) {
            return HandshakeResult::Rejected(HandshakeError::NotHello);
        }
        self.check_hello(id)
    }

    /// Examines what an unauthenticated connection has sent.
    fn check_hello(&mut self, id: u64) -> HandshakeResult {
        let Some(handshake) = self.handshakes.get_mut(&id) else { return HandshakeResult::Closed };
        let Some(end) = memchr::memchr(b'\n', &handshake.received) else { return HandshakeResult::Incomplete };
        let FirstLine { id: request_id, hello } = FirstLine::parse(handshake.received.get(..end).unwrap_or_default());
        handshake.id = request_id;
        let Some(hello) = hello else { return HandshakeResult::Rejected(HandshakeError::NotHello) };
        let expected = self.expected.get(&hello.key).copied();
        if expected.map_or_else(|| !self.server.keys.has(&hello.key), |one| !one.may_be(handshake.uid)) {
            return HandshakeResult::Rejected(HandshakeError::UnknownKey);
        }
        if !hello.is_supported() {
            return HandshakeResult::Rejected(HandshakeError::UnsupportedVersion { version: hello.version });
        }
        let process = match expected.map_or(Ok(None), |one| handshake.process(one.owner)) {
            Ok(process) => process,
            Err(error) if is_shortage(&error) => return HandshakeResult::Shortage,
            Err(_) => return HandshakeResult::Rejected(HandshakeError::UnknownProcess),
        };
        handshake.received.drain(..=end);
        handshake.hello_bytes = end as u64 + 1;
        let Some(ExpectedWorker { owner, .. }) = expected else {
            handshake.key = Some(hello.key);
            return HandshakeResult::Early;
        };
        self.expected.remove(&hello.key);
        let Some(handshake) = self.handshakes.remove(&id) else { return HandshakeResult::Closed };
        HandshakeResult::Authenticated(handshake.authenticated(owner, process))
    }
}
