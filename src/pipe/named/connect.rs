//! The client's side of a name.
#![expect(single_use_lifetimes, reason = "`impl Into<Timeout<'_>>` is not stable Rust yet")]

use std::{
    fs,
    io::{self, IoSlice},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    bind::connect_path,
    handshake::{self, ClientHello, HandshakeAnswer, InvalidHandshake, ServerReply},
    message::DEFAULT_MAX_MESSAGE_SIZE,
    name::{NameError, NameKind, PipeName},
    peer::{Access, ImpersonationLevel},
    stream::{Stream, Terms},
};
use crate::pipe::{
    mode::{Direction, PipeMode},
    timeout::{Cancelled, StartedTimeout, Timeout, WakeReason},
};
use crate::{
    sys::{
        identity,
        inotify::Appearances,
        poll::Interest,
        socket::{self, SocketAddress, SocketType},
    },
    text::printable_path,
};

/// Longest wait for space in a full backlog before the client checks whether the call was cancelled.
const BACKLOG_WAIT: Duration = Duration::from_millis(20);

/// First and longest pause between two attempts without notification, as for abstract names, or when the user has too many
/// inotify instances.
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(1);
const RETRY_PAUSE_MAX: Duration = Duration::from_millis(50);

/// Longest pause between two attempts with inotify. It reports no changes made by other machines on a network file system, and
/// not when a bound server starts to listen.
const WATCH_PAUSE_MAX: Duration = Duration::from_secs(2);

/// Connects with the default [`ConnectOptions`]. Waits for the server to appear.
///
/// # Errors
///
/// [`ConnectError`].
pub fn connect<'a>(name: &PipeName, timeout: impl Into<Timeout<'a>>) -> Result<Stream, ConnectError> {
    ConnectOptions::new().connect(name, timeout)
}

/// Options of a client. By default it uses byte mode in both directions, trusts servers of the current user, waits for the server
/// to appear, and performs no handshake.
#[doc(alias = "NamedPipeClientStream")]
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    mode: PipeMode,
    direction: Direction,
    allowed_server: Access,
    trusts_directory: bool,
    missing_server: MissingServer,
    handshake: Option<ImpersonationLevel>,
    send_buffer_size: Option<usize>,
    max_message_size: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MissingServer {
    Wait,
    Fail,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            mode: PipeMode::Byte,
            direction: Direction::InOut,
            allowed_server: Access::CurrentUser,
            trusts_directory: false,
            missing_server: MissingServer::Wait,
            handshake: None,
            send_buffer_size: None,
            max_message_size: DEFAULT_MAX_MESSAGE_SIZE,
        }
    }
}

impl ConnectOptions {
    /// Returns the default options.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the mode, which must be the mode of the server.
    #[must_use]
    pub const fn mode(mut self, mode: PipeMode) -> Self {
        self.mode = mode;
        self
    }

    /// Sets the direction of the end of the client.
    #[must_use]
    pub const fn direction(mut self, direction: Direction) -> Self {
        self.direction = direction;
        self
    }

    /// Sets which users the server may run as. Another user may bind a name outside the private directory first, so widen this
    /// only for a server that is known to run as another user.
    #[must_use]
    pub const fn allowed_server(mut self, access: Access) -> Self {
        self.allowed_server = access;
        self
    }

    /// Also trusts a server that runs as the owner of the directory of the name, if no other user can write to that directory.
    pub(crate) const fn trust_directory(mut self) -> Self {
        self.trusts_directory = true;
        self
    }

    /// Fails at once if no server listens, instead of waiting for one. A busy server is still waited for.
    #[must_use]
    pub const fn no_wait(mut self) -> Self {
        self.missing_server = MissingServer::Fail;
        self
    }

    /// Performs the handshake, for a server with [`ListenerOptions::handshake`](super::ListenerOptions::handshake). `level` is
    /// what the server may do with the identity of the client. `connect` returns after the server has accepted the client.
    #[must_use]
    pub const fn handshake(mut self, level: ImpersonationLevel) -> Self {
        self.handshake = Some(level);
        self
    }

    /// Sets the size passed to [`Stream::set_send_buffer_size`].
    #[must_use]
    pub const fn send_buffer_size(mut self, bytes: usize) -> Self {
        self.send_buffer_size = Some(bytes);
        self
    }

    /// Sets the longest message of [`PipeMode::Framed`] in bytes, sent or received. Default: 16 MiB.
    #[must_use]
    pub const fn max_message_size(mut self, bytes: usize) -> Self {
        self.max_message_size = bytes;
        self
    }

    /// Connects to `name`. The timeout bounds the whole call.
    ///
    /// Without a handshake, the stream is connected as soon as it is in the backlog of the server. Data written before the
    /// server accepts it is kept.
    ///
    /// # Errors
    ///
    /// [`ConnectError`].
    #[doc(alias = "Connect")]
    pub fn connect<'a>(&self, name: &PipeName, timeout: impl Into<Timeout<'a>>) -> Result<Stream, ConnectError> {
        let timeout = StartedTimeout::now(timeout.into());
        name.prepare_directory().map_err(ConnectError::Name)?;
        let mut watch = ServerWatch::new(name);
        loop {
            if timeout.is_cancelled()? {
                return Err(ConnectError::Cancelled);
            }
            match self.attempt(name, &timeout)? {
                ConnectAttempt::Connected(stream) => return Ok(stream),
                ConnectAttempt::NotFound(_) if self.missing_server == MissingServer::Fail => {
                    return Err(ConnectError::NoServer { path: name.text() });
                }
                // The watch must start before the last attempt, or a server that appears in between is missed.
                ConnectAttempt::NotFound(_) if watch.begin()? => {}
                ConnectAttempt::NotFound(reason) if !timeout.has_passed() => watch.wait(reason, &timeout)?,
                ConnectAttempt::NotFound(_) => return Err(ConnectError::NoServer { path: name.text() }),
                ConnectAttempt::Busy if timeout.has_passed() => return Err(ConnectError::Busy { path: name.text() }),
                ConnectAttempt::Busy => {}
            }
        }
    }

    fn attempt(&self, name: &PipeName, timeout: &StartedTimeout<'_>) -> Result<ConnectAttempt, ConnectError> {
        let kind = self.mode.socket_type();
        let socket = socket::new(kind)?;
        if kind == SocketType::Messages {
            socket::receive_credentials(socket.as_fd())?;
        }
        if let Some(bytes) = self.send_buffer_size {
            socket::set_send_buffer(socket.as_fd(), bytes)?;
        }
        socket::set_send_timeout(socket.as_fd(), BACKLOG_WAIT)?;
        let connected = match name.kind() {
            NameKind::InPrivateDirectory(path) | NameKind::Path(path) => connect_path(&socket, path),
            NameKind::Abstract(text) => socket::connect(socket.as_fd(), &SocketAddress::abstract_name(text)?),
        };
        if let Err(error) = connected {
            return self.not_connected(name, error);
        }
        socket::set_send_timeout(socket.as_fd(), Duration::ZERO)?;
        if !self.allowed_server.allows(socket.as_fd(), identity::effective_uid())? {
            let uid = socket::peer_credentials(socket.as_fd())?.uid;
            if !self.trusts_directory || !is_writable_only_by(name, uid) {
                return Err(ConnectError::WrongServer { path: name.text(), uid });
            }
        }
        if let Some(level) = self.handshake
            && let Some(instead) = self.handshake_with(&socket, level, name, timeout)?
        {
            return Ok(instead);
        }
        let terms =
            Terms { mode: self.mode, direction: self.direction, level: None, max_message_size: self.max_message_size };
        let stream = Stream::new(socket, terms, None);
        stream.close_unused_direction();
        Ok(ConnectAttempt::Connected(stream))
    }

    fn not_connected(&self, name: &PipeName, error: io::Error) -> Result<ConnectAttempt, ConnectError> {
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => Ok(ConnectAttempt::NotFound(NotFound::NoName)),
            Some(libc::ECONNREFUSED) => match name.path().map(fs::symlink_metadata) {
                Some(Ok(found)) if !found.file_type().is_socket() && !found.is_symlink() => {
                    Err(ConnectError::NotASocket { path: name.text() })
                }
                _ => Ok(ConnectAttempt::NotFound(NotFound::Refused)),
            },
            Some(libc::EAGAIN) => Ok(ConnectAttempt::Busy),
            Some(libc::EACCES | libc::EPERM) => Err(ConnectError::Denied { path: name.text() }),
            Some(libc::EPROTOTYPE) => Err(ConnectError::WrongMode { client: self.mode, server: None }),
            _ => Err(ConnectError::Os(error)),
        }
    }

    /// Returns `None` if the server has accepted the client.
    fn handshake_with(
        &self,
        socket: &OwnedFd,
        level: ImpersonationLevel,
        name: &PipeName,
        timeout: &StartedTimeout<'_>,
    ) -> Result<Option<ConnectAttempt>, ConnectError> {
        let hello = ClientHello { mode: self.mode, direction: self.direction, level };
        match socket::send(socket.as_fd(), &[IoSlice::new(&hello.to_bytes())], &[]) {
            // 16 bytes always fit into a new socket.
            Ok(_) => {}
            // The server may have replied before it closed the connection.
            Err(error) if is_peer_gone(&error) => {}
            Err(error) => return Err(error.into()),
        }
        let (mut reply, mut at) = ([0_u8; handshake::BYTES], 0);
        while at < reply.len() {
            match socket::receive(socket.as_fd(), &mut reply[at..]) {
                // The server ended, or rejected the client without a reply. Treated as no server; the next attempt will tell.
                Ok(0) => return Ok(Some(ConnectAttempt::NotFound(NotFound::Refused))),
                Ok(count) => at += count,
                // In message mode the kernel reports a reset once, before a reply that is still queued.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    match timeout.wait(&[(socket.as_fd(), Interest::Readable)])? {
                        WakeReason::Ready(_) => {}
                        WakeReason::TimedOut => return Err(ConnectError::Busy { path: name.text() }),
                        WakeReason::Cancelled => return Err(ConnectError::Cancelled),
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.check_reply(ServerReply::parse(reply), name).map(|()| None)
    }

    fn check_reply(&self, reply: Result<ServerReply, InvalidHandshake>, name: &PipeName) -> Result<(), ConnectError> {
        let reply = match reply {
            Err(InvalidHandshake::Unrecognized) => return Err(ConnectError::NoHandshake { path: name.text() }),
            Err(InvalidHandshake::Version(server)) => {
                return Err(ConnectError::WrongVersion { client: handshake::VERSION, server });
            }
            Ok(reply) => reply,
        };
        match reply.answer {
            HandshakeAnswer::Accepted => Ok(()),
            HandshakeAnswer::WrongVersion => {
                Err(ConnectError::WrongVersion { client: handshake::VERSION, server: handshake::VERSION })
            }
            HandshakeAnswer::WrongMode => Err(ConnectError::WrongMode { client: self.mode, server: Some(reply.mode) }),
            HandshakeAnswer::WrongDirection => {
                Err(ConnectError::WrongDirection { client: self.direction, server: reply.direction })
            }
            HandshakeAnswer::NotAllowed => Err(ConnectError::Denied { path: name.text() }),
        }
    }
}

fn is_peer_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

enum ConnectAttempt {
    Connected(Stream),
    NotFound(NotFound),
    /// The backlog is full.
    Busy,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum NotFound {
    /// The path does not exist. inotify reports when it is created.
    NoName,
    /// The socket has no listener. Either its server has exited, and inotify reports the file of the next one; or the server will
    /// listen in a moment, which is not reported.
    Refused,
}

/// Waits for a server to appear, between connection attempts.
struct ServerWatch<'a> {
    name: &'a PipeName,
    watch: Option<(PathBuf, Appearances)>,
    pause: Duration,
    /// The socket file without a listener at the last attempt.
    file: Option<FileId>,
}

/// Identifies a file, also if a later file of that name reuses its inode: device, inode and change time.
type FileId = (u64, u64, i64, i64);

impl<'a> ServerWatch<'a> {
    const fn new(name: &'a PipeName) -> Self {
        Self { name, watch: None, pause: RETRY_PAUSE_MIN, file: None }
    }

    /// Starts the watch. Returns true if another attempt must be made before waiting.
    fn begin(&mut self) -> Result<bool, ConnectError> {
        if self.watch.is_some() {
            return Ok(false);
        }
        let Some(directory) = self.name.path().and_then(existing_ancestor) else { return Ok(false) };
        match Appearances::in_directory(directory) {
            Ok(watch) => self.watch = Some((directory.to_owned(), watch)),
            Err(error) => match error.raw_os_error() {
                // Too many watches of this user, or an unreadable or removed directory: falls back to pauses.
                Some(libc::EMFILE | libc::ENOSPC | libc::EACCES | libc::ENOENT | libc::ENOTDIR) => {}
                _ => return Err(error.into()),
            },
        }
        Ok(self.watch.is_some())
    }

    fn wait(&mut self, reason: NotFound, timeout: &StartedTimeout<'_>) -> Result<(), ConnectError> {
        let longest = match (reason, self.watch.is_some()) {
            (NotFound::NoName, true) => WATCH_PAUSE_MAX,
            (NotFound::Refused, true) => self.pause_for_file(WATCH_PAUSE_MAX),
            (_, false) => self.pause_for_file(RETRY_PAUSE_MAX),
        };
        let watched = self.watch.as_ref().map(|(_, watch)| (watch.as_fd(), Interest::Readable));
        if timeout.wait_at_most(watched.as_slice(), longest)? == WakeReason::Cancelled {
            return Err(ConnectError::Cancelled);
        }
        if let Some((directory, watch)) = &self.watch {
            watch.forget()?;
            // A directory of the path was created or removed, so another one must be watched.
            if self.name.path().and_then(existing_ancestor) != Some(directory.as_path()) {
                self.watch = None;
            }
        }
        Ok(())
    }

    /// Doubles the pause while the file stays the same. A new file resets it: its server is about to listen.
    fn pause_for_file(&mut self, longest: Duration) -> Duration {
        let found = self.name.path().and_then(|path| fs::symlink_metadata(path).ok());
        let mark = found.map(|found| (found.dev(), found.ino(), found.ctime(), found.ctime_nsec()));
        if mark != self.file {
            (self.file, self.pause) = (mark, RETRY_PAUSE_MIN);
        }
        let pause = self.pause;
        self.pause = (pause * 2).min(longest);
        pause
    }
}

fn is_writable_only_by(name: &PipeName, uid: u32) -> bool {
    let directory = name.path().and_then(Path::parent).and_then(|directory| fs::metadata(directory).ok());
    directory.is_some_and(|found| found.uid() == uid && found.mode() & 0o022 == 0)
}

/// The closest existing ancestor of the path, in which its missing part will be created.
fn existing_ancestor(path: &Path) -> Option<&Path> {
    path.ancestors().skip(1).find(|directory| directory.is_dir())
}

/// Error of connecting.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The private directory cannot be used.
    #[error("cannot use the private directory: {0}")]
    Name(#[source] NameError),
    /// No server listened before the timeout expired, or at all with [`ConnectOptions::no_wait`].
    #[error("no server listens on {}", printable_path(path))]
    NoServer {
        /// Path of the name.
        path: Box<Path>,
    },
    /// The server did not accept the client before the timeout expired: its backlog is full, all its instances are in use, or the
    /// client performs a handshake and the server does not.
    #[error("server on {} is busy", printable_path(path))]
    Busy {
        /// Path of the name.
        path: Box<Path>,
    },
    /// The call was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// The path is no socket.
    #[error("{} is not a socket", printable_path(path))]
    NotASocket {
        /// Path of the name.
        path: Box<Path>,
    },
    /// The mode of the file or the server denies access.
    #[error("access denied by the server on {}", printable_path(path))]
    Denied {
        /// Path of the name.
        path: Box<Path>,
    },
    /// The server runs as a user that [`ConnectOptions::allowed_server`] does not include.
    #[error("server on {} runs as untrusted user {uid}", printable_path(path))]
    WrongServer {
        /// Path of the name.
        path: Box<Path>,
        /// User id of the server.
        uid: u32,
    },
    /// The server uses another mode, which only a handshake reveals.
    #[error("client uses {client} mode, server uses {}", server.map_or_else(|| "another mode".into(), |mode| format!("{mode} mode")))]
    WrongMode {
        /// Of this client.
        client: PipeMode,
        /// Of the server.
        server: Option<PipeMode>,
    },
    /// The server does not support the direction of the client.
    #[error("client end is for {client}, server end is for {server}")]
    WrongDirection {
        /// Of this client.
        client: Direction,
        /// Of the server.
        server: Direction,
    },
    /// The server uses another version of the handshake.
    #[error("client uses handshake version {client}, server uses version {server}")]
    WrongVersion {
        /// Of this client.
        client: u8,
        /// Of the server.
        server: u8,
    },
    /// The server does not use the handshake of this library.
    #[error("server on {} sent no valid handshake: connect without one", printable_path(path))]
    NoHandshake {
        /// Path of the name.
        path: Box<Path>,
    },
    /// A system call failed.
    #[error("cannot connect: {0}")]
    Os(#[from] io::Error),
}

impl From<ConnectError> for io::Error {
    fn from(error: ConnectError) -> Self {
        let kind = match &error {
            ConnectError::NoServer { .. } => io::ErrorKind::NotFound,
            ConnectError::Busy { .. } => io::ErrorKind::TimedOut,
            ConnectError::Cancelled => return Cancelled.into(),
            ConnectError::Name(_) | ConnectError::Denied { .. } | ConnectError::WrongServer { .. } => {
                io::ErrorKind::PermissionDenied
            }
            ConnectError::NotASocket { .. }
            | ConnectError::WrongMode { .. }
            | ConnectError::WrongDirection { .. }
            | ConnectError::WrongVersion { .. }
            | ConnectError::NoHandshake { .. } => io::ErrorKind::InvalidInput,
            ConnectError::Os(source) => source.kind(),
        };
        Self::new(kind, error)
    }
}
