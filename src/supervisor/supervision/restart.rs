//! Workers across their incarnations in the loop: what becomes of one that has ended, and what its user wants of it.

use crate::{
    exit::Exit,
    ids::WorkerId,
    launch::error::SpawnError,
    policy::{
        lifecycle::StopRequest,
        restart_history::{RestartDecision, RunEnd},
    },
    supervisor::{
        clock::now,
        commands::Action,
        events::{
            event::{Event, EventKind},
            warning::Warning,
        },
        reactor::{arena::Key, timers::Timer},
        spec::SharedSpec,
        supervision::{
            Context, Supervision,
            shutdown::Shutdown,
            worker::{DesiredState, WorkerPhase, WorkerRecord},
        },
        worker::SharedWorker,
    },
};
use std::{collections::hash_map::Entry, mem, sync::Arc, time::Duration};

/// The longest that a restart is put off: thirty years.
const LONGEST_PAUSE: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// Why a worker has no incarnation just now.
pub(crate) enum IncarnationEnd {
    Exited {
        exit: Arc<Exit>,
        /// We have ended it ourselves, and nobody had asked for that.
        unhealthy: bool,
    },
    SpawnFailed(SpawnError),
}

impl Supervision {
    /// An incarnation has begun. False if nobody wants it any more.
    pub(crate) fn keep(&mut self, shared: &Arc<SharedWorker>, spec: &SharedSpec, place: Key) -> bool {
        match self.workers.entry(shared.id()) {
            Entry::Vacant(vacant) => {
                let seed = next_seed(&mut self.seed, shared.id());
                vacant.insert(WorkerRecord::new(shared, spec, WorkerPhase::Running(place), seed));
                true
            }
            Entry::Occupied(mut occupied) => {
                let record = occupied.get_mut();
                record.phase = WorkerPhase::Running(place);
                // A start that has failed is none.
                record.restarts.count += u32::from(shared.incarnation() > 1);
                record.answer_first_start();
                record.desired == DesiredState::Run
            }
        }
    }

    pub(crate) fn act(&mut self, worker: WorkerId, action: Action, cx: &mut Context<'_>) {
        // One that has ended for good has ended.
        let Some(record) = self.workers.get_mut(&worker) else { return };
        if record.is_member {
            return self.act_member(worker, action, cx);
        }
        match action {
            Action::Restart if record.desired == DesiredState::Stop => return,
            Action::Restart => record.desired = DesiredState::Restart,
            Action::Stop | Action::StopWithin(_) => record.desired = DesiredState::Stop,
        }
        match (record.phase, action) {
            (WorkerPhase::Running(place), Action::StopWithin(time)) => {
                cx.stops.push_back((place, StopRequest::Within(time)));
            }
            (WorkerPhase::Running(place), Action::Stop | Action::Restart) => {
                cx.stops.push_back((place, StopRequest::Advance));
            }
            (WorkerPhase::Backoff(_), Action::Restart) => {
                record.desired = DesiredState::Run;
                self.start_again(worker, cx);
            }
            (WorkerPhase::Backoff(_) | WorkerPhase::Blocked, Action::Stop | Action::StopWithin(_)) => {
                self.end(worker, cx);
            }
            // It is the new beginning that is wanted.
            (WorkerPhase::Spawning | WorkerPhase::Blocked, Action::Restart) => record.desired = DesiredState::Run,
            (WorkerPhase::Spawning, Action::Stop | Action::StopWithin(_)) => {
                if cx.spawner.starts().cancel(worker) {
                    self.end(worker, cx);
                } else {
                    // It ends when it arrives.
                    cx.reactor
                        .set_timer_after(crate::supervisor::spawner::queue::HANG_TIME, Timer::SpawnTimeout(worker));
                }
            }
            (WorkerPhase::Stopped, Action::Restart | Action::Stop | Action::StopWithin(_)) => {}
        }
    }

    /// A worker that was stopped while it was started should have arrived by now.
    pub(crate) fn spawn_timed_out(&mut self, worker: WorkerId, cx: &mut Context<'_>) {
        let Some(record) = self.workers.get(&worker) else { return };
        if record.phase != WorkerPhase::Spawning || record.desired != DesiredState::Stop {
            return;
        }
        if record.is_member { self.stop_member(worker, cx) } else { self.act(worker, Action::Stop, cx) }
    }

    /// The supervisor goes: everybody ends, and nobody comes back.
    pub(crate) fn stop_all_workers(&mut self, cx: &mut Context<'_>) {
        let everybody: Vec<WorkerId> = self.workers.keys().copied().collect();
        for worker in everybody {
            // Groups have nothing to say any more.
            let rests = self.workers.get_mut(&worker).is_some_and(|record| {
                record.is_member = false;
                record.phase == WorkerPhase::Stopped
            });
            if rests {
                self.end(worker, cx);
            }
            self.act(worker, Action::StopWithin(cx.shutdown.grace_period), cx);
        }
    }

    /// An incarnation has ended, or could not begin: what now?
    pub(crate) fn on_incarnation_end(&mut self, worker: WorkerId, left: IncarnationEnd, cx: &mut Context<'_>) {
        let Some(record) = self.workers.get_mut(&worker) else { return };
        let cause = match left {
            IncarnationEnd::Exited { exit, unhealthy } => {
                let (status, ran) = (exit.status, exit.duration);
                let cause = if unhealthy { RunEnd::Unhealthy { ran } } else { RunEnd::Exited { status, ran } };
                record.last = Some((exit, now()));
                cause
            }
            IncarnationEnd::SpawnFailed(error) => {
                let Some(error) = self.refuse_member(worker, error, cx) else { return };
                let Some(record) = self.workers.get(&worker) else { return };
                let cause = if error.is_permanent() {
                    RunEnd::Unstartable
                } else if error.is_shortage() {
                    RunEnd::HostShortage
                } else {
                    RunEnd::StartFailed
                };
                let number = record.shared.incarnation();
                let kind = EventKind::SpawnFailed(Arc::new(error));
                cx.sink.send(Event::of(&record.shared, number + 1, kind));
                cause
            }
        };
        let Some(record) = self.workers.get_mut(&worker) else { return };
        if record.is_member {
            return self.on_member_end(worker, cause, cx);
        }
        let verdict = if cx.shutdown.is_terminating() {
            RestartDecision::Finish
        } else {
            record.decide(cause, cx.reactor.clock.now())
        };
        match verdict {
            RestartDecision::Finish => self.end(worker, cx),
            RestartDecision::GiveUp(why) => {
                self.report(worker, EventKind::GaveUp(why), cx);
                self.end(worker, cx);
            }
            RestartDecision::Restart { after } | RestartDecision::Postpone { after } => {
                self.report(worker, EventKind::Restarting { after }, cx);
                // A pause beyond the clock is for ever: until somebody calls `restart`, or `stop`.
                self.wait_for_restart(worker, after, cx);
            }
        }
    }

    pub(crate) fn wait_for_restart(&mut self, worker: WorkerId, after: Duration, cx: &mut Context<'_>) {
        let Some(record) = self.workers.get_mut(&worker) else { return };
        // Beyond the clock is beyond the life of any process.
        let Some(due) = cx.reactor.clock.now().checked_add(after.min(LONGEST_PAUSE)) else { return };
        record.phase = WorkerPhase::Backoff(due);
        cx.reactor.set_timer(due, Timer::Restart(worker));
    }

    /// The time for a restart has come, unless something has come between.
    /// True if the restart waits for room in the worker's window.
    pub(crate) fn restart(&mut self, worker: WorkerId, cx: &mut Context<'_>) -> bool {
        let is_due =
            |record: &WorkerRecord| matches!(record.phase, WorkerPhase::Backoff(due) if due <= cx.reactor.clock.now());
        if !self.workers.get(&worker).is_some_and(is_due) {
            return false;
        }
        let is_held_back = self.is_held_back(worker, cx);
        if is_held_back {
            self.delayed_restarts.push(worker);
        } else {
            self.start_again(worker, cx);
        }
        is_held_back
    }

    /// Each incarnation has some events: a worker that ends at once, and comes back at once, would fill the channel of a consumer that does not
    /// receive.
    fn is_held_back(&self, worker: WorkerId, cx: &Context<'_>) -> bool {
        self.workers.get(&worker).is_some_and(|record| cx.sink.levels_of(&record.shared).must_pause())
    }

    /// Goes on with restarts for which there is room again.
    pub(crate) fn restart_again(&mut self, cx: &mut Context<'_>) {
        for worker in mem::take(&mut self.delayed_restarts) {
            let Some(record) = self.workers.get(&worker) else { continue };
            // First ask to be woken, then look, as for streams.
            record.shared.window.flow.wait_for_room();
            let levels = cx.sink.levels_of(&record.shared);
            match record.phase {
                WorkerPhase::Backoff(due) if due <= cx.reactor.clock.now() => {
                    if levels.may_resume() {
                        self.start_again(worker, cx);
                    } else {
                        self.delayed_restarts.push(worker);
                    }
                }
                // Stopped or started meanwhile, or it waits for a later time, which has a timer.
                WorkerPhase::Backoff(_)
                | WorkerPhase::Running(_)
                | WorkerPhase::Blocked
                | WorkerPhase::Spawning
                | WorkerPhase::Stopped => {}
            }
        }
    }

    pub(crate) fn start_again(&mut self, worker: WorkerId, cx: &mut Context<'_>) {
        let Some(record) = self.workers.get_mut(&worker) else { return };
        if let Some(old) = cx.trees.unkillable.values().find(|unkillable| unkillable.worker == worker) {
            record.phase = WorkerPhase::Blocked;
            let pid = old.process.child().pid();
            return self.report(worker, EventKind::Warning(Box::new(Warning::RestartBlocked { pid })), cx);
        }
        record.phase = WorkerPhase::Spawning;
        let (shared, spec) = (Arc::clone(&record.shared), Arc::clone(&record.spec));
        cx.spawner.start_again(shared, spec);
        cx.reactor.set_timer_after(crate::supervisor::spawner::queue::PATIENCE, Timer::SpawnQueue);
    }

    /// It will not come back.
    pub(crate) fn end(&mut self, worker: WorkerId, cx: &mut Context<'_>) {
        let Some(record) = self.workers.remove(&worker) else { return };
        cx.reactor.timers.cancel(Timer::Restart(worker));
        cx.sink.trace.forget(worker);
        // After its last event: whoever has waited for the exit finds it in the channel.
        record.shared.set_ended(record.last_exit());
    }

    /// Nobody lives and nobody will.
    pub(crate) fn is_over(&self, shutdown: &Shutdown) -> bool {
        shutdown.is_closed && self.workers.values().all(|record| record.is_stopped)
    }
}

/// Workers of one supervisor must not draw the same pauses.
pub(crate) fn next_seed(seed: &mut u64, worker: WorkerId) -> u64 {
    *seed = seed.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(worker.0);
    *seed
}
