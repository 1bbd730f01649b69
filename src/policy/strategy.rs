//! What a group does when one of it ends: who is restarted with it, and when it is too much.

use super::{
    group::{Attempt, AutoShutdown, Down, Group, GroupId, Groups, Lifetime, Node, Phase, Rest, State, Strategy, Then},
    members::Output,
};
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
                    State::Down(Down::New(attempt)) => State::Waiting(attempt),
                    State::Down(Down::Stopped | Down::Over { .. } | Down::Lost)
                    | State::Waiting(_)
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
                        self.take_down_children(id);
                    }
                    Phase::Ending { .. } | Phase::Rest(_) => {}
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
        let ends_already = matches!(group.phase, Phase::Ending { .. });
        if let (Some(within), false) = (group.settings.stop_within, ends_already) {
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
        match self.groups.get(&parent).map(|group| &group.phase) {
            Some(Phase::Up | Phase::Restarting { .. }) => {}
            Some(Phase::Ending { .. } | Phase::Rest(_)) | None => return,
        }
        let is_temporary = role.lifetime == Lifetime::Temporary;
        match down {
            Down::New(_) => self.restart(parent, node, now),
            Down::Over { .. } | Down::Lost | Down::Stopped => {
                let counts = is_temporary || matches!(down, Down::Over { success: true, .. });
                if role.significant && counts && self.shuts_down(parent) {
                    self.end_group(parent, Rest::Over { success: true });
                } else if down == Down::Lost && !is_temporary && self.strategy(parent) != Some(Strategy::OneForOne) {
                    self.give_up(parent);
                }
            }
        }
    }

    fn restart(&mut self, id: GroupId, node: Node, now: Instant) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let strategy = group.settings.strategy;
        let takes_along = match strategy {
            Strategy::OneForOne => false,
            Strategy::OneForAll | Strategy::RestForOne => true,
        };
        if (takes_along || matches!(node, Node::Group(_))) && !group.bears_restart(now) {
            self.give_up(id);
            return;
        }
        let more = match strategy {
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
        self.work.outputs.push(Output::GroupEnded(id));
        let node = Node::Group(id);
        self.work.touched.extend(self.members_under(node));
        let (Some(role), parent) = (self.role(node), self.parent(node)) else { return };
        match then {
            Rest::Idle if self.is_open(node) => self.begin(node),
            Rest::Stopped | Rest::Idle => {}
            Rest::Retired => self.lose(node),
            Rest::Over { success } => {
                let is_again = match role.lifetime {
                    Lifetime::Temporary => false,
                    Lifetime::Transient => !success,
                    Lifetime::Permanent => true,
                };
                let down = if is_again {
                    self.revive_after_failure(id);
                    Down::New(Attempt::Again)
                } else {
                    self.lose(node);
                    Down::Over { success, was_ready: false }
                };
                self.after_own_end(node, down, now);
            }
        }
        self.work.groups.extend(parent);
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
                State::Down(Down::New(_)) => State::Down(Down::Lost),
                State::Down(Down::Stopped | Down::Over { .. } | Down::Lost)
                | State::Waiting(_)
                | State::Starting
                | State::Running { .. }
                | State::Leaving { .. } => state,
            });
            self.work.starts.extend(self.order.needed_by(member));
        }
    }

    fn strategy(&self, id: GroupId) -> Option<Strategy> {
        self.groups.get(&id).map(|group| group.settings.strategy)
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
                .all(|child| !self.role(*child).is_some_and(|role| role.significant) || self.is_gone_for_good(*child)),
        }
    }

    fn is_gone_for_good(&self, node: Node) -> bool {
        match node {
            Node::Member(member) => match self.members.get(&member).map(|member| member.state) {
                Some(State::Down(Down::Stopped | Down::Over { .. } | Down::Lost)) | None => true,
                Some(
                    State::Down(Down::New(_))
                    | State::Waiting(_)
                    | State::Starting
                    | State::Running { .. }
                    | State::Leaving { .. },
                ) => false,
            },
            Node::Group(group) => match self.groups.get(&group).map(|group| &group.phase) {
                Some(Phase::Rest(Rest::Stopped | Rest::Over { .. } | Rest::Retired)) | None => true,
                Some(Phase::Rest(Rest::Idle) | Phase::Up | Phase::Restarting { .. } | Phase::Ending { .. }) => false,
            },
        }
    }
}

impl Group {
    /// Counts a restart, unless it is one too many.
    fn bears_restart(&mut self, now: Instant) -> bool {
        let intensity = self.settings.intensity;
        while self.restarts.front().is_some_and(|at| now.saturating_duration_since(*at) >= intensity.period) {
            self.restarts.pop_front();
        }
        let is_allowed = self.restarts.len() < usize::try_from(intensity.restarts).unwrap_or(usize::MAX);
        if is_allowed {
            self.restarts.push_back(now);
        }
        is_allowed
    }
}
