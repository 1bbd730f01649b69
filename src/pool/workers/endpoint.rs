//! How tasks reach a worker, and how its answers are recognized.

use crate::{
    ids::WorkerId,
    supervisor::{
        control::connection::next_call_id,
        events::event::EventKind,
        handles::worker::Worker,
        spec::{WorkerSpec, readiness::Readiness},
    },
    wire::jsonrpc::{
        completion::Completion,
        error::{Answer, CallError},
        protocol::{PROGRESS, Progress, TASK},
    },
};
use serde_json::value::RawValue;
use std::{fmt, sync::Arc};

/// The wire side of a pool. One for all its workers; implemented by a dialect.
///
/// A call has an id, unique for its worker. It ends once: by its completion, by a [`Report::Answer`] of an event, or by the exit of the
/// worker, whichever comes first.
pub(crate) trait Endpoint: Send + Sync + fmt::Debug {
    /// Adds to the spec what the workers need.
    fn prepare(&self, spec: WorkerSpec) -> WorkerSpec;

    /// The most calls that a worker can have at once, and what the limit is of.
    fn in_flight_max(&self) -> Option<(usize, &'static str)> {
        None
    }

    /// A worker was started, but is not ready: sends what it has to receive first.
    fn started(&self, _: &Worker) {}

    /// A worker is about to be stopped: sends what it has to receive before.
    fn ending(&self, _: &Worker) {}

    /// What the answer to a call means, where that is more than what its protocol says.
    fn interpret(&self, answer: Answer) -> Answer {
        answer
    }

    /// The id of a new call.
    fn next_id(&self) -> u64 {
        next_call_id()
    }

    /// Sends a task to a worker that is ready. Must not block. On an error nothing was sent.
    fn send(&self, worker: &Worker, call: (u64, &RawValue), completion: Completion) -> Result<(), CallError>;

    /// Asks a worker to cancel a call, over control if not said otherwise. The call ends like any other.
    fn cancel(&self, worker: &Worker, id: u64) {
        if let Ok(caller) = worker.caller() {
            caller.router.request_cancellation(id);
        }
    }

    /// What an event of a worker says about its calls.
    fn receive(&self, worker: WorkerId, event: &EventKind) -> Option<Report>;
}

/// What a worker reports about a call.
#[derive(Debug)]
pub(crate) enum Report {
    Answer(u64, Answer),
    Progress(u64, Box<RawValue>),
    /// Nothing to do.
    Nothing,
    /// The worker does not keep to its protocol, so none of its answers can be trusted. It is replaced.
    Invalid(Arc<str>),
}

/// Workers of this library: tasks are calls of the method `task` over control.
#[derive(Debug)]
pub(crate) struct ControlEndpoint;

impl Endpoint for ControlEndpoint {
    fn prepare(&self, spec: WorkerSpec) -> WorkerSpec {
        spec.control_if_none().ready_if_none(Readiness::control())
    }

    fn send(&self, worker: &Worker, (id, request): (u64, &RawValue), completion: Completion) -> Result<(), CallError> {
        worker.caller()?.send_call(id, (TASK, &[request]), completion)
    }

    fn receive(&self, _: WorkerId, event: &EventKind) -> Option<Report> {
        let EventKind::Notification(notification) = event else { return None };
        if notification.method() != PROGRESS {
            return None;
        }
        let Progress { token, value } = notification.params().ok()?;
        Some(Report::Progress(token, value))
    }
}
