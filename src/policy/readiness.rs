//! Readiness of a started worker: what makes it ready, and how long it may take.

use crate::{deadline::Deadline, text::printable};
use std::{
    fmt,
    time::{Duration, Instant},
};

/// What makes a worker ready, by its [`Readiness`](crate::Readiness).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReadinessSource {
    /// The process was started.
    Started,
    /// The worker connected to its control pipe.
    Control,
    /// The worker sent a message that was accepted.
    Message,
    /// The worker wrote a line that matched.
    LogLine,
    /// The worker wrote a newline to the notification fd (s6).
    NotifyFd,
    /// The worker sent `READY=1` to its notify socket.
    SdNotify,
    /// The address of the worker accepted a connection.
    Connect,
    /// The user's check succeeded.
    Check,
    /// The worker answered the readiness call, and the answer was accepted.
    Call,
}

impl ReadinessSource {
    /// What has not happened to a worker that is not ready.
    fn missing(self) -> &'static str {
        match self {
            Self::Started => "it has not started",
            Self::Control => "it has not connected to its control pipe",
            Self::Message => "it has not sent the expected message",
            Self::LogLine => "it has not printed the expected line",
            Self::NotifyFd => "it has not written a newline to its readiness pipe",
            Self::SdNotify => "it has not sent READY=1",
            Self::Connect => "it accepts no connection",
            Self::Check => "the check has not succeeded",
            Self::Call => "it has not answered its readiness call, or only that it is not ready yet",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ReadinessInput {
    Observed(ReadinessSource),
    /// The output was searched up to its limit without a match.
    OutputLimit,
    /// End of file on the notification fd. Without effect after a newline.
    PipeClosed,
    /// The readiness call failed.
    CallFailed(Box<str>),
    /// The worker can never become ready, for this reason.
    Rejected(Box<str>),
    ProcessExited,
}

/// Times count from the start of the worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ReadinessOutcome {
    /// Most of the timeout has passed, and the worker is not ready yet. Returned at most once, always before a timeout.
    Delayed {
        waited: Duration,
    },
    Ready {
        after: Duration,
    },
    Failed(ReadinessError),
}

/// Why a worker is not ready. Times are measured from its start.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReadinessError {
    /// It was not ready within its timeout.
    TimedOut {
        /// The time waited.
        waited: Duration,
        /// What would have made it ready.
        source: ReadinessSource,
    },
    /// It closed its readiness pipe without writing a newline.
    PipeClosed {
        /// Time since its start.
        after: Duration,
    },
    /// The line or message that makes it ready was not in the first 16 MiB of its output.
    OutputLimit {
        /// Time since its start.
        after: Duration,
    },
    /// Its [readiness call](crate::Readiness::call) failed: the worker answered with an error, or closed its control connection.
    CallFailed {
        /// The error.
        error: Box<str>,
    },
    /// Its answer to the [readiness call](crate::Readiness::call) is [fatal](crate::ReadinessAnswer::Fatal). It is not restarted.
    Fatal {
        /// Why it can never be used.
        reason: Box<str>,
    },
    /// It exited first; `Exited` follows.
    Exited {
        /// Time since its start.
        after: Duration,
    },
}

impl fmt::Display for ReadinessError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TimedOut { waited, source } => {
                write!(formatter, "not ready after {waited:.1?}: {}", source.missing())
            }
            Self::PipeClosed { after } => {
                write!(formatter, "closed its readiness pipe without a newline after {after:.1?}")
            }
            Self::OutputLimit { after } => {
                write!(formatter, "not ready after 16 MiB of output and {after:.1?}")
            }
            Self::CallFailed { error } => write!(formatter, "readiness call failed: {}", printable(&**error)),
            Self::Fatal { reason } => write!(formatter, "cannot be used: {}", printable(&**reason)),
            Self::Exited { after } => write!(formatter, "exited before it was ready, after {after:.1?}"),
        }
    }
}

/// Tracks the readiness of one incarnation. Returns one final outcome, and nothing after it.
#[derive(Debug)]
pub(crate) struct ReadinessTracker {
    source: ReadinessSource,
    started: Instant,
    /// When `Delayed` is due; never once it was returned.
    warning: Deadline,
    /// `None` after the final outcome.
    deadline: Option<Deadline>,
}

/// After which time a worker counts as delayed: the same fraction as for the warning of a watchdog.
fn warn_delay(time: Duration) -> Duration {
    time.saturating_sub(time / 4)
}

impl ReadinessTracker {
    pub(crate) fn new(source: ReadinessSource, timeout: Duration, started: Instant) -> Self {
        let warning = Deadline::after(started, warn_delay(timeout));
        Self { source, started, warning, deadline: Some(Deadline::after(started, timeout)) }
    }

    pub(crate) fn handle(&mut self, input: ReadinessInput, now: Instant) -> Option<ReadinessOutcome> {
        match input {
            ReadinessInput::Observed(source) if source == self.source => {
                self.end(now, |after| ReadinessOutcome::Ready { after })
            }
            ReadinessInput::PipeClosed if self.source == ReadinessSource::NotifyFd => {
                self.end(now, |after| ReadinessOutcome::Failed(ReadinessError::PipeClosed { after }))
            }
            ReadinessInput::OutputLimit
                if matches!(self.source, ReadinessSource::LogLine | ReadinessSource::Message) =>
            {
                self.end(now, |after| ReadinessOutcome::Failed(ReadinessError::OutputLimit { after }))
            }
            ReadinessInput::CallFailed(error) if self.source == ReadinessSource::Call => {
                self.end(now, |_| ReadinessOutcome::Failed(ReadinessError::CallFailed { error }))
            }
            ReadinessInput::Rejected(reason) if self.source == ReadinessSource::Call => {
                self.end(now, |_| ReadinessOutcome::Failed(ReadinessError::Fatal { reason }))
            }
            ReadinessInput::ProcessExited => {
                self.end(now, |after| ReadinessOutcome::Failed(ReadinessError::Exited { after }))
            }
            ReadinessInput::Observed(_)
            | ReadinessInput::PipeClosed
            | ReadinessInput::OutputLimit
            | ReadinessInput::CallFailed(_)
            | ReadinessInput::Rejected(_) => None,
        }
    }

    /// Called when the time of `poll_timeout` has come. What the worker did before must be handled first: a late event loop is
    /// not its fault.
    pub(crate) fn timeout(&mut self, now: Instant) -> Option<ReadinessOutcome> {
        let deadline = self.deadline?;
        if self.warning.is_due(now) {
            // A call that is late returns `Delayed` first and `TimedOut` from the next call.
            self.warning.clear();
            return Some(ReadinessOutcome::Delayed { waited: now.saturating_duration_since(self.started) });
        }
        if deadline.is_due(now) {
            let source = self.source;
            self.end(now, |waited| ReadinessOutcome::Failed(ReadinessError::TimedOut { waited, source }))
        } else {
            None
        }
    }

    /// When to call `timeout`, if no input comes first.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.warning.or(self.deadline?).poll_timeout()
    }

    /// The worker asks for this much time from now (`EXTEND_TIMEOUT_USEC`), as often as it likes: a worker that keeps asking is
    /// alive. `runtime_max` bounds the whole run.
    pub(crate) fn extend(&mut self, by: Duration, now: Instant) {
        if let Some(deadline) = &mut self.deadline {
            deadline.leave_at_least(now, by);
            self.warning.leave_at_least(now, warn_delay(by));
        }
    }

    /// Whether the final outcome was returned.
    #[cfg(test)]
    pub(crate) fn is_over(&self) -> bool {
        self.deadline.is_none()
    }

    fn end(&mut self, now: Instant, outcome: impl FnOnce(Duration) -> ReadinessOutcome) -> Option<ReadinessOutcome> {
        self.deadline.take()?;
        Some(outcome(now.saturating_duration_since(self.started)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deadline::start;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);
    const SOURCES: [ReadinessSource; 9] = [
        ReadinessSource::Started,
        ReadinessSource::Control,
        ReadinessSource::Message,
        ReadinessSource::LogLine,
        ReadinessSource::NotifyFd,
        ReadinessSource::SdNotify,
        ReadinessSource::Connect,
        ReadinessSource::Check,
        ReadinessSource::Call,
    ];

    #[test]
    fn only_configured_source_makes_ready() {
        let t0 = start();
        for source in SOURCES {
            let mut tracker = ReadinessTracker::new(source, 9 * SECOND, t0);
            for other in SOURCES.into_iter().filter(|&other| other != source) {
                assert_eq!(
                    tracker.handle(ReadinessInput::Observed(other), t0 + SECOND),
                    None,
                    "{other:?} for {source:?}"
                );
            }
            assert_eq!(tracker.poll_timeout(), Some(t0 + 9 * SECOND * 3 / 4));
            let became = Some(ReadinessOutcome::Ready { after: 2 * SECOND });
            assert_eq!(tracker.handle(ReadinessInput::Observed(source), t0 + 2 * SECOND), became);
            assert_eq!((tracker.poll_timeout(), tracker.is_over()), (None, true));
            for sign in [
                ReadinessInput::Observed(source),
                ReadinessInput::PipeClosed,
                ReadinessInput::Rejected("no".into()),
                ReadinessInput::ProcessExited,
            ] {
                assert_eq!(tracker.handle(sign, t0 + 3 * SECOND), None, "only one outcome: READY=1 may come twice");
            }
        }
    }

    #[test]
    fn p15_readiness_times_out() {
        let t0 = start();
        let mut tracker = ReadinessTracker::new(ReadinessSource::SdNotify, 4 * SECOND, t0);
        assert_eq!(tracker.timeout(t0 + 2 * SECOND), None);
        assert_eq!(tracker.poll_timeout(), Some(t0 + 3 * SECOND));
        assert_eq!(tracker.timeout(t0 + 3 * SECOND), Some(ReadinessOutcome::Delayed { waited: 3 * SECOND }));
        assert_eq!(
            (tracker.timeout(t0 + 3 * SECOND), tracker.poll_timeout()),
            (None, Some(t0 + 4 * SECOND)),
            "returned once"
        );
        assert_eq!(
            tracker.timeout(t0 + 4 * SECOND),
            Some(ReadinessOutcome::Failed(ReadinessError::TimedOut {
                waited: 4 * SECOND,
                source: ReadinessSource::SdNotify
            }))
        );
        assert_eq!(tracker.timeout(t0 + 5 * SECOND), None);
        assert_eq!(
            tracker.handle(ReadinessInput::Observed(ReadinessSource::SdNotify), t0 + 5 * SECOND),
            None,
            "too late"
        );
    }

    #[test]
    fn late_timeout_reports_delay_first() {
        let t0 = start();
        let mut tracker = ReadinessTracker::new(ReadinessSource::SdNotify, 4 * SECOND, t0);
        let late = t0 + 9 * SECOND;
        assert_eq!(tracker.timeout(late), Some(ReadinessOutcome::Delayed { waited: 9 * SECOND }));
        assert!(tracker.poll_timeout().is_some_and(|due| due <= late), "due at once");
        assert_eq!(
            tracker.timeout(late),
            Some(ReadinessOutcome::Failed(ReadinessError::TimedOut {
                waited: 9 * SECOND,
                source: ReadinessSource::SdNotify
            }))
        );
    }

    #[test]
    fn p15_closed_fd_without_newline_is_never_ready() {
        let t0 = start();
        let mut tracker = ReadinessTracker::new(ReadinessSource::NotifyFd, 3 * SECOND, t0);
        assert_eq!(
            tracker.handle(ReadinessInput::PipeClosed, t0 + SECOND),
            Some(ReadinessOutcome::Failed(ReadinessError::PipeClosed { after: SECOND }))
        );
        let mut other = ReadinessTracker::new(ReadinessSource::LogLine, 3 * SECOND, t0);
        assert_eq!(other.handle(ReadinessInput::PipeClosed, t0), None, "not its source");
    }

    #[test]
    fn p15_output_limit_ends_wait_for_output() {
        let t0 = start();
        for source in SOURCES {
            let mut tracker = ReadinessTracker::new(source, 3 * SECOND, t0);
            let is_by_output = matches!(source, ReadinessSource::LogLine | ReadinessSource::Message);
            let outcome =
                is_by_output.then_some(ReadinessOutcome::Failed(ReadinessError::OutputLimit { after: SECOND }));
            assert_eq!(tracker.handle(ReadinessInput::OutputLimit, t0 + SECOND), outcome, "{source:?}");
            assert_eq!(tracker.is_over(), is_by_output);
        }
    }

    #[test]
    fn p15_a_failed_call_ends_the_wait_for_it() {
        let t0 = start();
        for source in SOURCES {
            let ends = |input| ReadinessTracker::new(source, 3 * SECOND, t0).handle(input, t0 + SECOND);
            let expected = |error| (source == ReadinessSource::Call).then_some(ReadinessOutcome::Failed(error));
            let failed = ReadinessError::CallFailed { error: "no".into() };
            assert_eq!(ends(ReadinessInput::CallFailed("no".into())), expected(failed), "{source:?}");
            let fatal = ReadinessError::Fatal { reason: "no".into() };
            assert_eq!(ends(ReadinessInput::Rejected("no".into())), expected(fatal), "{source:?}");
        }
    }

    #[test]
    fn p15_exit_ends_the_wait() {
        let t0 = start();
        let mut tracker = ReadinessTracker::new(ReadinessSource::Connect, Duration::MAX, t0);
        assert_eq!(tracker.poll_timeout(), None, "a timeout beyond the clock never expires");
        assert_eq!(
            tracker.handle(ReadinessInput::ProcessExited, t0 + SECOND),
            Some(ReadinessOutcome::Failed(ReadinessError::Exited { after: SECOND }))
        );
        assert!(tracker.is_over());
    }

    #[test]
    fn p15_worker_can_extend_its_timeout() {
        let t0 = start();
        let mut tracker = ReadinessTracker::new(ReadinessSource::SdNotify, 4 * SECOND, t0);
        tracker.extend(SECOND, t0 + SECOND);
        assert_eq!(tracker.poll_timeout(), Some(t0 + 3 * SECOND), "two seconds are left");
        tracker.extend(8 * SECOND, t0 + SECOND);
        assert_eq!(tracker.poll_timeout(), Some(t0 + 7 * SECOND), "three quarters of the extension");
        assert_eq!(tracker.timeout(t0 + 7 * SECOND), Some(ReadinessOutcome::Delayed { waited: 7 * SECOND }));
        assert_eq!(tracker.poll_timeout(), Some(t0 + 9 * SECOND));
        tracker.extend(8 * SECOND, t0 + 8 * SECOND);
        assert_eq!(tracker.poll_timeout(), Some(t0 + 16 * SECOND), "no second warning");
        tracker.handle(ReadinessInput::Observed(ReadinessSource::SdNotify), t0 + 9 * SECOND);
        tracker.extend(9 * SECOND, t0 + 9 * SECOND);
        assert_eq!(tracker.poll_timeout(), None, "nothing to extend");
    }

    proptest! {
        #[test]
        fn p15_any_history_has_one_final_outcome(
            source in 0..9_usize,
            history in prop::collection::vec((0..15_usize, 0..3000_u64), 0..40),
        ) {
            let t0 = start();
            let mut tracker = ReadinessTracker::new(SOURCES[source], 5 * SECOND, t0);
            let (mut now, mut outcomes, mut delays) = (t0, Vec::new(), 0);
            let rest = [(11, 100_000), (11, 0)];
            for (event, pause_ms) in history.into_iter().chain(rest) {
                now += Duration::from_millis(pause_ms);
                match event {
                    9 => outcomes.extend(tracker.handle(ReadinessInput::PipeClosed, now)),
                    10 => outcomes.extend(tracker.handle(ReadinessInput::ProcessExited, now)),
                    12 => outcomes.extend(tracker.handle(ReadinessInput::OutputLimit, now)),
                    13 => outcomes.extend(tracker.handle(ReadinessInput::CallFailed("no".into()), now)),
                    14 => outcomes.extend(tracker.handle(ReadinessInput::Rejected("no".into()), now)),
                    11 => match tracker.timeout(now) {
                        Some(ReadinessOutcome::Delayed { .. }) => delays += usize::from(outcomes.is_empty()),
                        outcome => outcomes.extend(outcome),
                    },
                    shown => outcomes.extend(tracker.handle(ReadinessInput::Observed(SOURCES[shown]), now)),
                }
                prop_assert_eq!(tracker.is_over(), outcomes.len() == 1);
                if tracker.is_over() {
                    prop_assert_eq!(tracker.poll_timeout(), None);
                }
            }
            prop_assert_eq!(outcomes.len(), 1, "{:?}", outcomes);
            let was_missed = matches!(outcomes[0], ReadinessOutcome::Failed(ReadinessError::TimedOut { .. }));
            prop_assert!(delays <= 1 && (delays == 1 || !was_missed), "{} warnings, {:?}", delays, outcomes);
        }
    }
}
