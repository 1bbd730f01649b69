//! Many processes, N at a time: [`Jobs`] is a queue of processes, and a [`Budget`] is what several queues share.
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
pub(crate) mod jobs;

pub use crate::supervisor::worker::job::{JobOutcome, OnFailure};
pub use budget::Budget;
pub use jobs::{Jobs, error::JobError, job::Job, spec::JobSpec};
