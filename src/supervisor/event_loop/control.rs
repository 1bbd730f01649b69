//! The control server: connections are accepted and wait for a hello that names their incarnation.

use crate::supervisor::{
    control::{
        hello::HandshakeError,
        server::{AuthenticatedClient, ControlListener, ControlServer, HELLO_TIME, HandshakeResult},
    },
    event_loop::Driver,
    events::event::Event,
    reactor::{timers::Timer, token::Target},
};
use std::time::Duration;

/// How long the listener is not watched after a connection could not be accepted.
const DOOR_PAUSE: Duration = Duration::from_millis(50);

impl Driver {
    pub(crate) fn listen(&mut self, server: ControlListener) {
        // Whoever has come to the old door is let in before it is gone.
        self.let_in();
        match &mut self.server {
            Some(control) => {
                let old = control.replace_listener(server);
                drop(self.reactor.poller.remove(&old));
            }
            none => *none = Some(ControlServer::new(server)),
        }
        self.register(Target::Door);
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
        for visitor in self.server.as_ref().map(ControlServer::unauthenticated).unwrap_or_default() {
            self.visit(visitor);
        }
    }

    pub(crate) fn visit(&mut self, visitor: u64) {
        match self.server.as_mut().map(|control| control.read_hello(visitor)) {
            Some(HandshakeResult::Authenticated(known)) => {
                self.reactor.timers.cancel(Timer::Visitor(visitor));
                drop(self.reactor.poller.remove(&known.socket));
                self.connect(known);
            }
            Some(HandshakeResult::Early) => {
                if let Some(socket) = self.server.as_ref().and_then(|control| control.handshake_fd(visitor)) {
                    drop(self.reactor.poller.remove(&socket));
                }
            }
            Some(HandshakeResult::Closed) => self.put_out(visitor),
            Some(HandshakeResult::Rejected(fault)) => self.refuse(visitor, fault),
            Some(HandshakeResult::Incomplete) | None => {}
        }
    }

    /// Closes a connection without a hello, and reports it.
    pub(crate) fn refuse(&mut self, visitor: u64, fault: HandshakeError) {
        let (now, received) = (self.reactor.clock.now(), self.sink.received());
        if let Some(control) = &mut self.server
            && let Some(warning) = control.reject(visitor, fault, now, received)
        {
            self.sink.send(Event::warning(warning));
            control.rejection_reported_as(self.sink.sent());
        }
        self.put_out(visitor);
    }

    pub(crate) fn put_out(&mut self, visitor: u64) {
        self.reactor.timers.cancel(Timer::Visitor(visitor));
        if let Some(socket) = self.server.as_mut().and_then(|control| control.remove(visitor)) {
            // Not left to its closing: a fork of the host can hold the same description, and it would be reported for ever.
            drop(self.reactor.poller.remove(&socket));
        }
    }

    fn connect(&mut self, known: AuthenticatedClient) {
        self.on(known.place, |live, cx| live.connect(known, cx));
    }
}
