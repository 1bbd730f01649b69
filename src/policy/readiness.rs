//! Whether a worker that was started is ready for work, and how long to wait for it.

use super::deadline::Deadline;
use std::time::{Duration, Instant};

/// What a worker is to show before it counts as ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mark {
    /// It runs.
    Started,
    /// It has connected to its control pipe.
    Connected,
    /// It has sent the message that was waited for.
    Message,
    /// It has written the line that was waited for.
    Line,
    /// It has written a newline to the descriptor that it was granted for this, as s6 has it.
    Newline,
    /// It has sent `READY=1` to its notify socket.
    Notified,
    /// Its address takes connections.
    Reached,
    /// The user's own check was content.
    Checked,
}

/// What was observed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sign {
    Shown(Mark),
    /// Its output was looked through up to the limit.
    OutputLimit,
    /// The descriptor for the newline is at its end. Behind a newline that means nothing.
    DescriptorClosed,
    /// The process has ended.
    Died,
}

/// What the wait has come to. Times are counted from the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Most of its time is over, and the wait goes on. Told once, and always before it is missed.
    Slow {
        waited: Duration,
    },
    Became {
        after: Duration,
    },
    /// Not in time.
    Missed {
        waited: Duration,
    },
    /// It closed the descriptor without a newline, and so can never become ready.
    Closed {
        after: Duration,
    },
    /// So much of its output was looked through in vain that no more is.
    Exhausted {
        after: Duration,
    },
    /// It ended first.
    Died {
        after: Duration,
    },
}

/// The wait of one incarnation. It has one outcome that ends it, and then nothing more to say.
#[derive(Debug)]
pub(crate) struct ReadinessTracker {
    wanted: Mark,
    started: Instant,
    /// When it is told as slow; never again once it was.
    warning: Deadline,
    /// None when it is over.
    deadline: Option<Deadline>,
}

/// After which part of its time a worker is slow: as for a watchdog's silence.
fn most_of(time: Duration) -> Duration {
    time.saturating_sub(time / 4)
}

impl ReadinessTracker {
    pub(crate) fn new(wanted: Mark, within: Duration, started: Instant) -> Self {
        let warning = Deadline::after(started, most_of(within));
        Self { wanted, started, warning, deadline: Some(Deadline::after(started, within)) }
    }

    pub(crate) fn see(&mut self, sign: Sign, now: Instant) -> Option<Outcome> {
        match sign {
            Sign::Shown(mark) if mark == self.wanted => self.end(now, |after| Outcome::Became { after }),
            Sign::DescriptorClosed if self.wanted == Mark::Newline => self.end(now, |after| Outcome::Closed { after }),
            Sign::OutputLimit if matches!(self.wanted, Mark::Line | Mark::Message) => {
                self.end(now, |after| Outcome::Exhausted { after })
            }
            Sign::Died => self.end(now, |after| Outcome::Died { after }),
            Sign::Shown(_) | Sign::DescriptorClosed | Sign::OutputLimit => None,
        }
    }

    /// The time of `poll_timeout` may have come. What the worker has shown by now must be seen first: a late loop is not its
    /// fault.
    pub(crate) fn timeout(&mut self, now: Instant) -> Option<Outcome> {
        let deadline = self.deadline?;
        if self.warning.has_come(now) {
            // One that is late itself tells both, one after the other.
            self.warning.clear();
            return Some(Outcome::Slow { waited: now.saturating_duration_since(self.started) });
        }
        if deadline.has_come(now) { self.end(now, |waited| Outcome::Missed { waited }) } else { None }
    }

    /// When to call `timeout`, if nothing else happens.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.warning.or(self.deadline?).poll_timeout()
    }

    /// The worker asks for so much time from now (`EXTEND_TIMEOUT_USEC`), as often as it likes: as long as it keeps asking it
    /// is alive, and whoever wants a bound sets a limit on the whole run.
    pub(crate) fn extend(&mut self, by: Duration, now: Instant) {
        if let Some(deadline) = &mut self.deadline {
            deadline.leave_at_least(now, by);
            self.warning.leave_at_least(now, most_of(by));
        }
    }

    /// Whether there was an outcome.
    #[cfg(test)]
    pub(crate) fn is_over(&self) -> bool {
        self.deadline.is_none()
    }

    fn end(&mut self, now: Instant, outcome: impl FnOnce(Duration) -> Outcome) -> Option<Outcome> {
        self.deadline.take()?;
        Some(outcome(now.saturating_duration_since(self.started)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::deadline::start;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);
    const MARKS: [Mark; 8] = [
        Mark::Started,
        Mark::Connected,
        Mark::Message,
        Mark::Line,
        Mark::Newline,
        Mark::Notified,
        Mark::Reached,
        Mark::Checked,
    ];

    #[test]
    fn only_the_wanted_sign_makes_it_ready() {
        let t0 = start();
        for wanted in MARKS {
            let mut one = ReadinessTracker::new(wanted, 9 * SECOND, t0);
            for other in MARKS.into_iter().filter(|&mark| mark != wanted) {
                assert_eq!(one.see(Sign::Shown(other), t0 + SECOND), None, "{other:?} for {wanted:?}");
            }
            assert_eq!(one.poll_timeout(), Some(t0 + 9 * SECOND * 3 / 4));
            let became = Some(Outcome::Became { after: 2 * SECOND });
            assert_eq!(one.see(Sign::Shown(wanted), t0 + 2 * SECOND), became);
            assert_eq!((one.poll_timeout(), one.is_over()), (None, true));
            for sign in [Sign::Shown(wanted), Sign::DescriptorClosed, Sign::Died] {
                assert_eq!(one.see(sign, t0 + 3 * SECOND), None, "told once: READY=1 may come twice");
            }
        }
    }

    #[test]
    fn p15_readiness_has_a_deadline() {
        let t0 = start();
        let mut one = ReadinessTracker::new(Mark::Notified, 4 * SECOND, t0);
        assert_eq!(one.timeout(t0 + 2 * SECOND), None);
        assert_eq!(one.poll_timeout(), Some(t0 + 3 * SECOND));
        assert_eq!(one.timeout(t0 + 3 * SECOND), Some(Outcome::Slow { waited: 3 * SECOND }));
        assert_eq!((one.timeout(t0 + 3 * SECOND), one.poll_timeout()), (None, Some(t0 + 4 * SECOND)), "told once");
        assert_eq!(one.timeout(t0 + 4 * SECOND), Some(Outcome::Missed { waited: 4 * SECOND }));
        assert_eq!(one.timeout(t0 + 5 * SECOND), None);
        assert_eq!(one.see(Sign::Shown(Mark::Notified), t0 + 5 * SECOND), None, "too late");
    }

    #[test]
    fn one_whose_wait_was_overslept_is_told_as_slow_before_it_is_missed() {
        let t0 = start();
        let mut one = ReadinessTracker::new(Mark::Notified, 4 * SECOND, t0);
        let late = t0 + 9 * SECOND;
        assert_eq!(one.timeout(late), Some(Outcome::Slow { waited: 9 * SECOND }));
        assert!(one.poll_timeout().is_some_and(|due| due <= late), "at once again");
        assert_eq!(one.timeout(late), Some(Outcome::Missed { waited: 9 * SECOND }));
    }

    #[test]
    fn p15_a_closed_descriptor_without_a_newline_is_never_ready() {
        let t0 = start();
        let mut one = ReadinessTracker::new(Mark::Newline, 3 * SECOND, t0);
        assert_eq!(one.see(Sign::DescriptorClosed, t0 + SECOND), Some(Outcome::Closed { after: SECOND }));
        let mut other = ReadinessTracker::new(Mark::Line, 3 * SECOND, t0);
        assert_eq!(other.see(Sign::DescriptorClosed, t0), None, "nobody waits for that descriptor");
    }

    #[test]
    fn p15_output_that_was_looked_through_in_vain_ends_a_wait_for_output() {
        let t0 = start();
        for wanted in MARKS {
            let mut one = ReadinessTracker::new(wanted, 3 * SECOND, t0);
            let is_by_output = matches!(wanted, Mark::Line | Mark::Message);
            let outcome = is_by_output.then_some(Outcome::Exhausted { after: SECOND });
            assert_eq!(one.see(Sign::OutputLimit, t0 + SECOND), outcome, "{wanted:?}");
            assert_eq!(one.is_over(), is_by_output);
        }
    }

    #[test]
    fn p15_one_that_dies_first_ends_the_wait() {
        let t0 = start();
        let mut one = ReadinessTracker::new(Mark::Reached, Duration::MAX, t0);
        assert_eq!(one.poll_timeout(), None, "a time beyond the clock is for ever");
        assert_eq!(one.see(Sign::Died, t0 + SECOND), Some(Outcome::Died { after: SECOND }));
        assert!(one.is_over());
    }

    #[test]
    fn p15_a_worker_gets_the_time_it_asks_for() {
        let t0 = start();
        let mut one = ReadinessTracker::new(Mark::Notified, 4 * SECOND, t0);
        one.extend(SECOND, t0 + SECOND);
        assert_eq!(one.poll_timeout(), Some(t0 + 3 * SECOND), "two are left until it is slow");
        one.extend(8 * SECOND, t0 + SECOND);
        assert_eq!(one.poll_timeout(), Some(t0 + 7 * SECOND), "slow after most of what it asked for");
        assert_eq!(one.timeout(t0 + 7 * SECOND), Some(Outcome::Slow { waited: 7 * SECOND }));
        assert_eq!(one.poll_timeout(), Some(t0 + 9 * SECOND));
        one.extend(8 * SECOND, t0 + 8 * SECOND);
        assert_eq!(one.poll_timeout(), Some(t0 + 16 * SECOND), "told as slow already");
        one.see(Sign::Shown(Mark::Notified), t0 + 9 * SECOND);
        one.extend(9 * SECOND, t0 + 9 * SECOND);
        assert_eq!(one.poll_timeout(), None, "nothing to prolong");
    }

    proptest! {
        #[test]
        fn p15_any_history_has_one_outcome(
            wanted in 0..8_usize,
            history in prop::collection::vec((0..12_usize, 0..3000_u64), 0..40),
        ) {
            let t0 = start();
            let mut one = ReadinessTracker::new(MARKS[wanted], 5 * SECOND, t0);
            let (mut now, mut outcomes, mut slow) = (t0, Vec::new(), 0);
            let rest = [(10, 100_000), (10, 0)];
            for (event, pause_ms) in history.into_iter().chain(rest) {
                now += Duration::from_millis(pause_ms);
                match event {
                    8 => outcomes.extend(one.see(Sign::DescriptorClosed, now)),
                    9 => outcomes.extend(one.see(Sign::Died, now)),
                    11 => outcomes.extend(one.see(Sign::OutputLimit, now)),
                    10 => match one.timeout(now) {
                        Some(Outcome::Slow { .. }) => slow += usize::from(outcomes.is_empty()),
                        outcome => outcomes.extend(outcome),
                    },
                    shown => outcomes.extend(one.see(Sign::Shown(MARKS[shown]), now)),
                }
                prop_assert_eq!(one.is_over(), outcomes.len() == 1);
                if one.is_over() {
                    prop_assert_eq!(one.poll_timeout(), None);
                }
            }
            prop_assert_eq!(outcomes.len(), 1, "{:?}", outcomes);
            let was_missed = matches!(outcomes[0], Outcome::Missed { .. });
            prop_assert!(slow <= 1 && (slow == 1 || !was_missed), "told as slow {} times, {:?}", slow, outcomes);
        }
    }
}
