//! The settings of a pool.

use crate::{
    launch::error::SpawnError,
    policy::{
        dispatch::{
            limit::TimeLimit,
            settings::{DispatchSettings, Halt, PoolSize},
            task::TaskTerms,
        },
        restart::Restart,
    },
    pool::{
        budget::Budget,
        dialect::Dialect,
        workers::{
            core::PoolCore,
            endpoint::{ControlEndpoint, Endpoint},
            event::PoolEvent,
            pool::Pool,
            thread::{ThreadTasks, start_pool_thread},
        },
    },
    supervisor::{Supervisor, handles::spawn::WorkerStarter, spec::WorkerSpec},
};
use std::{fmt, io, marker::PhantomData, sync::Arc, time::Duration};

/// How many tasks wait by default.
const QUEUE_LIMIT: usize = 1024;

/// The settings of a [`Pool`], from [`Pool::builder`].
#[must_use = "nothing runs before build()"]
pub struct PoolBuilder<Request, Response> {
    starter: Option<WorkerStarter>,
    spec: WorkerSpec,
    settings: DispatchSettings,
    queue_limit: usize,
    terms: TaskTerms,
    thread: ThreadTasks,
    budget: Option<Budget>,
    endpoint: Arc<dyn Endpoint>,
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
            thread: ThreadTasks::default(),
            budget: None,
            endpoint: Arc::new(ControlEndpoint),
            pool: PhantomData,
        }
    }

    /// Sets the number of workers; by default 1. With a range, such as `1..=8`, the smallest number is started by [`build`](Self::build).
    /// Another worker is started when a task waits and none is idle, and stopped when it was idle for the
    /// [idle time](Self::idle_time).
    #[doc(alias = "max_workers")]
    pub fn workers(mut self, workers: impl Into<PoolSize>) -> Self {
        let PoolSize { min, max } = workers.into();
        (self.settings.min, self.settings.max) = (min, max);
        self
    }

    /// Sets how long a worker waits for a task before it is stopped, if there are more than the smallest number; by default 10 s.
    pub fn idle_time(mut self, time: Duration) -> Self {
        self.settings.idle_time = time;
        self
    }

    /// Replaces each worker after so many tasks: for programs that leak. It gets no other task, and is stopped when those that it has are
    /// done. No task is lost.
    #[doc(alias = "max_tasks_per_child")]
    #[doc(alias = "max_requests")]
    pub fn recycle_after_tasks(mut self, tasks: u64) -> Self {
        self.settings.tasks_max = Some(tasks.max(1));
        self
    }

    /// Replaces each worker so long after it was ready, as [`recycle_after_tasks`](Self::recycle_after_tasks).
    pub fn recycle_after(mut self, age: Duration) -> Self {
        self.settings.age_max = Some(age);
        self
    }

    /// Replaces a worker whose process, without descendants, has more resident memory than this, as
    /// [`recycle_after_tasks`](Self::recycle_after_tasks). Checked once a second, also while it runs a task.
    #[doc(alias = "idleMemoryLimit")]
    pub fn recycle_above(mut self, bytes: u64) -> Self {
        self.thread.memory_max = Some(bytes);
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

    /// Sets the [timeout](crate::pool::TaskBuilder::timeout) of tasks: a `Duration`, or a multiple of the median. By default there is none.
    pub fn timeout(mut self, limit: impl Into<TimeLimit>) -> Self {
        self.terms.timeout = limit.into();
        self
    }

    /// Reports tasks that run longer than this as [`PoolEvent::Slow`]. They run on.
    pub fn slow_after(mut self, limit: impl Into<TimeLimit>) -> Self {
        self.terms.slow = limit.into();
        self
    }

    /// Ends tasks after a number of failures. The pool then accepts no others, and its workers are stopped.
    #[doc(alias = "fail_fast")]
    pub fn halt(mut self, halt: Halt) -> Self {
        self.settings.halt = Some(halt);
        self
    }

    /// Lets each task take a slot of a budget while a worker has it, and the resources that it [needs](crate::pool::TaskBuilder::needs).
    /// Several pools and [queues of jobs](crate::pool::Jobs) can share it. Workers without a task take nothing.
    pub fn budget(mut self, budget: &Budget) -> Self {
        self.budget = Some(budget.clone());
        self
    }

    /// Calls a function with what happens in the pool, on the pool's thread. While it runs no worker is started and no timeout noticed, but
    /// tasks go on. A panic is caught.
    pub fn on_event(mut self, handler: impl Fn(&PoolEvent) + Send + Sync + 'static) -> Self {
        self.thread.on_event = Some(Arc::new(handler));
        self
    }

    /// Sets how long a worker may take to answer a call that was cancelled or has timed out, before it is killed and replaced; by default
    /// 5 s.
    pub fn cancel_grace(mut self, period: Duration) -> Self {
        self.settings.cancel_grace = period;
        self
    }

    /// Sets how tasks reach the workers: for programs that were not written for this library. By default the workers use
    /// [`worker`](crate::pool::worker).
    pub fn dialect(mut self, dialect: impl Into<Dialect>) -> Self {
        self.endpoint = dialect.into().0;
        self
    }

    /// Creates the pool. Returns at once: its workers are started by its thread.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for a number of workers, of tasks in flight or of tasks that wait which is 0, for more tasks in flight than the
    /// dialect permits, and for an error in the spec. Otherwise
    /// if no thread can be created.
    pub fn build(self) -> io::Result<Pool<Request, Response>> {
        let Self { starter, spec, settings, queue_limit, mut terms, thread, budget, endpoint, pool: _ } = self;
        let numbers =
            [("workers", settings.max), ("tasks in flight", settings.in_flight), ("waiting tasks", queue_limit)];
        if settings.min > settings.max {
            let text = format!("a pool cannot have at least {} and at most {} workers", settings.min, settings.max);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        if let Some((what, _)) = numbers.iter().find(|(_, number)| *number == 0) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("a pool cannot have 0 {what}")));
        }
        if let Some((max, what)) = endpoint.in_flight_max().filter(|(max, _)| settings.in_flight > *max) {
            let text = format!("{what} has at most {max} tasks in flight, not {}", settings.in_flight);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let starter = starter.ok_or_else(|| io::Error::other(SpawnError::SupervisorGone))?;
        // The pool replaces its workers.
        let spec = endpoint.prepare(spec).restart(Restart::Never);
        spec.validate().map_err(io::Error::from)?;
        let lookahead = settings.max.saturating_mul(settings.in_flight).saturating_add(queue_limit);
        let budget = budget.map(|budget| budget.shared);
        let has_budget = budget.is_some();
        let core = PoolCore::new(starter, spec, endpoint, (settings, queue_limit), budget);
        if has_budget {
            terms.class = core.class(1, &[]).map_err(io::Error::other)?;
        }
        core.lock().events.is_wanted = thread.on_event.is_some();
        start_pool_thread(&core, thread)?;
        core.change(None, |state, now, _| state.dispatch.open(now));
        Ok(Pool::new(core, terms, lookahead))
    }
}

impl<Request, Response> fmt::Debug for PoolBuilder<Request, Response> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut builder = formatter.debug_struct("PoolBuilder");
        builder.field("spec", &self.spec).field("settings", &self.settings).finish_non_exhaustive()
    }
}
