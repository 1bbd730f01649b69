//! Registers descriptors with the kernel, and tries again where it has refused that for now.

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
    /// Has the kernel report this descriptor; see `Reactor::note_registration`.
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

    /// Asks again for everything that was refused. What still is gets its turn now if it is ready: a refusal that lasts slows a worker
    /// down, and neither silences it nor hides its exit.
    pub(crate) fn register_again(&mut self) {
        let refused: Vec<Token> = self.reactor.unwatched.iter().copied().collect();
        for token in refused {
            self.register(token);
            // A connection may wait for room to write, too.
            let is_connection = matches!(token, Token::Control(_));
            if self.reactor.unwatched.contains(&token)
                && (is_connection || self.with_descriptor(token, poll::is_readable).is_some_and(is_true))
            {
                self.dispatch(token);
            }
        }
    }

    /// Does something with what a token stands for; `None` where that is gone.
    fn with_descriptor<T>(
        &self,
        token: Token,
        run: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>,
    ) -> Option<io::Result<T>> {
        let descriptor = match token {
            Token::Process(key)
            | Token::Stream(key, _)
            | Token::Control(key)
            | Token::ReadinessPipe(key)
            | Token::NotifySocket(key)
            | Token::Orphan(key) => return self.incarnations.get(key)?.with_descriptor(token, run),
            Token::Unkillable(number) => return self.trees.unkillable.get(&number)?.process.with_process(run),
            Token::Handshake(handshake) => self.server.as_ref()?.handshake_fd(handshake)?,
            Token::Listener => self.server.as_ref()?.as_fd(),
            Token::Guard => self.trees.guard.end.as_ref()?.as_fd(),
            // Watched from the start.
            Token::Waker => return None,
        };
        Some(run(descriptor))
    }
}

fn is_true(answer: io::Result<bool>) -> bool {
    answer.unwrap_or(false)
}
