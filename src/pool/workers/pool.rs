//! The handle of a pool.

use crate::{
    policy::dispatch::{
        ids::{DemandClass, TaskNumber},
        member::MemberPhase,
        task::TaskTerms,
    },
    pool::workers::{
        core::{NewTask, Patience, PoolCore, RefusedTask},
        error::SubmitError,
        task::{FinishedTask, Task},
    },
    supervisor::clock::now,
};
use crossbeam_channel::{Receiver, Sender};
use serde::Serialize;
use std::{fmt, marker::PhantomData, process, sync::Arc, time::Duration};

/// The time in which the workers of a pool are stopped when its tasks were aborted, before they are killed.
const ABORT_TIME: Duration = Duration::from_secs(1);
/// How long a shutdown waits beyond that for the exits of killed workers.
const EXIT_TIME: Duration = Duration::from_secs(6);

/// Persistent workers that run tasks: a `Request` goes to one of them, and comes back as a `Response`.
///
/// The worker's side is [`worker`](crate::pool::worker):
///
/// ```no_run
/// // main.rs of the worker
/// pipewright::pool::worker(|path: String| std::fs::read_to_string(path).map(|text| text.lines().count()))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// ```no_run
/// use pipewright::{Supervisor, WorkerSpec, pool::Pool};
///
/// let supervisor = Supervisor::new()?;
/// let pool = Pool::<String, usize>::builder(&supervisor, WorkerSpec::new("./count-lines")).workers(8).retries(2).build()?;
/// let paths = ["a.txt", "b.txt"].map(String::from);
/// for (path, lines) in paths.iter().zip(pool.map(&paths)) {
///     println!("{path}: {}", lines?);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Tasks
///
/// A task that is accepted ends exactly once: with its result, or with a [`TaskError`](crate::pool::TaskError). No task waits while a worker
/// is idle that may run it. Answers are read and the next tasks are sent by the supervisor's event loop, so no thread belongs to a task; a
/// pool has one thread, for starts and timers. Memory is bounded: by the [limit](crate::pool::PoolBuilder::queue_limit) of tasks that wait, the tasks
/// that workers have, and the results that the program has not taken.
///
/// # Workers
///
/// The pool starts its workers, replaces those that exit and stops them at the end; the restart policy of the spec is not used. Without
/// [`control`](crate::WorkerSpec::control) in the spec it adds `Pass::env("PIPEWRIGHT_CONTROL")`, and without
/// [`ready`](crate::WorkerSpec::ready) it waits for [`Readiness::control`](crate::Readiness::control).
///
/// The death of a worker ends only what it was doing. A task with [retries](crate::pool::TaskBuilder::retries) left is sent to another worker.
/// One that has seen two deaths then runs alone in a worker, and after two deaths there it ends with
/// [`Poison`](crate::pool::TaskErrorKind::Poison). When no worker starts, five times in a row, all tasks end with
/// [`NoWorkers`](crate::pool::TaskErrorKind::NoWorkers).
///
/// The events of the workers go to the pool. The supervisor's channel gets only their
/// [warnings](crate::EventKind::Warning), [invalid frames](crate::EventKind::InvalidFrame), and requests and notifications other than
/// progress, which a [handler](crate::Supervisor::serve) may take. Output that the spec captures is not delivered, but the end of a captured
/// standard error is in the [exit](crate::Exit::stderr_tail).
///
/// # Dropping
///
/// Dropping the pool ends its tasks with [`ShutDown`](crate::pool::TaskErrorKind::ShutDown) and stops its workers, without waiting for them.
/// In a forked child of the host it does nothing.
#[doc(alias = "ProcessPoolExecutor")]
#[doc(alias = "WorkerPool")]
pub struct Pool<Request, Response> {
    core: Arc<PoolCore>,
    /// What tasks ask for by default.
    pub(crate) terms: TaskTerms,
    /// How many tasks a `map` has open.
    lookahead: usize,
    finished: Receiver<FinishedTask<Response>>,
    finished_sender: Sender<FinishedTask<Response>>,
    request: PhantomData<fn(Request)>,
    /// The process that has created it.
    owner: u32,
}

impl<Request, Response> Pool<Request, Response> {
    pub(crate) fn new(core: Arc<PoolCore>, terms: TaskTerms, lookahead: usize) -> Self {
        let (finished_sender, finished) = crossbeam_channel::unbounded();
        Self { core, terms, lookahead, finished, finished_sender, request: PhantomData, owner: process::id() }
    }

    pub(crate) fn lookahead(&self) -> usize {
        self.lookahead
    }

    pub(crate) fn submit_new(&self, new: NewTask, patience: Patience) -> Result<Task<Response>, Box<RefusedTask>> {
        let shared = self.core.submit(new, patience)?;
        Ok(Task::new(shared, Arc::clone(&self.core), self.finished_sender.clone()))
    }

    /// Returns the channel of the results of [detached](Task::detach) tasks, in the order in which they end: for `select!` with the
    /// [events](crate::Supervisor::events). It can be cloned for several consumers, each of which receives a part of them. It is never
    /// disconnected while the pool exists.
    pub fn finished(&self) -> &Receiver<FinishedTask<Response>> {
        &self.finished
    }

    /// Refuses new tasks, waits up to `timeout` until those that it has have ended and its workers have been stopped, and then aborts what
    /// is left: its tasks end with [`ShutDown`](crate::pool::TaskErrorKind::ShutDown), and its workers are killed within a second.
    /// Returns at the latest 7 s after the timeout.
    pub fn shutdown(&self, timeout: Duration) -> PoolReport {
        self.core.change(None, |state, now, _| state.dispatch.close(now));
        if self.core.wait_over(now().checked_add(timeout)) {
            return self.report(0);
        }
        self.abort(ABORT_TIME)
    }

    /// Ends all tasks with [`ShutDown`](crate::pool::TaskErrorKind::ShutDown), stops the workers, kills them after `timeout`, and waits for
    /// their exits, at the most 6 s longer.
    pub fn abort(&self, timeout: Duration) -> PoolReport {
        let aborted = self.core.change(None, |state, now, _| {
            state.stop_within = Some(timeout);
            let aborted = state.dispatch.count_tasks();
            state.dispatch.shut_down(now);
            aborted
        });
        self.core.wait_over(now().checked_add(timeout.saturating_add(EXIT_TIME)));
        self.report(aborted)
    }

    pub(crate) fn class(&self, weight: u64, needs: &[(Box<str>, u64)]) -> Result<Option<DemandClass>, SubmitError> {
        self.core.class(weight, needs)
    }

    pub(crate) fn cancel(&self, task: u64) {
        self.core.cancel(TaskNumber(task));
    }

    fn report(&self, aborted: usize) -> PoolReport {
        PoolReport { aborted, workers_left: self.core.lock().members.len() }
    }

    /// Returns a snapshot.
    pub fn status(&self) -> PoolStatus {
        let state = self.core.lock();
        let (ready, waiting) = (state.dispatch.count_members(MemberPhase::Ready), state.dispatch.count_waiting());
        PoolStatus {
            workers: state.members.len(),
            ready,
            waiting,
            running: state.dispatch.count_tasks() - waiting,
            succeeded: state.counts.succeeded,
            failed: state.counts.failed,
            exits: state.counts.deaths,
        }
    }
}

impl<Request, Response> Drop for Pool<Request, Response> {
    fn drop(&mut self) {
        if self.owner == process::id() {
            self.core.change(None, |state, now, _| state.dispatch.shut_down(now));
        }
    }
}

impl<Request, Response> fmt::Debug for Pool<Request, Response> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Pool").field("status", &self.status()).finish()
    }
}

/// What the end of a pool has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolReport {
    /// The tasks that were aborted.
    pub aborted: usize,
    /// The workers that have not exited.
    pub workers_left: usize,
}

/// A snapshot of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PoolStatus {
    /// The workers that exist: they start, run or are being stopped.
    pub workers: usize,
    /// Those that take tasks.
    pub ready: usize,
    /// The tasks that wait for a worker.
    pub waiting: usize,
    /// The tasks that workers have.
    pub running: usize,
    /// The tasks with a result, since the start of the pool.
    pub succeeded: u64,
    /// The tasks that have ended with an error.
    pub failed: u64,
    /// The exits of workers.
    pub exits: u64,
}
