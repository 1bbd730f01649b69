//! How groups and their members stand.

use super::{
    model::{GroupActivity, GroupOutcome, GroupSnapshot, NodeId},
    state::{DownReason, GroupDownReason, GroupPhase, Groups, MemberState},
};
use crate::ids::{GroupId, WorkerId};
use crate::policy::restart::Restart;
use crate::policy::restart::RestartIntensity;
use std::{collections::BTreeSet, time::Duration};

impl Groups {
    pub(crate) fn intensity(&self, group: GroupId) -> Option<RestartIntensity> {
        self.groups.get(&group).and_then(|group| group.settings.intensity)
    }

    /// Whether only the start of a group lets the member run.
    pub(crate) fn is_group_finished(&self, member: WorkerId) -> bool {
        self.is_parent_finished(NodeId::Member(member))
    }

    /// Whether it has been asked to end, so that its end is not its own.
    pub(crate) fn is_stopping(&self, member: WorkerId) -> bool {
        self.members.get(&member).is_some_and(|member| matches!(member.state, MemberState::Stopping { .. }))
    }

    /// How long the end of what is in this group may take, as it and those around it say.
    pub(crate) fn stop_timeout(&self, group: GroupId) -> Option<Duration> {
        let around = self.groups_of(NodeId::Group(group));
        let settings = [group].into_iter().chain(around).filter_map(|group| self.groups.get(&group));
        settings.filter_map(|group| group.settings.stop_timeout).min()
    }

    /// The nodes for which `is_over` may have changed since the last call.
    pub(crate) fn take_changed(&mut self) -> BTreeSet<NodeId> {
        std::mem::take(&mut self.work.changed)
    }

    /// Whether it has ended, and nothing that is under way starts it again: only a user, or in a group that takes siblings along
    /// the end of a sibling. What starts with its group is not over before its group is, and a group that is being restarted, or
    /// whose failure the group around it has yet to answer, is not over.
    pub(crate) fn is_finished(&self, node: NodeId) -> bool {
        match node {
            NodeId::Member(member) => match self.members.get(&member).map(|member| member.state) {
                Some(MemberState::Down(DownReason::Stopped | DownReason::Ended { .. } | DownReason::Failed)) | None => {
                    true
                }
                Some(MemberState::Down(DownReason::New)) => self.is_parent_finished(node),
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

    /// Whether the failure of this member, by which its group gives up, can be answered by a restart of the group.
    pub(crate) fn can_return(&self, member: WorkerId) -> bool {
        let lives = |node| self.role(node).is_some_and(|role| role.restart != Restart::Never);
        let node = NodeId::Member(member);
        lives(node) && self.parent(node).is_some_and(|group| lives(NodeId::Group(group)))
    }

    /// What a group does, the number of its restarts within its period, and its groups in the order of declaration.
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

    /// Whether it has no process and none is about to start: an `Input::Stop` of it would find nothing to do.
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
