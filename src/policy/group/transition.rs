//! The inputs and outputs of the group model.

use super::model::NodeId;
use crate::{
    ids::{GroupId, WorkerId},
    policy::restart_history::RestartDecision,
};
use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GroupInput {
    /// A user starts a node that is new, was stopped, or has ended. A group is started with everything in it.
    Start(NodeId),
    /// A user stops a node. Only `Start` or `Restart` starts it again.
    Stop(NodeId),
    /// A user restarts a node, and nothing else.
    Restart(NodeId),
    /// `Stop` of everything in the outermost group, which stays up for later declarations.
    StopAll,
    /// A user removes a node. It is stopped first.
    Remove(NodeId),
    /// The process of a member runs.
    Started(WorkerId),
    /// A member is ready. Implies `Started`.
    Ready(WorkerId),
    /// The process and the tree of a member are gone, or could not be started, or its start was cancelled. `decision` is that of
    /// the member's own restart policy; it does not count if the member was being stopped.
    Ended { member: WorkerId, success: bool, decision: RestartDecision },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GroupOutput {
    /// Start the process of a member: after the backoff of its last end if that was its own and no user started it since, else at
    /// once. Every start is followed by exactly one `Ended`.
    Start(WorkerId),
    /// Stop a member by its stop policy, or cancel a start that has not happened.
    Stop(WorkerId),
    /// The member will not be started, since the condition on its dependency cannot be met any more.
    DependencyFailed { member: WorkerId, on: WorkerId },
    /// Too many restarts, or a non-temporary member has given up. The whole group is being stopped. Its parent group treats this
    /// as a failure; above the outermost group only the user can react.
    GroupGaveUp(GroupId),
    /// The group is being stopped, within this timeout.
    GroupStopping { group: GroupId, timeout: Duration },
    /// No member is left, and only a user starts the group again. Once for each time that it was up.
    GroupEnded(GroupId),
    /// No member was left, and the group starts again: by its own restart, or by that of its parent group.
    GroupRestarting(GroupId),
    /// The node is forgotten, and its id can be declared again.
    Removed(NodeId),
}
