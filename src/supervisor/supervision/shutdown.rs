//! How far the shutdown of a supervisor has come.

use std::time::{Duration, Instant};

/// What workers have to do that still start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// They run.
    Open,
    /// They are stopped, by this time where one was given.
    Stopping { until: Option<Instant> },
    /// The same, and no worker is restarted.
    Terminating { until: Option<Instant> },
}

/// How far the shutdown of a supervisor has come.
#[derive(Debug)]
pub(crate) struct Shutdown {
    /// No new workers come: the event loop ends with the last one.
    pub(crate) is_closed: bool,
    pub(crate) phase: Phase,
    /// From the drop of the supervisor to SIGKILL.
    pub(crate) grace_period: Duration,
}

impl Shutdown {
    pub(crate) fn new(grace_period: Duration) -> Self {
        Self { is_closed: false, phase: Phase::Open, grace_period }
    }

    /// All workers are to stop for good. Termination, which may have begun before, stays.
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

    /// Moves the end of the stop forward: the time was promised in real time, and the process was suspended.
    pub(crate) fn advance(&mut self, earlier: impl Fn(Instant) -> Instant) {
        if let Phase::Stopping { until } | Phase::Terminating { until } = &mut self.phase {
            *until = until.map(earlier);
        }
    }
}
