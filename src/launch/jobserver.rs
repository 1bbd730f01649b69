//! How a jobserver is passed to a child: by `MAKEFLAGS` and `CARGO_MAKEFLAGS`.

use crate::wire::make_flags::{self, JobserverAddress};
use std::{
    ffi::{OsStr, OsString},
    os::{
        fd::RawFd,
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::PathBuf,
};

/// The variables in which programs look for a jobserver: `make` and what it starts, cargo and rustc.
const VARIABLES: [&str; 2] = ["MAKEFLAGS", "CARGO_MAKEFLAGS"];

/// A jobserver as the child finds it.
#[derive(Debug, Clone)]
pub(crate) enum PassedJobserver {
    /// Two extra fds, by their indices in the plan.
    Pipe {
        reader: usize,
        writer: usize,
        /// The number of jobs that `-jN` says; unchanged if there is none.
        jobs: Option<usize>,
    },
    Fifo(PathBuf),
}

impl PassedJobserver {
    /// The variables that name it. All other options of the child's variables stay.
    pub(super) fn variables(
        &self,
        numbers: &[RawFd],
        current: impl Fn(&OsStr) -> Option<OsString>,
    ) -> [(&'static OsStr, OsString); 2] {
        let number = |at: &usize| numbers.get(*at).copied().unwrap_or(-1);
        let address = match self {
            Self::Pipe { reader, writer, .. } => {
                JobserverAddress::Pipe { reader: number(reader), writer: number(writer) }
            }
            Self::Fifo(path) => JobserverAddress::Fifo(path.clone()),
        };
        let jobs = match self {
            Self::Pipe { jobs, .. } => *jobs,
            Self::Fifo(_) => None,
        };
        VARIABLES.map(OsStr::new).map(|name| {
            let flags = current(name).unwrap_or_default();
            (name, OsString::from_vec(make_flags::with_jobserver(flags.as_bytes(), &address, jobs)))
        })
    }
}
