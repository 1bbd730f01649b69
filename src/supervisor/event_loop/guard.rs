//! Watches the pidfd of the guard, and replaces a guard that has exited.
//!
//! The replacement is started on its own thread, since a start may block. The kernel signals the guard when that thread ends, so the
//! thread lives as long as the guard.

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

/// A guard that exits sooner than this is replaced after a backoff, so that a guard that always fails is not started in a busy loop.
const MIN_LIFETIME: Duration = Duration::from_secs(1);
/// The first and the longest backoff before a replacement.
const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);

impl EventLoop {
    /// Handles the result of a start of the guard.
    pub(crate) fn guard_reported(&mut self, report: GuardReport) {
        let GuardReport { end, notice } = report;
        if let Some(notice) = notice {
            self.sink.send(Event::warning(notice));
        }
        self.forget_guard();
        if end.is_some() {
            (self.trees.guard.end, self.trees.guard.started) = (end, Some(self.reactor.clock.now()));
            self.register(Token::Guard);
        } else {
            self.back_off_guard();
        }
    }

    /// Handles the exit of the guard.
    pub(crate) fn guard_exited(&mut self) {
        self.forget_guard();
        let started = self.trees.guard.started.take();
        let lifetime =
            started.map_or(Duration::ZERO, |started| self.reactor.clock.now().saturating_duration_since(started));
        if lifetime >= MIN_LIFETIME {
            self.trees.guard.backoff = Duration::ZERO;
            self.replace_guard();
        } else {
            self.back_off_guard();
        }
    }

    /// Replaces the guard after its backoff, if none runs.
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

    /// Sets the timer of the next replacement, each time with twice the backoff.
    fn back_off_guard(&mut self) {
        let next = (self.trees.guard.backoff * 2).clamp(FIRST_BACKOFF, LONGEST_BACKOFF);
        let backoff = mem::replace(&mut self.trees.guard.backoff, next);
        self.reactor.set_timer_after(backoff, Timer::Guard);
    }

    fn replace_guard(&mut self) {
        let spawner = Arc::clone(&self.spawner);
        let thread = thread::Builder::new().name("pipewright-guard".into());
        if thread.spawn(move || replace(spawner)).is_err() {
            // A shortage of threads or memory is transient.
            self.back_off_guard();
        }
    }
}

/// Starts a guard if none runs, and returns when it has exited.
fn replace(spawner: Arc<Spawner>) {
    // Signals of the host are handled by the threads of the host.
    signals::block_all();
    // The starter reports the result to the loop, also a failure.
    let end = spawner.guard().replace();
    // The guard exits when the last owner of the starter is dropped.
    drop(spawner);
    if let Some(end) = end {
        drop(poll::wait(end.as_fd(), Interest::Readable, Deadline::after_now(Duration::MAX)));
    }
}
