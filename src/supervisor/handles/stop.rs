//! Handles to wait for stops and restarts, and their results.

use crate::{
    exit::{Exit, ExitStatus},
    ids::WorkerId,
    supervisor::{
        clock::now,
        commands::{AskError, Restarted},
        worker::{SharedWorker, wait_error::WaitError},
    },
};
use std::{
    cmp::Reverse,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

/// Workers that are stopping: from [`Worker::stop`](crate::supervisor::handles::worker::Worker::stop),
/// [`Supervisor::stop_all`](crate::supervisor::Supervisor::stop_all) and
/// [`WorkerGroup::stop`](crate::supervisor::handles::group::WorkerGroup::stop). Dropping it does not change the stop.
#[derive(Clone)]
pub struct StopHandle {
    workers: Vec<Arc<SharedWorker>>,
    began: Instant,
    is_complete: bool,
}

impl_debug!(StopHandle, |stopping| { workers: ids(&stopping.workers.iter().collect::<Vec<_>>()) });

impl StopHandle {
    pub(crate) fn new(workers: Vec<Arc<SharedWorker>>, began: Instant) -> Self {
        Self { workers, began, is_complete: true }
    }

    /// The loop has not answered. If it has ended, there are no workers.
    pub(crate) fn unanswered(why: AskError, began: Instant) -> Self {
        Self { workers: Vec::new(), began, is_complete: why == AskError::LoopGone }
    }

    /// The workers that are stopping.
    #[cfg(feature = "async")]
    pub(crate) fn workers(&self) -> &[Arc<SharedWorker>] {
        &self.workers
    }

    /// Waits up to `timeout` until all of the workers have ended for good, and reports how each has ended.
    ///
    /// A worker whose window is full cannot end before its output is received, unless it is killed: wait on another thread than the one
    /// that receives events, or receive until [`Exited`](crate::EventKind::Exited) instead.
    pub fn wait(&self, timeout: Duration) -> StopReport {
        // A deadline beyond the range of the clock is never reached.
        let deadline = now().checked_add(timeout);
        let ended = |shared: &Arc<SharedWorker>| {
            let ended = shared.wait_ended(deadline);
            let at = ended.as_ref().map_or_else(now, |(_, at)| *at);
            let (worker, name) = (shared.id(), shared.name().into());
            StoppedWorker {
                worker,
                name,
                exit: ended.map(|(exit, _)| exit),
                took: at.saturating_duration_since(self.began),
            }
        };
        let mut workers: Vec<StoppedWorker> = self.workers.iter().map(ended).collect();
        workers.sort_by_key(|ended| Reverse(ended.took));
        StopReport { workers, is_complete: self.is_complete }
    }
}

/// Workers that restart: from [`Worker::restart`](crate::supervisor::handles::worker::Worker::restart),
/// [`WorkerGroup::start`](crate::supervisor::handles::group::WorkerGroup::start) and
/// [`WorkerGroup::restart`](crate::supervisor::handles::group::WorkerGroup::restart). Dropping it does not change the restart.
#[derive(Clone, Default)]
pub struct RestartHandle {
    /// Each with the number of its incarnation before the restart.
    workers: Restarted,
    /// The loop has not answered which workers restart.
    is_unanswered: bool,
}

impl_debug!(RestartHandle, |restarting| { workers: ids(&restarting.workers.iter().map(|(shared, _)| shared).collect::<Vec<_>>()) });

impl RestartHandle {
    pub(crate) fn new(workers: impl IntoIterator<Item = (Arc<SharedWorker>, u32)>) -> Self {
        Self { workers: workers.into_iter().collect(), is_unanswered: false }
    }

    pub(crate) fn answered(answer: Result<Restarted, AskError>) -> Self {
        answer.map_or_else(|why| Self { workers: Vec::new(), is_unanswered: why == AskError::TimedOut }, Self::new)
    }

    /// Waits up to `timeout` until a later incarnation of each worker is ready.
    ///
    /// # Errors
    ///
    /// [`WaitError`] of the first worker that is not ready again: at the timeout, or because it has ended and does not run again by itself;
    /// or the event loop has not answered within 5 s which workers restart.
    pub fn wait(&self, timeout: Duration) -> Result<(), WaitError> {
        if self.is_unanswered {
            return Err(WaitError::Unanswered);
        }
        let deadline = now().checked_add(timeout);
        self.workers.iter().try_for_each(|(shared, number)| {
            shared.wait_until(deadline, |process| process.number() > *number && process.is_ready())
        })
    }

    /// As [`wait`](Self::wait), without a timeout, for a task.
    #[cfg(feature = "async")]
    pub(crate) async fn until_ready(self) -> Result<(), WaitError> {
        if self.is_unanswered {
            return Err(WaitError::Unanswered);
        }
        for (shared, number) in self.workers {
            shared.until(|process| process.number() > number && process.is_ready()).await?;
        }
        Ok(())
    }
}

/// The result of a stop, from [`StopHandle::wait`] and [`Supervisor::shutdown`](crate::supervisor::Supervisor::shutdown).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct StopReport {
    /// All workers of the stop, the slowest first.
    pub workers: Vec<StoppedWorker>,
    /// False if the event loop has not answered within 5 s which workers stop.
    pub is_complete: bool,
}

/// One worker in a [`StopReport`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct StoppedWorker {
    /// The id that names it in events.
    pub worker: WorkerId,
    /// The name from its spec, or the file name of its program.
    pub name: Box<str>,
    /// How it ended; `None` if it did not end in time.
    pub exit: Option<Arc<Exit>>,
    /// The time until it ended, or that was waited.
    pub took: Duration,
}

impl StopReport {
    /// Returns the workers that have not ended, even by SIGKILL, and [attached](crate::Supervisor::attach) processes that were let go.
    pub fn unfinished(&self) -> impl Iterator<Item = &StoppedWorker> {
        self.workers.iter().filter(|ended| !ended.has_ended())
    }
}

impl StoppedWorker {
    fn has_ended(&self) -> bool {
        self.exit.as_ref().is_some_and(|exit| {
            !matches!(exit.status, ExitStatus::Unkillable | ExitStatus::KillRefused | ExitStatus::Detached)
        })
    }
}

impl fmt::Display for StopReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for StoppedWorker { worker, name, exit, took } in &self.workers {
            match exit {
                Some(exit) => writeln!(formatter, "{name} ({worker}): {exit}, after {took:.1?}")?,
                None => writeln!(formatter, "{name} ({worker}): still there after {took:.1?}")?,
            }
        }
        Ok(())
    }
}

/// The ids of the workers, for `Debug`.
fn ids(workers: &[&Arc<SharedWorker>]) -> Vec<u64> {
    workers.iter().map(|shared| shared.id().0).collect()
}
