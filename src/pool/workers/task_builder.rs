//! Tasks that are not submitted yet.

use crate::{
    policy::dispatch::{limit::TimeLimit, task::TaskTerms},
    pool::workers::{
        core::{NewTask, Patience},
        error::SubmitError,
        pool::Pool,
        task::Task,
    },
    supervisor::clock::now,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::value::{RawValue, to_raw_value};
use std::{
    borrow::Borrow,
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

/// A task with its settings, from [`Pool::task`]. What is not set is as the [`PoolBuilder`](crate::pool::PoolBuilder) says.
#[derive(Debug)]
#[must_use = "the task is not in the pool before submit()"]
pub struct TaskBuilder<'a, Request, Response> {
    pool: &'a Pool<Request, Response>,
    request: serde_json::Result<Box<RawValue>>,
    name: Option<Box<str>>,
    terms: TaskTerms,
    weight: u64,
    needs: Vec<(Box<str>, u64)>,
}

impl<Request: Serialize, Response: DeserializeOwned> Pool<Request, Response> {
    /// Submits a task. Blocks while the queue of the pool is [full](crate::pool::PoolBuilder::queue_limit).
    ///
    /// # Errors
    ///
    /// [`SubmitError`].
    pub fn submit(&self, request: impl Borrow<Request>) -> Result<Task<Response>, SubmitError> {
        self.task(request).submit()
    }

    /// Returns a task that is submitted later, for its settings.
    pub fn task(&self, request: impl Borrow<Request>) -> TaskBuilder<'_, Request, Response> {
        TaskBuilder::new(self, to_raw_value(request.borrow()))
    }
}

impl<'a, Request, Response> TaskBuilder<'a, Request, Response> {
    pub(crate) fn new(pool: &'a Pool<Request, Response>, request: serde_json::Result<Box<RawValue>>) -> Self {
        Self { pool, request, name: None, terms: pool.terms, weight: 1, needs: Vec::new() }
    }

    /// Sets the name of the task in errors; by default `task N`.
    pub fn name(mut self, name: impl Into<Box<str>>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets the priority: of the tasks that wait, those with the highest are sent first, and of these the one that was submitted first.
    pub fn priority(mut self, priority: i32) -> Self {
        self.terms.priority = priority;
        self
    }

    /// Sets how many deaths of its worker the task survives: it is then sent to another one. Only for a task that may be executed more than
    /// once, since whether a worker had executed it when it died is not known.
    #[doc(alias = "idempotent")]
    pub fn retries(mut self, retries: u32) -> Self {
        self.terms.retries = retries;
        self
    }

    /// Sends the task to the worker that gets all tasks with this key, for example because it has a cache for it. It waits for this worker
    /// even if others are idle. When a worker is replaced, its keys go to the one that replaces it; when the number of workers changes,
    /// some keys get another one.
    #[doc(alias = "computeWorkerKey")]
    #[doc(alias = "sticky")]
    pub fn key(mut self, key: impl Hash) -> Self {
        // With fixed keys, so that the same program distributes its tasks in the same way.
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        self.terms.key = Some(hasher.finish());
        self
    }

    /// Sets how long the task may run, from the moment it is sent to a worker. It then ends with
    /// [`TimedOut`](crate::pool::TaskErrorKind::TimedOut), and its worker is treated as after [`Task::cancel`].
    pub fn timeout(mut self, limit: impl Into<TimeLimit>) -> Self {
        self.terms.timeout = limit.into();
        self
    }

    /// Sets how many slots of the pool's [budget](crate::pool::PoolBuilder::budget) the task takes while a worker has it; by default 1.
    pub fn weight(mut self, slots: u32) -> Self {
        self.weight = u64::from(slots);
        self
    }

    /// Adds resources of the pool's [budget](crate::pool::PoolBuilder::budget) that the task takes while a worker has it. Until there is
    /// enough of them, other tasks are sent.
    pub fn needs(mut self, resources: impl IntoIterator<Item = (impl Into<Box<str>>, u64)>) -> Self {
        self.needs.extend(resources.into_iter().map(|(name, amount)| (name.into(), amount)));
        self
    }

    /// Submits the task. Blocks while the queue of the pool is [full](crate::pool::PoolBuilder::queue_limit).
    ///
    /// # Errors
    ///
    /// [`SubmitError`].
    pub fn submit(self) -> Result<Task<Response>, SubmitError> {
        self.submit_with(Patience::Until(None))
    }

    /// As [`submit`](Self::submit), and fails at once if the queue is full.
    ///
    /// # Errors
    ///
    /// [`SubmitError::Full`], otherwise as [`submit`](Self::submit).
    pub fn try_submit(self) -> Result<Task<Response>, SubmitError> {
        self.submit_with(Patience::None)
    }

    /// As [`submit`](Self::submit), and waits up to `timeout` for room in the queue.
    ///
    /// # Errors
    ///
    /// [`SubmitError::Full`], otherwise as [`submit`](Self::submit).
    pub fn submit_timeout(self, timeout: Duration) -> Result<Task<Response>, SubmitError> {
        self.submit_with(Patience::Until(now().checked_add(timeout)))
    }

    fn submit_with(self, patience: Patience) -> Result<Task<Response>, SubmitError> {
        let Self { pool, request, name, mut terms, weight, needs } = self;
        if weight != 1 || !needs.is_empty() {
            terms.class = pool.class(weight, &needs)?;
        }
        let new = NewTask { request: request.map_err(SubmitError::Encode)?, name, terms };
        pool.submit_new(new, patience).map_err(|refused| refused.error)
    }
}
