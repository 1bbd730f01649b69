//! The call that makes a worker ready: sends it, passes its result to the closure of `Readiness::call`, and then lets other calls through.

use crate::{
    policy::readiness_call::{ReadinessAnswer, ReadinessCallInput, ReadinessCallOutput},
    supervisor::{
        commands::Command,
        control::internal_call::InternalCall,
        incarnation::{
            Incarnation, context::IncarnationContext, health_checks::PROBE_BACKOFF_TIME, probe::start_thread,
        },
        panics::catch,
        reactor::timers::Timer,
        spec::{readiness::Readiness, readiness_call::CallSpec},
    },
    wire::jsonrpc::{completion::Completion, encode, error::CallError, request::RpcSender},
};
use std::{io, sync::Arc};

impl Incarnation {
    /// The worker can be called. Other calls wait if a handshake comes first.
    pub(crate) fn control_opened(&mut self, cx: &mut IncarnationContext<'_>) {
        if self.health.handshake.is_some() {
            return self.handle_handshake(ReadinessCallInput::Connected, cx);
        }
        if !self.spec.ready.as_ref().is_some_and(Readiness::is_by_call) {
            self.open_route();
        }
    }

    /// Lets calls through, unless the connection has ended.
    fn open_route(&self) {
        if let (Some(connection), Some(_)) = (self.process.connection(), &self.session) {
            self.shared.route_calls(|calls| calls.open(connection));
        }
    }

    /// Handles the answer to the readiness call, if it has arrived.
    pub(crate) fn check_handshake(&mut self, cx: &mut IncarnationContext<'_>) {
        let Some(handshake) = &mut self.health.handshake else { return };
        let Some(answer) = handshake.call.as_ref().and_then(|call| call.completion().take()) else { return };
        handshake.call = None;
        let input = match answer {
            Ok(result) => {
                handshake.result = Some(result);
                ReadinessCallInput::Answered
            }
            Err(error) => failure(&error),
        };
        self.handle_handshake(input, cx);
    }

    /// The connection has ended, and the worker runs on.
    pub(crate) fn handshake_disconnected(&mut self, reason: &str, cx: &mut IncarnationContext<'_>) {
        self.handle_handshake(ReadinessCallInput::Failed { error: reason.into(), is_permanent: false }, cx);
    }

    /// Handles what the closure says about the last result.
    pub(crate) fn readiness_judged(&mut self, answer: ReadinessAnswer, cx: &mut IncarnationContext<'_>) {
        self.handle_handshake(ReadinessCallInput::Judged(answer), cx);
        self.complete_exit(cx);
    }

    /// The pause after a `NotYet` is over, or the thread of the closure is started again. `None` without a handshake.
    pub(crate) fn continue_handshake(&mut self, cx: &mut IncarnationContext<'_>) -> Option<io::Result<()>> {
        if self.health.handshake.as_ref()?.is_judging() {
            return Some(self.judge(cx));
        }
        self.handle_handshake(ReadinessCallInput::Timeout, cx);
        Some(Ok(()))
    }

    fn handle_handshake(&mut self, input: ReadinessCallInput, cx: &mut IncarnationContext<'_>) {
        let Some(handshake) = &mut self.health.handshake else { return };
        let output = handshake.policy.handle(input, cx.reactor.clock.now());
        match handshake.policy.poll_timeout() {
            Some(due) => cx.reactor.set_timer(due, Timer::Probe(self.key)),
            None => cx.reactor.timers.cancel(Timer::Probe(self.key)),
        }
        match output {
            Some(ReadinessCallOutput::Call) => self.send_readiness_call(cx),
            Some(ReadinessCallOutput::Judge) => {
                if let Err(error) = self.judge(cx) {
                    self.warn_of_probe(error, cx);
                }
            }
            Some(ReadinessCallOutput::End(input)) => self.handle_readiness(input, cx),
            None => {}
        }
    }

    fn send_readiness_call(&mut self, cx: &mut IncarnationContext<'_>) {
        let Some(connection) = self.process.connection() else { return };
        let Some(request) = self.spec.ready.as_ref().and_then(Readiness::readiness_call).map(CallSpec::request) else {
            return;
        };
        let Ok(params) = request.params() else { return };
        let started = InternalCall::start(connection, (&request.method, params), Completion::default());
        match (started, &mut self.health.handshake) {
            (Ok(call), Some(handshake)) => handshake.call = Some(call),
            (Ok(_), None) => {}
            (Err(error), _) => self.handle_handshake(failure(&error), cx),
        }
    }

    /// Starts a thread on which the closure checks the result. A failed start is retried by timer.
    fn judge(&mut self, cx: &mut IncarnationContext<'_>) -> io::Result<()> {
        let call = self.spec.ready.as_ref().and_then(Readiness::readiness_call);
        let result = self.health.handshake.as_ref().and_then(|handshake| handshake.result.clone());
        let (Some(call), Some(result)) = (call, result) else { return Ok(()) };
        let judge = Arc::clone(call.judge());
        let (worker, number, commands) = (self.shared.id(), self.process.number(), cx.commands.clone());
        let started = start_thread("pipewright-probe", move || {
            let answer = catch(|| judge(&result)).unwrap_or(ReadinessAnswer::NotYet);
            // Before the answer: the closure may hold what its last owner drops.
            drop(judge);
            commands.send(Command::ReadinessJudged(worker, number, answer));
        });
        if started.is_err() {
            cx.reactor.set_timer_after(PROBE_BACKOFF_TIME, Timer::Probe(self.key));
        }
        started
    }

    /// The worker has become ready: keeps the result of the handshake, and lets the calls through that wait.
    pub(crate) fn complete_handshake(&mut self) {
        let Some(handshake) = self.health.handshake.take() else { return };
        if let Some(result) = handshake.result {
            self.process.set_handshake(result);
        }
        let then = self.spec.ready.as_ref().and_then(Readiness::readiness_call).and_then(CallSpec::then);
        if let (Some(then), Some(connection)) = (then, self.process.connection())
            && let Ok(params) = then.params()
            && let Ok(line) = encode::notification(&then.method, params)
        {
            // If it cannot be sent, the connection ends.
            drop(connection.send_reply(line));
        }
        self.open_route();
    }
}

fn failure(error: &CallError) -> ReadinessCallInput {
    let is_permanent = matches!(error, CallError::Rpc(error) if error.is_permanent());
    ReadinessCallInput::Failed { error: error.to_string().into(), is_permanent }
}
