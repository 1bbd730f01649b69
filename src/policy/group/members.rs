//! Decides when a member starts and stops.

use super::{
    dependencies::Traversal,
    model::{DependencyCondition, NodeId},
    state::{AfterStop, DownReason, Groups, Member, MemberState},
    transition::GroupOutput,
};
use crate::{
    ids::WorkerId,
    policy::{restart::Restart, restart_history::RestartDecision},
};
use std::time::Instant;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DependencyState {
    Met,
    Pending,
    Failed,
}

impl Groups {
    pub(super) fn member_running(&mut self, member: WorkerId, is_ready: bool) {
        self.set_state(member, |state, _| match state {
            MemberState::Starting => MemberState::Running { ready: is_ready },
            MemberState::Running { ready } => MemberState::Running { ready: ready || is_ready },
            MemberState::Down(_) | MemberState::Waiting | MemberState::Stopping { .. } => state,
        });
        self.work.starts.extend(self.dependencies.dependents_of(member));
    }

    pub(super) fn member_ended(&mut self, id: WorkerId, success: bool, decision: RestartDecision, now: Instant) {
        let Some(member) = self.members.get_mut(&id) else { return };
        let is_temporary = member.role.restart == Restart::Never;
        let ended = |was_ready| DownReason::Ended { success, was_ready };
        let (down, own_end) = match member.state {
            // A repeated report.
            MemberState::Down(_) | MemberState::Waiting => return,
            MemberState::Stopping { then, ready, .. } => match then {
                AfterStop::WithGroup if is_temporary => (ended(ready), None),
                AfterStop::WithGroup | AfterStop::Start => (DownReason::New, None),
                AfterStop::Stopped => (DownReason::Stopped, None),
            },
            state @ (MemberState::Starting | MemberState::Running { .. }) => {
                let was_ready = state == MemberState::Running { ready: true };
                match decision {
                    RestartDecision::Postpone { .. } => (DownReason::New, None),
                    RestartDecision::Restart { .. } if !is_temporary => (DownReason::New, Some(DownReason::New)),
                    RestartDecision::Restart { .. } | RestartDecision::Finish => {
                        (ended(was_ready), Some(ended(was_ready)))
                    }
                    RestartDecision::GiveUp(_) => (DownReason::Failed, Some(DownReason::Failed)),
                }
            }
        };
        self.set_state(id, |_, _| MemberState::Down(down));
        let groups = self.groups_of(NodeId::Member(id));
        for group in &groups {
            if let Some(group) = self.groups.get_mut(group) {
                group.active_members = group.active_members.saturating_sub(1);
            }
        }
        self.work.stops.extend(self.dependencies.reachable([id], Traversal::Dependencies).into_iter().rev());
        self.work.starts.extend(self.dependencies.dependents_of(id));
        if let Some(down) = own_end {
            self.after_own_end(NodeId::Member(id), down, now);
        } else if self.is_open(NodeId::Member(id)) {
            self.start_if_idle(NodeId::Member(id));
        }
        // From the innermost, since its decision may concern the next.
        self.work.groups.extend(groups);
    }

    pub(super) fn try_to_start(&mut self, id: WorkerId) {
        let Some(&Member { state: MemberState::Waiting, .. }) = self.members.get(&id) else { return };
        let mut is_met = true;
        for &(on, condition) in self.dependencies.dependencies_of(id) {
            match self.dependency_state(on, condition) {
                DependencyState::Met => {}
                DependencyState::Pending => is_met = false,
                DependencyState::Failed => {
                    self.work.outputs.push(GroupOutput::DependencyFailed { member: id, on });
                    self.work.starts.extend(self.dependencies.dependents_of(id));
                    self.set_state(id, |_, _| MemberState::Down(DownReason::Failed));
                    self.after_failed_dependency(id);
                    return;
                }
            }
        }
        if !is_met || !self.try_take_turn(id) {
            return;
        }
        self.set_state(id, |_, _| MemberState::Starting);
        for group in self.groups_of(NodeId::Member(id)) {
            if let Some(group) = self.groups.get_mut(&group) {
                group.active_members += 1;
            }
        }
        self.work.outputs.push(GroupOutput::Start(id));
    }

    pub(super) fn dependency_state(&self, on: WorkerId, condition: DependencyCondition) -> DependencyState {
        let Some(on) = self.members.get(&on) else { return DependencyState::Failed };
        match (on.state, condition) {
            (MemberState::Running { .. }, DependencyCondition::Started)
            | (
                MemberState::Running { ready: true }
                | MemberState::Down(DownReason::Ended { success: true, was_ready: true }),
                DependencyCondition::Ready,
            )
            | (
                MemberState::Down(DownReason::Ended { success: true, .. }),
                DependencyCondition::Started | DependencyCondition::Completed,
            ) => DependencyState::Met,
            (MemberState::Running { .. }, DependencyCondition::Ready | DependencyCondition::Completed)
            | (
                MemberState::Waiting
                | MemberState::Starting
                | MemberState::Stopping { .. }
                | MemberState::Down(DownReason::New | DownReason::Stopped),
                DependencyCondition::Started | DependencyCondition::Ready | DependencyCondition::Completed,
            ) => DependencyState::Pending,
            (
                MemberState::Down(DownReason::Ended { .. } | DownReason::Failed),
                DependencyCondition::Started | DependencyCondition::Ready | DependencyCondition::Completed,
            ) => DependencyState::Failed,
        }
    }

    pub(super) fn send_stop(&mut self, id: WorkerId) {
        let Some(&Member { state: MemberState::Stopping { is_sent: false, ready, then }, .. }) = self.members.get(&id)
        else {
            return;
        };
        let is_stopping = |member: &WorkerId| {
            self.members.get(member).is_some_and(|member| matches!(member.state, MemberState::Stopping { .. }))
        };
        if !self.dependencies.reachable([id], Traversal::Dependents).iter().any(is_stopping) {
            self.set_state(id, |_, _| MemberState::Stopping { is_sent: true, ready, then });
            self.work.outputs.push(GroupOutput::Stop(id));
        }
    }

    pub(super) fn stop_member(&mut self, id: WorkerId, then: AfterStop) {
        self.set_state(id, |state, role| match (state, then) {
            (MemberState::Starting, _) => MemberState::Stopping { is_sent: false, ready: false, then },
            (MemberState::Running { ready }, _) => MemberState::Stopping { is_sent: false, ready, then },
            // The stop of a user outlives the stop of a group.
            (
                MemberState::Stopping { then: AfterStop::Stopped, .. } | MemberState::Down(DownReason::Stopped),
                AfterStop::WithGroup,
            ) => state,
            (MemberState::Stopping { is_sent, ready, .. }, _) => MemberState::Stopping { is_sent, ready, then },
            (MemberState::Down(_) | MemberState::Waiting, AfterStop::Stopped) => MemberState::Down(DownReason::Stopped),
            (MemberState::Down(DownReason::Ended { .. } | DownReason::Failed), AfterStop::WithGroup)
                if role == Restart::Never =>
            {
                state
            }
            (MemberState::Waiting, AfterStop::WithGroup | AfterStop::Start)
            | (MemberState::Down(DownReason::Ended { .. } | DownReason::Failed), AfterStop::WithGroup) => {
                MemberState::Down(DownReason::New)
            }
            (MemberState::Down(_), AfterStop::WithGroup | AfterStop::Start) => state,
        });
        self.work.stops.push_back(id);
    }

    pub(super) fn set_state(&mut self, id: WorkerId, change: impl FnOnce(MemberState, Restart) -> MemberState) {
        let Some(member) = self.members.get_mut(&id) else { return };
        let before = member.state;
        member.state = change(before, member.role.restart);
        let after = member.state;
        self.work.changed.insert(NodeId::Member(id));
        if before == MemberState::Waiting && after != MemberState::Waiting {
            self.stop_waiting(id);
        }
        if (before == MemberState::Starting) != (after == MemberState::Starting) {
            self.count_starting(id, after == MemberState::Starting);
        }
    }
}
