//! The state of groups, shared by the event loop and the handles.

#[cfg(feature = "async")]
use crate::supervisor::wakers::WakerSet;
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
#[cfg(feature = "async")]
use std::{future::poll_fn, sync::Arc, task::Poll};

/// Why a [`WorkerGroup`](crate::supervisor::handles::group::WorkerGroup) does not run, and will not unless it is started: from
/// [`WorkerGroup::wait`](crate::supervisor::handles::group::WorkerGroup::wait).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum GroupEndReason {
    /// It was stopped by [`WorkerGroup::stop`](crate::supervisor::handles::group::WorkerGroup::stop), or with all workers.
    Stopped,
    /// Its [`AutoShutdown`](crate::AutoShutdown) ended it.
    ShutDown,
    /// It exceeded its restart intensity, or a member gave up that it cannot do without.
    GaveUp,
    /// Its parent group has ended, or was restarted without it, since its own [`Restart`](crate::Restart) is `Never`.
    WithParent,
    /// It was [removed](crate::supervisor::handles::group::WorkerGroup::remove_all), by itself or with its parent group.
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

/// The state of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum GroupState {
    /// The group runs; single members may have ended.
    Running,
    /// Members are being stopped, and start again when all of them have ended.
    Restarting,
    /// The group is being stopped.
    Stopping,
    /// It starts with its parent group.
    Waiting,
    /// The group has ended, and does not run unless it is started.
    Ended(GroupEndReason),
}

/// A snapshot of a group, from [`WorkerGroup::status`](crate::supervisor::handles::group::WorkerGroup::status). It serializes to JSON.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct GroupStatus {
    /// The id that names it in events.
    pub group: GroupId,
    /// Its state.
    pub state: GroupState,
    /// The number of restarts that count against its [intensity](crate::supervisor::spec::group::GroupPolicy::intensity), as of its last
    /// restart.
    pub restarts: usize,
    /// Its own members, in the order in which they were added.
    pub members: Vec<WorkerStatus>,
    /// The groups in it, in the order in which they were added.
    pub groups: Vec<Self>,
}

/// The state of a group that its handles and the event loop share.
#[derive(Debug)]
pub(crate) struct SharedGroup {
    pub(crate) id: GroupId,
    end: Mutex<Option<GroupEndReason>>,
    changed: Condvar,
    /// The tasks that wait as threads do for `changed`.
    #[cfg(feature = "async")]
    tasks: Arc<WakerSet>,
}

impl SharedGroup {
    pub(crate) fn new(id: GroupId) -> Self {
        Self {
            id,
            end: Mutex::new(None),
            changed: Condvar::new(),
            #[cfg(feature = "async")]
            tasks: Arc::default(),
        }
    }

    /// Sets or clears the end of the group.
    pub(crate) fn set_end(&self, end: Option<GroupEndReason>) {
        *lock(&self.end) = end;
        self.wake();
    }

    /// Sets the end of the group unless it has ended.
    pub(crate) fn set_end_if_none(&self, end: GroupEndReason) {
        lock(&self.end).get_or_insert(end);
        self.wake();
    }

    fn wake(&self) {
        self.changed.notify_all();
        #[cfg(feature = "async")]
        self.tasks.wake_all();
    }

    /// As [`wait`](Self::wait), for a task.
    #[cfg(feature = "async")]
    pub(crate) async fn ended(self: Arc<Self>) -> GroupEndReason {
        let slot = self.tasks.slot();
        poll_fn(|context| {
            slot.register(context.waker());
            lock(&self.end).map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// Waits up to `timeout` until the group has ended.
    pub(crate) fn wait(&self, timeout: Duration) -> Option<GroupEndReason> {
        // A timeout beyond the range of the clock never expires.
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
