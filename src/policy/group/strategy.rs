//! What a group does when one of it ends: who is restarted with it, and when it is too much.

use super::{
    dependencies::Towards,
    model::{AutoShutdown, Lifetime, Node, Strategy},
    state::{Down, Group, Groups, Phase, Rest, State, Then},
    transition::Output,
};
use crate::ids::{GroupId, WorkerId};
use std::{collections::BTreeSet, time::Instant};

/// A group's life.
impl Groups {
    /// Whether nothing above it keeps it from running.
    pub(super) fn is_open(&self, node: Node) -> bool {
        let mut below = node;
        while let Some(id) = self.parent(below) {
            match self.groups.get(&id).map(|group| &group.phase) {
                Some(Phase::Up) => {}
                Some(Phase::Restarting { set, .. }) if !set.contains(&below) => {}
                Some(Phase::Restarting { .. } | Phase::Rest(_) | Phase::Ending { .. }) | None => return false,
            }
            below = Node::Group(id);
        }
        true
    }

    /// Starts what is at rest and ready to start with its group.
    pub(super) fn begin(&mut self, node: Node) {
        match node {
            Node::Member(member) => {
                self.set_state(member, |state, _| match state {
                    State::Down(Down::New) => State::Waiting,
                    State::Down(Down::Stopped | Down::Over { .. } | Down::Lost)
                    | State::Waiting
                    | State::Starting
                    | State::Running { .. }
                    | State::Leaving { .. } => state,
                });
                self.work.starts.push_back(member);
            }
            Node::Group(id) => {
                let Some(group) = self.groups.get_mut(&id) else { return };
                match group.phase {
                    Phase::Rest(Rest::Idle) => {
                        group.phase = Phase::Up;
                        group.restarts.clear();
                        if std::mem::replace(&mut group.is_unreported, true) {
                            self.work.outputs.push(Output::GroupRestarting(id));
                        }
                        self.work.touched.insert(node);
                    }
                    Phase::Up => {}
                    Phase::Restarting { .. } => {
                        for child in self.children(id) {
                            self.join_restart(child);
                            if self.is_open(child) {
                                self.begin(child);
                            }
                        }
                        return;
                    }
                    Phase::Rest(Rest::Stopped | Rest::Over { .. } | Rest::Retired) | Phase::Ending { .. } => return,
                }
                for child in self.children(id) {
                    self.begin(child);
                }
            }
        }
    }

    pub(super) fn take_down(&mut self, node: Node) {
        match node {
            Node::Member(member) => self.take_down_member(member, Then::WithGroup),
            Node::Group(id) => {
                let Some(group) = self.groups.get_mut(&id) else { return };
                let is_temporary = group.role.lifetime == Lifetime::Temporary;
                match group.phase {
                    Phase::Up | Phase::Restarting { .. } => {
                        self.end_group(id, if is_temporary { Rest::Retired } else { Rest::Idle });
                    }
                    // It fails or ends, and is restarted with its parent.
                    Phase::Ending { then: Rest::Over { .. } } if !is_temporary => {
                        group.phase = Phase::Ending { then: Rest::Idle };
                    }
                    Phase::Rest(Rest::Over { .. }) if !is_temporary => {
                        group.phase = Phase::Rest(Rest::Idle);
                        self.touch(node);
                        self.take_down_children(id);
                    }
                    // Its members may have been given up together with the group around it, which now comes back.
                    Phase::Rest(Rest::Idle) => self.take_down_children(id),
                    Phase::Ending { .. } | Phase::Rest(Rest::Stopped | Rest::Over { .. } | Rest::Retired) => {}
                }
            }
        }
    }

    /// In reverse, so that outputs of one moment come in reverse.
    pub(super) fn take_down_children(&mut self, id: GroupId) {
        for child in self.children(id).into_iter().rev() {
            self.take_down(child);
        }
    }

    pub(super) fn end_group(&mut self, id: GroupId, then: Rest) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let has_begun = matches!(group.phase, Phase::Up | Phase::Restarting { .. });
        if let (Some(within), true) = (group.settings.stop_within, has_begun) {
            self.work.outputs.push(Output::GroupEnds { group: id, within });
        }
        group.phase = Phase::Ending { then };
        self.take_down_children(id);
        self.work.groups.push_back(id);
    }

    fn give_up(&mut self, id: GroupId) {
        self.work.outputs.push(Output::GroupGaveUp(id));
        self.end_group(id, Rest::Over { success: false });
    }

    /// One of a group has ended by itself: `down` says whether it is to come back.
    pub(super) fn after_own_end(&mut self, node: Node, down: Down, now: Instant) {
        let (Some(role), Some(parent)) = (self.role(node), self.parent(node)) else { return };
        if !self.is_active(parent) {
            return;
        }
        match down {
            Down::New => self.restart(parent, node, now),
            Down::Lost if role.lifetime != Lifetime::Temporary => self.give_up(parent),
            Down::Over { .. } | Down::Lost | Down::Stopped => self.shut_down_after(node, parent),
        }
    }

    /// It cannot start, since what it waits for will not come. Its siblings go on: none of them has failed, and a user may start
    /// both again.
    pub(super) fn after_lost_dependency(&mut self, member: WorkerId) {
        let node = Node::Member(member);
        if let Some(parent) = self.parent(node).filter(|parent| self.is_active(*parent)) {
            self.shut_down_after(node, parent);
        }
    }

    fn is_active(&self, id: GroupId) -> bool {
        match self.groups.get(&id).map(|group| &group.phase) {
            Some(Phase::Up | Phase::Restarting { .. }) => true,
            Some(Phase::Ending { .. } | Phase::Rest(_)) | None => false,
        }
    }

    /// One of a group has ended for good by itself, for whatever reason.
    fn shut_down_after(&mut self, node: Node, parent: GroupId) {
        if self.role(node).is_some_and(|role| role.significant) && self.shuts_down(parent) {
            self.end_group(parent, Rest::Over { success: true });
        }
    }

    fn restart(&mut self, id: GroupId, node: Node, now: Instant) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        if !group.bears_restart(now) {
            self.give_up(id);
            return;
        }
        let more = match group.settings.strategy {
            Strategy::OneForOne => {
                self.begin(node);
                return;
            }
            Strategy::OneForAll => self.children(id).into_iter().collect(),
            Strategy::RestForOne => self.rest(id, node),
        };
        for child in self.children(id).into_iter().rev().filter(|child| more.contains(child)) {
            self.take_down(child);
        }
        let Some(group) = self.groups.get_mut(&id) else { return };
        let before = match &mut group.phase {
            Phase::Restarting { set, .. } => std::mem::take(set),
            Phase::Up | Phase::Ending { .. } | Phase::Rest(_) => BTreeSet::new(),
        };
        let set: BTreeSet<_> = before.union(&more).copied().collect();
        group.phase = Phase::Restarting { pending: set.iter().copied().collect(), set };
    }

    pub(super) fn look_at_group(&mut self, id: GroupId, now: Instant) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        match &mut group.phase {
            Phase::Up | Phase::Rest(_) => {}
            Phase::Ending { then } => {
                let then = *then;
                if group.alive == 0 {
                    group.phase = Phase::Rest(then);
                    self.group_ended(id, then, now);
                }
            }
            Phase::Restarting { set, pending } => {
                let (set, mut pending) = (std::mem::take(set), std::mem::take(pending));
                // Whoever is gone stays gone until all are, so nobody is looked at twice.
                while pending.pop_if(|node| self.is_at_rest(*node)).is_some() {}
                let is_done = pending.is_empty();
                let Some(group) = self.groups.get_mut(&id) else { return };
                if is_done {
                    group.phase = Phase::Up;
                    // Also those that a user has asked for since.
                    for child in self.children(id) {
                        self.begin(child);
                    }
                } else {
                    group.phase = Phase::Restarting { set, pending };
                }
            }
        }
    }

    fn group_ended(&mut self, id: GroupId, then: Rest, now: Instant) {
        let node = Node::Group(id);
        self.touch(node);
        let (Some(role), parent) = (self.role(node), self.parent(node)) else { return };
        let own_end = match then {
            Rest::Idle => {
                if self.is_open(node) {
                    self.begin(node);
                }
                None
            }
            Rest::Stopped => None,
            Rest::Retired => {
                self.lose(node);
                None
            }
            Rest::Over { success } => {
                let is_again = match role.lifetime {
                    Lifetime::Temporary => false,
                    Lifetime::Transient => !success,
                    Lifetime::Permanent => true,
                };
                Some(if is_again {
                    self.revive_after_failure(id);
                    Down::New
                } else {
                    self.lose(node);
                    Down::Over { success, was_ready: false }
                })
            }
        };
        if let Some(down) = own_end {
            self.after_own_end(node, down, now);
        }
        self.work.ended.extend(self.groups_under(node));
        self.work.groups.extend(parent);
    }

    /// Whether it has ended may decide that of all in it.
    fn touch(&mut self, node: Node) {
        self.work.touched.extend(self.members_under(node).into_iter().map(Node::Member));
        self.work.touched.extend(self.groups_under(node).into_iter().map(Node::Group));
    }

    /// Of the groups that have ended those for which that is final: what comes of it is the group's around it to decide.
    pub(super) fn report_ends(&mut self) {
        for id in std::mem::take(&mut self.work.ended) {
            if self.is_over(Node::Group(id))
                && let Some(group) = self.groups.get_mut(&id)
                && std::mem::take(&mut group.is_unreported)
            {
                self.work.outputs.push(Output::GroupEnded(id));
            }
        }
    }

    fn revive_after_failure(&mut self, id: GroupId) {
        if let Some(group) = self.groups.get_mut(&id) {
            group.phase = Phase::Rest(Rest::Idle);
        }
    }

    /// A group has ended for good: who waits for one of it, waits in vain.
    fn lose(&mut self, node: Node) {
        for member in self.members_under(node) {
            self.set_state(member, |state, _| match state {
                State::Down(Down::New) => State::Down(Down::Lost),
                State::Down(Down::Stopped | Down::Over { .. } | Down::Lost)
                | State::Waiting
                | State::Starting
                | State::Running { .. }
                | State::Leaving { .. } => state,
            });
            self.work.starts.extend(self.order.needed_by(member));
        }
    }

    /// Whether a significant one's end is the end of its group.
    fn shuts_down(&self, id: GroupId) -> bool {
        let Some(group) = self.groups.get(&id) else { return false };
        match group.settings.auto_shutdown {
            AutoShutdown::Never => false,
            AutoShutdown::AnySignificant => true,
            AutoShutdown::AllSignificant => group
                .children
                .values()
                .all(|child| !self.role(*child).is_some_and(|role| role.significant) || self.is_over(*child)),
        }
    }
}

impl Groups {
    /// Whom a rest-for-one restart takes along: the one that is to be restarted, those declared after it, and whoever waits
    /// for one of these; but nobody for whom it waits itself.
    fn rest(&self, group: GroupId, cause: Node) -> BTreeSet<Node> {
        let before = self.lift(group, &self.order.reach(self.members_under(cause), Towards::Needed));
        let after = self.children(group).into_iter().skip_while(|child| *child != cause);
        let mut set: BTreeSet<_> = after.filter(|child| *child == cause || !before.contains(child)).collect();
        let members = set.iter().flat_map(|child| self.members_under(*child));
        let needing = self.lift(group, &self.order.reach(members, Towards::Needing));
        set.extend(needing.difference(&before));
        set
    }

    /// The children of a group in which these members are.
    fn lift(&self, group: GroupId, members: &BTreeSet<WorkerId>) -> BTreeSet<Node> {
        let child = |member: &WorkerId| {
            let up = |node: &Node| self.parent(*node).map(Node::Group);
            std::iter::successors(Some(Node::Member(*member)), up).find(|node| self.parent(*node) == Some(group))
        };
        members.iter().filter_map(child).collect()
    }
}

impl Group {
    /// Counts a restart, unless it is one too many.
    fn bears_restart(&mut self, now: Instant) -> bool {
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
