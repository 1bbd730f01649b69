//! Handles one input to its end, and carries out the requests of users.
//!
//! An input changes the wanted state and queues the nodes that it may affect. `settle` then decides about one node after the
//! other, stops first, until the queues are empty. The cost of an input depends on the nodes that it affects, not on the number
//! of workers.

use super::{
    model::NodeId,
    state::{AfterStop, DownReason, Group, GroupDownReason, GroupPhase, Groups, MemberState},
    transition::{GroupInput, GroupOutput},
};
use std::time::Instant;

impl Groups {
    pub(crate) fn handle(&mut self, input: GroupInput, now: Instant) -> Vec<GroupOutput> {
        match input {
            GroupInput::Start(node) => self.start(node),
            GroupInput::Stop(node) => self.stop(node, AfterStop::Stopped),
            GroupInput::Restart(node) => {
                if !self.is_being_removed(node) {
                    self.stop(node, AfterStop::Start);
                    self.start(node);
                }
            }
            GroupInput::StopAll => {
                for child in self.children(self.root).into_iter().rev() {
                    self.stop(child, AfterStop::Stopped);
                }
            }
            GroupInput::Remove(node) => {
                if self.check_removal(node).is_ok() {
                    self.stop(node, AfterStop::Stopped);
                    self.removals.push(node);
                }
            }
            GroupInput::Started(member) => self.member_running(member, false),
            GroupInput::Ready(member) => self.member_running(member, true),
            GroupInput::Ended { member, success, decision } => self.member_ended(member, success, decision, now),
        }
        self.settle(now);
        self.report_ends();
        self.complete_removals();
        std::mem::take(&mut self.work.outputs)
    }

    fn settle(&mut self, now: Instant) {
        loop {
            if let Some(member) = self.work.stops.pop_front() {
                self.send_stop(member);
            } else if let Some(group) = self.work.groups.pop_front() {
                self.check_group(group, now);
            } else if let Some(member) = self.work.starts.pop_front() {
                self.try_to_start(member);
            } else if let Some(group) = self.work.turns.pop_front() {
                while let Some(member) = self.next_waiting(group) {
                    self.try_to_start(member);
                }
            } else {
                return;
            }
        }
    }

    fn complete_removals(&mut self) {
        let (done, left) = std::mem::take(&mut self.removals).into_iter().partition(|node| self.is_down(*node));
        self.removals = left;
        let done: Vec<NodeId> = done;
        for node in done {
            self.remove_with_children(node);
        }
    }

    fn remove_with_children(&mut self, node: NodeId) {
        if self.role(node).is_none() {
            return; // removed with its group
        }
        if let NodeId::Group(group) = node {
            for child in self.children(group) {
                self.remove_with_children(child);
            }
        }
        self.remove(node);
        self.work.outputs.push(GroupOutput::Removed(node));
    }
}

/// Requests of users.
impl Groups {
    fn start(&mut self, node: NodeId) {
        if self.is_being_removed(node) {
            return;
        }
        self.reset_for_start(node);
        self.join_restart(node);
        if self.is_open(node) {
            self.start_if_idle(node);
        }
    }

    /// Makes nodes that were stopped or have ended start with their group again.
    fn reset_for_start(&mut self, node: NodeId) {
        if self.removals.contains(&node) {
            return;
        }
        match node {
            NodeId::Member(member) => self.set_state(member, |state, _| match state {
                MemberState::Down(DownReason::New)
                | MemberState::Waiting
                | MemberState::Starting
                | MemberState::Running { .. } => state,
                MemberState::Down(DownReason::Stopped | DownReason::Ended { .. } | DownReason::Failed) => {
                    MemberState::Down(DownReason::New)
                }
                MemberState::Stopping { is_sent, ready, .. } => {
                    MemberState::Stopping { is_sent, ready, then: AfterStop::Start }
                }
            }),
            NodeId::Group(id) => {
                let Some(group) = self.groups.get_mut(&id) else { return };
                match &mut group.phase {
                    GroupPhase::Up | GroupPhase::Restarting { .. } => {}
                    GroupPhase::Down(reason) | GroupPhase::Stopping { then: reason } => *reason = GroupDownReason::Idle,
                }
                self.work.changed.insert(node);
                for child in self.children(id) {
                    self.reset_for_start(child);
                }
            }
        }
    }

    /// A node that is started while its group restarts starts with the group, not at once.
    pub(super) fn join_restart(&mut self, node: NodeId) {
        let is_down = self.is_down(node);
        let Some(parent) = self.parent(node) else { return };
        if let Some(Group { phase: GroupPhase::Restarting { set, .. }, .. }) = self.groups.get_mut(&parent)
            && is_down
        {
            set.insert(node);
        }
    }

    fn stop(&mut self, node: NodeId, then: AfterStop) {
        match node {
            NodeId::Member(member) => self.stop_member(member, then),
            NodeId::Group(group) => {
                let rest = match then {
                    AfterStop::Stopped => GroupDownReason::Stopped,
                    AfterStop::Start | AfterStop::WithGroup => GroupDownReason::Idle,
                };
                self.end_group(group, rest);
            }
        }
    }
}
