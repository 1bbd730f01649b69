//! The state of all groups and members.

use super::{
    dependencies::DependencyGraph,
    model::{GroupSettings, NodeId, Role},
    transition::GroupOutput,
};
use crate::{
    ids::{GroupId, WorkerId},
    policy::restart::Restart,
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Instant,
};

#[derive(Debug)]
#[expect(clippy::struct_field_names, reason = "the groups of a type that is a tree of groups")]
pub(crate) struct Groups {
    pub(super) root: GroupId,
    pub(super) groups: BTreeMap<GroupId, Group>,
    pub(super) members: BTreeMap<WorkerId, Member>,
    pub(super) dependencies: DependencyGraph,
    pub(super) removals: Vec<NodeId>,
    pub(super) work: WorkQueue,
    pub(super) next_place: u64,
}

/// What one input has caused and is not decided yet.
#[derive(Debug, Default)]
pub(super) struct WorkQueue {
    pub(super) stops: VecDeque<WorkerId>,
    pub(super) groups: VecDeque<GroupId>,
    pub(super) starts: VecDeque<WorkerId>,
    /// Groups in which a start has succeeded or failed, so that later children may start.
    pub(super) turns: VecDeque<GroupId>,
    pub(super) outputs: Vec<GroupOutput>,
    /// Groups that have ended, the inner ones first.
    pub(super) ended: Vec<GroupId>,
    /// Nodes for which `is_finished` may have changed.
    pub(super) changed: BTreeSet<NodeId>,
}

#[derive(Debug)]
pub(super) struct Group {
    /// `None` for the root.
    pub(super) parent: Option<GroupId>,
    /// The key in `children` of the parent.
    pub(super) place: u64,
    pub(super) role: Role,
    pub(super) settings: GroupSettings,
    /// In the order of declaration.
    pub(super) children: BTreeMap<u64, NodeId>,
    pub(super) phase: GroupPhase,
    /// Members, including those of inner groups, that have a process or are about to.
    pub(super) active_members: usize,
    pub(super) restarts: VecDeque<Instant>,
    pub(super) start_order: StartOrder,
    /// The group was up since its end was last reported.
    pub(super) is_unreported: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum GroupPhase {
    Down(GroupDownReason),
    Up,
    /// `set` is being stopped, and is started when all of it is down. `pending` are those not seen down yet.
    Restarting {
        set: BTreeSet<NodeId>,
        pending: Vec<NodeId>,
    },
    Stopping {
        then: GroupDownReason,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GroupDownReason {
    /// It starts with its parent.
    Idle,
    /// A user has stopped it, and only a user starts it.
    Stopped,
    /// It has ended by itself.
    Ended { success: bool },
    /// It is temporary, and was stopped with its siblings.
    Retired,
}

#[derive(Debug)]
pub(super) struct Member {
    pub(super) group: GroupId,
    /// The key in `children` of the group.
    pub(super) place: u64,
    pub(super) role: Role,
    pub(super) state: MemberState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MemberState {
    Down(DownReason),
    /// It starts as soon as its dependencies and the start order allow it.
    Waiting,
    /// `Start` was returned, and its result is not known.
    Starting,
    Running {
        ready: bool,
    },
    /// `Stop` is returned (`is_sent`) when all its dependents are down.
    Stopping {
        is_sent: bool,
        ready: bool,
        then: AfterStop,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DownReason {
    /// It starts with its group.
    New,
    /// A user has stopped it, and only a user starts it. In OTP the restart of a sibling would.
    Stopped,
    /// It has ended for good.
    Ended { success: bool, was_ready: bool },
    /// It or a dependency has given up, or its group has ended for good.
    Failed,
}

/// What follows the stop of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AfterStop {
    /// It starts with its group, unless it is temporary.
    WithGroup,
    Stopped,
    Start,
}

impl MemberState {
    #[cfg(test)]
    pub(super) fn is_alive(self) -> bool {
        match self {
            Self::Starting | Self::Running { .. } | Self::Stopping { .. } => true,
            Self::Down(_) | Self::Waiting => false,
        }
    }
}

/// The state of ordered starts in one group.
#[derive(Debug, Default)]
pub(super) struct StartOrder {
    /// For each child by its place, how many members in it are being started.
    pub(super) starting: BTreeMap<u64, usize>,
    /// Members that wait for an earlier child, in the order of declaration.
    pub(super) waiting: BTreeMap<Path, WorkerId>,
}

/// The places from a child of a group down to a member.
pub(super) type Path = Vec<u64>;

impl Groups {
    /// Creates the outermost group, which is always up.
    pub(crate) fn new(root: GroupId, settings: GroupSettings) -> Self {
        let role = Role { restart: Restart::Never, significant: false };
        let group = Group { phase: GroupPhase::Up, is_unreported: true, ..Group::new(None, 0, role, settings) };
        Self {
            root,
            groups: BTreeMap::from([(root, group)]),
            members: BTreeMap::new(),
            dependencies: DependencyGraph::default(),
            removals: Vec::new(),
            work: WorkQueue::default(),
            next_place: 0,
        }
    }
}

/// Relations between nodes.
impl Groups {
    pub(super) fn parent(&self, node: NodeId) -> Option<GroupId> {
        match node {
            NodeId::Member(member) => self.members.get(&member).map(|member| member.group),
            NodeId::Group(group) => self.groups.get(&group).and_then(|group| group.parent),
        }
    }

    pub(super) fn role(&self, node: NodeId) -> Option<Role> {
        match node {
            NodeId::Member(member) => self.members.get(&member).map(|member| member.role),
            NodeId::Group(group) => self.groups.get(&group).map(|group| group.role),
        }
    }

    /// The groups around a node, from the innermost.
    pub(super) fn groups_of(&self, node: NodeId) -> Vec<GroupId> {
        std::iter::successors(self.parent(node), |group| self.parent(NodeId::Group(*group))).collect()
    }

    /// In the order of declaration.
    pub(super) fn children(&self, group: GroupId) -> Vec<NodeId> {
        self.groups.get(&group).map(|group| group.children.values().copied().collect()).unwrap_or_default()
    }

    pub(super) fn groups_under(&self, node: NodeId) -> Vec<GroupId> {
        match node {
            NodeId::Member(_) => Vec::new(),
            NodeId::Group(group) => {
                let inner = self.children(group).into_iter().flat_map(|child| self.groups_under(child));
                inner.chain([group]).collect()
            }
        }
    }

    pub(crate) fn members_under(&self, node: NodeId) -> Vec<WorkerId> {
        match node {
            NodeId::Member(member) => vec![member],
            NodeId::Group(group) => {
                self.children(group).into_iter().flat_map(|child| self.members_under(child)).collect()
            }
        }
    }

    pub(super) fn is_being_removed(&self, node: NodeId) -> bool {
        !self.removals.is_empty()
            && (self.removals.contains(&node)
                || self.groups_of(node).into_iter().any(|group| self.removals.contains(&NodeId::Group(group))))
    }

    pub(super) fn remove(&mut self, node: NodeId) {
        let place = match node {
            NodeId::Member(member) => {
                self.dependencies.remove(member);
                self.members.remove(&member).map(|member| (Some(member.group), member.place))
            }
            NodeId::Group(group) => self.groups.remove(&group).map(|group| (group.parent, group.place)),
        };
        if let Some((Some(parent), place)) = place
            && let Some(parent) = self.groups.get_mut(&parent)
        {
            parent.children.remove(&place);
        }
    }
}

impl Group {
    pub(super) fn new(parent: Option<GroupId>, place: u64, role: Role, settings: GroupSettings) -> Self {
        Self {
            parent,
            place,
            role,
            settings,
            children: BTreeMap::new(),
            phase: GroupPhase::Down(GroupDownReason::Idle),
            active_members: 0,
            restarts: VecDeque::new(),
            start_order: StartOrder::default(),
            is_unreported: false,
        }
    }
}
