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
            token::Token,
        },
    },
    sys::{epoll::Poller, is_transient},
};
use std::{
    collections::HashSet,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

/// How soon a registration that the kernel has refused is tried again.
const REGISTRATION_PAUSE: Duration = Duration::from_millis(50);

/// A registration that `epoll_ctl(2)` has refused. It can run out of memory or of the user's watches, which passes.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) token: Token,
    pub(crate) error: io::Error,
    /// It is not tried again.
    pub(crate) is_final: bool,
}

/// The poller, the clock and the timers of one event loop.
#[derive(Debug)]
pub(crate) struct Reactor {
    pub(crate) poller: Arc<Poller>,
    pub(crate) clock: Clock,
    pub(crate) timers: TimerQueue<Timer>,
    /// What `epoll_ctl(2)` has refused for now; see `Timer::RegistrationRetry`.
    pub(crate) unwatched: HashSet<Token>,
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

    /// Notes what came of the registration of a descriptor, `None` where there is nothing to register any more. Gives a refusal that
    /// has to be reported: the first one of a shortage, and each that will not pass.
    pub(crate) fn note_registration(&mut self, token: Token, added: Option<io::Result<()>>) -> Option<Refusal> {
        match added {
            Some(Err(error)) if is_transient(&error) || error.raw_os_error() == Some(libc::ENOSPC) => {
                // Once for each shortage; and the control server for itself, since that all workers need.
                let is_known = |known: &Token| (*known == Token::Listener) == (token == Token::Listener);
                let is_first = !self.unwatched.iter().any(is_known);
                self.unwatched.insert(token);
                self.set_timer_after(REGISTRATION_PAUSE, Timer::RegistrationRetry);
                is_first.then_some(Refusal { token, error, is_final: false })
            }
            Some(Err(error)) if error.kind() != io::ErrorKind::AlreadyExists => {
                self.unwatched.remove(&token);
                Some(Refusal { token, error, is_final: true })
            }
            Some(_) | None => {
                self.unwatched.remove(&token);
                None
            }
        }
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
