//! The server's side of a name: who comes in, how many, and when.
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

/// How long nobody is taken from the backlog when the process or the machine is out of descriptors or memory, or too many of
/// those who were put out do not close.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(50);

/// The kernel cuts it down to `/proc/sys/net/core/somaxconn`.
const BACKLOG: u32 = 4096;

/// How a [`Listener`] listens. The defaults: bytes, both ways, for the current user, any number of clients, no handshake.
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
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// What the pipe carries.
    #[must_use]
    pub const fn mode(mut self, mode: PipeMode) -> Self {
        self.mode = mode;
        self
    }

    /// Which way the server's ends go.
    #[must_use]
    pub const fn direction(mut self, direction: Direction) -> Self {
        self.direction = direction;
        self
    }

    /// Who may connect.
    #[must_use]
    #[doc(alias = "PipeSecurity")]
    pub const fn access(mut self, access: Access) -> Self {
        self.access = access;
        self
    }

    /// Makes clients introduce themselves, and tells them when they are accepted. Only clients that also ask for the handshake
    /// get in; a plain socket client is put out after 5 seconds.
    ///
    /// With it a client that is connected has been accepted, one that comes when all instances are busy waits and gets a typed
    /// error when its time is up, and ends whose modes or directions do not fit are told so. Without it, a client is connected
    /// as soon as it is in the backlog, as with any socket.
    #[must_use]
    pub const fn handshake(mut self) -> Self {
        self.handshake = HandshakeMode::Handshake;
        self
    }

    /// How many accepted streams may live at once; at least 1. It holds across processes, as a name has one listener.
    #[must_use]
    #[doc(alias = "maxNumberOfServerInstances")]
    pub const fn max_instances(mut self, count: u32) -> Self {
        self.max_instances = Some(count);
        self
    }

    /// How many clients may wait for `accept` before the next ones wait to get that far; the kernel adds one, and cuts it down
    /// to `/proc/sys/net/core/somaxconn`. Without a call: 4096.
    #[must_use]
    pub const fn backlog(mut self, clients: u32) -> Self {
        self.backlog = clients;
        self
    }

    /// What [`Stream::set_send_buffer_size`] is called with for every stream.
    #[must_use]
    #[doc(alias = "OutBufferSize")]
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

    /// Takes the name. Clients can connect from now on, before anybody calls `accept`.
    ///
    /// The name is published whole: whoever finds it finds a server that listens, with the file mode it shall have. The name
    /// of a server that has died is taken over; that of a living one, and a file that is no socket, never.
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
            // Every socket that is accepted has it from this one, for messages that come before the accept, too.
            SocketType::Messages => socket::receive_credentials(socket.as_fd()),
            SocketType::Stream => Ok(()),
        };
        let (socket, bound_name) = bind::bind(name, kind, self.access, self.backlog, prepare)?;
        let activity = Admission::activity(self.handshake, &socket).map_err(failed)?;
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
                our_uid: identity::effective_uid(),
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

/// A server: one name, any number of clients, each an accepted [`Stream`]. Dropping it gives the name back and turns away who
/// has not been accepted; accepted streams live on.
#[doc(alias = "NamedPipeServerStream")]
pub struct Listener {
    // Dropped first: the name goes while we still listen, so that no client finds a name without a server.
    _bound_name: BoundName,
    socket: DeferredClose,
    name: PipeName,
    admission: Admission,
    max_message_size: usize,
    stop: Flag,
    /// One thread at a time takes clients in; the others wait for this and not for a mutex, as it can be polled.
    accept_lock: Semaphore,
    instances: Arc<Instances>,
    pending: Mutex<Vec<PendingClient>>,
}

shown_as!(Listener, |listener| { name: listener.name });

/// For a loop of one's own, and for nothing but waiting: readable when there may be something to accept. Then call
/// [`accept_timeout`](Listener::accept_timeout) with a time of zero until it gives [`AcceptError::TimedOut`], which it may do
/// at once.
///
/// It becomes readable when a client knocks, when one that is half-way in its handshake goes on or leaves, and when the listener
/// is shut down. It stays readable as long as a client knocks who cannot be let in yet: while all instances are busy, while the
/// process is out of descriptors, and while 256 others are half-way in.
impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.admission.activity.as_ref().map_or(self.socket.as_fd(), AsFd::as_fd)
    }
}

/// Why no client was accepted. None of these ends a server: `accept` can be called again, except after `ShutDown`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AcceptError {
    /// No client, or no free instance, within the time.
    #[error("no client within the time")]
    TimedOut,
    /// The call was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// [`Listener::shutdown`] was called.
    #[error("the listener was shut down")]
    ShutDown,
    /// The kernel failed.
    #[error("cannot accept a client: {0}")]
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
    /// Listens with the defaults of [`ListenerOptions`].
    ///
    /// # Errors
    ///
    /// [`ListenError`].
    pub fn bind(name: &PipeName) -> Result<Self, ListenError> {
        ListenerOptions::new().listen(name)
    }

    /// The next client, waiting for one as long as it takes. Any number of threads may wait.
    ///
    /// A client that is refused, or goes away too early, is passed over and counted. When the process is out of descriptors,
    /// clients are left in the backlog until there are some again.
    ///
    /// # Errors
    ///
    /// [`AcceptError::ShutDown`], and [`AcceptError::Os`] when the kernel fails.
    #[doc(alias = "WaitForConnection")]
    pub fn accept(&self) -> Result<Stream, AcceptError> {
        self.accept_timeout(Timeout::never())
    }

    /// As [`accept`](Self::accept), with an end to waiting. No client is lost by it.
    ///
    /// # Errors
    ///
    /// As `accept`; [`AcceptError::TimedOut`] and [`AcceptError::Cancelled`].
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
                return Ok(self.into_stream(stream, instance));
            }
            if !shortage && pending.len() < PENDING_CLIENTS_MAX {
                match socket::accept(self.socket.as_fd()) {
                    Ok(None) => {}
                    Ok(Some(client)) => {
                        match FdFreeStream::new(client).and_then(|client| self.admission.admit(client, &mut pending)) {
                            Ok(Some(stream)) => return Ok(self.into_stream(stream, instance)),
                            Ok(None) => {}
                            // Nothing is known against the listener.
                            Err(_) => drop(self.admission.counters.vanished.fetch_add(1, Ordering::Relaxed)),
                        }
                        continue;
                    }
                    Err(error) if is_shortage(&error) => shortage = true,
                    Err(error) if is_of_one_client(&error) => continue,
                    Err(error) => {
                        // Shut down since it was checked: whatever the kernel says of that, it is no failure.
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

    /// The clients as they come, until [`shutdown`](Self::shutdown). An error does not end it.
    pub fn incoming(&self) -> Incoming<'_> {
        Incoming { listener: self }
    }

    /// Ends every `accept` that waits now or is called later, and turns new clients away. The name is kept until the drop.
    pub fn shutdown(&self) {
        self.stop.raise();
        // A listening socket that is shut down refuses. It cannot fail on a socket that listens.
        drop(socket::shutdown(self.socket.as_fd(), std::net::Shutdown::Both));
    }

    /// Where it listens.
    pub fn name(&self) -> &PipeName {
        &self.name
    }

    /// How many accepted streams live: neither dropped, with all clones, nor disconnected.
    #[doc(alias = "NumberOfServerInstances")]
    pub fn instances(&self) -> usize {
        self.instances.live()
    }

    /// Whom it has met so far.
    pub fn stats(&self) -> ListenerStats {
        self.admission.counters.stats()
    }

    fn check_running(&self) -> Result<(), AcceptError> {
        if self.stop.is_raised()? { Err(AcceptError::ShutDown) } else { Ok(()) }
    }

    /// Waits for a place; the stop flag and the switch end it.
    fn take(&self, free: &Semaphore, timeout: &StartedTimeout<'_>) -> Result<(), AcceptError> {
        loop {
            if timeout.is_cancelled()? {
                return Err(AcceptError::Cancelled);
            }
            self.check_running()?;
            if free.take()? {
                return Ok(());
            }
            match timeout.wait(&[(self.stop.as_fd(), Interest::Readable), (free.as_fd(), Interest::Readable)])? {
                WakeReason::Ready(_) => {}
                WakeReason::TimedOut => return Err(AcceptError::TimedOut),
                WakeReason::Cancelled => return Err(AcceptError::Cancelled),
            }
        }
    }

    fn take_instance(&self, timeout: &StartedTimeout<'_>) -> Result<Instance, AcceptError> {
        if let Some(free) = self.instances.free() {
            self.take(free, timeout)?;
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

    fn into_stream(&self, accepted: AcceptedClient, instance: Instance) -> Stream {
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

/// The right to take clients in; given back on drop.
struct AcceptLock<'a>(&'a Listener);

impl<'a> AcceptLock<'a> {
    fn take(listener: &'a Listener, timeout: &StartedTimeout<'_>) -> Result<Self, AcceptError> {
        listener.take(&listener.accept_lock, timeout).map(|()| Self(listener))
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

/// The clients of a [`Listener`] as they come.
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
