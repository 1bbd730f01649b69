//! Whether workers are ready, and whether they still live: what was seen of them goes in, what is to be done is done.

use crate::{
    ids::WorkerId,
    pipe::anonymous::ends::PipeReader,
    policy::{
        lifecycle::{LifecycleInput, StopRequest},
        readiness::{ReadinessInput, ReadinessOutcome, ReadinessSource, ReadinessTracker},
        watchdog::{LivenessSource, WatchdogAction, WatchdogTimer},
    },
    supervisor::{
        containment::cgroup_pool::WorkerCgroup,
        event_loop::Driver,
        events::{
            event::{Event, EventKind, ReadinessError},
            warning::Warning,
        },
        incarnation::{Live, control::END_TIME, message_probe::Judge, probe::Prober},
        reactor::{
            arena::{Place, live_at},
            timers::Timer,
        },
        spec::readiness::Readiness,
        supervision::worker::Kept,
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

impl Driver {
    /// A worker has been started: from now on its readiness is waited for, or its life is watched.
    pub(crate) fn attend(&mut self, place: Place) {
        let Some(live) = live_at(&mut self.incarnations.slots, place) else { return };
        let Some(ready) = &live.spec.ready else { return self.watch_life(place) };
        // Counted from now and not from `live.started`: an exec that took long must not use up the time to become ready.
        let wait = ReadinessTracker::new(ready.source(), ready.timeout, self.reactor.clock.now());
        if let Some(is_it) = ready.is_it() {
            live.health.judge = Some(Judge::new(Arc::clone(is_it)));
        }
        live.health.readiness = Some(wait);
        if let Some(Err(error)) = self.probe(place) {
            self.warn_of_probe(place, error);
        }
        self.handle_readiness(place, ReadinessInput::Observed(ReadinessSource::Started));
        self.set_health_timer(place);
    }

    /// Has a thread ask whether it is ready. Where there is none to be had, that is tried again, since nothing else makes it ready.
    /// Nothing where there is nothing to ask.
    pub(crate) fn probe(&mut self, place: Place) -> Option<io::Result<()>> {
        let live = live_at(&mut self.incarnations.slots, place)?;
        live.health.readiness.as_ref()?;
        let (worker, incarnation) = (live.shared.id(), live.present.number());
        let mailbox = self.mailbox.clone();
        let started = if let Some(judge) = &live.health.judge {
            judge.start(mailbox, worker, incarnation)
        } else {
            let probe = live.spec.ready.as_ref()?.probe()?.clone();
            let started = Prober::start(probe, mailbox, worker, incarnation);
            started.map(|prober| live.health.prober = Some(prober))
        };
        if started.is_err() {
            self.reactor.set_timer_after(PROBE_PAUSE, Timer::Probe(place));
        }
        Some(started)
    }

    fn warn_of_probe(&mut self, place: Place, error: io::Error) {
        if let Some(live) = live_at(&mut self.incarnations.slots, place) {
            self.outlet.send(live.event(EventKind::Warning(Box::new(Warning::ProbeThreadFailed { error }))));
        }
    }

    fn watch_life(&mut self, place: Place) {
        let Some(live) = live_at(&mut self.incarnations.slots, place) else { return };
        live.present.set_ready();
        live.shared.tell_change();
        live.health.watchdog =
            live.spec.watchdog.map(|watchdog| WatchdogTimer::new(watchdog, self.reactor.clock.now()));
        let worker = live.shared.id();
        self.set_health_timer(place);
        self.member_ready(worker);
    }

    /// Something was observed that may make it ready, or keep it from ever being so.
    pub(crate) fn handle_readiness(&mut self, place: Place, input: ReadinessInput) {
        let Some(live) = live_at(&mut self.incarnations.slots, place) else { return };
        let Some(readiness) = &mut live.health.readiness else { return };
        let outcome = readiness.handle(input, self.reactor.clock.now());
        self.conclude(place, outcome);
    }

    fn conclude(&mut self, place: Place, outcome: Option<ReadinessOutcome>) {
        let (Some(outcome), Some(live)) = (outcome, live_at(&mut self.incarnations.slots, place)) else { return };
        let why = match outcome {
            ReadinessOutcome::Delayed { waited } => {
                return self.outlet.send(live.event(EventKind::ReadinessDelayed { waited }));
            }
            ReadinessOutcome::Ready { after } => {
                live.end_wait();
                self.outlet.send(live.event(EventKind::Ready { after }));
                return self.watch_life(place);
            }
            ReadinessOutcome::TimedOut { waited } => ReadinessError::TimedOut { waited },
            ReadinessOutcome::PipeClosed { after } => ReadinessError::PipeClosed { after },
            ReadinessOutcome::OutputLimit { after } => ReadinessError::OutputLimit { after },
            ReadinessOutcome::Exited { after } => ReadinessError::Exited { after },
        };
        let recent_output = live.end_wait();
        self.outlet.send(live.event(EventKind::NotReady { reason: why, recent_output }));
        if !matches!(why, ReadinessError::Exited { .. }) {
            self.put_down(place);
        }
    }

    /// We end it, though nobody has asked for that. One that is on its way down already has its own time.
    fn put_down(&mut self, place: Place) {
        if let Some(live) = live_at(&mut self.incarnations.slots, place).filter(|live| live.lifecycle.is_running()) {
            live.health.is_unhealthy = true;
            self.input(place, LifecycleInput::Stop(StopRequest::Advance));
        }
    }

    /// It has run as long as it may.
    pub(crate) fn end_its_time(&mut self, place: Place) {
        let Some(live) = live_at(&mut self.incarnations.slots, place) else { return };
        if live.lifecycle.is_running() {
            let after = self.reactor.clock.now().saturating_duration_since(live.started);
            self.outlet.send(live.event(EventKind::RuntimeExceeded { after }));
            self.put_down(place);
        }
    }

    /// What was read of it has shown something.
    pub(crate) fn look_at_signs(&mut self, place: Place) {
        let Some(live) = live_at(&mut self.incarnations.slots, place) else { return };
        if let Some(source) = live.health.shown.take() {
            return self.handle_readiness(place, ReadinessInput::Observed(source));
        }
        // What is still with the judge may be what makes it ready.
        if live.health.is_exhausted() && !live.health.judge.as_ref().is_some_and(Judge::is_busy) {
            self.handle_readiness(place, ReadinessInput::OutputLimit);
        }
    }

    /// A prober has come through, or a judge has accepted a message.
    pub(crate) fn reached(&mut self, worker: WorkerId, incarnation: u32) {
        let Some(place) = self.place_of(worker, incarnation) else { return };
        let Some(live) = live_at(&mut self.incarnations.slots, place) else { return };
        if let Some(source) = live.spec.ready.as_ref().map(Readiness::source) {
            self.handle_readiness(place, ReadinessInput::Observed(source));
        }
        self.die(place);
    }

    /// A judge has accepted no message of a batch.
    pub(crate) fn passed(&mut self, worker: WorkerId, incarnation: u32) {
        let Some(place) = self.place_of(worker, incarnation) else { return };
        let Some(live) = live_at(&mut self.incarnations.slots, place) else { return };
        let Some(judge) = &mut live.health.judge else { return };
        judge.pass();
        if !judge.is_busy() {
            self.look_at_signs(place);
            self.die(place);
        }
    }

    /// Where this incarnation of a worker is, if it is still there.
    fn place_of(&mut self, worker: WorkerId, incarnation: u32) -> Option<Place> {
        let place = self.supervision.kept.get(&worker).and_then(Kept::place)?;
        live_at(&mut self.incarnations.slots, place).filter(|live| live.present.number() == incarnation).map(|_| place)
    }

    /// The pipe for the newline has something, or has ended. False where there was nothing more to read.
    pub(crate) fn ring(&mut self, place: Place) -> bool {
        let Some(live) = live_at(&mut self.incarnations.slots, place) else { return false };
        let Some(bell) = &live.health.bell else { return false };
        let mut part = [0; 256];
        let sign = match bell.read_once(&mut part) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return true,
            Err(error) if is_transient(&error) => return false,
            Ok(bytes @ 1..) if !part.iter().take(bytes).any(|byte| *byte == b'\n') => return true,
            Ok(1..) => Some(ReadinessInput::Observed(ReadinessSource::NotifyFd)),
            Ok(_) | Err(_) => None,
        };
        drop(self.reactor.poller.remove(bell));
        live.health.bell = None;
        match sign {
            Some(sign) => self.handle_readiness(place, sign),
            None => self.reactor.set_timer_after(END_TIME, Timer::Bell(place)),
        }
        false
    }

    /// The pipe for the newline has ended a while ago, and it lives.
    pub(crate) fn miss_bell(&mut self, place: Place) {
        self.handle_readiness(place, ReadinessInput::PipeClosed);
    }

    /// The worker has ended: what it has written there before is read. What others go on writing is not waited for.
    pub(crate) fn ring_out(&mut self, place: Place) {
        for _ in 0..LAST_RINGS {
            if !self.ring(place) {
                return;
            }
        }
    }

    /// It asks for more time, to become ready or to end.
    pub(crate) fn extend(&mut self, place: Place, time: Duration) {
        let Some(live) = live_at(&mut self.incarnations.slots, place) else { return };
        if let Some(readiness) = &mut live.health.readiness {
            readiness.extend(time, self.reactor.clock.now());
            self.set_health_timer(place);
        }
        self.input(place, LifecycleInput::Stop(StopRequest::Extend(time)));
    }

    /// It has told how it is.
    pub(crate) fn notice(&mut self, place: Place) {
        for _ in 0..NOTICES {
            let Some(live) = live_at(&mut self.incarnations.slots, place) else { return };
            if live.health.notices.as_ref().is_some_and(NotifySocket::is_clogged) {
                return self.forget_notices(place);
            }
            let Some(datagram) = live.health.notices.as_ref().and_then(NotifySocket::receive) else { return };
            if live.is_spoken_for_by(datagram.sender) {
                for notice in datagram.notices {
                    self.hear_notice(place, notice);
                }
            } else if !mem::replace(&mut live.health.has_refused, true) {
                let (worker, sender) = (live.shared.id(), datagram.sender);
                let (pid, uid) = sender.map_or((0, 0), |sender| (sender.pid.unsigned_abs(), sender.uid));
                self.outlet.send(Event::warning(Warning::NotificationRejected { worker, pid, uid }));
            }
        }
    }

    fn forget_notices(&mut self, place: Place) {
        let Some(notices) = live_at(&mut self.incarnations.slots, place).and_then(|live| live.health.notices.take())
        else {
            return;
        };
        drop(self.reactor.poller.remove(&notices));
    }

    fn hear_notice(&mut self, place: Place, notice: Notice) {
        let Some(live) = live_at(&mut self.incarnations.slots, place) else { return };
        match notice {
            Notice::Ready => self.handle_readiness(place, ReadinessInput::Observed(ReadinessSource::SdNotify)),
            Notice::Status(text) => {
                // A flood of them must not fill the channel: the last one is always in `Supervisor::status`.
                if self.outlet.received() >= live.health.last_told {
                    self.outlet.send(live.event(EventKind::StatusText(text.clone())));
                    live.health.last_told = self.outlet.sent();
                }
                live.health.status = Some(text);
            }
            Notice::Stopping => {
                if !mem::replace(&mut live.health.is_stopping, true) {
                    self.outlet.send(live.event(EventKind::SelfStopping));
                }
            }
            Notice::Alive => live.record_activity(LivenessSource::Notify, self.reactor.clock.now()),
            Notice::Trigger if live.health.watchdog.is_some() && live.lifecycle.is_running() => {
                self.run_watchdog_action(place, WatchdogAction::Stop);
            }
            Notice::Trigger => {}
            Notice::Extend(time) => self.extend(place, time),
        }
    }

    /// Time for the wait, or for the watchdog.
    pub(crate) fn check_health(&mut self, place: Place) {
        let Some(live) = live_at(&mut self.incarnations.slots, place) else { return };
        if !live.lifecycle.is_running() {
            // It has ended, or is about to: from here on its stop ladder says how long anything may take.
            return;
        }
        if let Some(readiness) = &mut live.health.readiness {
            let outcome = readiness.timeout(self.reactor.clock.now());
            self.conclude(place, outcome);
        }
        let Some(live) = live_at(&mut self.incarnations.slots, place) else { return };
        live.notice_control(self.reactor.clock.now());
        let hears = live.hears_of_life();
        if let Some(watchdog) = &mut live.health.watchdog {
            let usage = || stat::usage(live.present.child().pid());
            let is_excused = !hears || live.present.tree().is_frozen() || usage().is_some_and(|usage| usage.is_stopped);
            for action in watchdog.timeout(self.reactor.clock.now(), Duration::ZERO, is_excused) {
                self.run_watchdog_action(place, action);
            }
        }
        self.set_health_timer(place);
    }

    fn run_watchdog_action(&mut self, place: Place, action: WatchdogAction) {
        let Some(live) = live_at(&mut self.incarnations.slots, place) else { return };
        match action {
            WatchdogAction::Ping => {
                if let Some(link) = live.present.link() {
                    link.ping();
                }
            }
            WatchdogAction::Warn { since } => {
                let silent_for = self.reactor.clock.now().saturating_duration_since(since);
                self.outlet.send(live.event(EventKind::WatchdogWarning { silent_for }));
            }
            // ESRCH: it has ended, and its report is on the way.
            WatchdogAction::SendAbortSignal(signal) => drop(live.present.child().signal(signal)),
            WatchdogAction::Stop => {
                self.outlet.send(live.event(EventKind::WatchdogTimeout));
                self.put_down(place);
            }
        }
    }

    pub(crate) fn set_health_timer(&mut self, place: Place) {
        let Some(live) = live_at(&mut self.incarnations.slots, place) else { return };
        let readiness = live.health.readiness.as_ref().and_then(ReadinessTracker::poll_timeout);
        let watchdog = live.health.watchdog.as_ref().and_then(WatchdogTimer::poll_timeout);
        match readiness.into_iter().chain(watchdog).min() {
            Some(due) => self.reactor.set_timer(due, Timer::Health(place)),
            None => self.reactor.timers.cancel(Timer::Health(place)),
        }
    }
}

impl Live {
    /// Whether the sender of a datagram may tell how it is: our own user and root, and processes of its tree, whoever they run as.
    fn is_spoken_for_by(&self, sender: Option<Credentials>) -> bool {
        let Some(Credentials { pid, uid, .. }) = sender else { return false };
        if uid == 0 || uid == identity::effective_uid() {
            return true;
        }
        let lives_there = |cgroup: &WorkerCgroup| cgroup.processes().contains(&pid);
        list::descends(pid, self.present.child().pid()) || self.present.tree().with_cgroup(lives_there).unwrap_or(false)
    }

    /// What was read of control since this was looked at last is a sign of life.
    pub(crate) fn notice_control(&mut self, now: Instant) {
        if self.health.watchdog.is_some() && self.present.link().is_some_and(|link| link.was_heard()) {
            self.record_activity(LivenessSource::Ping, now);
        }
    }

    /// It is ready, or will not be. Gives what it said last.
    fn end_wait(&mut self) -> Box<str> {
        self.health.readiness = None;
        self.health.prober = None;
        self.health.judge = None;
        self.take_last_words()
    }

    /// Whether a sign of life would be heard: nothing is read while the consumer has too much to receive already, and nobody can
    /// answer a ping before it has connected, for which it has a time of its own.
    fn hears_of_life(&self) -> bool {
        match self.spec.watchdog.map(|watchdog| watchdog.liveness_source()) {
            Some(LivenessSource::Ping) => {
                !self.awaits_control() && self.session.as_ref().is_none_or(|session| !session.is_paused())
            }
            Some(LivenessSource::Messages) => !self.paused,
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

/// Whether it is ready, and whether it still lives.
#[derive(Debug, Default)]
pub(crate) struct Health {
    /// Until it is ready, or cannot be any more.
    pub(crate) readiness: Option<ReadinessTracker>,
    pub(crate) prober: Option<Prober>,
    /// Looks at its messages, where one of them makes it ready.
    pub(crate) judge: Option<Judge>,
    /// How much of its output was looked at; nothing where no more is.
    pub(crate) searched: Option<usize>,
    /// When the process has ended, while that waits for the verdict of the judge.
    pub(crate) ended: Option<Instant>,
    /// The pipe on which a newline is waited for.
    pub(crate) bell: Option<PipeReader>,
    /// Where it tells how it is, by `sd_notify`.
    pub(crate) notices: Option<NotifySocket>,
    /// A datagram of a process that may not speak for it was refused, and that was reported.
    pub(crate) has_refused: bool,
    /// What it has told last of what it is doing, and the number of the last event that told so.
    pub(crate) status: Option<Box<str>>,
    pub(crate) last_told: u64,
    /// It has told that it is about to end.
    pub(crate) is_stopping: bool,
    pub(crate) watchdog: Option<WatchdogTimer>,
    /// Something of what was read has made it ready.
    pub(crate) shown: Option<ReadinessSource>,
    /// We end it, since it did not become ready, gave no sign of life, or has had its time.
    pub(crate) is_unhealthy: bool,
}

impl Health {
    /// Whether so much of its output was looked at that no more is.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.searched.is_none()
    }
}
