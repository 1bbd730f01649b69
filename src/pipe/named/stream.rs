//! One connection of a named pipe, as a stream of bytes.
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

/// Pause before a call that failed for lack of memory is retried.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(5);

/// One connection between a client and a server. Both sides use this type.
///
/// `Read` and `Write` are implemented for `&Stream`, so threads can share it. A clone is the same connection, which is closed
/// with the last clone. `Read` and `Write` block without limit. The methods with a [`Timeout`] can expire or be cancelled, without
/// losing data. [`disconnect`](Self::disconnect) ends all of them.
///
/// * After the peer has closed, reads return the remaining data and then 0. That is also so if the peer has left data unread;
///   writes and [`wait_drained`](Self::wait_drained) report that case.
/// * Writes after the peer has closed fail with [`BrokenPipe`](io::ErrorKind::BrokenPipe). `SIGPIPE` is never raised.
/// * Reads and writes that the [`direction`](Self::direction) excludes fail with [`Unsupported`](io::ErrorKind::Unsupported).
/// * Reads and writes after `disconnect` fail with [`NotConnected`](io::ErrorKind::NotConnected).
/// * In the message modes a write sends one message, and reads return the content of messages as one stream of bytes. Use
///   [`into_messages`](Self::into_messages) to keep them whole.
///
/// File descriptors that the peer sent are closed by the read that skips them, or on drop, unless
/// [`read_with_fds`](Self::read_with_fds) is used. Closing them can block (`docs/gotchas.md`, "Closing can block").
///
/// Unix domain sockets have no receive buffer: data in transit is charged to the
/// [`send_buffer_size`](Self::send_buffer_size) of the writer.
#[doc(alias = "NamedPipeServerStream")]
#[doc(alias = "NamedPipeClientStream")]
#[derive(Clone)]
pub struct Stream {
    pub(super) inner: Arc<Inner>,
}

impl_debug!(Stream, |stream| { mode: stream.inner.terms.mode, direction: stream.inner.terms.direction });

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) socket: OwnedFd,
    pub(super) terms: Terms,
    pub(super) receive_buffer: Mutex<ReceiveBuffer>,
    pub(super) send_buffer: Mutex<SendBuffer>,
    disconnected: AtomicBool,
    /// The peer closed the connection with unread data.
    pub(super) was_reset: AtomicBool,
    /// A write found that the peer has closed.
    pub(super) has_failed: AtomicBool,
    instance: Mutex<Option<Instance>>,
    pub(super) transport: TransportState,
}

/// Properties of the connection. Without a handshake they are what this side was configured with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    pub(super) mode: PipeMode,
    pub(super) direction: Direction,
    /// What the client allows; `None` without a handshake.
    pub(super) level: Option<ImpersonationLevel>,
    /// Longest message of a framed stream, in bytes.
    pub(super) max_message_size: usize,
}

/// Locks a mutex, also after a panic of a thread that held it.
pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stream {
    /// Creates a stream from a connected Unix domain socket: inherited, from `socketpair`, or from another library. The stream has
    /// both directions, no impersonation level, and a limit of 16 MiB for framed messages.
    ///
    /// Only one stream should read from a socket. In message mode a second reader can make this one lose the end of a message,
    /// which is reported as an error.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if it is no Unix domain socket of the type that `mode` needs;
    /// [`NotConnected`](io::ErrorKind::NotConnected) if it is not connected.
    pub fn from_fd(socket: OwnedFd, mode: PipeMode) -> io::Result<Self> {
        let wanted = mode.socket_type();
        let found = match socket::socket_type(socket.as_fd()) {
            Err(error) if error.raw_os_error() == Some(libc::ENOTSOCK) => None,
            other => other?,
        };
        if found != Some(wanted) {
            let text = format!("not a Unix domain socket of the type for a {mode} pipe");
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

    /// Shuts down the unused direction of the socket, so that the peer detects it.
    pub(super) fn close_unused_direction(&self) {
        let how = match self.direction() {
            Direction::In => Shutdown::Write,
            Direction::Out => Shutdown::Read,
            Direction::InOut => return,
        };
        // Fails only if the peer has closed already, which reads and writes report.
        drop(socket::shutdown(self.socket(), how));
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.inner.socket.as_fd()
    }

    pub(super) const fn as_stream(&self) -> &Self {
        self
    }

    /// Mode of the pipe.
    #[doc(alias = "TransmissionMode")]
    pub fn mode(&self) -> PipeMode {
        self.inner.terms.mode
    }

    /// Direction of this end.
    pub fn direction(&self) -> Direction {
        self.inner.terms.direction
    }

    /// Reads available data, at most `buf.len()` bytes. Blocks until there is at least one byte. Returns 0 at the end of the
    /// stream.
    ///
    /// # Errors
    ///
    /// [`TimedOut`](io::ErrorKind::TimedOut); [`Cancelled`] inside an error of kind `Other`.
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
        match self.or_end_at_reset(socket::receive(self.socket(), buf), 0) {
            Ok(0) => self.check_end().map(|()| 0),
            other => other,
        }
    }

    /// Records a reset, and turns it into the end of the stream.
    pub(super) fn or_end_at_reset<T>(&self, answer: io::Result<T>, end: T) -> io::Result<T> {
        match answer {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                self.inner.was_reset.store(true, Ordering::Relaxed);
                Ok(end)
            }
            other => other,
        }
    }

    /// Writes at least one byte of `buf`, and returns the number of bytes written. Blocks while the send buffer is full. In a
    /// message mode, sends `buf` as one message; an empty `buf` sends none.
    ///
    /// # Errors
    ///
    /// Same as [`read_timeout`](Self::read_timeout), and [`BrokenPipe`](io::ErrorKind::BrokenPipe). In a message mode, a
    /// [`MessageError`] inside an error of the corresponding kind.
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

    /// Writes all of `buf`. The timeout bounds the whole call. In a message mode, sends `buf` as one message. In byte mode, data
    /// written by other threads may come between parts of a long `buf`.
    ///
    /// # Errors
    ///
    /// [`WriteError`] has the number of bytes written. In a message mode that is 0, or all if the beginning was sent: the rest is
    /// then sent before the next message, as with [`MessageError::Unfinished`].
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

    /// Sends as much as fits without blocking. Records the error of a closed connection.
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

    /// Writes at least one byte of `buf`, and passes copies of up to 253 file descriptors with the first byte. A peer that reads
    /// without [`read_with_fds`](Self::read_with_fds) closes them.
    ///
    /// # Errors
    ///
    /// Same as [`write_timeout`](Self::write_timeout); [`InvalidInput`](io::ErrorKind::InvalidInput) if `buf` is empty or there are
    /// too many descriptors; [`Unsupported`](io::ErrorKind::Unsupported) in a message mode, where
    /// [`MessageStream::send_with_fds`](super::MessageStream::send_with_fds) does it.
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

    /// Like [`read_timeout`](Self::read_timeout), and also returns the file descriptors passed with the data. They are
    /// close-on-exec, and of any type the peer chose: check them before use.
    ///
    /// # Errors
    ///
    /// Same as `read_timeout`; [`Unsupported`](io::ErrorKind::Unsupported) in a message mode.
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
            let got = match self.or_end_at_reset(got.map(|got| (got.bytes, got.descriptors)), (0, Vec::new())) {
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
            return Err(io::Error::new(io::ErrorKind::Unsupported, format!("end of the pipe is for {direction}")));
        }
        self.check_here()
    }

    pub(super) fn check_here(&self) -> io::Result<()> {
        if self.inner.disconnected.load(Ordering::Acquire) {
            return Err(io::Error::new(io::ErrorKind::NotConnected, "stream was disconnected on this side"));
        }
        Ok(())
    }

    /// Sets the transport, whose failure then replaces the end of the stream or a write error. A second call has no effect.
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

    /// Returns whether the peer is connected. Also detects a peer that was killed, and one that left data to be read. Never blocks.
    ///
    /// A peer that has only shut down its writing direction is connected, except for an end that only reads.
    pub fn is_connected(&self) -> bool {
        // Fails only for lack of memory, which says nothing about the peer.
        self.check_here().is_ok() && !socket::is_hung_up(self.socket()).unwrap_or(false)
    }

    /// Closes the connection for all clones of this stream, and ends all blocked calls on it. The peer can still read what was
    /// written before. On a server, the instance becomes free for the next client.
    ///
    /// # Errors
    ///
    /// [`NotConnected`](io::ErrorKind::NotConnected) if it was called before.
    #[doc(alias = "Disconnect")]
    pub fn disconnect(&self) -> io::Result<()> {
        if self.inner.disconnected.swap(true, Ordering::AcqRel) {
            return self.check_here();
        }
        // Fails only if the peer has closed already.
        drop(socket::shutdown(self.socket(), Shutdown::Both));
        drop(locked(&self.inner.instance).take());
        Ok(())
    }

    /// Returns the identity of the peer.
    ///
    /// # Errors
    ///
    /// [`PeerError::Anonymous`] if the client connected with [`ImpersonationLevel::Anonymous`].
    pub fn peer(&self) -> Result<Peer, PeerError> {
        if self.inner.terms.level == Some(ImpersonationLevel::Anonymous) {
            return Err(PeerError::Anonymous);
        }
        self.check_here().map_err(|_| PeerError::Disconnected)?;
        Peer::of(self.socket()).map_err(PeerError::Os)
    }

    /// What the client allows the server to do with its identity. `None` without a handshake and at the end of the client: nothing
    /// is restricted then, as on Windows for a plain `CreateFile`.
    pub fn impersonation_level(&self) -> Option<ImpersonationLevel> {
        self.inner.terms.level
    }

    /// Kernel memory for data in transit to the peer, in bytes. Each write takes some hundred bytes of it in addition to its data.
    ///
    /// # Errors
    ///
    /// None known.
    #[doc(alias = "OutBufferSize")]
    pub fn send_buffer_size(&self) -> io::Result<usize> {
        socket::send_buffer(self.socket())
    }

    /// Requests a send buffer of `bytes`, and returns its actual size: the kernel doubles the number to cover its overhead, and
    /// limits it to twice `/proc/sys/net/core/wmem_max` without `CAP_NET_ADMIN`. In message mode this is also the limit of a
    /// message.
    ///
    /// # Errors
    ///
    /// None known.
    pub fn set_send_buffer_size(&self, bytes: usize) -> io::Result<usize> {
        socket::set_send_buffer(self.socket(), bytes)?;
        self.send_buffer_size()
    }

    /// Converts the stream into its socket, which is close-on-exec, for a child or another library. If there are other clones, the
    /// socket is a duplicate. Data that a message mode has buffered is lost. The stream no longer counts as an instance of its
    /// server.
    ///
    /// # Errors
    ///
    /// If a duplicate is needed and the process is out of file descriptors.
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
