//! A worker that waits for a process which is started elsewhere.

use crate::supervisor::{handles::worker::Worker, spec::WorkerSpec};
use std::{
    ffi::{OsStr, OsString},
    fmt,
};

/// The variable, unless the spec names another.
const VARIABLE: &str = "PIPEWRIGHT_CONTROL";

/// A worker whose process is started elsewhere, and the environment variable that this process needs to connect:
/// [`Supervisor::attach`](crate::Supervisor::attach).
///
/// ```no_run
/// use pipewright::{Pass, Supervisor, WorkerSpec};
/// use std::time::Duration;
///
/// let supervisor = Supervisor::new()?;
/// let attachment = supervisor.attach(WorkerSpec::new("plugin").control(Pass::env("PIPEWRIGHT_CONTROL")))?;
/// eprintln!("{attachment} gdb ./plugin"); // PIPEWRIGHT_CONTROL='/run/…' gdb ./plugin
/// let plugin = attachment.into_worker();
/// let sum: i64 = plugin.call("add", &[20, 22], Duration::from_secs(600))?; // waits for the connection
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Calls, notifications, requests, messages and readiness are those of any worker. Different is what depends on the start:
///
/// * [`Started`](crate::EventKind::Started) is sent when the process connects. There is no timeout for that, unless
///   [`control_connect_timeout`](WorkerSpec::control_connect_timeout) sets one: then [`SpawnFailed`](crate::EventKind::SpawnFailed) is the
///   final event. A worker that is stopped before ends with [`NotStarted`](crate::EventKind::NotStarted).
/// * [`Exited`](crate::EventKind::Exited) is sent when the process ends. Its status is known since Linux 6.15, if its own parent reaps it
///   within about 250 ms; otherwise it is [`Unknown`](crate::ExitStatus::Unknown). There is no usage and no output.
/// * If the spec has [messages](WorkerSpec::messages), a worker that uses [`Parent::from_args`](crate::Parent::from_args) sends them over
///   control. They count against the [`control_window`](WorkerSpec::control_window), and the framing is not used.
/// * The worker has one incarnation: neither a policy nor [`Worker::restart`] starts another. Attach again for the next process.
/// * A stop, also by dropping the supervisor, sends the notification `shutdown` and waits up to 2 s. A process that still runs then is let
///   go: its connection is closed, and its status is [`Detached`](crate::ExitStatus::Detached). No signals are sent, and the process
///   outlives the supervisor. If the spec has a [stop policy](WorkerSpec::stop), that is followed, up to SIGKILL of the process.
/// * Descendants of the process are never signalled, and Ctrl-Z in this program does not stop it. Signals by the methods of [`Worker`]
///   reach the process alone; before Linux 6.5 they fail with `EPERM`.
///
/// [`SpecError::Conflict`](crate::SpecError::Conflict) refuses a spec without [`control`](WorkerSpec::control), and settings whose promise
/// cannot be kept: restarts, other pipes and file descriptors, messages on a standard stream, readiness by any of these, a watchdog, a
/// maximum runtime, limits.
///
/// The process must be in the same PID namespace, and of the same user or of [`peer_user`](WorkerSpec::peer_user). The program in the spec
/// is a name only; arguments, environment, working directory, standard streams, priorities and the process group are not used.
///
/// [`Display`](fmt::Display) is an assignment for a shell, with a secret: a program that knows it can be the worker.
/// [`Debug`](fmt::Debug) omits the secret. Dropping it changes nothing.
#[must_use = "the process needs its variable to connect"]
pub struct Attachment {
    worker: Worker,
    name: OsString,
    value: OsString,
}

impl_debug!(Attachment, |attachment| { worker: attachment.worker, variable: attachment.name });

impl Attachment {
    pub(crate) fn new(worker: Worker, spec: &WorkerSpec, address: &str) -> Self {
        let named = spec.plan.control_variable(address);
        let (name, value) = named.unwrap_or_else(|| (VARIABLE.into(), address.into()));
        Self { worker, name, value }
    }

    /// Returns the worker. Its calls wait until a process has connected.
    pub fn worker(&self) -> &Worker {
        &self.worker
    }

    /// Returns the worker.
    pub fn into_worker(self) -> Worker {
        self.worker
    }

    /// Returns the name and the value of the environment variable, for the settings of a debugger. The name is that of
    /// [`control`](WorkerSpec::control) with [`Pass::env`](crate::Pass::env), or else `PIPEWRIGHT_CONTROL`. The value holds for one
    /// connection.
    pub fn variable(&self) -> (&OsStr, &OsStr) {
        (&self.name, &self.value)
    }
}

impl fmt::Display for Attachment {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quoted = self.value.to_string_lossy().replace('\'', r"'\''");
        write!(formatter, "{}='{quoted}'", self.name.to_string_lossy())
    }
}
