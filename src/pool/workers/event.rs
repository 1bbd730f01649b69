//! What a pool reports besides the results of its tasks.

use crate::{exit::Exit, ids::WorkerId, launch::error::SpawnError};
use std::{sync::Arc, time::Duration};

/// What happens in a pool, for [`PoolBuilder::on_event`](crate::pool::PoolBuilder::on_event).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum PoolEvent {
    /// A worker is ready.
    WorkerReady(WorkerId),
    /// A worker has exited: it died, or the pool has stopped it.
    WorkerExited {
        /// The worker.
        worker: WorkerId,
        /// Its exit.
        exit: Arc<Exit>,
    },
    /// A worker could not be started.
    StartFailed(Arc<SpawnError>),
    /// A worker has sent what its [dialect](crate::pool::Dialect) does not permit, such as an answer that was not asked for, or output among
    /// the messages. It is killed and replaced. Its tasks are retried as after a death, or end with
    /// [`Protocol`](crate::pool::TaskErrorKind::Protocol).
    ProtocolViolated {
        /// The worker.
        worker: WorkerId,
        /// What it has sent.
        reason: Arc<str>,
    },
    /// A task runs longer than its [limit](crate::pool::PoolBuilder::slow_after) for that. Once for each attempt.
    Slow {
        /// The name of the task.
        request: Box<str>,
        /// Since when it runs.
        after: Duration,
    },
    /// So many events were not reported, since the function does not keep up with them.
    Missed(u64),
}

/// The function that receives the events.
pub(crate) type EventHandler = Arc<dyn Fn(&PoolEvent) + Send + Sync>;

/// The most events that wait for the function.
const EVENTS_MAX: usize = 1024;

/// Events that wait for the pool's thread.
#[derive(Debug, Default)]
pub(crate) struct PoolEvents {
    waiting: Vec<PoolEvent>,
    missed: u64,
    /// Without a function nothing is kept.
    pub(crate) is_wanted: bool,
}

impl PoolEvents {
    pub(crate) fn push(&mut self, event: impl FnOnce() -> PoolEvent) {
        if !self.is_wanted {
        } else if self.waiting.len() < EVENTS_MAX {
            self.waiting.push(event());
        } else {
            self.missed += 1;
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(crate) fn take(&mut self) -> Vec<PoolEvent> {
        let missed = std::mem::take(&mut self.missed);
        let mut events = std::mem::take(&mut self.waiting);
        if missed > 0 {
            events.push(PoolEvent::Missed(missed));
        }
        events
    }
}
