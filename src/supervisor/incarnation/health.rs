//! What is known of the readiness and the liveness of one incarnation.

use crate::{
    pipe::anonymous::ends::PipeReader,
    policy::{
        readiness::{ReadinessSource, ReadinessTracker},
        watchdog::WatchdogTimer,
    },
    supervisor::{
        incarnation::{message_probe::MessageProbe, probe::ReadinessProbe},
        worker::notify_socket::NotifySocket,
    },
};
use std::time::Instant;

/// What a worker has sent through `sd_notify(3)`.
#[derive(Debug, Default)]
pub(crate) struct Notifications {
    pub(crate) socket: Option<NotifySocket>,
    /// A datagram of a process that may not notify for this worker was rejected, and that was reported.
    pub(crate) has_refused: bool,
    /// The last `STATUS=`.
    pub(crate) status: Option<Box<str>>,
    /// The number of the last event that reported a status.
    pub(crate) last_told: u64,
    /// `STOPPING=1` was received.
    pub(crate) is_stopping: bool,
}

/// Whether it is ready, and whether it still lives.
#[derive(Debug, Default)]
pub(crate) struct Health {
    /// Until it is ready, or cannot be any more.
    pub(crate) readiness: Option<ReadinessTracker>,
    pub(crate) readiness_probe: Option<ReadinessProbe>,
    /// Looks at its messages, where one of them makes it ready.
    pub(crate) message_probe: Option<MessageProbe>,
    /// How much of its output was looked at; nothing where no more is.
    pub(crate) searched: Option<usize>,
    /// When the process has ended, while that waits for the verdict of the message probe.
    pub(crate) ended: Option<Instant>,
    /// The pipe on which a newline is waited for.
    pub(crate) readiness_pipe: Option<PipeReader>,
    pub(crate) notifications: Notifications,
    pub(crate) watchdog: Option<WatchdogTimer>,
    /// Something of what was read has made it ready.
    pub(crate) shown: Option<ReadinessSource>,
    /// We end it, since it did not become ready, gave no sign of life, or has had its time.
    pub(crate) is_unhealthy: bool,
}

impl Health {
    /// Whether so much of its output was looked at that no more is.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.searched.is_none()
    }
}
