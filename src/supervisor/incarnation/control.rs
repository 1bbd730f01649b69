//! The control server in the loop: visitors come in, show whose they are, and talk.

use crate::{
    policy::{
        call_burst,
        readiness::{ReadinessInput, ReadinessSource},
        watchdog::LivenessSource,
    },
    supervisor::{
        control::{
            connection::Connection,
            hello::HandshakeError,
            reader::Reading,
            server::{Control, HELLO_TIME, Known, Server, Visit},
        },
        event_loop::{Driver, FIRST_LOOK},
        events::event::{DisconnectReason, Event, EventKind},
        incarnation::{Live, session::Session},
        reactor::{
            arena::{Place, live_at},
            timers::Timer,
            token::Target,
        },
        supervision::worker::Kept,
    },
    sys::{
        identity, poll,
        proc::{list, process},
    },
};
use std::{iter, mem, os::fd::AsFd, sync::Arc, time::Duration};

/// How long a connection's end is taken for the worker's own, which is about to be told: its calls end with its exit then. The
/// kernel closes a dying process's connections before it tells of the death, and a loaded machine can take its time between.
pub(crate) const END_TIME: Duration = Duration::from_secs(1);
/// How long nobody is let in after somebody knocked who could not be.
const DOOR_PAUSE: Duration = Duration::from_millis(50);
/// How long a control connection is left alone after the kernel was short of memory for it.
pub(crate) const REST: Duration = Duration::from_millis(20);
/// The most that is read of a worker's last words on control, in reads.
const LAST_READS: usize = 64;

impl Driver {
    pub(crate) fn listen(&mut self, server: Server) {
        // Whoever has come to the old door is let in before it is gone.
        self.let_in();
        match &mut self.server {
            Some(control) => {
                let old = control.move_to(server);
                drop(self.reactor.poller.remove(&old));
            }
            none => *none = Some(Control::new(server)),
        }
        self.register(Target::Door);
    }

    /// A worker with a control pipe has been started.
    pub(crate) fn expect(&mut self, place: Place, key: String, control_connect_timeout: Duration) {
        self.reactor.set_timer_after(control_connect_timeout, Timer::Connect(place));
        let user = live_at(&mut self.incarnations.slots, place).and_then(|live| live.spec.peer_user);
        let early = self.server.as_mut().and_then(|control| control.expect(key, place, user));
        if let Some(known) = early {
            drop(self.reactor.poller.remove(&known.socket));
            self.connect(known);
        }
    }

    pub(crate) fn knock(&mut self) {
        if !self.let_in()
            && let Some(control) = &self.server
        {
            // Reported as it is, the door would make the loop spin.
            drop(self.reactor.poller.remove(control));
            self.reactor.set_timer_after(DOOR_PAUSE, Timer::Door);
        }
    }

    /// All who stand before the door. False if some have to stay there.
    fn let_in(&mut self) -> bool {
        while let Some(control) = &mut self.server {
            let visitor = match control.accept() {
                Ok(Some(visitor)) => visitor,
                Ok(None) => return true,
                Err(()) => return false,
            };
            self.register(Target::Visitor(visitor));
            self.reactor.set_timer_after(HELLO_TIME, Timer::Visitor(visitor));
        }
        true
    }

    /// Somebody who was expected has ended: it may stand before the door, or in it, with something to say.
    pub(crate) fn hear_the_door(&mut self) {
        // Whoever has to stay there is let in later, and heard too late.
        self.let_in();
        for visitor in self.server.as_ref().map(Control::visitors).unwrap_or_default() {
            self.visit(visitor);
        }
    }

    pub(crate) fn visit(&mut self, visitor: u64) {
        match self.server.as_mut().map(|control| control.hear(visitor)) {
            Some(Visit::Known(known)) => {
                self.reactor.timers.cancel(Timer::Visitor(visitor));
                drop(self.reactor.poller.remove(&known.socket));
                self.connect(known);
            }
            Some(Visit::Waits) => {
                if let Some(socket) = self.server.as_ref().and_then(|control| control.visitor(visitor)) {
                    drop(self.reactor.poller.remove(&socket));
                }
            }
            Some(Visit::Over) => self.put_out(visitor),
            Some(Visit::Refused(fault)) => self.refuse(visitor, fault),
            Some(Visit::GoesOn) | None => {}
        }
    }

    /// Closes a connection without a hello, and reports it.
    pub(crate) fn refuse(&mut self, visitor: u64, fault: HandshakeError) {
        let (now, received) = (self.reactor.clock.now(), self.outlet.received());
        if let Some(control) = &mut self.server
            && let Some(warning) = control.refuse(visitor, fault, now, received)
        {
            self.outlet.send(Event::warning(warning));
            control.refusal_reported_as(self.outlet.sent());
        }
        self.put_out(visitor);
    }

    pub(crate) fn put_out(&mut self, visitor: u64) {
        self.reactor.timers.cancel(Timer::Visitor(visitor));
        if let Some(socket) = self.server.as_mut().and_then(|control| control.put_out(visitor)) {
            // Not left to its closing: a fork of the host can hold the same description, and it would be reported for ever.
            drop(self.reactor.poller.remove(&socket));
        }
    }

    fn connect(&mut self, known: Known) {
        let Known { place, socket, said, hello_bytes } = known;
        let Some(live) = live_at(&mut self.incarnations.slots, place) else { return };
        let Some(link) = live.present.link().map(Arc::clone) else { return };
        self.reactor.timers.cancel(Timer::Connect(place));
        let token = Target::Control(place).token();
        let connection = Arc::new(Connection { socket, poller: Arc::clone(&self.reactor.poller), token });
        let reading = Reading::begun(live.spec.max_message_size, &said, hello_bytes);
        live.session = Some(Session::new(Arc::clone(&connection), &link, &self.incarnations.window));
        link.open(&connection, reading);
        self.register(Target::Control(place));
        let Some(live) = live_at(&mut self.incarnations.slots, place) else { return };
        self.outlet.send(live.event(EventKind::ControlConnected));
        self.handle_readiness(place, ReadinessInput::Observed(ReadinessSource::Control));
        if !said.is_empty() {
            self.talk(place);
        }
    }

    /// The worker has said something, or has room for more.
    pub(crate) fn talk(&mut self, place: Place) {
        let Some(live) = live_at(&mut self.incarnations.slots, place) else { return };
        let Some(mut session) = live.session.take() else { return };
        if session.is_paused() {
            session.stir();
            live.session = Some(session);
            return;
        }
        session.flush();
        if session.levels(&self.outlet).must_pause() && session.pause() {
            live.session = Some(session);
            self.incarnations.silent.push(place);
            self.incarnations.next_look = FIRST_LOOK;
            return;
        }
        let ended = session.read(&mut self.incarnations.scratch, |kind| live.event(kind), &mut self.outlet);
        live.notice_control(self.reactor.clock.now());
        let extension = session.extension.take();
        if ended {
            drop(self.reactor.poller.remove(&session));
            session.hang_up();
            // Dropped only with the timer: the link still holds the socket, and its calls wait for the exit.
            self.reactor.set_timer_after(END_TIME, Timer::Disconnect(place));
        } else {
            live.session = Some(session);
        }
        if let Some(time) = extension {
            self.extend(place, time);
        }
    }

    /// A shortage of the kernel's may be over.
    pub(crate) fn talk_again(&mut self, place: Place) {
        let Some(live) = live_at(&mut self.incarnations.slots, place) else { return };
        let Some(session) = &live.session else { return };
        session.try_again();
        self.talk(place);
    }

    /// Goes on with those whose requests have been received.
    pub(crate) fn hear_again(&mut self) {
        for place in mem::take(&mut self.incarnations.silent) {
            let Some(live) = live_at(&mut self.incarnations.slots, place) else { continue };
            let Some(session) = live.session.as_mut() else { continue };
            session.wait_for_room();
            if !session.levels(&self.outlet).may_resume() {
                self.incarnations.silent.push(place);
                continue;
            }
            session.resume();
            live.reset_watchdog(LivenessSource::Ping, self.reactor.clock.now());
            self.register(Target::Control(place));
            // What a caller has read is not reported by the kernel any more.
            self.talk(place);
        }
    }

    /// A caller has read something that is for us.
    pub(crate) fn hear_of(&mut self, worker: crate::ids::WorkerId) {
        let Some(place) = self.supervision.kept.get(&worker).and_then(Kept::place) else { return };
        let session = live_at(&mut self.incarnations.slots, place).and_then(|live| live.session.as_ref());
        if session.is_some_and(|session| !session.is_paused()) {
            self.talk(place);
        }
    }

    /// Callers ask it one thing after the other, and read for themselves: whether they still do is looked at now and then.
    pub(crate) fn let_call(&mut self, place: Place) {
        let Some(live) = live_at(&mut self.incarnations.slots, place) else { return };
        if live.present.link().is_some_and(|link| link.goes_on_calling()) {
            self.reactor.set_timer_after(call_burst::CHECK_INTERVAL, Timer::Burst(place));
        }
    }

    /// It has not connected in time.
    pub(crate) fn miss(&mut self, place: Place) {
        let Some(live) = live_at(&mut self.incarnations.slots, place).filter(|live| live.awaits_control()) else {
            return;
        };
        let why = live.other_user().map_or(DisconnectReason::ConnectTimeout, |uid| DisconnectReason::OtherUser { uid });
        self.forget_control(place);
        self.disconnect(place, why);
    }

    /// Its connection has ended a while ago, and it lives.
    pub(crate) fn disconnect(&mut self, place: Place, why: DisconnectReason) {
        let Some(live) = live_at(&mut self.incarnations.slots, place) else { return };
        if let Some(session) = live.session.take() {
            drop(self.reactor.poller.remove(&session));
        }
        // Its death is about to be told, and ends its calls with its exit.
        if live.present.child().with_pidfd(|pidfd| poll::is_readable(pidfd.as_fd())).unwrap_or(true) {
            return;
        }
        if live.present.close_link(None) {
            self.outlet.send(live.event(EventKind::ControlDisconnected(why)));
        }
    }

    /// The worker has ended: what it said last on control is read, and nobody is expected any more.
    pub(crate) fn last_talk(&mut self, place: Place) {
        let Some(live) = live_at(&mut self.incarnations.slots, place) else { return };
        if live.awaits_control() {
            // Not reaped yet: the kernel still knows whose process it was.
            let why =
                live.other_user().map_or(DisconnectReason::ExitedFirst, |uid| DisconnectReason::OtherUser { uid });
            self.outlet.send(live.event(EventKind::ControlDisconnected(why)));
        }
        if let Some(mut session) = live.session.take() {
            drop(self.reactor.poller.remove(&session));
            session.recall();
            for _ in 0..LAST_READS {
                // At first whatever the kernel says: a caller may have read something that nobody has told yet.
                let is_over = session.read(&mut self.incarnations.scratch, |kind| live.event(kind), &mut self.outlet);
                if is_over || !poll::is_readable(session.as_fd()).unwrap_or(false) {
                    break;
                }
            }
        }
        self.forget_control(place);
    }

    fn forget_control(&mut self, place: Place) {
        if let Some(control) = &mut self.server {
            control.forget(place);
        }
    }
}

impl Live {
    /// The user that its process, or a child of it, runs as, if that user may not connect for control.
    fn other_user(&self) -> Option<u32> {
        let may_connect = [Some(identity::effective_uid()), self.spec.peer_user];
        let pid = self.present.child().pid();
        let users = iter::once(pid).chain(list::children_of_main_thread(pid)).filter_map(process::fs_uid);
        users.into_iter().find(|uid| !may_connect.contains(&Some(*uid)))
    }

    pub(crate) fn awaits_control(&self) -> bool {
        self.session.is_none() && self.present.awaits_control()
    }
}
