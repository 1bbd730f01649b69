//! Workers that belong together: groups in groups, who starts after whom, who is restarted with whom.
//!
//! Here stands what is declared; `members` and `strategy` decide. A group is a member of its parent group in all that follows: it can be
//! restarted, be significant, and fail. The words and the rules are OTP's, except where a comment says otherwise.
mod dependencies;
pub(crate) mod error;
pub(crate) mod members;
mod start_order;
mod strategy;

#[cfg(test)]
mod end_examples;
#[cfg(test)]
mod examples;
#[cfg(test)]
mod otp_model;
#[cfg(test)]
mod simulation;

use self::{
    dependencies::{Order, Towards},
    error::GroupError,
    members::Output,
    start_order::Turns,
};
use crate::ids::{GroupId, WorkerId};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

/// Who is restarted when one of a group is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Strategy {
    /// It alone. Members do not wait for each other's starts.
    #[default]
    OneForOne,
    /// All of them: the others are stopped, and when all are gone all are started, in the order of declaration.
    OneForAll,
    /// It, and those that were declared after it or wait for it, in the order of declaration.
    RestForOne,
}

/// Whether a group ends by itself when its significant members have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum AutoShutdown {
    /// It does not.
    #[default]
    Never,
    /// When one of them has ended.
    AnySignificant,
    /// When the last of them has ended.
    AllSignificant,
}

/// What a worker waits for before it starts, for [`WorkerSpec::depends_on`](crate::WorkerSpec::depends_on).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DependencyCondition {
    /// The other worker is running, or has run and completed successfully.
    #[doc(alias = "service_started")]
    Started,
    /// The other worker is ready, or was ready and completed successfully.
    #[doc(alias = "service_healthy")]
    Ready,
    /// The other worker has completed successfully.
    #[doc(alias = "service_completed_successfully")]
    Completed,
}

/// What a group consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Node {
    Member(WorkerId),
    Group(GroupId),
}

/// When one is started again. For a worker this is its restart policy, and each end of it comes with a verdict; for a group,
/// giving up is failure and an automatic shutdown is success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lifetime {
    /// Never, also not with its siblings; only when a user says so.
    Temporary,
    /// After a failure, and with its siblings.
    Transient,
    /// Always.
    Permanent,
}

/// What one is to the group it is in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Role {
    pub(crate) lifetime: Lifetime,
    pub(crate) significant: bool,
}

/// How many restarts of its children a group bears, as in OTP: of workers and of groups, alone or with siblings. With one more
/// it gives up. It costs 16 bytes for each restart it allows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GroupIntensity {
    pub(crate) restarts: u32,
    pub(crate) period: Duration,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct GroupSettings {
    pub(crate) strategy: Strategy,
    pub(crate) auto_shutdown: AutoShutdown,
    /// `None` for no limit: then only the backoff of the workers bounds the restarts.
    pub(crate) intensity: Option<GroupIntensity>,
    /// From the beginning of its end; whoever is left then is killed.
    pub(crate) stop_within: Option<Duration>,
}

/// Why a group does not run, and will not unless a user starts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Stopped,
    ShutDown,
    GaveUp,
    /// The group around it has ended, or was restarted without it.
    WithParent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activity {
    Running,
    Restarting,
    Stopping,
    /// It starts with the group around it.
    Waiting,
    Over(End),
}

/// A group at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Survey {
    pub(crate) activity: Activity,
    pub(crate) restarts: usize,
    pub(crate) children: Vec<Node>,
}

/// Groups in groups and their members, and where each of them stands in its life.
#[derive(Debug)]
#[expect(clippy::struct_field_names, reason = "groups and members are the two words of this floor")]
pub(crate) struct Groups {
    root: GroupId,
    groups: BTreeMap<GroupId, Group>,
    members: BTreeMap<WorkerId, Member>,
    order: Order,
    removals: Vec<Node>,
    work: Work,
    next_place: u64,
}

/// What one input has set going, and is not yet decided.
#[derive(Debug, Default)]
struct Work {
    stops: VecDeque<WorkerId>,
    groups: VecDeque<GroupId>,
    starts: VecDeque<WorkerId>,
    /// Groups in which a start has succeeded or failed: later children may follow.
    turns: VecDeque<GroupId>,
    outputs: Vec<Output>,
    /// Groups that have ended, the inner ones first.
    ended: Vec<GroupId>,
    /// Nodes for which `is_over` may have changed.
    touched: BTreeSet<Node>,
}

#[derive(Debug)]
struct Group {
    /// None for the root.
    parent: Option<GroupId>,
    place: u64,
    role: Role,
    settings: GroupSettings,
    /// In the order of declaration.
    children: BTreeMap<u64, Node>,
    phase: Phase,
    /// How many members, also in groups within, have a process or are about to.
    alive: usize,
    restarts: VecDeque<Instant>,
    turns: Turns,
    /// It has run since its end was reported last.
    is_unreported: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Phase {
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
enum Rest {
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
struct Member {
    group: GroupId,
    place: u64,
    role: Role,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
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
enum Down {
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
enum Then {
    WithGroup,
    Stopped,
    Start,
}

impl State {
    #[cfg(test)]
    fn is_alive(self) -> bool {
        match self {
            Self::Starting | Self::Running { .. } | Self::Leaving { .. } => true,
            Self::Down(_) | Self::Waiting => false,
        }
    }
}

/// What is declared. It may be at any time; nothing starts before `Input::Start` of it, or a start of its
/// group.
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

    pub(crate) fn intensity(&self, group: GroupId) -> Option<GroupIntensity> {
        self.groups.get(&group).and_then(|group| group.settings.intensity)
    }

    /// Whether only the start of a group lets the member run.
    pub(crate) fn is_group_over(&self, member: WorkerId) -> bool {
        self.is_within_over(Node::Member(member))
    }

    /// Whether it has been asked to end, so that its end is not its own.
    pub(crate) fn is_leaving(&self, member: WorkerId) -> bool {
        self.members.get(&member).is_some_and(|member| matches!(member.state, State::Leaving { .. }))
    }

    /// How long the end of what is in this group may take, as it and those around it say.
    pub(crate) fn stop_within(&self, group: GroupId) -> Option<Duration> {
        let around = self.groups_of(Node::Group(group));
        let settings = [group].into_iter().chain(around).filter_map(|group| self.groups.get(&group));
        settings.filter_map(|group| group.settings.stop_within).min()
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

    /// The nodes for which [`is_over`](Self::is_over) may have changed since the last call.
    pub(crate) fn take_touched(&mut self) -> BTreeSet<Node> {
        std::mem::take(&mut self.work.touched)
    }

    /// Whether it has ended, and nothing that is under way starts it again: only a user, or in a group that takes siblings along
    /// the end of a sibling. What starts with its group is not over before its group is, and a group that is being restarted, or
    /// whose failure the group around it has yet to answer, is not over.
    pub(crate) fn is_over(&self, node: Node) -> bool {
        match node {
            Node::Member(member) => match self.members.get(&member).map(|member| member.state) {
                Some(State::Down(Down::Stopped | Down::Over { .. } | Down::Lost)) | None => true,
                Some(State::Down(Down::New)) => self.is_within_over(node),
                Some(State::Waiting | State::Starting | State::Running { .. } | State::Leaving { .. }) => false,
            },
            Node::Group(group) => match self.groups.get(&group).map(|group| &group.phase) {
                Some(Phase::Rest(Rest::Stopped | Rest::Over { .. } | Rest::Retired)) | None => true,
                Some(Phase::Rest(Rest::Idle)) => self.is_within_over(node),
                Some(Phase::Up | Phase::Restarting { .. } | Phase::Ending { .. }) => false,
            },
        }
    }

    fn is_within_over(&self, node: Node) -> bool {
        self.parent(node).is_some_and(|parent| self.is_over(Node::Group(parent)))
    }

    /// Whether the failure of this member, by which its group gives up, can be answered by a restart of the group.
    pub(crate) fn may_return(&self, member: WorkerId) -> bool {
        let lives = |node| self.role(node).is_some_and(|role| role.lifetime != Lifetime::Temporary);
        let node = Node::Member(member);
        lives(node) && self.parent(node).is_some_and(|group| lives(Node::Group(group)))
    }

    /// What a group does, the number of its restarts within its period, and its groups in the order of declaration.
    pub(crate) fn survey(&self, group: GroupId) -> Option<Survey> {
        let found = self.groups.get(&group)?;
        let activity = match &found.phase {
            Phase::Up => Activity::Running,
            Phase::Restarting { .. } => Activity::Restarting,
            Phase::Ending { .. } => Activity::Stopping,
            Phase::Rest(_) if !self.is_over(Node::Group(group)) => Activity::Waiting,
            Phase::Rest(Rest::Stopped) => Activity::Over(End::Stopped),
            Phase::Rest(Rest::Over { success: true }) => Activity::Over(End::ShutDown),
            Phase::Rest(Rest::Over { success: false }) => Activity::Over(End::GaveUp),
            Phase::Rest(Rest::Idle | Rest::Retired) => Activity::Over(End::WithParent),
        };
        Some(Survey { activity, restarts: found.restarts.len(), children: self.children(group) })
    }

    /// Whether it has no process and none is about to start: an `Input::Stop` of it would find nothing to do.
    pub(crate) fn is_at_rest(&self, node: Node) -> bool {
        match node {
            Node::Member(member) => {
                self.members.get(&member).is_none_or(|member| matches!(member.state, State::Down(_)))
            }
            Node::Group(group) => self.groups.get(&group).is_none_or(|group| matches!(group.phase, Phase::Rest(_))),
        }
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

/// How they stand to each other.
impl Groups {
    fn parent(&self, node: Node) -> Option<GroupId> {
        match node {
            Node::Member(member) => self.members.get(&member).map(|member| member.group),
            Node::Group(group) => self.groups.get(&group).and_then(|group| group.parent),
        }
    }

    fn role(&self, node: Node) -> Option<Role> {
        match node {
            Node::Member(member) => self.members.get(&member).map(|member| member.role),
            Node::Group(group) => self.groups.get(&group).map(|group| group.role),
        }
    }

    /// The groups it is in, from the innermost.
    fn groups_of(&self, node: Node) -> Vec<GroupId> {
        std::iter::successors(self.parent(node), |group| self.parent(Node::Group(*group))).collect()
    }

    /// In the order of declaration.
    fn children(&self, group: GroupId) -> Vec<Node> {
        self.groups.get(&group).map(|group| group.children.values().copied().collect()).unwrap_or_default()
    }

    fn groups_under(&self, node: Node) -> Vec<GroupId> {
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

    fn is_being_removed(&self, node: Node) -> bool {
        !self.removals.is_empty()
            && (self.removals.contains(&node)
                || self.groups_of(node).into_iter().any(|group| self.removals.contains(&Node::Group(group))))
    }

    /// Whom a rest-for-one restart takes along: the one that is to be restarted, those declared after it, and whoever waits
    /// for one of these; but nobody for whom it waits itself.
    fn rest(&self, group: GroupId, cause: Node) -> BTreeSet<Node> {
        let before = self.lift(group, &self.order.reach(self.members_under(cause), Towards::Needed));
        let after = self.children(group).into_iter().skip_while(|child| *child != cause);
        let mut set: BTreeSet<_> = after.filter(|child| *child == cause || !before.contains(child)).collect();
        let members = set.iter().flat_map(|child| self.members_under(*child));
        let needing = self.lift(group, &self.order.reach(members, Towards::Needing));
        set.extend(needing.difference(&before));
        set
    }

    /// The children of a group in which these members are.
    fn lift(&self, group: GroupId, members: &BTreeSet<WorkerId>) -> BTreeSet<Node> {
        let child = |member: &WorkerId| {
            let up = |node: &Node| self.parent(*node).map(Node::Group);
            std::iter::successors(Some(Node::Member(*member)), up).find(|node| self.parent(*node) == Some(group))
        };
        members.iter().filter_map(child).collect()
    }

    fn forget(&mut self, node: Node) {
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
    fn new(parent: Option<GroupId>, place: u64, role: Role, settings: GroupSettings) -> Self {
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
