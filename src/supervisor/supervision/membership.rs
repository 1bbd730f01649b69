//! Members of groups: how they come, how single ones are started, how they go, and how a group stands.

use crate::{
    ids::{GroupId, WorkerId},
    launch::error::{SpawnError, SpecError},
    policy::{
        group::{
            error,
            model::{GroupActivity, GroupSnapshot, NodeId, Role},
            transition::GroupInput,
        },
        restart::{Restart, RestartIntensity},
    },
    supervisor::{
        commands::{FirstStart, Newcomers, Restarted},
        event_loop::Driver,
        spec::{SharedSpec, WorkerSpec, group::GroupError},
        supervision::{
            restart::next_seed,
            worker::{Kept, Standing, Wish},
        },
        worker::{
            SharedWorker,
            group::{GroupState, GroupStatus},
        },
    },
};
use crossbeam_channel::SendError;
use std::sync::Arc;

impl Driver {
    /// All of them become members, or none; and they are started where the group runs.
    pub(crate) fn add_members(&mut self, group: GroupId, workers: &Newcomers) -> Result<(), GroupError> {
        for (at, (shared, spec)) in workers.iter().enumerate() {
            if let Err(error) = self.add_member(group, shared, spec) {
                // In reverse, since later ones may wait for earlier ones. None of them has been started.
                for (shared, _) in workers.iter().take(at).rev() {
                    self.tell_groups(GroupInput::Remove(NodeId::Member(shared.id())));
                }
                return Err(error);
            }
        }
        for (shared, _) in workers {
            self.tell_groups(GroupInput::Start(NodeId::Member(shared.id())));
        }
        Ok(())
    }

    /// What reports the first start of the first of them, where that is under way.
    pub(crate) fn await_start(&mut self, workers: &Newcomers) -> Option<FirstStart> {
        let first = workers.first().and_then(|(shared, _)| self.supervision.kept.get_mut(&shared.id()));
        let kept = first.filter(|kept| kept.standing == Standing::SpawnQueue)?;
        let (answer, started) = crossbeam_channel::bounded(1);
        kept.first_start = Some(answer);
        Some(started)
    }

    fn add_member(&mut self, group: GroupId, shared: &Arc<SharedWorker>, spec: &SharedSpec) -> Result<(), GroupError> {
        if self.shutdown.closed || self.shutdown.last_call.is_some() {
            return Err(GroupError::SupervisorGone);
        }
        self.check_settings(group, spec)?;
        let id = shared.id();
        let role = Role { restart: spec.restart.restart(), significant: spec.is_significant };
        self.supervision.groups.add_member(id, group, role)?;
        for &(on, condition) in &spec.dependencies {
            if let Err(error) = self.supervision.groups.add_dependency(id, on, condition) {
                // It has not been started, so it is forgotten at once.
                self.supervision.groups.handle(GroupInput::Remove(NodeId::Member(id)), self.reactor.clock.now());
                return Err(error.into());
            }
        }
        let seed = next_seed(&mut self.supervision.seed, shared.id());
        self.supervision.kept.insert(shared.id(), Kept::member(shared, spec, seed));
        self.outlet.trace.meet(shared);
        Ok(())
    }

    /// What a spec says must fit what its group says.
    fn check_settings(&self, group: GroupId, spec: &WorkerSpec) -> Result<(), GroupError> {
        let (ladder, within) = (spec.stop.total_grace_period(), self.supervision.groups.stop_timeout(group));
        if let Some(within) = within.filter(|within| *within < ladder) {
            let reason =
                format!("its stop ladder takes {ladder:?}, and its group's end no longer than {within:?}").into();
            return Err(SpecError::Conflict { settings: ["stop", "stop_timeout"], reason }.into());
        }
        if spec.restart.restart() == Restart::Never && spec.restart.can_restart() {
            let reason = "some exits force its restart, and a member with `Restart::Never` is not restarted".into();
            return Err(GroupError::Rejected { reason });
        }
        let intensity = self.supervision.groups.intensity(group);
        let intensity = intensity.map(|intensity| RestartIntensity::new(intensity.restarts, intensity.period));
        spec.restart.check_in_group(intensity).map_err(|conflict| {
            let (settings, reason) = (conflict.settings, conflict.reason);
            GroupError::Spec(SpecError::Conflict { settings, reason })
        })
    }

    /// Its first start has failed. Where its caller still waits for that it never was a member; gives the error where not.
    pub(crate) fn refuse_member(&mut self, worker: WorkerId, error: SpawnError) -> Option<SpawnError> {
        let Some(kept) = self.supervision.kept.get_mut(&worker) else { return Some(error) };
        let Some(answer) = kept.first_start.take() else { return Some(error) };
        if let Err(SendError(answer)) = answer.send(Err(GroupError::SpawnFailed(Box::new(error)))) {
            return match answer {
                Err(GroupError::SpawnFailed(error)) => Some(*error),
                Ok(()) | Err(_) => None,
            };
        }
        if kept.is_member {
            kept.standing = Standing::Rests;
            self.tell_groups(GroupInput::Remove(NodeId::Member(worker)));
        } else {
            self.end(worker);
        }
        None
    }

    pub(crate) fn remove_member(&mut self, group: GroupId, worker: WorkerId) -> Result<(), GroupError> {
        let node = NodeId::Member(worker);
        self.check_is_of(group, worker)?;
        self.supervision.groups.check_removal(node)?;
        self.tell_groups(GroupInput::Remove(node));
        Ok(())
    }

    pub(crate) fn start_member(&mut self, group: GroupId, worker: WorkerId) -> Result<Restarted, GroupError> {
        self.check_is_of(group, worker)?;
        let id = worker;
        if self.supervision.groups.is_group_finished(id) {
            let reason = "its group does not run: start the group".into();
            return Err(GroupError::Rejected { reason });
        }
        let Some(kept) = self.supervision.kept.get_mut(&worker) else { return Ok(Vec::new()) };
        let before =
            (kept.is_resting || kept.wish == Wish::End).then(|| (Arc::clone(&kept.shared), kept.shared.incarnation()));
        if before.is_some() {
            kept.begin_anew();
        }
        self.tell_groups(GroupInput::Start(NodeId::Member(id)));
        Ok(before.into_iter().collect())
    }

    fn check_is_of(&self, group: GroupId, worker: WorkerId) -> Result<(), GroupError> {
        match self.supervision.groups.check_member(worker, group) {
            Ok(()) => Ok(()),
            Err(error::DeclarationError::NotInGroup { .. }) => Err(GroupError::NotAMember { worker, group }),
            Err(error) => Err(error.into()),
        }
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
}
