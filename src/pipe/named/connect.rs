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
    handshake::{self, ClientHello, HandshakeAnswer, HandshakeError, ServerReply},
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

/// How long a client sleeps in the kernel for a place in a full backlog before it looks whether it was cancelled.
const BACKLOG_WAIT: Duration = Duration::from_millis(20);

/// How long it waits before it tries again where nothing tells it when to, at first and at most: a name that is abstract, a
/// user who has too many inotify instances.
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(1);
const RETRY_PAUSE_MAX: Duration = Duration::from_millis(50);

/// Even where the kernel tells of new names: a directory on a network is changed by others, too, and nobody tells when a server
/// begins to listen that has made its name before that.
const WATCH_PAUSE_MAX: Duration = Duration::from_secs(2);

/// Connects with the defaults of [`ConnectOptions`], and waits for the server to appear.
///
/// # Errors
///
/// [`ConnectError`].
pub fn connect<'a>(name: &PipeName, timeout: impl Into<Timeout<'a>>) -> Result<Stream, ConnectError> {
    ConnectOptions::new().connect(name, timeout)
}

/// How to connect. The defaults: bytes, both ways, to a server of the current user, waiting for it to appear, no handshake.
#[doc(alias = "NamedPipeClientStream")]
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    mode: PipeMode,
    direction: Direction,
    server: Access,
    trusts_directory: bool,
    absent: MissingServer,
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
            server: Access::CurrentUser,
            trusts_directory: false,
            absent: MissingServer::Wait,
            handshake: None,
            send_buffer_size: None,
            max_message_size: DEFAULT_MAX_MESSAGE_SIZE,
        }
    }
}

impl ConnectOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// What the pipe carries; the server's mode.
    #[must_use]
    pub const fn mode(mut self, mode: PipeMode) -> Self {
        self.mode = mode;
        self
    }

    /// Which way the client's end goes.
    #[must_use]
    pub const fn direction(mut self, direction: Direction) -> Self {
        self.direction = direction;
        self
    }

    /// Who the server may be. Names outside the private directory can be squatted by other users: widen this only for a server
    /// that you know to run as somebody else.
    #[must_use]
    pub const fn allowed_server(mut self, access: Access) -> Self {
        self.server = access;
        self
    }

    /// Also trusts a server of the user who owns the directory of the name, if no other user may write to it: who could put
    /// a socket there could put anything there.
    pub(crate) const fn trust_directory(mut self) -> Self {
        self.trusts_directory = true;
        self
    }

    /// Fails at once when nobody listens, instead of waiting for a server to appear. A server that is busy is waited for.
    #[must_use]
    pub const fn no_wait(mut self) -> Self {
        self.absent = MissingServer::Fail;
        self
    }

    /// Introduces us to a server that asks for it ([`ListenerOptions::handshake`](super::ListenerOptions::handshake)),
    /// and lets it do so much with our identity. `connect` then returns when the server has accepted us.
    #[must_use]
    pub const fn handshake(mut self, level: ImpersonationLevel) -> Self {
        self.handshake = Some(level);
        self
    }

    /// What [`Stream::set_send_buffer_size`] is called with.
    #[must_use]
    pub const fn send_buffer_size(mut self, bytes: usize) -> Self {
        self.send_buffer_size = Some(bytes);
        self
    }

    /// The longest message of [`PipeMode::Framed`] in bytes, sent or received. Without a call: 16 MiB.
    #[must_use]
    pub const fn max_message_size(mut self, bytes: usize) -> Self {
        self.max_message_size = bytes;
        self
    }

    /// Connects. The time counts from here, for everything together.
    ///
    /// Without a handshake, being connected means standing in the server's backlog: what is written now is kept for it.
    ///
    /// # Errors
    ///
    /// [`ConnectError`].
    #[doc(alias = "Connect")]
    pub fn connect<'a>(&self, name: &PipeName, timeout: impl Into<Timeout<'a>>) -> Result<Stream, ConnectError> {
        let timeout = StartedTimeout::now(timeout.into());
        name.prepare_directory().map_err(ConnectError::Name)?;
        let mut watch_server = ServerWatch::new(name);
        loop {
            if timeout.is_cancelled()? {
                return Err(ConnectError::Cancelled);
            }
            match self.attempt(name, &timeout)? {
                ConnectAttempt::Connected(stream) => return Ok(stream),
                ConnectAttempt::MissingServer(_) if self.absent == MissingServer::Fail => {
                    return Err(ConnectError::NoServer { path: name.text() });
                }
                // The watch must be older than the look, or a server that comes in between is missed.
                ConnectAttempt::MissingServer(_) if watch_server.begin()? => {}
                ConnectAttempt::MissingServer(absence) if !timeout.has_passed() => {
                    watch_server.wait(absence, &timeout)?
                }
                ConnectAttempt::MissingServer(_) => return Err(ConnectError::NoServer { path: name.text() }),
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
        if !self.server.allows(socket.as_fd(), identity::effective_uid())? {
            let uid = socket::peer_credentials(socket.as_fd())?.uid;
            if !self.trusts_directory || !is_of_user_alone(name, uid) {
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
            Some(libc::ENOENT | libc::ENOTDIR) => Ok(ConnectAttempt::MissingServer(NotFound::NoName)),
            Some(libc::ECONNREFUSED) => match name.path().map(fs::symlink_metadata) {
                Some(Ok(found)) if !found.file_type().is_socket() && !found.is_symlink() => {
                    Err(ConnectError::NotASocket { path: name.text() })
                }
                _ => Ok(ConnectAttempt::MissingServer(NotFound::Refused)),
            },
            Some(libc::EAGAIN) => Ok(ConnectAttempt::Busy),
            Some(libc::EACCES | libc::EPERM) => Err(ConnectError::Denied { path: name.text() }),
            Some(libc::EPROTOTYPE) => Err(ConnectError::WrongMode { ours: self.mode, theirs: None }),
            _ => Err(ConnectError::Os(error)),
        }
    }

    /// `None` once the server has accepted us.
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
            // It may have answered before it closed.
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error.into()),
        }
        let (mut heard, mut at) = ([0_u8; handshake::BYTES], 0);
        while at < heard.len() {
            match socket::receive(socket.as_fd(), &mut heard[at..]) {
                // It ended, or put us out without a word: as if there were none. The next try, after a pause, will show.
                Ok(0) => return Ok(Some(ConnectAttempt::MissingServer(NotFound::Refused))),
                Ok(count) => at += count,
                // In the message mode, before the answer of a server that has gone on already; once.
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
        self.check_reply(ServerReply::parse(heard), name).map(|()| None)
    }

    fn check_reply(&self, reply: Result<ServerReply, HandshakeError>, name: &PipeName) -> Result<(), ConnectError> {
        let reply = match reply {
            Err(HandshakeError::NotOurs) => return Err(ConnectError::NotOurs { path: name.text() }),
            Err(HandshakeError::Version(theirs)) => {
                return Err(ConnectError::WrongVersion { ours: handshake::VERSION, theirs });
            }
            Ok(reply) => reply,
        };
        match reply.answer {
            HandshakeAnswer::Accepted => Ok(()),
            HandshakeAnswer::WrongVersion => {
                Err(ConnectError::WrongVersion { ours: handshake::VERSION, theirs: handshake::VERSION })
            }
            HandshakeAnswer::WrongMode => Err(ConnectError::WrongMode { ours: self.mode, theirs: Some(reply.mode) }),
            HandshakeAnswer::WrongDirection => {
                Err(ConnectError::WrongDirection { ours: self.direction, theirs: reply.direction })
            }
            HandshakeAnswer::NotAllowed => Err(ConnectError::Denied { path: name.text() }),
        }
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

enum ConnectAttempt {
    Connected(Stream),
    MissingServer(NotFound),
    /// The backlog is full.
    Busy,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum NotFound {
    /// Its appearance will be told.
    NoName,
    /// A dead server's file: a new server's will be told. Or a server that will listen in a moment, which nobody tells.
    Refused,
}

/// A server that is waited for.
struct ServerWatch<'a> {
    name: &'a PipeName,
    watch: Option<(PathBuf, Appearances)>,
    pause: Duration,
    /// The socket that nobody listened on when it was last tried.
    file: Option<FileId>,
}

/// What tells a file from the next one of that name, also if that gets its inode.
type FileId = (u64, u64, i64, i64);

impl<'a> ServerWatch<'a> {
    const fn new(name: &'a PipeName) -> Self {
        Self { name, watch: None, pause: RETRY_PAUSE_MIN, file: None }
    }

    /// Begins to watch. True says: look again before waiting.
    fn begin(&mut self) -> Result<bool, ConnectError> {
        if self.watch.is_some() {
            return Ok(false);
        }
        let Some(directory) = self.name.path().and_then(existing_ancestor) else { return Ok(false) };
        match Appearances::in_directory(directory) {
            Ok(watch) => self.watch = Some((directory.to_owned(), watch)),
            Err(error) => match error.raw_os_error() {
                // Too many watches of this user, a directory that we may not read, or one that has just gone: pauses will do.
                Some(libc::EMFILE | libc::ENOSPC | libc::EACCES | libc::ENOENT | libc::ENOTDIR) => {}
                _ => return Err(error.into()),
            },
        }
        Ok(self.watch.is_some())
    }

    fn wait(&mut self, absence: NotFound, timeout: &StartedTimeout<'_>) -> Result<(), ConnectError> {
        let longest = match (absence, self.watch.is_some()) {
            (NotFound::NoName, true) => WATCH_PAUSE_MAX,
            (NotFound::Refused, true) => self.pause_for_file(WATCH_PAUSE_MAX),
            (_, false) => self.pause_for_file(RETRY_PAUSE_MAX),
        };
        let told = self.watch.as_ref().map(|(_, watch)| (watch.as_fd(), Interest::Readable));
        if timeout.wait_at_most(told.as_slice(), longest)? == WakeReason::Cancelled {
            return Err(ConnectError::Cancelled);
        }
        if let Some((directory, watch)) = &self.watch {
            watch.forget()?;
            // A directory on the way has appeared, or gone: watch another one.
            if self.name.path().and_then(existing_ancestor) != Some(directory.as_path()) {
                self.watch = None;
            }
        }
        Ok(())
    }

    /// Doubles while the file stays the same, so that no more time is lost than has passed. A new file's server is about to
    /// listen.
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

fn is_of_user_alone(name: &PipeName, uid: u32) -> bool {
    let directory = name.path().and_then(Path::parent).and_then(|directory| fs::metadata(directory).ok());
    directory.is_some_and(|found| found.uid() == uid && found.mode() & 0o022 == 0)
}

/// The directory of the name, or the closest one above it that exists: there the missing part of the path will appear.
fn existing_ancestor(path: &Path) -> Option<&Path> {
    path.ancestors().skip(1).find(|directory| directory.is_dir())
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The directory of the private names cannot be used.
    #[error("the directory of private pipes cannot be used: {0}")]
    Name(#[source] NameError),
    /// Nobody listens there: at once if that was asked for, else until the time was up.
    #[error("no server listens on {}", printable_path(path))]
    NoServer {
        /// Where.
        path: Box<Path>,
    },
    /// A server is there and has not accepted us within the time: its backlog is full, all its instances are busy, or we asked for
    /// a handshake, and it knows of none and waits for us to speak.
    #[error("the server on {} is busy", printable_path(path))]
    Busy {
        /// Where.
        path: Box<Path>,
    },
    /// The call was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// The path has something else.
    #[error("{} is not a socket", printable_path(path))]
    NotASocket {
        /// Where.
        path: Box<Path>,
    },
    /// We may not connect: the file's mode says so, or the server.
    #[error("access to the server on {} was denied", printable_path(path))]
    Denied {
        /// Where.
        path: Box<Path>,
    },
    /// The server is not who it may be: see [`ConnectOptions::allowed_server`].
    #[error("the server on {} runs as user {uid}, who is not trusted here", printable_path(path))]
    WrongServer {
        /// Where.
        path: Box<Path>,
        /// Who it is.
        uid: u32,
    },
    /// The server's pipe carries something else; what, only a handshake tells.
    #[error("this end is for a {ours} pipe, and the server's is {}", theirs.map_or_else(|| "not".into(), |mode| format!("a {mode} pipe")))]
    WrongMode {
        /// Ours.
        ours: PipeMode,
        /// The server's.
        theirs: Option<PipeMode>,
    },
    /// The ends do not fit: what one side writes, the other must read.
    #[error("this end is for {ours}, and the server's is for {theirs}")]
    WrongDirection {
        /// Ours.
        ours: Direction,
        /// The server's.
        theirs: Direction,
    },
    /// The server's handshake is of another version.
    #[error("the server's handshake has version {theirs}, and ours {ours}")]
    WrongVersion {
        /// Ours.
        ours: u8,
        /// The server's.
        theirs: u8,
    },
    /// The server does not speak our handshake.
    #[error("the server on {} does not speak this library's handshake; connect without it", printable_path(path))]
    NotOurs {
        /// Where.
        path: Box<Path>,
    },
    /// The system refused.
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
            | ConnectError::NotOurs { .. } => io::ErrorKind::InvalidInput,
            ConnectError::Os(source) => source.kind(),
        };
        Self::new(kind, error)
    }
}
