//! Calls: attempts at tasks.

use super::ids::{DemandClass, MemberId, TaskNumber};
use std::time::Instant;

/// An attempt at a task, which a worker has not answered.
#[derive(Debug)]
pub(crate) struct Call {
    /// `None` once the task has ended otherwise.
    pub(crate) task: Option<TaskNumber>,
    pub(crate) member: MemberId,
    /// What it has taken of the budget.
    pub(crate) class: Option<DemandClass>,
    pub(crate) since: Instant,
    /// The time of its timer for the timeout, or of the kill after its cancellation.
    pub(crate) deadline: Option<Instant>,
    /// The time of its timer for slowness.
    pub(crate) slow: Option<Instant>,
}
