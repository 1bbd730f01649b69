//! Registers descriptors with the kernel, and tries again where it has refused that for now.

use crate::{
    supervisor::{
        event_loop::Driver,
        events::{event::Event, warning::Warning},
        reactor::token::Target,
    },
    sys::poll,
};
use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
};

impl Driver {
    /// Has the kernel report this descriptor; see `Reactor::note_registration`.
    pub(crate) fn register(&mut self, target: Target) {
        if let Some(key) = target.key() {
            if self.at(key, |live, cx| live.register(target, cx)).is_none() {
                self.reactor.unwatched.remove(&target);
            }
            return;
        }
        let poller = Arc::clone(&self.reactor.poller);
        let added = self.with_descriptor(target, |descriptor| poller.add(&descriptor, target.token()));
        if let Some(refusal) = self.reactor.note_registration(target, added) {
            self.sink.send(Event::warning(Warning::from(refusal)));
        }
    }

    /// Asks again for everything that was refused. What still is gets its turn now if it is ready: a refusal that lasts slows a worker
    /// down, and neither silences it nor hides its exit.
    pub(crate) fn register_again(&mut self) {
        let refused: Vec<Target> = self.reactor.unwatched.iter().copied().collect();
        for target in refused {
            self.register(target);
            // A connection may wait for room to write, too.
            let is_connection = matches!(target, Target::Control(_));
            if self.reactor.unwatched.contains(&target)
                && (is_connection || self.with_descriptor(target, poll::is_readable).is_some_and(is_true))
            {
                self.ready(target);
            }
        }
    }

    /// Does something with what a target stands for; `None` where that is gone.
    fn with_descriptor<T>(
        &self,
        target: Target,
        run: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>,
    ) -> Option<io::Result<T>> {
        let descriptor = match target {
            Target::Process(key)
            | Target::Stream(key, _)
            | Target::Control(key)
            | Target::Bell(key)
            | Target::Notices(key)
            | Target::Survivor(key) => return self.incarnations.get(key)?.with_descriptor(target, run),
            Target::Stuck(number) => return self.trees.stuck.get(&number)?.process.with_process(run),
            Target::Visitor(visitor) => self.server.as_ref()?.handshake_fd(visitor)?,
            Target::Door => self.server.as_ref()?.as_fd(),
            Target::Guard => self.trees.guard.end.as_ref()?.as_fd(),
            // Watched from the start.
            Target::Waker => return None,
        };
        Some(run(descriptor))
    }
}

fn is_true(answer: io::Result<bool>) -> bool {
    answer.unwrap_or(false)
}
