//! One connection of a named pipe, as bytes.
#![expect(single_use_lifetimes, reason = "`impl Into<Timeout<'_>>` is not stable Rust yet")]

use std::{
    io::{self, IoSlice},
    net::Shutdown,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use super::{
    buffers::{ReceiveBuffer, SendBuffer},
    instances::Instance,
    message::{DEFAULT_MAX_MESSAGE_SIZE, MessageError},
    peer::{ImpersonationLevel, Peer, PeerError},
    transport::{Transport, TransportState},
};
use crate::pipe::{
    mode::{Direction, PipeMode},
    timeout::{Cancelled, StartedTimeout, Timeout},
    write_error::{WriteError, write_all},
};
use crate::sys::{
    is_shortage,
    poll::Interest,
    socket::{self, RecvAction, SocketType},
};

/// How long a call that the kernel refused for want of memory waits before it tries again.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(5);

/// One connection between a client and a server. Both sides have this type.
///
/// It is read and written by shared reference too, from any number of threads; a clone is the same stream, and the last of
/// them closes it. `Read` and `Write` wait as long as it takes; the calls that take a [`Timeout`] have a deadline or can be
/// cancelled, and lose no byte by it. [`disconnect`](Self::disconnect) wakes every one of them.
///
/// * A read gives 0 when the other side has closed, again and again, after everything that was sent before. Also when the
///   other side closed without having read all of ours: that shows in writing, and in [`wait_drained`](Self::wait_drained).
/// * A write after the other side has closed fails with [`BrokenPipe`](io::ErrorKind::BrokenPipe). `SIGPIPE` is never raised.
/// * Against the [`direction`](Self::direction), reads and writes fail with [`Unsupported`](io::ErrorKind::Unsupported).
/// * After `disconnect` they fail with [`NotConnected`](io::ErrorKind::NotConnected).
/// * In the message modes a write is one message, and reads run through them as if they were one stream of bytes (empty ones
///   vanish). [`into_messages`](Self::into_messages) gives the face that keeps them whole.
///
/// Descriptors that came along and that nobody asked for are closed by the read that passes them, or by the drop. That can take
/// as long as their sender likes (`docs/gotchas.md`, "Closing can block").
///
/// A local socket has no buffer on the reader's side: what is on its way is charged to the writer's
/// [`send_buffer_size`](Self::send_buffer_size).
#[doc(alias = "NamedPipeServerStream")]
#[doc(alias = "NamedPipeClientStream")]
#[derive(Clone)]
pub struct Stream {
    pub(super) inner: Arc<Inner>,
}

shown_as!(Stream, |stream| { mode: stream.inner.terms.mode, direction: stream.inner.terms.direction });

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) socket: OwnedFd,
    pub(super) terms: Terms,
    pub(super) receive_buffer: Mutex<ReceiveBuffer>,
    pub(super) send_buffer: Mutex<SendBuffer>,
    disconnected: AtomicBool,
    /// The other side left without having read everything of ours.
    pub(super) was_reset: AtomicBool,
    /// A write found the other side gone.
    pub(super) has_failed: AtomicBool,
    instance: Mutex<Option<Instance>>,
    pub(super) transport: TransportState,
}

/// What both sides have agreed on, or believe.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    pub(super) mode: PipeMode,
    pub(super) direction: Direction,
    /// What the client allows; `None` where it was not asked.
    pub(super) level: Option<ImpersonationLevel>,
    /// The longest message of a framed stream, in bytes.
    pub(super) max_message_size: usize,
}

/// Locks whatever the thread that last held it came to.
pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stream {
    /// Takes a connected local socket, of whatever origin: inherited, from a `socketpair`, from another library. It goes both
    /// ways, nothing is known of what a client allows, and framed messages may have 16 MiB.
    ///
    /// Only one stream should read from a socket. In the message mode a second one can make this one lose the end of a message,
    /// which is then an error.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) when it is no local socket of the type that the mode wants;
    /// [`NotConnected`](io::ErrorKind::NotConnected).
    pub fn from_fd(socket: OwnedFd, mode: PipeMode) -> io::Result<Self> {
        let wanted = mode.socket_type();
        let found = match socket::socket_type(socket.as_fd()) {
            Err(error) if error.raw_os_error() == Some(libc::ENOTSOCK) => None,
            other => other?,
        };
        if found != Some(wanted) {
            let text = format!("not a local socket for a {mode} pipe");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        socket::check_connected(socket.as_fd())?;
        if wanted == SocketType::Messages {
            socket::receive_credentials(socket.as_fd())?;
        }
        let terms =
            Terms { mode, direction: Direction::InOut, level: None, max_message_size: DEFAULT_MAX_MESSAGE_SIZE };
        Ok(Self::new(socket, terms, None))
    }

    pub(super) fn new(socket: OwnedFd, terms: Terms, instance: Option<Instance>) -> Self {
        let inner = Inner {
            socket,
            terms,
            receive_buffer: Mutex::default(),
            send_buffer: Mutex::default(),
            disconnected: AtomicBool::new(false),
            was_reset: AtomicBool::new(false),
            has_failed: AtomicBool::new(false),
            instance: Mutex::new(instance),
            transport: TransportState::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Ends, at the socket, the direction that this end does not have, so that the other side notices.
    pub(super) fn close_unused_direction(&self) {
        let how = match self.direction() {
            Direction::In => Shutdown::Write,
            Direction::Out => Shutdown::Read,
            Direction::InOut => return,
        };
        // Fails only when the other side is gone already, and then reads and writes will tell.
        drop(socket::shutdown(self.socket(), how));
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.inner.socket.as_fd()
    }

    pub(super) const fn as_stream(&self) -> &Self {
        self
    }

    /// What it carries.
    #[doc(alias = "TransmissionMode")]
    pub fn mode(&self) -> PipeMode {
        self.inner.terms.mode
    }

    /// Which way this end goes.
    pub fn direction(&self) -> Direction {
        self.inner.terms.direction
    }

    /// Reads what is there, at most `buf.len()` bytes, waiting for the first. 0 is the end.
    ///
    /// # Errors
    ///
    /// [`TimedOut`](io::ErrorKind::TimedOut); [`Cancelled`](crate::pipe::Cancelled) inside an error of the kind `Other`.
    pub fn read_timeout<'a>(&self, buf: &mut [u8], timeout: impl Into<Timeout<'a>>) -> io::Result<usize> {
        let timeout = StartedTimeout::now(timeout.into());
        self.check(Direction::reads)?;
        if timeout.is_cancelled()? {
            return Err(Cancelled.into());
        }
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            match self.try_read(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.await_input(&timeout)?,
                Err(error) if is_shortage(&error) && !timeout.has_passed() => {
                    timeout.wait_at_most(&[], SHORTAGE_PAUSE)?;
                }
                done => return done,
            }
        }
    }

    fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
        if self.mode() != PipeMode::Byte {
            return self.try_read_through_messages(buf);
        }
        match self.at_reset(socket::receive(self.socket(), buf), 0) {
            Ok(0) => self.check_end().map(|()| 0),
            other => other,
        }
    }

    /// A reset is remembered, and stands for the end of what can be read.
    pub(super) fn at_reset<T>(&self, answer: io::Result<T>, end: T) -> io::Result<T> {
        match answer {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                self.inner.was_reset.store(true, Ordering::Relaxed);
                Ok(end)
            }
            other => other,
        }
    }

    /// Writes some of `buf`, waiting until there is room; in a message mode all of it, as one message. No bytes are no message.
    ///
    /// # Errors
    ///
    /// As [`read_timeout`](Self::read_timeout), and [`BrokenPipe`](io::ErrorKind::BrokenPipe). In a message mode
    /// [`MessageError`] inside an error of the fitting kind.
    pub fn write_timeout<'a>(&self, buf: &[u8], timeout: impl Into<Timeout<'a>>) -> io::Result<usize> {
        let timeout = StartedTimeout::now(timeout.into());
        self.check(Direction::writes)?;
        if timeout.is_cancelled()? {
            return Err(Cancelled.into());
        }
        if buf.is_empty() {
            return Ok(0);
        }
        match self.mode() {
            PipeMode::Byte => self.write_bytes(buf, &[], &timeout),
            PipeMode::Message | PipeMode::Framed => {
                self.send_whole(buf, &[], &timeout).map(|()| buf.len()).map_err(Into::into)
            }
        }
    }

    /// Writes all of `buf`, and gives up when `wait` ends; it counts for all of it together. In a message mode `buf` is one
    /// message. Bytes of other threads that write to the same stream may stand between those of a long `buf`.
    ///
    /// # Errors
    ///
    /// [`WriteError`] says how many bytes are on their way. In a message mode that is none of them, or all where the beginning was
    /// sent: the rest then goes out before the next message, as with
    /// [`MessageError::Unfinished`].
    pub fn write_all_timeout<'a>(&self, buf: &[u8], timeout: impl Into<Timeout<'a>>) -> Result<(), WriteError> {
        let timeout = StartedTimeout::now(timeout.into());
        if self.mode() == PipeMode::Byte {
            return write_all(buf, |rest| self.write_timeout(rest, timeout.rest()));
        }
        self.write_timeout(buf, timeout.rest()).map(drop).map_err(|source| {
            let inner = source.get_ref().and_then(|inner| inner.downcast_ref::<MessageError>());
            let written = if matches!(inner, Some(MessageError::Unfinished)) { buf.len() } else { 0 };
            WriteError::new(written, buf.len(), source)
        })
    }

    fn write_bytes(
        &self,
        buf: &[u8],
        descriptors: &[BorrowedFd<'_>],
        timeout: &StartedTimeout<'_>,
    ) -> io::Result<usize> {
        loop {
            match self.send_some(&[IoSlice::new(buf)], descriptors) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    timeout.wait(&[(self.socket(), Interest::Writable)])?.into_io()?;
                }
                Err(error) if is_shortage(&error) && !timeout.has_passed() => {
                    timeout.wait_at_most(&[], SHORTAGE_PAUSE)?;
                }
                done => return done.map_err(|error| self.with_reason(error, timeout)),
            }
        }
    }

    /// Sends what there is room for. What is left of a reset comes with the first call after it, and is remembered.
    pub(super) fn send_some(&self, pieces: &[IoSlice<'_>], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
        match socket::send(self.socket(), pieces, descriptors) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                self.inner.was_reset.store(true, Ordering::Relaxed);
                self.inner.has_failed.store(true, Ordering::Relaxed);
                Err(io::ErrorKind::BrokenPipe.into())
            }
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.inner.has_failed.store(true, Ordering::Relaxed);
                Err(error)
            }
            done => done,
        }
    }

    pub(super) fn has_failed(&self) -> bool {
        self.inner.has_failed.load(Ordering::Relaxed)
    }

    /// Writes some of `buf`, at least one byte, and sends copies of descriptors along with the first of them (at most 253).
    /// The other side must ask for them; if it does not, they are closed unseen.
    ///
    /// # Errors
    ///
    /// As [`write_timeout`](Self::write_timeout); [`InvalidInput`](io::ErrorKind::InvalidInput) without a byte to go with or
    /// with too many descriptors; [`Unsupported`](io::ErrorKind::Unsupported) unless this is a byte pipe
    /// ([`MessageStream`](super::MessageStream) has its own).
    #[doc(alias = "SCM_RIGHTS")]
    pub fn write_with_fds<'a>(
        &self,
        buf: &[u8],
        descriptors: &[BorrowedFd<'_>],
        timeout: impl Into<Timeout<'a>>,
    ) -> io::Result<usize> {
        let timeout = StartedTimeout::now(timeout.into());
        self.check(Direction::writes)?;
        if buf.is_empty() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        match self.mode() {
            PipeMode::Byte => self.write_bytes(buf, descriptors, &timeout),
            PipeMode::Message | PipeMode::Framed => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// As [`read_timeout`](Self::read_timeout), and takes the descriptors that came along with these bytes. They are
    /// close-on-exec. What they are is for the caller to find out before using them.
    ///
    /// # Errors
    ///
    /// As `read_timeout`; [`Unsupported`](io::ErrorKind::Unsupported) unless this is a byte pipe.
    pub fn read_with_fds<'a>(
        &self,
        buf: &mut [u8],
        timeout: impl Into<Timeout<'a>>,
    ) -> io::Result<(usize, Vec<OwnedFd>)> {
        let timeout = StartedTimeout::now(timeout.into());
        self.check(Direction::reads)?;
        if self.mode() != PipeMode::Byte {
            return Err(io::ErrorKind::Unsupported.into());
        }
        if buf.is_empty() {
            return Ok((0, Vec::new()));
        }
        loop {
            let got = socket::receive_message(self.socket(), buf, RecvAction::Descriptors);
            let got = match self.at_reset(got.map(|got| (got.bytes, got.descriptors)), (0, Vec::new())) {
                Ok((0, _)) => self.check_end().map(|()| (0, Vec::new())),
                other => other,
            };
            match got {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.await_input(&timeout)?,
                done => return done,
            }
        }
    }

    pub(super) fn check(&self, allowed: fn(Direction) -> bool) -> io::Result<()> {
        let direction = self.direction();
        if !allowed(direction) {
            return Err(io::Error::new(io::ErrorKind::Unsupported, format!("this end of the pipe is for {direction}")));
        }
        self.check_here()
    }

    pub(super) fn check_here(&self) -> io::Result<()> {
        if self.inner.disconnected.load(Ordering::Acquire) {
            return Err(io::Error::new(io::ErrorKind::NotConnected, "the stream was disconnected on this side"));
        }
        Ok(())
    }

    /// From now on this stream ends with its transport's reason if that is what has ended. The first transport stays.
    pub(crate) fn set_transport(&self, transport: Arc<dyn Transport>) {
        self.inner.transport.set(transport);
    }

    pub(super) fn check_end(&self) -> io::Result<()> {
        self.inner.transport.check_end()
    }

    pub(super) fn await_input(&self, timeout: &StartedTimeout<'_>) -> io::Result<()> {
        self.inner.transport.await_input(self.socket(), timeout)
    }

    pub(super) fn with_reason(&self, error: io::Error, timeout: &StartedTimeout<'_>) -> io::Error {
        self.inner.transport.with_reason(error, timeout)
    }

    /// Whether the other side is there. Tells the truth also when it went without a word, and with data still to be read; never
    /// blocks.
    ///
    /// A side that only ended its writing is still there, except at an end that only reads: there is nothing left for it.
    pub fn is_connected(&self) -> bool {
        // The kernel cannot fail here except for want of memory, which says nothing about the other side.
        self.check_here().is_ok() && !socket::is_hung_up(self.socket()).unwrap_or(false)
    }

    /// Ends the connection for every clone of this stream, now, and wakes whoever waits in a call on it. What was written stays
    /// readable for the other side, which then finds the end. At a server this makes room for the next client.
    ///
    /// # Errors
    ///
    /// [`NotConnected`](io::ErrorKind::NotConnected) the second time.
    #[doc(alias = "Disconnect")]
    pub fn disconnect(&self) -> io::Result<()> {
        if self.inner.disconnected.swap(true, Ordering::AcqRel) {
            return self.check_here();
        }
        // Fails only when the other side is gone already.
        drop(socket::shutdown(self.socket(), Shutdown::Both));
        drop(locked(&self.inner.instance).take());
        Ok(())
    }

    /// Who is at the other end.
    ///
    /// # Errors
    ///
    /// [`PeerError::Anonymous`] when the client did not want that to be asked.
    pub fn peer(&self) -> Result<Peer, PeerError> {
        if self.inner.terms.level == Some(ImpersonationLevel::Anonymous) {
            return Err(PeerError::Anonymous);
        }
        self.check_here().map_err(|_| PeerError::Disconnected)?;
        Peer::of(self.socket()).map_err(PeerError::Os)
    }

    /// What the client allows its server. `None` without a handshake, and at the client's own end: nothing was said, and
    /// nothing is held back (as on Windows for a plain `CreateFile`).
    pub fn impersonation_level(&self) -> Option<ImpersonationLevel> {
        self.inner.terms.level
    }

    /// Bytes of kernel memory that may be on their way to the other side, as the kernel really counts. Every write takes some
    /// hundred more than it has bytes.
    ///
    /// # Errors
    ///
    /// None is known.
    #[doc(alias = "OutBufferSize")]
    pub fn send_buffer_size(&self) -> io::Result<usize> {
        socket::send_buffer(self.socket())
    }

    /// Asks for so many bytes, and returns what it became: the kernel doubles the number, to pay for its own needs, and allows
    /// those without `CAP_NET_ADMIN` no more than twice `/proc/sys/net/core/wmem_max`. Also raises the limit of a message.
    ///
    /// # Errors
    ///
    /// None is known.
    pub fn set_send_buffer_size(&self, bytes: usize) -> io::Result<usize> {
        socket::set_send_buffer(self.socket(), bytes)?;
        self.send_buffer_size()
    }

    /// The socket, close-on-exec, to be given to a child or to another library. If other clones live it is a copy, and the
    /// stream goes on as long as any of them. What a message mode has read ahead is lost, and it does not count as one of a
    /// server's instances any more.
    ///
    /// # Errors
    ///
    /// When a copy is needed and the process is out of descriptors.
    #[doc(alias = "SafePipeHandle")]
    pub fn into_fd(self) -> io::Result<OwnedFd> {
        match Arc::try_unwrap(self.inner) {
            Ok(inner) => Ok(inner.socket),
            Err(shared) => shared.socket.try_clone(),
        }
    }
}

impl PipeMode {
    pub(super) const fn socket_type(self) -> SocketType {
        match self {
            Self::Byte | Self::Framed => SocketType::Stream,
            Self::Message => SocketType::Messages,
        }
    }
}
