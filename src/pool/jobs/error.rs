//! Why a job is not accepted.

use crate::{ids::WorkerId, launch::error::SpecError, policy::schedule::task::DemandError};
use std::io;

/// Why a job is not accepted, from [`Jobs::submit`](crate::pool::Jobs::submit).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JobError {
    /// The worker's spec is invalid.
    #[error("invalid worker spec: {0}")]
    Spec(#[from] SpecError),
    /// Its weight is zero.
    #[error("a job of weight 0 would take no slot: the lowest weight is 1")]
    NoWeight,
    /// Its weight exceeds the limit.
    #[error("the job takes {weight} slots, and there are {limit}")]
    WeightAboveLimit {
        /// The weight.
        weight: u64,
        /// The number of slots.
        limit: u64,
    },
    /// The budget has no such resource.
    #[error("the job needs `{name}`, which is no resource of its budget")]
    UnknownResource {
        /// The name.
        name: Box<str>,
    },
    /// It needs more of a resource than there is.
    #[error("the job needs {amount} of `{name}`, and there is {limit}")]
    NeedAboveLimit {
        /// The name of the resource.
        name: Box<str>,
        /// The amount that it needs.
        amount: u64,
        /// The amount that there is.
        limit: u64,
    },
    /// It depends on a job of a queue with another budget, for example of another supervisor.
    #[error("the job depends on job {job}, whose queue has another budget")]
    OtherBudget {
        /// The dependency.
        job: WorkerId,
    },
    /// The supervisor accepts no more workers.
    #[error("the supervisor takes no more workers")]
    SupervisorGone,
}

impl From<DemandError> for JobError {
    fn from(error: DemandError) -> Self {
        match error {
            DemandError::NoSlots => Self::NoWeight,
            DemandError::TooManySlots { wanted, limit } => Self::WeightAboveLimit { weight: wanted, limit },
            DemandError::UnknownResource { name } => Self::UnknownResource { name },
            DemandError::TooMuch { name, wanted, limit } => Self::NeedAboveLimit { name, amount: wanted, limit },
        }
    }
}

impl From<JobError> for io::Error {
    fn from(error: JobError) -> Self {
        let kind = match error {
            JobError::SupervisorGone => io::ErrorKind::BrokenPipe,
            JobError::Spec(_)
            | JobError::NoWeight
            | JobError::WeightAboveLimit { .. }
            | JobError::UnknownResource { .. }
            | JobError::NeedAboveLimit { .. }
            | JobError::OtherBudget { .. } => io::ErrorKind::InvalidInput,
        };
        Self::new(kind, error)
    }
}
