//! Events.

use crate::{
    exit::Exit,
    ids::{GroupId, WorkerId},
    launch::error::SpawnError,
    policy::{backpressure::EVENT_BYTES, readiness::ReadinessError, restart::AfterExit},
    supervisor::{
        events::warning::Warning,
        worker::{SharedWorker, handlers::HandlerTask},
    },
    wire::{
        credit::Permit,
        framing::error::FrameError,
        jsonrpc::request::{Notification, Request},
        message::{Line, Message, OutputBytes},
    },
};
use std::{fmt, ops::Deref, sync::Arc, time::Duration};

// Every queued message is an `Event`: large, rare payloads are boxed.
const _: () = assert!(size_of::<Event>() <= 64);

/// Something that happened to a worker, or that it sent.
///
/// [`Started`](EventKind::Started) is the first event of an incarnation and [`Exited`](EventKind::Exited) the last. Messages, lines and
/// output of one stream arrive in the order in which they were written.
///
/// # The final event
///
/// Every worker of which [`spawn`](crate::Supervisor::spawn), its group or its [queue](crate::pool::Jobs) has returned a handle has one *final* event
/// ([`EventKind::is_final`]): `Exited`, `SpawnFailed` or `NotStarted` whose `next` is not a restart, or `DependencyFailed`. A program
/// that counts its workers down counts these. Once it is received, [`wait_timeout(Duration::ZERO)`](crate::Worker::wait_timeout) returns
/// the exit. No event of the worker follows, unless the worker is started again:
///
/// * by a call: [`WorkerGroup::start`](crate::WorkerGroup::start), [`restart`](crate::WorkerGroup::restart) or
///   [`start_member`](crate::WorkerGroup::start_member). It then has one more final event, whether it starts or not.
/// * by a group that restarts several members together, because a sibling has failed. The member then has one more final event if it
///   starts.
#[non_exhaustive]
pub struct Event {
    /// The worker.
    pub worker: WorkerId,
    /// The incarnation, counted from 1.
    pub incarnation: u32,
    /// What happened.
    pub kind: EventKind,
    /// `None` for messages, lines and other output, which are frequent.
    held: Option<Box<Held>>,
}

/// What an event holds besides its public fields.
struct Held {
    /// Keeps the worker in the registry while the event exists.
    shared: Arc<SharedWorker>,
    /// Counts the event against the worker's window, unless its payload does. Otherwise a worker that is restarted again and again would
    /// fill the channel.
    _permit: Option<Permit>,
}

impl Event {
    pub(crate) fn of(shared: &Arc<SharedWorker>, incarnation: u32, kind: EventKind) -> Self {
        let is_frequent = matches!(kind, EventKind::Message(_) | EventKind::Line { .. } | EventKind::Output { .. });
        let hold = || {
            let permit = (!kind.is_charged()).then(|| shared.window.flow.permit(kind.bytes()));
            Box::new(Held { shared: Arc::clone(shared), _permit: permit })
        };
        let held = (!is_frequent).then(hold);
        Self { worker: shared.id(), incarnation, held, kind }
    }

    /// The worker whose window it counts against; `None` for messages, lines and other output.
    pub(crate) fn worker_shared(&self) -> Option<&SharedWorker> {
        self.held.as_ref().map(|held| &*held.shared)
    }

    /// Whether a handler receives it in place of the channel, if there is one.
    pub(crate) fn is_handled(&self) -> bool {
        matches!(self.kind, EventKind::Request(_) | EventKind::Notification(_))
    }

    /// A request or notification as a task for a handler.
    pub(crate) fn into_task(self) -> Option<HandlerTask> {
        let request = match self.kind {
            EventKind::Request(request) => *request,
            EventKind::Notification(notification) => Request::from(*notification),
            _ => return None,
        };
        Some(HandlerTask { worker: self.held?.shared, request })
    }

    /// An event of the supervisor itself.
    pub(crate) fn warning(warning: impl Into<Warning>) -> Self {
        Self::of_the_gone(WorkerId::SUPERVISOR, EventKind::Warning(Box::new(warning.into())))
    }

    /// An event of a group whose last worker is no longer registered.
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
    /// The process executes its program.
    Started {
        /// The process id.
        pid: u32,
    },
    /// The worker sent a message.
    Message(Message),
    /// The worker wrote a line to a captured standard stream.
    Line {
        /// The stream.
        stream: OutputStream,
        /// The line, without its [ending](Line::ending). A line longer than 64 KiB is split into pieces of that length, each a
        /// [partial](Line::is_partial) line.
        line: Line,
    },
    /// The worker wrote bytes to a standard stream that is captured with [`OutputMode::Bytes`](crate::OutputMode::Bytes).
    Output {
        /// The stream.
        stream: OutputStream,
        /// The bytes: what one read returned, which may be a part of a write, or several writes.
        bytes: OutputBytes,
    },
    /// The message stream contains something that is not a message: truncated by the exit, malformed, too long, or, with
    /// [`validate_json`](crate::WorkerSpec::validate_json) or a framing with sizes, not JSON. Reading resumes after it.
    InvalidFrame(Box<InvalidFrame>),
    /// The worker has connected to its control pipe. Calls and notifications made before are sent now.
    ControlConnected,
    /// The worker has no control connection, although no stop was requested: it did not connect, or the connection was closed.
    ControlDisconnected(DisconnectReason),
    /// The worker sent a request over control, and waits for the answer.
    Request(Box<Request>),
    /// The worker sent a notification over control.
    Notification(Box<Notification>),
    /// The worker is ready, by its [`Readiness`](crate::Readiness).
    Ready {
        /// Time since its start.
        after: Duration,
    },
    /// The worker is still not [ready](crate::Readiness) after 75 % of its timeout.
    ReadinessDelayed {
        /// Time since its start.
        waited: Duration,
    },
    /// The worker has not become ready. It is stopped, unless it has exited already.
    NotReady {
        /// The reason.
        reason: ReadinessError,
        /// What it wrote to its message pipe and captured streams, as [printable](crate::printable) lines; of more than 2 KiB the first
        /// and the last KiB. If it wrote nothing, its last status by `sd_notify`.
        recent_output: Box<str>,
    },
    /// The worker sent `STATUS=` by `sd_notify`; up to 1 KiB, [printable](crate::printable). While one of these events has not been
    /// received, later texts are only in [`WorkerStatus::status`](crate::status::WorkerStatus::status).
    #[doc(alias = "STATUS")]
    StatusText(Box<str>),
    /// The worker sent `STOPPING=1` by `sd_notify`: it is about to exit.
    #[doc(alias = "STOPPING")]
    SelfStopping,
    /// The [`Watchdog`](crate::Watchdog) has seen no activity for most of its period.
    WatchdogWarning {
        /// Time since the last activity.
        silent_for: Duration,
    },
    /// The watchdog has seen no activity for its whole period. The worker is stopped.
    #[doc(alias = "WatchdogSec")]
    WatchdogTimeout,
    /// The incarnation has reached its [`runtime_max`](crate::WorkerSpec::runtime_max). It is stopped.
    #[doc(alias = "RuntimeMaxSec")]
    RuntimeExceeded {
        /// Time since its start.
        after: Duration,
    },
    /// The process has exited and is reaped, and everything it wrote has been delivered.
    Exited {
        /// The exit.
        exit: Arc<Exit>,
        /// What happens to the worker now.
        next: AfterExit,
    },
    /// The worker is not started, since a member of a group that it [depends on](crate::WorkerSpec::depends_on) has failed, or a job that it
    /// is to run [after](crate::pool::JobSpec::after). Siblings keep running. For a [significant](crate::WorkerSpec::significant) worker this
    /// counts as its exit.
    DependencyFailed {
        /// The dependency.
        on: WorkerId,
    },
    /// A group exceeded its restart intensity, or a member whose [`Restart`](crate::Restart) is not `Never` gave up. The whole group is
    /// stopped. The event's worker is the one whose exit caused it. A [`GroupRestarting`](Self::GroupRestarting) or
    /// [`GroupEnded`](Self::GroupEnded) follows.
    GroupGaveUp(GroupId),
    /// No worker of a group is left, and only a caller can start the group again: it was stopped, or it ended, or its parent group ended.
    /// Sent once for each time that the group ran. The event's worker is the last one that exited; it is meaningless if no worker of
    /// the group ran.
    GroupEnded(GroupId),
    /// No worker of a group was left, and the group is started again: by [`WorkerGroup::restart`](crate::WorkerGroup::restart), by its
    /// own [`restart`](crate::GroupPolicy::restart) after it gave up or shut down, or with its parent group. Its restart count is
    /// reset. The event's worker is as in [`GroupEnded`](Self::GroupEnded).
    GroupRestarting(GroupId),
    /// The next incarnation could not be spawned. If the host is [short of a resource](SpawnError::is_shortage), the start is tried again
    /// unless the worker is stopped, and the failure does not count against the worker.
    SpawnFailed {
        /// The error.
        error: Arc<SpawnError>,
        /// What happens to the worker now.
        next: AfterExit,
    },
    /// The worker waited for its start or its restart, and is not started: it was stopped meanwhile, or its group ended or does not run, or
    /// its job was cancelled.
    NotStarted {
        /// [`GaveUp`](AfterExit::GaveUp) if the worker had given up and its group was not restarted either; otherwise
        /// [`Finished`](AfterExit::Finished).
        next: AfterExit,
    },
    /// A fault of the supervisor's environment. The event's `worker` is [`WorkerId::SUPERVISOR`], unless the warning is about one worker.
    Warning(Box<Warning>),
}

impl EventKind {
    /// Whether this is the final event of its worker: see [`Event`].
    pub fn is_final(&self) -> bool {
        match self {
            Self::Exited { next, .. } | Self::SpawnFailed { next, .. } | Self::NotStarted { next } => next.is_final(),
            Self::DependencyFailed { .. } => true,
            _ => false,
        }
    }

    /// Whether the payload counts against a window by itself.
    fn is_charged(&self) -> bool {
        matches!(self, Self::InvalidFrame(_) | Self::Request(_) | Self::Notification(_))
    }

    /// Approximate size in bytes.
    fn bytes(&self) -> usize {
        let of_its_own = match self {
            Self::Exited { exit, .. } => size_of::<Exit>() + exit.stderr_tail.len() + size_of_val(&*exit.survivors),
            Self::NotReady { recent_output, .. } => recent_output.len(),
            Self::StatusText(text) => text.len(),
            Self::SpawnFailed { .. } => size_of::<SpawnError>(),
            _ => 0,
        };
        EVENT_BYTES + size_of::<Held>() + of_its_own
    }
}

/// A [`FrameError`]. It counts against its worker's window until it is dropped, so that a flood of invalid frames is bounded.
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

/// Why a worker has no control connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DisconnectReason {
    /// It did not connect within its [`control_connect_timeout`](crate::WorkerSpec::control_connect_timeout).
    ConnectTimeout,
    /// It did not connect, and could not: its process runs as another user than the supervisor. See
    /// [`WorkerSpec::peer_user`](crate::WorkerSpec::peer_user).
    OtherUser {
        /// The user that the worker or a child of it runs as.
        uid: u32,
    },
    /// It exited before it connected; `Exited` follows.
    ExitedFirst,
    /// It closed the connection, or sent descriptors over it, and is still running.
    Closed,
}

impl fmt::Display for DisconnectReason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::OtherUser { uid } => {
                return write!(
                    formatter,
                    "no control connection: the worker runs as user {uid}, who may not connect \
                     (see WorkerSpec::peer_user)"
                );
            }
            Self::ConnectTimeout => "did not connect to its control pipe in time",
            Self::ExitedFirst => "exited before it connected to its control pipe",
            Self::Closed => "closed its control connection",
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
    use crate::{
        policy::{readiness::ReadinessSource, restart::GiveUpReason},
        wire::framing::error::FrameErrorKind,
    };

    #[test]
    fn reasons_are_one_line() {
        let after = Duration::from_millis(1500);
        assert_eq!(
            ReadinessError::TimedOut { waited: after, source: ReadinessSource::Call }.to_string(),
            "not ready after 1.5s: it has not answered its readiness call, or only that it is not ready yet"
        );
        assert_eq!(ReadinessError::Exited { after }.to_string(), "exited before it was ready, after 1.5s");
        assert_eq!(DisconnectReason::Closed.to_string(), "closed its control connection");
        assert_eq!(
            (OutputStream::Stdout.to_string(), AfterExit::GaveUp(GiveUpReason::IntensityExceeded).to_string()),
            ("stdout".into(), "gave up: restarted too often".into())
        );
        assert_eq!(AfterExit::Restart { after }.to_string(), "restarts in 1.5s");
        assert_eq!(AfterExit::Finished.to_string(), "finished");
        let fault = FrameError::new(FrameErrorKind::NotRpc, 40, 3, b"a\xffb");
        assert_eq!(fault.to_string(), "a line of 3 bytes that is not JSON-RPC 2.0, at offset 40: `a\u{fffd}b`");
    }
}
