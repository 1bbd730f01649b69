//! The loop's clock: it stands still while the whole program is stopped by its user, and with it every deadline.

use std::time::{Duration, Instant};

#[derive(Debug, Default)]
pub(super) struct Clock {
    /// How long it stood still so far.
    behind: Duration,
    stopped_at: Option<Instant>,
}

impl Clock {
    pub(super) fn now(&self) -> Instant {
        let now = self.stopped_at.unwrap_or_else(now);
        now.checked_sub(self.behind).unwrap_or(now)
    }

    pub(super) fn stop(&mut self) {
        self.stopped_at.get_or_insert_with(now);
    }

    pub(super) fn go_on(&mut self) {
        if let Some(stopped_at) = self.stopped_at.take() {
            self.behind = self.behind.saturating_add(now().saturating_duration_since(stopped_at));
        }
    }

    pub(super) fn stands_still(&self) -> bool {
        self.stopped_at.is_some()
    }
}

#[expect(clippy::disallowed_methods, reason = "the loop and whoever waits for it look at the real clock here")]
pub(super) fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stands_still_while_it_is_stopped_and_never_goes_back() {
        let mut clock = Clock::default();
        let before = clock.now();
        clock.stop();
        let stopped = clock.now();
        assert_eq!(clock.now(), stopped);
        clock.stop();
        assert!(clock.stands_still() && stopped >= before);
        clock.go_on();
        clock.go_on();
        assert!(!clock.stands_still() && clock.now() >= stopped);
        assert!(clock.now() - stopped <= now() - before);
    }
}
