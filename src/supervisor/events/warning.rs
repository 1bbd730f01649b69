//! Faults of the supervisor's environment, reported as events.

use crate::{
    exit::ExitStatus,
    ids::WorkerId,
    supervisor::{
        containment::guard::GuardNotice,
        control::hello::{HandshakeError, RejectedHandshake},
        events::notification_failure::NotificationFailure,
        reactor::{Refusal, token::Token},
    },
};
use std::{fmt, io, time::Duration};

/// A fault of the supervisor's environment, from [`EventKind::Warning`](crate::EventKind::Warning). Supervision continues; each variant says
/// what does not work until the fault is repaired.
///
/// Its `Display` is one line with operation, object and reason.
#[derive(Debug)]
#[non_exhaustive]
pub enum Warning {
    /// A datagram to the [`sd_notify`](crate::Readiness::sd_notify) socket of a worker was rejected: its sender is neither in the
    /// worker's tree nor a process of the supervisor's user or root. Reported once per incarnation.
    NotificationRejected {
        /// The worker whose socket it is.
        worker: WorkerId,
        /// The sender's process id; 0 if it has none in this pid namespace.
        pid: u32,
        /// The sender's user.
        uid: u32,
    },
    /// The event loop failed to watch the control socket, and retries. Until that succeeds, workers cannot connect. Reported once per failure, not once
    /// per attempt.
    ControlUnavailable {
        /// The kernel's error.
        error: io::Error,
    },
    /// A connection to the control socket was rejected: the peer got an error line, and the connection was closed. At most eight of these
    /// are queued, and at most eight sent within 10 s.
    HandshakeRejected {
        /// The reason.
        fault: HandshakeError,
        /// The peer's process id in this pid namespace, if known.
        pid: Option<u32>,
        /// The beginning of the received line, [printable](crate::printable), with `...` in place of possible keys.
        excerpt: Box<str>,
        /// Number of earlier rejections that were not reported.
        unreported: u64,
    },
    /// A handler ([`Supervisor::serve`](crate::Supervisor::serve), [`Worker::serve`](crate::Worker::serve)) has returned an error for a
    /// notification, or has panicked. Eight of these may wait to be received for each handler; further ones are counted in the next.
    NotificationFailed(NotificationFailure),
    /// The [guard](crate::guard) exited, for example killed by a user or by the OOM killer. If it could not be replaced, that is
    /// retried. Until it succeeds (see [`GuardRestored`](Self::GuardRestored)), descendants of workers survive if this process
    /// is killed. Reported once per exit, not once per attempt.
    GuardExited {
        /// Process id of the former guard.
        pid: u32,
        /// Its exit status.
        status: ExitStatus,
        /// Process id of the new guard, or why there is none.
        replacement: Result<u32, Box<str>>,
    },
    /// A guard runs again after a [`GuardExited`](Self::GuardExited) without replacement.
    GuardRestored {
        /// Process id of the guard.
        pid: u32,
    },
    /// The guard runs with reduced function, since something is missing on this machine.
    GuardDegraded {
        /// What is missing: `/proc`.
        missing: Box<str>,
    },
    /// The event's worker is to be restarted, but its last process still exists: SIGKILL was refused or has no effect yet. The next
    /// incarnation starts when that process has exited, or never if the worker is stopped before.
    RestartBlocked {
        /// Id of that process.
        pid: u32,
    },
    /// The kernel refused to watch a file descriptor: of a worker's process, stream or connection, or of the guard. It is retried, since a
    /// shortage of memory or watches may pass; events that occur meanwhile are noticed then. Reported once per shortage.
    WatchFailed {
        /// The kernel's error.
        error: io::Error,
    },
    /// The thread that checks the readiness of the event's worker could not be started. It is retried every 50 ms until the readiness
    /// timeout. Reported once per incarnation.
    ProbeThreadFailed {
        /// The kernel's error.
        error: io::Error,
    },
    /// The event loop woke more than a second after its earliest timer: this process was suspended (SIGSTOP, a frozen cgroup, a
    /// sleeping machine), or got no processor time. All deadlines of workers are moved by that time: readiness, control connection,
    /// watchdog, `runtime_max` and stop. Deadlines of pending calls and of [`Supervisor::shutdown`](crate::Supervisor::shutdown) are
    /// not moved.
    Suspended {
        /// The time by which the deadlines were moved.
        missed: Duration,
    },
}

impl From<RejectedHandshake> for Warning {
    fn from(RejectedHandshake { fault, pid, excerpt, unreported }: RejectedHandshake) -> Self {
        Self::HandshakeRejected { fault, pid, excerpt, unreported }
    }
}

impl From<GuardNotice> for Warning {
    fn from(notice: GuardNotice) -> Self {
        match notice {
            GuardNotice::Exited { pid, status, replacement } => Self::GuardExited { pid, status, replacement },
            GuardNotice::Restored { pid } => Self::GuardRestored { pid },
            GuardNotice::Degraded { missing } => Self::GuardDegraded { missing },
        }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotificationRejected { worker, pid, uid } => write!(
                formatter,
                "refused an sd_notify datagram for worker {worker}: its sender, process {pid} of user {uid}, is not of the \
                 worker's tree"
            ),
            Self::ControlUnavailable { error } => {
                write!(formatter, "failed to watch the control socket for connections, retrying: {error}")
            }
            Self::HandshakeRejected { fault, pid, excerpt, unreported } => {
                write!(formatter, "refused a connection to the control socket")?;
                if let Some(pid) = pid {
                    write!(formatter, " by process {pid}")?;
                }
                write!(formatter, ": {fault}")?;
                if !excerpt.is_empty() {
                    write!(formatter, ": `{excerpt}`")?;
                }
                if *unreported > 0 {
                    write!(formatter, " ({unreported} earlier refusals were not reported)")?;
                }
                Ok(())
            }
            Self::NotificationFailed(failure) => failure.fmt(formatter),
            Self::GuardExited { pid, status, replacement: Ok(replacement) } => {
                write!(formatter, "guard process {pid} ended ({status}), replaced by process {replacement}")
            }
            Self::GuardExited { pid, status, replacement: Err(reason) } => {
                write!(formatter, "guard process {pid} ended ({status}) and could not be replaced, retrying: {reason}")
            }
            Self::GuardRestored { pid } => write!(formatter, "guard restored as process {pid}"),
            Self::GuardDegraded { missing } => {
                write!(formatter, "guard runs without {missing}: processes that left their group may survive this one")
            }
            Self::RestartBlocked { pid } => {
                write!(formatter, "restart waits for the end of process {pid}, which SIGKILL has not ended")
            }
            Self::WatchFailed { error } => {
                write!(formatter, "failed to watch a descriptor of a worker or of the guard: {error}")
            }
            Self::ProbeThreadFailed { error } => {
                write!(formatter, "failed to start the thread that asks whether the worker is ready, retrying: {error}")
            }
            Self::Suspended { missed } => {
                write!(
                    formatter,
                    "event loop was not run for {missed:.1?}, as in a suspended process: deadlines of workers moved"
                )
            }
        }
    }
}

impl From<Refusal> for Warning {
    fn from(Refusal { token, error, is_final: _ }: Refusal) -> Self {
        match token {
            Token::Listener => Self::ControlUnavailable { error },
            _ => Self::WatchFailed { error },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p16_warning_has_operation_object_and_reason() {
        let error = io::Error::other("reason");
        assert_eq!(
            Warning::ControlUnavailable { error }.to_string(),
            "failed to watch the control socket for connections, retrying: reason"
        );
        let fault = HandshakeError::UnknownKey;
        let refused = Warning::HandshakeRejected { fault, pid: Some(7), excerpt: "GET /".into(), unreported: 2 };
        assert_eq!(
            refused.to_string(),
            "refused a connection to the control socket by process 7: no worker with this key is expected: it \
             was used before, or its worker has ended: `GET /` \
             (2 earlier refusals were not reported)"
        );
    }

    #[test]
    fn p16_guard_warning_has_status_and_replacement() {
        let status = ExitStatus::Signal { signal: 9, core_dumped: false };
        assert_eq!(
            Warning::GuardExited { pid: 7, status, replacement: Ok(8) }.to_string(),
            "guard process 7 ended (killed by signal 9 (SIGKILL)), replaced by process 8"
        );
        assert_eq!(
            Warning::GuardExited { pid: 7, status, replacement: Err("no memory".into()) }.to_string(),
            "guard process 7 ended (killed by signal 9 (SIGKILL)) and could not be replaced, retrying: no memory"
        );
        assert_eq!(Warning::GuardRestored { pid: 8 }.to_string(), "guard restored as process 8");
    }
}
