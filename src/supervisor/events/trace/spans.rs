//! With the feature `tracing`: a span for each incarnation, and its events.
//!
//! Of a worker's output only lengths and the names of methods are recorded: the contents may hold secrets.

use crate::{
    exit::{Exit, ExitStatus},
    ids::WorkerId,
    policy::{
        restart::AfterExit,
        stop::{StopPolicy, StopStage},
    },
    supervisor::{
        control::call_span::TARGET,
        events::{
            event::{Event, EventKind},
            notification_failure::NotificationFailure,
            warning::Warning,
        },
        panics::catch,
        worker::{SharedWorker, process::WorkerProcess},
    },
};
use std::{collections::HashMap, error::Error, mem, sync::Arc, time::Duration};
use tracing::{Level, Span, enabled, error_span, event};

/// An event in a span.
macro_rules! note {
    ($level:ident, $span:expr, $($what:tt)+) => {
        event!(target: TARGET, parent: $span, Level::$level, $($what)+)
    };
}

/// The spans of the running incarnations.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    known: HashMap<WorkerId, TracedWorker>,
}

#[derive(Debug)]
struct TracedWorker {
    shared: Arc<SharedWorker>,
    process: Option<TracedProcess>,
}

/// One incarnation, from its start until the events of its end are recorded.
#[derive(Debug)]
struct TracedProcess {
    incarnation: u32,
    pid: u32,
    span: GuardedSpan,
    /// The supervisor is stopping it, so no exit is unexpected.
    is_ending: bool,
}

/// A span whose drop, which notifies the subscriber, does not panic: the subscriber may, also while its own panic unwinds.
#[derive(Debug)]
struct GuardedSpan(Span);

impl Drop for GuardedSpan {
    fn drop(&mut self) {
        let span = mem::replace(&mut self.0, Span::none());
        catch(|| drop(span));
    }
}

impl Trace {
    /// Adds a worker that may have events before it has started, as a member of a group.
    pub(crate) fn add_worker(&mut self, shared: &Arc<SharedWorker>) {
        self.known.insert(shared.id(), TracedWorker { shared: Arc::clone(shared), process: None });
    }

    pub(crate) fn begin_incarnation(&mut self, shared: &Arc<SharedWorker>, process: &WorkerProcess) {
        let (incarnation, pid) = (process.number(), process.child().pid());
        let process = Some(TracedProcess { incarnation, pid, span: GuardedSpan(Span::none()), is_ending: false });
        self.known.insert(shared.id(), TracedWorker { shared: Arc::clone(shared), process });
    }

    /// Ends the span of an incarnation. Later events have a span of their own, so that this one lasts as long as the process.
    pub(crate) fn end_incarnation(&mut self, worker: WorkerId) {
        if let Some(known) = self.known.get_mut(&worker) {
            known.process = None;
        }
    }

    pub(crate) fn remove_worker(&mut self, worker: WorkerId) {
        self.known.remove(&worker);
    }

    pub(crate) fn record_event(&mut self, event: &Event) {
        catch(|| self.record(event));
    }

    fn record(&mut self, event: &Event) {
        if is_talk(&event.kind) && !enabled!(target: TARGET, Level::TRACE) {
            return;
        }
        let GuardedSpan(span) = &self.span(event.worker, event.incarnation);
        match &event.kind {
            EventKind::Started { .. } => note!(INFO, span, "started"),
            EventKind::Message(message) => note!(TRACE, span, bytes = message.len(), "message"),
            EventKind::Line { stream, line } => note!(TRACE, span, ?stream, bytes = line.as_bytes().len(), "line"),
            EventKind::Output { stream, bytes } => note!(TRACE, span, ?stream, bytes = bytes.len(), "output"),
            EventKind::InvalidFrame(fault) => {
                note!(WARN, span, kind = ?fault.kind, bytes = fault.length, "invalid frame");
            }
            EventKind::ControlConnected => note!(DEBUG, span, "control connected"),
            EventKind::ControlDisconnected(reason) => note!(WARN, span, ?reason, "control disconnected"),
            EventKind::Request(request) => note!(TRACE, span, method = request.method(), "request"),
            EventKind::Notification(told) => note!(TRACE, span, method = told.method(), "notification"),
            EventKind::Ready { after } => note!(INFO, span, after_ms = ms(*after), "ready"),
            EventKind::ReadinessDelayed { waited } => note!(WARN, span, waited_ms = ms(*waited), "readiness delayed"),
            EventKind::NotReady { reason, recent_output } => {
                note!(WARN, span, ?reason, recent_output_bytes = recent_output.len(), "not ready");
            }
            EventKind::StatusText(text) => note!(TRACE, span, bytes = text.len(), "status text"),
            EventKind::SelfStopping => note!(DEBUG, span, "self-stopping"),
            EventKind::WatchdogWarning { silent_for } => {
                note!(WARN, span, silent_for_ms = ms(*silent_for), "watchdog warning");
            }
            EventKind::WatchdogTimeout => note!(WARN, span, "watchdog timeout"),
            EventKind::RuntimeExceeded { after } => note!(WARN, span, after_ms = ms(*after), "runtime exceeded"),
            EventKind::Exited { exit, next } => exited(span, exit, *next, self.is_ending(event.worker)),
            EventKind::DependencyFailed { on } => note!(WARN, span, on = on.0, "dependency failed"),
            EventKind::GroupGaveUp(group) => note!(ERROR, span, group = group.0, "group gave up"),
            EventKind::GroupRestarting(group) => note!(INFO, span, group = group.0, "group restarting"),
            EventKind::GroupEnded(group) => note!(INFO, span, group = group.0, "group ended"),
            EventKind::SpawnFailed { error, next } => {
                let error: &(dyn Error + 'static) = &**error;
                note!(WARN, span, error, "spawn failed");
                follow_up(span, *next);
            }
            EventKind::NotStarted { next } => {
                note!(INFO, span, "not started");
                follow_up(span, *next);
            }
            EventKind::Warning(warning) => match &**warning {
                // The text of the error may contain parameters.
                Warning::NotificationFailed(NotificationFailure { worker, method, error, .. }) => {
                    note!(WARN, span, worker = worker.0, method = &**method, code = error.code, "notification failed");
                }
                warning => note!(WARN, span, %warning, "warning"),
            },
        }
    }

    /// Records a stage of the stop policy.
    pub(crate) fn run_stop_stage(&mut self, worker: WorkerId, stage: usize, stop: &StopPolicy) {
        catch(|| {
            let GuardedSpan(span) = &self.ending(worker);
            let Some(StopStage { steps, grace_period }) = stop.stages().get(stage) else { return };
            note!(DEBUG, span, stage, ?steps, grace_period_ms = ms(*grace_period), "stop stage");
        });
    }

    /// Records SIGKILL to the tree.
    pub(crate) fn kill(&mut self, worker: WorkerId) {
        catch(|| {
            let GuardedSpan(span) = &self.ending(worker);
            note!(DEBUG, span, "kill");
        });
    }

    /// Records that the supervisor ends the incarnation, and returns its span.
    fn ending(&mut self, worker: WorkerId) -> GuardedSpan {
        let Some(process) = self.process(worker) else { return GuardedSpan(Span::none()) };
        process.is_ending = true;
        let incarnation = process.incarnation;
        self.span(worker, incarnation)
    }

    fn is_ending(&mut self, worker: WorkerId) -> bool {
        self.process(worker).is_some_and(|process| process.is_ending)
    }

    fn process(&mut self, worker: WorkerId) -> Option<&mut TracedProcess> {
        self.known.get_mut(&worker)?.process.as_mut()
    }

    fn span(&mut self, worker: WorkerId, incarnation: u32) -> GuardedSpan {
        let Some(TracedWorker { shared, process }) = self.known.get_mut(&worker) else {
            return worker_span(worker, None, incarnation, None);
        };
        let name = Some(shared.name());
        match process {
            Some(process) if process.incarnation == incarnation => {
                // A subscriber may have been set since the start.
                if process.span.0.is_disabled() {
                    process.span = worker_span(worker, name, incarnation, Some(process.pid));
                }
                GuardedSpan(process.span.0.clone())
            }
            Some(_) | None => worker_span(worker, name, incarnation, None),
        }
    }
}

/// At the highest level, so that a filter for failures shows the worker.
fn worker_span(worker: WorkerId, name: Option<&str>, incarnation: u32, pid: Option<u32>) -> GuardedSpan {
    GuardedSpan(error_span!(target: TARGET, parent: None, "worker", id = worker.0, name, incarnation, pid))
}

/// Events that may be frequent.
fn is_talk(kind: &EventKind) -> bool {
    matches!(
        kind,
        EventKind::Message(_)
            | EventKind::Line { .. }
            | EventKind::Output { .. }
            | EventKind::Request(_)
            | EventKind::Notification(_)
            | EventKind::StatusText(_)
    )
}

fn exited(span: &Span, exit: &Exit, next: AfterExit, is_expected: bool) {
    if !exit.leaked_streams.is_empty() || !exit.survivors.is_empty() {
        note!(WARN, span, leaks = exit.leaked_streams.len(), survivors = exit.survivors.len(), "left something behind");
    }
    if let Some(count @ 1..) = exit.uninspected {
        note!(WARN, span, uninspected = count, "processes could not be inspected");
    }
    macro_rules! exited {
        ($level:ident) => {
            note!(
                $level,
                span,
                status = %exit.status,
                code = exit.code(),
                signal = exit.signal(),
                duration_ms = ms(exit.duration),
                cause = ?exit.cause,
                oom_killed = exit.oom_killed,
                "exited"
            )
        };
    }
    if matches!(exit.status, ExitStatus::Unkillable | ExitStatus::KillRefused) {
        exited!(ERROR);
    } else if exit.success() || is_expected {
        exited!(INFO);
    } else {
        exited!(WARN);
    }
    follow_up(span, next);
}

fn follow_up(span: &Span, next: AfterExit) {
    match next {
        AfterExit::Restart { after } => note!(INFO, span, after_ms = ms(after), "restarting"),
        AfterExit::GaveUp(reason) => note!(ERROR, span, ?reason, "gave up"),
        AfterExit::Finished => {}
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
