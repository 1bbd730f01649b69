//! Sends lines on a connection, and queues what the socket does not take, within limits.

use crate::{
    supervisor::control::connection::{
        ConnectionEvent, ConnectionState, LineTag, RpcConnection, SendState, SocketState,
    },
    sys::{is_shortage, is_transient},
    wire::{
        framing::encode::reframe,
        jsonrpc::{completion::Completion, encode, error::CallError, pending::WhenAbandoned, request::RpcSender},
        line_queue::{LineOwner, LineQueue, QueuedLine},
    },
};
use std::{
    io::{self, ErrorKind, IoSlice},
    sync::Arc,
};

/// The most bytes that are queued for a worker before a call returns `QueueFull`.
pub(crate) const QUEUE_BYTES: usize = 1 << 20;
/// The bytes that may be queued beyond [`QUEUE_BYTES`] by error responses that replace responses that did not fit.
const ANSWER_BYTES: usize = 1 << 20;
/// The most bytes that are sent to one worker in one turn of the loop.
const FLUSH_BYTES: usize = 1 << 20;
/// The most lines that are sent at once.
const LINES_PER_SEND: usize = 64;

/// A line of a caller, with the completion of its call.
#[derive(Debug)]
pub(crate) struct CallerLine {
    pub(crate) line: QueuedLine<LineTag>,
    pub(crate) completion: Option<Completion>,
}

/// Why a line of a caller was not sent or queued.
#[derive(Debug)]
pub(crate) enum SubmitError {
    /// The connection has ended.
    Ended(CallerLine),
    Failed(CallError),
}

/// Fails if the queue has no room for a line.
pub(crate) fn check_room<T: LineOwner>(queue: &LineQueue<T>, line: &QueuedLine<LineTag>) -> Result<(), CallError> {
    let queued = queue.limited_len();
    let is_full = line.tag.is_limited() && queued > 0 && queued + line.bytes.len() > QUEUE_BYTES;
    if is_full { Err(CallError::QueueFull { queued }) } else { Ok(()) }
}

/// Lines of callers.
impl RpcConnection {
    /// Sends or queues a line of a caller.
    pub(crate) fn submit(&self, from: CallerLine) -> Result<(), SubmitError> {
        let mut state = self.lock();
        if state.has_ended {
            return Err(SubmitError::Ended(from));
        }
        check_room(&state.queue, &from.line).map_err(SubmitError::Failed)?;
        let CallerLine { line, completion } = from;
        let tag = line.tag;
        state.send_or_queue(line).map_err(|error| SubmitError::Failed(CallError::Io(error)))?;
        // Under the same lock, so that the call exists before its answer is processed, and only if it was sent.
        state.expect_answer(tag, completion);
        Ok(())
    }

    /// Takes over lines that have waited for this connection.
    pub(crate) fn adopt(&self, waiting: impl Iterator<Item = CallerLine>) {
        let mut state = self.lock();
        for from in waiting {
            // A call that was cancelled meanwhile is not sent.
            if !from.completion.as_ref().is_some_and(Completion::is_complete) {
                state.expect_answer(from.line.tag, from.completion);
                state.queue.push(from.line);
            }
        }
        state.flush_or_watch();
    }

    /// The connection takes no more lines of callers, and sends those that it has.
    pub(crate) fn end_submission(&self) {
        self.lock().has_ended = true;
    }

    /// The connection takes no more lines of callers. Returns those of which nothing was sent, in their order.
    pub(crate) fn end_sending(&self) -> Vec<CallerLine> {
        let mut state = self.lock();
        state.has_ended = true;
        let lines = state.queue.take_unsent(|tag| matches!(tag, LineTag::Caller { .. }));
        let with_completion = |line: QueuedLine<LineTag>| match line.tag {
            // A call without a completion was abandoned.
            LineTag::Caller { call: Some(id), .. } => {
                let completion = Some(state.endpoint.calls.withdraw(id)?);
                Some(CallerLine { line, completion })
            }
            LineTag::Caller { call: None, .. } | LineTag::Connection => Some(CallerLine { line, completion: None }),
        };
        lines.into_iter().filter_map(with_completion).collect()
    }

    /// The caller of a call that was sent no longer waits.
    pub(crate) fn abandon_call(&self, abandoned: u64) {
        let mut state = self.lock();
        let is_its = |tag: &LineTag| matches!(tag, LineTag::Caller { call: Some(id), .. } if *id == abandoned);
        let ConnectionState { endpoint, queue, .. } = &mut *state;
        if endpoint.calls.is_waiting(abandoned) && queue.remove(is_its).is_some() {
            endpoint.calls.withdraw(abandoned);
            return;
        }
        let cancellation = endpoint.abandon(abandoned);
        drop(state);
        // The worker is notified, so that it can stop processing the call. If that cannot be sent, its response is ignored.
        drop(cancellation.map(|line| self.send_line(line)));
    }
}

/// Lines of the supervisor.
impl RpcConnection {
    /// Asks the worker to cancel a call, whose answer is awaited all the same. If that cannot be sent, the worker does not read.
    pub(crate) fn request_cancellation(&self, id: u64) {
        let cancellation = self.lock().endpoint.cancellation_of_open(id);
        drop(cancellation.map(|line| self.send_line(line)));
    }

    /// Sends a notification without parameters. Returns false if the worker is not connected or the notification cannot be sent.
    pub(crate) fn notify_without_params(&self, method: &str) -> bool {
        self.is_open()
            && self.has_calls()
            && encode::notification(method, &()).is_ok_and(|line| self.send_line(line).is_ok())
    }

    /// Sends or queues a call of the protocol's life cycle. It is not cancelled: MCP forbids that for `initialize`, and the Language
    /// Server Protocol permits no notification before the answer to `initialize`, and only `exit` after `shutdown`.
    pub(crate) fn send_own_call(&self, id: u64, line: Vec<u8>, completion: Completion) -> Result<(), CallError> {
        let line = self.reframe(line)?;
        let mut state = self.lock();
        state.send_own(line)?;
        state.wait_for(id, completion, WhenAbandoned::Ignore);
        Ok(())
    }

    /// Queues the answer to the hello. The connection is opened next.
    pub(crate) fn queue_first(&self, line: Vec<u8>) {
        self.lock().queue.push(own(line));
    }

    /// Closes the worker's standard input when everything queued is sent. False if it was closed before, or the control connection is not on
    /// standard input.
    pub(crate) fn close_input(&self) -> bool {
        let mut state = self.lock();
        let is_split = matches!(&state.socket, SocketState::Open(socket) if socket.is_split());
        if !is_split || state.sending != SendState::Open {
            return false;
        }
        state.sending = SendState::Closing;
        state.flush_or_watch();
        true
    }

    /// The worker reads no more, and its open calls will not be answered.
    pub(crate) fn fail_calls(&self) {
        let mut state = self.lock();
        state.sending = SendState::Closed;
        state.queue = LineQueue::default();
        let waiting = state.endpoint.calls.drain().collect::<Vec<_>>();
        drop(state);
        for caller in waiting {
            caller.complete(Err(CallError::Io(input_closed())));
        }
    }

    fn reframe(&self, line: Vec<u8>) -> Result<QueuedLine<LineTag>, CallError> {
        reframe(self.protocol.framing, line).map(own).map_err(CallError::Encode)
    }
}

fn own(bytes: Vec<u8>) -> QueuedLine<LineTag> {
    QueuedLine { bytes, tag: LineTag::Connection }
}

fn input_closed() -> io::Error {
    io::Error::new(ErrorKind::BrokenPipe, "standard input of the worker is closed")
}

impl RpcSender for RpcConnection {
    fn send_line(&self, line: Vec<u8>) -> Result<(), CallError> {
        let line = self.reframe(line)?;
        self.lock().send_own(line)
    }

    fn send_reply(&self, line: Vec<u8>) -> Result<(), CallError> {
        let line = self.reframe(line)?;
        let mut state = self.lock();
        let queued = state.queue.limited_len();
        if queued == 0 || queued + line.bytes.len() <= QUEUE_BYTES {
            return state.send_own(line);
        }
        if queued + line.bytes.len() <= QUEUE_BYTES + ANSWER_BYTES {
            state.queue.push(line);
            return Ok(());
        }
        // The worker sends requests and reads nothing. The loop reads the end of the connection, and so does the worker, whose calls end
        // with it.
        if let SocketState::Open(socket) = &state.socket {
            socket.shutdown_read();
            socket.shutdown_write();
        }
        Err(CallError::QueueFull { queued })
    }

    fn request_answered(&self, id: &str) {
        self.lock().endpoint.requests.end(id);
    }
}

impl ConnectionState {
    /// Sends or queues a line for this incarnation only.
    fn send_own(&mut self, line: QueuedLine<LineTag>) -> Result<(), CallError> {
        if let SocketState::Closed(end) = &self.socket {
            return Err(CallError::from(end));
        }
        check_room(&self.queue, &line)?;
        self.send_or_queue(line).map_err(CallError::Io)
    }

    /// Registers the call of a line.
    fn expect_answer(&mut self, tag: LineTag, completion: Option<Completion>) {
        if let (LineTag::Caller { call: Some(id), .. }, Some(completion)) = (tag, completion) {
            self.wait_for(id, completion, WhenAbandoned::Cancel);
        }
    }

    /// Registers a call that was sent.
    pub(crate) fn expect(&mut self, id: u64) -> Completion {
        let completion = Completion::default();
        match &self.socket {
            SocketState::Closed(end) => drop(completion.complete(Err(CallError::from(end)))),
            SocketState::Awaited | SocketState::Open(_) => {
                self.wait_for(id, completion.clone(), WhenAbandoned::Cancel);
            }
        }
        completion
    }

    /// The loop reads the answer.
    fn wait_for(&mut self, id: u64, completion: Completion, when_abandoned: WhenAbandoned) {
        self.endpoint.calls.wait(id, completion, when_abandoned);
        self.burst.reset();
        self.watch();
        self.check_if_held_up();
    }

    /// On an error nothing of the line was sent.
    fn send_or_queue(&mut self, line: QueuedLine<LineTag>) -> io::Result<()> {
        match self.sending {
            SendState::Closing | SendState::Closed => return Err(input_closed()),
            SendState::Open if self.queue.is_empty() => return self.send(line),
            // The loop is already waiting to send what is queued, or it stays until it is taken.
            SendState::Open | SendState::PeerGone => self.queue.push(line),
        }
        Ok(())
    }

    /// Sends a line while nothing is queued. On an error nothing of it was sent.
    pub(crate) fn send(&mut self, line: QueuedLine<LineTag>) -> io::Result<()> {
        let length = line.bytes.len();
        self.queue.push(line);
        match self.flush() {
            Ok(all) => self.wants_writes = !all,
            Err(error) if self.queue.len() == length => {
                self.queue = LineQueue::default();
                return Err(error);
            }
            // A line that was sent in part has to be completed.
            Err(_) => self.wants_writes = true,
        }
        self.watch();
        Ok(())
    }

    /// Sends as much as the socket takes. Returns true if nothing more can be sent now.
    pub(crate) fn flush(&mut self) -> io::Result<bool> {
        let SocketState::Open(socket) = &self.socket else { return Ok(true) };
        let socket = Arc::clone(socket);
        let mut share = FLUSH_BYTES;
        while !self.queue.is_empty() && self.sending != SendState::PeerGone {
            if share == 0 {
                return Ok(false);
            }
            let mut parts = [IoSlice::new(&[]); LINES_PER_SEND];
            let count = parts.iter_mut().zip(self.queue.parts()).map(|(slot, part)| *slot = IoSlice::new(part)).count();
            match socket.send(parts.get(..count).unwrap_or_default()) {
                Ok(bytes) => {
                    self.queue.advance(bytes);
                    share = share.saturating_sub(bytes);
                }
                Err(error) if is_shortage(&error) => {
                    self.back_off();
                    return Ok(false);
                }
                Err(error) if is_transient(&error) => return Ok(false),
                // The peer has closed the connection. The loop reads the rest, and then the end.
                Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                    self.sending = SendState::PeerGone;
                    if socket.is_split() {
                        // No end would follow if the worker only closes its standard input.
                        self.events.report(ConnectionEvent::InputClosed(self.worker));
                    }
                }
                Err(error) => return Err(error),
            }
        }
        if self.sending == SendState::Closing {
            self.sending = SendState::Closed;
            socket.shutdown_write();
        }
        Ok(true)
    }
}
