//! One member's life: when it may start, and when it has to stop.

use super::{
    dependencies::Towards,
    model::{DependencyCondition, Lifetime, Node},
    state::{Down, Groups, Member, State, Then},
    transition::{Output, Verdict},
};
use crate::ids::WorkerId;
use std::time::Instant;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outlook {
    Met,
    Pending,
    Hopeless,
}

/// One member's life.
impl Groups {
    pub(super) fn advance(&mut self, member: WorkerId, is_ready: bool) {
        self.set_state(member, |state, _| match state {
            State::Starting => State::Running { ready: is_ready },
            State::Running { ready } => State::Running { ready: ready || is_ready },
            State::Down(_) | State::Waiting | State::Leaving { .. } => state,
        });
        self.work.starts.extend(self.order.needed_by(member));
    }

    pub(super) fn ended(&mut self, id: WorkerId, success: bool, verdict: Verdict, now: Instant) {
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

    pub(super) fn try_to_start(&mut self, id: WorkerId) {
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

    pub(super) fn tell_to_stop(&mut self, id: WorkerId) {
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
