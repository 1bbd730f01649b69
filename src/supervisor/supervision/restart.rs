//! Restarts of workers, and requests of the user to stop or restart them.

use crate::{
    exit::{Exit, ExitCause},
    ids::WorkerId,
    launch::error::SpawnError,
    policy::{
        lifecycle::StopRequest,
        restart::AfterExit,
        restart_history::{RestartDecision, RunEnd},
    },
    supervisor::{
        clock::now,
        commands::Action,
        control::server::KeyOwner,
        events::{
            event::{Event, EventKind},
            warning::Warning,
        },
        reactor::{arena::Key, timers::Timer},
        spawner::queue::{HANG_TIME, PATIENCE},
        spec::SharedSpec,
        supervision::{
            Supervision, SupervisionContext,
            shutdown::Shutdown,
            worker::{DesiredState, EndState, UnreportedEnd, WorkerPhase, WorkerRecord},
        },
        worker::SharedWorker,
    },
};
use std::{collections::hash_map::Entry, mem, sync::Arc, time::Duration};

/// The longest backoff, thirty years.
const LONGEST_BACKOFF: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// The end of an incarnation.
pub(crate) enum IncarnationEnd {
    Exited { exit: Arc<Exit>, run: RunEnd },
    SpawnFailed(SpawnError),
}

impl Supervision {
    /// Records a new incarnation. False if it is to be stopped.
    pub(crate) fn add_incarnation(&mut self, shared: &Arc<SharedWorker>, spec: &SharedSpec, key: Key) -> bool {
        match self.workers.entry(shared.id()) {
            Entry::Vacant(vacant) => {
                let seed = next_seed(&mut self.seed, shared.id());
                vacant.insert(WorkerRecord::new(shared, spec, WorkerPhase::Running(key), seed));
                true
            }
            Entry::Occupied(mut occupied) => {
                let record = occupied.get_mut();
                record.phase = WorkerPhase::Running(key);
                // Failed starts are not counted.
                record.restarts.count += u32::from(shared.incarnation() > 1);
                record.end = EndState::Unreported;
                record.answer_first_start();
                let is_wanted = record.desired == DesiredState::Run;
                record.stop_cause.take_if(|_| is_wanted);
                is_wanted
            }
        }
    }

    /// Executes a request of the user for a worker.
    pub(crate) fn request(&mut self, worker: WorkerId, action: Action, cx: &mut SupervisionContext<'_>) {
        let Some(record) = self.workers.get_mut(&worker) else { return };
        if record.is_member {
            return self.request_member(worker, action, cx);
        }
        match action {
            // What has started it can start it again.
            Action::Restart if record.desired == DesiredState::Stop || record.spec.is_attached() => return,
            Action::Restart => record.desired = DesiredState::Restart,
            Action::Stop | Action::StopWithin(_) => record.desired = DesiredState::Stop,
        }
        let cause = if action == Action::Restart { ExitCause::Restart } else { cx.requested_stop() };
        let cause = *record.stop_cause.get_or_insert(cause);
        match (record.phase, action) {
            (WorkerPhase::Running(key), Action::StopWithin(time)) => {
                cx.stop(key, StopRequest::Within(time), cause);
            }
            (WorkerPhase::Running(key), Action::Stop | Action::Restart) => {
                cx.stop(key, StopRequest::Advance, cause);
            }
            (WorkerPhase::Backoff(_), Action::Restart) => {
                record.desired = DesiredState::Run;
                self.start_again(worker, cx);
            }
            (
                WorkerPhase::Backoff(_) | WorkerPhase::Blocked | WorkerPhase::Attaching | WorkerPhase::Queued,
                Action::Stop | Action::StopWithin(_),
            ) => {
                self.end(worker, cx);
            }
            // The pending start is the requested restart.
            (WorkerPhase::Spawning | WorkerPhase::Blocked | WorkerPhase::Queued, Action::Restart) => {
                record.desired = DesiredState::Run;
            }
            (WorkerPhase::Spawning, Action::Stop | Action::StopWithin(_)) => {
                if cx.spawner.starts().cancel(worker) {
                    self.end(worker, cx);
                } else {
                    // Too late to cancel: the worker is stopped when its start is complete.
                    cx.reactor.set_timer_after(HANG_TIME, Timer::SpawnTimeout(worker));
                }
            }
            (WorkerPhase::Stopped, Action::Restart | Action::Stop | Action::StopWithin(_))
            | (WorkerPhase::Attaching, Action::Restart) => {}
        }
    }

    /// Repeats the stop of a worker whose start has not completed in time.
    pub(crate) fn spawn_timed_out(&mut self, worker: WorkerId, cx: &mut SupervisionContext<'_>) {
        let Some(record) = self.workers.get(&worker) else { return };
        if record.phase != WorkerPhase::Spawning || record.desired != DesiredState::Stop {
            return;
        }
        if record.is_member { self.stop_member(worker, cx) } else { self.request(worker, Action::Stop, cx) }
    }

    /// Stops all workers without restarts, since the supervisor is dropped.
    pub(crate) fn stop_all_workers(&mut self, cx: &mut SupervisionContext<'_>) {
        let workers: Vec<WorkerId> = self.workers.keys().copied().collect();
        for worker in workers {
            // The order of groups does not apply any more.
            let is_stopped = self.workers.get_mut(&worker).is_some_and(|record| {
                record.is_member = false;
                record.phase == WorkerPhase::Stopped
            });
            if is_stopped {
                self.end(worker, cx);
            }
            self.request(worker, Action::StopWithin(cx.shutdown.grace_period), cx);
        }
    }

    /// Handles the end of an incarnation, or a failed start: restarts the worker or ends it.
    pub(crate) fn on_incarnation_end(
        &mut self,
        worker: WorkerId,
        end: IncarnationEnd,
        cx: &mut SupervisionContext<'_>,
    ) {
        let Some(record) = self.workers.get_mut(&worker) else { return };
        record.stop_cause = None;
        let (cause, end) = match end {
            IncarnationEnd::Exited { exit, run } => {
                record.last = Some((Arc::clone(&exit), now()));
                (run, UnreportedEnd::Exited(exit))
            }
            IncarnationEnd::SpawnFailed(error) => {
                let Some(error) = self.refuse_member(worker, error, cx) else { return };
                let cause = if error.is_permanent() {
                    RunEnd::Unstartable
                } else if error.is_shortage() {
                    RunEnd::HostShortage
                } else {
                    RunEnd::StartFailed
                };
                (cause, UnreportedEnd::SpawnFailed(Arc::new(error)))
            }
        };
        let Some(record) = self.workers.get_mut(&worker) else { return };
        if record.is_member {
            return self.on_member_end(worker, cause, end, cx);
        }
        let decision = if cx.shutdown.is_terminating() {
            RestartDecision::Finish
        } else {
            record.decide(cause, cx.reactor.clock.now())
        };
        let next = self.after_attempt(worker, cause, decision);
        self.report_end(worker, end, next, cx);
        match next {
            AfterExit::Restart { after } => self.wait_for_restart(worker, after, cx),
            AfterExit::Finished | AfterExit::GaveUp(_) => self.end(worker, cx),
        }
    }

    /// Sends the last event of an incarnation or of a start that failed. If the worker does not run again, its end is published with it.
    pub(crate) fn report_end(
        &mut self,
        worker: WorkerId,
        end: UnreportedEnd,
        next: AfterExit,
        cx: &mut SupervisionContext<'_>,
    ) {
        let Some(record) = self.workers.get_mut(&worker) else { return };
        let number = record.shared.incarnation();
        if let UnreportedEnd::Exited(exit) = &end {
            // Before the event: its consumer must find no pending call.
            record.shared.route_calls(|calls| match next {
                AfterExit::Restart { after } => calls.schedule_start(after),
                AfterExit::Finished | AfterExit::GaveUp(_) => calls.ended(exit),
            });
            record.shared.incarnation_exited(exit);
        }
        let event = match end {
            UnreportedEnd::Exited(exit) => Event::of(&record.shared, number, EventKind::Exited { exit, next }),
            UnreportedEnd::SpawnFailed(error) => {
                Event::of(&record.shared, number + 1, EventKind::SpawnFailed { error, next })
            }
        };
        if next.is_final() {
            record.send_final(event, cx.sink);
        } else {
            record.end = EndState::Unreported;
            cx.sink.send(event);
        }
    }

    /// Sets the timer of a restart.
    pub(crate) fn wait_for_restart(&mut self, worker: WorkerId, after: Duration, cx: &mut SupervisionContext<'_>) {
        let Some(record) = self.workers.get_mut(&worker) else { return };
        let Some(due) = cx.reactor.clock.now().checked_add(after.min(LONGEST_BACKOFF)) else { return };
        if let Some(job) = &mut record.job {
            job.release_slot();
        }
        record.phase = WorkerPhase::Backoff(due);
        record.shared.route_calls(|calls| calls.schedule_start(after));
        cx.reactor.set_timer(due, Timer::Restart(worker));
    }

    /// Restarts a worker whose backoff is over, unless its state has changed meanwhile. True if the restart waits for room in the worker's window.
    pub(crate) fn restart(&mut self, worker: WorkerId, cx: &mut SupervisionContext<'_>) -> bool {
        let is_due =
            |record: &WorkerRecord| matches!(record.phase, WorkerPhase::Backoff(due) if due <= cx.reactor.clock.now());
        if !self.workers.get(&worker).is_some_and(is_due) {
            return false;
        }
        let is_delayed = self.is_delayed(worker, cx);
        if is_delayed {
            self.delayed_restarts.push(worker);
        } else {
            self.start_again(worker, cx);
        }
        is_delayed
    }

    /// Whether a restart waits for room in the window: each incarnation sends a few events, so a worker that exits and restarts at once would
    /// otherwise fill the channel of a slow consumer.
    fn is_delayed(&self, worker: WorkerId, cx: &SupervisionContext<'_>) -> bool {
        self.workers.get(&worker).is_some_and(|record| cx.sink.levels_of(&record.shared).must_pause())
    }

    /// Continues delayed restarts for which there is room again.
    pub(crate) fn resume_restarts(&mut self, cx: &mut SupervisionContext<'_>) {
        for worker in mem::take(&mut self.delayed_restarts) {
            let Some(record) = self.workers.get(&worker) else { continue };
            // The wakeup is requested before the check, as for streams.
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
                // The state has changed meanwhile, or a timer is set for a later restart.
                WorkerPhase::Backoff(_)
                | WorkerPhase::Running(_)
                | WorkerPhase::Blocked
                | WorkerPhase::Spawning
                | WorkerPhase::Attaching
                | WorkerPhase::Stopped
                | WorkerPhase::Queued => {}
            }
        }
    }

    /// Starts the next incarnation, unless the process of the last one is still unkillable.
    pub(crate) fn start_again(&mut self, worker: WorkerId, cx: &mut SupervisionContext<'_>) {
        let Some(record) = self.workers.get_mut(&worker) else { return };
        if let Some(old) = cx.trees.unkillable.values().find(|unkillable| unkillable.worker == worker) {
            record.phase = WorkerPhase::Blocked;
            let pid = old.process.child().pid();
            return self.report(worker, EventKind::Warning(Box::new(Warning::RestartBlocked { pid })), cx);
        }
        if let Some(job) = record.job.as_ref().filter(|job| !job.has_slot) {
            record.phase = WorkerPhase::Queued;
            return job.request_slot();
        }
        if !self.has_token(worker, cx) {
            return;
        }
        let Some(record) = self.workers.get_mut(&worker) else { return };
        record.phase = WorkerPhase::Spawning;
        record.shared.route_calls(|calls| calls.schedule_start(Duration::ZERO));
        let (shared, spec) = (Arc::clone(&record.shared), Arc::clone(&record.spec));
        cx.spawner.start_again(shared, spec);
        cx.reactor.set_timer_after(PATIENCE, Timer::SpawnQueue);
    }

    /// Ends a worker for good.
    pub(crate) fn end(&mut self, worker: WorkerId, cx: &mut SupervisionContext<'_>) {
        let Some(mut record) = self.workers.remove(&worker) else { return };
        cx.reactor.timers.cancel(Timer::Restart(worker));
        if record.phase == WorkerPhase::Attaching {
            cx.reactor.timers.cancel(Timer::AttachTimeout(worker));
            if let Some(server) = cx.server {
                server.forget(KeyOwner::Attached(worker));
            }
        }
        let gave_up = record.job.as_ref().and_then(|job| job.gave_up);
        record.publish_end(gave_up.map_or(AfterExit::Finished, AfterExit::GaveUp), cx.sink);
        cx.sink.trace.remove_worker(worker);
        self.job_ended(record, cx);
    }

    /// Whether no worker runs, and none can be started.
    pub(crate) fn is_over(&self, shutdown: &Shutdown) -> bool {
        shutdown.is_closed && self.workers.values().all(WorkerRecord::has_ended)
    }
}

/// Returns the seed of the backoff of a worker. Workers of one supervisor must not draw the same delays.
pub(crate) fn next_seed(seed: &mut u64, worker: WorkerId) -> u64 {
    *seed = seed.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(worker.0);
    *seed
}
