//! Faults of the supervisor's surroundings, reported as events.

use crate::{
    exit::ExitStatus,
    ids::WorkerId,
    supervisor::{
        containment::guard::GuardNotice,
        control::hello::{HandshakeError, RejectedHandshake},
        reactor::{Refusal, token::Target},
    },
};
use std::{fmt, io, time::Duration};

/// A fault that concerns the supervisor as a whole, from [`EventKind::Warning`](crate::supervisor::events::event::EventKind::Warning). Supervision continues;
/// each variant says what is missing until the fault is repaired.
///
/// Its `Display` is one line with operation, object and reason.
#[derive(Debug)]
#[non_exhaustive]
pub enum Warning {
    /// A datagram to the [`sd_notify`](crate::Readiness::sd_notify) socket of a worker was not heard: neither did a process of the
    /// worker's tree send it, nor one of our own user or root. Reported once per incarnation.
    NotificationRejected {
        /// The worker whose socket it is.
        worker: WorkerId,
        /// The sender's process id; 0 where it has none in our namespace.
        pid: u32,
        /// The sender's user.
        uid: u32,
    },
    /// The event loop could not watch the socket to which workers connect for control. It tries again; until that succeeds,
    /// workers cannot connect. Reported once per failure, not once per attempt.
    ControlUnavailable {
        /// The kernel's error.
        error: io::Error,
    },
    /// A connection to the control socket was refused: it got an error line, and was closed. A worker that connects so has no
    /// control. At most eight of these wait to be received, and come within 10 s.
    HandshakeRejected {
        /// Why.
        fault: HandshakeError,
        /// The process that connected, where the kernel says it: its id in this pid namespace.
        pid: Option<u32>,
        /// The beginning of what was received, [printable](crate::printable), with `...` in place of what may be a key.
        excerpt: Box<str>,
        /// How many refusals before this one were not reported.
        unreported: u64,
    },
    /// The [guard](crate::guard) has ended: killed by a user, or by the kernel for want of memory. Where it could not be replaced
    /// this is tried again; until that succeeds (see [`GuardRestored`](Self::GuardRestored)), what workers have started lives on
    /// when this process is killed. Reported once per end, not once per attempt.
    GuardExited {
        /// The process that was the guard.
        pid: u32,
        /// How it ended.
        status: ExitStatus,
        /// The process that is the guard now, or why there is none.
        replacement: Result<u32, Box<str>>,
    },
    /// There is a guard again after [`GuardExited`](Self::GuardExited) without a replacement.
    GuardRestored {
        /// The process that is the guard now.
        pid: u32,
    },
    /// The guard runs and cannot do all that it is there for, since something is missing on this machine.
    GuardDegraded {
        /// What is missing: `/proc`.
        missing: Box<str>,
    },
    /// The worker of this event is to be started again, and its last process is still there: SIGKILL was refused, or has not ended
    /// it. The next incarnation starts when that process has ended, or never if the worker is stopped before.
    RestartBlocked {
        /// The process that is waited for.
        pid: u32,
    },
    /// The kernel has refused to report a descriptor to the event loop: a worker's process, one of its streams or its connection, or the guard. A shortage
    /// of memory or of the user's watches passes, and it is tried again; what happens meanwhile is noticed then. Reported once per shortage.
    WatchFailed {
        /// The kernel's error.
        error: io::Error,
    },
    /// The thread that asks whether the worker of this event is ready could not be started. It is tried again every 50 ms for as long as
    /// the worker has to become ready. Reported once for each incarnation.
    ProbeThreadFailed {
        /// The kernel's error.
        error: io::Error,
    },
    /// The event loop has woken more than a second after its earliest timer: this process was not run. It was suspended, by SIGSTOP, a frozen
    /// cgroup or a sleeping machine, or it got no processor. All deadlines of workers have been moved by that time: to become ready, to connect, to
    /// give a sign of life, to run and to end. Deadlines of calls that wait, and of [`Supervisor::shutdown`](crate::supervisor::Supervisor::shutdown), have
    /// not.
    Suspended {
        /// By how much the deadlines were moved.
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
    fn from(Refusal { target, error, is_final: _ }: Refusal) -> Self {
        match target {
            Target::Door => Self::ControlUnavailable { error },
            _ => Self::WatchFailed { error },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p16_a_warning_says_operation_object_and_reason() {
        let error = io::Error::from_raw_os_error(12);
        assert_eq!(
            Warning::ControlUnavailable { error }.to_string(),
            "failed to watch the control socket for connections, retrying: Cannot allocate memory (os error 12)"
        );
        let fault = HandshakeError::UnknownKey;
        let refused = Warning::HandshakeRejected { fault, pid: Some(7), excerpt: "GET /".into(), unreported: 2 };
        assert_eq!(
            refused.to_string(),
            "refused a connection to the control socket by process 7: no worker with this key is expected: `GET /` \
             (2 earlier refusals were not reported)"
        );
    }

    #[test]
    fn p16_a_warning_about_the_guard_says_how_it_ended_and_what_follows() {
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
