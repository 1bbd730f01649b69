//! Stop policies: the stages from a request to end to SIGKILL.

use std::time::Duration;

/// One action of a stage of a [`StopPolicy`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopStep {
    /// Closes the supervisor's ends of the worker's pipes, including standard input: the worker reads end of file.
    ClosePipes,
    /// Closes the supervisor's end of standard input, if it has one: with [`StdinMode::Pipe`](crate::StdinMode::Pipe), unless it was taken,
    /// and with [`control_on_stdio`](crate::WorkerSpec::control_on_stdio), after all that was sent.
    CloseStdin,
    /// Calls this method without parameters over the control connection. The stage ends when the call is answered, also with an error.
    Call(Box<str>),
    /// Sends a notification with this method and without parameters over the control connection.
    Notify(Box<str>),
    /// Does nothing: the stage gives the worker its grace period to exit by itself.
    Wait,
    /// Sends this signal to the worker's process.
    Signal(i32),
    /// Sends this signal to the worker's process and, where it leads a process group, to that group.
    SignalGroup(i32),
}

/// Actions that are taken together, followed by a grace period.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StopStage {
    pub(crate) steps: Vec<StopStep>,
    pub(crate) grace_period: Duration,
}

/// How a worker is stopped: in stages, each with a grace period, and after the last one by SIGKILL to its whole process tree.
///
/// A stage that has nothing to do (no open pipes, no control connection) takes no time, and one with a call ends with its answer. A second
/// [`stop`](crate::Worker::stop) goes on to the next stage at once.
///
/// When the worker's own process exits during a stop, the other members of its process group keep the rest of the policy: what is
/// left of the current grace period, then the next stages, then SIGKILL. A server whose wrapper exits at SIGTERM thus has time to
/// shut down. Descendants outside the group receive SIGKILL as soon as the group has ended. When a worker exits without being
/// stopped, its whole tree is killed at once.
///
/// ```
/// use pipewright::{StopPolicy, StopStep, WorkerSpec};
/// use std::time::Duration;
///
/// let quit = StopPolicy::kill().step([StopStep::Signal(3)], Duration::from_secs(2)); // SIGQUIT, 2 s, SIGKILL
/// WorkerSpec::new("nginx").stop(quit);
///
/// let save = StopPolicy::kill()
///     .step([StopStep::Call("save".into())], Duration::from_secs(30)) // up to 30 s for the answer
///     .step([StopStep::CloseStdin], Duration::from_secs(2));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct StopPolicy {
    stages: Vec<StopStage>,
}

impl Default for StopPolicy {
    /// The notification `shutdown` and closed pipes, 1 s; SIGTERM to the group, 5 s; SIGKILL.
    fn default() -> Self {
        Self::kill()
            .step([StopStep::Notify("shutdown".into()), StopStep::ClosePipes], Duration::from_secs(1))
            .step([StopStep::SignalGroup(SIGTERM)], Duration::from_secs(5))
    }
}

const SIGTERM: i32 = 15; // on every Linux architecture

impl StopPolicy {
    /// SIGKILL at once. Stages added with [`step`](Self::step) come before it.
    pub const fn kill() -> Self {
        Self { stages: Vec::new() }
    }

    /// Adds a stage: takes these actions together and then waits up to `grace_period` for the worker to exit.
    pub fn step(mut self, steps: impl IntoIterator<Item = StopStep>, grace_period: Duration) -> Self {
        self.stages.push(StopStage { steps: steps.into_iter().collect(), grace_period });
        self
    }

    /// The sum of all grace periods: the longest time from the start of a stop to SIGKILL.
    pub fn total_grace_period(&self) -> Duration {
        self.stages.iter().fold(Duration::ZERO, |sum, stage| sum.saturating_add(stage.grace_period))
    }

    pub(crate) fn stages(&self) -> &[StopStage] {
        &self.stages
    }

    /// The first number that is not a signal.
    pub(crate) fn invalid_signal(&self) -> Option<i32> {
        self.stages.iter().flat_map(|stage| &stage.steps).find_map(|step| match step {
            StopStep::Signal(signal) | StopStep::SignalGroup(signal) => {
                Some(*signal).filter(|signal| !(1..=64).contains(signal))
            }
            StopStep::ClosePipes | StopStep::CloseStdin | StopStep::Call(_) | StopStep::Notify(_) | StopStep::Wait => {
                None
            }
        })
    }
}
