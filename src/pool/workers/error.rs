//! Why a task has no result, or was not accepted.

use crate::{
    exit::Exit,
    launch::error::SpawnError,
    policy::schedule::task::DemandError,
    pool::dialect::foreign_error::ForeignError,
    text::printable,
    wire::{
        decode::DecodeError,
        jsonrpc::error::{CallError, RpcError},
    },
};
use std::{fmt, sync::Arc, time::Duration};

/// Why a task of a [`Pool`](crate::pool::Pool) has no result.
///
/// `Display` names the task, the reason and the number of attempts: `task 7: its worker has died: killed by signal 9 (SIGKILL) (attempt 3)`.
#[derive(Debug, thiserror::Error)]
#[error("{request}: {kind}{}", Attempts(*.attempts))]
#[non_exhaustive]
pub struct TaskError {
    /// The name of the task: as [given](crate::pool::TaskBuilder::name), or `task N` with its number in the pool, counted from 1.
    pub request: Box<str>,
    /// How often it was sent to a worker.
    pub attempts: u32,
    /// The reason.
    pub kind: TaskErrorKind,
}

const _: () = assert!(size_of::<TaskError>() <= 64);

impl TaskError {
    /// The error that a function in another language has thrown, if that is the reason and the [dialect](crate::pool::Dialect) passes it on.
    pub fn foreign(&self) -> Option<ForeignError> {
        match &self.kind {
            TaskErrorKind::Failed(error) => serde_json::from_str(error.data.as_deref()?.get()).ok(),
            _ => None,
        }
    }
}

/// The reason of a [`TaskError`].
#[derive(Debug)]
#[non_exhaustive]
pub enum TaskErrorKind {
    /// The worker's function has returned an error, or has panicked.
    Failed(Box<RpcError>),
    /// The result does not have the expected type.
    InvalidResult(Box<DecodeError>),
    /// The worker exited while it had the task, and the task has no [retries](crate::pool::TaskBuilder::retries) left. Whether it was
    /// executed is not known. The exit says how, with its signal, its memory and what the worker wrote to a captured standard error.
    WorkerDied(Arc<Exit>),
    /// The task was sent to several workers and each of them died, the last one while no other task was in it.
    Poison(Arc<Exit>),
    /// The worker that had it has sent what its [dialect](crate::pool::Dialect) does not permit, and was killed.
    Protocol {
        /// What it has sent.
        reason: Arc<str>,
    },
    /// It ran longer than its timeout.
    TimedOut {
        /// The timeout.
        limit: Duration,
    },
    /// It was cancelled, or its handle was dropped.
    Cancelled,
    /// The pool has had as many failures as its [halt policy](crate::pool::PoolBuilder::halt) permits.
    Halted,
    /// The pool was shut down or dropped.
    ShutDown,
    /// No worker starts.
    NoWorkers(StartFailure),
    /// The task was not accepted: in a `map`.
    NotAccepted(Box<SubmitError>),
    /// The call to the worker has failed in another way.
    Call(Box<CallError>),
}

/// Why no worker starts.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum StartFailure {
    /// The start has failed.
    Spawn(Arc<SpawnError>),
    /// Each exited before it was used; the last one like this.
    Exited(Arc<Exit>),
    /// It has sent what its [dialect](crate::pool::Dialect) does not permit at the start.
    Protocol {
        /// What it has sent.
        reason: Arc<str>,
    },
    /// The supervisor has ended.
    SupervisorGone,
}

/// Why a task was not accepted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// The request cannot be serialized as JSON.
    #[error("cannot serialize the request: {}", printable(&.0.to_string()))]
    Encode(#[source] serde_json::Error),
    /// As many tasks wait as the [limit](crate::pool::PoolBuilder::queue_limit) permits, and none was sent before the timeout.
    #[error("queue of the pool is full: {waiting} tasks wait")]
    Full {
        /// The tasks that wait for a worker.
        waiting: usize,
    },
    /// The task has a [weight](crate::pool::TaskBuilder::weight) or [needs](crate::pool::TaskBuilder::needs), and the pool has no
    /// [budget](crate::pool::PoolBuilder::budget).
    #[error("the task needs a budget, and the pool has none")]
    NoBudget,
    /// The weight of the task is zero.
    #[error("a task of weight 0 would take no slot: the lowest weight is 1")]
    NoWeight,
    /// The weight of the task exceeds the limit of the budget.
    #[error("the task takes {weight} slots, and there are {limit}")]
    WeightAboveLimit {
        /// The weight.
        weight: u64,
        /// The number of slots.
        limit: u64,
    },
    /// The budget has no such resource.
    #[error("the task needs `{name}`, which is no resource of its budget")]
    UnknownResource {
        /// The name.
        name: Box<str>,
    },
    /// The task needs more of a resource than there is.
    #[error("the task needs {amount} of `{name}`, and there is {limit}")]
    NeedAboveLimit {
        /// The name of the resource.
        name: Box<str>,
        /// The amount that it needs.
        amount: u64,
        /// The amount that there is.
        limit: u64,
    },
    /// The pool was shut down.
    #[error("pool is shut down")]
    ShutDown,
    /// The pool has had as many failures as its [halt policy](crate::pool::PoolBuilder::halt) permits.
    #[error("pool has halted after too many failures")]
    Halted,
    /// No worker starts.
    #[error("no worker starts: {0}")]
    NoWorkers(StartFailure),
}

impl From<DemandError> for SubmitError {
    fn from(error: DemandError) -> Self {
        match error {
            DemandError::NoSlots => Self::NoWeight,
            DemandError::TooManySlots { wanted, limit } => Self::WeightAboveLimit { weight: wanted, limit },
            DemandError::UnknownResource { name } => Self::UnknownResource { name },
            DemandError::TooMuch { name, wanted, limit } => Self::NeedAboveLimit { name, amount: wanted, limit },
        }
    }
}

/// The number of attempts in a text.
struct Attempts(u32);

impl fmt::Display for Attempts {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 > 1 { write!(formatter, " (attempt {})", self.0) } else { Ok(()) }
    }
}

impl fmt::Display for TaskErrorKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(error) => write!(formatter, "failed: {}", printable(&error.message)),
            Self::InvalidResult(error) => write!(formatter, "invalid result: {error}"),
            Self::WorkerDied(exit) => write!(formatter, "its worker has died: {}", exit.with_last_words()),
            Self::Poison(exit) => write!(formatter, "every worker that had it has died: {}", exit.with_last_words()),
            Self::Protocol { reason } => write!(formatter, "its worker was killed: {reason}"),
            Self::TimedOut { limit } => write!(formatter, "no result within {limit:?}"),
            Self::Cancelled => formatter.write_str("cancelled"),
            Self::Halted => formatter.write_str("not finished: the pool has halted after too many failures"),
            Self::ShutDown => formatter.write_str("not finished: the pool was shut down"),
            Self::NoWorkers(reason) => write!(formatter, "no worker starts: {reason}"),
            Self::NotAccepted(error) => write!(formatter, "not accepted: {error}"),
            Self::Call(error) => write!(formatter, "{error}"),
        }
    }
}

impl fmt::Display for StartFailure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Spawn(error) => write!(formatter, "{error}"),
            Self::Exited(exit) => write!(formatter, "exited before it was used: {}", exit.with_last_words()),
            Self::Protocol { reason } => write!(formatter, "killed before it was used: {reason}"),
            Self::SupervisorGone => formatter.write_str("the supervisor has ended"),
        }
    }
}
