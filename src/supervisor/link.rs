//! One worker's control connection, as its parent holds it: calls out, answers back.
//!
//! A caller writes its line itself, if nothing waits before it: a call costs no way through the loop. What the socket does not
//! take waits here, up to a limit, and the loop sends it when the worker has read. The loop reads, unless a caller that waits
//! for its answer does.

use super::{
    WorkerId,
    call::Call,
    driver::{Command, Mailbox},
    lock,
    reading::{Heard, Reading},
};
use crate::{
    exit::Exit,
    sys::{
        epoll::{Interests, Poller},
        poll::Deadline,
        socket,
    },
    wire::{
        calls::{CallError, Calls, Requests},
        request::Post,
        rpc::{self, PING, Packet, RemoteError},
    },
};
use crossbeam_channel::Sender;
use serde::Serialize;
use serde_json::value::RawValue;
use std::{
    io,
    net::Shutdown,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// How many bytes may wait for a worker to read them, before a call gets `Full`.
const QUEUE_BYTES: usize = 1 << 20;

pub(super) type Answer = Result<Box<RawValue>, CallError>;

/// A worker's link. It exists from the start of the worker; what is sent before the worker has connected waits.
#[derive(Debug)]
pub(super) struct Link {
    state: Mutex<State>,
    /// A caller has given the reading back to a loop that waits for it.
    given_back: Condvar,
    mailbox: Mailbox,
    worker: WorkerId,
    was_heard: AtomicBool,
}

#[derive(Debug)]
struct State {
    socket: Socket,
    /// Whole lines, but for the first, of which a part may be sent.
    queue: Vec<u8>,
    calls: Calls<Sender<Answer>>,
    /// The worker's requests that are not answered yet.
    requests: Requests,
    /// Nothing while somebody reads.
    reading: Option<Box<Reading>>,
    is_lent: bool,
    is_recalled: bool,
    wants_writes: bool,
    /// What the socket was told last; zero is for ever.
    receive_timeout: Duration,
}

#[derive(Debug)]
enum Socket {
    Awaited,
    Open(Arc<Connection>),
    /// With how the worker ended, once that is known.
    Closed(Option<Arc<Exit>>),
}

/// A worker's socket, and where the loop watches it.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) socket: OwnedFd,
    pub(super) poller: Arc<Poller>,
    pub(super) token: u64,
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Link {
    pub(super) fn new(mailbox: Mailbox, worker: WorkerId) -> Self {
        let state = State {
            socket: Socket::Awaited,
            queue: Vec::new(),
            calls: Calls::default(),
            requests: Requests::default(),
            reading: None,
            is_lent: false,
            is_recalled: false,
            wants_writes: false,
            receive_timeout: Duration::ZERO,
        };
        Self {
            state: Mutex::new(state),
            given_back: Condvar::new(),
            mailbox,
            worker,
            was_heard: AtomicBool::new(false),
        }
    }

    pub(super) fn is_awaited(&self) -> bool {
        matches!(self.lock().socket, Socket::Awaited)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The worker has connected, and the loop watches its socket already.
    pub(super) fn open(&self, connection: &Arc<Connection>, max_frame: usize) {
        let mut state = self.lock();
        state.socket = Socket::Open(Arc::clone(connection));
        state.reading = Some(Box::new(Reading::new(max_frame)));
        state.flush_or_watch();
    }

    /// Sends what waits, and has the loop told when the socket takes more.
    pub(super) fn flush(&self) {
        self.lock().flush_or_watch();
    }

    /// The loop begins to read, or to keep everybody from reading. Nothing if a caller reads.
    pub(super) fn take_reading(&self) -> Option<Box<Reading>> {
        self.lock().reading.take()
    }

    /// The loop has read.
    pub(super) fn give_reading(&self, reading: Box<Reading>) {
        self.lock().reading = Some(reading);
    }

    /// The worker has ended: a caller that still reads is sent back. It has to do no more than to put down what it has read.
    pub(super) fn recall_reading(&self) {
        let mut state = self.lock();
        state.is_recalled = true;
        while state.is_lent {
            state.wake_reader();
            state = self.given_back.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Has the loop watch the socket anew, after a time in which it did not.
    pub(super) fn watch(&self) {
        self.lock().watch();
    }

    /// The connection has ended, or the worker has: every call ends. True if it was not closed before.
    pub(super) fn close(&self, exit: Option<&Arc<Exit>>) -> bool {
        let mut state = self.lock();
        let was_closed = matches!(state.socket, Socket::Closed(_));
        state.wake_reader();
        state.socket = Socket::Closed(exit.cloned());
        state.queue = Vec::new();
        state.requests.cancel_all();
        let waiting: Vec<_> = state.calls.end_all().collect();
        drop(state);
        for caller in waiting {
            // A caller that has given up in this moment hears nothing.
            drop(caller.try_send(Err(CallError::WorkerGone(exit.cloned()))));
        }
        !was_closed
    }

    /// An answer of the worker's. False if nobody had asked, or nobody waits any more.
    pub(super) fn answer(&self, id: u64, outcome: Result<Box<RawValue>, RemoteError>) -> bool {
        let caller = self.lock().calls.end(id);
        let outcome = outcome.map_err(|error| CallError::Remote(Box::new(error)));
        caller.is_some_and(|caller| caller.try_send(outcome).is_ok())
    }

    /// Notes a request of the worker's; gives the flag that says when it is cancelled.
    pub(super) fn request(&self, id: &str) -> Arc<AtomicBool> {
        self.lock().requests.begin(id)
    }

    /// The worker takes a request back.
    pub(super) fn cancel_request(&self, id: &str) {
        self.lock().requests.cancel(id);
    }

    /// Asks the worker for a sign of life. Whether something has come back is told by
    /// [`was_heard`](Self::was_heard).
    pub(super) fn ping(&self) {
        let id = self.lock().calls.next_id();
        // Where that cannot be sent nothing comes back, and that is what is watched for.
        drop(rpc::request(id, PING, &()).map_err(CallError::Encode).and_then(|line| self.post(line)));
    }

    /// How many bytes wait for the worker to read.
    pub(super) fn queued(&self) -> usize {
        self.lock().queue.len()
    }

    /// Something was read.
    pub(super) fn note_heard(&self) {
        self.was_heard.store(true, Ordering::Relaxed);
    }

    /// Whether something was read since this was asked last, by whomever.
    pub(super) fn was_heard(&self) -> bool {
        self.was_heard.swap(false, Ordering::Relaxed)
    }

    /// Tells a connected worker something that has no parameters. False if that cannot be sent.
    pub(super) fn tell(&self, method: &str) -> bool {
        let is_open = matches!(self.lock().socket, Socket::Open(_));
        is_open && self.notify(method, &()).is_ok()
    }

    pub(super) fn notify<P: Serialize + ?Sized>(&self, method: &str, params: &P) -> Result<(), CallError> {
        self.post(rpc::notification(method, params).map_err(CallError::Encode)?)
    }

    pub(super) fn call<P: Serialize + ?Sized>(self: &Arc<Self>, method: &str, params: &P) -> Result<Call, CallError> {
        let id = self.lock().calls.next_id();
        let line = rpc::request(id, method, params).map_err(CallError::Encode)?;
        self.send_call(id, line)
    }

    fn send_call(self: &Arc<Self>, id: u64, line: Vec<u8>) -> Result<Call, CallError> {
        let call = self.begin(&mut self.lock(), id);
        let sent = self.post(line);
        if sent.is_err() {
            // Nothing was asked, so there is nothing to take back.
            self.lock().calls.end(id);
        }
        sent.map(|()| call)
    }

    /// Asks, and waits for the answer. Where nobody else reads, the caller does.
    pub(super) fn ask<P: Serialize + ?Sized>(
        self: &Arc<Self>,
        method: &str,
        params: &P,
        timeout: Duration,
    ) -> Result<Box<RawValue>, CallError> {
        let deadline = Deadline::after(timeout);
        let id = self.lock().calls.next_id();
        let line = rpc::request(id, method, params).map_err(CallError::Encode)?;
        let call = match self.borrow_reading(line, timeout)? {
            Ok(loan) => match self.read_answer(loan, id, deadline) {
                Ok(answer) => return answer,
                Err(call) => call,
            },
            Err(line) => self.send_call(id, line)?,
        };
        call.answer_until(deadline)
    }

    /// Sends a line and takes the reading, so that the loop never hears of the answer; gives the line back, unsent, if somebody
    /// else reads.
    fn borrow_reading(&self, line: Vec<u8>, timeout: Duration) -> Result<Result<Loan, Vec<u8>>, CallError> {
        let mut state = self.lock();
        let Socket::Open(connection) = &state.socket else { return Ok(Err(line)) };
        let connection = Arc::clone(connection);
        let is_free = !state.is_recalled && state.queue.is_empty() && !timeout.is_zero();
        let Some(reading) = state.reading.take_if(|reading| is_free && reading.unheard.is_empty()) else {
            return Ok(Err(line));
        };
        state.is_lent = true;
        state.set_receive_timeout(&connection, timeout);
        state.queue = line;
        state.watch();
        match state.flush() {
            Ok(all) => {
                if !all {
                    state.wants_writes = true;
                    state.watch();
                }
                Ok(Ok(Loan { reading, connection }))
            }
            Err(error) => {
                drop(state);
                self.return_reading(reading, |_| ());
                Err(CallError::Io(error))
            }
        }
    }

    /// Reads until the answer to this call has come; or something for the loop, or the end, and then goes on as a [`Call`].
    fn read_answer(self: &Arc<Self>, loan: Loan, own: u64, deadline: Deadline) -> Result<Answer, Call> {
        let Loan { mut reading, connection } = loan;
        let mut answer = None;
        let mut scratch = reading.take_scratch();
        while answer.is_none() && reading.unheard.is_empty() {
            match socket::receive_waiting(connection.as_fd(), &mut scratch) {
                Ok(bytes @ 1..) => {
                    self.note_heard();
                    reading.understand(scratch.get(..bytes).unwrap_or_default(), |heard, unheard| match heard {
                        Heard::Packet(Packet::Response { id, outcome }, _) if id == own => {
                            answer = Some(outcome.map_err(|error| CallError::Remote(Box::new(error))));
                        }
                        Heard::Packet(Packet::Response { id, outcome }, _) => drop(self.answer(id, outcome)),
                        other => unheard.push(other),
                    });
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && !deadline.has_passed() => {
                    self.lock().set_receive_timeout(&connection, deadline.remaining().unwrap_or(Duration::MAX));
                }
                // The end of the connection, or of the patience: both are for others to tell.
                Ok(_) | Err(_) => break,
            }
        }
        reading.put_scratch(scratch);
        match answer {
            Some(answer) => {
                self.return_reading(reading, |_| ());
                Ok(answer)
            }
            None => Err(self.return_reading(reading, |state| self.begin(state, own))),
        }
    }

    fn return_reading<T>(&self, reading: Box<Reading>, then: impl FnOnce(&mut State) -> T) -> T {
        let is_unheard = !reading.unheard.is_empty();
        let mut state = self.lock();
        let done = then(&mut state);
        state.reading = Some(reading);
        state.is_lent = false;
        state.watch();
        let is_recalled = state.is_recalled;
        drop(state);
        if is_recalled {
            self.given_back.notify_all();
        } else if is_unheard {
            self.mailbox.send(Command::Talk(self.worker));
        }
        done
    }

    /// A call that waits for others to read its answer.
    fn begin(self: &Arc<Self>, state: &mut State, id: u64) -> Call {
        let (answered, answer) = crossbeam_channel::bounded(1);
        if let Socket::Closed(exit) = &state.socket {
            drop(answered.try_send(Err(CallError::WorkerGone(exit.clone()))));
        } else {
            state.calls.wait(id, answered.clone());
        }
        Call { link: Arc::clone(self), id, answer, answered }
    }

    pub(super) fn give_up(&self, id: u64) {
        if self.lock().calls.end(id).is_some() {
            // The worker is told, so that it can stop working on it. If that cannot be sent, its answer will be passed over.
            drop(rpc::cancellation(id).map_err(CallError::Encode).and_then(|line| self.post(line)));
        }
    }
}

impl Post for Link {
    fn post(&self, line: Vec<u8>) -> Result<(), CallError> {
        let mut state = self.lock();
        match &state.socket {
            Socket::Closed(exit) => return Err(CallError::WorkerGone(exit.clone())),
            Socket::Awaited | Socket::Open(_) => {}
        }
        let queued = state.queue.len();
        if queued > 0 && queued + line.len() > QUEUE_BYTES {
            return Err(CallError::Full { queued });
        }
        if queued == 0 {
            state.queue = line;
        } else {
            state.queue.extend_from_slice(&line);
        }
        // What waited already waits for the loop, which knows of it.
        if queued == 0 && matches!(state.socket, Socket::Open(_)) && !state.flush().map_err(CallError::Io)? {
            state.wants_writes = true;
            state.watch();
        }
        Ok(())
    }

    fn answered(&self, id: &str) {
        self.lock().requests.end(id);
    }
}

impl State {
    fn flush_or_watch(&mut self) {
        // A connection that fails is noticed by whoever reads it.
        let waits = self.flush().is_ok_and(|all| !all);
        if waits != self.wants_writes {
            self.wants_writes = waits;
            self.watch();
        }
    }

    /// Has the loop told of what is to be told. Where the loop does not watch the socket for now, that changes nothing.
    fn watch(&self) {
        if let Socket::Open(connection) = &self.socket {
            let interests = Interests { reads: !self.is_lent, writes: self.wants_writes };
            drop(connection.poller.watch(connection, connection.token, interests));
        }
    }

    /// A caller that waits in a read gets what is there, and then the end.
    fn wake_reader(&self) {
        if let (Socket::Open(connection), true) = (&self.socket, self.is_lent) {
            // Fails only when the other side is gone, and then nobody waits.
            drop(socket::shutdown(connection.as_fd(), Shutdown::Read));
        }
    }

    fn set_receive_timeout(&mut self, connection: &Connection, timeout: Duration) {
        // The kernel counts in microseconds, and takes 0 for ever. A year is ever enough, and fits.
        let timeout = timeout.clamp(Duration::from_micros(1), Duration::from_secs(365 * 24 * 3600));
        if timeout != self.receive_timeout && socket::set_receive_timeout(connection.as_fd(), timeout).is_ok() {
            self.receive_timeout = timeout;
        }
    }

    /// Sends as much as the socket takes. True if that was all.
    fn flush(&mut self) -> io::Result<bool> {
        let Socket::Open(socket) = &self.socket else { return Ok(true) };
        let mut sent = 0;
        let outcome = loop {
            let rest = self.queue.get(sent..).unwrap_or_default();
            if rest.is_empty() {
                break Ok(true);
            }
            match socket::send(socket.as_fd(), &[io::IoSlice::new(rest)], &[]) {
                Ok(bytes) => sent += bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Ok(false),
                // The loop reads what the worker said last, and then its end.
                Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                    break Ok(true);
                }
                Err(error) => break Err(error),
            }
        };
        if sent == self.queue.len() {
            self.queue = Vec::new();
        } else {
            self.queue.drain(..sent);
        }
        outcome
    }
}

/// The reading, in the hands of a caller.
struct Loan {
    reading: Box<Reading>,
    connection: Arc<Connection>,
}
