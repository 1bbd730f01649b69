//! What the loop knows of everybody, and what is done with everybody at once.

use crate::{
    ids::{GroupId, WorkerId},
    policy::group::model::{GroupActivity, GroupSnapshot, NodeId},
    supervisor::{
        commands::{Action, StopAll},
        containment::inspector::request::ScanTask,
        event_loop::EventLoop,
        incarnation::Incarnation,
        reactor::{arena::Key, timers::Timer},
        supervision::{
            Supervision,
            worker::{DesiredState, WorkerRecord},
        },
        worker::{
            SharedWorker,
            group::{GroupState, GroupStatus},
            status::{SupervisorStatus, WorkerState, WorkerStatus},
        },
    },
    sys::proc::{pinned::PinnedProcess, stat},
};
use crossbeam_channel::Sender;
use std::{sync::Arc, time::Instant};

impl EventLoop {
    pub(crate) fn report(&mut self) -> SupervisorStatus {
        let now = self.reactor.clock.now();
        let mut workers: Vec<WorkerStatus> = Vec::with_capacity(self.supervision.workers.len());
        for record in self.supervision.workers.values() {
            let incarnation = record.place().and_then(|key| self.incarnations.get(key));
            workers.push(status(record, incarnation, now));
        }
        workers.sort_unstable_by_key(|status| status.worker);
        SupervisorStatus {
            workers,
            events_waiting: self.sink.waiting(),
            spawner_threads: self.spawner.starts().threads(),
            is_complete: true,
        }
    }

    pub(crate) fn status_of(&mut self, worker: WorkerId) -> Option<WorkerStatus> {
        let record = self.supervision.workers.get(&worker)?;
        let incarnation = record.place().and_then(|key| self.incarnations.get(key));
        Some(status(record, incarnation, self.reactor.clock.now()))
    }

    pub(crate) fn group_status(&mut self, id: GroupId) -> Option<GroupStatus> {
        let GroupSnapshot { activity, restarts, children } = self.supervision.groups.snapshot(id)?;
        let state = match activity {
            GroupActivity::Running => GroupState::Running,
            GroupActivity::Restarting => GroupState::Restarting,
            GroupActivity::Stopping => GroupState::Stopping,
            GroupActivity::Waiting => GroupState::Waiting,
            GroupActivity::Down(end) => GroupState::Ended(end.into()),
        };
        let (mut members, mut groups) = (Vec::new(), Vec::new());
        for child in children {
            match child {
                NodeId::Member(id) => members.extend(self.status_of(id)),
                NodeId::Group(id) => groups.extend(self.group_status(id)),
            }
        }
        Some(GroupStatus { group: id, state, restarts, members, groups })
    }

    /// Everybody is to end for good. Gives those who were there.
    pub(crate) fn stop_all(&mut self, wanted: StopAll) -> Vec<Arc<SharedWorker>> {
        let everybody: Vec<_> = self
            .supervision
            .workers
            .values()
            .filter(|record| !record.is_stopped)
            .map(|record| Arc::clone(&record.shared))
            .collect();
        let within = match wanted {
            StopAll::Present | StopAll::ForGood => None,
            StopAll::Within(time) => Some(time),
        };
        let action = within.map_or(Action::Stop, Action::StopWithin);
        if wanted != StopAll::Present {
            let until = within.and_then(|time| self.reactor.clock.now().checked_add(time));
            self.shutdown.stop(until);
        }
        for shared in &everybody {
            // Members end in their groups' order, and are killed where that takes too long. Those that are ending already end
            // faster.
            let waits = self
                .supervision
                .workers
                .get(&shared.id())
                .is_some_and(|record| record.is_member && record.desired != DesiredState::Stop);
            if !waits {
                self.supervise(|supervision, cx| supervision.act(shared.id(), action, cx));
            }
        }
        self.supervise(Supervision::stop_groups);
        if let Some(time) = within {
            self.reactor.set_timer_after(time, Timer::KillAll);
        }
        everybody
    }

    /// The user has stopped the program: its workers are stopped with it, and the clock. `done` is dropped when all are.
    pub(crate) fn freeze(&mut self, done: Sender<()>) {
        self.reactor.clock.stop();
        for place in self.signal_all(libc::SIGSTOP) {
            self.at(place, |incarnation, cx| incarnation.ask_inspector(ScanTask::StopTree, cx));
        }
        self.trees.suspending = Some(done);
        self.end_suspension();
    }

    /// The inspector has stopped what has left the group of a worker.
    pub(crate) fn stopped(&mut self, held: Vec<PinnedProcess>) {
        self.trees.suspended_outside_group.extend(held);
        if !self.reactor.clock.is_stopped() {
            // The program goes on already.
            self.resume_outside_group();
        }
        self.end_suspension();
    }

    pub(crate) fn end_suspension(&mut self) {
        if !self.trees.unanswered.values().any(|(_, task)| *task == ScanTask::StopTree) {
            self.trees.suspending = None;
        }
    }

    pub(crate) fn thaw(&mut self) {
        self.trees.suspending = None;
        self.signal_all(libc::SIGCONT);
        self.resume_outside_group();
        self.reactor.clock.resume();
    }

    fn resume_outside_group(&mut self) {
        for held in self.trees.suspended_outside_group.drain(..) {
            // ESRCH: it has ended.
            drop(held.signal(libc::SIGCONT));
        }
    }

    /// Signals the groups of all workers, and gives their places.
    fn signal_all(&mut self, signal: i32) -> Vec<Key> {
        let places: Vec<Key> = self.supervision.workers.values().filter_map(WorkerRecord::place).collect();
        let mut signalled = Vec::with_capacity(places.len());
        for place in places {
            if let Some(incarnation) = self.incarnations.get(place)
                // Its user wants it to stand still, whatever else goes on.
                && !incarnation.process.tree().is_frozen()
            {
                // ESRCH: it has ended.
                drop(incarnation.process.child().signal_group(signal));
                signalled.push(place);
            }
        }
        signalled
    }
}

fn status(record: &WorkerRecord, incarnation: Option<&Incarnation>, now: Instant) -> WorkerStatus {
    let usage = incarnation.and_then(|incarnation| stat::usage(incarnation.process.child().pid()));
    let state = match incarnation {
        None if record.is_stopped => WorkerState::Ended,
        None => WorkerState::Waiting,
        Some(_) if record.desired != DesiredState::Run => WorkerState::Stopping,
        Some(incarnation) if incarnation.health.is_unhealthy => WorkerState::Stopping,
        Some(incarnation) if !incarnation.process.is_ready() => WorkerState::Starting,
        Some(_) => WorkerState::Running,
    };
    WorkerStatus {
        worker: record.shared.id(),
        name: record.shared.name().into(),
        state,
        incarnation: record.shared.incarnation(),
        pid: incarnation.map(|incarnation| incarnation.process.child().pid()),
        uptime: incarnation.map(|incarnation| now.saturating_duration_since(incarnation.started)),
        restarts: record.restarts.count,
        window_used: record.shared.window.flow.used(),
        window: record.spec.window,
        is_paused: incarnation.is_some_and(Incarnation::is_paused),
        control_queue: incarnation
            .and_then(|incarnation| incarnation.process.connection())
            .map_or(0, |connection| connection.queued()),
        last_message: incarnation
            .and_then(|incarnation| incarnation.output.last_message)
            .map(|at| now.saturating_duration_since(at)),
        status: incarnation.and_then(|incarnation| incarnation.health.notifications.status.clone()),
        cpu: usage.map(|usage| usage.cpu),
        rss_bytes: usage.map(|usage| usage.resident_bytes),
    }
}
