//! Whether workers are ready, and whether they still live: what was seen of them goes in, what is to be done is done.

use crate::{
    policy::{
        lifecycle::{LifecycleInput, StopRequest},
        readiness::{ReadinessInput, ReadinessOutcome, ReadinessSource, ReadinessTracker},
        watchdog::{LivenessSource, WatchdogAction, WatchdogTimer},
    },
    supervisor::{
        containment::cgroup_pool::WorkerCgroup,
        events::{
            event::{Event, EventKind, ReadinessError},
            warning::Warning,
        },
        incarnation::{
            Incarnation,
            context::{Context, Fact},
            control::END_TIME,
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

/// How soon the thread that asks a worker is started again where that has failed.
const PROBE_PAUSE: Duration = Duration::from_millis(50);
/// How many datagrams of one worker are heard before the others have their turn.
const NOTICES: usize = 64;
/// The most that is read of an ended worker's readiness pipe, in reads: more than a pipe holds.
const LAST_RINGS: usize = 1 << 10;

impl Incarnation {
    /// A worker has been started: from now on its readiness is waited for, or its life is watched.
    pub(crate) fn start_health_checks(&mut self, cx: &mut Context<'_>) {
        let Some(ready) = &self.spec.ready else { return self.start_watchdog(cx) };
        // Counted from now and not from `self.started`: an exec that took long must not use up the time to become ready.
        let wait = ReadinessTracker::new(ready.source(), ready.timeout, cx.reactor.clock.now());
        if let Some(is_it) = ready.is_it() {
            self.health.message_probe = Some(MessageProbe::new(Arc::clone(is_it)));
        }
        self.health.readiness = Some(wait);
        if let Some(Err(error)) = self.probe(cx) {
            self.warn_of_probe(error, cx);
        }
        self.handle_readiness(ReadinessInput::Observed(ReadinessSource::Started), cx);
        self.set_health_timer(cx);
    }

    /// Has a thread ask whether it is ready. Where there is none to be had, that is tried again, since nothing else makes it ready.
    /// Nothing where there is nothing to ask.
    pub(crate) fn probe(&mut self, cx: &mut Context<'_>) -> Option<io::Result<()>> {
        self.health.readiness.as_ref()?;
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
            cx.reactor.set_timer_after(PROBE_PAUSE, Timer::Probe(self.key));
        }
        Some(started)
    }

    fn warn_of_probe(&mut self, error: io::Error, cx: &mut Context<'_>) {
        if !self.is_over() {
            cx.sink.send(self.event(EventKind::Warning(Box::new(Warning::ProbeThreadFailed { error }))));
        }
    }

    fn start_watchdog(&mut self, cx: &mut Context<'_>) {
        self.process.set_ready();
        self.shared.notify_waiters();
        self.health.watchdog = self.spec.watchdog.map(|watchdog| WatchdogTimer::new(watchdog, cx.reactor.clock.now()));
        let worker = self.shared.id();
        self.set_health_timer(cx);
        cx.facts.push_back(Fact::Ready(worker));
    }

    /// Something was observed that may make it ready, or keep it from ever being so.
    pub(crate) fn handle_readiness(&mut self, input: ReadinessInput, cx: &mut Context<'_>) {
        if self.is_over() {
            return;
        }
        let Some(readiness) = &mut self.health.readiness else { return };
        let outcome = readiness.handle(input, cx.reactor.clock.now());
        self.conclude(outcome, cx);
    }

    fn conclude(&mut self, outcome: Option<ReadinessOutcome>, cx: &mut Context<'_>) {
        let Some(outcome) = outcome.filter(|_| !self.is_over()) else { return };
        let why = match outcome {
            ReadinessOutcome::Delayed { waited } => {
                return cx.sink.send(self.event(EventKind::ReadinessDelayed { waited }));
            }
            ReadinessOutcome::Ready { after } => {
                self.end_wait();
                cx.sink.send(self.event(EventKind::Ready { after }));
                return self.start_watchdog(cx);
            }
            ReadinessOutcome::TimedOut { waited } => ReadinessError::TimedOut { waited },
            ReadinessOutcome::PipeClosed { after } => ReadinessError::PipeClosed { after },
            ReadinessOutcome::OutputLimit { after } => ReadinessError::OutputLimit { after },
            ReadinessOutcome::Exited { after } => ReadinessError::Exited { after },
        };
        let recent_output = self.end_wait();
        cx.sink.send(self.event(EventKind::NotReady { reason: why, recent_output }));
        if !matches!(why, ReadinessError::Exited { .. }) {
            self.stop_unhealthy(cx);
        }
    }

    /// We end it, though nobody has asked for that. One that is on its way down already has its own time.
    fn stop_unhealthy(&mut self, cx: &mut Context<'_>) {
        if !self.is_over() && self.lifecycle.is_running() {
            self.health.is_unhealthy = true;
            self.input(LifecycleInput::Stop(StopRequest::Advance), cx);
        }
    }

    /// It has run as long as it may.
    pub(crate) fn runtime_exceeded(&mut self, cx: &mut Context<'_>) {
        if self.lifecycle.is_running() {
            let after = cx.reactor.clock.now().saturating_duration_since(self.started);
            cx.sink.send(self.event(EventKind::RuntimeExceeded { after }));
            self.stop_unhealthy(cx);
        }
    }

    /// What was read of it has shown something.
    pub(crate) fn check_output_readiness(&mut self, cx: &mut Context<'_>) {
        if self.is_over() {
            return;
        }
        if let Some(mark) = self.health.shown.take() {
            return self.handle_readiness(ReadinessInput::Observed(mark), cx);
        }
        // What is still with the message probe may be what makes it ready.
        if self.health.is_exhausted() && !self.health.message_probe.as_ref().is_some_and(MessageProbe::is_busy) {
            self.handle_readiness(ReadinessInput::OutputLimit, cx);
        }
    }

    /// A readiness probe has come through, or a message probe has accepted a message.
    pub(crate) fn reached(&mut self, cx: &mut Context<'_>) {
        if let Some(mark) = self.spec.ready.as_ref().map(Readiness::source) {
            self.handle_readiness(ReadinessInput::Observed(mark), cx);
        }
        self.die(cx);
    }

    /// A message probe has accepted no message of a batch.
    pub(crate) fn passed(&mut self, cx: &mut Context<'_>) {
        let Some(message_probe) = &mut self.health.message_probe else { return };
        message_probe.pass();
        if !message_probe.is_busy() {
            self.check_output_readiness(cx);
            self.die(cx);
        }
    }

    /// The pipe for the newline has something, or has ended. False where there was nothing more to read.
    pub(crate) fn read_readiness(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(readiness_pipe) = &self.health.readiness_pipe else { return false };
        let mut part = [0; 256];
        let sign = match readiness_pipe.read_once(&mut part) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return true,
            Err(error) if is_transient(&error) => return false,
            Ok(bytes @ 1..) if !part.iter().take(bytes).any(|byte| *byte == b'\n') => return true,
            Ok(1..) => Some(ReadinessInput::Observed(ReadinessSource::NotifyFd)),
            Ok(_) | Err(_) => None,
        };
        drop(cx.reactor.poller.remove(readiness_pipe));
        self.health.readiness_pipe = None;
        match sign {
            Some(sign) => self.handle_readiness(sign, cx),
            None => cx.reactor.set_timer_after(END_TIME, Timer::ReadinessPipeGrace(self.key)),
        }
        false
    }

    /// The pipe for the newline has ended a while ago, and it lives.
    pub(crate) fn readiness_pipe_closed(&mut self, cx: &mut Context<'_>) {
        self.handle_readiness(ReadinessInput::PipeClosed, cx);
    }

    /// The worker has ended: what it has written there before is read. What others go on writing is not waited for.
    pub(crate) fn drain_readiness(&mut self, cx: &mut Context<'_>) {
        for _ in 0..LAST_RINGS {
            if !self.read_readiness(cx) {
                return;
            }
        }
    }

    /// It asks for more time, to become ready or to end.
    pub(crate) fn extend(&mut self, time: Duration, cx: &mut Context<'_>) {
        if let Some(readiness) = &mut self.health.readiness {
            readiness.extend(time, cx.reactor.clock.now());
            self.set_health_timer(cx);
        }
        self.input(LifecycleInput::Stop(StopRequest::Extend(time)), cx);
    }

    /// It has told how it is.
    pub(crate) fn read_notifications(&mut self, cx: &mut Context<'_>) {
        for _ in 0..NOTICES {
            if self.health.notifications.socket.as_ref().is_some_and(NotifySocket::is_clogged) {
                return self.forget_notices(cx);
            }
            let Some(datagram) = self.health.notifications.socket.as_ref().and_then(NotifySocket::receive) else {
                return;
            };
            if self.is_spoken_for_by(datagram.sender) {
                for notice in datagram.notices {
                    self.handle_notification(notice, cx);
                }
            } else if !mem::replace(&mut self.health.notifications.has_refused, true) {
                let (worker, sender) = (self.shared.id(), datagram.sender);
                let (pid, uid) = sender.map_or((0, 0), |sender| (sender.pid.unsigned_abs(), sender.uid));
                cx.sink.send(Event::warning(Warning::NotificationRejected { worker, pid, uid }));
            }
        }
    }

    fn forget_notices(&mut self, cx: &mut Context<'_>) {
        let Some(notices) = self.health.notifications.socket.take() else {
            return;
        };
        drop(cx.reactor.poller.remove(&notices));
    }

    fn handle_notification(&mut self, notice: Notice, cx: &mut Context<'_>) {
        if self.is_over() {
            return;
        }
        match notice {
            Notice::Ready => self.handle_readiness(ReadinessInput::Observed(ReadinessSource::SdNotify), cx),
            Notice::Status(text) => {
                // A flood of them must not fill the channel: the last one is always in `Supervisor::status`.
                if cx.sink.received() >= self.health.notifications.last_told {
                    cx.sink.send(self.event(EventKind::StatusText(text.clone())));
                    self.health.notifications.last_told = cx.sink.sent();
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

    /// Time for the wait, or for the watchdog.
    pub(crate) fn check_health(&mut self, cx: &mut Context<'_>) {
        if !self.lifecycle.is_running() {
            // It has ended, or is about to: from here on its stop ladder says how long anything may take.
            return;
        }
        if let Some(readiness) = &mut self.health.readiness {
            let outcome = readiness.timeout(cx.reactor.clock.now());
            self.conclude(outcome, cx);
        }
        self.notice_control(cx.reactor.clock.now());
        let hears = self.hears_of_life();
        if let Some(watchdog) = &mut self.health.watchdog {
            let usage = || stat::usage(self.process.child().pid());
            let is_excused = !hears || self.process.tree().is_frozen() || usage().is_some_and(|usage| usage.is_stopped);
            for action in watchdog.timeout(cx.reactor.clock.now(), Duration::ZERO, is_excused) {
                self.run_watchdog_action(action, cx);
            }
        }
        self.set_health_timer(cx);
    }

    fn run_watchdog_action(&mut self, action: WatchdogAction, cx: &mut Context<'_>) {
        if self.is_over() {
            return;
        }
        match action {
            WatchdogAction::Ping => {
                if let Some(link) = self.process.connection() {
                    link.ping();
                }
            }
            WatchdogAction::Warn { since } => {
                let silent_for = cx.reactor.clock.now().saturating_duration_since(since);
                cx.sink.send(self.event(EventKind::WatchdogWarning { silent_for }));
            }
            // ESRCH: it has ended, and its report is on the way.
            WatchdogAction::SendAbortSignal(signal) => drop(self.process.child().signal(signal)),
            WatchdogAction::Stop => {
                cx.sink.send(self.event(EventKind::WatchdogTimeout));
                self.stop_unhealthy(cx);
            }
        }
    }

    pub(crate) fn set_health_timer(&mut self, cx: &mut Context<'_>) {
        let readiness = self.health.readiness.as_ref().and_then(ReadinessTracker::poll_timeout);
        let watchdog = self.health.watchdog.as_ref().and_then(WatchdogTimer::poll_timeout);
        match readiness.into_iter().chain(watchdog).min() {
            Some(due) => cx.reactor.set_timer(due, Timer::Health(self.key)),
            None => cx.reactor.timers.cancel(Timer::Health(self.key)),
        }
    }
}

impl Incarnation {
    /// Whether the sender of a datagram may tell how it is: our own user and root, and processes of its tree, whoever they run as.
    fn is_spoken_for_by(&self, sender: Option<Credentials>) -> bool {
        let Some(Credentials { pid, uid, .. }) = sender else { return false };
        if uid == 0 || uid == identity::effective_uid() {
            return true;
        }
        let lives_there = |cgroup: &WorkerCgroup| cgroup.processes().contains(&pid);
        list::descends(pid, self.process.child().pid()) || self.process.tree().with_cgroup(lives_there).unwrap_or(false)
    }

    /// What was read of control since this was looked at last is a sign of life.
    pub(crate) fn notice_control(&mut self, now: Instant) {
        if self.health.watchdog.is_some()
            && self.process.connection().is_some_and(|connection| connection.take_activity())
        {
            self.record_activity(LivenessSource::Ping, now);
        }
    }

    /// It is ready, or will not be. Gives what it said last.
    fn end_wait(&mut self) -> Box<str> {
        self.health.readiness = None;
        self.health.readiness_probe = None;
        self.health.message_probe = None;
        self.take_last_words()
    }

    /// Whether a sign of life would be heard: nothing is read while the consumer has too much to receive already, and nobody can
    /// answer a ping before it has connected, for which it has a time of its own.
    fn hears_of_life(&self) -> bool {
        match self.spec.watchdog.map(|watchdog| watchdog.liveness_source()) {
            Some(LivenessSource::Ping) => {
                !self.awaits_control() && self.session.as_ref().is_none_or(|session| !session.is_paused())
            }
            Some(LivenessSource::Messages) => !self.output.paused,
            Some(LivenessSource::Notify) | None => true,
        }
    }

    /// Its silence up to now was not its own: nobody listened.
    pub(crate) fn reset_watchdog(&mut self, source: LivenessSource, now: Instant) {
        if let (Some(timer), Some(watchdog)) = (&mut self.health.watchdog, &self.spec.watchdog)
            && watchdog.liveness_source() == source
        {
            timer.reset(now);
        }
    }

    /// A sign of life, if it is the kind that is waited for.
    pub(crate) fn record_activity(&mut self, source: LivenessSource, now: Instant) {
        if let (Some(timer), Some(watchdog)) = (&mut self.health.watchdog, &self.spec.watchdog)
            && watchdog.liveness_source() == source
        {
            timer.record_activity(now);
        }
    }
}
