//! The status of all workers, and operations on all workers: stop, suspend and resume.

use crate::{
    ids::GroupId,
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
    /// Returns the status of all workers.
    pub(crate) fn status(&self) -> SupervisorStatus {
        let mut workers: Vec<_> = self.supervision.workers.values().map(|record| self.worker_status(record)).collect();
        workers.sort_unstable_by_key(|status| status.worker);
        SupervisorStatus {
            workers,
            events_waiting: self.sink.waiting(),
            spawner_threads: self.spawner.starts().threads(),
            is_complete: true,
        }
    }

    fn worker_status(&self, record: &WorkerRecord) -> WorkerStatus {
        let incarnation = record.key().and_then(|key| self.incarnations.get(key));
        worker_status(record, incarnation, self.reactor.clock.now())
    }

    pub(crate) fn group_status(&self, id: GroupId) -> Option<GroupStatus> {
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
                NodeId::Member(id) => {
                    members.extend(self.supervision.workers.get(&id).map(|record| self.worker_status(record)));
                }
                NodeId::Group(id) => groups.extend(self.group_status(id)),
            }
        }
        Some(GroupStatus { group: id, state, restarts, members, groups })
    }

    /// Stops all workers for good, and returns those that were running.
    pub(crate) fn stop_all(&mut self, request: StopAll) -> Vec<Arc<SharedWorker>> {
        let running: Vec<_> = self
            .supervision
            .workers
            .values()
            .filter(|record| !record.has_ended())
            .map(|record| Arc::clone(&record.shared))
            .collect();
        let within = match request {
            StopAll::Present | StopAll::ForGood => None,
            StopAll::Within(time) => Some(time),
        };
        let action = within.map_or(Action::Stop, Action::StopWithin);
        if request != StopAll::Present {
            let until = within.and_then(|time| self.reactor.clock.now().checked_add(time));
            self.shutdown.stop(until);
        }
        for shared in &running {
            // Members are stopped in the order of their groups. A member that is already stopping enters the next stage.
            let is_stopped_by_group = self
                .supervision
                .workers
                .get(&shared.id())
                .is_some_and(|record| record.is_member && record.desired != DesiredState::Stop);
            if !is_stopped_by_group {
                self.supervise(|supervision, cx| supervision.request(shared.id(), action, cx));
            }
        }
        self.supervise(Supervision::stop_groups);
        if let Some(time) = within {
            self.reactor.set_timer_after(time, Timer::KillAll);
        }
        running
    }

    /// Suspends all workers and the clock, since the user suspends the program. `done` is dropped when all processes are suspended.
    pub(crate) fn suspend(&mut self, done: Sender<()>) {
        self.reactor.clock.stop();
        for key in self.signal_all(libc::SIGSTOP) {
            self.at(key, |incarnation, cx| incarnation.ask_inspector(ScanTask::StopTree, cx));
        }
        self.trees.suspending = Some(done);
        self.end_suspension();
    }

    /// Handles processes outside the group of their worker that the inspector has suspended.
    pub(crate) fn tree_suspended(&mut self, held: Vec<PinnedProcess>) {
        self.trees.suspended_outside_group.extend(held);
        if !self.reactor.clock.is_stopped() {
            // The program was resumed meanwhile.
            self.resume_outside_group();
        }
        self.end_suspension();
    }

    /// Notifies the caller of a suspension if all requests to suspend trees are answered.
    pub(crate) fn end_suspension(&mut self) {
        if !self.trees.unanswered.values().any(|(_, task)| *task == ScanTask::StopTree) {
            self.trees.suspending = None;
        }
    }

    /// Resumes all workers and the clock.
    pub(crate) fn resume_all(&mut self) {
        self.trees.suspending = None;
        self.signal_all(libc::SIGCONT);
        self.resume_outside_group();
        self.reactor.clock.resume();
    }

    fn resume_outside_group(&mut self) {
        for held in self.trees.suspended_outside_group.drain(..) {
            // ESRCH: the process has exited.
            drop(held.signal(libc::SIGCONT));
        }
    }

    /// Signals the process groups of all workers, and returns the keys of the signalled incarnations.
    fn signal_all(&mut self, signal: i32) -> Vec<Key> {
        let keys: Vec<Key> = self.supervision.workers.values().filter_map(WorkerRecord::key).collect();
        let mut signalled = Vec::with_capacity(keys.len());
        for key in keys {
            if let Some(incarnation) = self.incarnations.get(key)
                // A process that was started elsewhere belongs to another job of the terminal.
                && !incarnation.spec.is_attached()
                // A tree that its user has frozen stays frozen.
                && !incarnation.process.tree().is_frozen()
            {
                // ESRCH: the process has exited.
                drop(incarnation.process.child().signal_group(signal));
                signalled.push(key);
            }
        }
        signalled
    }
}

fn worker_status(record: &WorkerRecord, incarnation: Option<&Incarnation>, now: Instant) -> WorkerStatus {
    let usage = incarnation.and_then(|incarnation| stat::usage(incarnation.process.child().pid()));
    let state = match incarnation {
        None if record.has_ended() => WorkerState::Ended,
        None => WorkerState::Waiting,
        Some(_) if record.desired != DesiredState::Run => WorkerState::Stopping,
        Some(incarnation) if incarnation.stop_cause.is_some() => WorkerState::Stopping,
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
            .map_or(0, |connection| connection.queued())
            + record.shared.calls().map_or(0, |calls| calls.queued()),
        last_message: incarnation
            .and_then(|incarnation| incarnation.output.last_message)
            .map(|at| now.saturating_duration_since(at)),
        status: incarnation.and_then(|incarnation| incarnation.health.notifications.status.clone()),
        cpu: usage.map(|usage| usage.cpu),
        rss_bytes: usage.map(|usage| usage.resident_bytes),
    }
}
