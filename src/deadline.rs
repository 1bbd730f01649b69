//! A point in time at which something is due. Pure: `sys::poll` adds the methods that read the clock.

use std::time::{Duration, Instant};

/// A deadline; never, where it lies beyond the range of the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Deadline(Option<Instant>);

impl Deadline {
    pub(crate) const NEVER: Self = Self(None);

    pub(crate) fn after(now: Instant, time: Duration) -> Self {
        Self(now.checked_add(time))
    }

    pub(crate) fn set(&mut self, now: Instant, time: Duration) {
        *self = Self::after(now, time);
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::NEVER;
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.0
    }

    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.0.is_some_and(|due| now >= due)
    }

    /// Postponed by `time`.
    pub(crate) fn later(self, time: Duration) -> Self {
        Self(self.0.and_then(|due| due.checked_add(time)))
    }

    /// The earlier of the two.
    pub(crate) fn or(self, other: Self) -> Self {
        Self(self.0.into_iter().chain(other.0).min())
    }

    /// Postpones it if less than `time` is left.
    pub(crate) fn leave_at_least(&mut self, now: Instant, time: Duration) {
        if let Some(due) = self.0 {
            self.0 = now.checked_add(time).map(|wanted| wanted.max(due));
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "invented time needs one real instant to count from")]
pub(crate) fn start() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn leave_at_least_counts_from_now() {
        let t0 = start();
        let mut deadline = Deadline::after(t0, 3 * SECOND);
        deadline.leave_at_least(t0, 2 * SECOND);
        assert_eq!(deadline.poll_timeout(), Some(t0 + 3 * SECOND), "there is more already");
        deadline.leave_at_least(t0 + 2 * SECOND, 2 * SECOND);
        assert_eq!(deadline.poll_timeout(), Some(t0 + 4 * SECOND));
        assert!(!deadline.is_due(t0 + 3 * SECOND) && deadline.is_due(t0 + 4 * SECOND));
    }

    #[test]
    fn time_beyond_the_clock_is_never() {
        let t0 = start();
        let mut deadline = Deadline::after(t0, Duration::MAX);
        assert_eq!(deadline, Deadline::NEVER);
        deadline.set(t0, SECOND);
        deadline.leave_at_least(t0, Duration::MAX);
        assert_eq!(deadline, Deadline::NEVER);
        deadline.set(t0, SECOND);
        deadline.clear();
        assert_eq!(deadline.poll_timeout(), None);
    }
}
