//! How groups, members and their dependencies are declared and removed.

use super::{
    error::GroupError,
    model::{AutoShutdown, DependencyCondition, GroupSettings, Lifetime, Node, Role},
    state::{Down, Group, Groups, Member, State},
};
use crate::ids::{GroupId, WorkerId};
use std::collections::BTreeSet;

/// What is declared. It may be at any time; nothing starts before `Input::Start` of it, or a start of its
/// group.
impl Groups {
    /// # Errors
    ///
    /// When its significance makes no sense, `parent` is not there, or `group` is.
    pub(crate) fn add_group(
        &mut self,
        group: GroupId,
        parent: GroupId,
        role: Role,
        settings: GroupSettings,
    ) -> Result<(), GroupError> {
        if self.groups.contains_key(&group) {
            return Err(GroupError::Taken(Node::Group(group)));
        }
        if let (Some(within), Some(limit)) = (settings.stop_within, self.stop_within(parent))
            && within > limit
        {
            return Err(GroupError::LongerEnd { within, outer: parent, limit });
        }
        let place = self.take_place(Node::Group(group), parent, role)?;
        self.groups.insert(group, Group::new(Some(parent), place, role, settings));
        Ok(())
    }

    /// # Errors
    ///
    /// As `add_group`.
    pub(crate) fn add_member(&mut self, member: WorkerId, group: GroupId, role: Role) -> Result<(), GroupError> {
        if self.members.contains_key(&member) {
            return Err(GroupError::Taken(Node::Member(member)));
        }
        let place = self.take_place(Node::Member(member), group, role)?;
        let state = State::Down(Down::New);
        self.members.insert(member, Member { group, place, role, state });
        Ok(())
    }

    /// Has a member start only when another, of any group, is as far as `condition` says. Running ones go on as they are.
    ///
    /// # Errors
    ///
    /// When they would wait for each other, or for ever.
    pub(crate) fn add_dependency(
        &mut self,
        member: WorkerId,
        on: WorkerId,
        condition: DependencyCondition,
    ) -> Result<(), GroupError> {
        self.known(Node::Member(member))?;
        self.known(Node::Member(on))?;
        let is_permanent = self.members.get(&on).is_some_and(|on| on.role.lifetime == Lifetime::Permanent);
        if is_permanent && condition == DependencyCondition::Completed {
            return Err(GroupError::NeverExits { member, on });
        }
        self.order.link(member, on, condition).map_err(|members| GroupError::Circle { members })
    }

    /// Whether `Input::Remove` of it would be heard.
    ///
    /// # Errors
    ///
    /// When somebody waits for it, or for one of its members.
    pub(crate) fn check_removal(&self, node: Node) -> Result<(), GroupError> {
        self.known(node)?;
        if node == Node::Group(self.root) {
            return Err(GroupError::Root);
        }
        let leaving: BTreeSet<_> = self.members_under(node).into_iter().collect();
        for &member in &leaving {
            let stays = |by: &WorkerId| !leaving.contains(by) && !self.is_being_removed(Node::Member(*by));
            if let Some(by) = self.order.needed_by(member).find(stays) {
                return Err(GroupError::StillNeeded { member, by });
            }
        }
        Ok(())
    }

    /// Whether `Input::Remove` of it, asked of `group`, concerns that group.
    ///
    /// # Errors
    ///
    /// When the member is in no group, or in one that is neither `group` nor within it.
    pub(crate) fn check_member(&self, member: WorkerId, group: GroupId) -> Result<(), GroupError> {
        let node = Node::Member(member);
        self.known(Node::Group(group))?;
        self.known(node)?;
        if self.groups_of(node).contains(&group) { Ok(()) } else { Err(GroupError::Elsewhere { member, group }) }
    }

    fn take_place(&mut self, node: Node, group: GroupId, role: Role) -> Result<u64, GroupError> {
        self.known(Node::Group(group))?;
        let Some(parent) = self.groups.get_mut(&group) else { return Err(GroupError::Unknown(Node::Group(group))) };
        if role.significant && role.lifetime == Lifetime::Permanent {
            return Err(GroupError::SignificantPermanent(node));
        }
        if role.significant && parent.settings.auto_shutdown == AutoShutdown::Never {
            return Err(GroupError::SignificantInVain { node, group });
        }
        let place = self.next_place;
        self.next_place += 1;
        parent.children.insert(place, node);
        Ok(place)
    }

    fn known(&self, node: Node) -> Result<(), GroupError> {
        let is_there = match node {
            Node::Member(member) => self.members.contains_key(&member),
            Node::Group(group) => self.groups.contains_key(&group),
        };
        if is_there && !self.is_being_removed(node) { Ok(()) } else { Err(GroupError::Unknown(node)) }
    }
}
