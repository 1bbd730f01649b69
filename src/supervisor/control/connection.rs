//! One worker's control connection, as its parent holds it: calls out, answers back.
//!
//! A caller writes its line itself, if nothing waits before it: a call costs no way through the loop. What the socket does not
//! take waits here, up to a limit, and the loop sends it when the worker has read. The loop reads, unless a caller that waits
//! for its answer does.

use crate::{
    exit::Exit,
    ids::WorkerId,
    policy::call_burst::CallBurst,
    supervisor::{control::reader::FrameReader, reactor::report::Report, sync::lock},
    sys::{
        epoll::{Interests, Poller},
        fd_free_stream::FdFreeStream,
        is_shortage, is_transient, socket,
    },
    wire::{
        framing::error::FrameError,
        jsonrpc::{
            encode,
            endpoint::{Inbound, Received, RpcEndpoint},
            error::{Answer, CallError},
            message::RpcMessage,
            protocol::PING,
            request::RpcSender,
        },
        send_queue::SendQueue,
    },
};
use crossbeam_channel::Sender;
use serde::Serialize;
use std::{
    io, mem,
    net::Shutdown,
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// How many bytes may wait for a worker to read them, before a call gets `QueueFull`.
pub(crate) const QUEUE_BYTES: usize = 1 << 20;
/// How many bytes are sent to one worker before others have their turn.
const FLUSH_BYTES: usize = 1 << 20;

/// What a connection reports to the event loop, each with its worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConnectionEvent {
    /// A caller has read a message that the loop has to process.
    Readable(WorkerId),
    /// Callers make one call after the other, and read the answers themselves.
    CallBurst(WorkerId),
    /// The kernel was short of memory. The connection is not watched until the loop tries again.
    OutOfMemory(WorkerId),
    /// The kernel refused to watch the connection. The loop has to register it again.
    WatchFailed(WorkerId),
}

/// A worker's link. It exists from the start of the worker; what is sent before the worker has connected waits.
#[derive(Debug)]
pub(crate) struct RpcConnection {
    state: Mutex<ConnectionState>,
    /// A caller has given the reading back to a loop that waits for it.
    pub(crate) lease_returned: Condvar,
    pub(crate) events: Arc<dyn Report<ConnectionEvent>>,
    pub(crate) worker: WorkerId,
    was_active: AtomicBool,
}

#[derive(Debug)]
pub(crate) struct ConnectionState {
    pub(crate) socket: SocketState,
    pub(crate) queue: SendQueue,
    pub(crate) endpoint: RpcEndpoint<Sender<Answer>>,
    pub(crate) read_owner: ReadOwner,
    pub(crate) is_revoked: bool,
    pub(crate) burst: CallBurst,
    wants_writes: bool,
    /// The kernel was short of memory: the socket is not watched until the loop tries again. It stays readable and writable meanwhile.
    is_backing_off: bool,
    events: Arc<dyn Report<ConnectionEvent>>,
    worker: WorkerId,
    /// What the loop's epoll was told last; nothing where it does not have the socket.
    watched: Option<Interests>,
    /// What the socket was told last; zero is for ever.
    receive_timeout: Duration,
}

#[derive(Debug)]
pub(crate) enum SocketState {
    Awaited,
    Open(Arc<RpcSocket>),
    /// With how the worker ended, once that is known.
    Closed(Option<Arc<Exit>>),
}

/// Who has the reading.
#[derive(Debug)]
pub(crate) enum ReadOwner {
    /// Whoever wants to read takes it.
    Idle(Box<FrameReader>),
    /// It reads now, or waits for the worker to connect.
    Loop,
    /// It keeps everybody from reading.
    Paused,
    Caller,
}

/// A worker's socket, and where the loop watches it.
#[derive(Debug)]
pub(crate) struct RpcSocket {
    pub(crate) stream: FdFreeStream,
    pub(crate) poller: Arc<Poller>,
    pub(crate) token: u64,
}

impl AsFd for RpcSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl RpcConnection {
    pub(crate) fn new(events: Arc<dyn Report<ConnectionEvent>>, worker: WorkerId) -> Self {
        let state = ConnectionState {
            socket: SocketState::Awaited,
            queue: SendQueue::default(),
            endpoint: RpcEndpoint::default(),
            read_owner: ReadOwner::Loop,
            is_revoked: false,
            burst: CallBurst::default(),
            wants_writes: false,
            is_backing_off: false,
            events: Arc::clone(&events),
            worker,
            watched: None,
            receive_timeout: Duration::ZERO,
        };
        Self {
            state: Mutex::new(state),
            lease_returned: Condvar::new(),
            events,
            worker,
            was_active: AtomicBool::new(false),
        }
    }

    pub(crate) fn is_awaited(&self) -> bool {
        matches!(self.lock().socket, SocketState::Awaited)
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, ConnectionState> {
        lock(&self.state)
    }

    /// The worker has connected. The loop has with the reading what came behind its key, and watches the socket next.
    pub(crate) fn open(&self, socket: &Arc<RpcSocket>, frame_reader: FrameReader) {
        let mut state = self.lock();
        state.socket = SocketState::Open(Arc::clone(socket));
        state.read_owner = ReadOwner::Idle(Box::new(frame_reader));
        state.flush_or_watch();
    }

    /// Sends what waits, and has the loop told when the socket takes more.
    pub(crate) fn flush(&self) {
        self.lock().flush_or_watch();
    }

    /// The kernel was short of memory for a read of the loop.
    pub(crate) fn back_off(&self) {
        let mut state = self.lock();
        state.back_off();
        state.watch();
    }

    /// That may be over.
    pub(crate) fn retry(&self) {
        let mut state = self.lock();
        state.is_backing_off = false;
        state.flush_or_watch();
    }

    /// The loop begins to read. Nothing if a caller reads.
    pub(crate) fn take_reader(&self) -> Option<Box<FrameReader>> {
        self.lock().take(ReadOwner::Loop)
    }

    /// The loop has read.
    pub(crate) fn return_reader(&self, frame_reader: Box<FrameReader>) {
        self.lock().read_owner = ReadOwner::Idle(frame_reader);
    }

    /// The loop keeps everybody from reading. Nothing if a caller reads.
    pub(crate) fn pause(&self) -> Option<Box<FrameReader>> {
        let mut state = self.lock();
        let frame_reader = state.take(ReadOwner::Paused)?;
        state.watch();
        Some(frame_reader)
    }

    /// Something was reported of a paused connection: it takes what waits for it, or else its other side is gone, which the
    /// kernel would report for ever.
    pub(crate) fn on_paused_event(&self) {
        let mut state = self.lock();
        if state.wants_writes {
            state.flush_or_watch();
        } else if let SocketState::Open(socket) = &state.socket {
            drop(socket.poller.remove(socket));
            state.watched = None;
        }
    }

    /// Has the kernel report to the loop what the connection waits for. Nothing where there is none, or where it waits for nothing: it
    /// is paused, and was handled by [`on_paused_event`](Self::on_paused_event).
    pub(crate) fn register(&self) -> Option<io::Result<()>> {
        let mut state = self.lock();
        let SocketState::Open(socket) = &state.socket else { return None };
        if state.watched.is_none() {
            if matches!(state.read_owner, ReadOwner::Paused) && !state.wants_writes {
                return None;
            }
            if let Err(error) = socket.poller.add(socket, socket.token) {
                return Some(Err(error));
            }
            state.watched = Some(Interests::READS);
        }
        Some(state.try_watch())
    }

    /// Everybody may read again. The loop watches the connection next.
    pub(crate) fn resume(&self, frame_reader: Box<FrameReader>) {
        self.lock().read_owner = ReadOwner::Idle(frame_reader);
    }

    /// The worker has ended: a caller that still reads is sent back. It has to do no more than to put down what it has read.
    pub(crate) fn revoke_read_lease(&self) {
        let mut state = self.lock();
        state.is_revoked = true;
        while state.is_leased() {
            state.wake_reader();
            state = self.lease_returned.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The worker says nothing any more. Unless it waits for something of ours it hears that we have nothing more to say either: it
    /// may be waiting for that, as Node does.
    pub(crate) fn shutdown_write(&self) {
        let mut state = self.lock();
        // The loop has taken it out of its epoll.
        state.watched = None;
        if let (SocketState::Open(socket), true, true) =
            (&state.socket, state.queue.is_empty(), state.endpoint.requests.is_empty())
        {
            drop(socket::shutdown(socket.as_fd(), Shutdown::Write));
        }
    }

    /// The connection has ended, or the worker has: every call ends. True if it was not closed before.
    pub(crate) fn close(&self, exit: Option<&Arc<Exit>>) -> bool {
        let mut state = self.lock();
        let was_closed = matches!(state.socket, SocketState::Closed(_));
        state.wake_reader();
        state.socket = SocketState::Closed(exit.cloned());
        state.queue = SendQueue::default();
        let waiting = state.endpoint.close();
        drop(state);
        for caller in waiting {
            // A caller that has given up in this moment hears nothing.
            drop(caller.try_send(Err(CallError::WorkerExited(exit.cloned()))));
        }
        !was_closed
    }

    /// Applies a message of the worker's. Gives what is for the loop.
    pub(crate) fn receive(&self, message: RpcMessage) -> Option<Inbound> {
        let received = self.lock().endpoint.receive(message);
        self.finish(received)
    }

    /// Applies a line that was not understood. A caller or the worker may wait for what it was to be.
    pub(crate) fn receive_error(&self, error: &FrameError) {
        let received = self.lock().endpoint.receive_error(error);
        self.finish(received);
    }

    fn finish(&self, received: Received<Sender<Answer>>) -> Option<Inbound> {
        match received {
            // It may have been cancelled in this moment.
            Received::Answer(caller, answer) => drop(caller.try_send(answer)),
            // Where there is no room for it, this is the end of the connection.
            Received::Reply(line) => drop(self.send_reply(line)),
            Received::Forward(inbound) => return Some(inbound),
            Received::Done => {}
        }
        None
    }

    /// Whether no call is open but that of the caller that reads.
    pub(crate) fn is_only_caller(&self) -> bool {
        self.lock().endpoint.calls.is_empty()
    }

    /// Asks the worker for a sign of life. Whether something has come back is told by
    /// [`take_activity`](Self::take_activity).
    pub(crate) fn ping(&self) {
        let id = {
            let mut state = self.lock();
            let id = state.endpoint.calls.next_id();
            state.endpoint.calls.expect_ignored(id);
            id
        };
        // Where that cannot be sent nothing comes back, and that is what is watched for.
        drop(encode::request(id, PING, &()).map_err(CallError::Encode).and_then(|line| self.send_line(line)));
    }

    /// How many bytes wait for the worker to read.
    pub(crate) fn queued(&self) -> usize {
        self.lock().queue.len()
    }

    /// Something was read.
    pub(crate) fn record_activity(&self) {
        self.was_active.store(true, Ordering::Relaxed);
    }

    /// Whether something was read since this was asked last, by whomever.
    pub(crate) fn take_activity(&self) -> bool {
        self.was_active.swap(false, Ordering::Relaxed)
    }

    /// Tells a connected worker something that has no parameters. False if that cannot be sent.
    pub(crate) fn notify_without_params(&self, method: &str) -> bool {
        let is_open = matches!(self.lock().socket, SocketState::Open(_));
        is_open && self.notify(method, &()).is_ok()
    }

    pub(crate) fn notify<P: Serialize + ?Sized>(&self, method: &str, params: &P) -> Result<(), CallError> {
        self.send_line(encode::notification(method, params).map_err(CallError::Encode)?)
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

    fn is_leased(&self) -> bool {
        matches!(self.read_owner, ReadOwner::Caller)
    }

    fn flush_or_watch(&mut self) {
        self.wants_writes = !self.flush().unwrap_or(false);
        self.watch();
    }

    /// Has the loop try again after a pause.
    fn back_off(&mut self) {
        if !mem::replace(&mut self.is_backing_off, true) {
            self.events.report(ConnectionEvent::OutOfMemory(self.worker));
        }
    }

    /// Has the loop told of what is to be told. Where the kernel refuses that, the loop asks again by timer.
    pub(crate) fn watch(&mut self) {
        if self.try_watch().is_err() {
            self.events.report(ConnectionEvent::WatchFailed(self.worker));
        }
    }

    fn try_watch(&mut self) -> io::Result<()> {
        let reads = matches!(self.read_owner, ReadOwner::Idle(_) | ReadOwner::Loop) && !self.burst.is_active();
        let interests =
            Interests { reads: reads && !self.is_backing_off, writes: self.wants_writes && !self.is_backing_off };
        if let (SocketState::Open(socket), Some(watched)) = (&self.socket, &mut self.watched)
            && *watched != interests
        {
            socket.poller.watch(socket, socket.token, interests)?;
            *watched = interests;
        }
        Ok(())
    }

    /// A caller that waits in a read gets what is there, and then the end.
    fn wake_reader(&self) {
        if let (SocketState::Open(socket), true) = (&self.socket, self.is_leased()) {
            // Fails only when the other side is gone, and then nobody waits.
            drop(socket::shutdown(socket.as_fd(), Shutdown::Read));
        }
    }

    pub(crate) fn set_receive_timeout(&mut self, socket: &RpcSocket, timeout: Duration) {
        // The kernel counts in microseconds, and takes 0 for ever. A year is ever enough, and fits.
        let timeout = timeout.clamp(Duration::from_micros(1), Duration::from_secs(365 * 24 * 3600));
        if timeout != self.receive_timeout && socket::set_receive_timeout(socket.as_fd(), timeout).is_ok() {
            self.receive_timeout = timeout;
        }
    }

    /// Sends a line before which nothing waits. An error has sent nothing of it.
    pub(crate) fn send(&mut self, line: Vec<u8>) -> io::Result<()> {
        let length = line.len();
        self.queue = line.into();
        match self.flush() {
            Ok(all) => self.wants_writes = !all,
            Err(error) if self.queue.len() == length => {
                self.queue = SendQueue::default();
                return Err(error);
            }
            // Begun, it has to be ended.
            Err(_) => self.wants_writes = true,
        }
        self.watch();
        Ok(())
    }

    /// Sends as much as the socket takes. True if nothing is left that could be sent now.
    fn flush(&mut self) -> io::Result<bool> {
        let SocketState::Open(socket) = &self.socket else { return Ok(true) };
        let mut share = FLUSH_BYTES;
        while !self.queue.is_empty() {
            if share == 0 {
                return Ok(false);
            }
            match socket::send(socket.as_fd(), &[io::IoSlice::new(self.queue.rest())], &[]) {
                Ok(bytes) => {
                    self.queue.advance(bytes);
                    share = share.saturating_sub(bytes);
                }
                Err(error) if is_shortage(&error) => {
                    self.back_off();
                    return Ok(false);
                }
                Err(error) if is_transient(&error) => return Ok(false),
                // Nobody will read it. The loop reads what the worker said last, and then its end.
                Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                    self.queue = SendQueue::default();
                }
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}
