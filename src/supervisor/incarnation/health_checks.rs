//! Readiness and liveness checks: passes observations to the policies and executes their outcomes.

use crate::{
    exit::ExitCause,
    policy::{
        lifecycle::{LifecycleInput, StopRequest},
        readiness::{ReadinessError, ReadinessInput, ReadinessOutcome, ReadinessSource, ReadinessTracker},
        watchdog::{LivenessSource, WatchdogAction, WatchdogTimer},
    },
    supervisor::{
        containment::cgroup_pool::WorkerCgroup,
        events::{
            event::{Event, EventKind},
            warning::Warning,
        },
        incarnation::{
            Incarnation,
            context::{Fact, IncarnationContext},
            control::EXIT_GRACE_TIME,
            health::{Handshake, HealthFailure},
            message_probe::MessageProbe,
            probe::ReadinessProbe,
        },
        reactor::timers::Timer,
        spec::readiness::Readiness,
        worker::notify_socket::NotifySocket,
    },
    sys::{
        identity, is_transient,
        proc::{list, stat},
        socket::Credentials,
    },
    wire::sd_notify::Notice,
};
use std::{
    io, mem,
    sync::Arc,
    time::{Duration, Instant},
};

/// The time after which a failed start of a probe thread is retried.
pub(crate) const PROBE_BACKOFF_TIME: Duration = Duration::from_millis(50);
/// The most datagrams that are received from one worker before other workers are served.
const DATAGRAMS_PER_EVENT: usize = 64;
/// The most reads from the readiness pipe of an exited worker; more than a pipe holds.
const FINAL_READS: usize = 1 << 10;

impl Incarnation {
    /// Starts to wait for readiness, or to watch the liveness of a worker that needs no readiness.
    pub(crate) fn start_health_checks(&mut self, cx: &mut IncarnationContext<'_>) {
        let Some(ready) = &self.spec.ready else { return self.start_watchdog(cx) };
        // Not from `self.started`: a slow exec must not use up the time to become ready.
        let tracker = ReadinessTracker::new(ready.source(), ready.timeout, cx.reactor.clock.now());
        if let Some(predicate) = ready.message_predicate() {
            self.health.message_probe = Some(MessageProbe::new(Arc::clone(predicate)));
        }
        if ready.is_by_call() {
            self.health.handshake = Some(Handshake::default());
        }
        self.health.readiness = Some(tracker);
        if let Some(Err(error)) = self.probe(cx) {
            self.warn_of_probe(error, cx);
        }
        self.handle_readiness(ReadinessInput::Observed(ReadinessSource::Started), cx);
        self.set_health_timer(cx);
    }

    /// Starts the thread of the probe, if there is one. A failed start is retried by timer, since nothing else makes the worker ready.
    pub(crate) fn probe(&mut self, cx: &mut IncarnationContext<'_>) -> Option<io::Result<()>> {
        self.health.readiness.as_ref()?;
        if self.health.handshake.is_some() {
            return self.continue_handshake(cx);
        }
        let (worker, incarnation) = (self.shared.id(), self.process.number());
        let commands = cx.commands.clone();
        let started = if let Some(message_probe) = &self.health.message_probe {
            message_probe.start(commands, worker, incarnation)
        } else {
            let probe = self.spec.ready.as_ref()?.probe()?.clone();
            let started = ReadinessProbe::start(probe, commands, worker, incarnation);
            started.map(|readiness_probe| self.health.readiness_probe = Some(readiness_probe))
        };
        if started.is_err() {
            cx.reactor.set_timer_after(PROBE_BACKOFF_TIME, Timer::Probe(self.key));
        }
        Some(started)
    }

    pub(crate) fn warn_of_probe(&mut self, error: io::Error, cx: &mut IncarnationContext<'_>) {
        cx.sink.send(self.event(EventKind::Warning(Box::new(Warning::ProbeThreadFailed { error }))));
    }

    fn start_watchdog(&mut self, cx: &mut IncarnationContext<'_>) {
        self.process.set_ready();
        self.shared.notify_waiters();
        self.health.watchdog = self.spec.watchdog.map(|watchdog| WatchdogTimer::new(watchdog, cx.reactor.clock.now()));
        let worker = self.shared.id();
        self.set_health_timer(cx);
        cx.facts.push_back(Fact::Ready(worker));
    }

    /// Passes an observation to the readiness policy.
    pub(crate) fn handle_readiness(&mut self, input: ReadinessInput, cx: &mut IncarnationContext<'_>) {
        if self.is_over() {
            return;
        }
        let Some(readiness) = &mut self.health.readiness else { return };
        let outcome = readiness.handle(input, cx.reactor.clock.now());
        self.conclude(outcome, cx);
    }

    fn conclude(&mut self, outcome: Option<ReadinessOutcome>, cx: &mut IncarnationContext<'_>) {
        let Some(outcome) = outcome else { return };
        let why = match outcome {
            ReadinessOutcome::Delayed { waited } => {
                return cx.sink.send(self.event(EventKind::ReadinessDelayed { waited }));
            }
            ReadinessOutcome::Ready { after } => {
                self.complete_handshake();
                self.end_readiness();
                cx.sink.send(self.event(EventKind::Ready { after }));
                return self.start_watchdog(cx);
            }
            ReadinessOutcome::Failed(why) => why,
        };
        let recent_output = self.end_readiness();
        let failure = match why {
            ReadinessError::Exited { .. } => None,
            ReadinessError::Fatal { .. } => Some(HealthFailure::Rejected),
            _ => Some(HealthFailure::Unhealthy),
        };
        let text = why.to_string().into();
        cx.sink.send(self.event(EventKind::NotReady { reason: why, recent_output }));
        if let Some(failure) = failure {
            self.health.not_ready = Some(text);
            self.stop_unhealthy(failure, ExitCause::Readiness, cx);
        }
    }

    /// Stops the worker without a request, unless it is already stopping.
    fn stop_unhealthy(&mut self, failure: HealthFailure, cause: ExitCause, cx: &mut IncarnationContext<'_>) {
        if self.lifecycle.is_running() {
            self.health.failure = Some(failure);
            // Whether or not the process has just exited.
            self.stop_cause = Some(cause);
            self.input(LifecycleInput::Stop(StopRequest::Advance), cx);
        }
    }

    /// Stops a worker that has reached its maximum runtime.
    pub(crate) fn runtime_exceeded(&mut self, cx: &mut IncarnationContext<'_>) {
        if self.lifecycle.is_running() {
            let after = cx.reactor.clock.now().saturating_duration_since(self.started);
            cx.sink.send(self.event(EventKind::RuntimeExceeded { after }));
            self.stop_unhealthy(HealthFailure::Unhealthy, ExitCause::TimeLimit, cx);
        }
    }

    /// Checks whether the output that was read makes the worker ready, or has reached the limit.
    pub(crate) fn check_output_readiness(&mut self, cx: &mut IncarnationContext<'_>) {
        if let Some(source) = self.health.found.take() {
            return self.handle_readiness(ReadinessInput::Observed(source), cx);
        }
        // A message that the probe still checks may make the worker ready.
        if self.health.is_exhausted() && !self.health.message_probe.as_ref().is_some_and(MessageProbe::is_busy) {
            self.handle_readiness(ReadinessInput::OutputLimit, cx);
        }
    }

    /// Handles the success of a readiness probe or of a message probe.
    pub(crate) fn probe_succeeded(&mut self, cx: &mut IncarnationContext<'_>) {
        if let Some(source) = self.spec.ready.as_ref().map(Readiness::source) {
            self.handle_readiness(ReadinessInput::Observed(source), cx);
        }
        self.complete_exit(cx);
    }

    /// Handles a batch of messages of which the message probe has accepted none.
    pub(crate) fn messages_rejected(&mut self, cx: &mut IncarnationContext<'_>) {
        let Some(message_probe) = &mut self.health.message_probe else { return };
        message_probe.batch_rejected();
        if !message_probe.is_busy() {
            self.check_output_readiness(cx);
            self.complete_exit(cx);
        }
    }

    /// Reads the readiness pipe once. False if there is no more to read.
    pub(crate) fn read_readiness(&mut self, cx: &mut IncarnationContext<'_>) -> bool {
        let Some(readiness_pipe) = &self.health.readiness_pipe else { return false };
        let mut buffer = [0; 256];
        let input = match readiness_pipe.read_once(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return true,
            Err(error) if is_transient(&error) => return false,
            Ok(bytes @ 1..) if !buffer.iter().take(bytes).any(|byte| *byte == b'\n') => return true,
            Ok(1..) => Some(ReadinessInput::Observed(ReadinessSource::NotifyFd)),
            Ok(_) | Err(_) => None,
        };
        drop(cx.reactor.poller.remove(readiness_pipe));
        self.health.readiness_pipe = None;
        match input {
            Some(input) => self.handle_readiness(input, cx),
            None => cx.reactor.set_timer_after(EXIT_GRACE_TIME, Timer::ReadinessPipeGrace(self.key)),
        }
        false
    }

    /// Handles the end of the readiness pipe that no exit has followed.
    pub(crate) fn readiness_pipe_closed(&mut self, cx: &mut IncarnationContext<'_>) {
        self.handle_readiness(ReadinessInput::PipeClosed, cx);
    }

    /// Reads the rest of the readiness pipe after the exit. The number of reads is limited, since descendants may continue to write.
    pub(crate) fn drain_readiness(&mut self, cx: &mut IncarnationContext<'_>) {
        for _ in 0..FINAL_READS {
            if !self.read_readiness(cx) {
                return;
            }
        }
    }

    /// Extends the time to become ready or to stop, at the request of the worker.
    pub(crate) fn extend(&mut self, time: Duration, cx: &mut IncarnationContext<'_>) {
        if let Some(readiness) = &mut self.health.readiness {
            readiness.extend(time, cx.reactor.clock.now());
            self.set_health_timer(cx);
        }
        self.input(LifecycleInput::Stop(StopRequest::Extend(time)), cx);
    }

    /// Receives notifications by `sd_notify(3)`.
    pub(crate) fn read_notifications(&mut self, cx: &mut IncarnationContext<'_>) {
        for _ in 0..DATAGRAMS_PER_EVENT {
            if self.health.notifications.socket.as_ref().is_some_and(NotifySocket::has_close_backlog) {
                return self.close_notify_socket(cx);
            }
            let Some(datagram) = self.health.notifications.socket.as_ref().and_then(NotifySocket::receive) else {
                return;
            };
            if self.may_notify(datagram.sender) {
                for notice in datagram.notices {
                    self.handle_notification(notice, cx);
                }
            } else if !mem::replace(&mut self.health.notifications.has_rejected, true) {
                let (worker, sender) = (self.shared.id(), datagram.sender);
                let (pid, uid) = sender.map_or((0, 0), |sender| (sender.pid.unsigned_abs(), sender.uid));
                cx.sink.send(Event::warning(Warning::NotificationRejected { worker, pid, uid }));
            }
        }
    }

    fn close_notify_socket(&mut self, cx: &mut IncarnationContext<'_>) {
        if let Some(socket) = self.health.notifications.socket.take() {
            drop(cx.reactor.poller.remove(&socket));
        }
    }

    fn handle_notification(&mut self, notice: Notice, cx: &mut IncarnationContext<'_>) {
        if self.is_over() {
            return;
        }
        match notice {
            Notice::Ready => self.handle_readiness(ReadinessInput::Observed(ReadinessSource::SdNotify), cx),
            Notice::Status(text) => {
                // A flood must not fill the channel: the last status is always in `Supervisor::status`.
                if cx.sink.received() >= self.health.notifications.last_status_event {
                    cx.sink.send(self.event(EventKind::StatusText(text.clone())));
                    self.health.notifications.last_status_event = cx.sink.sent();
                }
                self.health.notifications.status = Some(text);
            }
            Notice::Stopping => {
                if !mem::replace(&mut self.health.notifications.is_stopping, true) {
                    cx.sink.send(self.event(EventKind::SelfStopping));
                }
            }
            Notice::Alive => self.record_activity(LivenessSource::Notify, cx.reactor.clock.now()),
            Notice::Trigger if self.health.watchdog.is_some() && self.lifecycle.is_running() => {
                self.run_watchdog_action(WatchdogAction::Stop, cx);
            }
            Notice::Trigger => {}
            Notice::Extend(time) => self.extend(time, cx),
        }
    }

    /// Handles the deadline of the readiness or of the watchdog.
    pub(crate) fn check_health(&mut self, cx: &mut IncarnationContext<'_>) {
        if !self.lifecycle.is_running() {
            // The worker is stopping or has exited: the deadlines of its stop policy apply.
            return;
        }
        if let Some(readiness) = &mut self.health.readiness {
            let outcome = readiness.timeout(cx.reactor.clock.now());
            self.conclude(outcome, cx);
        }
        self.record_control_activity(cx.reactor.clock.now());
        let can_observe = self.can_observe_activity();
        if let Some(watchdog) = &mut self.health.watchdog {
            let usage = || stat::usage(self.process.child().pid());
            let is_excused =
                !can_observe || self.process.tree().is_frozen() || usage().is_some_and(|usage| usage.is_stopped);
            for action in watchdog.timeout(cx.reactor.clock.now(), Duration::ZERO, is_excused) {
                self.run_watchdog_action(action, cx);
            }
        }
        self.set_health_timer(cx);
    }

    fn run_watchdog_action(&mut self, action: WatchdogAction, cx: &mut IncarnationContext<'_>) {
        if self.is_over() {
            return;
        }
        match action {
            WatchdogAction::Ping => {
                if let Some(connection) = self.process.connection() {
                    connection.ping();
                }
            }
            WatchdogAction::Warn { since } => {
                let silent_for = cx.reactor.clock.now().saturating_duration_since(since);
                cx.sink.send(self.event(EventKind::WatchdogWarning { silent_for }));
            }
            // ESRCH: the process has exited, and its exit is handled next.
            WatchdogAction::SendAbortSignal(signal) => {
                self.health.abort_signal = Some(signal);
                drop(self.process.child().signal(signal));
            }
            WatchdogAction::Stop => {
                cx.sink.send(self.event(EventKind::WatchdogTimeout));
                self.stop_unhealthy(HealthFailure::Unhealthy, ExitCause::Watchdog, cx);
            }
        }
    }

    pub(crate) fn set_health_timer(&mut self, cx: &mut IncarnationContext<'_>) {
        let readiness = self.health.readiness.as_ref().and_then(ReadinessTracker::poll_timeout);
        let watchdog = self.health.watchdog.as_ref().and_then(WatchdogTimer::poll_timeout);
        match readiness.into_iter().chain(watchdog).min() {
            Some(due) => cx.reactor.set_timer(due, Timer::Health(self.key)),
            None => cx.reactor.timers.cancel(Timer::Health(self.key)),
        }
    }

    /// Whether the sender of a datagram may notify for this worker: the user of the host, root, and processes of the tree of any user.
    fn may_notify(&self, sender: Option<Credentials>) -> bool {
        let Some(Credentials { pid, uid, .. }) = sender else { return false };
        if uid == 0 || uid == identity::effective_uid() {
            return true;
        }
        let is_in_cgroup = |cgroup: &WorkerCgroup| cgroup.processes().contains(&pid);
        list::descends(pid, self.process.child().pid())
            || self.process.tree().with_cgroup(is_in_cgroup).unwrap_or(false)
    }

    /// Records input on the control connection since the last call as activity.
    pub(crate) fn record_control_activity(&mut self, now: Instant) {
        if self.health.watchdog.is_some()
            && self.process.connection().is_some_and(|connection| connection.take_activity())
        {
            self.record_activity(LivenessSource::Ping, now);
        }
    }

    /// Ends the wait for readiness. Returns the recent output.
    fn end_readiness(&mut self) -> Box<str> {
        self.health.readiness = None;
        self.health.readiness_probe = None;
        self.health.message_probe = None;
        self.health.handshake = None;
        self.take_recent_output()
    }

    /// Whether activity of the worker can be observed: a paused worker is not read, and pings need a connection, which has its own timeout.
    fn can_observe_activity(&self) -> bool {
        match self.spec.watchdog.map(|watchdog| watchdog.liveness_source()) {
            Some(LivenessSource::Ping) => {
                !self.awaits_control() && self.session.as_ref().is_none_or(|session| !session.is_paused())
            }
            Some(LivenessSource::Messages) => !self.output.paused,
            Some(LivenessSource::Notify) | None => true,
        }
    }

    /// Restarts the watchdog after a time in which the worker was not read.
    pub(crate) fn reset_watchdog(&mut self, source: LivenessSource, now: Instant) {
        if let (Some(timer), Some(watchdog)) = (&mut self.health.watchdog, &self.spec.watchdog)
            && watchdog.liveness_source() == source
        {
            timer.reset(now);
        }
    }

    /// Records activity, if the watchdog uses this source.
    pub(crate) fn record_activity(&mut self, source: LivenessSource, now: Instant) {
        if let (Some(timer), Some(watchdog)) = (&mut self.health.watchdog, &self.spec.watchdog)
            && watchdog.liveness_source() == source
        {
            timer.record_activity(now);
        }
    }
}
