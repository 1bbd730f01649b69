//! Registers file descriptors with epoll, and retries registrations that were refused.

use crate::{
    supervisor::{
        event_loop::EventLoop,
        events::{event::Event, warning::Warning},
        reactor::token::Token,
    },
    sys::poll,
};
use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
};

impl EventLoop {
    /// Registers the file descriptor of `token`; see `Reactor::note_registration`.
    pub(crate) fn register(&mut self, token: Token) {
        if let Some(key) = token.key() {
            if self.at(key, |incarnation, cx| incarnation.register(token, cx)).is_none() {
                self.reactor.unwatched.remove(&token);
            }
            return;
        }
        let poller = Arc::clone(&self.reactor.poller);
        let added = self.with_descriptor(token, |descriptor| poller.add(&descriptor, token.as_u64()));
        if let Some(refusal) = self.reactor.note_registration(token, added) {
            self.sink.send(Event::warning(Warning::from(refusal)));
        }
    }

    /// Retries refused registrations. A file descriptor that is refused again is polled and handled now, so that a lasting refusal only
    /// slows a worker down, but loses neither output nor exit.
    pub(crate) fn register_again(&mut self) {
        let refused: Vec<Token> = self.reactor.unwatched.iter().copied().collect();
        for token in refused {
            self.register(token);
            // A connection may also wait to become writable.
            let is_connection = matches!(token, Token::Control(_));
            if self.reactor.unwatched.contains(&token)
                && (is_connection
                    || self.with_descriptor(token, poll::is_readable).is_some_and(|ready| ready.unwrap_or(false)))
            {
                self.dispatch(token);
            }
        }
    }

    /// Calls `run` with the file descriptor of `token`; `None` if it no longer exists.
    fn with_descriptor<T>(
        &self,
        token: Token,
        run: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>,
    ) -> Option<io::Result<T>> {
        let descriptor = match token {
            Token::Process(key)
            | Token::Stream(key, _)
            | Token::Control(key)
            | Token::ControlInput(key)
            | Token::ReadinessPipe(key)
            | Token::NotifySocket(key)
            | Token::Orphan(key) => return self.incarnations.get(key)?.with_descriptor(token, run),
            Token::Unkillable(number) => return self.trees.unkillable.get(&number)?.process.with_process(run),
            Token::Handshake(handshake) => self.server.as_ref()?.handshake_fd(handshake)?,
            Token::Listener => self.server.as_ref()?.as_fd(),
            Token::Guard => self.trees.guard.end.as_ref()?.as_fd(),
            Token::Jobserver => self.supervision.token_waits.watched_fd()?,
            // Registered when the loop is created.
            Token::Waker => return None,
        };
        Some(run(descriptor))
    }
}
