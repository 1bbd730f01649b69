//! The lifecycle of an incarnation: from its registration to its last event.

use crate::{
    exit::{Exit, ExitCause, ExitStatus},
    launch::child::GroupCleanup,
    policy::{
        lifecycle::{LifecycleInput, LifecycleOutput, StopRequest, StreamId},
        readiness::ReadinessInput,
        survivors::SurvivorPolicy,
    },
    supervisor::{
        events::{event::Event, warning::Warning},
        incarnation::{
            Incarnation,
            context::{Fact, IncarnationContext},
            health::Handshake,
            message_probe::MessageProbe,
        },
        process_trees::UnkillableProcess,
        reactor::{timers::Timer, token::Token},
    },
    sys::is_shortage,
};
use std::{sync::Arc, time::Duration};

/// The interval at which a process that SIGKILL has not ended is killed again.
pub(crate) const UNKILLABLE_PERIOD: Duration = Duration::from_secs(1);

impl Incarnation {
    /// Registers all file descriptors of a new incarnation.
    pub(crate) fn watch(&mut self, cx: &mut IncarnationContext<'_>) {
        self.register(Token::Process(self.key), cx);
        self.register_streams(cx);
        self.register(Token::ReadinessPipe(self.key), cx);
        self.register(Token::NotifySocket(self.key), cx);
    }

    /// Handles the exit of the process. Its remaining output is read now, regardless of the window: it is no more than its pipes hold, and the
    /// exit must not wait for a slow consumer.
    pub(crate) fn exited(&mut self, cx: &mut IncarnationContext<'_>) {
        drop(self.process.child().with_pidfd(|pidfd| cx.reactor.poller.remove(pidfd)));
        self.drain_control(cx);
        for stream in StreamId::ALL {
            if self.is_over() {
                return;
            }
            if self.drain(stream, &mut cx.reading.scratch, cx.sink) {
                self.forget_stream(stream, cx);
                self.input(LifecycleInput::StreamEnded(stream), cx);
            }
        }
        self.read_notifications(cx);
        self.drain_readiness(cx);
        self.check_output_readiness(cx);
        if self.is_over() {
            return;
        }
        self.health.exited_at = Some(cx.reactor.clock.now());
        let is_probe_busy = self.health.message_probe.as_ref().is_some_and(MessageProbe::is_busy)
            || self.health.handshake.as_ref().is_some_and(Handshake::is_judging);
        if is_probe_busy && self.lifecycle.is_running() {
            let time = self.spec.drain_timeout;
            return cx.reactor.set_timer_after(time, Timer::MessageProbe(self.key));
        }
        self.complete_exit(cx);
    }

    /// Completes the handling of an exit, once it is known whether the process was ready before, or the time for that is over.
    pub(crate) fn complete_exit(&mut self, cx: &mut IncarnationContext<'_>) {
        if self.is_over() {
            return;
        }
        if self.health.exited_at.take().is_some() {
            cx.reactor.timers.cancel(Timer::MessageProbe(self.key));
            self.handle_readiness(ReadinessInput::ProcessExited, cx);
            self.input(LifecycleInput::ProcessExited, cx);
        }
    }

    /// Stops the process, or goes on with the stop.
    pub(crate) fn stop(&mut self, request: StopRequest, cause: ExitCause, cx: &mut IncarnationContext<'_>) {
        self.note_stop(cause);
        self.input(LifecycleInput::Stop(request), cx);
    }

    pub(crate) fn input(&mut self, input: LifecycleInput, cx: &mut IncarnationContext<'_>) {
        let now = cx.reactor.clock.now();
        if matches!(input, LifecycleInput::Stop(StopRequest::Advance | StopRequest::Within(_))) {
            // A stop does not wait for user code.
            self.complete_exit(cx);
        }
        if self.is_over() {
            return;
        }
        let before = self.lifecycle.poll_timeout();
        let outputs = self.lifecycle.handle(input, now);
        let after = self.lifecycle.poll_timeout();
        match after {
            _ if after == before => {}
            Some(due) => cx.reactor.set_timer(due, Timer::Lifecycle(self.key)),
            None => cx.reactor.timers.cancel(Timer::Lifecycle(self.key)),
        }
        for output in outputs {
            self.perform(output, cx);
        }
    }

    fn perform(&mut self, output: LifecycleOutput, cx: &mut IncarnationContext<'_>) {
        if self.is_over() {
            return;
        }
        match output {
            LifecycleOutput::RunStopStage(stage) => {
                self.is_being_stopped = true;
                cx.sink.trace.run_stop_stage(self.shared.id(), stage, &self.spec.stop);
                if !self.run_stop_stage(stage) {
                    self.input(LifecycleInput::Stop(StopRequest::StageDone), cx);
                }
            }
            LifecycleOutput::Kill if !self.spec.may_kill() => self.detach(cx),
            LifecycleOutput::Kill => {
                self.is_being_stopped = true;
                cx.sink.trace.kill(self.shared.id());
                self.kill_tree(cx);
            }
            LifecycleOutput::CloseLeaked(stream) => {
                // The end of a paused stream was not observed since the exit.
                if !self.drain(stream, &mut cx.reading.scratch, cx.sink) {
                    self.abandon(stream, cx.sink);
                }
                self.forget_stream(stream, cx);
            }
            LifecycleOutput::WaitForProcessGroup => self.wait_for_group(cx),
            LifecycleOutput::Reap => self.terminate_tree(cx),
            LifecycleOutput::ReportUnkillable => {
                drop(self.process.child().with_pidfd(|pidfd| cx.reactor.poller.remove(pidfd)));
                for stream in StreamId::ALL {
                    self.drain(stream, &mut cx.reading.scratch, cx.sink);
                    self.forget_stream(stream, cx);
                }
                // The process may have exited, if it could not be watched.
                let reaped = self.process.child().reap(self.group_cleanup()).ok().flatten();
                let mut exit = self.exit(reaped, cx.reactor.clock.now());
                if reaped.is_none() && self.process.child().is_running() {
                    exit.status =
                        if self.tree.scan.kill_refused { ExitStatus::KillRefused } else { ExitStatus::Unkillable };
                    self.watch_unkillable(cx);
                }
                self.finish(exit, cx);
            }
        }
    }

    /// Watches an unkillable process. Its worker is not restarted before it exits.
    fn watch_unkillable(&self, cx: &mut IncarnationContext<'_>) {
        let number = cx.trees.unkillable.keys().max().map_or(0, |last| last + 1);
        let token = Token::Unkillable(number);
        let added = self.process.with_process(|pidfd| cx.reactor.poller.add(&pidfd, token.as_u64()));
        if let Some(refusal) = cx.reactor.note_registration(token, added) {
            cx.sink.send(Event::warning(Warning::from(refusal)));
        }
        cx.trees
            .unkillable
            .insert(number, UnkillableProcess { worker: self.shared.id(), process: Arc::clone(&self.process) });
        cx.reactor.set_timer_after(UNKILLABLE_PERIOD, Timer::Unkillable(number));
    }

    /// Reaps the process, whose tree has ended.
    pub(crate) fn reap(&mut self, cx: &mut IncarnationContext<'_>) {
        // Before the kernel can reuse the pid.
        self.process.tree().release_guard_entry();
        match self.process.child().reap(self.group_cleanup()) {
            Ok(None) => self.input(LifecycleInput::StatusUnavailable, cx),
            // The status can still be read when the shortage is over.
            Err(error) if is_shortage(&error) => self.input(LifecycleInput::StatusUnavailable, cx),
            reaped => {
                let exit = self.exit(reaped.ok().flatten(), cx.reactor.clock.now());
                self.finish(exit, cx);
            }
        }
    }

    /// Lets a process go that was started elsewhere and is not killed. Its connection is closed with the incarnation.
    fn detach(&mut self, cx: &mut IncarnationContext<'_>) {
        drop(self.process.child().with_pidfd(|pidfd| cx.reactor.poller.remove(pidfd)));
        self.drain_control(cx);
        let mut exit = self.exit(None, cx.reactor.clock.now());
        if self.process.child().is_running() {
            exit.status = ExitStatus::Detached;
        }
        self.finish(exit, cx);
    }

    /// Ends this incarnation: supervision sends the last event, and the event loop removes the incarnation.
    fn finish(&mut self, exit: Exit, cx: &mut IncarnationContext<'_>) {
        self.is_over = true;
        for timer in Timer::of(self.key) {
            cx.reactor.timers.cancel(timer);
        }
        self.process.tree().release_guard_entry();
        self.process.tree().release_cgroup();
        self.process.tree().release_tokens();
        self.process.tree().release_thread();
        self.process.close_all();
        if !self.spec.is_attached() {
            cx.trees.worker_pids.remove(&self.process.child().pid().cast_signed());
        }
        let exit = Arc::new(exit);
        if let Some(readiness_pipe) = &self.health.readiness_pipe {
            drop(cx.reactor.poller.remove(readiness_pipe));
        }
        if let Some(notices) = self.health.notifications.socket.take() {
            drop(cx.reactor.poller.remove(&notices));
        }
        let (worker, failure) = (self.shared.id(), self.health.failure);
        cx.facts.push_back(Fact::Finished { worker, exit, failure });
    }

    /// Whether the process group is killed with the process: always if the supervisor stops it, otherwise according to the survivor policy.
    fn group_cleanup(&self) -> GroupCleanup {
        if self.is_being_stopped || self.spec.survivors == SurvivorPolicy::Kill {
            GroupCleanup::Kill
        } else {
            GroupCleanup::Leave
        }
    }
}
