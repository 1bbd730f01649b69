//! Tasks, queues, and what a schedule decides about them.

use std::{cmp::Reverse, fmt};

/// The number of a task: unique in its process, given by the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct TaskId(pub(crate) u64);

/// The number of a queue in its schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct QueueId(pub(crate) u64);

/// A decision about a task, for its queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TaskOutput {
    /// The task has a slot, and starts.
    Start { task: TaskId, slot: u32 },
    /// The task will never start, since `on` has failed. The owner ends it.
    DependencyFailed { task: TaskId, on: TaskId },
}

/// How a task has ended, for its dependents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TaskResult {
    Success,
    Failure,
}

/// A new task.
#[derive(Debug, Clone)]
pub(crate) struct NewTask {
    pub(crate) id: TaskId,
    pub(crate) demand: Demand,
    /// Higher ones start first.
    pub(crate) priority: i32,
    /// The tasks that it starts after.
    pub(crate) after: Vec<TaskId>,
}

/// What a task takes while it runs. Tasks with the same demand are interchangeable for the question whether one fits.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Demand {
    /// The number of slots.
    pub(crate) slots: u64,
    /// Resources by index, in ascending order, with amounts above zero.
    pub(crate) resources: Box<[(usize, u64)]>,
}

/// The place of a task in its queue: by priority, then in the order of submission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    priority: Reverse<i32>,
    number: u64,
    pub(crate) task: TaskId,
}

impl Rank {
    pub(crate) fn new(priority: i32, number: u64, task: TaskId) -> Self {
        Self { priority: Reverse(priority), number, task }
    }
}

/// Why a demand can never be met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DemandError {
    NoSlots,
    TooManySlots { wanted: u64, limit: u64 },
    UnknownResource { name: Box<str> },
    TooMuch { name: Box<str>, wanted: u64, limit: u64 },
}

impl fmt::Display for TaskId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "#{}", self.0)
    }
}
