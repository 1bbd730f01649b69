//! Declares and removes groups, members and dependencies.

use super::{
    error::DeclarationError,
    model::{AutoShutdown, DependencyCondition, GroupSettings, NodeId, Role},
    state::{DownReason, Group, Groups, Member, MemberState},
};
use crate::{
    ids::{GroupId, WorkerId},
    policy::restart::Restart,
};
use std::collections::BTreeSet;

/// Declarations are accepted at any time. Nothing starts before `GroupInput::Start` of the node or of a group around it.
impl Groups {
    /// # Errors
    ///
    /// If `group` exists, `parent` does not, or the role or the settings do not fit the parent.
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
    /// See `add_group`.
    pub(crate) fn add_member(&mut self, member: WorkerId, group: GroupId, role: Role) -> Result<(), DeclarationError> {
        if self.members.contains_key(&member) {
            return Err(DeclarationError::AlreadyExists(NodeId::Member(member)));
        }
        let place = self.take_place(NodeId::Member(member), group, role)?;
        let state = MemberState::Down(DownReason::New);
        self.members.insert(member, Member { group, place, role, state });
        Ok(())
    }

    /// Lets `member` start only once `on`, a member of any group, meets `condition`. Replaces an earlier condition on the same
    /// member. Running members are not affected.
    ///
    /// # Errors
    ///
    /// If this closes a cycle, or if the condition can never be met.
    pub(crate) fn add_dependency(
        &mut self,
        member: WorkerId,
        on: WorkerId,
        condition: DependencyCondition,
    ) -> Result<(), DeclarationError> {
        self.check_exists(NodeId::Member(member))?;
        self.check_exists(NodeId::Member(on))?;
        let is_permanent = self.members.get(&on).is_some_and(|on| on.role.restart == Restart::Always);
        if is_permanent && condition == DependencyCondition::Completed {
            return Err(DeclarationError::NeverCompletes { member, on });
        }
        self.dependencies.add(member, on, condition).map_err(|members| DeclarationError::Cycle { members })
    }

    /// Checks that `GroupInput::Remove` of this node would be carried out.
    ///
    /// # Errors
    ///
    /// If a member outside of it depends on it, or on one of its members.
    pub(crate) fn check_removal(&self, node: NodeId) -> Result<(), DeclarationError> {
        self.check_exists(node)?;
        if node == NodeId::Group(self.root) {
            return Err(DeclarationError::RootGroup);
        }
        let removed: BTreeSet<_> = self.members_under(node).into_iter().collect();
        for &member in &removed {
            let stays = |by: &WorkerId| !removed.contains(by) && !self.is_being_removed(NodeId::Member(*by));
            if let Some(by) = self.dependencies.dependents_of(member).find(stays) {
                return Err(DeclarationError::HasDependents { member, by });
            }
        }
        Ok(())
    }

    /// Checks that a member belongs to `group` or to a group within it.
    ///
    /// # Errors
    ///
    /// If it does not, or if one of the two does not exist.
    pub(crate) fn check_member(&self, member: WorkerId, group: GroupId) -> Result<(), DeclarationError> {
        let node = NodeId::Member(member);
        self.check_exists(NodeId::Group(group))?;
        self.check_exists(node)?;
        if self.groups_of(node).contains(&group) { Ok(()) } else { Err(DeclarationError::NotInGroup { member, group }) }
    }

    fn take_place(&mut self, node: NodeId, group: GroupId, role: Role) -> Result<u64, DeclarationError> {
        self.check_exists(NodeId::Group(group))?;
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

    fn check_exists(&self, node: NodeId) -> Result<(), DeclarationError> {
        let exists = match node {
            NodeId::Member(member) => self.members.contains_key(&member),
            NodeId::Group(group) => self.groups.contains_key(&group),
        };
        if exists && !self.is_being_removed(node) { Ok(()) } else { Err(DeclarationError::Unknown(node)) }
    }
}
