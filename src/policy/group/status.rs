//! How groups and their members stand.

use super::{
    model::{Activity, End, GroupIntensity, Lifetime, Node, Survey},
    state::{Down, Groups, Phase, Rest, State},
};
use crate::ids::{GroupId, WorkerId};
use std::{collections::BTreeSet, time::Duration};

impl Groups {
    pub(crate) fn intensity(&self, group: GroupId) -> Option<GroupIntensity> {
        self.groups.get(&group).and_then(|group| group.settings.intensity)
    }

    /// Whether only the start of a group lets the member run.
    pub(crate) fn is_group_over(&self, member: WorkerId) -> bool {
        self.is_within_over(Node::Member(member))
    }

    /// Whether it has been asked to end, so that its end is not its own.
    pub(crate) fn is_leaving(&self, member: WorkerId) -> bool {
        self.members.get(&member).is_some_and(|member| matches!(member.state, State::Leaving { .. }))
    }

    /// How long the end of what is in this group may take, as it and those around it say.
    pub(crate) fn stop_within(&self, group: GroupId) -> Option<Duration> {
        let around = self.groups_of(Node::Group(group));
        let settings = [group].into_iter().chain(around).filter_map(|group| self.groups.get(&group));
        settings.filter_map(|group| group.settings.stop_within).min()
    }

    /// The nodes for which [`is_over`](Self::is_over) may have changed since the last call.
    pub(crate) fn take_touched(&mut self) -> BTreeSet<Node> {
        std::mem::take(&mut self.work.touched)
    }

    /// Whether it has ended, and nothing that is under way starts it again: only a user, or in a group that takes siblings along
    /// the end of a sibling. What starts with its group is not over before its group is, and a group that is being restarted, or
    /// whose failure the group around it has yet to answer, is not over.
    pub(crate) fn is_over(&self, node: Node) -> bool {
        match node {
            Node::Member(member) => match self.members.get(&member).map(|member| member.state) {
                Some(State::Down(Down::Stopped | Down::Over { .. } | Down::Lost)) | None => true,
                Some(State::Down(Down::New)) => self.is_within_over(node),
                Some(State::Waiting | State::Starting | State::Running { .. } | State::Leaving { .. }) => false,
            },
            Node::Group(group) => match self.groups.get(&group).map(|group| &group.phase) {
                Some(Phase::Rest(Rest::Stopped | Rest::Over { .. } | Rest::Retired)) | None => true,
                Some(Phase::Rest(Rest::Idle)) => self.is_within_over(node),
                Some(Phase::Up | Phase::Restarting { .. } | Phase::Ending { .. }) => false,
            },
        }
    }

    fn is_within_over(&self, node: Node) -> bool {
        self.parent(node).is_some_and(|parent| self.is_over(Node::Group(parent)))
    }

    /// Whether the failure of this member, by which its group gives up, can be answered by a restart of the group.
    pub(crate) fn may_return(&self, member: WorkerId) -> bool {
        let lives = |node| self.role(node).is_some_and(|role| role.lifetime != Lifetime::Temporary);
        let node = Node::Member(member);
        lives(node) && self.parent(node).is_some_and(|group| lives(Node::Group(group)))
    }

    /// What a group does, the number of its restarts within its period, and its groups in the order of declaration.
    pub(crate) fn survey(&self, group: GroupId) -> Option<Survey> {
        let found = self.groups.get(&group)?;
        let activity = match &found.phase {
            Phase::Up => Activity::Running,
            Phase::Restarting { .. } => Activity::Restarting,
            Phase::Ending { .. } => Activity::Stopping,
            Phase::Rest(_) if !self.is_over(Node::Group(group)) => Activity::Waiting,
            Phase::Rest(Rest::Stopped) => Activity::Over(End::Stopped),
            Phase::Rest(Rest::Over { success: true }) => Activity::Over(End::ShutDown),
            Phase::Rest(Rest::Over { success: false }) => Activity::Over(End::GaveUp),
            Phase::Rest(Rest::Idle | Rest::Retired) => Activity::Over(End::WithParent),
        };
        Some(Survey { activity, restarts: found.restarts.len(), children: self.children(group) })
    }

    /// Whether it has no process and none is about to start: an `Input::Stop` of it would find nothing to do.
    pub(crate) fn is_at_rest(&self, node: Node) -> bool {
        match node {
            Node::Member(member) => {
                self.members.get(&member).is_none_or(|member| matches!(member.state, State::Down(_)))
            }
            Node::Group(group) => self.groups.get(&group).is_none_or(|group| matches!(group.phase, Phase::Rest(_))),
        }
    }
}
