//! The pipes, the terminal and the notification socket of a new process.

use crate::{
    launch::{
        context::OpenMode,
        descriptors::ParentFds,
        error::{SpawnError, SpawnStep},
        plan::MESSAGES,
        spawn::{PreparedFds, prepare},
        stdio::TerminalSize,
    },
    pipe::anonymous::ends::PipeReader,
    policy::watchdog::LivenessSource,
    supervisor::{
        spec::{MessageSource, WorkerSpec, readiness::Readiness},
        worker::{notify_socket::NotifySocket, sockets::Sockets},
    },
};
use std::ffi::OsString;

/// Creates the socket for `sd_notify(3)` if the spec uses it, and the environment variables that pass it to the worker.
pub(super) fn notify_socket(
    spec: &WorkerSpec,
    sockets: &Sockets,
) -> Result<(Option<NotifySocket>, Variables), SpawnError> {
    let period = spec
        .watchdog
        .filter(|watchdog| watchdog.liveness_source() == LivenessSource::Notify)
        .map(|watchdog| watchdog.period());
    if period.is_none() && !spec.ready.as_ref().is_some_and(Readiness::is_by_notice) {
        return Ok((None, Vec::new()));
    }
    let failed = |source| SpawnError::failed(spec.plan.program_name(), SpawnStep::Notify, source);
    let (socket, address) = sockets.notify(spec).map_err(failed)?;
    let mut variables = vec![("NOTIFY_SOCKET", address.into())];
    if let Some(period) = period {
        variables.push(("WATCHDOG_USEC", period.as_micros().to_string().into()));
    }
    Ok((Some(socket), variables))
}

/// Creates the pipes of a process on a spawner thread. Its terminal has the size that a handle has set for the worker.
pub(super) fn prepare_again(spec: &WorkerSpec, terminal_size: Option<TerminalSize>) -> Result<PreparedFds, SpawnError> {
    let prepared = prepare(&spec.plan, OpenMode::Nonblocking)?;
    let failed = |source| SpawnError::failed(spec.plan.program_name(), SpawnStep::Terminal, source);
    terminal_size.map_or(Ok(()), |size| prepared.resize_terminal(size)).map_err(failed)?;
    Ok(prepared)
}

pub(super) type Variables = Vec<(&'static str, OsString)>;

pub(super) type Pipe = Option<PipeReader>;

/// Takes the pipes that the event loop reads: messages, stdout, stderr.
pub(super) fn take_pipes(spec: &WorkerSpec, ends: &mut ParentFds) -> (Pipe, Pipe, Pipe) {
    let messages = if spec.messages == MessageSource::Pipe { ends.take_reader(MESSAGES) } else { None };
    if let (Some(messages), Some(capacity)) = (&messages, spec.pipe_capacity) {
        // Fails beyond the user's quota; as documented, the pipe then keeps its size.
        drop(messages.set_capacity(capacity));
    }
    (messages, ends.stdout.take(), ends.stderr.take())
}
