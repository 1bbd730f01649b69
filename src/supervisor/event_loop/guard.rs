//! The guard as the loop sees it: its pidfd is watched, and a guard that has ended is replaced at once.
//!
//! The replacement is started on a thread of its own: a start may block, and the guard gets a signal when the thread that started it
//! ends. So that thread lives as long as the guard that it has started.

use crate::{
    deadline::Deadline,
    supervisor::{
        containment::guard::GuardReport,
        event_loop::EventLoop,
        events::event::Event,
        reactor::{timers::Timer, token::Token},
        spawner::Spawner,
    },
    sys::{
        poll::{self, Interest},
        signals,
    },
};
use std::{mem, os::fd::AsFd, sync::Arc, thread, time::Duration};

/// A guard that ends sooner than this is not replaced at once the next time: otherwise one that cannot live would be started in
/// a busy loop.
const SHORT_LIFE: Duration = Duration::from_secs(1);
/// The first and the longest pause before a replacement.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

impl EventLoop {
    /// A guard was started, or could not be.
    pub(crate) fn guard_reported(&mut self, news: GuardReport) {
        let GuardReport { end, notice } = news;
        if let Some(notice) = notice {
            self.sink.send(Event::warning(notice));
        }
        self.forget_guard();
        if end.is_some() {
            (self.trees.guard.end, self.trees.guard.started) = (end, Some(self.reactor.clock.now()));
            self.register(Token::Guard);
        } else {
            self.pause_guard();
        }
    }

    /// The guard has ended.
    pub(crate) fn guard_exited(&mut self) {
        self.forget_guard();
        let since = self.trees.guard.started.take();
        let lived = since.map_or(Duration::ZERO, |since| self.reactor.clock.now().saturating_duration_since(since));
        if lived >= SHORT_LIFE {
            self.trees.guard.backoff = Duration::ZERO;
            self.replace_guard();
        } else {
            self.pause_guard();
        }
    }

    /// It is time to look after the guard again.
    pub(crate) fn check_guard(&mut self) {
        if self.trees.guard.end.is_none() {
            self.replace_guard();
        }
    }

    fn forget_guard(&mut self) {
        if let Some(end) = self.trees.guard.end.take() {
            drop(self.reactor.poller.remove(&end));
        }
    }

    /// Each time twice as long as before.
    fn pause_guard(&mut self) {
        let next = (self.trees.guard.backoff * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        let pause = mem::replace(&mut self.trees.guard.backoff, next);
        self.reactor.set_timer_after(pause, Timer::Guard);
    }

    fn replace_guard(&mut self) {
        let spawner = Arc::clone(&self.spawner);
        let thread = thread::Builder::new().name("pipewright-guard".into());
        if thread.spawn(move || replace(spawner)).is_err() {
            // Out of threads or memory, which passes.
            self.pause_guard();
        }
    }
}

/// Starts a guard where none runs, and lives as long as that.
fn replace(spawner: Arc<Spawner>) {
    // The host's signals belong to the host's threads.
    signals::block_all();
    // The loop is told by the sentinel, also where this fails.
    let end = spawner.guard().replace();
    // The guard ends with the last owner of the starter.
    drop(spawner);
    if let Some(end) = end {
        drop(poll::wait(end.as_fd(), Interest::Readable, Deadline::after_now(Duration::MAX)));
    }
}
