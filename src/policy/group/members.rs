//! What is told about the members of groups, and each member's life: when it may start, and when it has to stop.
//!
//! An input changes what is wanted and queues whoever may be concerned; `settle` then decides for one after the other, stops
//! first, until nothing is left. So no input costs more than what it concerns, however many idle workers there are.

use crate::ids::{GroupId, WorkerId};
use crate::policy::{
    group::dependencies::Towards,
    group::{DependencyCondition, Down, Group, Groups, Lifetime, Member, Node, Phase, Rest, State, Then},
};
use std::time::{Duration, Instant};

/// What the driver has learned, or a user asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Input {
    /// A user wants it to run: it is new, or was stopped, or has ended. A group is started with everything in it.
    Start(Node),
    /// A user wants it to run no more. Nothing but `Start` or `Restart` starts it again.
    Stop(Node),
    /// A user wants it to end and start again, it alone.
    Restart(Node),
    /// `Stop` of everything in the outermost group, which stays open for what comes later.
    StopAll,
    /// A user wants it to be forgotten; it is stopped before.
    Remove(Node),
    /// Its process runs.
    Started(WorkerId),
    /// It is ready. One whose readiness is to run is ready when it is started.
    Ready(WorkerId),
    /// Its process and its tree are gone, or could not be started, or its start was called off.
    Ended { member: WorkerId, success: bool, verdict: Verdict },
}

/// What a worker's own policy says to its end. Where it was told to end, this does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is to be restarted.
    Again,
    /// It is not.
    Finished,
    /// It would be, but has failed too often, or can never start.
    GaveUp,
    /// The host had no means to start it. It is to be tried again, which is no restart: nothing has failed.
    Postponed,
}

/// What the driver is to do, or to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    /// Start its process: at once, or after the backoff of its last end where that was its own and no user has asked since. Every
    /// start is answered by `Ended`, once, whatever comes between.
    Start(WorkerId),
    /// Go down its stop ladder, or call off a start that has not happened.
    Stop(WorkerId),
    /// It will not be started: what it waits for will not come.
    DependencyFailed { member: WorkerId, on: WorkerId },
    /// Too many restarts, or one that it cannot be without has given up. All of it is being stopped; its parent takes this
    /// for its failure, and at the root only the user is left to be told.
    GroupGaveUp(GroupId),
    /// It ends; within so long, where that is set.
    GroupEnds { group: GroupId, within: Duration },
    /// None of its members is left, and only a user starts it again; once for each of its lives.
    GroupEnded(GroupId),
    /// None of its members was left, and it begins a new life: its own restart, or one of the group around it.
    GroupRestarting(GroupId),
    /// Forgotten: its id may be used anew.
    Removed(Node),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outlook {
    Met,
    Pending,
    Hopeless,
}

impl Groups {
    pub(crate) fn handle(&mut self, input: Input, now: Instant) -> Vec<Output> {
        match input {
            Input::Start(node) => self.start(node),
            Input::Stop(node) => self.stop(node, Then::Stopped),
            Input::Restart(node) => {
                if !self.is_being_removed(node) {
                    self.stop(node, Then::Start);
                    self.start(node);
                }
            }
            Input::StopAll => {
                for child in self.children(self.root).into_iter().rev() {
                    self.stop(child, Then::Stopped);
                }
            }
            Input::Remove(node) => {
                if self.check_removal(node).is_ok() {
                    self.stop(node, Then::Stopped);
                    self.removals.push(node);
                }
            }
            Input::Started(member) => self.advance(member, false),
            Input::Ready(member) => self.advance(member, true),
            Input::Ended { member, success, verdict } => self.ended(member, success, verdict, now),
        }
        self.settle(now);
        self.report_ends();
        self.forget_removed();
        std::mem::take(&mut self.work.outputs)
    }

    fn settle(&mut self, now: Instant) {
        loop {
            if let Some(member) = self.work.stops.pop_front() {
                self.tell_to_stop(member);
            } else if let Some(group) = self.work.groups.pop_front() {
                self.look_at_group(group, now);
            } else if let Some(member) = self.work.starts.pop_front() {
                self.try_to_start(member);
            } else if let Some(group) = self.work.turns.pop_front() {
                while let Some(member) = self.next_turn(group) {
                    self.try_to_start(member);
                }
            } else {
                return;
            }
        }
    }

    fn forget_removed(&mut self) {
        let (done, left) = std::mem::take(&mut self.removals).into_iter().partition(|node| self.is_at_rest(*node));
        self.removals = left;
        let done: Vec<Node> = done;
        for node in done {
            self.forget_with_children(node);
        }
    }

    fn forget_with_children(&mut self, node: Node) {
        if self.role(node).is_none() {
            return; // forgotten with its group
        }
        if let Node::Group(group) = node {
            for child in self.children(group) {
                self.forget_with_children(child);
            }
        }
        self.forget(node);
        self.work.outputs.push(Output::Removed(node));
    }
}

/// What users ask for.
impl Groups {
    fn start(&mut self, node: Node) {
        if self.is_being_removed(node) {
            return;
        }
        self.revive(node);
        self.join_restart(node);
        if self.is_open(node) {
            self.begin(node);
        }
    }

    /// Makes all that a user, or an end, has put aside start again when its turn comes.
    fn revive(&mut self, node: Node) {
        if self.removals.contains(&node) {
            return;
        }
        match node {
            Node::Member(member) => self.set_state(member, |state, _| match state {
                State::Down(Down::New) | State::Waiting | State::Starting | State::Running { .. } => state,
                State::Down(Down::Stopped | Down::Over { .. } | Down::Lost) => State::Down(Down::New),
                State::Leaving { told, ready, .. } => State::Leaving { told, ready, then: Then::Start },
            }),
            Node::Group(id) => {
                let Some(group) = self.groups.get_mut(&id) else { return };
                match &mut group.phase {
                    Phase::Up | Phase::Restarting { .. } => {}
                    Phase::Rest(rest) | Phase::Ending { then: rest } => *rest = Rest::Idle,
                }
                self.work.touched.insert(node);
                for child in self.children(id) {
                    self.revive(child);
                }
            }
        }
    }

    /// One that is added while its group restarts starts in its place, not at once.
    pub(super) fn join_restart(&mut self, node: Node) {
        let is_at_rest = self.is_at_rest(node);
        let Some(parent) = self.parent(node) else { return };
        if let Some(Group { phase: Phase::Restarting { set, .. }, .. }) = self.groups.get_mut(&parent)
            && is_at_rest
        {
            set.insert(node);
        }
    }

    fn stop(&mut self, node: Node, then: Then) {
        match node {
            Node::Member(member) => self.take_down_member(member, then),
            Node::Group(group) => {
                let rest = match then {
                    Then::Stopped => Rest::Stopped,
                    Then::Start | Then::WithGroup => Rest::Idle,
                };
                self.end_group(group, rest);
            }
        }
    }
}

/// One member's life.
impl Groups {
    fn advance(&mut self, member: WorkerId, is_ready: bool) {
        self.set_state(member, |state, _| match state {
            State::Starting => State::Running { ready: is_ready },
            State::Running { ready } => State::Running { ready: ready || is_ready },
            State::Down(_) | State::Waiting | State::Leaving { .. } => state,
        });
        self.work.starts.extend(self.order.needed_by(member));
    }

    fn ended(&mut self, id: WorkerId, success: bool, verdict: Verdict, now: Instant) {
        let Some(member) = self.members.get_mut(&id) else { return };
        let is_temporary = member.role.lifetime == Lifetime::Temporary;
        let over = |was_ready| Down::Over { success, was_ready };
        let (down, own_end) = match member.state {
            // Reported twice.
            State::Down(_) | State::Waiting => return,
            State::Leaving { then, ready, .. } => match then {
                Then::WithGroup if is_temporary => (over(ready), None),
                Then::WithGroup | Then::Start => (Down::New, None),
                Then::Stopped => (Down::Stopped, None),
            },
            state @ (State::Starting | State::Running { .. }) => {
                let was_ready = state == State::Running { ready: true };
                match verdict {
                    Verdict::Postponed => (Down::New, None),
                    Verdict::Again if !is_temporary => (Down::New, Some(Down::New)),
                    Verdict::Again | Verdict::Finished => (over(was_ready), Some(over(was_ready))),
                    Verdict::GaveUp => (Down::Lost, Some(Down::Lost)),
                }
            }
        };
        self.set_state(id, |_, _| State::Down(down));
        let groups = self.groups_of(Node::Member(id));
        for group in &groups {
            if let Some(group) = self.groups.get_mut(group) {
                group.alive = group.alive.saturating_sub(1);
            }
        }
        self.work.stops.extend(self.order.reach([id], Towards::Needed).into_iter().rev());
        self.work.starts.extend(self.order.needed_by(id));
        if let Some(down) = own_end {
            self.after_own_end(Node::Member(id), down, now);
        } else if self.is_open(Node::Member(id)) {
            self.begin(Node::Member(id));
        }
        // From the innermost: what one of them has to say comes to the next.
        self.work.groups.extend(groups);
    }

    fn try_to_start(&mut self, id: WorkerId) {
        let Some(&Member { state: State::Waiting, .. }) = self.members.get(&id) else { return };
        let mut is_met = true;
        for &(on, condition) in self.order.after(id) {
            match self.outlook(on, condition) {
                Outlook::Met => {}
                Outlook::Pending => is_met = false,
                Outlook::Hopeless => {
                    self.work.outputs.push(Output::DependencyFailed { member: id, on });
                    self.work.starts.extend(self.order.needed_by(id));
                    self.set_state(id, |_, _| State::Down(Down::Lost));
                    self.after_lost_dependency(id);
                    return;
                }
            }
        }
        if !is_met || !self.takes_turn(id) {
            return;
        }
        self.set_state(id, |_, _| State::Starting);
        for group in self.groups_of(Node::Member(id)) {
            if let Some(group) = self.groups.get_mut(&group) {
                group.alive += 1;
            }
        }
        self.work.outputs.push(Output::Start(id));
    }

    pub(super) fn outlook(&self, on: WorkerId, condition: DependencyCondition) -> Outlook {
        let Some(on) = self.members.get(&on) else { return Outlook::Hopeless };
        match (on.state, condition) {
            (State::Running { .. }, DependencyCondition::Started)
            | (
                State::Running { ready: true } | State::Down(Down::Over { success: true, was_ready: true }),
                DependencyCondition::Ready,
            )
            | (
                State::Down(Down::Over { success: true, .. }),
                DependencyCondition::Started | DependencyCondition::Completed,
            ) => Outlook::Met,
            (State::Running { .. }, DependencyCondition::Ready | DependencyCondition::Completed)
            | (
                State::Waiting | State::Starting | State::Leaving { .. } | State::Down(Down::New | Down::Stopped),
                DependencyCondition::Started | DependencyCondition::Ready | DependencyCondition::Completed,
            ) => Outlook::Pending,
            (
                State::Down(Down::Over { .. } | Down::Lost),
                DependencyCondition::Started | DependencyCondition::Ready | DependencyCondition::Completed,
            ) => Outlook::Hopeless,
        }
    }

    fn tell_to_stop(&mut self, id: WorkerId) {
        let Some(&Member { state: State::Leaving { told: false, ready, then }, .. }) = self.members.get(&id) else {
            return;
        };
        let is_leaving = |member: &WorkerId| {
            self.members.get(member).is_some_and(|member| matches!(member.state, State::Leaving { .. }))
        };
        if !self.order.reach([id], Towards::Needing).iter().any(is_leaving) {
            self.set_state(id, |_, _| State::Leaving { told: true, ready, then });
            self.work.outputs.push(Output::Stop(id));
        }
    }

    pub(super) fn take_down_member(&mut self, id: WorkerId, then: Then) {
        self.set_state(id, |state, role| match (state, then) {
            (State::Starting, _) => State::Leaving { told: false, ready: false, then },
            (State::Running { ready }, _) => State::Leaving { told: false, ready, then },
            // What a user has asked for stands.
            (State::Leaving { then: Then::Stopped, .. } | State::Down(Down::Stopped), Then::WithGroup) => state,
            (State::Leaving { told, ready, .. }, _) => State::Leaving { told, ready, then },
            (State::Down(_) | State::Waiting, Then::Stopped) => State::Down(Down::Stopped),
            (State::Down(Down::Over { .. } | Down::Lost), Then::WithGroup) if role == Lifetime::Temporary => state,
            (State::Waiting, Then::WithGroup | Then::Start)
            | (State::Down(Down::Over { .. } | Down::Lost), Then::WithGroup) => State::Down(Down::New),
            (State::Down(_), Then::WithGroup | Then::Start) => state,
        });
        self.work.stops.push_back(id);
    }

    pub(super) fn set_state(&mut self, id: WorkerId, change: impl FnOnce(State, Lifetime) -> State) {
        let Some(member) = self.members.get_mut(&id) else { return };
        let before = member.state;
        member.state = change(before, member.role.lifetime);
        let after = member.state;
        self.work.touched.insert(Node::Member(id));
        if before == State::Waiting && after != State::Waiting {
            self.leave_turns(id);
        }
        if (before == State::Starting) != (after == State::Starting) {
            self.note_starting(id, after == State::Starting);
        }
    }
}
