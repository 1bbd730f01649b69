//! The stop ladder: from asking a worker to end to killing it.

use std::time::Duration;

/// One thing to do to a worker that shall end.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopStep {
    /// Close our ends of the pipes to it, standard input among them: there is no more work.
    ClosePipes,
    /// Tell it over control, by a notification of this method without parameters.
    Notify(Box<str>),
    /// A signal to its process, by its number.
    Signal(i32),
    /// A signal to its process and its group, where that is its own.
    SignalGroup(i32),
}

/// Steps that are taken together, and how long the worker then has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rung {
    pub(crate) steps: Vec<StopStep>,
    pub(crate) grace_period: Duration,
}

/// How a worker is stopped: rung by rung, each with its grace period, and after the last one SIGKILL to its whole tree.
///
/// A rung that has nothing to do (no pipes to close, nobody on control) takes no time. A second [`stop`](crate::Worker::stop)
/// goes to the next rung at once.
///
/// When the worker's own process has ended, on whichever rung, the other members of its process group keep what is left of the
/// ladder: the rung's grace period, then the next rungs, then SIGKILL. So a server whose wrapper ends at SIGTERM has time to shut
/// down. What has left the group gets SIGKILL as soon as the group has ended. A worker that ends without being stopped takes its
/// whole tree along at once.
///
/// ```
/// use pipewright::{StopPolicy, StopStep, WorkerSpec};
/// use std::time::Duration;
///
/// let quit = StopPolicy::kill().then([StopStep::Signal(3)], Duration::from_secs(2)); // SIGQUIT, 2 s, SIGKILL
/// WorkerSpec::new("nginx").stop(quit);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct StopPolicy {
    rungs: Vec<Rung>,
}

impl Default for StopPolicy {
    /// Control `shutdown` and closed pipes, 1 s; SIGTERM to the group, 5 s; SIGKILL.
    fn default() -> Self {
        Self::kill()
            .then([StopStep::Notify("shutdown".into()), StopStep::ClosePipes], Duration::from_secs(1))
            .then([StopStep::SignalGroup(SIGTERM)], Duration::from_secs(5))
    }
}

const SIGTERM: i32 = 15; // on every Linux

impl StopPolicy {
    /// SIGKILL at once: the ladder to add rungs to, which come before it.
    pub const fn kill() -> Self {
        Self { rungs: Vec::new() }
    }

    /// Another rung: these steps, and then so long a grace period.
    pub fn then(mut self, steps: impl IntoIterator<Item = StopStep>, grace_period: Duration) -> Self {
        self.rungs.push(Rung { steps: steps.into_iter().collect(), grace_period });
        self
    }

    /// The longest time from the first step to SIGKILL.
    pub fn longest(&self) -> Duration {
        self.rungs.iter().fold(Duration::ZERO, |sum, rung| sum.saturating_add(rung.grace_period))
    }

    pub(crate) fn rungs(&self) -> &[Rung] {
        &self.rungs
    }

    /// The first signal number that the kernel does not have.
    pub(crate) fn bad_signal(&self) -> Option<i32> {
        self.rungs.iter().flat_map(|rung| &rung.steps).find_map(|step| match step {
            StopStep::Signal(signal) | StopStep::SignalGroup(signal) => {
                Some(*signal).filter(|signal| !(1..=64).contains(signal))
            }
            StopStep::ClosePipes | StopStep::Notify(_) => None,
        })
    }
}
