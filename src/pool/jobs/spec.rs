//! What a job is: a worker, and what it waits for.

use crate::{
    pool::jobs::job::Job,
    supervisor::{spec::WorkerSpec, worker::job::SharedJob},
};
use std::{sync::Arc, time::Duration};

/// A [`WorkerSpec`] with what its start waits for, for [`Jobs::submit`](crate::pool::Jobs::submit).
///
/// ```
/// use pipewright::{Supervisor, WorkerSpec, pool::{Budget, Jobs, JobSpec}};
///
/// let supervisor = Supervisor::new()?;
/// let jobs = Jobs::with_budget(&supervisor, &Budget::new(4).resource("link", 1));
/// let object = jobs.submit(JobSpec::new(WorkerSpec::new("true")).priority(1))?;
/// jobs.submit(JobSpec::new(WorkerSpec::new("true")).after(&object).needs([("link", 1)]).weight(2))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
#[must_use = "a spec is a recipe: hand it to Jobs::submit"]
pub struct JobSpec {
    pub(crate) worker: WorkerSpec,
    pub(crate) after: Vec<Arc<SharedJob>>,
    pub(crate) priority: i32,
    pub(crate) weight: u32,
    pub(crate) needs: Vec<(Box<str>, u64)>,
    pub(crate) deadline: Option<Duration>,
    pub(crate) retries: Option<u32>,
}

impl_debug!(JobSpec, |spec| {
    worker: spec.worker,
    after: spec.after.iter().map(|job| job.worker().0).collect::<Vec<_>>(),
    priority: spec.priority,
    weight: spec.weight,
    needs: spec.needs,
    deadline: spec.deadline,
    retries: spec.retries,
});

impl From<WorkerSpec> for JobSpec {
    fn from(worker: WorkerSpec) -> Self {
        Self::new(worker)
    }
}

impl JobSpec {
    /// Creates the spec of a job that runs `worker`.
    pub fn new(worker: WorkerSpec) -> Self {
        Self { worker, after: Vec::new(), priority: 0, weight: 1, needs: Vec::new(), deadline: None, retries: None }
    }

    /// The job starts after `job` has succeeded; further calls add dependencies. If one of them fails, is cancelled or cannot start,
    /// this job is not started, and [`DependencyFailed`](crate::EventKind::DependencyFailed) is its final event.
    ///
    /// A job exists before it can be named here, so there are no cycles. It can be a job of another queue with the same
    /// [budget](crate::pool::Budget).
    pub fn after(mut self, job: &Job) -> Self {
        self.after.push(job.shared());
        self
    }

    /// Sets the priority in its queue; by default 0. Jobs with a higher one start first.
    pub fn priority(mut self, priority: i32) -> Self {
        self.priority = priority;
        self
    }

    /// Sets how many slots it takes; by default 1. With more than the limit the job is rejected; if the limit is lowered later, it takes all
    /// slots.
    #[doc(alias = "threads_required")]
    pub fn weight(mut self, slots: u32) -> Self {
        self.weight = slots;
        self
    }

    /// Adds named resources of the [budget](crate::pool::Budget::resource) that it takes while it runs, each with an amount.
    #[doc(alias = "RESOURCE_LOCK")]
    pub fn needs(mut self, resources: impl IntoIterator<Item = (impl Into<Box<str>>, u64)>) -> Self {
        self.needs.extend(resources.into_iter().map(|(name, amount)| (name.into(), amount)));
        self
    }

    /// Sets the time that the whole job has, from its submission to its end: its wait for dependencies and for a slot, all attempts, and
    /// the backoff between them. Then it is not started, or stopped by the [stop policy](WorkerSpec::stop) of its spec, and its final event
    /// has the reason [`DeadlineExceeded`](crate::events::GiveUpReason::DeadlineExceeded). By default it has no deadline.
    ///
    /// [`WorkerSpec::runtime_max`] limits each attempt by itself. Like that, the time leaves out that for which the program is suspended.
    pub fn deadline(mut self, time: Duration) -> Self {
        self.deadline = Some(time);
        self
    }

    /// Sets how often the job is tried again after a failure; by default as the [restart policy](WorkerSpec::restart) of its spec says,
    /// which is never. That policy still says what a failure is, and the backoff between two attempts, in which the job has no slot.
    pub fn retries(mut self, retries: u32) -> Self {
        self.retries = Some(retries);
        self
    }
}
