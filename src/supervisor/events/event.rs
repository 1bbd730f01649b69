//! What a supervisor tells.

use crate::{
    exit::Exit,
    ids::{GroupId, WorkerId},
    launch::error::SpawnError,
    policy::{backpressure::EVENT_BYTES, restart::GiveUpReason},
    supervisor::{events::warning::Warning, worker::SharedWorker},
    wire::{
        credit::Permit,
        framing::error::FrameError,
        jsonrpc::request::{Notification, Request},
        message::{Line, Message},
    },
};
use std::{fmt, ops::Deref, sync::Arc, time::Duration};

// Every message waiting for its consumer is one: what is rare and large is boxed.
const _: () = assert!(size_of::<Event>() <= 64);

/// Something that happened to a worker, or that it said.
///
/// Of one incarnation, [`Started`](EventKind::Started) is the first event and [`Exited`](EventKind::Exited) the last, and
/// what it wrote comes in the order it was written, stream by stream.
#[non_exhaustive]
pub struct Event {
    /// The worker.
    pub worker: WorkerId,
    /// Which of its processes, counted from 1.
    pub incarnation: u32,
    /// What happened.
    pub kind: EventKind,
    /// Not for messages and lines, of which there are many.
    held: Option<Box<Held>>,
}

/// What an event holds beside what it tells.
struct Held {
    /// So that its worker is found as long as the event exists.
    shared: Arc<SharedWorker>,
    /// It counts against its worker's window until it is dropped, unless what it tells does: otherwise a worker that is started again and again
    /// would fill the channel.
    _permit: Option<Permit>,
}

impl Event {
    pub(crate) fn of(shared: &Arc<SharedWorker>, incarnation: u32, kind: EventKind) -> Self {
        let is_frequent = matches!(kind, EventKind::Message(_) | EventKind::Line { .. });
        let hold = || {
            let permit = (!kind.is_charged()).then(|| shared.window.flow.permit(kind.bytes()));
            Box::new(Held { shared: Arc::clone(shared), _permit: permit })
        };
        let held = (!is_frequent).then(hold);
        Self { worker: shared.id(), incarnation, held, kind }
    }

    /// Whose window it counts against, unless it is a message or a line.
    pub(crate) fn worker_shared(&self) -> Option<&SharedWorker> {
        self.held.as_ref().map(|held| &*held.shared)
    }

    /// About the supervisor itself.
    pub(crate) fn warning(warning: impl Into<Warning>) -> Self {
        Self::of_the_gone(WorkerId::SUPERVISOR, EventKind::Warning(Box::new(warning.into())))
    }

    /// Of a group, whose last worker has been forgotten.
    pub(crate) fn of_the_gone(worker: WorkerId, kind: EventKind) -> Self {
        Self { worker, incarnation: 0, kind, held: None }
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { worker, incarnation, kind, held: _ } = self;
        formatter
            .debug_struct("Event")
            .field("worker", worker)
            .field("incarnation", incarnation)
            .field("kind", kind)
            .finish()
    }
}

/// What happened.
#[derive(Debug)]
#[non_exhaustive]
pub enum EventKind {
    /// Its process runs its program.
    Started {
        /// The process id.
        pid: u32,
    },
    /// It sent a message.
    Message(Message),
    /// It wrote a line to a standard stream that is captured.
    Line {
        /// To which.
        stream: OutputStream,
        /// The line, without its [ending](Line::ending). One that is longer than 64 KiB comes in pieces of that length, each as a
        /// line that [is partial](Line::is_partial).
        line: Line,
    },
    /// Something came through its message stream that is not a message: cut off by its death, torn, too long, or, with
    /// [`validate_json`](crate::WorkerSpec::validate_json) or a framing that announces sizes, not JSON. The stream goes on behind it.
    InvalidFrame(Box<InvalidFrame>),
    /// It has connected to its control pipe. What was sent to it before goes out now.
    ControlConnected,
    /// Its control connection is missing, or has ended, while nobody asked for that.
    ControlDisconnected(DisconnectReason),
    /// It asks something over control, and waits for the answer.
    Request(Box<Request>),
    /// It tells something over control.
    Notification(Box<Notification>),
    /// It is ready for work, as its [`Readiness`](crate::Readiness) wants it.
    Ready {
        /// From its start.
        after: Duration,
    },
    /// Three quarters of the time in which it has to become [ready](crate::Readiness) are over.
    ReadinessDelayed {
        /// From its start.
        waited: Duration,
    },
    /// It has not become ready, and is stopped unless it has ended already.
    NotReady {
        /// Why.
        reason: ReadinessError,
        /// All it wrote to its messages and captured streams, as [printable](crate::printable) lines; beyond 2 KiB the first and
        /// the last KiB of it. Where it wrote nothing, its last status by `sd_notify`.
        recent_output: Box<str>,
    },
    /// It tells what it is doing, by `sd_notify`; at most 1 KiB of it, [printable](crate::printable). While one such event is not received, later ones are only in
    /// [`WorkerStatus::status`](crate::status::WorkerStatus::status).
    #[doc(alias = "STATUS")]
    StatusText(Box<str>),
    /// It tells that it is about to end, by `sd_notify`.
    #[doc(alias = "STOPPING")]
    SelfStopping,
    /// Its [`Watchdog`](crate::Watchdog) has heard nothing of it for most of the period.
    WatchdogWarning {
        /// From the last sign of life.
        silent_for: Duration,
    },
    /// Its watchdog has heard nothing of it for the whole period: it is stopped.
    #[doc(alias = "WatchdogSec")]
    WatchdogTimeout,
    /// It has run as long as its [time limit](crate::WorkerSpec::runtime_max) lets it: it is stopped.
    #[doc(alias = "RuntimeMaxSec")]
    RuntimeExceeded {
        /// From its start.
        after: Duration,
    },
    /// Its process has ended and is reaped, and everything it wrote has been told.
    Exited(Arc<Exit>),
    /// It is not started, since this other member of a group, which it waits for, has failed. Its siblings go on, as none of
    /// them has failed; where it is [significant](crate::WorkerSpec::significant) this counts as its end.
    DependencyFailed {
        /// The other.
        on: WorkerId,
    },
    /// There were too many restarts in a group, or a member has given up whose [`Restart`](crate::Restart) is not `Never`: all of
    /// it is stopped. The worker of this event is the one whose end led to it. A [`GroupRestarting`](Self::GroupRestarting) or
    /// [`GroupEnded`](Self::GroupEnded) says what comes of it.
    GroupGaveUp(GroupId),
    /// No worker of a group is left, and only a caller starts it again: it was stopped, or has ended, or the group around it has.
    /// Comes once for each time that the group ran. The worker of this event is the last one that ended, and means nothing where no
    /// worker has run in this group.
    GroupEnded(GroupId),
    /// No worker of a group was left, and it begins a new life: by [`WorkerGroup::restart`](crate::WorkerGroup::restart), by its own
    /// [`restart`](crate::GroupPolicy::restart) after it gave up or shut down, or with the group around it. Its restarts are
    /// counted anew. The worker of this event is as in [`GroupEnded`](Self::GroupEnded).
    GroupRestarting(GroupId),
    /// After `Exited`: its next incarnation is started after so long.
    Restarting {
        /// From now.
        after: Duration,
    },
    /// The next incarnation could not be started. Where the host was only [short of something](SpawnError::is_shortage), a
    /// [`Restarting`](Self::Restarting) follows in any case: that is not counted as a failure of the worker.
    SpawnFailed(Arc<SpawnError>),
    /// After `Exited`: it will not be started again, though its policy would have it so. Of a member of a group whose own group is
    /// then restarted it does not come; where that is decided only later, it comes just before the
    /// [`GroupEnded`](Self::GroupEnded).
    GaveUp(GiveUpReason),
    /// A fault that concerns the supervisor and not one worker; the event's `worker` is [`WorkerId::SUPERVISOR`].
    Warning(Box<Warning>),
}

impl EventKind {
    /// What it tells counts against a window by itself.
    fn is_charged(&self) -> bool {
        matches!(self, Self::InvalidFrame(_) | Self::Request(_) | Self::Notification(_))
    }

    /// About how many bytes it costs until it is dropped.
    fn bytes(&self) -> usize {
        let of_its_own = match self {
            Self::Exited(exit) => size_of::<Exit>() + exit.stderr_tail.len() + size_of_val(&*exit.survivors),
            Self::NotReady { recent_output, .. } => recent_output.len(),
            Self::StatusText(text) => text.len(),
            Self::SpawnFailed(_) => size_of::<SpawnError>(),
            _ => 0,
        };
        EVENT_BYTES + size_of::<Held>() + of_its_own
    }
}

/// A [`FrameError`]. It counts against its worker's window until it is dropped, so that a flood of garbage cannot fill the parent.
pub struct InvalidFrame {
    pub(crate) fault: FrameError,
    pub(crate) _permit: Permit,
}

impl fmt::Debug for InvalidFrame {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.fault, formatter)
    }
}

impl fmt::Display for InvalidFrame {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.fault, formatter)
    }
}

impl Deref for InvalidFrame {
    type Target = FrameError;

    fn deref(&self) -> &FrameError {
        &self.fault
    }
}

/// Why a worker is not ready. Times count from its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReadinessError {
    /// Not in time.
    TimedOut {
        /// How long it was waited for.
        waited: Duration,
    },
    /// It closed the descriptor on which a newline was waited for.
    PipeClosed {
        /// When.
        after: Duration,
    },
    /// The line or message that makes it ready was not in the first 16 MiB of its output; no more is looked at.
    OutputLimit {
        /// When.
        after: Duration,
    },
    /// It ended first; its exit is about to be told.
    Exited {
        /// When.
        after: Duration,
    },
}

impl fmt::Display for ReadinessError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TimedOut { waited } => write!(formatter, "not ready after {waited:.1?}"),
            Self::PipeClosed { after } => {
                write!(formatter, "it closed its readiness pipe without a newline, after {after:.1?}")
            }
            Self::OutputLimit { after } => {
                write!(formatter, "nothing in the first 16 MiB of its output made it ready, after {after:.1?}")
            }
            Self::Exited { after } => write!(formatter, "it ended before it was ready, after {after:.1?}"),
        }
    }
}

/// Why a worker has no control connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DisconnectReason {
    /// It has not connected in the time that its spec gives it.
    ConnectTimeout,
    /// As `ConnectTimeout` or `ExitedFirst`, and the kernel did not let it: its process runs as another user than we do. See
    /// [`WorkerSpec::peer_user`](crate::WorkerSpec::peer_user).
    OtherUser {
        /// The user that it, or a child of it, runs as.
        uid: u32,
    },
    /// Its process has ended before it had connected; its exit is about to be told.
    ExitedFirst,
    /// It has closed the connection, or sent descriptors over it, and lives on.
    Closed,
}

impl fmt::Display for DisconnectReason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::OtherUser { uid } => {
                return write!(
                    formatter,
                    "it has not connected to its control pipe: it runs as user {uid}, who may not connect \
                     (see WorkerSpec::peer_user)"
                );
            }
            Self::ConnectTimeout => "it has not connected to its control pipe in time",
            Self::ExitedFirst => "it ended before it had connected to its control pipe",
            Self::Closed => "it has closed its control connection",
        })
    }
}

impl fmt::Display for OutputStream {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        })
    }
}

/// A standard stream of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OutputStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::framing::error::FrameErrorKind;

    #[test]
    fn reasons_are_sentences() {
        let after = Duration::from_millis(1500);
        assert_eq!(ReadinessError::TimedOut { waited: after }.to_string(), "not ready after 1.5s");
        assert_eq!(ReadinessError::Exited { after }.to_string(), "it ended before it was ready, after 1.5s");
        assert_eq!(DisconnectReason::Closed.to_string(), "it has closed its control connection");
        assert_eq!(
            (OutputStream::Stdout.to_string(), GiveUpReason::IntensityExceeded.to_string()),
            ("stdout".into(), "restarted too often".into())
        );
        let fault = FrameError::new(FrameErrorKind::NotRpc, 40, 3, b"a\xffb");
        assert_eq!(fault.to_string(), "a line of 3 bytes that is not JSON-RPC 2.0, at offset 40: `a\u{fffd}b`");
    }
}
