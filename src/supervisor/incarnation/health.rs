//! The readiness and liveness of one incarnation.

use crate::{
    pipe::anonymous::ends::PipeReader,
    policy::{
        readiness::{ReadinessSource, ReadinessTracker},
        readiness_call::ReadinessCall,
        watchdog::WatchdogTimer,
    },
    supervisor::{
        control::internal_call::InternalCall,
        incarnation::{message_probe::MessageProbe, probe::ReadinessProbe},
        worker::notify_socket::NotifySocket,
    },
};
use serde_json::value::RawValue;
use std::time::Instant;

/// The state of notifications by `sd_notify(3)`.
#[derive(Debug, Default)]
pub(crate) struct Notifications {
    pub(crate) socket: Option<NotifySocket>,
    /// A datagram of a process that may not notify for this worker was rejected, which is reported once.
    pub(crate) has_rejected: bool,
    /// The last `STATUS=`.
    pub(crate) status: Option<Box<str>>,
    /// The number of the last event that reported a status.
    pub(crate) last_status_event: u64,
    /// `STOPPING=1` was received.
    pub(crate) is_stopping: bool,
}

/// Why the supervisor stops a worker by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HealthFailure {
    /// It did not become ready, its watchdog expired, or it reached its maximum runtime.
    Unhealthy,
    /// Its answer to the readiness call is fatal: a restart would not help.
    Rejected,
}

/// The handshake of an incarnation.
#[derive(Debug, Default)]
pub(crate) struct Handshake {
    pub(crate) policy: ReadinessCall,
    /// The open call.
    pub(crate) call: Option<InternalCall>,
    /// The last result.
    pub(crate) result: Option<Box<RawValue>>,
}

impl Handshake {
    /// Whether the closure checks a result.
    pub(crate) fn is_judging(&self) -> bool {
        self.policy.is_judging()
    }
}

/// The readiness and liveness of one incarnation.
#[derive(Debug, Default)]
pub(crate) struct Health {
    /// `None` once the worker is ready or can no longer become ready.
    pub(crate) readiness: Option<ReadinessTracker>,
    pub(crate) readiness_probe: Option<ReadinessProbe>,
    /// Set if a message makes the worker ready.
    pub(crate) message_probe: Option<MessageProbe>,
    /// Set while a call has to make the worker ready.
    pub(crate) handshake: Option<Handshake>,
    /// How many bytes of output were searched; `None` once the limit is reached.
    pub(crate) searched: Option<usize>,
    /// The time of the exit, while its handling waits for a closure that may make the worker ready.
    pub(crate) exited_at: Option<Instant>,
    /// The pipe on which the worker writes a newline when it is ready.
    pub(crate) readiness_pipe: Option<PipeReader>,
    pub(crate) notifications: Notifications,
    pub(crate) watchdog: Option<WatchdogTimer>,
    /// Output was read that makes the worker ready.
    pub(crate) found: Option<ReadinessSource>,
    /// Why the supervisor stops it by itself.
    pub(crate) failure: Option<HealthFailure>,
    /// Why it has not become ready, if it is stopped for that.
    pub(crate) not_ready: Option<Box<str>>,
    /// The signal that the watchdog has sent.
    pub(crate) abort_signal: Option<i32>,
}

impl Health {
    /// Whether the limit of searched output is reached.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.searched.is_none()
    }
}
