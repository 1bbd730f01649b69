//! Groups in groups and their members, and where each of them stands in its life.

use super::{
    dependencies::Order,
    model::{GroupSettings, Lifetime, Node, Role},
    transition::Output,
};
use crate::ids::{GroupId, WorkerId};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Instant,
};

/// Groups in groups and their members, and where each of them stands in its life.
#[derive(Debug)]
#[expect(clippy::struct_field_names, reason = "groups and members are the two words of this floor")]
pub(crate) struct Groups {
    pub(super) root: GroupId,
    pub(super) groups: BTreeMap<GroupId, Group>,
    pub(super) members: BTreeMap<WorkerId, Member>,
    pub(super) order: Order,
    pub(super) removals: Vec<Node>,
    pub(super) work: Work,
    pub(super) next_place: u64,
}

/// What one input has set going, and is not yet decided.
#[derive(Debug, Default)]
pub(super) struct Work {
    pub(super) stops: VecDeque<WorkerId>,
    pub(super) groups: VecDeque<GroupId>,
    pub(super) starts: VecDeque<WorkerId>,
    /// Groups in which a start has succeeded or failed: later children may follow.
    pub(super) turns: VecDeque<GroupId>,
    pub(super) outputs: Vec<Output>,
    /// Groups that have ended, the inner ones first.
    pub(super) ended: Vec<GroupId>,
    /// Nodes for which `is_over` may have changed.
    pub(super) touched: BTreeSet<Node>,
}

#[derive(Debug)]
pub(super) struct Group {
    /// None for the root.
    pub(super) parent: Option<GroupId>,
    pub(super) place: u64,
    pub(super) role: Role,
    pub(super) settings: GroupSettings,
    /// In the order of declaration.
    pub(super) children: BTreeMap<u64, Node>,
    pub(super) phase: Phase,
    /// How many members, also in groups within, have a process or are about to.
    pub(super) alive: usize,
    pub(super) restarts: VecDeque<Instant>,
    pub(super) turns: Turns,
    /// It has run since its end was reported last.
    pub(super) is_unreported: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Rest(Rest),
    Up,
    /// These are being stopped, to be started when none is left; `pending` are those not seen to be gone.
    Restarting {
        set: BTreeSet<Node>,
        pending: Vec<Node>,
    },
    Ending {
        then: Rest,
    },
}

/// How a group that does not run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rest {
    /// It starts with its parent.
    Idle,
    /// A user has stopped it, and only a user starts it.
    Stopped,
    /// It has ended by itself.
    Over { success: bool },
    /// It is temporary, and was ended with its siblings.
    Retired,
}

#[derive(Debug)]
pub(super) struct Member {
    pub(super) group: GroupId,
    pub(super) place: u64,
    pub(super) role: Role,
    pub(super) state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Down(Down),
    /// It is to start as soon as what it waits for is there.
    Waiting,
    /// To be started, but nothing has been heard of that.
    Starting,
    Running {
        ready: bool,
    },
    /// It is to end; `told` once those that need it are gone.
    Leaving {
        told: bool,
        ready: bool,
        then: Then,
    },
}

/// How a member without a process stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Down {
    /// It starts with its group.
    New,
    /// A user has stopped it, and only a user starts it. In OTP a sibling's restart would.
    Stopped,
    /// It has ended for good.
    Over { success: bool, was_ready: bool },
    /// It has given up, or what it waits for has, or its group has ended for good.
    Lost,
}

/// What becomes of a member that is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    WithGroup,
    Stopped,
    Start,
}

impl State {
    #[cfg(test)]
    pub(super) fn is_alive(self) -> bool {
        match self {
            Self::Starting | Self::Running { .. } | Self::Leaving { .. } => true,
            Self::Down(_) | Self::Waiting => false,
        }
    }
}

/// By the places of a group's children.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// How many members of each child are being started.
    pub(super) starting: BTreeMap<u64, usize>,
    /// Members that wait for an earlier child, in the order of declaration.
    pub(super) waiting: BTreeMap<Path, WorkerId>,
}

/// From a child of a group down to a member: of each the place in its group.
pub(super) type Path = Vec<u64>;

impl Groups {
    /// The outermost group, which is up from the beginning.
    pub(crate) fn new(root: GroupId, settings: GroupSettings) -> Self {
        let role = Role { lifetime: Lifetime::Temporary, significant: false };
        let group = Group { phase: Phase::Up, is_unreported: true, ..Group::new(None, 0, role, settings) };
        Self {
            root,
            groups: BTreeMap::from([(root, group)]),
            members: BTreeMap::new(),
            order: Order::default(),
            removals: Vec::new(),
            work: Work::default(),
            next_place: 0,
        }
    }
}

/// How they stand to each other.
impl Groups {
    pub(super) fn parent(&self, node: Node) -> Option<GroupId> {
        match node {
            Node::Member(member) => self.members.get(&member).map(|member| member.group),
            Node::Group(group) => self.groups.get(&group).and_then(|group| group.parent),
        }
    }

    pub(super) fn role(&self, node: Node) -> Option<Role> {
        match node {
            Node::Member(member) => self.members.get(&member).map(|member| member.role),
            Node::Group(group) => self.groups.get(&group).map(|group| group.role),
        }
    }

    /// The groups it is in, from the innermost.
    pub(super) fn groups_of(&self, node: Node) -> Vec<GroupId> {
        std::iter::successors(self.parent(node), |group| self.parent(Node::Group(*group))).collect()
    }

    /// In the order of declaration.
    pub(super) fn children(&self, group: GroupId) -> Vec<Node> {
        self.groups.get(&group).map(|group| group.children.values().copied().collect()).unwrap_or_default()
    }

    pub(super) fn groups_under(&self, node: Node) -> Vec<GroupId> {
        match node {
            Node::Member(_) => Vec::new(),
            Node::Group(group) => {
                let within = self.children(group).into_iter().flat_map(|child| self.groups_under(child));
                within.chain([group]).collect()
            }
        }
    }

    pub(crate) fn members_under(&self, node: Node) -> Vec<WorkerId> {
        match node {
            Node::Member(member) => vec![member],
            Node::Group(group) => {
                self.children(group).into_iter().flat_map(|child| self.members_under(child)).collect()
            }
        }
    }

    pub(super) fn is_being_removed(&self, node: Node) -> bool {
        !self.removals.is_empty()
            && (self.removals.contains(&node)
                || self.groups_of(node).into_iter().any(|group| self.removals.contains(&Node::Group(group))))
    }

    pub(super) fn forget(&mut self, node: Node) {
        let place = match node {
            Node::Member(member) => {
                self.order.forget(member);
                self.members.remove(&member).map(|member| (Some(member.group), member.place))
            }
            Node::Group(group) => self.groups.remove(&group).map(|group| (group.parent, group.place)),
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
            phase: Phase::Rest(Rest::Idle),
            alive: 0,
            restarts: VecDeque::new(),
            turns: Turns::default(),
            is_unreported: false,
        }
    }
}
