//! How groups stand: what the loop and the handles know together, and what a user is shown.

use crate::{
    ids::GroupId,
    policy::group::model::GroupOutcome,
    supervisor::{clock::now, sync::lock, worker::status::WorkerStatus},
};
use serde::Serialize;
use std::{
    fmt,
    sync::{Condvar, Mutex, PoisonError},
    time::Duration,
};

/// Why a [`WorkerGroup`](crate::supervisor::handles::group::WorkerGroup) does not run, and will not unless it is started: from
/// [`WorkerGroup::wait`](crate::supervisor::handles::group::WorkerGroup::wait).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum GroupEndReason {
    /// By a call: of [`WorkerGroup::stop`](crate::supervisor::handles::group::WorkerGroup::stop), or for all workers.
    Stopped,
    /// By its [`AutoShutdown`](crate::AutoShutdown).
    ShutDown,
    /// Its intensity was exceeded, or a member that it cannot do without gave up.
    GaveUp,
    /// The group around it has ended, or was restarted without it, since its own [`Restart`](crate::Restart) is `Never`.
    WithParent,
    /// It was [removed](crate::supervisor::handles::group::WorkerGroup::remove_all), alone or with the group around it.
    Removed,
    /// The supervisor has ended.
    SupervisorGone,
}

impl fmt::Display for GroupEndReason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Stopped => "stopped",
            Self::ShutDown => "shut down after the end of its significant members",
            Self::GaveUp => "gave up",
            Self::WithParent => "ended with the group around it",
            Self::Removed => "removed",
            Self::SupervisorGone => "the supervisor has ended",
        })
    }
}

impl From<GroupOutcome> for GroupEndReason {
    fn from(outcome: GroupOutcome) -> Self {
        match outcome {
            GroupOutcome::Stopped => Self::Stopped,
            GroupOutcome::ShutDown => Self::ShutDown,
            GroupOutcome::GaveUp => Self::GaveUp,
            GroupOutcome::WithParent => Self::WithParent,
        }
    }
}

/// What a group is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum GroupState {
    /// It runs; single members may have ended.
    Running,
    /// Members are being stopped, and start again when all of them are gone.
    Restarting,
    /// All of it is being stopped.
    Stopping,
    /// It starts when the group around it does.
    Waiting,
    /// It does not run, and will not unless it is started.
    Ended(GroupEndReason),
}

/// A snapshot of a group: from [`WorkerGroup::status`](crate::supervisor::handles::group::WorkerGroup::status), and good for printing as JSON.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct GroupStatus {
    /// Its name in events.
    pub group: GroupId,
    /// What it is doing.
    pub state: GroupState,
    /// How many restarts count against its [intensity](crate::supervisor::spec::group::GroupPolicy::intensity), as of its last restart.
    pub restarts: usize,
    /// Its own members, in the order of declaration.
    pub members: Vec<WorkerStatus>,
    /// The groups within it, in the order of declaration.
    pub groups: Vec<Self>,
}

/// What the handles and the loop know together of a group.
#[derive(Debug)]
pub(crate) struct SharedGroup {
    pub(crate) id: GroupId,
    end: Mutex<Option<GroupEndReason>>,
    changed: Condvar,
}

impl SharedGroup {
    pub(crate) fn new(id: GroupId) -> Self {
        Self { id, end: Mutex::new(None), changed: Condvar::new() }
    }

    /// It has ended for good, or runs again.
    pub(crate) fn set_end(&self, end: Option<GroupEndReason>) {
        *lock(&self.end) = end;
        self.changed.notify_all();
    }

    /// As `set_end`, unless it has ended already.
    pub(crate) fn end_at_last(&self, end: GroupEndReason) {
        lock(&self.end).get_or_insert(end);
        self.changed.notify_all();
    }

    /// Waits until it has ended for good, at most so long.
    pub(crate) fn wait(&self, timeout: Duration) -> Option<GroupEndReason> {
        // A timeout beyond the end of the clock is for ever.
        let deadline = now().checked_add(timeout);
        let mut end = lock(&self.end);
        loop {
            let left = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(now()));
            if end.is_some() || left.is_zero() {
                return *end;
            }
            end = self.changed.wait_timeout(end, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
