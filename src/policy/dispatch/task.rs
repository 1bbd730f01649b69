//! Tasks, and what is decided about them.

use super::{
    ids::{CallNumber, DemandClass, MemberId, TaskNumber},
    limit::TimeLimit,
};
use std::{cmp::Reverse, time::Duration};

/// What a task asks for.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct TaskTerms {
    /// Higher ones are sent first.
    pub(crate) priority: i32,
    /// How many deaths of its worker it survives.
    pub(crate) retries: u32,
    /// Tasks with the same key go to the same worker while the set of workers does not change.
    pub(crate) key: Option<u64>,
    /// The time that it may run.
    pub(crate) timeout: TimeLimit,
    /// The time after which it counts as slow.
    pub(crate) slow: TimeLimit,
    /// What it takes of the budget; `None` without one.
    pub(crate) class: Option<DemandClass>,
}

/// A task that has not ended.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) rank: Rank,
    pub(crate) terms: TaskTerms,
    /// How often it was sent.
    pub(crate) attempts: u32,
    /// How many workers have died while it ran.
    pub(crate) deaths: u32,
    /// How many of these it was alone in.
    pub(crate) deaths_alone: u32,
    /// The call of the present attempt.
    pub(crate) call: Option<CallNumber>,
}

/// The place of a task among those that wait: by priority, then in the order of submission. A task that is sent again keeps its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    priority: Reverse<i32>,
    pub(crate) task: TaskNumber,
    pub(crate) class: Option<DemandClass>,
}

impl Rank {
    pub(crate) fn new(terms: &TaskTerms, task: TaskNumber) -> Self {
        Self { priority: Reverse(terms.priority), task, class: terms.class }
    }
}

/// How many workers a task must have seen dying to run alone in a worker.
const SUSPECT_DEATHS: u32 = 2;
/// How many of these end it. One can be chance: the worker was killed from outside.
const POISON_DEATHS: u32 = 2;

impl Task {
    pub(crate) fn is_suspect(&self) -> bool {
        self.deaths >= SUSPECT_DEATHS
    }

    pub(crate) fn is_poison(&self) -> bool {
        self.deaths_alone >= POISON_DEATHS
    }
}

/// A decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DispatchOutput {
    /// Start a worker.
    Start(MemberId),
    /// Send a task to a worker.
    Send { call: CallNumber, task: TaskNumber, member: MemberId },
    /// Ask a worker to cancel a call, whose task has ended.
    Cancel { call: CallNumber, member: MemberId },
    /// Stop a worker.
    Stop(MemberId),
    /// Kill a worker.
    Kill(MemberId),
    /// Ask the budget for a grant of this class.
    Request(DemandClass),
    /// Return a grant of this class to the budget.
    Return(DemandClass),
    /// The task runs longer than its limit for that.
    Slow { task: TaskNumber, after: Duration },
    /// The task has ended.
    End { task: TaskNumber, attempts: u32, ending: Ending },
}

/// How a task ends without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Its worker has died.
    Died,
    /// Its workers have died, the last one while nothing else ran in it.
    Poison,
    /// It ran longer than its timeout.
    TimedOut(Duration),
    Cancelled,
    /// The pool has had as many failures as its halt policy permits.
    Halted,
    /// The pool was shut down.
    ShutDown,
    /// No worker starts.
    NoWorkers,
}
