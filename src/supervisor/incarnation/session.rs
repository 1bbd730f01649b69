//! The control session of one incarnation on the event loop: reads lines, sends events and answers.

use crate::{
    policy::{
        backpressure::{EVENT_BYTES, WindowState},
        receipts::{Obstacle, ReceiptWatch},
    },
    supervisor::{
        control::{connection::RpcConnection, reader::FrameReader, rpc_socket::RpcSocket, unreceived::Unreceived},
        events::{
            event::{Event, EventKind, InvalidFrame},
            sink::EventSink,
        },
        flow_control::FlowControl,
        worker::handlers::WaitingCount,
    },
    sys::{is_shortage, is_transient},
    wire::{
        credit::{Permit, ReturnCredit},
        framing::error::FrameError,
        jsonrpc::{
            dialect::Dialect,
            endpoint::Inbound,
            message::RpcMessage,
            protocol::{self, EXTEND, MESSAGE},
            reader::{RpcInput, RpcLine},
            request::{Notification, Request, RpcSender},
        },
        message::Message,
    },
};
use serde_json::value::RawValue;
use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    time::{Duration, Instant},
};

/// How many bytes of its window a worker may use when the window of the supervisor is used up: the output of other workers must not delay
/// answers to a caller that could make room.
const CONTROL_SHARE: usize = 64 << 10;

#[derive(Debug)]
pub(crate) struct ControlSession {
    socket: Arc<RpcSocket>,
    connection: Arc<RpcConnection>,
    flow: Arc<FlowControl>,
    /// The number of its last event.
    last_sent: u64,
    /// What waits for handlers.
    waiting: Arc<WaitingCount>,
    /// How many requests and notifications were passed to handlers.
    passed: u64,
    /// The number of the last request that was sent as an event.
    last_request: u64,
    receipts: ReceiptWatch,
    /// The reader, while reading is paused because of the window.
    paused_reader: Option<Box<FrameReader>>,
    /// The extension of its deadlines that the worker has requested.
    pub(crate) extension: Option<Duration>,
    /// Messages of the last reads, which were reported; `None` if messages do not come over control.
    pub(crate) messages: Option<Vec<Message>>,
}

impl AsFd for ControlSession {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl ControlSession {
    pub(crate) fn new(
        socket: Arc<RpcSocket>,
        connection: &Arc<RpcConnection>,
        (flow, waiting): (FlowControl, &Arc<WaitingCount>),
    ) -> Self {
        let flow = Arc::new(flow.with_share(CONTROL_SHARE));
        Self {
            socket,
            connection: Arc::clone(connection),
            flow,
            last_sent: 0,
            waiting: Arc::new(WaitingCount::of_worker(waiting)),
            passed: 0,
            last_request: 0,
            receipts: ReceiptWatch::default(),
            paused_reader: None,
            extension: None,
            messages: None,
        }
    }

    /// Pauses reading. False if a caller reads; it stops when it receives anything else than its answer.
    pub(crate) fn pause(&mut self) -> bool {
        self.paused_reader = self.connection.pause();
        self.is_paused()
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused_reader.is_some()
    }

    /// Resumes reading.
    pub(crate) fn resume(&mut self) {
        if let Some(frame_reader) = self.paused_reader.take() {
            self.connection.resume(frame_reader);
        }
    }

    /// The worker has closed its side of the connection.
    pub(crate) fn on_end(&self) {
        self.connection.on_end();
    }

    /// Nothing more is reported of the socket that is read.
    pub(crate) fn deregister(&self) {
        self.connection.deregister_reader();
    }

    /// Handles a kernel event of a paused connection.
    pub(crate) fn on_paused_event(&self) {
        self.connection.on_paused_event();
    }

    /// Sends queued data.
    pub(crate) fn flush(&self) {
        self.connection.flush();
    }

    /// Retries after a shortage of memory.
    pub(crate) fn retry(&self) {
        self.connection.retry();
    }

    /// Stops callers that read the connection themselves.
    pub(crate) fn revoke_read_lease(&self) {
        self.connection.revoke_read_lease();
    }

    pub(crate) fn levels(&self, sink: &EventSink) -> WindowState {
        let state = sink.levels(&self.flow, self.last_sent);
        WindowState {
            unreceived: state.unreceived || self.waiting.get() > 0,
            any_unreceived: state.any_unreceived || sink.handlers.waiting.get() > 0,
            ..state
        }
    }

    pub(crate) fn wait_for_room(&self) {
        self.flow.wait_for_room();
    }

    /// Reads once. True at the end of the connection.
    pub(crate) fn read(
        &mut self,
        scratch: &mut [u8],
        about: impl Fn(EventKind) -> Event,
        sink: &mut EventSink,
    ) -> bool {
        // A paused connection is also read, after the exit of the worker.
        let Some(mut frame_reader) = self.paused_reader.take().or_else(|| self.connection.take_reader()) else {
            return false;
        };
        for input in std::mem::take(&mut frame_reader.pending) {
            self.handle_input(input, RpcLine::NONE, &about, sink);
        }
        let read = self.socket.stream.receive(scratch);
        let is_over = match read {
            Err(error) if is_transient(&error) => {
                if is_shortage(&error) {
                    self.connection.back_off();
                }
                false
            }
            read => {
                let bytes = read.unwrap_or(0);
                let bytes = scratch.get(..bytes).unwrap_or_default();
                if !bytes.is_empty() {
                    self.connection.record_activity();
                }
                frame_reader.feed(bytes, |input, line, _| self.handle_input(input, line, &about, sink));
                bytes.is_empty()
            }
        };
        self.connection.return_reader(frame_reader);
        is_over
    }

    /// Handles one input, with its line if it was read just now.
    fn handle_input(
        &mut self,
        input: RpcInput,
        line: RpcLine<'_>,
        about: &impl Fn(EventKind) -> Event,
        sink: &mut EventSink,
    ) {
        let kind = match input {
            RpcInput::Message(message, length) => self.message(message, length, line),
            RpcInput::Error(error) => {
                // Closes the connection if there is no room for the reply.
                self.connection.receive_error(&error);
                Some(self.invalid_frame(error))
            }
        };
        if let Some(kind) = kind {
            self.report(about(kind), sink);
        }
    }

    fn report(&mut self, event: Event, sink: &mut EventSink) {
        let is_request = matches!(event.kind, EventKind::Request(_));
        if !sink.deliver(event, &self.waiting) {
            self.passed += 1;
            return;
        }
        self.last_sent = sink.sent();
        if is_request {
            self.last_request = self.last_sent;
        }
    }

    /// Checks whether events are received that answers wait for, and ends calls that wait in vain. Returns whether to check again.
    /// `paused_output` are the bytes of its output that are not received, while no more of it is read.
    pub(crate) fn check_receipts(&mut self, paused_output: Option<usize>, sink: &EventSink, now: Instant) -> bool {
        let obstacle = self.obstacle(sink).or(paused_output.map(|_| Obstacle::Program));
        if obstacle.is_none() && !self.receipts.is_silent() {
            return false;
        }
        let waiting = self.waiting.get();
        let handled = self.passed.saturating_sub(waiting as u64);
        let outlook = self.receipts.check(obstacle, sink.received() + handled, now);
        let bytes = self.flow.used() + paused_output.unwrap_or_default();
        self.connection.apply_outlook(outlook, Unreceived { events: sink.waiting() + waiting, bytes })
    }

    fn obstacle(&self, sink: &EventSink) -> Option<Obstacle> {
        let received = sink.received();
        match (self.is_paused(), self.last_sent > received) {
            (true, true) => Some(Obstacle::FullWindow),
            (false, _) if self.last_request <= received && self.waiting.get() == 0 => None,
            (true | false, _) => Some(Obstacle::Program),
        }
    }

    /// Handles one message: answers it, or returns the event for it.
    fn message(&mut self, message: RpcMessage, length: usize, line: RpcLine<'_>) -> Option<EventKind> {
        match self.connection.receive(message)? {
            Inbound::Request { id, method, params, cancelled } => {
                let sender = Arc::clone(&self.connection) as Arc<dyn RpcSender>;
                let permit = Some(self.permit(length));
                Some(EventKind::Request(Box::new(Request::new(id, (method, params), sender, cancelled, permit))))
            }
            Inbound::Notification { method, params }
                if method == EXTEND && self.connection.protocol.dialect == Dialect::Pipewright =>
            {
                self.extension = protocol::extension(params.as_deref());
                None
            }
            Inbound::Notification { method, params } if method == MESSAGE && self.messages.is_some() => {
                Some(self.worker_message(method, params, length))
            }
            Inbound::Notification { method, params } => {
                let notification = Notification { method, params, _permit: Some(self.permit(length)) };
                Some(EventKind::Notification(Box::new(notification)))
            }
            Inbound::UnexpectedAnswer => Some(self.invalid_frame(line.unexpected_answer())),
        }
    }

    /// A message that came as a notification; with other parameters it is a notification.
    fn worker_message(&mut self, method: String, params: Option<Box<RawValue>>, length: usize) -> EventKind {
        let permit = self.permit(length);
        let Some(text) = protocol::message(params.as_deref()) else {
            return EventKind::Notification(Box::new(Notification { method, params, _permit: Some(permit) }));
        };
        let message = Message::single(text.as_bytes().to_vec(), permit);
        if let Some(messages) = &mut self.messages {
            messages.push(message.clone());
        }
        EventKind::Message(message)
    }

    fn invalid_frame(&self, fault: FrameError) -> EventKind {
        let permit = self.permit(fault.excerpt.len() + size_of::<InvalidFrame>());
        EventKind::InvalidFrame(Box::new(InvalidFrame { fault, _permit: permit }))
    }

    fn permit(&self, bytes: usize) -> Permit {
        let bytes = bytes + size_of::<Request>() + EVENT_BYTES;
        self.flow.take(bytes);
        Permit::new(bytes, Arc::clone(&self.flow) as Arc<dyn ReturnCredit>)
    }
}
