//! What groups are told, and what they decide.

use super::model::Node;
use crate::ids::{GroupId, WorkerId};
use std::time::Duration;

/// What the driver has learned, or a user asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Input {
    /// A user wants it to run: it is new, or was stopped, or has ended. A group is started with everything in it.
    Start(Node),
    /// A user wants it to run no more. Nothing but `Start` or `Restart` starts it again.
    Stop(Node),
    /// A user wants it to end and start again, it alone.
    Restart(Node),
    /// `Stop` of everything in the outermost group, which stays open for what comes later.
    StopAll,
    /// A user wants it to be forgotten; it is stopped before.
    Remove(Node),
    /// Its process runs.
    Started(WorkerId),
    /// It is ready. One whose readiness is to run is ready when it is started.
    Ready(WorkerId),
    /// Its process and its tree are gone, or could not be started, or its start was called off.
    Ended { member: WorkerId, success: bool, verdict: Verdict },
}

/// What a worker's own policy says to its end. Where it was told to end, this does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is to be restarted.
    Again,
    /// It is not.
    Finished,
    /// It would be, but has failed too often, or can never start.
    GaveUp,
    /// The host had no means to start it. It is to be tried again, which is no restart: nothing has failed.
    Postponed,
}

/// What the driver is to do, or to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    /// Start its process: at once, or after the backoff of its last end where that was its own and no user has asked since. Every
    /// start is answered by `Ended`, once, whatever comes between.
    Start(WorkerId),
    /// Go down its stop ladder, or call off a start that has not happened.
    Stop(WorkerId),
    /// It will not be started: what it waits for will not come.
    DependencyFailed { member: WorkerId, on: WorkerId },
    /// Too many restarts, or one that it cannot be without has given up. All of it is being stopped; its parent takes this
    /// for its failure, and at the root only the user is left to be told.
    GroupGaveUp(GroupId),
    /// It ends; within so long, where that is set.
    GroupEnds { group: GroupId, within: Duration },
    /// None of its members is left, and only a user starts it again; once for each of its lives.
    GroupEnded(GroupId),
    /// None of its members was left, and it begins a new life: its own restart, or one of the group around it.
    GroupRestarting(GroupId),
    /// Forgotten: its id may be used anew.
    Removed(Node),
}
