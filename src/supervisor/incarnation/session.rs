//! The control connection of one living incarnation, as the loop sees it: lines in, events and answers out.

use crate::{
    policy::backpressure::{EVENT_BYTES, WindowState},
    supervisor::{
        control::{
            connection::{RpcConnection, RpcSocket},
            reader::FrameReader,
        },
        events::{
            event::{Event, EventKind, InvalidFrame},
            sink::EventSink,
        },
        flow_control::FlowControl,
    },
    sys::{is_shortage, is_transient},
    wire::{
        credit::{Permit, ReturnCredit},
        framing::error::FrameError,
        jsonrpc::{
            endpoint::Inbound,
            message::RpcMessage,
            protocol::{self, EXTEND},
            reader::{RpcInput, RpcLine},
            request::{Notification, Request, RpcSender},
        },
    },
};
use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    time::Duration,
};

/// How many bytes of a worker's requests and notifications may be in the channel, or unanswered. Beyond it the worker's control
/// connection is not read, and that is the one case in which answers wait for a consumer.
const CONTROL_WINDOW: usize = 1 << 20;
/// How many of them may be there when its supervisor's window is used up: what others say must not keep back answers to whoever
/// could make room for them.
const CONTROL_SHARE: usize = 64 << 10;

#[derive(Debug)]
pub(crate) struct ControlSession {
    socket: Arc<RpcSocket>,
    connection: Arc<RpcConnection>,
    flow: Arc<FlowControl>,
    last_sent: u64,
    /// Held back, while too much is in the channel.
    held: Option<Box<FrameReader>>,
    /// It has asked for so much more time.
    pub(crate) extension: Option<Duration>,
}

impl AsFd for ControlSession {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl ControlSession {
    pub(crate) fn new(socket: Arc<RpcSocket>, connection: &Arc<RpcConnection>, window: &Arc<FlowControl>) -> Self {
        let flow = Arc::new(FlowControl::of_worker(CONTROL_WINDOW, window).with_share(CONTROL_SHARE));
        Self { socket, connection: Arc::clone(connection), flow, last_sent: 0, held: None, extension: None }
    }

    /// Reads no more. False if a caller reads, who will not read on when something else than its answer comes.
    pub(crate) fn pause(&mut self) -> bool {
        self.held = self.connection.pause();
        self.is_paused()
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.held.is_some()
    }

    /// Reads on.
    pub(crate) fn resume(&mut self) {
        if let Some(frame_reader) = self.held.take() {
            self.connection.resume(frame_reader);
        }
    }

    pub(crate) fn shutdown_write(&self) {
        self.connection.shutdown_write();
    }

    /// Something of a paused connection was reported.
    pub(crate) fn on_paused_event(&self) {
        self.connection.on_paused_event();
    }

    /// Sends what waits for the worker to read.
    pub(crate) fn flush(&self) {
        self.connection.flush();
    }

    /// A shortage of the kernel's may be over.
    pub(crate) fn retry(&self) {
        self.connection.retry();
    }

    /// Sends callers back that read.
    pub(crate) fn revoke_read_lease(&self) {
        self.connection.revoke_read_lease();
    }

    pub(crate) fn levels(&self, sink: &EventSink) -> WindowState {
        sink.levels(&self.flow, self.last_sent)
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
        // One that is paused has the end of its worker read all the same.
        let Some(mut frame_reader) = self.held.take().or_else(|| self.connection.take_reader()) else { return false };
        for heard in std::mem::take(&mut frame_reader.pending) {
            self.hear(heard, RpcLine::NONE, &about, sink);
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
                frame_reader.feed(bytes, |heard, line, _| self.hear(heard, line, &about, sink));
                bytes.is_empty()
            }
        };
        self.connection.return_reader(frame_reader);
        is_over
    }

    /// What has come, and its line where that was read just now.
    fn hear(&mut self, input: RpcInput, line: RpcLine<'_>, about: &impl Fn(EventKind) -> Event, sink: &mut EventSink) {
        let kind = match input {
            RpcInput::Message(message, length) => self.message(message, length, line),
            RpcInput::Error(error) => {
                // Where there is no room for the reply, this is the end of the connection.
                self.connection.receive_error(&error);
                Some(self.fault(error))
            }
        };
        if let Some(kind) = kind {
            self.report(about(kind), sink);
        }
    }

    fn report(&mut self, event: Event, sink: &mut EventSink) {
        sink.send(event);
        self.last_sent = sink.sent();
    }

    /// One line: answered here, or to be told.
    fn message(&mut self, message: RpcMessage, length: usize, line: RpcLine<'_>) -> Option<EventKind> {
        match self.connection.receive(message)? {
            Inbound::Request { id, method, params, cancelled } => {
                let sender = Arc::clone(&self.connection) as Arc<dyn RpcSender>;
                let permit = Some(self.permit(length));
                Some(EventKind::Request(Box::new(Request::new(id, (method, params), sender, cancelled, permit))))
            }
            Inbound::Notification { method, params } if method == EXTEND => {
                self.extension = protocol::extension(params.as_deref());
                None
            }
            Inbound::Notification { method, params } => {
                let told = Notification { method, params, _permit: Some(self.permit(length)) };
                Some(EventKind::Notification(Box::new(told)))
            }
            Inbound::UnexpectedAnswer => Some(self.fault(line.not_rpc())),
        }
    }

    fn fault(&self, fault: FrameError) -> EventKind {
        let permit = self.permit(fault.excerpt.len() + size_of::<InvalidFrame>());
        EventKind::InvalidFrame(Box::new(InvalidFrame { fault, _permit: permit }))
    }

    fn permit(&self, bytes: usize) -> Permit {
        let bytes = bytes + size_of::<Request>() + EVENT_BYTES;
        self.flow.take(bytes);
        Permit::new(bytes, Arc::clone(&self.flow) as Arc<dyn ReturnCredit>)
    }
}
