//! What differs from one start of a plan to the next.

use std::{ffi::OsString, os::fd::BorrowedFd};

/// How long a start may wait for what is not ours: to open a FIFO waits for its other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OpenMode {
    /// Its caller waits, and nobody else.
    Blocking,
    /// Others would wait too.
    Nonblocking,
}

/// What differs from one start of a plan to the next.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SpawnContext<'a> {
    /// What the child gets when the calling thread ends.
    pub(crate) death_signal: Option<i32>,
    /// The path of the control pipe, for the arguments; empty where there is none.
    pub(crate) control_path: &'a str,
    /// Its path with the worker's key, for the environment.
    pub(crate) control: &'a str,
    /// To set beside the plan's variables, whatever those say.
    pub(crate) variables: &'a [(&'static str, OsString)],
    pub(crate) cgroup: CgroupPlacement<'a>,
}

/// The cgroup that a process is born in, by its directory; only the fast way can do that.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) enum CgroupPlacement<'a> {
    /// Ours.
    #[default]
    Inherit,
    /// This one, or ours where that fails.
    Preferred(BorrowedFd<'a>),
    /// This one, which has limits, or none. `SpawnStep::Cgroup` tells when it fails.
    Required(BorrowedFd<'a>),
}

impl<'a> CgroupPlacement<'a> {
    pub(super) fn directory(self) -> Option<BorrowedFd<'a>> {
        match self {
            Self::Inherit => None,
            Self::Preferred(directory) | Self::Required(directory) => Some(directory),
        }
    }
}
