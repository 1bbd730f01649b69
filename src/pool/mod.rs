//! Many tasks, N at a time: [`Pool`] runs them in persistent workers, and [`Jobs`] is a queue of processes. A [`Budget`] is what several
//! queues share.
//!
//! ```
//! use pipewright::{Supervisor, WorkerSpec, pool::{Jobs, JobSpec}};
//!
//! let supervisor = Supervisor::new()?;
//! let jobs = Jobs::new(&supervisor, 2); // two at a time
//! let objects = ["a", "b", "c"].map(|name| jobs.submit(WorkerSpec::new("true").arg(name)));
//! let mut link = JobSpec::new(WorkerSpec::new("true").arg("-o"));
//! for object in objects {
//!     link = link.after(&object?);
//! }
//! let outcome = jobs.submit(link)?.wait();
//! assert!(outcome.success(), "{outcome}");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub(crate) mod budget;
pub(crate) mod dialect;
pub(crate) mod function;
pub(crate) mod jobs;
pub(crate) mod serve;
pub(crate) mod workers;

pub use crate::policy::dispatch::{
    limit::TimeLimit,
    settings::{Halt, PoolSize},
};
pub use crate::supervisor::worker::job::{JobOutcome, OnFailure};
pub use budget::Budget;
pub use dialect::{Dialect, bazel::BazelWorker, foreign_error::ForeignError};
pub use function::{FunctionError, Functions, init};
pub use jobs::{Jobs, error::JobError, job::Job, spec::JobSpec};
pub use serve::{CurrentTask, worker, worker_with};
pub use workers::{
    builder::PoolBuilder,
    error::{StartFailure, SubmitError, TaskError, TaskErrorKind},
    event::PoolEvent,
    map::{Map, MapUnordered},
    pool::{Pool, PoolReport, PoolStatus},
    task::{FinishedTask, Task},
    task_builder::TaskBuilder,
};
