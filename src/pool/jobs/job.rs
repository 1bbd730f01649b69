//! The handle of a job.

use crate::{
    exit::Exit,
    ids::WorkerId,
    policy::restart::AfterExit,
    supervisor::{
        handles::{stop::StopHandle, worker::Worker},
        worker::job::{JobOutcome, SharedJob},
    },
};
use std::{sync::Arc, time::Duration};

/// A job of a queue, from [`Jobs::submit`](crate::pool::Jobs::submit). Cheap to clone; dropping it changes nothing.
#[derive(Clone)]
pub struct Job {
    worker: Worker,
    shared: Arc<SharedJob>,
}

impl_debug!(Job, |job| { id: job.id().0, name: job.worker.name(), outcome: job.outcome() });

impl From<&Job> for WorkerId {
    fn from(job: &Job) -> Self {
        job.id()
    }
}

impl Job {
    pub(crate) fn new(worker: Worker, shared: Arc<SharedJob>) -> Self {
        Self { worker, shared }
    }

    pub(crate) fn shared(&self) -> Arc<SharedJob> {
        Arc::clone(&self.shared)
    }

    /// Returns the id that names it in events.
    pub fn id(&self) -> WorkerId {
        self.worker.id()
    }

    /// Returns its worker, which has the id of the job from the start, and a process while it runs.
    pub fn worker(&self) -> &Worker {
        &self.worker
    }

    /// Waits until the job has ended and its final event is in the channel.
    ///
    /// A job whose window is full cannot end before its output is received, nor start while the window of the supervisor is: wait on another
    /// thread than the one that receives events, or receive until the final event instead.
    pub fn wait(&self) -> JobOutcome {
        self.outcome_after(self.worker.wait())
    }

    /// As [`wait`](Self::wait), up to `timeout`; `None` if the job has not ended.
    pub fn wait_timeout(&self, timeout: Duration) -> Option<JobOutcome> {
        self.worker.wait_timeout(timeout).map(|exit| self.outcome_after(exit))
    }

    /// As [`wait`](Self::wait), for a task instead of a thread: with the feature `async`. Dropping the future changes nothing.
    #[cfg(feature = "async")]
    pub async fn ended(&self) -> JobOutcome {
        self.outcome_after(self.worker.exited().await)
    }

    fn outcome_after(&self, exit: Arc<Exit>) -> JobOutcome {
        // It is set before the end of the worker is published.
        self.outcome().unwrap_or(JobOutcome::Failed { exit, next: AfterExit::Finished })
    }

    /// Returns how it has ended; `None` if it has not.
    pub fn outcome(&self) -> Option<JobOutcome> {
        self.shared.outcome().cloned()
    }

    /// Cancels the job: it is not started, or stopped by the [stop policy](crate::WorkerSpec::stop) of its spec. Jobs that depend on it are
    /// not started. Returns at once, with a handle to wait for the end. A second call starts the next stage of the stop policy.
    pub fn cancel(&self) -> StopHandle {
        self.worker.stop()
    }

    /// Returns the number of the slot that it runs in, or last ran in; `None` before its first start. Counted from 1: a job has the lowest
    /// number that no other running job of the [budget](crate::pool::Budget) has. The process finds it in the environment variable
    /// `PIPEWRIGHT_SLOT`.
    ///
    /// For what jobs must not share: a port, a display, a scratch directory.
    #[doc(alias = "{%}")]
    pub fn slot(&self) -> Option<u32> {
        self.worker.slot()
    }
}
