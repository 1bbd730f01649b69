//! The supervisor's side of a worker's control connection: sends calls, receives responses.
//!
//! A caller writes its line to the socket itself if nothing is queued, without a detour through the event loop (`send_line.rs`). What the
//! socket does not take is queued, up to a limit, and the loop sends it when the worker has read. The loop reads, unless a caller that
//! waits for its response does (`direct_call.rs`).

use crate::{
    exit::Exit,
    ids::WorkerId,
    policy::call_burst::CallBurst,
    supervisor::{
        control::{
            reader::FrameReader,
            rpc_socket::{RpcSocket, SocketRegistration},
            unreceived::HeldUpCalls,
        },
        reactor::report::Report,
        sync::lock,
    },
    sys::{epoll::Interests, socket},
    wire::{
        framing::error::FrameError,
        jsonrpc::{
            completion::Completion,
            dialect::Dialect,
            encode,
            endpoint::{Inbound, Received, RpcEndpoint},
            error::CallError,
            message::RpcMessage,
            request::RpcSender,
            stdio_protocol::RpcProtocol,
        },
        line_queue::{LineOwner, LineQueue},
    },
};
use std::{
    io, mem,
    os::fd::AsFd,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

/// The last id of a call.
static LAST_CALL: AtomicU64 = AtomicU64::new(0);

/// The id of a new call, unique in this process: a call can move from one incarnation to the next.
pub(crate) fn next_call_id() -> u64 {
    LAST_CALL.fetch_add(1, Ordering::Relaxed) + 1
}

/// What a connection reports to the event loop, each with its worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConnectionEvent {
    /// A caller has read a message that the loop has to process.
    Readable(WorkerId),
    /// Callers make one call after the other, and read the answers themselves.
    CallBurst(WorkerId),
    /// A call has begun whose answer may have to wait until the program receives events.
    CallHeldUp(WorkerId),
    /// The kernel was short of memory. The connection is not watched until the loop tries again.
    OutOfMemory(WorkerId),
    /// The kernel refused to watch the connection. The loop has to register it again.
    WatchFailed(WorkerId),
    /// The worker has closed its standard input, and may have exited.
    InputClosed(WorkerId),
    /// A call of the stop policy has ended.
    StopCallEnded(WorkerId),
}

/// The control connection of one incarnation. It exists from the start of the process. The [`CallRouter`] of the worker sends the lines
/// of callers while the incarnation takes calls.
///
/// [`CallRouter`]: crate::supervisor::control::call_router::CallRouter
#[derive(Debug)]
pub(crate) struct RpcConnection {
    state: Mutex<ConnectionState>,
    /// Notified when a caller has returned its read lease to a loop that waits for it.
    pub(crate) lease_returned: Condvar,
    pub(crate) events: Arc<dyn Report<ConnectionEvent>>,
    pub(crate) worker: WorkerId,
    pub(crate) protocol: RpcProtocol,
    was_active: AtomicBool,
}

#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(crate) struct ConnectionState {
    pub(crate) socket: SocketState,
    pub(crate) queue: LineQueue<LineTag>,
    /// No more lines of callers are sent: no answer would be read.
    pub(crate) has_ended: bool,
    pub(crate) endpoint: RpcEndpoint<Completion>,
    pub(crate) read_owner: ReadOwner,
    pub(crate) is_revoked: bool,
    pub(crate) burst: CallBurst,
    pub(crate) held_up: HeldUpCalls,
    pub(crate) sending: SendState,
    pub(crate) wants_writes: bool,
    /// The kernel was short of memory: the socket is not watched until the loop retries, since it stays readable and writable meanwhile.
    is_backing_off: bool,
    pub(crate) events: Arc<dyn Report<ConnectionEvent>>,
    pub(crate) worker: WorkerId,
    /// What the loop's epoll reports.
    registration: SocketRegistration,
    /// The receive timeout of the socket; zero for none.
    receive_timeout: Duration,
}

#[derive(Debug)]
pub(crate) enum SocketState {
    Awaited,
    Open(Arc<RpcSocket>),
    Closed(ConnectionEnd),
}

/// How a connection has ended, for the calls that were sent on it.
#[derive(Debug, Clone, Default)]
pub(crate) struct ConnectionEnd {
    /// `None` if the worker has closed the connection and runs on.
    pub(crate) exit: Option<Arc<Exit>>,
    /// The time from the exit to the next start; `None` if there is none.
    pub(crate) restarts_in: Option<Duration>,
}

impl From<&ConnectionEnd> for CallError {
    fn from(end: &ConnectionEnd) -> Self {
        Self::WorkerExited { exit: end.exit.clone(), restarts_in: end.restarts_in }
    }
}

/// What a queued line belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LineTag {
    /// A caller's line, which belongs to the worker: if nothing of it was sent, another incarnation can get it.
    Caller {
        /// The id of the call; `None` for a notification.
        call: Option<u64>,
        when_down: WhenDown,
        when_full: WhenFull,
    },
    /// A line for this incarnation only.
    Connection,
}

impl LineOwner for LineTag {
    fn is_limited(&self) -> bool {
        matches!(self, Self::Connection | Self::Caller { when_full: WhenFull::Fail, .. })
    }
}

/// What happens to a line while no incarnation runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WhenDown {
    /// It waits for the next one.
    Wait,
    Fail,
}

/// What happens to a line that does not fit into the limit of the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WhenFull {
    Fail,
    /// It is queued all the same, without counting against the limit: its memory belongs to a future, whose drop removes it, or to a
    /// pool, which bounds the number of its calls.
    Queue,
}

/// Whether lines can be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SendState {
    Open,
    /// The worker has closed the connection. What is queued is not sent.
    PeerGone,
    /// The supervisor closes the worker's standard input when the queue is sent.
    Closing,
    Closed,
}

/// The side that reads the connection.
#[derive(Debug)]
pub(crate) enum ReadOwner {
    /// No side reads now; the next reader takes the `FrameReader`.
    Idle(Box<FrameReader>),
    /// The loop reads now, or waits for the worker to connect.
    Loop,
    /// The loop prevents all reading.
    Paused,
    Caller,
}

impl RpcConnection {
    pub(crate) fn new(events: Arc<dyn Report<ConnectionEvent>>, worker: WorkerId, protocol: RpcProtocol) -> Self {
        let state = ConnectionState {
            socket: SocketState::Awaited,
            queue: LineQueue::default(),
            has_ended: false,
            endpoint: RpcEndpoint::new(protocol.dialect),
            read_owner: ReadOwner::Loop,
            is_revoked: false,
            burst: CallBurst::default(),
            held_up: HeldUpCalls::default(),
            sending: SendState::Open,
            wants_writes: false,
            is_backing_off: false,
            events: Arc::clone(&events),
            worker,
            registration: SocketRegistration::default(),
            receive_timeout: Duration::ZERO,
        };
        Self {
            state: Mutex::new(state),
            lease_returned: Condvar::new(),
            events,
            worker,
            protocol,
            was_active: AtomicBool::new(false),
        }
    }

    /// Whether the connection carries JSON-RPC.
    pub(crate) fn has_calls(&self) -> bool {
        self.protocol.dialect != Dialect::Messages
    }

    pub(crate) fn is_open(&self) -> bool {
        matches!(self.lock().socket, SocketState::Open(_))
    }

    pub(crate) fn is_awaited(&self) -> bool {
        matches!(self.lock().socket, SocketState::Awaited)
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, ConnectionState> {
        lock(&self.state)
    }

    /// The worker has connected. `frame_reader` holds the bytes received after its key. The loop registers the socket next.
    pub(crate) fn open(&self, socket: &Arc<RpcSocket>, frame_reader: FrameReader) {
        let mut state = self.lock();
        state.socket = SocketState::Open(Arc::clone(socket));
        state.read_owner = ReadOwner::Idle(Box::new(frame_reader));
        state.flush_or_watch();
    }

    /// Opens a connection whose other direction carries messages.
    pub(crate) fn open_for_sending(&self, socket: &Arc<RpcSocket>) {
        let mut state = self.lock();
        state.socket = SocketState::Open(Arc::clone(socket));
        state.read_owner = ReadOwner::Paused;
        state.flush_or_watch();
    }

    /// Sends queued bytes, and requests a report when the socket takes more.
    pub(crate) fn flush(&self) {
        self.lock().flush_or_watch();
    }

    /// A read of the loop has failed for want of kernel memory: retries after a pause.
    pub(crate) fn back_off(&self) {
        let mut state = self.lock();
        state.back_off();
        state.watch();
    }

    /// Ends the pause after a shortage of memory.
    pub(crate) fn retry(&self) {
        let mut state = self.lock();
        state.is_backing_off = false;
        state.flush_or_watch();
    }

    /// Takes the `FrameReader` for the loop; `None` while a caller reads.
    pub(crate) fn take_reader(&self) -> Option<Box<FrameReader>> {
        self.lock().take(ReadOwner::Loop)
    }

    /// Returns the `FrameReader` after a read of the loop.
    pub(crate) fn return_reader(&self, frame_reader: Box<FrameReader>) {
        self.lock().read_owner = ReadOwner::Idle(frame_reader);
    }

    /// Prevents all reading; `None` while a caller reads.
    pub(crate) fn pause(&self) -> Option<Box<FrameReader>> {
        let mut state = self.lock();
        let frame_reader = state.take(ReadOwner::Paused)?;
        state.watch();
        Some(frame_reader)
    }

    /// Handles a report for a paused connection: the socket takes queued bytes, or the peer has closed it, which the kernel would report
    /// again and again.
    pub(crate) fn on_paused_event(&self) {
        let mut state = self.lock();
        // A socket for reading alone has only been closed.
        let is_split = matches!(&state.socket, SocketState::Open(socket) if socket.is_split());
        if state.wants_writes && !is_split {
            state.flush_or_watch();
        } else {
            state.deregister_reader();
        }
    }

    /// Registers the socket with the loop's epoll. `None` without a socket. If the connection is paused, its report was handled by
    /// [`on_paused_event`](Self::on_paused_event), and there is nothing to wait for but room for queued bytes.
    pub(crate) fn register(&self) -> Option<io::Result<()>> {
        let mut state = self.lock();
        let interests = state.interests();
        let ConnectionState { socket: SocketState::Open(socket), registration, read_owner, .. } = &mut *state else {
            return None;
        };
        Some(registration.add(socket, interests, matches!(read_owner, ReadOwner::Paused)))
    }

    /// Permits reading again. The loop registers the socket next.
    pub(crate) fn resume(&self, frame_reader: Box<FrameReader>) {
        self.lock().read_owner = ReadOwner::Idle(frame_reader);
    }

    /// The worker has exited: interrupts a caller that reads, and waits until it has returned its lease. The caller does nothing else
    /// before that.
    pub(crate) fn revoke_read_lease(&self) {
        let mut state = self.lock();
        state.is_revoked = true;
        while state.is_leased() {
            state.wake_reader();
            state = self.lease_returned.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The worker has shut down its side for writing: nothing more is read. Shuts down this side too, unless the worker waits for
    /// something: the worker may wait for that, as Node does.
    pub(crate) fn on_end(&self) {
        let mut state = self.lock();
        state.deregister_reader();
        if let (SocketState::Open(socket), true, true) =
            (&state.socket, state.queue.is_empty(), state.endpoint.requests.is_empty())
        {
            socket.shutdown_write();
        }
    }

    /// Nothing more is reported of the socket that is read.
    pub(crate) fn deregister_reader(&self) {
        self.lock().deregister_reader();
    }

    /// Closes the connection and ends all calls. Returns true if it was not closed before.
    pub(crate) fn close(&self, end: &ConnectionEnd) -> bool {
        let mut state = self.lock();
        let was_closed = matches!(state.socket, SocketState::Closed(_));
        state.wake_reader();
        state.deregister();
        state.socket = SocketState::Closed(end.clone());
        state.queue = LineQueue::default();
        state.has_ended = true;
        let waiting = state.endpoint.close();
        drop(state);
        for call in waiting {
            call.complete(Err(CallError::from(end)));
        }
        !was_closed
    }

    /// Processes a message of the worker. Returns what is for the loop.
    pub(crate) fn receive(&self, message: RpcMessage) -> Option<Inbound> {
        let received = self.lock().endpoint.receive(message);
        self.finish(received)
    }

    /// Processes an invalid line. A caller or the worker may wait for what it was meant to be.
    pub(crate) fn receive_error(&self, error: &FrameError) {
        let received = self.lock().endpoint.receive_error(error);
        self.finish(received);
    }

    fn finish(&self, received: Received<Completion>) -> Option<Inbound> {
        match received {
            Received::Answer(call, answer) => _ = call.complete(answer),
            // If the queue is full, the connection ends.
            Received::Reply(line) => drop(self.send_reply(line)),
            Received::Forward(inbound) => return Some(inbound),
            Received::Done => {}
        }
        None
    }

    /// Whether the only open call is that of the caller that reads.
    pub(crate) fn is_only_caller(&self) -> bool {
        self.lock().endpoint.calls.is_empty()
    }

    /// Sends a ping. [`take_activity`](Self::take_activity) says whether something was received since.
    pub(crate) fn ping(&self) {
        let Some(method) = self.protocol.dialect.ping() else { return };
        let id = next_call_id();
        self.lock().endpoint.calls.expect_ignored(id);
        // If the ping cannot be sent nothing is received, which the watchdog notices.
        drop(encode::request(id, method, &()).map_err(CallError::Encode).and_then(|line| self.send_line(line)));
    }

    /// The number of bytes queued for the worker.
    pub(crate) fn queued(&self) -> usize {
        self.lock().queue.len()
    }

    /// Records that something was received.
    pub(crate) fn record_activity(&self) {
        self.was_active.store(true, Ordering::Relaxed);
    }

    /// Whether something was received since the last call, by the loop or a caller.
    pub(crate) fn take_activity(&self) -> bool {
        self.was_active.swap(false, Ordering::Relaxed)
    }
}

impl ConnectionState {
    pub(crate) fn take(&mut self, by: ReadOwner) -> Option<Box<FrameReader>> {
        match mem::replace(&mut self.read_owner, by) {
            ReadOwner::Idle(frame_reader) => Some(frame_reader),
            other => {
                self.read_owner = other;
                None
            }
        }
    }

    pub(crate) fn is_leased(&self) -> bool {
        matches!(self.read_owner, ReadOwner::Caller)
    }

    pub(crate) fn flush_or_watch(&mut self) {
        self.wants_writes = !self.flush().unwrap_or(false);
        self.watch();
    }

    /// Makes the loop retry after a pause.
    pub(crate) fn back_off(&mut self) {
        if !mem::replace(&mut self.is_backing_off, true) {
            self.events.report(ConnectionEvent::OutOfMemory(self.worker));
        }
    }

    /// Updates the interests registered with epoll. If the kernel refuses, the loop retries by timer.
    pub(crate) fn watch(&mut self) {
        if self.try_watch().is_err() {
            self.events.report(ConnectionEvent::WatchFailed(self.worker));
        }
    }

    fn try_watch(&mut self) -> io::Result<()> {
        let interests = self.interests();
        match (&self.socket, &mut self.registration) {
            (SocketState::Open(socket), registration) if self.burst.is_active() && !interests.writes => {
                registration.suspend_reader(socket);
                Ok(())
            }
            (SocketState::Open(socket), registration) => registration.update(socket, interests),
            (SocketState::Awaited | SocketState::Closed(_), _) => Ok(()),
        }
    }

    fn interests(&self) -> Interests {
        let reads = matches!(self.read_owner, ReadOwner::Idle(_) | ReadOwner::Loop) && !self.burst.is_active();
        Interests { reads: reads && !self.is_backing_off, writes: self.wants_writes && !self.is_backing_off }
    }

    fn deregister_reader(&mut self) {
        if let SocketState::Open(socket) = &self.socket {
            self.registration.remove_reader(socket);
        }
    }

    fn deregister(&mut self) {
        if let SocketState::Open(socket) = &self.socket {
            self.registration.remove(socket);
        }
    }

    /// Interrupts a caller that waits in a read.
    fn wake_reader(&self) {
        if let (SocketState::Open(socket), true) = (&self.socket, self.is_leased()) {
            socket.shutdown_read();
        }
    }

    pub(crate) fn set_receive_timeout(&mut self, socket: &RpcSocket, timeout: Duration) {
        // The kernel counts in microseconds, and takes 0 for no timeout. A year fits and is long enough.
        let timeout = timeout.clamp(Duration::from_micros(1), Duration::from_secs(365 * 24 * 3600));
        if timeout != self.receive_timeout && socket::set_receive_timeout(socket.as_fd(), timeout).is_ok() {
            self.receive_timeout = timeout;
        }
    }
}
