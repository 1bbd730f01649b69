//! Queues of jobs: workers that start when a slot is free.

pub(crate) mod error;
pub(crate) mod job;
pub(crate) mod spec;

use crate::{
    jobserver::client::JobserverClient,
    policy::schedule::task::NewTask,
    pool::{
        budget::Budget,
        jobs::{error::JobError, job::Job, spec::JobSpec},
    },
    supervisor::{
        Supervisor,
        handles::{jobs::JobIntake, stop::StopHandle},
        sync::lock,
        worker::job::{JobQueue, OnFailure},
    },
};
use std::sync::Arc;

/// A queue of processes, of which a limited number run at a time. Cheap to clone.
///
/// A job is a [`Worker`](crate::Worker) whose start waits for its [dependencies](JobSpec::after) and for a free slot. Its events, the last of
/// which is its final event (see [`Event`](crate::Event)), come in the channel of the supervisor, so one loop serves jobs and other workers.
/// A job that is restarted by its [restart policy](crate::WorkerSpec::restart) or its [retries](JobSpec::retries) keeps its slot while it runs,
/// and waits for a new one after the backoff.
///
/// # Order
///
/// A job starts as soon as everything that it takes is free. Of those that fit, the one with the highest [priority](JobSpec::priority) starts
/// first, and of equal ones that which was submitted first. No slot is idle while a job fits: a job with a large [weight](JobSpec::weight)
/// waits until so many slots are free at a time, and lighter ones pass it.
///
/// While the [window](crate::SupervisorBuilder::window) of the supervisor is full, no job starts: receive the events, also where
/// [`Job::wait`] is what the program is interested in.
///
/// # Dropping
///
/// Dropping `Jobs` changes nothing: its jobs go on, as those of [`Job`] handles that are dropped. [`cancel_all`](Self::cancel_all) ends
/// them. After [`Supervisor::close`] no job is accepted, and those that were are run.
///
/// ```
/// use pipewright::{EventKind, Supervisor, WorkerSpec, pool::Jobs};
///
/// let supervisor = Supervisor::new()?;
/// let jobs = Jobs::new(&supervisor, 2);
/// for code in 0..5 {
///     jobs.submit(WorkerSpec::new("sh").args(["-c", &format!("exit {code}")]))?;
/// }
/// supervisor.close(); // no more jobs: the channel closes after the last event
/// let mut failures = 0;
/// for event in supervisor.events() {
///     if let EventKind::Exited { exit, .. } = event.kind {
///         failures += i32::from(!exit.success());
///     }
/// }
/// assert_eq!(failures, 4);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
#[doc(alias = "xargs")]
#[doc(alias = "parallel")]
pub struct Jobs {
    queue: Arc<JobQueue>,
    budget: Budget,
    intake: JobIntake,
}

impl_debug!(Jobs, |jobs| { queue: jobs.queue.id.0 });

impl Jobs {
    /// Creates a queue that runs `limit` jobs at a time, with a [budget](Self::budget) of its own.
    pub fn new(supervisor: &Supervisor, limit: usize) -> Self {
        Self::with_budget(supervisor, &Budget::new(limit))
    }

    /// Creates a queue whose jobs take slots and resources of a budget that others use, too.
    pub fn with_budget(supervisor: &Supervisor, budget: &Budget) -> Self {
        let intake = supervisor.intake();
        Self { queue: Arc::new(intake.add_queue(&budget.shared)), budget: budget.clone(), intake }
    }

    /// Returns the budget, with the limit and the named resources.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Sets what happens to the other jobs of this queue when one fails: its last attempt has failed, or its [deadline](JobSpec::deadline)
    /// has passed. By default they run. A job that is cancelled has not failed.
    ///
    /// Jobs that are not started any more have [`NotStarted`](crate::EventKind::NotStarted) as their final event, with the reason
    /// [`FailFast`](crate::events::GiveUpReason::FailFast); also those that are submitted after the failure.
    #[must_use]
    pub fn on_failure(self, policy: OnFailure) -> Self {
        lock(&self.queue.failures).policy = policy;
        self
    }

    /// Each job takes a token of a jobserver, in addition to its slots: so all programs below `make -jN` together run N jobs, of which this
    /// queue runs no more than its [limit](Self::budget). Without a call, the queue takes none.
    ///
    /// A job that has its slots waits for its token, and returns it when it has ended; a job that is tried again also during the backoff. It
    /// is one token, whatever the [weight](JobSpec::weight). Pass the jobserver on to jobs that are clients themselves, such as `make` or
    /// `cc -flto=jobserver`, with [`WorkerSpec::inherit_jobserver`](crate::WorkerSpec::inherit_jobserver).
    ///
    /// If this process is killed, the [guard](crate::guard) returns the tokens when the jobs have been killed.
    ///
    /// ```
    /// use pipewright::{Supervisor, WorkerSpec, jobserver::JobserverClient, pool::Jobs};
    ///
    /// let supervisor = Supervisor::new()?;
    /// let mut jobs = Jobs::new(&supervisor, 8);
    /// match JobserverClient::from_env() {
    ///     Ok(Some(jobserver)) => jobs = jobs.jobserver(&jobserver),
    ///     Ok(None) => {}
    ///     Err(error) => {
    ///         eprintln!("warning: {error}; running one job at a time");
    ///         jobs.budget().set_limit(1);
    ///     }
    /// }
    /// assert!(jobs.submit(WorkerSpec::new("true").inherit_jobserver())?.wait().success());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn jobserver(self, client: &JobserverClient) -> Self {
        // All clients of a process are the same.
        drop(self.queue.jobserver.set(client.clone()));
        self
    }

    /// Adds a job: a [`WorkerSpec`](crate::WorkerSpec), or a [`JobSpec`] with dependencies and resources. Returns at once; the start is
    /// an event.
    ///
    /// # Errors
    ///
    /// [`JobError`]: an error in the spec, something that it needs and can never get, or a supervisor that takes no more workers.
    pub fn submit(&self, spec: impl Into<JobSpec>) -> Result<Job, JobError> {
        let JobSpec { worker: mut spec, after, priority, weight, needs, deadline, retries } = spec.into();
        if let Some(retries) = retries {
            spec.restart = spec.restart.with_retries(retries);
        }
        spec.validate()?;
        if let Some(other) = after.iter().find(|job| !Arc::ptr_eq(&job.queue.budget, &self.queue.budget)) {
            return Err(JobError::OtherBudget { job: other.worker() });
        }
        let permit = self.intake.permit().ok_or(JobError::SupervisorGone)?;
        let (worker, shared) = self.intake.add(&self.queue, (spec, deadline, permit), &after, |schedule, id| {
            let demand = schedule.demand(u64::from(weight), &needs)?;
            Ok::<_, JobError>(NewTask { id, demand, priority, after: after.iter().map(|job| job.task).collect() })
        })?;
        Ok(Job::new(worker, shared))
    }

    /// Cancels all jobs of this queue that have not ended: those that run are [stopped](crate::Worker::stop), the others are not started.
    /// Jobs that are submitted later are not affected. Returns a handle to wait for the ends.
    pub fn cancel_all(&self) -> StopHandle {
        self.intake.cancel_all(self.queue.id)
    }
}
