//! What users declare about groups and their members, and what they can ask about them.

use crate::{
    ids::{GroupId, WorkerId},
    policy::restart::{Restart, RestartIntensity},
};
use std::{fmt, time::Duration};

/// Which members of a group are restarted when one of them has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Strategy {
    /// Only that member. Members do not wait for each other's starts.
    #[default]
    OneForOne,
    /// All members: the others are stopped, and once all have ended, all are started in the order of declaration.
    OneForAll,
    /// That member, the members declared after it, and the members that depend on one of these, in the order of declaration.
    RestForOne,
}

/// Whether a group stops by itself when its significant members have ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum AutoShutdown {
    /// It does not.
    #[default]
    Never,
    /// It stops when one significant member has ended.
    AnySignificant,
    /// It stops when all significant members have ended.
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

/// A child of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum NodeId {
    Member(WorkerId),
    Group(GroupId),
}

impl fmt::Display for NodeId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Member(member) => write!(formatter, "worker {member}"),
            Self::Group(group) => group.fmt(formatter),
        }
    }
}

/// What a node is in its parent group.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Role {
    /// With `Never` the node is temporary: it is not restarted with its siblings either. For a worker the decision after each exit
    /// is that of its own policy. For a group, giving up is a failure and an automatic shutdown is a success.
    pub(crate) restart: Restart,
    pub(crate) significant: bool,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct GroupSettings {
    pub(crate) strategy: Strategy,
    pub(crate) auto_shutdown: AutoShutdown,
    /// The restarts of all children count, whatever caused them. Each restart that is allowed costs 16 bytes. `None` for no limit:
    /// then only the backoff of the workers bounds the restarts.
    pub(crate) intensity: Option<RestartIntensity>,
    /// From the begin of the stop; members that are left then are killed.
    pub(crate) stop_timeout: Option<Duration>,
}

/// Why a group is down and stays down until a user starts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GroupOutcome {
    Stopped,
    ShutDown,
    GaveUp,
    /// Its parent group has ended, or was restarted without it.
    WithParent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GroupActivity {
    Running,
    Restarting,
    Stopping,
    /// It starts with its parent group.
    Waiting,
    Down(GroupOutcome),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GroupSnapshot {
    pub(crate) activity: GroupActivity,
    pub(crate) restarts: usize,
    /// In the order of declaration.
    pub(crate) children: Vec<NodeId>,
}
