//! The state of a job, shared by the event loop and the handles.

use crate::{
    exit::{Exit, ExitCause, ExitStatus},
    ids::WorkerId,
    jobserver::client::{JobserverClient, JobserverToken},
    launch::error::SpawnError,
    policy::{
        restart::{AfterExit, GiveUpReason},
        schedule::task::{QueueId, TaskId, TaskResult},
    },
    supervisor::{
        clock::now,
        sync::lock,
        worker::{SharedWorker, budget::SharedBudget},
    },
};
use std::{
    fmt,
    sync::{Arc, Mutex, OnceLock},
};

/// The number of the slot, in the environment of a job.
pub(crate) const SLOT_VARIABLE: &str = "PIPEWRIGHT_SLOT";

/// How a [`Job`](crate::pool::Job) has ended: what its final event says.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum JobOutcome {
    /// Its last attempt was a success, by the [restart policy](crate::RestartPolicy::success) of its spec.
    Succeeded(Arc<Exit>),
    /// Its last attempt was a failure, or was stopped.
    Failed {
        /// The exit of the last attempt.
        exit: Arc<Exit>,
        /// Why it is not tried again.
        next: AfterExit,
    },
    /// Its last attempt could not be started.
    SpawnFailed {
        /// The error.
        error: Arc<SpawnError>,
        /// Why it is not tried again.
        next: AfterExit,
    },
    /// It was not started, since a job that it was to run [after](crate::pool::JobSpec::after) has not succeeded.
    DependencyFailed {
        /// That job.
        on: WorkerId,
    },
    /// It was cancelled while it waited: for its dependencies, for a slot, or for its next attempt.
    NotStarted {
        /// Why it is not started.
        next: AfterExit,
    },
}

impl JobOutcome {
    /// Whether the job has succeeded.
    pub fn success(&self) -> bool {
        matches!(self, Self::Succeeded(_))
    }

    /// Returns the exit of the last attempt; `None` if that could not be started, or there was none.
    pub fn exit(&self) -> Option<&Arc<Exit>> {
        match self {
            Self::Succeeded(exit) | Self::Failed { exit, .. } => Some(exit),
            Self::SpawnFailed { .. } | Self::DependencyFailed { .. } | Self::NotStarted { .. } => None,
        }
    }
}

impl fmt::Display for JobOutcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed { exit, next: AfterExit::GaveUp(why) } => write!(formatter, "{exit}; gave up: {why}"),
            Self::Failed { exit, .. } if exit.cause == ExitCause::Stop => write!(formatter, "{exit}, cancelled"),
            Self::Succeeded(exit) | Self::Failed { exit, .. } => write!(formatter, "{exit}"),
            Self::SpawnFailed { error, .. } => write!(formatter, "{error}"),
            Self::DependencyFailed { on } => write!(formatter, "not started, since job {on} has not succeeded"),
            Self::NotStarted { next: AfterExit::GaveUp(why) } => write!(formatter, "not started: {why}"),
            Self::NotStarted { .. } => formatter.write_str("not started, since it was cancelled"),
        }
    }
}

/// What a queue does when a job fails, for [`Jobs::on_failure`](crate::pool::Jobs::on_failure).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OnFailure {
    /// The other jobs run, except those that depend on it.
    #[default]
    #[doc(alias = "--keep-going")]
    KeepGoing,
    /// Jobs that run end by themselves. No other job is started, and none is tried again.
    #[doc(alias = "soon")]
    FinishRunning,
    /// Jobs that run are stopped, and no other job is started.
    #[doc(alias = "now")]
    #[doc(alias = "--fail-fast")]
    StopRunning,
}

/// One queue of a budget. Dropped with the last handle of it and the last of its jobs.
#[derive(Debug)]
pub(crate) struct JobQueue {
    pub(crate) id: QueueId,
    pub(crate) budget: Arc<SharedBudget>,
    pub(crate) failures: Mutex<Failures>,
    /// Each of its jobs takes a token of it.
    pub(crate) jobserver: OnceLock<JobserverClient>,
}

/// The failures of a queue.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    pub(crate) policy: OnFailure,
    /// A job has failed, and the policy is not to keep going.
    pub(crate) has_halted: bool,
}

impl JobQueue {
    pub(crate) fn new(id: QueueId, budget: Arc<SharedBudget>) -> Self {
        Self { id, budget, failures: Mutex::default(), jobserver: OnceLock::new() }
    }

    /// Whether no job is started any more.
    pub(crate) fn has_halted(&self) -> bool {
        lock(&self.failures).has_halted
    }

    /// A job has failed. Returns what happens to the others, if that was the first failure and changes anything.
    pub(crate) fn note_failure(&self) -> Option<OnFailure> {
        let mut failures = lock(&self.failures);
        let is_first = failures.policy != OnFailure::KeepGoing && !failures.has_halted;
        failures.has_halted |= is_first;
        is_first.then_some(failures.policy)
    }
}

impl Drop for JobQueue {
    fn drop(&mut self) {
        self.budget.remove_queue(self.id);
    }
}

/// The state of a job that its handles and the event loop share.
#[derive(Debug)]
pub(crate) struct SharedJob {
    pub(crate) task: TaskId,
    pub(crate) queue: Arc<JobQueue>,
    /// Set before the end of the worker is published, and before the schedule knows the end.
    outcome: OnceLock<JobOutcome>,
}

impl SharedJob {
    pub(crate) fn new(worker: WorkerId, queue: Arc<JobQueue>) -> Self {
        Self { task: TaskId(worker.0), queue, outcome: OnceLock::new() }
    }

    pub(crate) fn worker(&self) -> WorkerId {
        WorkerId(self.task.0)
    }

    pub(crate) fn outcome(&self) -> Option<&JobOutcome> {
        self.outcome.get()
    }

    /// Sets the outcome, before the end of the worker is published.
    pub(crate) fn set_outcome(&self, outcome: JobOutcome) {
        // There is one final event.
        drop(self.outcome.set(outcome));
    }
}

/// A job in the schedule, until it is dropped.
#[derive(Debug)]
pub(crate) struct ScheduledJob {
    worker: Arc<SharedWorker>,
    pub(crate) shared: Arc<SharedJob>,
    pub(crate) has_slot: bool,
    /// While it has a slot, if its queue has a jobserver.
    pub(crate) token: Option<JobserverToken>,
    /// Its last attempt was a success.
    pub(crate) has_succeeded: bool,
    /// Why it is ended by its queue.
    pub(crate) gave_up: Option<GiveUpReason>,
}

impl ScheduledJob {
    pub(crate) fn new(worker: Arc<SharedWorker>, shared: Arc<SharedJob>) -> Self {
        Self { worker, shared, has_slot: false, token: None, has_succeeded: false, gave_up: None }
    }

    /// Returns the slot between two attempts.
    pub(crate) fn release_slot(&mut self) {
        self.has_slot = false;
        self.token = None;
        self.shared.queue.budget.change(|schedule| schedule.pause(self.shared.task));
    }

    /// Requests a slot for the next attempt.
    pub(crate) fn request_slot(&self) {
        self.shared.queue.budget.change(|schedule| schedule.resume(self.shared.task));
    }
}

impl Drop for ScheduledJob {
    fn drop(&mut self) {
        self.token = None;
        if self.shared.outcome().is_none() {
            // The loop has ended before it had the job.
            self.shared.set_outcome(JobOutcome::NotStarted { next: AfterExit::Finished });
            self.worker.set_ended((Arc::new(Exit::of(ExitStatus::NeverStarted)), now()));
        }
        let has_succeeded = self.shared.outcome().is_some_and(JobOutcome::success);
        let result = if has_succeeded { TaskResult::Success } else { TaskResult::Failure };
        self.shared.queue.budget.change(|schedule| schedule.finish(self.shared.task, result));
    }
}
