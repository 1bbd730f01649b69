//! What is declared of groups and their members, and how they are named.

use crate::ids::{GroupId, WorkerId};
use std::{fmt, time::Duration};

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

impl fmt::Display for Node {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Member(member) => write!(formatter, "worker {member}"),
            Self::Group(group) => group.fmt(formatter),
        }
    }
}
