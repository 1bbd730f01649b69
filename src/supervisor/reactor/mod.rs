//! The event sources of the loop: the poller, the timers and the clock.

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

/// The time after which a refused registration is retried.
const REGISTRATION_BACKOFF_TIME: Duration = Duration::from_millis(50);

/// A registration that `epoll_ctl(2)` refused. A shortage of memory or of the user's epoll watches is transient.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) token: Token,
    pub(crate) error: io::Error,
    /// The error is not transient: the registration is not retried.
    pub(crate) is_final: bool,
}

/// The poller, the clock and the timers of one event loop.
#[derive(Debug)]
pub(crate) struct Reactor {
    pub(crate) poller: Arc<Poller>,
    pub(crate) clock: Clock,
    pub(crate) timers: TimerQueue<Timer>,
    /// Registrations that `epoll_ctl(2)` refused because of a shortage; see `Timer::RegistrationRetry`.
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

    /// Records the result of a registration; `None` if the file descriptor no longer exists. Returns the refusal if it has to be
    /// reported: the first of a shortage, and every final one.
    pub(crate) fn note_registration(&mut self, token: Token, added: Option<io::Result<()>>) -> Option<Refusal> {
        match added {
            Some(Err(error)) if is_transient(&error) || error.raw_os_error() == Some(libc::ENOSPC) => {
                // Reported once for each shortage, and separately for the control server, which affects all workers.
                let is_known = |known: &Token| (*known == Token::Listener) == (token == Token::Listener);
                let is_first = !self.unwatched.iter().any(is_known);
                self.unwatched.insert(token);
                self.set_timer_after(REGISTRATION_BACKOFF_TIME, Timer::RegistrationRetry);
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

    /// Sets `timer`, or moves it if it is already set.
    pub(crate) fn set_timer(&mut self, due: Instant, timer: Timer) {
        self.timers.set(timer, due);
    }

    /// Sets `timer` to `time` from now. A due time that the clock cannot represent is never reached.
    pub(crate) fn set_timer_after(&mut self, time: Duration, timer: Timer) {
        if let Some(due) = self.clock.now().checked_add(time) {
            self.set_timer(due, timer);
        }
    }
}
