//! Servers: binding a name and accepting clients.
#![expect(single_use_lifetimes, reason = "`impl Into<Timeout<'_>>` is not stable Rust yet")]

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use super::{
    admission::{
        AcceptedClient, Admission, Counters, HandshakeMode, ListenerStats, PENDING_CLIENTS_MAX, PendingClient,
    },
    bind::{self, BoundName, ListenError},
    instances::{Instance, Instances},
    message::DEFAULT_MAX_MESSAGE_SIZE,
    name::PipeName,
    peer::Access,
    stream::{Stream, Terms, locked},
};
use crate::deadline::Deadline;
use crate::pipe::{
    mode::{Direction, PipeMode},
    timeout::{Cancelled, StartedTimeout, Timeout, WakeReason},
};
use crate::sys::{
    deferred_close::{self, DeferredClose},
    eventfd::{Flag, Semaphore},
    fd_free_stream::FdFreeStream,
    identity,
    poll::Interest,
    socket::{self, SocketType},
};

/// Pause of `accept` when the process or the machine is out of file descriptors or memory, or too many sockets of rejected clients
/// are waiting to be closed.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(50);

/// Default backlog. The kernel limits it to `/proc/sys/net/core/somaxconn`.
const BACKLOG: u32 = 4096;

/// Options of a [`Listener`]. By default it uses byte mode in both directions, admits the current user and any number of clients,
/// and performs no handshake.
///
/// ```
/// use pipewright::pipe::{PipeMode, named::{ConnectOptions, ListenerOptions, PipeName}};
/// use std::time::Duration;
///
/// # let directory = std::env::temp_dir().join(format!("pipewright-doc-listen-{}", std::process::id()));
/// # std::fs::create_dir(&directory)?;
/// let name = PipeName::new(directory.join("jobs"))?;
/// let listener = ListenerOptions::new().mode(PipeMode::Message).max_instances(8).listen(&name)?;
/// let client = ConnectOptions::new().mode(PipeMode::Message).connect(&name, Duration::from_secs(5))?.into_messages()?;
/// client.send(b"build it")?;
/// let server = listener.accept()?.into_messages()?;
/// assert_eq!(server.recv()?.as_deref(), Some(&b"build it"[..]));
/// # drop(listener);
/// # std::fs::remove_dir(&directory)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct ListenerOptions {
    mode: PipeMode,
    direction: Direction,
    access: Access,
    handshake: HandshakeMode,
    max_instances: Option<u32>,
    backlog: u32,
    send_buffer_size: Option<usize>,
    max_message_size: usize,
}

impl Default for ListenerOptions {
    fn default() -> Self {
        Self {
            mode: PipeMode::Byte,
            direction: Direction::InOut,
            access: Access::CurrentUser,
            handshake: HandshakeMode::None,
            max_instances: None,
            backlog: BACKLOG,
            send_buffer_size: None,
            max_message_size: DEFAULT_MAX_MESSAGE_SIZE,
        }
    }
}

impl ListenerOptions {
    /// Returns the default options.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the mode.
    #[must_use]
    pub const fn mode(mut self, mode: PipeMode) -> Self {
        self.mode = mode;
        self
    }

    /// Sets the direction of the ends of the server.
    #[must_use]
    pub const fn direction(mut self, direction: Direction) -> Self {
        self.direction = direction;
        self
    }

    /// Sets which users may connect.
    #[must_use]
    #[doc(alias = "PipeSecurity")]
    pub const fn access(mut self, access: Access) -> Self {
        self.access = access;
        self
    }

    /// Requires the handshake. Clients without [`ConnectOptions::handshake`](super::ConnectOptions::handshake) are rejected after 5
    /// seconds.
    ///
    /// With the handshake, `connect` of the client returns after the server has accepted it. While all instances are in use, it
    /// waits until its timeout expires ([`ConnectError::Busy`](super::ConnectError::Busy)). Different modes or directions are
    /// reported to the client as errors. Without the handshake, a client is connected as soon as it is in the backlog, as with
    /// every socket.
    #[must_use]
    pub const fn handshake(mut self) -> Self {
        self.handshake = HandshakeMode::Required;
        self
    }

    /// Sets the largest number of accepted streams at one time, at least 1. Default: unlimited. At the limit, `accept` waits until
    /// a stream is dropped or disconnected.
    #[must_use]
    #[doc(alias = "maxNumberOfServerInstances")]
    pub const fn max_instances(mut self, count: u32) -> Self {
        self.max_instances = Some(count);
        self
    }

    /// Sets the number of clients that can wait for `accept`; further clients block in `connect`. Default: 4096. The kernel adds
    /// one and limits the number to `/proc/sys/net/core/somaxconn`.
    #[must_use]
    pub const fn backlog(mut self, clients: u32) -> Self {
        self.backlog = clients;
        self
    }

    /// Sets the size passed to [`Stream::set_send_buffer_size`] for each stream.
    #[must_use]
    #[doc(alias = "OutBufferSize")]
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

    /// Binds the name and listens. Clients can connect from then on, before `accept` is called.
    ///
    /// The socket file appears with its final mode and a listening server. A socket left by a server that has exited is
    /// replaced; the socket of a running server, or a file of another type, never is.
    ///
    /// # Errors
    ///
    /// [`ListenError`].
    pub fn listen(&self, name: &PipeName) -> Result<Listener, ListenError> {
        let failed = |source| ListenError::Os { path: name.text(), source };
        let instances = match self.max_instances {
            Some(0) => return Err(ListenError::NoInstances),
            Some(count) => Some(Semaphore::new(count).map_err(failed)?),
            None => None,
        };
        let (stop, accept_lock) = (Flag::new().map_err(failed)?, Semaphore::new(1).map_err(failed)?);
        let kind = self.mode.socket_type();
        let prepare = |socket: &OwnedFd| match kind {
            // Accepted sockets inherit the option, which thus also covers messages sent before the accept.
            SocketType::Messages => socket::receive_credentials(socket.as_fd()),
            SocketType::Stream => Ok(()),
        };
        let (socket, bound_name) = bind::bind(name, kind, self.access, self.backlog, prepare)?;
        let activity = Admission::poller(self.handshake, &socket).map_err(failed)?;
        Ok(Listener {
            _bound_name: bound_name,
            socket: DeferredClose::new(socket),
            name: name.clone(),
            admission: Admission {
                mode: self.mode,
                direction: self.direction,
                access: self.access,
                handshake: self.handshake,
                send_buffer_size: self.send_buffer_size,
                own_uid: identity::effective_uid(),
                counters: Counters::default(),
                activity,
            },
            max_message_size: self.max_message_size,
            stop,
            accept_lock,
            instances: Instances::new(instances),
            pending: Mutex::default(),
        })
    }
}

/// A server: owns a name and accepts a [`Stream`] for each client. Dropping it releases the name and disconnects clients in the
/// backlog; accepted streams stay open.
#[doc(alias = "NamedPipeServerStream")]
pub struct Listener {
    // Dropped first: the name is released before the socket stops listening, so that no client finds a name without a server.
    _bound_name: BoundName,
    socket: DeferredClose,
    name: PipeName,
    admission: Admission,
    max_message_size: usize,
    stop: Flag,
    /// Held by the one thread that accepts. A semaphore instead of a mutex, since waiting threads must poll it with a timeout.
    accept_lock: Semaphore,
    instances: Arc<Instances>,
    pending: Mutex<Vec<PendingClient>>,
}

impl_debug!(Listener, |listener| { name: listener.name });

/// For event loops, and only for polling: readable when there may be a client to accept. Then call
/// [`accept_timeout`](Listener::accept_timeout) with a timeout of zero until it returns [`AcceptError::TimedOut`], which may be at
/// once.
///
/// It becomes readable when a client connects, when a client in the handshake sends data or disconnects, and when the listener is
/// shut down. It stays readable while a client cannot be accepted: all instances are in use, the process is out of file
/// descriptors, or 256 other clients are in the handshake.
impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.admission.activity.as_ref().map_or(self.socket.as_fd(), AsFd::as_fd)
    }
}

/// Error of accepting a client. `accept` can be called again, except after `ShutDown`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AcceptError {
    /// No client connected, or no instance became free, before the timeout expired.
    #[error("timed out: no client connected")]
    TimedOut,
    /// The call was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// [`Listener::shutdown`] was called.
    #[error("listener was shut down")]
    ShutDown,
    /// A system call failed.
    #[error("cannot accept client: {0}")]
    Os(#[from] io::Error),
}

impl From<AcceptError> for io::Error {
    fn from(error: AcceptError) -> Self {
        match error {
            AcceptError::TimedOut => io::ErrorKind::TimedOut.into(),
            AcceptError::Cancelled => Cancelled.into(),
            AcceptError::ShutDown => Self::new(io::ErrorKind::NotConnected, error),
            AcceptError::Os(source) => source,
        }
    }
}

impl Listener {
    /// Listens on `name` with the default [`ListenerOptions`].
    ///
    /// # Errors
    ///
    /// [`ListenError`].
    pub fn bind(name: &PipeName) -> Result<Self, ListenError> {
        ListenerOptions::new().listen(name)
    }

    /// Waits for the next client. Any number of threads may call it concurrently.
    ///
    /// Clients that are rejected or disconnect early are skipped and counted. While the process is out of file descriptors,
    /// clients stay in the backlog.
    ///
    /// # Errors
    ///
    /// [`AcceptError::ShutDown`]; [`AcceptError::Os`] if a system call fails.
    #[doc(alias = "WaitForConnection")]
    pub fn accept(&self) -> Result<Stream, AcceptError> {
        self.accept_timeout(Timeout::never())
    }

    /// Like [`accept`](Self::accept), with a timeout. No client is lost when it expires.
    ///
    /// # Errors
    ///
    /// Same as `accept`; [`AcceptError::TimedOut`] and [`AcceptError::Cancelled`].
    pub fn accept_timeout<'a>(&self, timeout: impl Into<Timeout<'a>>) -> Result<Stream, AcceptError> {
        let timeout = StartedTimeout::now(timeout.into());
        let _turn = AcceptLock::take(self, &timeout)?;
        let instance = self.take_instance(&timeout)?;
        let mut pending = locked(&self.pending);
        let mut shortage = false;
        loop {
            self.check_running()?;
            shortage |= deferred_close::is_saturated();
            if let Some(stream) = self.admission.poll_pending(&mut pending) {
                return Ok(self.new_stream(stream, instance));
            }
            if !shortage && pending.len() < PENDING_CLIENTS_MAX {
                match socket::accept(self.socket.as_fd()) {
                    Ok(None) => {}
                    Ok(Some(client)) => {
                        match FdFreeStream::new(client).and_then(|client| self.admission.admit(client, &mut pending)) {
                            Ok(Some(stream)) => return Ok(self.new_stream(stream, instance)),
                            Ok(None) => {}
                            // A failure of this client only.
                            Err(_) => drop(self.admission.counters.vanished.fetch_add(1, Ordering::Relaxed)),
                        }
                        continue;
                    }
                    Err(error) if is_shortage(&error) => shortage = true,
                    Err(error) if is_of_one_client(&error) => continue,
                    Err(error) => {
                        // If the listener was shut down since the last check, the error is a consequence of that.
                        self.check_running()?;
                        return Err(error.into());
                    }
                }
            }
            let pause = if shortage { SHORTAGE_PAUSE } else { Duration::MAX };
            self.wait_for_activity(&pending, &timeout, pause)?;
            shortage = false;
        }
    }

    /// Iterates over clients until [`shutdown`](Self::shutdown). Continues after an error.
    pub fn incoming(&self) -> Incoming<'_> {
        Incoming { listener: self }
    }

    /// Makes every current and later `accept` return [`AcceptError::ShutDown`], and rejects new clients. The name stays bound until
    /// the listener is dropped.
    pub fn shutdown(&self) {
        self.stop.raise();
        // Makes the kernel refuse connections. Cannot fail on a listening socket.
        drop(socket::shutdown(self.socket.as_fd(), std::net::Shutdown::Both));
    }

    /// The name it listens on.
    pub fn name(&self) -> &PipeName {
        &self.name
    }

    /// Number of accepted streams that are neither disconnected nor dropped with all their clones.
    #[doc(alias = "NumberOfServerInstances")]
    pub fn instances(&self) -> usize {
        self.instances.live()
    }

    /// Number of clients so far, by outcome.
    pub fn stats(&self) -> ListenerStats {
        self.admission.counters.stats()
    }

    fn check_running(&self) -> Result<(), AcceptError> {
        if self.stop.is_raised()? { Err(AcceptError::ShutDown) } else { Ok(()) }
    }

    /// Acquires a semaphore. Shutdown, the timeout and cancellation end the wait.
    fn acquire(&self, semaphore: &Semaphore, timeout: &StartedTimeout<'_>) -> Result<(), AcceptError> {
        loop {
            if timeout.is_cancelled()? {
                return Err(AcceptError::Cancelled);
            }
            self.check_running()?;
            if semaphore.take()? {
                return Ok(());
            }
            match timeout.wait(&[(self.stop.as_fd(), Interest::Readable), (semaphore.as_fd(), Interest::Readable)])? {
                WakeReason::Ready(_) => {}
                WakeReason::TimedOut => return Err(AcceptError::TimedOut),
                WakeReason::Cancelled => return Err(AcceptError::Cancelled),
            }
        }
    }

    fn take_instance(&self, timeout: &StartedTimeout<'_>) -> Result<Instance, AcceptError> {
        if let Some(semaphore) = self.instances.semaphore() {
            self.acquire(semaphore, timeout)?;
        }
        Ok(Instance::new(&self.instances))
    }

    fn wait_for_activity(
        &self,
        pending: &[PendingClient],
        timeout: &StartedTimeout<'_>,
        pause: Duration,
    ) -> Result<(), AcceptError> {
        let mut watched = vec![(self.stop.as_fd(), Interest::Readable)];
        watched.extend(pending.iter().map(|client| (client.socket.as_fd(), Interest::Readable)));
        if pause == Duration::MAX && pending.len() < PENDING_CLIENTS_MAX {
            watched.push((self.socket.as_fd(), Interest::Readable));
        }
        let until = pending.iter().fold(Deadline::after_now(pause), |until, client| until.or(client.until));
        match timeout.wait_until(&watched, until)? {
            WakeReason::TimedOut if timeout.has_passed() => Err(AcceptError::TimedOut),
            WakeReason::Cancelled => Err(AcceptError::Cancelled),
            WakeReason::Ready(_) | WakeReason::TimedOut => Ok(()),
        }
    }

    fn new_stream(&self, accepted: AcceptedClient, instance: Instance) -> Stream {
        self.admission.counters.accepted.fetch_add(1, Ordering::Relaxed);
        let terms = Terms {
            mode: self.admission.mode,
            direction: self.admission.direction,
            level: accepted.level,
            max_message_size: self.max_message_size,
        };
        let stream = Stream::new(accepted.socket, terms, Some(instance));
        stream.close_unused_direction();
        stream
    }
}

/// Guard of [`Listener::accept_lock`].
struct AcceptLock<'a>(&'a Listener);

impl<'a> AcceptLock<'a> {
    fn take(listener: &'a Listener, timeout: &StartedTimeout<'_>) -> Result<Self, AcceptError> {
        listener.acquire(&listener.accept_lock, timeout).map(|()| Self(listener))
    }
}

impl Drop for AcceptLock<'_> {
    fn drop(&mut self) {
        self.0.accept_lock.free();
    }
}

fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

fn is_of_one_client(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ECONNABORTED | libc::EPROTO | libc::EPERM))
}

/// Iterator over the clients of a [`Listener`].
#[derive(Debug)]
pub struct Incoming<'a> {
    listener: &'a Listener,
}

impl Iterator for Incoming<'_> {
    type Item = Result<Stream, AcceptError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.listener.accept() {
            Err(AcceptError::ShutDown) => None,
            next => Some(next),
        }
    }
}
