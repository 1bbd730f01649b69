//! Queries about groups and their members.

use super::{
    model::{GroupActivity, GroupOutcome, GroupSnapshot, NodeId},
    state::{DownReason, GroupDownReason, GroupPhase, Groups, MemberState},
    strategy::is_group_restarted,
};
use crate::{
    ids::{GroupId, WorkerId},
    policy::restart::RestartIntensity,
};
use std::{collections::BTreeSet, time::Duration};

impl Groups {
    pub(crate) fn intensity(&self, group: GroupId) -> Option<RestartIntensity> {
        self.groups.get(&group).and_then(|group| group.settings.intensity)
    }

    /// Whether the member can run only after a user starts a group around it.
    pub(crate) fn is_group_finished(&self, member: WorkerId) -> bool {
        self.is_parent_over(NodeId::Member(member))
    }

    /// Whether the member is being stopped, so that its exit is not its own.
    pub(crate) fn is_stopping(&self, member: WorkerId) -> bool {
        self.members.get(&member).is_some_and(|member| matches!(member.state, MemberState::Stopping { .. }))
    }

    /// The shortest stop timeout of this group and the groups around it.
    pub(crate) fn stop_timeout(&self, group: GroupId) -> Option<Duration> {
        let around = self.groups_of(NodeId::Group(group));
        let settings = [group].into_iter().chain(around).filter_map(|group| self.groups.get(&group));
        settings.filter_map(|group| group.settings.stop_timeout).min()
    }

    /// The nodes for which `is_finished` may have changed since the last call.
    pub(crate) fn take_changed(&mut self) -> BTreeSet<NodeId> {
        std::mem::take(&mut self.work.changed)
    }

    /// Whether the node has ended and nothing in progress starts it again. Only a user does, or the exit of a sibling in a group
    /// that restarts several members together. A group is not finished while it is being restarted or stopped, or if its parent has not
    /// handled its failure yet. A member that starts with its group is finished as soon as nothing will restart the group.
    pub(crate) fn is_finished(&self, node: NodeId) -> bool {
        match node {
            NodeId::Member(member) => match self.members.get(&member).map(|member| member.state) {
                Some(MemberState::Down(DownReason::Stopped | DownReason::Ended { .. } | DownReason::Failed)) | None => {
                    true
                }
                Some(MemberState::Down(DownReason::New)) => self.is_parent_over(node),
                Some(
                    MemberState::Waiting
                    | MemberState::Starting
                    | MemberState::Running { .. }
                    | MemberState::Stopping { .. },
                ) => false,
            },
            NodeId::Group(group) => match self.groups.get(&group).map(|group| &group.phase) {
                Some(GroupPhase::Down(
                    GroupDownReason::Stopped | GroupDownReason::Ended { .. } | GroupDownReason::Retired,
                ))
                | None => true,
                Some(GroupPhase::Down(GroupDownReason::Idle)) => self.is_parent_finished(node),
                Some(GroupPhase::Up | GroupPhase::Restarting { .. } | GroupPhase::Stopping { .. }) => false,
            },
        }
    }

    fn is_parent_finished(&self, node: NodeId) -> bool {
        self.parent(node).is_some_and(|parent| self.is_finished(NodeId::Group(parent)))
    }

    /// Whether the parent group of the node has ended or is about to, and nothing in progress starts it again.
    fn is_parent_over(&self, node: NodeId) -> bool {
        let Some(parent) = self.parent(node) else { return false };
        let parent_node = NodeId::Group(parent);
        match self.groups.get(&parent).map(|group| &group.phase) {
            Some(GroupPhase::Up | GroupPhase::Restarting { .. }) => false,
            Some(GroupPhase::Stopping { then: GroupDownReason::Ended { success } }) => {
                !self.role(parent_node).is_some_and(|role| is_group_restarted(role.restart, *success))
                    || self.is_parent_over(parent_node)
            }
            Some(GroupPhase::Down(GroupDownReason::Idle) | GroupPhase::Stopping { then: GroupDownReason::Idle }) => {
                self.is_parent_over(parent_node)
            }
            Some(
                GroupPhase::Down(GroupDownReason::Stopped | GroupDownReason::Ended { .. } | GroupDownReason::Retired)
                | GroupPhase::Stopping { then: GroupDownReason::Stopped | GroupDownReason::Retired },
            )
            | None => true,
        }
    }

    pub(crate) fn snapshot(&self, group: GroupId) -> Option<GroupSnapshot> {
        let found = self.groups.get(&group)?;
        let activity = match &found.phase {
            GroupPhase::Up => GroupActivity::Running,
            GroupPhase::Restarting { .. } => GroupActivity::Restarting,
            GroupPhase::Stopping { .. } => GroupActivity::Stopping,
            GroupPhase::Down(_) if !self.is_finished(NodeId::Group(group)) => GroupActivity::Waiting,
            GroupPhase::Down(GroupDownReason::Stopped) => GroupActivity::Down(GroupOutcome::Stopped),
            GroupPhase::Down(GroupDownReason::Ended { success: true }) => GroupActivity::Down(GroupOutcome::ShutDown),
            GroupPhase::Down(GroupDownReason::Ended { success: false }) => GroupActivity::Down(GroupOutcome::GaveUp),
            GroupPhase::Down(GroupDownReason::Idle | GroupDownReason::Retired) => {
                GroupActivity::Down(GroupOutcome::WithParent)
            }
        };
        Some(GroupSnapshot { activity, restarts: found.restarts.len(), children: self.children(group) })
    }

    /// Whether the node has no process and none is about to start.
    pub(crate) fn is_down(&self, node: NodeId) -> bool {
        match node {
            NodeId::Member(member) => {
                self.members.get(&member).is_none_or(|member| matches!(member.state, MemberState::Down(_)))
            }
            NodeId::Group(group) => {
                self.groups.get(&group).is_none_or(|group| matches!(group.phase, GroupPhase::Down(_)))
            }
        }
    }
}
