//! What stops and restarts have begun, to be waited for, and what has come of it.

use crate::{
    exit::{Exit, ExitStatus},
    ids::WorkerId,
    supervisor::{
        clock::now,
        commands::{AskError, Restarted},
        worker::{SharedWorker, process::WorkerProcess},
    },
};
use std::{
    cmp::Reverse,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

/// Workers that are ending: from [`Worker::stop`](crate::supervisor::handles::worker::Worker::stop), [`Supervisor::stop_all`](crate::supervisor::Supervisor::stop_all) and
/// [`WorkerGroup::stop`](crate::supervisor::handles::group::WorkerGroup::stop). Dropping it changes nothing: they end all the same.
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

    /// Which workers end is not known, unless there are none.
    pub(crate) fn unanswered(why: AskError, began: Instant) -> Self {
        Self { workers: Vec::new(), began, is_complete: why == AskError::LoopGone }
    }

    /// Waits until all of them have ended for good, at most so long from now, and tells how each has.
    ///
    /// A worker whose window is used up cannot end while it has more to say, until it is killed: wait on another thread than the
    /// one that receives, or receive until [`Exited`](crate::EventKind::Exited) instead.
    pub fn wait(&self, timeout: Duration) -> StopReport {
        // Beyond the end of the clock is for ever.
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

/// Workers that begin anew: from [`Worker::restart`](crate::supervisor::handles::worker::Worker::restart), [`WorkerGroup::start`](crate::supervisor::handles::group::WorkerGroup::start) and
/// [`WorkerGroup::restart`](crate::supervisor::handles::group::WorkerGroup::restart). Dropping it changes nothing.
#[derive(Clone, Default)]
pub struct RestartHandle {
    /// Each with the number of its last incarnation before.
    workers: Restarted,
    /// The loop has not said which workers begin anew.
    is_unanswered: bool,
}

impl_debug!(RestartHandle, |restarting| { workers: ids(&restarting.workers.iter().map(|(shared, _)| shared).collect::<Vec<_>>()) });

impl RestartHandle {
    pub(crate) fn new(workers: impl IntoIterator<Item = (Arc<SharedWorker>, u32)>) -> Self {
        Self { workers: workers.into_iter().collect(), is_unanswered: false }
    }

    /// Which workers begin anew is not known, unless there are none.
    pub(crate) fn answered(answer: Result<Restarted, AskError>) -> Self {
        answer.map_or_else(|why| Self { workers: Vec::new(), is_unanswered: why == AskError::TimedOut }, Self::new)
    }

    /// Waits until a later incarnation of each is ready, at most so long from now. False when the time is over before, or when one
    /// of them has ended for good, and where the event loop has not said within 5 s which workers these are.
    pub fn wait(&self, timeout: Duration) -> bool {
        let deadline = now().checked_add(timeout);
        !self.is_unanswered
            && self.workers.iter().all(|(shared, number)| {
                let is_it = |process: &WorkerProcess| process.number() > *number && process.is_ready();
                shared.wait_for(deadline, is_it)
            })
    }
}

/// How a stop went: from [`StopHandle::wait`] and [`Supervisor::shutdown`](crate::supervisor::Supervisor::shutdown).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct StopReport {
    /// Everybody who was there, slowest first.
    pub workers: Vec<StoppedWorker>,
    /// False where the event loop has not said within 5 s which workers end.
    pub is_complete: bool,
}

/// One worker in a [`StopReport`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct StoppedWorker {
    /// Its name in events.
    pub worker: WorkerId,
    /// What people call it.
    pub name: Box<str>,
    /// How it ended; `None` where it did not in time.
    pub exit: Option<Arc<Exit>>,
    /// How long it took, or was waited for.
    pub took: Duration,
}

impl StopReport {
    /// Whoever has not ended, not even by SIGKILL.
    pub fn unfinished(&self) -> impl Iterator<Item = &StoppedWorker> {
        self.workers.iter().filter(|ended| !ended.has_ended())
    }
}

impl StoppedWorker {
    fn has_ended(&self) -> bool {
        self.exit.as_ref().is_some_and(|exit| !matches!(exit.status, ExitStatus::Unkillable | ExitStatus::KillRefused))
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

/// The workers' numbers, as `Debug` shows them.
fn ids(workers: &[&Arc<SharedWorker>]) -> Vec<u64> {
    workers.iter().map(|shared| shared.id().0).collect()
}
