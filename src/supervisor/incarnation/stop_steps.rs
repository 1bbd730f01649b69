//! The steps of a stop policy.

use crate::{
    policy::{
        lifecycle::{LifecycleInput, StopRequest},
        stop::StopStep,
    },
    supervisor::{
        control::{
            call_router::CallRouter,
            connection::{ConnectionEvent, RpcConnection},
            internal_call::InternalCall,
        },
        incarnation::{Incarnation, context::IncarnationContext},
        spec::control_source::ControlSource,
    },
    wire::jsonrpc::{
        completion::{Completion, ObserveCompletion},
        error::Answer,
    },
};
use std::sync::Arc;

/// Notifies the loop that a stop's call has ended.
#[derive(Debug)]
struct StopCallObserver(Arc<RpcConnection>);

impl ObserveCompletion for StopCallObserver {
    fn completed(&self, _: u64, _: Answer) {
        self.0.events.report(ConnectionEvent::StopCallEnded(self.0.worker));
    }
}

impl Incarnation {
    /// Executes the steps of a stage of the stop policy. False if none had an effect.
    pub(crate) fn run_stop_stage(&mut self, stage: usize) -> bool {
        self.process.tree().thaw_for_stop();
        self.stop_call = None;
        let spec = Arc::clone(&self.spec);
        let steps = spec.stop.stages().get(stage).map(|stage| stage.steps.as_slice()).unwrap_or_default();
        // `count` executes all steps, `any` would stop at the first with an effect.
        steps.iter().filter(|step| self.step(step)).count() > 0
    }

    fn step(&mut self, step: &StopStep) -> bool {
        let child = self.process.child();
        // ESRCH: the process has exited, and its exit is handled next. A stopped process handles signals only after SIGCONT.
        let has_ended = self.lifecycle.waits_for_group();
        match step {
            StopStep::Signal(_) | StopStep::Call(_) | StopStep::Notify(_) if has_ended => false,
            StopStep::Wait => true,
            StopStep::ClosePipes | StopStep::CloseStdin => {
                let is_channel =
                    matches!((step, &self.spec.control), (StopStep::ClosePipes, ControlSource::NodeChannel));
                if is_channel || matches!(self.spec.control, ControlSource::Stdio(_) | ControlSource::StdioMessages) {
                    // Later calls wait for the exit, and perhaps for the next incarnation.
                    self.shared.route_calls(CallRouter::stop_sending);
                }
                if let StopStep::ClosePipes = step { self.process.close_pipes() } else { self.process.close_stdin() }
            }
            StopStep::Call(method) => {
                self.stop_call = self.process.connection().and_then(|connection| stop_call(connection, method));
                self.stop_call.is_some()
            }
            StopStep::Notify(method) => {
                self.process.connection().is_some_and(|connection| connection.notify_without_params(method))
            }
            StopStep::Signal(signal) => child.signal(*signal).and_then(|()| child.signal(libc::SIGCONT)).is_ok(),
            StopStep::SignalGroup(signal) => {
                child.signal_group(*signal).and_then(|()| child.signal_group(libc::SIGCONT)).is_ok()
            }
        }
    }

    /// A call of a stop policy has ended. It may be that of an earlier stage.
    pub(crate) fn stop_call_ended(&mut self, cx: &mut IncarnationContext<'_>) {
        if self.stop_call.take_if(|call| call.completion().is_complete()).is_some() && !self.lifecycle.waits_for_group()
        {
            self.input(LifecycleInput::Stop(StopRequest::StageDone), cx);
        }
    }
}

/// Sends a call whose answer ends the stage. `None` if the worker is not connected or the call cannot be sent.
fn stop_call(connection: &Arc<RpcConnection>, method: &str) -> Option<InternalCall> {
    let observer = Arc::new(StopCallObserver(Arc::clone(connection)));
    InternalCall::start(connection, (method, &()), Completion::observed(observer, 0)).ok()
}
