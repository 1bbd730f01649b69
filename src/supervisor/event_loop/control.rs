//! The control server: accepts connections, which then have to authenticate with the key of their incarnation.

use crate::supervisor::{
    control::{
        hello::HandshakeError,
        server::{ControlListener, ControlServer, HANDSHAKE_TIMEOUT, HandshakeResult, KeyOwner},
    },
    event_loop::EventLoop,
    events::event::Event,
    reactor::{timers::Timer, token::Token},
};
use std::time::Duration;

/// The time for which the listener is not watched after an accept has failed.
const ACCEPT_BACKOFF_TIME: Duration = Duration::from_millis(50);

/// The time after which a hello is examined again that could not be for lack of a resource.
const HELLO_RETRY_TIME: Duration = Duration::from_millis(20);

impl EventLoop {
    pub(crate) fn listen(&mut self, server: ControlListener) {
        // Connections in the queue of the old listener would be lost with it.
        self.accept_all();
        match &mut self.server {
            Some(control) => {
                let old = control.replace_listener(server);
                drop(self.reactor.poller.remove(&old));
            }
            none => *none = Some(ControlServer::new(server)),
        }
        self.register(Token::Listener);
    }

    pub(crate) fn accept_ready(&mut self) {
        if !self.accept_all()
            && let Some(control) = &self.server
        {
            // The listener stays readable, so that the loop would spin.
            drop(self.reactor.poller.remove(control));
            self.reactor.set_timer_after(ACCEPT_BACKOFF_TIME, Timer::AcceptBackoff);
        }
    }

    /// Accepts all queued connections. False if an accept has failed and connections remain in the queue.
    fn accept_all(&mut self) -> bool {
        while let Some(control) = &mut self.server {
            let handshake = match control.accept() {
                Ok(Some(handshake)) => handshake,
                Ok(None) => return true,
                Err(()) => return false,
            };
            self.register(Token::Handshake(handshake));
            self.reactor.set_timer_after(HANDSHAKE_TIMEOUT, Timer::HandshakeTimeout(handshake));
        }
        true
    }

    /// Reads all connections that are not authenticated yet: a worker that was expected has exited, and may have connected before.
    pub(crate) fn poll_handshakes(&mut self) {
        // A connection that cannot be accepted now is accepted too late for the exit, which is not delayed for it.
        self.accept_all();
        for handshake in self.server.as_ref().map(ControlServer::unauthenticated).unwrap_or_default() {
            self.read_hello(handshake);
        }
    }

    pub(crate) fn read_hello(&mut self, handshake: u64) {
        match self.server.as_mut().map(|control| control.read_hello(handshake)) {
            Some(HandshakeResult::Authenticated(known)) => {
                self.reactor.timers.cancel(Timer::HandshakeTimeout(handshake));
                drop(self.reactor.poller.remove(&known.socket));
                match known.owner {
                    KeyOwner::Incarnation(key) => self.on(key, |incarnation, cx| incarnation.connect(known, cx)),
                    KeyOwner::Attached(worker) => self.attach(worker, known),
                }
            }
            Some(HandshakeResult::Early) => self.ignore_handshake(handshake),
            Some(HandshakeResult::Shortage) => {
                self.ignore_handshake(handshake);
                self.reactor.set_timer_after(HELLO_RETRY_TIME, Timer::HandshakeRetry(handshake));
            }
            Some(HandshakeResult::Closed) => self.close_handshake(handshake),
            Some(HandshakeResult::Rejected(fault)) => self.refuse(handshake, fault),
            Some(HandshakeResult::Incomplete) | None => {}
        }
    }

    /// What an unauthenticated connection sends is not read for now.
    fn ignore_handshake(&self, handshake: u64) {
        if let Some(socket) = self.server.as_ref().and_then(|control| control.handshake_fd(handshake)) {
            drop(self.reactor.poller.remove(&socket));
        }
    }

    /// Closes a connection that did not authenticate, and reports it.
    pub(crate) fn refuse(&mut self, handshake: u64, fault: HandshakeError) {
        let (now, received) = (self.reactor.clock.now(), self.sink.received());
        if let Some(control) = &mut self.server
            && let Some(warning) = control.reject(handshake, fault, now, received)
        {
            self.sink.send(Event::warning(warning));
            control.rejection_reported_as(self.sink.sent());
        }
        self.close_handshake(handshake);
    }

    pub(crate) fn close_handshake(&mut self, handshake: u64) {
        self.reactor.timers.cancel(Timer::HandshakeTimeout(handshake));
        self.reactor.timers.cancel(Timer::HandshakeRetry(handshake));
        if let Some(socket) = self.server.as_mut().and_then(|control| control.remove(handshake)) {
            // Closing does not suffice: if a fork of the host holds the open file description, epoll would report it forever.
            drop(self.reactor.poller.remove(&socket));
        }
    }
}
