//! The control connection of an incarnation: connecting, reading, pausing and closing.

use crate::{
    policy::{
        call_burst,
        readiness::{ReadinessInput, ReadinessSource},
        receipts,
        watchdog::LivenessSource,
    },
    supervisor::{
        control::{
            call_router::CallRouter,
            connection::RpcConnection,
            reader::FrameReader,
            rpc_socket::RpcSocket,
            server::{AuthenticatedClient, KeyOwner},
        },
        events::event::{DisconnectReason, EventKind},
        flow_control::FlowControl,
        incarnation::{
            Incarnation,
            context::{FIRST_CHECK, IncarnationContext},
            session::ControlSession,
        },
        reactor::{timers::Timer, token::Token},
    },
    sys::{
        identity, poll,
        proc::{list, process},
    },
    wire::{jsonrpc::hello, message::Message},
};
use std::{iter, mem, os::fd::AsFd, sync::Arc, time::Duration};

/// The time in which the exit of the worker is expected to follow the end of a connection or pipe; pending calls then fail with the exit.
/// The kernel closes the files of an exiting process before it reports the exit, and a loaded machine can delay the report.
pub(crate) const EXIT_GRACE_TIME: Duration = Duration::from_secs(1);
/// The time after which a control connection is retried when the kernel was short of memory.
pub(crate) const CONNECTION_RETRY_TIME: Duration = Duration::from_millis(20);
/// The most reads from the control connection of an exited worker.
const FINAL_READS: usize = 64;

impl Incarnation {
    /// Expects a connection that authenticates with `key`, after a worker with a control pipe was started.
    pub(crate) fn expect_connection(
        &mut self,
        key: String,
        control_connect_timeout: Duration,
        cx: &mut IncarnationContext<'_>,
    ) {
        cx.reactor.set_timer_after(control_connect_timeout, Timer::ControlConnectTimeout(self.key));
        let user = self.spec.peer_user;
        let early =
            cx.server.as_mut().and_then(|control| control.expect_key(key, KeyOwner::Incarnation(self.key), user));
        if let Some(known) = early {
            drop(cx.reactor.poller.remove(&known.socket));
            self.connect(known, cx);
        }
    }

    /// Opens the control connection, which has authenticated with the key of this incarnation.
    pub(crate) fn connect(&mut self, known: AuthenticatedClient, cx: &mut IncarnationContext<'_>) {
        let AuthenticatedClient { owner: _, process: _, socket, received, hello_bytes, id } = known;
        let Some(connection) = self.process.connection().map(Arc::clone) else { return };
        cx.reactor.timers.cancel(Timer::ControlConnectTimeout(self.key));
        let token = Token::Control(self.key).as_u64();
        let socket = Arc::new(RpcSocket::duplex(socket, &cx.reactor.poller, token));
        let frame_reader = FrameReader::starting_with(self.spec.max_message_size, &received, hello_bytes);
        let has_messages = self.spec.has_messages_over_control();
        if let Some(answer) = id.and_then(|id| hello::accepted(&id, self.spec.max_message_size, has_messages)) {
            connection.queue_first(answer);
        }
        self.begin_session(&socket, &connection, frame_reader, cx);
        cx.sink.send(self.event(EventKind::ControlConnected));
        self.handle_readiness(ReadinessInput::Observed(ReadinessSource::Control), cx);
        if !received.is_empty() {
            self.read_control(cx);
        }
    }

    pub(crate) fn begin_session(
        &mut self,
        socket: &Arc<RpcSocket>,
        connection: &Arc<RpcConnection>,
        frame_reader: FrameReader,
        cx: &mut IncarnationContext<'_>,
    ) {
        let window = FlowControl::of_worker(self.spec.control_window, &cx.reading.window);
        let mut session = ControlSession::new(Arc::clone(socket), connection, (window, &cx.sink.handlers.waiting));
        session.messages = self.spec.has_messages_over_control().then(Vec::new);
        self.session = Some(session);
        connection.open(socket, frame_reader);
        self.register(Token::Control(self.key), cx);
        self.control_opened(cx);
    }

    /// Handles readiness of the control connection: sends queued data and reads once.
    pub(crate) fn read_control(&mut self, cx: &mut IncarnationContext<'_>) {
        let Some(mut session) = self.session.take() else { return };
        if session.is_paused() {
            session.on_paused_event();
            self.session = Some(session);
            return;
        }
        session.flush();
        if session.levels(cx.sink).must_pause() && session.pause() {
            self.session = Some(session);
            cx.reading.paused_control.push(self.key);
            cx.reading.next_check = FIRST_CHECK;
            self.check_receipts(cx);
            return;
        }
        let ended = session.read(&mut cx.reading.scratch, |kind| self.event(kind), cx.sink);
        self.record_control_activity(cx.reactor.clock.now());
        let extension = session.extension.take();
        let messages = session.messages.as_mut().map(mem::take).unwrap_or_default();
        if ended {
            self.shared.route_calls(CallRouter::suspend);
            session.on_end();
            // The connection is closed when the timer fires: until then its calls wait for the exit.
            cx.reactor.set_timer_after(EXIT_GRACE_TIME, Timer::DisconnectGrace(self.key));
        } else {
            self.session = Some(session);
            self.check_receipts(cx);
        }
        self.search_messages(messages, cx);
        self.check_handshake(cx);
        if let Some(time) = extension {
            self.extend(time, cx);
        }
    }

    /// Records messages that came over control, and searches them for the one that makes the worker ready.
    fn search_messages(&mut self, messages: Vec<Message>, cx: &mut IncarnationContext<'_>) {
        if messages.is_empty() {
            return;
        }
        self.output.has_spoken = true;
        self.note_messages(|| cx.reactor.clock.now());
        if self.health.readiness.is_some() {
            let events: Vec<_> = messages.into_iter().map(|message| self.event(EventKind::Message(message))).collect();
            self.search(&events);
            self.check_output_readiness(cx);
        }
    }

    /// Retries the control connection after a shortage of memory.
    pub(crate) fn retry_control(&mut self, cx: &mut IncarnationContext<'_>) {
        let Some(session) = &self.session else { return };
        session.retry();
        self.read_control(cx);
    }

    /// Resumes reading if the consumer has received enough. False if not.
    pub(crate) fn try_resume_control(&mut self, cx: &mut IncarnationContext<'_>) -> bool {
        let Some(session) = self.session.as_mut() else { return true };
        session.wait_for_room();
        if !session.levels(cx.sink).may_resume() {
            return false;
        }
        session.resume();
        self.reset_watchdog(LivenessSource::Ping, cx.reactor.clock.now());
        self.register(Token::Control(self.key), cx);
        // The kernel does not report again what a caller has already read.
        self.read_control(cx);
        true
    }

    /// Checks whether events are received that answers of the worker wait for.
    pub(crate) fn check_receipts(&mut self, cx: &mut IncarnationContext<'_>) {
        let Some(session) = &mut self.session else { return };
        let paused_output = self.output.paused.then(|| self.shared.window.flow.used());
        if session.check_receipts(paused_output, cx.sink, cx.reactor.clock.now()) {
            cx.reactor.set_timer_after(receipts::CHECK_INTERVAL, Timer::Receipts(self.key));
        }
    }

    /// Handles input for the event loop that a caller has read.
    pub(crate) fn control_readable(&mut self, cx: &mut IncarnationContext<'_>) {
        if self.session.as_ref().is_some_and(|session| !session.is_paused()) {
            self.read_control(cx);
        }
    }

    /// Checks again later if callers make consecutive calls, and so read the connection themselves.
    pub(crate) fn check_call_burst(&mut self, cx: &mut IncarnationContext<'_>) {
        if self.process.connection().is_some_and(|connection| connection.is_call_burst()) {
            cx.reactor.set_timer_after(call_burst::CHECK_INTERVAL, Timer::CallBurst(self.key));
        }
    }

    /// Reports that the worker has not connected in time.
    pub(crate) fn control_timed_out(&mut self, cx: &mut IncarnationContext<'_>) {
        if !self.awaits_control() {
            return;
        }
        let why = self.other_user().map_or(DisconnectReason::ConnectTimeout, |uid| DisconnectReason::OtherUser { uid });
        self.forget_control(cx);
        self.disconnect(why, cx);
    }

    /// Closes the control connection and reports that, unless the worker has exited.
    pub(crate) fn disconnect(&mut self, why: DisconnectReason, cx: &mut IncarnationContext<'_>) {
        if let Some(session) = self.session.take() {
            session.deregister();
        }
        // The exit is reported next, and pending calls fail with it.
        if self.process.child().with_pidfd(|pidfd| poll::is_readable(pidfd.as_fd())).unwrap_or(true) {
            return;
        }
        self.shared.route_calls(CallRouter::disconnected);
        if self.process.disconnect() {
            cx.sink.send(self.event(EventKind::ControlDisconnected(why)));
            self.handshake_disconnected(&why.to_string(), cx);
        }
    }

    /// Reads the rest of the control connection after the exit, and stops to expect a connection.
    pub(crate) fn drain_control(&mut self, cx: &mut IncarnationContext<'_>) {
        if self.awaits_control() {
            // The process is not reaped yet, so its user is still known.
            let why =
                self.other_user().map_or(DisconnectReason::ExitedFirst, |uid| DisconnectReason::OtherUser { uid });
            cx.sink.send(self.event(EventKind::ControlDisconnected(why)));
        }
        if let Some(mut session) = self.session.take() {
            session.deregister();
            session.revoke_read_lease();
            for _ in 0..FINAL_READS {
                // The first read is unconditional: a caller may have read input that is not reported yet.
                let is_over = session.read(&mut cx.reading.scratch, |kind| self.event(kind), cx.sink);
                if is_over || !poll::is_readable(session.as_fd()).unwrap_or(false) {
                    break;
                }
            }
        }
        self.check_handshake(cx);
        self.shared.route_calls(CallRouter::suspend);
        self.forget_control(cx);
    }

    fn forget_control(&mut self, cx: &mut IncarnationContext<'_>) {
        if let Some(control) = &mut cx.server {
            control.forget(KeyOwner::Incarnation(self.key));
        }
    }

    /// Returns the user of the process, or of a child of it, if that user may not connect to the control server.
    fn other_user(&self) -> Option<u32> {
        let may_connect = [Some(identity::effective_uid()), self.spec.peer_user];
        let pid = self.process.child().pid();
        let users = iter::once(pid).chain(list::children_of_main_thread(pid)).filter_map(process::fs_uid);
        users.into_iter().find(|uid| !may_connect.contains(&Some(*uid)))
    }

    pub(crate) fn awaits_control(&self) -> bool {
        self.session.is_none() && self.process.awaits_control()
    }
}
