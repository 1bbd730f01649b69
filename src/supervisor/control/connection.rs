//! One worker's control connection, as its parent holds it: calls out, answers back.
//!
//! A caller writes its line itself, if nothing waits before it: a call costs no way through the loop. What the socket does not
//! take waits here, up to a limit, and the loop sends it when the worker has read. The loop reads, unless a caller that waits
//! for its answer does.

use crate::{
    exit::Exit,
    ids::WorkerId,
    policy::call_burst::CallBurst,
    supervisor::{control::reader::Reading, reactor::report::Report, sync::lock},
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
pub(crate) struct Link {
    state: Mutex<State>,
    /// A caller has given the reading back to a loop that waits for it.
    pub(crate) given_back: Condvar,
    pub(crate) events: Arc<dyn Report<ConnectionEvent>>,
    pub(crate) worker: WorkerId,
    was_heard: AtomicBool,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) socket: Socket,
    pub(crate) queue: SendQueue,
    pub(crate) endpoint: RpcEndpoint<Sender<Answer>>,
    pub(crate) reader: Reader,
    pub(crate) is_recalled: bool,
    pub(crate) burst: CallBurst,
    wants_writes: bool,
    /// The kernel was short of memory: the socket is not watched until the loop tries again. It stays readable and writable meanwhile.
    rests: bool,
    events: Arc<dyn Report<ConnectionEvent>>,
    worker: WorkerId,
    /// What the loop's epoll was told last; nothing where it does not have the socket.
    watched: Option<Interests>,
    /// What the socket was told last; zero is for ever.
    receive_timeout: Duration,
}

#[derive(Debug)]
pub(crate) enum Socket {
    Awaited,
    Open(Arc<Connection>),
    /// With how the worker ended, once that is known.
    Closed(Option<Arc<Exit>>),
}

/// Who has the reading.
#[derive(Debug)]
pub(crate) enum Reader {
    /// Whoever wants to read takes it.
    Nobody(Box<Reading>),
    /// It reads now, or waits for the worker to connect.
    Loop,
    /// It keeps everybody from reading.
    Paused,
    Caller,
}

/// A worker's socket, and where the loop watches it.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) socket: FdFreeStream,
    pub(crate) poller: Arc<Poller>,
    pub(crate) token: u64,
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Link {
    pub(crate) fn new(events: Arc<dyn Report<ConnectionEvent>>, worker: WorkerId) -> Self {
        let state = State {
            socket: Socket::Awaited,
            queue: SendQueue::default(),
            endpoint: RpcEndpoint::default(),
            reader: Reader::Loop,
            is_recalled: false,
            burst: CallBurst::default(),
            wants_writes: false,
            rests: false,
            events: Arc::clone(&events),
            worker,
            watched: None,
            receive_timeout: Duration::ZERO,
        };
        Self { state: Mutex::new(state), given_back: Condvar::new(), events, worker, was_heard: AtomicBool::new(false) }
    }

    pub(crate) fn is_awaited(&self) -> bool {
        matches!(self.lock().socket, Socket::Awaited)
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The worker has connected. The loop has with the reading what came behind its key, and watches the socket next.
    pub(crate) fn open(&self, connection: &Arc<Connection>, reading: Reading) {
        let mut state = self.lock();
        state.socket = Socket::Open(Arc::clone(connection));
        state.reader = Reader::Nobody(Box::new(reading));
        state.flush_or_watch();
    }

    /// Sends what waits, and has the loop told when the socket takes more.
    pub(crate) fn flush(&self) {
        self.lock().flush_or_watch();
    }

    /// The kernel was short of memory for a read of the loop.
    pub(crate) fn rest(&self) {
        let mut state = self.lock();
        state.rest();
        state.watch();
    }

    /// That may be over.
    pub(crate) fn try_again(&self) {
        let mut state = self.lock();
        state.rests = false;
        state.flush_or_watch();
    }

    /// The loop begins to read. Nothing if a caller reads.
    pub(crate) fn take_reading(&self) -> Option<Box<Reading>> {
        self.lock().take(Reader::Loop)
    }

    /// The loop has read.
    pub(crate) fn give_reading(&self, reading: Box<Reading>) {
        self.lock().reader = Reader::Nobody(reading);
    }

    /// The loop keeps everybody from reading. Nothing if a caller reads.
    pub(crate) fn pause(&self) -> Option<Box<Reading>> {
        let mut state = self.lock();
        let reading = state.take(Reader::Paused)?;
        state.watch();
        Some(reading)
    }

    /// Something was reported of a paused connection: it takes what waits for it, or else its other side is gone, which the
    /// kernel would report for ever.
    pub(crate) fn stir(&self) {
        let mut state = self.lock();
        if state.wants_writes {
            state.flush_or_watch();
        } else if let Socket::Open(connection) = &state.socket {
            drop(connection.poller.remove(connection));
            state.watched = None;
        }
    }

    /// Has the kernel report to the loop what the connection waits for. Nothing where there is none, or where it waits for nothing: it
    /// is paused, and was [stirred](Self::stir).
    pub(crate) fn register(&self) -> Option<io::Result<()>> {
        let mut state = self.lock();
        let Socket::Open(connection) = &state.socket else { return None };
        if state.watched.is_none() {
            if matches!(state.reader, Reader::Paused) && !state.wants_writes {
                return None;
            }
            if let Err(error) = connection.poller.add(connection, connection.token) {
                return Some(Err(error));
            }
            state.watched = Some(Interests::READS);
        }
        Some(state.try_watch())
    }

    /// Everybody may read again. The loop watches the connection next.
    pub(crate) fn resume(&self, reading: Box<Reading>) {
        self.lock().reader = Reader::Nobody(reading);
    }

    /// The worker has ended: a caller that still reads is sent back. It has to do no more than to put down what it has read.
    pub(crate) fn recall_reading(&self) {
        let mut state = self.lock();
        state.is_recalled = true;
        while state.is_lent() {
            state.wake_reader();
            state = self.given_back.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The worker says nothing any more. Unless it waits for something of ours it hears that we have nothing more to say either: it
    /// may be waiting for that, as Node does.
    pub(crate) fn hang_up(&self) {
        let mut state = self.lock();
        // The loop has taken it out of its epoll.
        state.watched = None;
        if let (Socket::Open(connection), true, true) =
            (&state.socket, state.queue.is_empty(), state.endpoint.requests.is_empty())
        {
            drop(socket::shutdown(connection.as_fd(), Shutdown::Write));
        }
    }

    /// The connection has ended, or the worker has: every call ends. True if it was not closed before.
    pub(crate) fn close(&self, exit: Option<&Arc<Exit>>) -> bool {
        let mut state = self.lock();
        let was_closed = matches!(state.socket, Socket::Closed(_));
        state.wake_reader();
        state.socket = Socket::Closed(exit.cloned());
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
    /// [`was_heard`](Self::was_heard).
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
    pub(crate) fn note_heard(&self) {
        self.was_heard.store(true, Ordering::Relaxed);
    }

    /// Whether something was read since this was asked last, by whomever.
    pub(crate) fn was_heard(&self) -> bool {
        self.was_heard.swap(false, Ordering::Relaxed)
    }

    /// Tells a connected worker something that has no parameters. False if that cannot be sent.
    pub(crate) fn tell(&self, method: &str) -> bool {
        let is_open = matches!(self.lock().socket, Socket::Open(_));
        is_open && self.notify(method, &()).is_ok()
    }

    pub(crate) fn notify<P: Serialize + ?Sized>(&self, method: &str, params: &P) -> Result<(), CallError> {
        self.send_line(encode::notification(method, params).map_err(CallError::Encode)?)
    }
}

impl State {
    pub(crate) fn take(&mut self, by: Reader) -> Option<Box<Reading>> {
        match mem::replace(&mut self.reader, by) {
            Reader::Nobody(reading) => Some(reading),
            other => {
                self.reader = other;
                None
            }
        }
    }

    fn is_lent(&self) -> bool {
        matches!(self.reader, Reader::Caller)
    }

    fn flush_or_watch(&mut self) {
        self.wants_writes = !self.flush().unwrap_or(false);
        self.watch();
    }

    /// Has the loop try again after a pause.
    fn rest(&mut self) {
        if !mem::replace(&mut self.rests, true) {
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
        let reads = matches!(self.reader, Reader::Nobody(_) | Reader::Loop) && !self.burst.is_active();
        let interests = Interests { reads: reads && !self.rests, writes: self.wants_writes && !self.rests };
        if let (Socket::Open(connection), Some(watched)) = (&self.socket, &mut self.watched)
            && *watched != interests
        {
            connection.poller.watch(connection, connection.token, interests)?;
            *watched = interests;
        }
        Ok(())
    }

    /// A caller that waits in a read gets what is there, and then the end.
    fn wake_reader(&self) {
        if let (Socket::Open(connection), true) = (&self.socket, self.is_lent()) {
            // Fails only when the other side is gone, and then nobody waits.
            drop(socket::shutdown(connection.as_fd(), Shutdown::Read));
        }
    }

    pub(crate) fn set_receive_timeout(&mut self, connection: &Connection, timeout: Duration) {
        // The kernel counts in microseconds, and takes 0 for ever. A year is ever enough, and fits.
        let timeout = timeout.clamp(Duration::from_micros(1), Duration::from_secs(365 * 24 * 3600));
        if timeout != self.receive_timeout && socket::set_receive_timeout(connection.as_fd(), timeout).is_ok() {
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
        let Socket::Open(socket) = &self.socket else { return Ok(true) };
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
                    self.rest();
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
