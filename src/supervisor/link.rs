//! One worker's control connection, as its parent holds it: calls out, answers back.
//!
//! A caller writes its line itself, if nothing waits before it: a call costs no way through the loop. What the socket does not
//! take waits here, up to a limit, and the loop sends it when the worker has read. The loop reads.

use super::{
    WorkerId,
    driver::{Command, Mailbox},
};
use crate::{
    exit::Exit,
    sys::socket,
    wire::{
        calls::{CallError, Calls},
        message::decode,
        request::Post,
        rpc::{self, Cancel, RemoteError},
    },
};
use crossbeam_channel::{Receiver, Sender};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// How many bytes may wait for a worker to read them, before a call gets `Full`.
const QUEUE_BYTES: usize = 1 << 20;

type Answer = Result<Box<RawValue>, CallError>;

/// A worker's link. It exists from the start of the worker; what is sent before the worker has connected waits.
#[derive(Debug)]
pub(super) struct Link {
    state: Mutex<State>,
    mailbox: Mailbox,
    worker: WorkerId,
}

#[derive(Debug)]
struct State {
    socket: Socket,
    /// Whole lines, but for the first, of which a part may be sent.
    queue: Vec<u8>,
    calls: Calls<Sender<Answer>>,
    /// The worker's requests that are not answered yet.
    requests: HashMap<String, Arc<AtomicBool>>,
}

#[derive(Debug)]
enum Socket {
    Awaited,
    Open(Arc<OwnedFd>),
    /// With how the worker ended, once that is known.
    Closed(Option<Arc<Exit>>),
}

impl Link {
    pub(super) fn new(mailbox: Mailbox, worker: WorkerId) -> Self {
        let socket = Socket::Awaited;
        let state = State { socket, queue: Vec::new(), calls: Calls::default(), requests: HashMap::new() };
        Self { state: Mutex::new(state), mailbox, worker }
    }

    pub(super) fn is_awaited(&self) -> bool {
        matches!(self.lock().socket, Socket::Awaited)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The worker has connected. True if more waits than the socket takes.
    pub(super) fn open(&self, socket: Arc<OwnedFd>) -> bool {
        let mut state = self.lock();
        state.socket = Socket::Open(socket);
        state.flush().is_ok_and(|all| !all)
    }

    /// Sends what waits. True if something still waits.
    pub(super) fn flush(&self) -> bool {
        // A connection that fails is noticed by whoever reads it.
        self.lock().flush().is_ok_and(|all| !all)
    }

    /// The connection has ended, or the worker has: every call ends. True if it was not closed before.
    pub(super) fn close(&self, exit: Option<&Arc<Exit>>) -> bool {
        let mut state = self.lock();
        let was_closed = matches!(state.socket, Socket::Closed(_));
        state.socket = Socket::Closed(exit.cloned());
        state.queue = Vec::new();
        for (_, cancelled) in state.requests.drain() {
            cancelled.store(true, Ordering::Relaxed);
        }
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
        let cancelled = Arc::new(AtomicBool::new(false));
        self.lock().requests.insert(id.to_owned(), Arc::clone(&cancelled));
        cancelled
    }

    /// The worker takes a request back.
    pub(super) fn cancel_request(&self, id: &str) {
        if let Some(cancelled) = self.lock().requests.get(id) {
            cancelled.store(true, Ordering::Relaxed);
        }
    }

    pub(super) fn notify<P: Serialize + ?Sized>(&self, method: &str, params: &P) -> Result<(), CallError> {
        self.post(rpc::notification(method, params).map_err(CallError::Encode)?)
    }

    pub(super) fn call<P: Serialize + ?Sized>(self: &Arc<Self>, method: &str, params: &P) -> Result<Call, CallError> {
        let (answered, answer) = crossbeam_channel::bounded(1);
        let id = self.lock().calls.begin(answered.clone());
        let call = Call { link: Arc::clone(self), id, answer, answered };
        let sent = rpc::request(id, method, params).map_err(CallError::Encode).and_then(|line| self.post(line));
        if let Err(error) = sent {
            self.lock().calls.end(id);
            return Err(error);
        }
        Ok(call)
    }

    fn give_up(&self, id: u64) {
        if self.lock().calls.end(id).is_none() {
            return;
        }
        // The worker is told, so that it can stop working on it. If that cannot be sent, its answer will be passed over.
        if let Ok(id) = serde_json::value::to_raw_value(&id) {
            drop(self.notify(rpc::CANCEL, &Cancel { id }));
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
        if queued == 0 && matches!(state.socket, Socket::Open(_)) {
            let all = state.flush().map_err(CallError::Io)?;
            drop(state);
            if !all {
                self.mailbox.send(Command::Flush(self.worker));
            }
        }
        Ok(())
    }

    fn answered(&self, id: &str) {
        self.lock().requests.remove(id);
    }
}

impl State {
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

/// A call that is under way: [`Worker::start_call`](crate::Worker::start_call). Dropping it cancels it.
#[derive(Debug)]
#[must_use = "a call that is dropped is cancelled"]
pub struct Call {
    link: Arc<Link>,
    id: u64,
    answer: Receiver<Answer>,
    answered: Sender<Answer>,
}

/// Ends a [`Call`] from another thread.
#[derive(Debug, Clone)]
pub struct CancelCall {
    answered: Sender<Answer>,
}

impl CancelCall {
    /// Ends the call with [`CallError::Cancelled`], unless it has its answer already; the worker is told.
    pub fn cancel(&self) {
        drop(self.answered.try_send(Err(CallError::Cancelled)));
    }
}

impl Call {
    /// Waits for the result, at most so long.
    ///
    /// # Errors
    ///
    /// [`CallError`]: the worker's own error, or why there is no answer.
    pub fn wait<R: DeserializeOwned>(self, timeout: Duration) -> Result<R, CallError> {
        let answer = match self.answer.recv_timeout(timeout) {
            Ok(answer) => answer?,
            Err(_) => return Err(CallError::TimedOut),
        };
        decode(answer.get()).map_err(|error| CallError::NotUnderstood(Box::new(error)))
    }

    /// A way to cancel it from elsewhere.
    pub fn canceller(&self) -> CancelCall {
        CancelCall { answered: self.answered.clone() }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        // Does nothing once it is answered.
        self.link.give_up(self.id);
    }
}
