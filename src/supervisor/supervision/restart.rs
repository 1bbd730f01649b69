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
        spawner::Spawner,
        spec::SharedSpec,
        supervision::{
            Context, Supervision,
            shutdown::Shutdown,
            worker::{Kept, Standing, Wish},
        },
        worker::SharedWorker,
    },
};
use std::{collections::hash_map::Entry, mem, sync::Arc, time::Duration};

/// The longest that a restart is put off: thirty years.
const LONGEST_PAUSE: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// Why a worker has no incarnation just now.
pub(crate) enum Left {
    Ended {
        exit: Arc<Exit>,
        /// We have ended it ourselves, and nobody had asked for that.
        unhealthy: bool,
    },
    NotStarted(SpawnError),
}

impl Supervision {
    /// An incarnation has begun. False if nobody wants it any more.
    pub(crate) fn keep(&mut self, shared: &Arc<SharedWorker>, spec: &SharedSpec, place: Key) -> bool {
        match self.kept.entry(shared.id()) {
            Entry::Vacant(vacant) => {
                let seed = next_seed(&mut self.seed, shared.id());
                vacant.insert(Kept::new(shared, spec, Standing::Lives(place), seed));
                true
            }
            Entry::Occupied(mut occupied) => {
                let kept = occupied.get_mut();
                kept.standing = Standing::Lives(place);
                // A start that has failed is none.
                kept.restarts.count += u32::from(shared.incarnation() > 1);
                kept.answer_first_start();
                kept.wish == Wish::Policy
            }
        }
    }

    pub(crate) fn act(&mut self, worker: WorkerId, action: Action, cx: &mut Context<'_>) {
        // One that has ended for good has ended.
        let Some(kept) = self.kept.get_mut(&worker) else { return };
        if kept.is_member {
            return self.act_member(worker, action, cx);
        }
        match action {
            Action::Restart if kept.wish == Wish::End => return,
            Action::Restart => kept.wish = Wish::Again,
            Action::Stop | Action::StopWithin(_) => kept.wish = Wish::End,
        }
        match (kept.standing, action) {
            (Standing::Lives(place), Action::StopWithin(time)) => {
                cx.stops.push_back((place, StopRequest::Within(time)));
            }
            (Standing::Lives(place), Action::Stop | Action::Restart) => {
                cx.stops.push_back((place, StopRequest::Advance))
            }
            (Standing::Waits(_), Action::Restart) => {
                kept.wish = Wish::Policy;
                self.start_again(worker, cx);
            }
            (Standing::Waits(_) | Standing::Held, Action::Stop | Action::StopWithin(_)) => self.end(worker, cx),
            // It is the new beginning that is wanted.
            (Standing::SpawnQueue | Standing::Held, Action::Restart) => kept.wish = Wish::Policy,
            (Standing::SpawnQueue, Action::Stop | Action::StopWithin(_)) => {
                if cx.spawner.starts().cancel(worker) {
                    self.end(worker, cx);
                } else {
                    // It ends when it arrives.
                    cx.reactor.set_timer_after(crate::supervisor::spawner::queue::HANG_TIME, Timer::Arrival(worker));
                }
            }
            (Standing::Rests, Action::Restart | Action::Stop | Action::StopWithin(_)) => {}
        }
    }

    /// A worker that was stopped while it was started should have arrived by now.
    pub(crate) fn miss_arrival(&mut self, worker: WorkerId, cx: &mut Context<'_>) {
        let Some(kept) = self.kept.get(&worker) else { return };
        if kept.standing != Standing::SpawnQueue || kept.wish != Wish::End {
            return;
        }
        if kept.is_member { self.stop_member(worker, cx) } else { self.act(worker, Action::Stop, cx) }
    }

    /// The supervisor goes: everybody ends, and nobody comes back.
    pub(crate) fn end_everybody(&mut self, cx: &mut Context<'_>) {
        let everybody: Vec<WorkerId> = self.kept.keys().copied().collect();
        for worker in everybody {
            // Groups have nothing to say any more.
            let rests = self.kept.get_mut(&worker).is_some_and(|kept| {
                kept.is_member = false;
                kept.standing == Standing::Rests
            });
            if rests {
                self.end(worker, cx);
            }
            self.act(worker, Action::StopWithin(cx.shutdown.grace_period), cx);
        }
    }

    /// An incarnation has ended, or could not begin: what now?
    pub(crate) fn left(&mut self, worker: WorkerId, left: Left, cx: &mut Context<'_>) {
        let Some(kept) = self.kept.get_mut(&worker) else { return };
        let cause = match left {
            Left::Ended { exit, unhealthy } => {
                let (status, ran) = (exit.status, exit.duration);
                let cause = if unhealthy { RunEnd::Unhealthy { ran } } else { RunEnd::Exited { status, ran } };
                kept.last = Some((exit, now()));
                cause
            }
            Left::NotStarted(error) => {
                let Some(error) = self.refuse_member(worker, error, cx) else { return };
                let Some(kept) = self.kept.get(&worker) else { return };
                let cause = if error.is_permanent() {
                    RunEnd::Unstartable
                } else if error.is_shortage() {
                    RunEnd::HostShortage
                } else {
                    RunEnd::StartFailed
                };
                let number = kept.shared.incarnation();
                let kind = EventKind::SpawnFailed(Arc::new(error));
                cx.sink.send(Event::of(&kept.shared, number + 1, kind));
                cause
            }
        };
        let Some(kept) = self.kept.get_mut(&worker) else { return };
        if kept.is_member {
            return self.left_member(worker, cause, cx);
        }
        let verdict = if cx.shutdown.is_terminating() {
            RestartDecision::Finish
        } else {
            kept.decide(cause, cx.reactor.clock.now())
        };
        match verdict {
            RestartDecision::Finish => self.end(worker, cx),
            RestartDecision::GiveUp(why) => {
                self.tell(worker, EventKind::GaveUp(why), cx);
                self.end(worker, cx);
            }
            RestartDecision::Restart { after } | RestartDecision::Postpone { after } => {
                self.tell(worker, EventKind::Restarting { after }, cx);
                // A pause beyond the clock is for ever: until somebody calls `restart`, or `stop`.
                self.wait_for_restart(worker, after, cx);
            }
        }
    }

    pub(crate) fn wait_for_restart(&mut self, worker: WorkerId, after: Duration, cx: &mut Context<'_>) {
        let Some(kept) = self.kept.get_mut(&worker) else { return };
        // Beyond the clock is beyond the life of any process.
        let Some(due) = cx.reactor.clock.now().checked_add(after.min(LONGEST_PAUSE)) else { return };
        kept.standing = Standing::Waits(due);
        cx.reactor.set_timer(due, Timer::Restart(worker));
    }

    /// The time for a restart has come, unless something has come between.
    /// True if the restart waits for room in the worker's window.
    pub(crate) fn restart(&mut self, worker: WorkerId, cx: &mut Context<'_>) -> bool {
        let is_due = |kept: &Kept| matches!(kept.standing, Standing::Waits(due) if due <= cx.reactor.clock.now());
        if !self.kept.get(&worker).is_some_and(is_due) {
            return false;
        }
        let is_held_back = self.is_held_back(worker, cx);
        if is_held_back {
            self.held_back.push(worker);
        } else {
            self.start_again(worker, cx);
        }
        is_held_back
    }

    /// Each incarnation has some events: a worker that ends at once, and comes back at once, would fill the channel of a consumer that does not
    /// receive.
    fn is_held_back(&self, worker: WorkerId, cx: &Context<'_>) -> bool {
        self.kept.get(&worker).is_some_and(|kept| cx.sink.levels_of(&kept.shared).must_pause())
    }

    /// Goes on with restarts for which there is room again.
    pub(crate) fn restart_again(&mut self, cx: &mut Context<'_>) {
        for worker in mem::take(&mut self.held_back) {
            let Some(kept) = self.kept.get(&worker) else { continue };
            // First ask to be woken, then look, as for streams.
            kept.shared.window.flow.wait_for_room();
            let levels = cx.sink.levels_of(&kept.shared);
            match kept.standing {
                Standing::Waits(due) if due <= cx.reactor.clock.now() => {
                    if levels.may_resume() {
                        self.start_again(worker, cx);
                    } else {
                        self.held_back.push(worker);
                    }
                }
                // Stopped or started meanwhile, or it waits for a later time, which has a timer.
                Standing::Waits(_) | Standing::Lives(_) | Standing::Held | Standing::SpawnQueue | Standing::Rests => {}
            }
        }
    }

    pub(crate) fn start_again(&mut self, worker: WorkerId, cx: &mut Context<'_>) {
        let Some(kept) = self.kept.get_mut(&worker) else { return };
        if let Some(old) = cx.trees.stuck.values().find(|stuck| stuck.worker == worker) {
            kept.standing = Standing::Held;
            let pid = old.process.child().pid();
            return self.tell(worker, EventKind::Warning(Box::new(Warning::RestartBlocked { pid })), cx);
        }
        kept.standing = Standing::SpawnQueue;
        let (shared, spec) = (Arc::clone(&kept.shared), Arc::clone(&kept.spec));
        cx.spawner.start_again(shared, spec);
        cx.reactor.set_timer_after(crate::supervisor::spawner::queue::PATIENCE, Timer::Starts);
    }

    /// Starts wait for threads that may hang in others.
    pub(crate) fn relieve_starts(&mut self, cx: &mut Context<'_>) {
        if Spawner::relieve(&cx.spawner) {
            cx.reactor.set_timer_after(crate::supervisor::spawner::queue::PATIENCE, Timer::Starts);
        }
    }

    /// It will not come back.
    pub(crate) fn end(&mut self, worker: WorkerId, cx: &mut Context<'_>) {
        let Some(kept) = self.kept.remove(&worker) else { return };
        cx.reactor.timers.cancel(Timer::Restart(worker));
        cx.sink.trace.forget(worker);
        // After its last event: whoever has waited for the exit finds it in the channel.
        kept.shared.set_ended(kept.last_exit());
    }

    /// Nobody lives and nobody will.
    pub(crate) fn is_over(&self, shutdown: &Shutdown) -> bool {
        shutdown.is_closed && self.kept.values().all(|kept| kept.is_resting)
    }
}

/// Workers of one supervisor must not draw the same pauses.
pub(crate) fn next_seed(seed: &mut u64, worker: WorkerId) -> u64 {
    *seed = seed.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(worker.0);
    *seed
}
