//! The settings of a pool.

use crate::{
    launch::error::SpawnError,
    policy::{
        dispatch::{limit::Limit, settings::DispatchSettings, task::TaskTerms},
        restart::Restart,
    },
    pool::workers::{
        core::PoolCore,
        endpoint::{ControlEndpoint, Endpoint},
        pool::Pool,
        thread,
    },
    supervisor::{Supervisor, handles::spawn::WorkerStarter, spec::WorkerSpec},
};
use std::{io, marker::PhantomData, sync::Arc, time::Duration};

/// How many tasks wait by default.
const QUEUE_LIMIT: usize = 1024;

/// The settings of a [`Pool`], from [`Pool::builder`].
#[derive(Debug)]
#[must_use = "nothing runs before build()"]
pub struct PoolBuilder<Request, Response> {
    starter: Option<WorkerStarter>,
    spec: WorkerSpec,
    settings: DispatchSettings,
    queue_limit: usize,
    terms: TaskTerms,
    pool: PhantomData<fn(Request) -> Response>,
}

impl<Request, Response> Pool<Request, Response> {
    /// Returns a builder for a pool whose workers are started from `spec`.
    pub fn builder(supervisor: &Supervisor, spec: WorkerSpec) -> PoolBuilder<Request, Response> {
        PoolBuilder::new(supervisor, spec)
    }
}

impl<Request, Response> PoolBuilder<Request, Response> {
    pub(crate) fn new(supervisor: &Supervisor, spec: WorkerSpec) -> Self {
        Self {
            starter: supervisor.starter(),
            spec,
            settings: DispatchSettings::default(),
            queue_limit: QUEUE_LIMIT,
            terms: TaskTerms::default(),
            pool: PhantomData,
        }
    }

    /// Sets the number of workers; by default 1. All are started by [`build`](Self::build).
    pub fn workers(mut self, workers: usize) -> Self {
        (self.settings.min, self.settings.max) = (workers, workers);
        self
    }

    /// Sets how many tasks each worker has at once; by default 1. With more, the next task is there when the worker has finished one, and a
    /// worker that serves on several threads works on several. The death of the worker then ends all of them.
    #[doc(alias = "multiplex")]
    pub fn in_flight(mut self, tasks: usize) -> Self {
        self.settings.in_flight = tasks;
        self
    }

    /// Sets how many tasks may wait for a worker; by default 1024. Then [`Pool::submit`] blocks.
    #[doc(alias = "backpressure")]
    pub fn queue_limit(mut self, tasks: usize) -> Self {
        self.queue_limit = tasks;
        self
    }

    /// Sets the [retries](crate::pool::TaskBuilder::retries) of tasks; by default 0.
    pub fn retries(mut self, retries: u32) -> Self {
        self.terms.retries = retries;
        self
    }

    /// Sets the [timeout](crate::pool::TaskBuilder::timeout) of tasks; by default there is none.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.terms.timeout = Limit::Time(timeout);
        self
    }

    /// Sets how long a worker may take to answer a call that was cancelled or has timed out, before it is killed and replaced; by default
    /// 5 s.
    pub fn cancel_grace(mut self, period: Duration) -> Self {
        self.settings.cancel_grace = period;
        self
    }

    /// Creates the pool. Returns at once: its workers are started by its thread.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for a number of workers, of tasks in flight or of tasks that wait which is 0, and for an error in the spec. Otherwise
    /// if no thread can be created.
    pub fn build(self) -> io::Result<Pool<Request, Response>> {
        self.build_with(Arc::new(ControlEndpoint))
    }

    fn build_with(self, endpoint: Arc<dyn Endpoint>) -> io::Result<Pool<Request, Response>> {
        let Self { starter, spec, settings, queue_limit, terms, pool: _ } = self;
        let numbers =
            [("workers", settings.max), ("tasks in flight", settings.in_flight), ("waiting tasks", queue_limit)];
        if let Some((what, _)) = numbers.iter().find(|(_, number)| *number == 0) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("a pool cannot have 0 {what}")));
        }
        let starter = starter.ok_or_else(|| io::Error::other(SpawnError::SupervisorGone))?;
        // The pool replaces its workers.
        let spec = endpoint.prepare(spec).restart(Restart::Never);
        spec.validate().map_err(io::Error::from)?;
        let lookahead = settings.max.saturating_mul(settings.in_flight).saturating_add(queue_limit);
        let core = PoolCore::new(starter, spec, endpoint, (settings, queue_limit));
        thread::start(&core)?;
        core.change(None, |state, now, _| state.dispatch.open(now));
        Ok(Pool::new(core, terms, lookahead))
    }
}
