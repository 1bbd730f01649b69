//! One incarnation in the loop, from its start to its exit.

use crate::{
    exit::{Exit, ExitStatus},
    ids::WorkerId,
    launch::child::GroupCleanup,
    policy::{
        lifecycle::{LifecycleInput, LifecycleOutput, StopRequest, StreamId},
        readiness::ReadinessInput,
        stop::StopStep,
        survivors::SurvivorPolicy,
    },
    supervisor::{
        commands::{Action, Arrival},
        event_loop::{Driver, LastCall},
        events::event::EventKind,
        incarnation::{Live, message_probe::Judge},
        reactor::{
            arena::{Place, Slot, live_at},
            timers::Timer,
            token::Target,
        },
        supervision::{restart::Left, worker::Standing},
        worker::process::Present,
    },
    sys::is_shortage,
};
use std::{sync::Arc, time::Duration};

/// How often it is tried again to kill a process that SIGKILL has not ended.
const STUCK_PERIOD: Duration = Duration::from_secs(1);

/// A process that was reported as not ended by SIGKILL.
#[derive(Debug)]
pub(crate) struct Stuck {
    pub(crate) worker: WorkerId,
    pub(crate) present: Arc<Present>,
}

impl Driver {
    pub(crate) fn arrive(&mut self, mut arrival: Arrival) {
        // By the loop's clock, which may be behind.
        arrival.started = arrival.started.min(self.reactor.clock.now());
        let (key, control_connect_timeout) = (arrival.key.take(), arrival.spec.time_to_connect());
        let (shared, spec) = (Arc::clone(&arrival.shared), Arc::clone(&arrival.spec));
        let live = Box::new(Live::new(arrival));
        // Before the event: whoever hears of the start finds this incarnation behind the worker's handle.
        shared.begin(&live.present);
        self.outlet.trace.begin(&shared, &live.present);
        self.outlet.send(live.event(EventKind::Started { pid: live.present.child().pid() }));
        let index = self.incarnations.free.pop().unwrap_or_else(|| {
            self.incarnations.slots.push(Slot::default());
            self.incarnations.slots.len() - 1
        });
        let Some(slot) = self.incarnations.slots.get_mut(index) else { return };
        slot.occupants = slot.occupants.wrapping_add(1);
        let place = Place { slot: index, occupant: slot.occupants };
        self.trees.own.insert(live.present.child().pid().cast_signed(), live.present.tree().started_tick());
        slot.live = Some(live);
        let is_wanted = self.keep(&shared, &spec, place);
        self.watch(place);
        if let Some(limit) = spec.runtime_max {
            self.reactor.set_timer_after(limit, Timer::TimeLimit(place));
        }
        self.member_started(shared.id());
        // Before it is expected: it may have connected already, and that may be what makes it ready.
        self.attend(place);
        if let Some(key) = key {
            self.expect(place, key, control_connect_timeout);
        }
        if let Some(LastCall { until }) = self.shutdown.last_call {
            let left = until.map(|until| until.saturating_duration_since(self.reactor.clock.now()));
            self.act(shared.id(), left.map_or(Action::Stop, Action::StopWithin));
        } else if !is_wanted {
            let is_overdue = self.supervision.kept.get(&shared.id()).is_some_and(|kept| kept.is_overdue);
            self.input(
                place,
                LifecycleInput::Stop(if is_overdue {
                    StopRequest::Within(Duration::ZERO)
                } else {
                    StopRequest::Advance
                }),
            );
        }
    }

    fn watch(&mut self, place: Place) {
        self.register(Target::Process(place));
        self.listen_to(place);
        self.register(Target::Bell(place));
        self.register(Target::Notices(place));
    }

    /// The process has ended. What it had written is read now, whatever its window says: it is no more than its pipes hold,
    /// and its exit must not wait for a slow consumer.
    pub(crate) fn died(&mut self, place: Place) {
        let Some(live) = live_at(&mut self.incarnations.slots, place) else { return };
        drop(live.present.child().with_pidfd(|pidfd| self.reactor.poller.remove(pidfd)));
        if live.awaits_control() {
            self.hear_the_door();
        }
        self.last_talk(place);
        for stream in StreamId::ALL {
            let Some(live) = live_at(&mut self.incarnations.slots, place) else { return };
            if live.drain(stream, &mut self.incarnations.scratch, &mut self.outlet) {
                self.forget_stream(place, stream);
                self.input(place, LifecycleInput::StreamEnded(stream));
            }
        }
        self.notice(place);
        self.ring_out(place);
        self.look_at_signs(place);
        let Some(live) = live_at(&mut self.incarnations.slots, place) else { return };
        live.health.ended = Some(self.reactor.clock.now());
        let is_judged = live.health.judge.as_ref().is_some_and(Judge::is_busy);
        if is_judged && live.lifecycle.is_running() {
            let time = live.spec.drain_timeout;
            return self.reactor.set_timer_after(time, Timer::Verdict(place));
        }
        self.die(place);
    }

    /// The process has ended, and whether it was ready before that is known, or is not waited for any longer.
    pub(crate) fn die(&mut self, place: Place) {
        let Some(live) = live_at(&mut self.incarnations.slots, place) else { return };
        if live.health.ended.take().is_some() {
            self.reactor.timers.cancel(Timer::Verdict(place));
            self.handle_readiness(place, ReadinessInput::ProcessExited);
            self.input(place, LifecycleInput::ProcessExited);
        }
    }

    pub(crate) fn input(&mut self, place: Place, input: LifecycleInput) {
        let now = self.reactor.clock.now();
        if matches!(input, LifecycleInput::Stop(StopRequest::Advance | StopRequest::Within(_))) {
            // A stop does not wait for the host's code.
            self.die(place);
        }
        let Some(live) = live_at(&mut self.incarnations.slots, place) else { return };
        let before = live.lifecycle.poll_timeout();
        let outputs = live.lifecycle.handle(input, now);
        let after = live.lifecycle.poll_timeout();
        match after {
            _ if after == before => {}
            Some(due) => self.reactor.set_timer(due, Timer::Incarnation(place)),
            None => self.reactor.timers.cancel(Timer::Incarnation(place)),
        }
        for output in outputs {
            self.perform(place, output);
        }
    }

    fn perform(&mut self, place: Place, output: LifecycleOutput) {
        let Some(live) = live_at(&mut self.incarnations.slots, place) else { return };
        match output {
            LifecycleOutput::RunStopStage(rung) => {
                live.is_being_ended = true;
                self.outlet.trace.climb(live.shared.id(), rung, &live.spec.stop);
                if !live.climb(rung) {
                    self.input(place, LifecycleInput::Stop(StopRequest::StageEmpty));
                }
            }
            LifecycleOutput::Kill => {
                live.is_being_ended = true;
                self.outlet.trace.kill(live.shared.id());
                self.kill_tree(place);
            }
            LifecycleOutput::CloseLeaked(stream) => {
                // A paused stream was not listened to since the worker's death, so its end may have come unseen.
                if !live.drain(stream, &mut self.incarnations.scratch, &mut self.outlet) {
                    live.abandon(stream, &mut self.outlet);
                }
                self.forget_stream(place, stream);
            }
            LifecycleOutput::WaitForProcessGroup => self.wait_for_group(place),
            LifecycleOutput::Reap => self.bury(place),
            LifecycleOutput::ReportUnkillable => {
                drop(live.present.child().with_pidfd(|pidfd| self.reactor.poller.remove(pidfd)));
                for stream in StreamId::ALL {
                    let Some(live) = live_at(&mut self.incarnations.slots, place) else { return };
                    live.drain(stream, &mut self.incarnations.scratch, &mut self.outlet);
                    self.forget_stream(place, stream);
                }
                let Some(live) = live_at(&mut self.incarnations.slots, place) else { return };
                // It may have ended after all, if it is one whose end could not be heard.
                let reaped = live.present.child().reap(live.rest()).ok().flatten();
                let mut exit = live.exit(reaped, self.reactor.clock.now());
                if reaped.is_none() && live.present.child().is_running() {
                    exit.status =
                        if live.inspection.kill_refused { ExitStatus::KillRefused } else { ExitStatus::Unkillable };
                    let present = Arc::clone(&live.present);
                    let worker = live.shared.id();
                    self.wait_for_stuck(worker, present);
                }
                self.leave(place, exit);
            }
        }
    }

    /// It may end one day. Until then its worker is not started again.
    fn wait_for_stuck(&mut self, worker: WorkerId, present: Arc<Present>) {
        let number = self.trees.stuck.keys().max().map_or(0, |last| last + 1);
        self.trees.stuck.insert(number, Stuck { worker, present });
        self.register(Target::Stuck(number));
        self.reactor.set_timer_after(STUCK_PERIOD, Timer::Stuck(number));
    }

    /// Tries again to kill it: a process that ran as another user may have given that up.
    pub(crate) fn check_stuck(&mut self, number: u64) {
        let Some(Stuck { present, .. }) = self.trees.stuck.get(&number) else { return };
        if present.child().is_running() {
            drop(present.child().signal_group(libc::SIGKILL));
            self.reactor.set_timer_after(STUCK_PERIOD, Timer::Stuck(number));
        } else {
            self.reap_late(number);
        }
    }

    /// One that was told as stuck has ended.
    pub(crate) fn reap_late(&mut self, number: u64) {
        let Some(Stuck { worker, present }) = self.trees.stuck.remove(&number) else { return };
        drop(present.child().with_pidfd(|pidfd| self.reactor.poller.remove(pidfd)));
        // Its end was told long ago.
        drop(present.child().reap(GroupCleanup::Kill));
        if self.supervision.kept.get(&worker).is_some_and(|kept| kept.standing == Standing::Held) {
            self.start_again(worker);
        }
    }

    /// Takes the status of one whose tree has ended.
    pub(crate) fn reap(&mut self, place: Place) {
        let Some(live) = live_at(&mut self.incarnations.slots, place) else { return };
        // Before the kernel gives its number to somebody else.
        live.present.tree().release_guard_entry();
        match live.present.child().reap(live.rest()) {
            Ok(None) => self.input(place, LifecycleInput::StatusUnavailable),
            // Its status is still there to be taken once the kernel has memory again.
            Err(error) if is_shortage(&error) => self.input(place, LifecycleInput::StatusUnavailable),
            reaped => {
                let exit = live.exit(reaped.ok().flatten(), self.reactor.clock.now());
                self.leave(place, exit);
            }
        }
    }

    /// The last event of an incarnation; then its place is free.
    fn leave(&mut self, place: Place, exit: Exit) {
        let Some(mut live) = self.incarnations.slots.get_mut(place.slot).and_then(|slot| slot.live.take()) else {
            return;
        };
        self.incarnations.free.push(place.slot);
        for timer in Timer::of(place) {
            self.reactor.timers.cancel(timer);
        }
        live.present.tree().release_guard_entry();
        live.present.tree().release_cgroup();
        live.present.tree().release_thread();
        // Whoever holds the handle of an ended worker holds no more of it than what it has said.
        live.present.close_pipes();
        self.trees.own.remove(&live.present.child().pid().cast_signed());
        let exit = Arc::new(exit);
        // Before the event: whoever hears of the exit finds that no call waits any more.
        live.present.close_link(Some(&exit));
        self.outlet.send(live.event(EventKind::Exited(Arc::clone(&exit))));
        if let Some(bell) = &live.health.bell {
            drop(self.reactor.poller.remove(bell));
        }
        if let Some(notices) = live.health.notices.take() {
            drop(self.reactor.poller.remove(&notices));
        }
        self.left(live.shared.id(), Left::Ended { exit, unhealthy: live.health.is_unhealthy });
        self.outlet.trace.leave(live.shared.id());
    }
}

impl Live {
    /// What becomes of its group. One that leaves its survivors alive when it ends by itself takes its group along when it is ended.
    fn rest(&self) -> GroupCleanup {
        if self.is_being_ended || self.spec.survivors == SurvivorPolicy::Kill {
            GroupCleanup::Kill
        } else {
            GroupCleanup::Leave
        }
    }

    /// Takes the steps of a rung of the stop ladder. False if there was nothing to do.
    fn climb(&self, rung: usize) -> bool {
        self.present.tree().thaw_for_stop();
        let steps = self.spec.stop.stages().get(rung).map(|rung| rung.steps.as_slice()).unwrap_or_default();
        // Every one of them, also after the first that had something to do.
        steps.iter().filter(|step| self.step(step)).count() > 0
    }

    fn step(&self, step: &StopStep) -> bool {
        let child = self.present.child();
        // ESRCH: it has ended, and its report is on the way. A stopped one gets its signal only when it goes on.
        let has_ended = self.lifecycle.waits_for_group();
        match step {
            StopStep::Signal(_) | StopStep::Notify(_) if has_ended => false,
            StopStep::ClosePipes => self.present.close_pipes(),
            StopStep::Notify(method) => self.present.link().is_some_and(|link| link.tell(method)),
            StopStep::Signal(signal) => child.signal(*signal).and_then(|()| child.signal(libc::SIGCONT)).is_ok(),
            StopStep::SignalGroup(signal) => {
                child.signal_group(*signal).and_then(|()| child.signal_group(libc::SIGCONT)).is_ok()
            }
        }
    }
}
