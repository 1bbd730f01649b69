//! Members of groups: adds, starts and removes them.

use crate::{
    ids::{GroupId, WorkerId},
    launch::error::{SpawnError, SpecError},
    policy::{
        group::{
            error,
            model::{NodeId, Role},
            transition::GroupInput,
        },
        restart::Restart,
    },
    supervisor::{
        commands::{FirstStartResult, NewMembers, Restarted},
        spec::{SharedSpec, WorkerSpec, group::GroupError},
        supervision::{
            Supervision, SupervisionContext,
            restart::next_seed,
            shutdown::Phase,
            worker::{DesiredState, EndState, WorkerPhase, WorkerRecord},
        },
        worker::SharedWorker,
    },
};
use crossbeam_channel::SendError;
use std::sync::Arc;

impl Supervision {
    /// Adds all workers to the group, or none. They are started if the group runs.
    pub(crate) fn add_members(
        &mut self,
        group: GroupId,
        workers: &NewMembers,
        cx: &mut SupervisionContext<'_>,
    ) -> Result<(), GroupError> {
        for (at, (shared, spec)) in workers.iter().enumerate() {
            if let Err(error) = self.add_member(group, shared, spec, cx) {
                // In reverse, since later members may depend on earlier ones. None of them has been started.
                for (shared, _) in workers.iter().take(at).rev() {
                    if let Some(record) = self.workers.get_mut(&shared.id()) {
                        // The caller has the error.
                        record.end = EndState::Reported;
                    }
                    self.handle_group_input(GroupInput::Remove(NodeId::Member(shared.id())), cx);
                }
                return Err(error);
            }
        }
        for (shared, _) in workers {
            self.handle_group_input(GroupInput::Start(NodeId::Member(shared.id())), cx);
        }
        Ok(())
    }

    /// Returns the channel for the result of the first start of the first worker, if that start is in progress.
    pub(crate) fn await_start(&mut self, workers: &NewMembers) -> Option<FirstStartResult> {
        let first = workers.first().and_then(|(shared, _)| self.workers.get_mut(&shared.id()));
        let record = first.filter(|record| record.phase == WorkerPhase::Spawning)?;
        let (answer, started) = crossbeam_channel::bounded(1);
        record.first_start = Some(answer);
        Some(started)
    }

    fn add_member(
        &mut self,
        group: GroupId,
        shared: &Arc<SharedWorker>,
        spec: &SharedSpec,
        cx: &mut SupervisionContext<'_>,
    ) -> Result<(), GroupError> {
        if cx.shutdown.is_closed || cx.shutdown.phase != Phase::Open {
            return Err(GroupError::SupervisorGone);
        }
        self.check_settings(group, spec)?;
        let id = shared.id();
        let role = Role { restart: spec.restart.restart(), significant: spec.is_significant };
        self.groups.add_member(id, group, role)?;
        for &(on, condition) in &spec.dependencies {
            if let Err(error) = self.groups.add_dependency(id, on, condition) {
                // The member has not been started, so its removal needs no stop.
                self.groups.handle(GroupInput::Remove(NodeId::Member(id)), cx.reactor.clock.now());
                return Err(error.into());
            }
        }
        let seed = next_seed(&mut self.seed, shared.id());
        self.workers.insert(shared.id(), WorkerRecord::member(shared, spec, seed));
        cx.sink.trace.add_worker(shared);
        Ok(())
    }

    /// Checks that the settings of a spec fit those of its group.
    fn check_settings(&self, group: GroupId, spec: &WorkerSpec) -> Result<(), GroupError> {
        let (grace_period, stop_timeout) = (spec.stop.total_grace_period(), self.groups.stop_timeout(group));
        if let Some(stop_timeout) = stop_timeout.filter(|timeout| *timeout < grace_period) {
            let reason = format!(
                "its stop policy takes up to {grace_period:?}, but the stop timeout of its group is {stop_timeout:?}"
            );
            let reason = reason.into();
            return Err(SpecError::Conflict { settings: ["stop", "stop_timeout"], reason }.into());
        }
        if spec.restart.restart() == Restart::Never && spec.restart.can_restart() {
            let reason = "some exits force its restart, and a member with `Restart::Never` is not restarted".into();
            return Err(GroupError::Rejected { reason });
        }
        spec.restart.check_in_group(self.groups.intensity(group)).map_err(|conflict| {
            let (settings, reason) = (conflict.settings, conflict.reason);
            GroupError::Spec(SpecError::Conflict { settings, reason })
        })
    }

    /// Handles a failed first start. If the caller still waits for it, the caller gets the error and the worker is removed. Otherwise returns
    /// the error.
    pub(crate) fn refuse_member(
        &mut self,
        worker: WorkerId,
        error: SpawnError,
        cx: &mut SupervisionContext<'_>,
    ) -> Option<SpawnError> {
        let Some(record) = self.workers.get_mut(&worker) else { return Some(error) };
        let Some(answer) = record.first_start.take() else { return Some(error) };
        if let Err(SendError(answer)) = answer.send(Err(GroupError::SpawnFailed(Box::new(error)))) {
            return match answer {
                Err(GroupError::SpawnFailed(error)) => Some(*error),
                Ok(()) | Err(_) => None,
            };
        }
        // The caller has the error.
        record.end = EndState::Reported;
        if record.is_member {
            record.phase = WorkerPhase::Stopped;
            self.handle_group_input(GroupInput::Remove(NodeId::Member(worker)), cx);
        } else {
            self.end(worker, cx);
        }
        None
    }

    pub(crate) fn remove_member(
        &mut self,
        group: GroupId,
        worker: WorkerId,
        cx: &mut SupervisionContext<'_>,
    ) -> Result<(), GroupError> {
        let node = NodeId::Member(worker);
        self.check_is_of(group, worker)?;
        self.groups.check_removal(node)?;
        self.handle_group_input(GroupInput::Remove(node), cx);
        Ok(())
    }

    pub(crate) fn start_member(
        &mut self,
        group: GroupId,
        worker: WorkerId,
        cx: &mut SupervisionContext<'_>,
    ) -> Result<Restarted, GroupError> {
        self.check_is_of(group, worker)?;
        if self.groups.is_group_finished(worker) {
            let reason = "its group does not run: start the group".into();
            return Err(GroupError::Rejected { reason });
        }
        let Some(record) = self.workers.get_mut(&worker) else { return Ok(Vec::new()) };
        let before = (record.has_ended() || record.desired == DesiredState::Stop)
            .then(|| (Arc::clone(&record.shared), record.shared.incarnation()));
        if before.is_some() {
            record.reset_restarts();
        }
        self.handle_group_input(GroupInput::Start(NodeId::Member(worker)), cx);
        Ok(before.into_iter().collect())
    }

    fn check_is_of(&self, group: GroupId, worker: WorkerId) -> Result<(), GroupError> {
        match self.groups.check_member(worker, group) {
            Ok(()) => Ok(()),
            Err(error::DeclarationError::NotInGroup { .. }) => Err(GroupError::NotAMember { worker, group }),
            Err(error) => Err(error.into()),
        }
    }
}
