//! Why a wait for a worker has failed.

use crate::{exit::Exit, ids::WorkerId};
use std::{io, sync::Arc};

/// Why a wait for a worker has failed: of [`Worker::wait_ready`](crate::Worker::wait_ready),
/// [`Worker::wait_incarnation`](crate::Worker::wait_incarnation) and [`RestartHandle::wait`](crate::RestartHandle::wait).
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum WaitError {
    /// The timeout has passed. The worker runs, or will run.
    #[error("worker {worker}: the wait has timed out")]
    TimedOut {
        /// The worker that was waited for.
        worker: WorkerId,
    },
    /// The worker has ended, and does not run again by itself.
    #[error("worker {worker} has ended: {}", .exit.with_last_words())]
    Ended {
        /// The worker that was waited for.
        worker: WorkerId,
        /// Its last exit; [`NeverStarted`](crate::ExitStatus::NeverStarted) if it had none.
        exit: Arc<Exit>,
    },
    /// The event loop has not answered within 5 s which workers restart.
    #[error("the event loop of the supervisor has not answered")]
    Unanswered,
}

impl From<WaitError> for io::Error {
    fn from(error: WaitError) -> Self {
        let kind = match error {
            WaitError::TimedOut { .. } | WaitError::Unanswered => io::ErrorKind::TimedOut,
            WaitError::Ended { .. } => io::ErrorKind::BrokenPipe,
        };
        Self::new(kind, error)
    }
}
