//! Groups of workers: passes what happens to members to the group policy, and starts and stops members accordingly.

use crate::{
    exit::ExitCause,
    ids::{GroupId, WorkerId},
    policy::{
        group::{
            model::{GroupActivity, NodeId},
            transition::{GroupInput, GroupOutput},
        },
        lifecycle::StopRequest,
        restart::{AfterExit, Restart},
        restart_history::{RestartDecision, RunEnd},
    },
    supervisor::{
        commands::{Action, GroupCommand, Restarted},
        events::event::{Event, EventKind},
        reactor::timers::Timer,
        spawner::queue::HANG_TIME,
        spec::group::GroupError,
        supervision::{
            ROOT, Supervision, SupervisionContext,
            worker::{DesiredState, EndState, UnreportedEnd, WorkerPhase, WorkerRecord},
        },
        worker::{SharedWorker, group::GroupEndReason},
    },
};
use crossbeam_channel::Sender;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

impl Supervision {
    pub(crate) fn execute_group(&mut self, command: GroupCommand, cx: &mut SupervisionContext<'_>) {
        match command {
            GroupCommand::Add { group, parent, policy, answer } => {
                let (id, parent) = (group.id, parent.unwrap_or(ROOT));
                let added = self.groups.add_group(id, parent, policy.role(parent != ROOT), policy.settings());
                if added.is_ok() {
                    self.group_handles.insert(id, group);
                    self.handle_group_input(GroupInput::Start(NodeId::Group(id)), cx);
                }
                // A send fails if the caller has timed out.
                drop(answer.send(added.map_err(GroupError::from)));
            }
            GroupCommand::AddWorkers { group, workers, is_awaited, answer } => {
                let added = self.add_members(group, &workers, cx);
                drop(answer.send(added.map(|()| if is_awaited { self.await_start(&workers) } else { None })));
            }
            GroupCommand::Remove { group, worker, answer } => drop(answer.send(self.remove_member(group, worker, cx))),
            GroupCommand::StartMember { group, worker, answer } => {
                drop(answer.send(self.start_member(group, worker, cx)));
            }
            GroupCommand::Start(group, answer) => self.start_or_restart(GroupInput::Start, group, &answer, cx),
            GroupCommand::Stop(group, answer) => {
                let node = NodeId::Group(group);
                // A send fails if the caller has timed out.
                drop(answer.send(self.running(node)));
                self.handle_group_input(GroupInput::Stop(node), cx);
            }
            GroupCommand::RemoveAll(group, answer) => {
                let node = NodeId::Group(group);
                let may = self.groups.check_removal(node).map_err(GroupError::from);
                let is_removed = may.is_ok();
                drop(answer.send(may.map(|()| self.running(node))));
                if is_removed {
                    self.handle_group_input(GroupInput::Remove(node), cx);
                }
            }
            GroupCommand::Restart(group, answer) => self.start_or_restart(GroupInput::Restart, group, &answer, cx),
        }
    }

    fn running(&self, node: NodeId) -> Vec<Arc<SharedWorker>> {
        self.members(node).filter(|record| !record.has_ended()).map(|record| Arc::clone(&record.shared)).collect()
    }

    fn members(&self, node: NodeId) -> impl Iterator<Item = &WorkerRecord> {
        self.groups.members_under(node).into_iter().filter_map(|id| self.workers.get(&id))
    }

    /// Starts or restarts a group. Answers with the members that start: on a start those that are stopped, on a restart all.
    fn start_or_restart(
        &mut self,
        input: impl FnOnce(NodeId) -> GroupInput,
        group: GroupId,
        answer: &Sender<Restarted>,
        cx: &mut SupervisionContext<'_>,
    ) {
        let node = NodeId::Group(group);
        let input = input(node);
        let is_start = matches!(input, GroupInput::Start(_));
        let before: BTreeMap<_, _> = (self.members(node))
            .filter(|record| record.has_ended() || !is_start)
            .map(|record| (record.shared.id(), record.shared.incarnation()))
            .collect();
        if is_start {
            for id in before.keys() {
                if let Some(record) = self.workers.get_mut(id) {
                    record.reset_restarts();
                }
            }
        }
        self.handle_group_input(input, cx);
        let starts = |record: &&WorkerRecord| !record.has_ended() && record.spec.restart.restart() != Restart::Never;
        let starting = self.members(node).filter(starts);
        let starting =
            starting.filter_map(|record| Some((Arc::clone(&record.shared), *before.get(&record.shared.id())?)));
        drop(answer.send(starting.collect()));
    }

    /// Executes a request of the user for a member of a group.
    pub(crate) fn request_member(&mut self, worker: WorkerId, action: Action, cx: &mut SupervisionContext<'_>) {
        let Some(record) = self.workers.get_mut(&worker) else { return };
        let node = NodeId::Member(worker);
        let cause = record.stop_cause.unwrap_or(cx.requested_stop());
        match (record.phase, action) {
            // Already stopping: its own stop policy advances, which does not concern the group.
            (WorkerPhase::Running(key), Action::Stop) if record.desired == DesiredState::Stop => {
                cx.stop(key, StopRequest::Advance, cause);
            }
            (WorkerPhase::Running(key), Action::StopWithin(time)) if record.desired == DesiredState::Stop => {
                cx.stop(key, StopRequest::Within(time), cause);
            }
            // A stopped member only runs again after a start.
            (_, Action::Restart) if record.has_ended() => {}
            (_, Action::Restart) => self.handle_group_input(GroupInput::Restart(node), cx),
            (_, Action::Stop) => self.handle_group_input(GroupInput::Stop(node), cx),
            (phase, Action::StopWithin(time)) => {
                self.handle_group_input(GroupInput::Stop(node), cx);
                let WorkerPhase::Running(key) = phase else { return };
                if self.workers.get(&worker).is_some_and(|record| record.desired == DesiredState::Stop) {
                    cx.stop(key, StopRequest::Within(time), cause);
                } else {
                    // It is stopped when its dependents have ended, but killed after `time` in any case.
                    cx.reactor.set_timer_after(time, Timer::KillOne(key));
                }
            }
        }
    }

    /// Stops all groups, each in its order.
    pub(crate) fn stop_groups(&mut self, cx: &mut SupervisionContext<'_>) {
        if self.workers.values().any(|record| record.is_member) {
            self.handle_group_input(GroupInput::StopAll, cx);
        }
    }

    /// Kills all workers that still run, also those that wait for the end of their dependents.
    pub(crate) fn kill_all(&mut self, cx: &mut SupervisionContext<'_>) {
        self.workers.values().for_each(|record| cx.kill(record, ExitCause::SupervisorEnd));
    }

    /// Kills the members of a group whose stop timeout is over.
    pub(crate) fn kill_group_members(&mut self, group: GroupId, cx: &mut SupervisionContext<'_>) {
        // Also members that still wait for their dependents, without their stop policy.
        self.members(NodeId::Group(group)).for_each(|record| cx.kill(record, ExitCause::Group));
        for id in self.groups.members_under(NodeId::Group(group)) {
            if let Some(record) = self.workers.get_mut(&id) {
                record.is_overdue = record.phase == WorkerPhase::Spawning;
            }
        }
    }

    /// Passes the start of a member to its group.
    pub(crate) fn member_started(&mut self, worker: WorkerId, cx: &mut SupervisionContext<'_>) {
        if self.is_member(worker) {
            self.handle_group_input(GroupInput::Started(worker), cx);
        }
    }

    /// Passes the readiness of a member to its group.
    pub(crate) fn member_ready(&mut self, worker: WorkerId, cx: &mut SupervisionContext<'_>) {
        if self.is_member(worker) {
            self.handle_group_input(GroupInput::Ready(worker), cx);
        }
    }

    fn is_member(&self, worker: WorkerId) -> bool {
        self.workers.get(&worker).is_some_and(|record| record.is_member)
    }

    /// Handles the end of an incarnation of a member, or a failed start.
    pub(crate) fn on_member_end(
        &mut self,
        worker: WorkerId,
        cause: RunEnd,
        end: UnreportedEnd,
        cx: &mut SupervisionContext<'_>,
    ) {
        let now = cx.reactor.clock.now();
        let Some(record) = self.workers.get_mut(&worker) else { return };
        let success = match cause {
            RunEnd::Exited { status, .. } => record.spec.restart.is_success(status),
            RunEnd::Unhealthy { .. }
            | RunEnd::Rejected { .. }
            | RunEnd::StartFailed
            | RunEnd::HostShortage
            | RunEnd::Unstartable => false,
        };
        record.phase = WorkerPhase::Stopped;
        let mut decision = record.decide(cause, now);
        record.gave_up = None;
        match decision {
            RestartDecision::Restart { after } | RestartDecision::Postpone { after } => {
                record.restarts.own_end = Some((now, after));
            }
            RestartDecision::Finish | RestartDecision::GiveUp(_) if record.desired == DesiredState::Stop => {
                decision = RestartDecision::Finish;
            }
            // The member may still be started again, with its siblings or with its group.
            RestartDecision::Finish => record.restarts.own_end = Some((now, record.restarts.history.next_delay())),
            RestartDecision::GiveUp(why) => {
                record.restarts.own_end = Some((now, record.restarts.history.next_delay()));
                // An exit while it is being stopped is not its own.
                record.gave_up = Some(why).filter(|_| !self.groups.is_stopping(worker));
            }
        }
        self.cause = worker;
        self.unreported_end = Some(end);
        self.handle_group_input(GroupInput::Ended { member: worker, success, decision }, cx);
    }

    /// Passes an input to the group policy and applies the outputs. Inputs that an output causes are handled after all outputs of this one.
    pub(crate) fn handle_group_input(&mut self, input: GroupInput, cx: &mut SupervisionContext<'_>) {
        self.group_inputs.push_back(input);
        if self.group_inputs.len() > 1 {
            return;
        }
        while let Some(&input) = self.group_inputs.front() {
            if let GroupInput::Start(node) | GroupInput::Restart(node) = input {
                self.begin_runs(node);
            }
            let outputs = self.groups.handle(input, cx.reactor.clock.now());
            let changed = self.groups.take_changed();
            self.note_stops(input, &changed, cx);
            self.adjust_restarts(&outputs);
            if let Some(end) = self.unreported_end.take() {
                self.report_member_end(self.cause, end, cx);
            }
            for output in outputs {
                if matches!(output, GroupOutput::GroupEnded(_) | GroupOutput::Removed(_)) {
                    // The final events of its members come before.
                    self.publish_ends(&changed, cx);
                }
                self.apply_group_output(output, cx);
            }
            self.publish_ends(&changed, cx);
            self.group_inputs.pop_front();
        }
    }

    /// Begins a run of the members that a user starts: each has another final event, whether it starts or not.
    fn begin_runs(&mut self, node: NodeId) {
        for member in self.groups.members_under(node) {
            if let Some(record) = self.workers.get_mut(&member).filter(|record| record.has_ended()) {
                record.end = EndState::Unreported;
                record.shared.clear_end();
            }
        }
    }

    /// Notes why members are being stopped: the stop itself can come later, when their dependents have ended.
    fn note_stops(&mut self, input: GroupInput, changed: &BTreeSet<NodeId>, cx: &SupervisionContext<'_>) {
        let cause = match input {
            GroupInput::Stop(_) | GroupInput::StopAll | GroupInput::Remove(_) => cx.requested_stop(),
            GroupInput::Start(_) | GroupInput::Restart(_) => ExitCause::Restart,
            GroupInput::Started(_) | GroupInput::Ready(_) | GroupInput::Ended { .. } => ExitCause::Group,
        };
        for node in changed {
            if let NodeId::Member(id) = *node
                && self.groups.is_stopping(id)
                && let Some(record) = self.workers.get_mut(&id)
            {
                record.stop_cause.get_or_insert(cause);
            }
        }
    }

    /// Adjusts the backoff of members whose group is restarted.
    fn adjust_restarts(&mut self, outputs: &[GroupOutput]) {
        for output in outputs {
            let GroupOutput::GroupRestarting(id) = output else { continue };
            for member in self.groups.members_under(NodeId::Group(*id)) {
                if let Some(record) = self.workers.get_mut(&member) {
                    record.on_group_restart();
                }
            }
        }
    }

    /// Reports the end of an incarnation of a member, about which its group has decided.
    fn report_member_end(&mut self, worker: WorkerId, end: UnreportedEnd, cx: &mut SupervisionContext<'_>) {
        let Some(record) = self.workers.get_mut(&worker) else { return };
        let next = if self.groups.is_finished(NodeId::Member(worker)) {
            record.gave_up.take().map_or(AfterExit::Finished, AfterExit::GaveUp)
        } else {
            AfterExit::Restart { after: record.restarts.own_end.map_or(Duration::ZERO, |(_, pause)| pause) }
        };
        self.report_end(worker, end, next, cx);
    }

    fn apply_group_output(&mut self, output: GroupOutput, cx: &mut SupervisionContext<'_>) {
        match output {
            GroupOutput::Start(id) => self.start_member_now(id, cx),
            GroupOutput::Stop(id) => self.stop_member(id, cx),
            GroupOutput::DependencyFailed { member: id, on } => self.report_failed_dependency(id, on, cx),
            GroupOutput::GroupGaveUp(id) => self.report(self.cause, EventKind::GroupGaveUp(id), cx),
            GroupOutput::GroupStopping { group, timeout } => cx.reactor.set_timer_after(timeout, Timer::Group(group)),
            GroupOutput::GroupEnded(id) => {
                cx.reactor.timers.cancel(Timer::Group(id));
                self.report(self.cause, EventKind::GroupEnded(id), cx);
            }
            GroupOutput::GroupRestarting(id) => {
                cx.reactor.timers.cancel(Timer::Group(id));
                self.report(self.cause, EventKind::GroupRestarting(id), cx);
            }
            GroupOutput::Removed(NodeId::Member(id)) => self.end(id, cx),
            GroupOutput::Removed(NodeId::Group(id)) => {
                if let Some(handle) = self.group_handles.remove(&id) {
                    handle.set_end(Some(GroupEndReason::Removed));
                }
            }
        }
    }

    /// Starts a member at once, or after the backoff of its own exit.
    fn start_member_now(&mut self, worker: WorkerId, cx: &mut SupervisionContext<'_>) {
        let Some(record) = self.workers.get_mut(&worker) else { return };
        record.desired = DesiredState::Run;
        record.is_overdue = false;
        record.gave_up = None;
        match record.restarts.own_end.take() {
            Some((ended, pause)) => {
                let after = pause.saturating_sub(cx.reactor.clock.now().saturating_duration_since(ended));
                self.wait_for_restart(worker, after, cx);
            }
            None => self.start_again(worker, cx),
        }
    }

    /// Reports a member that does not start because of a dependency, unless it had ended and was started again only with its siblings.
    fn report_failed_dependency(&mut self, worker: WorkerId, on: WorkerId, cx: &mut SupervisionContext<'_>) {
        let Some(record) = self.workers.get_mut(&worker) else { return };
        if record.end == EndState::Unreported {
            let kind = EventKind::DependencyFailed { on };
            record.send_final(Event::of(&record.shared, record.shared.incarnation(), kind), cx.sink);
        }
    }

    pub(crate) fn stop_member(&mut self, worker: WorkerId, cx: &mut SupervisionContext<'_>) {
        let Some(record) = self.workers.get_mut(&worker) else { return };
        record.desired = DesiredState::Stop;
        match record.phase {
            WorkerPhase::Running(key) => {
                cx.stop(key, StopRequest::Advance, record.stop_cause.unwrap_or(ExitCause::Group));
            }
            // Too late to cancel: the worker is stopped when its start is complete.
            WorkerPhase::Spawning if !cx.spawner.starts().cancel(worker) => {
                record.answer_first_start();
                cx.reactor.set_timer_after(HANG_TIME, Timer::SpawnTimeout(worker));
            }
            WorkerPhase::Spawning
            | WorkerPhase::Attaching
            | WorkerPhase::Backoff(_)
            | WorkerPhase::Blocked
            | WorkerPhase::Stopped
            | WorkerPhase::Queued => {
                record.answer_first_start();
                record.phase = WorkerPhase::Stopped;
                self.handle_group_input(
                    GroupInput::Ended { member: worker, success: false, decision: RestartDecision::Finish },
                    cx,
                );
            }
        }
    }

    pub(crate) fn report(&mut self, worker: WorkerId, kind: EventKind, cx: &mut SupervisionContext<'_>) {
        cx.sink.send(match self.workers.get(&worker) {
            Some(WorkerRecord { shared, .. }) => Event::of(shared, shared.incarnation(), kind),
            None => Event::of_the_gone(worker, kind),
        });
    }

    /// Publishes the ends of members that do not run and are not started again, each with its final event, and the ends of groups.
    fn publish_ends(&mut self, changed: &BTreeSet<NodeId>, cx: &mut SupervisionContext<'_>) {
        for &node in changed {
            let id = match node {
                NodeId::Member(id) => id,
                NodeId::Group(id) => {
                    self.publish_group_end(id);
                    continue;
                }
            };
            let Some(record) = self.workers.get_mut(&id) else { continue };
            if !record.is_member {
                continue;
            }
            let is_stopped = record.phase == WorkerPhase::Stopped && self.groups.is_finished(node);
            if is_stopped {
                let next = record.gave_up.take().map_or(AfterExit::Finished, AfterExit::GaveUp);
                record.publish_end(next, cx.sink);
            } else if record.has_ended() {
                record.end = EndState::Reported;
                record.shared.clear_end();
            }
        }
    }

    /// Publishes the end of a group to present and later waiters.
    fn publish_group_end(&mut self, id: GroupId) {
        let (Some(handle), Some(snapshot)) = (self.group_handles.get(&id), self.groups.snapshot(id)) else {
            return;
        };
        handle.set_end(match snapshot.activity {
            GroupActivity::Down(end) => Some(end.into()),
            GroupActivity::Running | GroupActivity::Restarting | GroupActivity::Stopping | GroupActivity::Waiting => {
                None
            }
        });
    }
}
