//! Connections over sockets that the worker has inherited: its standard streams, or Node's channel.

use crate::{
    launch::descriptors::ParentSockets,
    policy::lifecycle::StreamId,
    supervisor::{
        control::{reader::FrameReader, rpc_socket::RpcSocket},
        events::event::DisconnectReason,
        incarnation::{
            Incarnation,
            context::IncarnationContext,
            control::EXIT_GRACE_TIME,
            output::{OutputReader, OutputSource},
        },
        reactor::{timers::Timer, token::Token},
    },
};
use std::sync::Arc;

impl Incarnation {
    /// Opens the connection over sockets that the worker has inherited.
    pub(crate) fn connect_sockets(&mut self, sockets: ParentSockets, cx: &mut IncarnationContext<'_>) {
        let Some(connection) = self.process.connection().map(Arc::clone) else { return };
        let tokens = [Token::Control(self.key), Token::ControlInput(self.key)].map(Token::as_u64);
        let socket = match RpcSocket::split(sockets, &cx.reactor.poller, tokens) {
            Ok(socket) => Arc::new(socket),
            // The kernel refused an option of the socket: the worker reads the end of its standard input.
            Err(_) => return self.disconnect(DisconnectReason::Closed, cx),
        };
        if self.spec.control.is_of_messages() {
            // What it sends are messages.
            connection.open_for_sending(&socket);
            self.shared.route_calls(|calls| calls.open(&connection));
            self.add_channel(socket, cx);
            return;
        }
        let frame_reader = FrameReader::new(connection.protocol.framing, self.spec.max_message_size);
        self.begin_session(&socket, &connection, frame_reader, cx);
    }

    /// Reads messages from a channel.
    fn add_channel(&mut self, socket: Arc<RpcSocket>, cx: &mut IncarnationContext<'_>) {
        let reader = OutputReader::new(StreamId::Messages, OutputSource::Channel(socket), &self.spec);
        if let Some(slot) = self.output.readers.get_mut(StreamId::Messages.index()) {
            *slot = Some(reader);
        }
        self.lifecycle.stream_opened(StreamId::Messages);
        self.register(Token::Stream(self.key, StreamId::Messages), cx);
    }

    /// If it was the worker's channel that has ended, nothing can be sent to the worker either, which is reported unless it exits.
    pub(crate) fn channel_ended(&mut self, stream: StreamId, cx: &mut IncarnationContext<'_>) {
        if stream == StreamId::Messages && self.spec.control.is_of_messages() {
            cx.reactor.set_timer_after(EXIT_GRACE_TIME, Timer::DisconnectGrace(self.key));
        }
    }

    /// Standard input takes queued data.
    pub(crate) fn flush_control(&self) {
        if let Some(connection) = self.process.connection() {
            connection.flush();
        }
    }

    /// The worker has closed its standard input, and may have exited.
    pub(crate) fn input_closed(&mut self, cx: &mut IncarnationContext<'_>) {
        cx.reactor.set_timer_after(EXIT_GRACE_TIME, Timer::DisconnectGrace(self.key));
    }

    /// The exit of the worker has not followed the end of the connection, or of the worker's standard input.
    pub(crate) fn disconnect_grace_over(&mut self, cx: &mut IncarnationContext<'_>) {
        if self.session.is_none() {
            return self.disconnect(DisconnectReason::Closed, cx);
        }
        // It has closed only its standard input, and may still write.
        if let Some(connection) = self.process.connection().filter(|_| self.process.child().is_running()) {
            connection.fail_calls();
            self.check_handshake(cx);
        }
    }
}
