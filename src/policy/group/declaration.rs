//! How groups, members and their dependencies are declared and removed.

use super::{
    error::DeclarationError,
    model::{AutoShutdown, DependencyCondition, GroupSettings, NodeId, Role},
    state::{DownReason, Group, Groups, Member, MemberState},
};
use crate::ids::{GroupId, WorkerId};
use crate::policy::restart::Restart;
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
    ) -> Result<(), DeclarationError> {
        if self.groups.contains_key(&group) {
            return Err(DeclarationError::AlreadyExists(NodeId::Group(group)));
        }
        if let (Some(timeout), Some(limit)) = (settings.stop_timeout, self.stop_timeout(parent))
            && timeout > limit
        {
            return Err(DeclarationError::ExceedsParentTimeout { timeout, outer: parent, limit });
        }
        let place = self.take_place(NodeId::Group(group), parent, role)?;
        self.groups.insert(group, Group::new(Some(parent), place, role, settings));
        Ok(())
    }

    /// # Errors
    ///
    /// As `add_group`.
    pub(crate) fn add_member(&mut self, member: WorkerId, group: GroupId, role: Role) -> Result<(), DeclarationError> {
        if self.members.contains_key(&member) {
            return Err(DeclarationError::AlreadyExists(NodeId::Member(member)));
        }
        let place = self.take_place(NodeId::Member(member), group, role)?;
        let state = MemberState::Down(DownReason::New);
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
    ) -> Result<(), DeclarationError> {
        self.known(NodeId::Member(member))?;
        self.known(NodeId::Member(on))?;
        let is_permanent = self.members.get(&on).is_some_and(|on| on.role.restart == Restart::Always);
        if is_permanent && condition == DependencyCondition::Completed {
            return Err(DeclarationError::NeverCompletes { member, on });
        }
        self.dependencies.link(member, on, condition).map_err(|members| DeclarationError::Cycle { members })
    }

    /// Whether `Input::Remove` of it would be heard.
    ///
    /// # Errors
    ///
    /// When somebody waits for it, or for one of its members.
    pub(crate) fn check_removal(&self, node: NodeId) -> Result<(), DeclarationError> {
        self.known(node)?;
        if node == NodeId::Group(self.root) {
            return Err(DeclarationError::RootGroup);
        }
        let leaving: BTreeSet<_> = self.members_under(node).into_iter().collect();
        for &member in &leaving {
            let stays = |by: &WorkerId| !leaving.contains(by) && !self.is_being_removed(NodeId::Member(*by));
            if let Some(by) = self.dependencies.dependents_of(member).find(stays) {
                return Err(DeclarationError::HasDependents { member, by });
            }
        }
        Ok(())
    }

    /// Whether `Input::Remove` of it, asked of `group`, concerns that group.
    ///
    /// # Errors
    ///
    /// When the member is in no group, or in one that is neither `group` nor within it.
    pub(crate) fn check_member(&self, member: WorkerId, group: GroupId) -> Result<(), DeclarationError> {
        let node = NodeId::Member(member);
        self.known(NodeId::Group(group))?;
        self.known(node)?;
        if self.groups_of(node).contains(&group) { Ok(()) } else { Err(DeclarationError::NotInGroup { member, group }) }
    }

    fn take_place(&mut self, node: NodeId, group: GroupId, role: Role) -> Result<u64, DeclarationError> {
        self.known(NodeId::Group(group))?;
        let Some(parent) = self.groups.get_mut(&group) else {
            return Err(DeclarationError::Unknown(NodeId::Group(group)));
        };
        if role.significant && role.restart == Restart::Always {
            return Err(DeclarationError::SignificantPermanent(node));
        }
        if role.significant && parent.settings.auto_shutdown == AutoShutdown::Never {
            return Err(DeclarationError::SignificantWithoutShutdown { node, group });
        }
        let place = self.next_place;
        self.next_place += 1;
        parent.children.insert(place, node);
        Ok(place)
    }

    fn known(&self, node: NodeId) -> Result<(), DeclarationError> {
        let is_there = match node {
            NodeId::Member(member) => self.members.contains_key(&member),
            NodeId::Group(group) => self.groups.contains_key(&group),
        };
        if is_there && !self.is_being_removed(node) { Ok(()) } else { Err(DeclarationError::Unknown(node)) }
    }
}
