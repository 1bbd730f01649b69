//! What is told about the members of groups, and each member's life: when it may start, and when it has to stop.
//!
//! An input changes what is wanted and queues whoever may be concerned; `settle` then decides for one after the other, stops
//! first, until nothing is left. So no input costs more than what it concerns, however many idle workers there are.

use super::{
    model::Node,
    state::{Down, Group, Groups, Phase, Rest, State, Then},
    transition::{Input, Output},
};
use std::time::Instant;

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
