//! The clock of the event loop. It stops while the user has stopped the whole program, and with it every deadline.

use std::time::{Duration, Instant};

#[derive(Debug, Default)]
pub(crate) struct Clock {
    /// The time for which it has been stopped so far.
    behind: Duration,
    stopped_at: Option<Instant>,
    /// The time at the last check of the loop.
    last: Option<Instant>,
}

impl Clock {
    pub(crate) fn now(&self) -> Instant {
        let now = self.stopped_at.unwrap_or_else(now);
        now.checked_sub(self.behind).unwrap_or(now)
    }

    pub(crate) fn stop(&mut self) {
        self.stopped_at.get_or_insert_with(now);
    }

    pub(crate) fn resume(&mut self) {
        if let Some(stopped_at) = self.stopped_at.take() {
            self.behind = self.behind.saturating_add(now().saturating_duration_since(stopped_at));
        }
    }

    /// Checks the clock; the earliest timer of the loop was `due`. Returns the time in which the process was not scheduled, which the clock
    /// leaves out, so that no deadline comes nearer by it.
    pub(crate) fn update(&mut self, due: Option<Instant>) -> Option<Duration> {
        let now = self.now();
        let last = self.last.replace(now)?;
        let resumes = resumes_from(last, due.filter(|_| !self.is_stopped())?, now)?;
        let missed = now.saturating_duration_since(resumes);
        self.behind = self.behind.saturating_add(missed);
        self.last = Some(resumes);
        Some(missed)
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped_at.is_some()
    }
}

/// If the loop wakes this much later than its earliest timer, the process was not scheduled: it was suspended by SIGSTOP, by a frozen
/// cgroup or a sleeping machine, or it got no processor.
const SUSPENSION_DELAY: Duration = Duration::from_secs(1);
/// The most time before a deadline that is granted again after a suspension just before it.
const RETURNED_TIME_MAX: Duration = Duration::from_secs(1);

/// The time from which the clock continues after a suspension. `last` is the time of the last check, `due` that of the earliest timer, and
/// `now` the present time.
///
/// Not before `last`, since the time until then was used; and not much before `due`, since an idle loop checks rarely.
fn resumes_from(last: Instant, due: Instant, now: Instant) -> Option<Instant> {
    let expected = due.max(last);
    if now.saturating_duration_since(expected) <= SUSPENSION_DELAY {
        return None;
    }
    Some(due.checked_sub(RETURNED_TIME_MAX).map_or(last, |earliest| earliest.max(last)).min(expected))
}

#[expect(clippy::disallowed_methods, reason = "the loop and its waiters read the real clock here")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn now_stopped_clock_stands_still_and_never_goes_back() {
        let mut clock = Clock::default();
        let before = clock.now();
        clock.stop();
        let stopped = clock.now();
        assert_eq!(clock.now(), stopped);
        clock.stop();
        assert!(clock.is_stopped() && stopped >= before);
        clock.resume();
        clock.resume();
        assert!(!clock.is_stopped() && clock.now() >= stopped);
        assert!(clock.now() - stopped <= now() - before);
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn p15_resumes_from_after_suspension_keeps_time_before_deadline() {
        let t0 = now();
        let (last, due) = (t0 + 10 * SECOND, t0 + 12 * SECOND);
        assert_eq!(resumes_from(last, due, due + SECOND), None, "a loop may be late for other reasons");
        assert_eq!(resumes_from(last, due, due + 3 * SECOND), Some(last + SECOND), "the deadline keeps one second");
        let near = last + SECOND * 19 / 10;
        assert_eq!(resumes_from(near, due, due + 3600 * SECOND), Some(near), "the deadline keeps the time it had");
    }

    #[test]
    fn p15_resumes_from_busy_loop_is_no_suspension() {
        let t0 = now();
        let (due, last) = (t0 + SECOND, t0 + 5 * SECOND);
        assert_eq!(resumes_from(last, due, last + SECOND / 2), None);
        assert_eq!(resumes_from(last, due, last + 2 * SECOND), Some(last), "and never goes back");
    }
}
