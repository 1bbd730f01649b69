//! What the event loop waits for: kernel events, timers, the clock.

pub(crate) mod arena;
pub(crate) mod report;
pub(crate) mod timers;
pub(crate) mod token;

use crate::{
    supervisor::{
        clock::Clock,
        reactor::{
            timers::{Timer, TimerQueue},
            token::Target,
        },
    },
    sys::epoll::Poller,
};
use std::{
    collections::HashSet,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

/// The poller, the clock and the timers of one event loop.
#[derive(Debug)]
pub(crate) struct Reactor {
    pub(crate) poller: Arc<Poller>,
    pub(crate) clock: Clock,
    pub(crate) timers: TimerQueue<Timer>,
    /// What `epoll_ctl(2)` has refused for now; see `Timer::Watch`.
    pub(crate) unwatched: HashSet<Target>,
}

impl Reactor {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            poller: Arc::new(Poller::new()?),
            clock: Clock::default(),
            timers: TimerQueue::new(),
            unwatched: HashSet::new(),
        })
    }

    /// Sets this timer, or moves it where it is set already.
    pub(crate) fn set_timer(&mut self, due: Instant, timer: Timer) {
        self.timers.set(timer, due);
    }

    /// Sets this timer to `time` from now. A time beyond the end of the clock is never.
    pub(crate) fn set_timer_after(&mut self, time: Duration, timer: Timer) {
        if let Some(due) = self.clock.now().checked_add(time) {
            self.set_timer(due, timer);
        }
    }
}
