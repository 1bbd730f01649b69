//! Decides what a group does when a child ends: which children are restarted, and when it gives up or shuts down.

use super::{
    dependencies::Traversal,
    model::{AutoShutdown, NodeId, Strategy},
    state::{AfterStop, DownReason, Group, GroupDownReason, GroupPhase, Groups, MemberState},
    transition::GroupOutput,
};
use crate::{
    ids::{GroupId, WorkerId},
    policy::restart::Restart,
};
use std::{collections::BTreeSet, time::Instant};

impl Groups {
    /// Whether all groups around the node allow it to run.
    pub(super) fn is_open(&self, node: NodeId) -> bool {
        let mut below = node;
        while let Some(id) = self.parent(below) {
            match self.groups.get(&id).map(|group| &group.phase) {
                Some(GroupPhase::Up) => {}
                Some(GroupPhase::Restarting { set, .. }) if !set.contains(&below) => {}
                Some(GroupPhase::Restarting { .. } | GroupPhase::Down(_) | GroupPhase::Stopping { .. }) | None => {
                    return false;
                }
            }
            below = NodeId::Group(id);
        }
        true
    }

    /// Starts the node, and everything in it, where it is down and starts with its group.
    pub(super) fn start_if_idle(&mut self, node: NodeId) {
        match node {
            NodeId::Member(member) => {
                self.set_state(member, |state, _| match state {
                    MemberState::Down(DownReason::New) => MemberState::Waiting,
                    MemberState::Down(DownReason::Stopped | DownReason::Ended { .. } | DownReason::Failed)
                    | MemberState::Waiting
                    | MemberState::Starting
                    | MemberState::Running { .. }
                    | MemberState::Stopping { .. } => state,
                });
                self.work.starts.push_back(member);
            }
            NodeId::Group(id) => {
                let Some(group) = self.groups.get_mut(&id) else { return };
                match group.phase {
                    GroupPhase::Down(GroupDownReason::Idle) => {
                        group.phase = GroupPhase::Up;
                        group.restarts.clear();
                        if std::mem::replace(&mut group.is_unreported, true) {
                            self.work.outputs.push(GroupOutput::GroupRestarting(id));
                        }
                        self.work.changed.insert(node);
                    }
                    GroupPhase::Up => {}
                    GroupPhase::Restarting { .. } => {
                        for child in self.children(id) {
                            self.join_restart(child);
                            if self.is_open(child) {
                                self.start_if_idle(child);
                            }
                        }
                        return;
                    }
                    GroupPhase::Down(
                        GroupDownReason::Stopped | GroupDownReason::Ended { .. } | GroupDownReason::Retired,
                    )
                    | GroupPhase::Stopping { .. } => return,
                }
                for child in self.children(id) {
                    self.start_if_idle(child);
                }
            }
        }
    }

    pub(super) fn stop_with_group(&mut self, node: NodeId) {
        match node {
            NodeId::Member(member) => self.stop_member(member, AfterStop::WithGroup),
            NodeId::Group(id) => {
                let Some(group) = self.groups.get_mut(&id) else { return };
                let is_temporary = group.role.restart == Restart::Never;
                match group.phase {
                    GroupPhase::Up | GroupPhase::Restarting { .. } => {
                        self.end_group(id, if is_temporary { GroupDownReason::Retired } else { GroupDownReason::Idle });
                    }
                    // It is ending by itself, and is restarted with its parent.
                    GroupPhase::Stopping { then: GroupDownReason::Ended { .. } } if !is_temporary => {
                        group.phase = GroupPhase::Stopping { then: GroupDownReason::Idle };
                        self.mark_subtree_changed(node);
                    }
                    GroupPhase::Down(GroupDownReason::Ended { .. }) if !is_temporary => {
                        group.phase = GroupPhase::Down(GroupDownReason::Idle);
                        self.mark_subtree_changed(node);
                        self.stop_children(id);
                    }
                    // Its members may have been marked as failed together with its parent, which now restarts.
                    GroupPhase::Down(GroupDownReason::Idle) => self.stop_children(id),
                    GroupPhase::Stopping { .. }
                    | GroupPhase::Down(
                        GroupDownReason::Stopped | GroupDownReason::Ended { .. } | GroupDownReason::Retired,
                    ) => {}
                }
            }
        }
    }

    /// In reverse order of declaration, which is then the order of the outputs.
    pub(super) fn stop_children(&mut self, id: GroupId) {
        for child in self.children(id).into_iter().rev() {
            self.stop_with_group(child);
        }
    }

    pub(super) fn end_group(&mut self, id: GroupId, then: GroupDownReason) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let has_begun = matches!(group.phase, GroupPhase::Up | GroupPhase::Restarting { .. });
        if let (Some(timeout), true) = (group.settings.stop_timeout, has_begun) {
            self.work.outputs.push(GroupOutput::GroupStopping { group: id, timeout });
        }
        group.phase = GroupPhase::Stopping { then };
        self.mark_subtree_changed(NodeId::Group(id));
        self.stop_children(id);
        self.work.groups.push_back(id);
    }

    fn give_up(&mut self, id: GroupId) {
        self.work.outputs.push(GroupOutput::GroupGaveUp(id));
        self.end_group(id, GroupDownReason::Ended { success: false });
    }

    /// A child of a group has ended by itself. `New` if it is to be restarted.
    pub(super) fn after_own_end(&mut self, node: NodeId, down: DownReason, now: Instant) {
        let (Some(role), Some(parent)) = (self.role(node), self.parent(node)) else { return };
        if !self.is_active(parent) {
            return;
        }
        match down {
            DownReason::New => self.restart(parent, node, now),
            DownReason::Failed if role.restart != Restart::Never => self.give_up(parent),
            DownReason::Ended { .. } | DownReason::Failed | DownReason::Stopped => self.shut_down_after(node, parent),
        }
    }

    /// A member cannot start, since the condition on a dependency cannot be met. Its siblings keep running: none of them has failed,
    /// and a user can start both members again.
    pub(super) fn after_failed_dependency(&mut self, member: WorkerId) {
        let node = NodeId::Member(member);
        if let Some(parent) = self.parent(node).filter(|parent| self.is_active(*parent)) {
            self.shut_down_after(node, parent);
        }
    }

    fn is_active(&self, id: GroupId) -> bool {
        match self.groups.get(&id).map(|group| &group.phase) {
            Some(GroupPhase::Up | GroupPhase::Restarting { .. }) => true,
            Some(GroupPhase::Stopping { .. } | GroupPhase::Down(_)) | None => false,
        }
    }

    /// A child of a group has ended for good by itself.
    fn shut_down_after(&mut self, node: NodeId, parent: GroupId) {
        if self.role(node).is_some_and(|role| role.significant) && self.is_shutdown_due(parent) {
            self.end_group(parent, GroupDownReason::Ended { success: true });
        }
    }

    fn restart(&mut self, id: GroupId, node: NodeId, now: Instant) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        if !group.allows_restart(now) {
            self.give_up(id);
            return;
        }
        let affected = match group.settings.strategy {
            Strategy::OneForOne => {
                self.start_if_idle(node);
                return;
            }
            Strategy::OneForAll => self.children(id).into_iter().collect(),
            Strategy::RestForOne => self.rest_for_one_set(id, node),
        };
        for child in self.children(id).into_iter().rev().filter(|child| affected.contains(child)) {
            self.stop_with_group(child);
        }
        let Some(group) = self.groups.get_mut(&id) else { return };
        let before = match &mut group.phase {
            GroupPhase::Restarting { set, .. } => std::mem::take(set),
            GroupPhase::Up | GroupPhase::Stopping { .. } | GroupPhase::Down(_) => BTreeSet::new(),
        };
        let set: BTreeSet<_> = before.union(&affected).copied().collect();
        group.phase = GroupPhase::Restarting { pending: set.iter().copied().collect(), set };
    }

    pub(super) fn check_group(&mut self, id: GroupId, now: Instant) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        match &mut group.phase {
            GroupPhase::Up | GroupPhase::Down(_) => {}
            GroupPhase::Stopping { then } => {
                let then = *then;
                if group.active_members == 0 {
                    group.phase = GroupPhase::Down(then);
                    self.group_ended(id, then, now);
                }
            }
            GroupPhase::Restarting { set, pending } => {
                let (set, mut pending) = (std::mem::take(set), std::mem::take(pending));
                // A node that is down stays down until all are, so no node is checked twice.
                while pending.pop_if(|node| self.is_down(*node)).is_some() {}
                let is_done = pending.is_empty();
                let Some(group) = self.groups.get_mut(&id) else { return };
                if is_done {
                    group.phase = GroupPhase::Up;
                    // All children, since a user may have started others meanwhile.
                    for child in self.children(id) {
                        self.start_if_idle(child);
                    }
                } else {
                    group.phase = GroupPhase::Restarting { set, pending };
                }
            }
        }
    }

    fn group_ended(&mut self, id: GroupId, then: GroupDownReason, now: Instant) {
        let node = NodeId::Group(id);
        self.mark_subtree_changed(node);
        let (Some(role), parent) = (self.role(node), self.parent(node)) else { return };
        let own_end = match then {
            GroupDownReason::Idle => {
                if self.is_open(node) {
                    self.start_if_idle(node);
                }
                None
            }
            GroupDownReason::Stopped => None,
            GroupDownReason::Retired => {
                self.mark_failed(node);
                None
            }
            GroupDownReason::Ended { success } => Some(if is_group_restarted(role.restart, success) {
                self.set_idle(id);
                DownReason::New
            } else {
                self.mark_failed(node);
                DownReason::Ended { success, was_ready: false }
            }),
        };
        if let Some(down) = own_end {
            self.after_own_end(node, down, now);
        }
        self.work.ended.extend(self.groups_under(node));
        self.work.groups.extend(parent);
    }

    /// Whether a group is finished decides whether the nodes in it are.
    fn mark_subtree_changed(&mut self, node: NodeId) {
        self.work.changed.extend(self.members_under(node).into_iter().map(NodeId::Member));
        self.work.changed.extend(self.groups_under(node).into_iter().map(NodeId::Group));
    }

    /// Reports the groups that have ended for good, now that their parents have decided about a restart.
    pub(super) fn report_ends(&mut self) {
        for id in std::mem::take(&mut self.work.ended) {
            if self.is_finished(NodeId::Group(id))
                && let Some(group) = self.groups.get_mut(&id)
                && std::mem::take(&mut group.is_unreported)
            {
                self.work.outputs.push(GroupOutput::GroupEnded(id));
            }
        }
    }

    fn set_idle(&mut self, id: GroupId) {
        if let Some(group) = self.groups.get_mut(&id) {
            group.phase = GroupPhase::Down(GroupDownReason::Idle);
        }
    }

    /// A group has ended for good, so conditions on its members cannot be met any more.
    fn mark_failed(&mut self, node: NodeId) {
        for member in self.members_under(node) {
            self.set_state(member, |state, _| match state {
                MemberState::Down(DownReason::New) => MemberState::Down(DownReason::Failed),
                MemberState::Down(DownReason::Stopped | DownReason::Ended { .. } | DownReason::Failed)
                | MemberState::Waiting
                | MemberState::Starting
                | MemberState::Running { .. }
                | MemberState::Stopping { .. } => state,
            });
            self.work.starts.extend(self.dependencies.dependents_of(member));
        }
    }

    /// Whether the end of a significant child stops the group.
    fn is_shutdown_due(&self, id: GroupId) -> bool {
        let Some(group) = self.groups.get(&id) else { return false };
        match group.settings.auto_shutdown {
            AutoShutdown::Never => false,
            AutoShutdown::AnySignificant => true,
            AutoShutdown::AllSignificant => group
                .children
                .values()
                .all(|child| !self.role(*child).is_some_and(|role| role.significant) || self.is_finished(*child)),
        }
    }
}

impl Groups {
    /// The children that a rest-for-one restart affects: `cause`, the children declared after it, and their dependents, except for
    /// the dependencies of `cause`.
    fn rest_for_one_set(&self, group: GroupId, cause: NodeId) -> BTreeSet<NodeId> {
        let needed = self.children_containing(
            group,
            &self.dependencies.reachable(self.members_under(cause), Traversal::Dependencies),
        );
        let after = self.children(group).into_iter().skip_while(|child| *child != cause);
        let mut set: BTreeSet<_> = after.filter(|child| *child == cause || !needed.contains(child)).collect();
        let members = set.iter().flat_map(|child| self.members_under(*child));
        let dependents = self.children_containing(group, &self.dependencies.reachable(members, Traversal::Dependents));
        set.extend(dependents.difference(&needed));
        set
    }

    /// The children of a group in which these members are.
    fn children_containing(&self, group: GroupId, members: &BTreeSet<WorkerId>) -> BTreeSet<NodeId> {
        let child = |member: &WorkerId| {
            let up = |node: &NodeId| self.parent(*node).map(NodeId::Group);
            std::iter::successors(Some(NodeId::Member(*member)), up).find(|node| self.parent(*node) == Some(group))
        };
        members.iter().filter_map(child).collect()
    }
}

/// Whether a group that has ended by itself is restarted by its parent.
pub(super) fn is_group_restarted(restart: Restart, success: bool) -> bool {
    match restart {
        Restart::Never => false,
        Restart::OnFailure => !success,
        Restart::Always => true,
    }
}

impl Group {
    /// Whether the intensity allows a restart now. Counts it if so.
    fn allows_restart(&mut self, now: Instant) -> bool {
        let Some(intensity) = self.settings.intensity else { return true };
        while self.restarts.front().is_some_and(|at| now.saturating_duration_since(*at) > intensity.period) {
            self.restarts.pop_front();
        }
        let is_allowed = self.restarts.len() < usize::try_from(intensity.restarts).unwrap_or(usize::MAX);
        if is_allowed {
            self.restarts.push_back(now);
        }
        is_allowed
    }
}
