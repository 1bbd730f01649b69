//! How far the shutdown of a supervisor has come.

use std::time::{Duration, Instant};

/// What happens to workers whose start completes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// They continue to run.
    Open,
    /// They are stopped, and killed at `until`.
    Stopping { until: Option<Instant> },
    /// The same, and no worker is restarted.
    Terminating { until: Option<Instant> },
}

/// How far the shutdown of a supervisor has come.
#[derive(Debug)]
pub(crate) struct Shutdown {
    /// No more workers are accepted: the event loop ends with the last one.
    pub(crate) is_closed: bool,
    pub(crate) phase: Phase,
    /// The time from the drop of the supervisor to SIGKILL.
    pub(crate) grace_period: Duration,
}

impl Shutdown {
    pub(crate) fn new(grace_period: Duration) -> Self {
        Self { is_closed: false, phase: Phase::Open, grace_period }
    }

    /// Begins to stop all workers. A termination that has begun continues.
    pub(crate) fn stop(&mut self, until: Option<Instant>) {
        self.phase = match self.phase {
            Phase::Open | Phase::Stopping { .. } => Phase::Stopping { until },
            Phase::Terminating { .. } => Phase::Terminating { until },
        };
    }

    pub(crate) fn terminate(&mut self, until: Option<Instant>) {
        self.phase = Phase::Terminating { until };
    }

    pub(crate) fn is_terminating(&self) -> bool {
        matches!(self.phase, Phase::Terminating { .. })
    }

    /// Moves the deadline forward after a suspension, since it counts real time.
    pub(crate) fn advance(&mut self, earlier: impl Fn(Instant) -> Instant) {
        if let Phase::Stopping { until } | Phase::Terminating { until } = &mut self.phase {
            *until = until.map(earlier);
        }
    }
}
