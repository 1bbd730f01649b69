//! Errors of a jobserver.

use crate::text::{printable, printable_path};
use std::{io, path::Path};

/// Why the jobserver that an environment variable names cannot be used, or why a token could not be taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JobserverError {
    /// The option names neither a FIFO nor two descriptors.
    #[error("invalid jobserver in `{variable}`: {:?} is neither `fifo:PATH` nor two fd numbers", printable(&**flags).to_string())]
    Malformed {
        /// The environment variable.
        variable: &'static str,
        /// Its value.
        flags: Box<str>,
    },
    /// `make` withholds its jobserver from this program, by negative fd numbers.
    #[error("jobserver in `{variable}` is disabled for this command: begin its line in the makefile with `+`")]
    Disabled {
        /// The environment variable.
        variable: &'static str,
    },
    /// A descriptor of the jobserver is closed: `make` passes its pipe only to recipes with `+` or `$(MAKE)`.
    #[error(
        "fd {fd} of the jobserver in `{variable}` is closed: begin the line of this command in the makefile with `+`, and let \
         programs in between pass the descriptor on"
    )]
    Closed {
        /// The environment variable.
        variable: &'static str,
        /// The fd number.
        fd: i32,
    },
    /// A descriptor is not an end of a pipe with the right direction: the jobserver's was closed, and its number used again.
    #[error(
        "fd {fd} of the jobserver in `{variable}` is {found}: begin the line of this command in the makefile with `+`, and let \
         programs in between pass the descriptor on"
    )]
    NotAPipe {
        /// The environment variable.
        variable: &'static str,
        /// The fd number.
        fd: i32,
        /// What the descriptor is.
        found: &'static str,
    },
    /// The FIFO cannot be opened.
    #[error("failed to open the jobserver's FIFO {} named in `{variable}`: {source}", printable_path(path))]
    Open {
        /// The environment variable.
        variable: &'static str,
        /// The path of the FIFO.
        path: Box<Path>,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The process holds as many tokens as the kernel lets it record: 256 as a rule, and fewer where the user's pipe quota is used up.
    #[error("{limit} tokens of the jobserver are held, as many as can be recorded")]
    TooManyTokens {
        /// The limit.
        limit: usize,
    },
    /// A system call failed.
    #[error("failed to {operation}: {source}")]
    Failed {
        /// What was attempted.
        operation: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
}

impl JobserverError {
    pub(super) fn failed(operation: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Failed { operation, source }
    }
}

impl From<JobserverError> for io::Error {
    fn from(error: JobserverError) -> Self {
        let kind = match &error {
            JobserverError::Malformed { .. } | JobserverError::NotAPipe { .. } => io::ErrorKind::InvalidInput,
            JobserverError::Disabled { .. } | JobserverError::Closed { .. } => io::ErrorKind::NotFound,
            JobserverError::TooManyTokens { .. } => io::ErrorKind::QuotaExceeded,
            JobserverError::Open { source, .. } | JobserverError::Failed { source, .. } => source.kind(),
        };
        Self::new(kind, error)
    }
}
