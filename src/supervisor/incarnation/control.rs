//! The control server in the loop: handshakes come in, show whose they are, and talk.

use crate::{
    policy::{
        call_burst,
        readiness::{ReadinessInput, ReadinessSource},
        watchdog::LivenessSource,
    },
    supervisor::{
        control::{connection::RpcSocket, reader::FrameReader, server::AuthenticatedClient},
        events::event::{DisconnectReason, EventKind},
        incarnation::{
            Incarnation,
            context::{Context, FIRST_CHECK},
            session::ControlSession,
        },
        reactor::{timers::Timer, token::Token},
    },
    sys::{
        identity, poll,
        proc::{list, process},
    },
};
use std::{iter, os::fd::AsFd, sync::Arc, time::Duration};

/// How long a connection's end is taken for the worker's own, which is about to be told: its calls end with its exit then. The
/// kernel closes a dying process's connections before it tells of the death, and a loaded machine can take its time between.
pub(crate) const END_TIME: Duration = Duration::from_secs(1);
/// How long a control connection is left alone after the kernel was short of memory for it.
pub(crate) const REST: Duration = Duration::from_millis(20);
/// The most that is read of a worker's last words on control, in reads.
const LAST_READS: usize = 64;

impl Incarnation {
    /// A worker with a control pipe has been started.
    pub(crate) fn expect(&mut self, key: String, control_connect_timeout: Duration, cx: &mut Context<'_>) {
        cx.reactor.set_timer_after(control_connect_timeout, Timer::ControlConnectTimeout(self.key));
        let user = self.spec.peer_user;
        let early = cx.server.as_mut().and_then(|control| control.expect_key(key, self.key, user));
        if let Some(known) = early {
            drop(cx.reactor.poller.remove(&known.socket));
            self.connect(known, cx);
        }
    }

    /// Its control connection has shown the key of this incarnation.
    pub(crate) fn connect(&mut self, known: AuthenticatedClient, cx: &mut Context<'_>) {
        let AuthenticatedClient { place: _, socket, received, hello_bytes } = known;
        let Some(connection) = self.process.connection().map(Arc::clone) else { return };
        cx.reactor.timers.cancel(Timer::ControlConnectTimeout(self.key));
        let token = Token::Control(self.key).as_u64();
        let socket = Arc::new(RpcSocket { stream: socket, poller: Arc::clone(&cx.reactor.poller), token });
        let frame_reader = FrameReader::starting_with(self.spec.max_message_size, &received, hello_bytes);
        self.session = Some(ControlSession::new(Arc::clone(&socket), &connection, &cx.reading.window));
        connection.open(&socket, frame_reader);
        self.register(Token::Control(self.key), cx);
        cx.sink.send(self.event(EventKind::ControlConnected));
        self.handle_readiness(ReadinessInput::Observed(ReadinessSource::Control), cx);
        if !received.is_empty() {
            self.read_control(cx);
        }
    }

    /// The worker has said something, or has room for more.
    pub(crate) fn read_control(&mut self, cx: &mut Context<'_>) {
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
            return;
        }
        let ended = session.read(&mut cx.reading.scratch, |kind| self.event(kind), cx.sink);
        self.notice_control(cx.reactor.clock.now());
        let extension = session.extension.take();
        if ended {
            drop(cx.reactor.poller.remove(&session));
            session.shutdown_write();
            // Dropped only with the timer: the link still holds the socket, and its calls wait for the exit.
            cx.reactor.set_timer_after(END_TIME, Timer::DisconnectGrace(self.key));
        } else {
            self.session = Some(session);
        }
        if let Some(time) = extension {
            self.extend(time, cx);
        }
    }

    /// A shortage of the kernel's may be over.
    pub(crate) fn retry_control(&mut self, cx: &mut Context<'_>) {
        let Some(session) = &self.session else { return };
        session.retry();
        self.read_control(cx);
    }

    /// Reads on if requests have been received. False if not.
    pub(crate) fn try_resume_control(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(session) = self.session.as_mut() else { return true };
        session.wait_for_room();
        if !session.levels(cx.sink).may_resume() {
            return false;
        }
        session.resume();
        self.reset_watchdog(LivenessSource::Ping, cx.reactor.clock.now());
        self.register(Token::Control(self.key), cx);
        // What a caller has read is not reported by the kernel any more.
        self.read_control(cx);
        true
    }

    /// A caller has read something that is for the event loop.
    pub(crate) fn control_readable(&mut self, cx: &mut Context<'_>) {
        if self.session.as_ref().is_some_and(|session| !session.is_paused()) {
            self.read_control(cx);
        }
    }

    /// Callers ask it one thing after the other, and read for themselves: whether they still do is looked at now and then.
    pub(crate) fn check_call_burst(&mut self, cx: &mut Context<'_>) {
        if self.process.connection().is_some_and(|connection| connection.goes_on_calling()) {
            cx.reactor.set_timer_after(call_burst::CHECK_INTERVAL, Timer::CallBurst(self.key));
        }
    }

    /// It has not connected in time.
    pub(crate) fn control_timed_out(&mut self, cx: &mut Context<'_>) {
        if !self.awaits_control() {
            return;
        }
        let why = self.other_user().map_or(DisconnectReason::ConnectTimeout, |uid| DisconnectReason::OtherUser { uid });
        self.forget_control(cx);
        self.disconnect(why, cx);
    }

    /// Its connection has ended a while ago, and it lives.
    pub(crate) fn disconnect(&mut self, why: DisconnectReason, cx: &mut Context<'_>) {
        if let Some(session) = self.session.take() {
            drop(cx.reactor.poller.remove(&session));
        }
        // Its death is about to be told, and ends its calls with its exit.
        if self.process.child().with_pidfd(|pidfd| poll::is_readable(pidfd.as_fd())).unwrap_or(true) {
            return;
        }
        if self.process.close_connection(None) {
            cx.sink.send(self.event(EventKind::ControlDisconnected(why)));
        }
    }

    /// The worker has ended: what it said last on control is read, and nobody is expected any more.
    pub(crate) fn drain_control(&mut self, cx: &mut Context<'_>) {
        if self.awaits_control() {
            // Not reaped yet: the kernel still knows whose process it was.
            let why =
                self.other_user().map_or(DisconnectReason::ExitedFirst, |uid| DisconnectReason::OtherUser { uid });
            cx.sink.send(self.event(EventKind::ControlDisconnected(why)));
        }
        if let Some(mut session) = self.session.take() {
            drop(cx.reactor.poller.remove(&session));
            session.revoke_read_lease();
            for _ in 0..LAST_READS {
                // At first whatever the kernel says: a caller may have read something that nobody has told yet.
                let is_over = session.read(&mut cx.reading.scratch, |kind| self.event(kind), cx.sink);
                if is_over || !poll::is_readable(session.as_fd()).unwrap_or(false) {
                    break;
                }
            }
        }
        self.forget_control(cx);
    }

    fn forget_control(&mut self, cx: &mut Context<'_>) {
        if let Some(control) = &mut cx.server {
            control.forget(self.key);
        }
    }
}

impl Incarnation {
    /// The user that its process, or a child of it, runs as, if that user may not connect for control.
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
