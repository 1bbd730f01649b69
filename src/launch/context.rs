//! Parameters of one start that are not part of the plan.

use super::limits::CgroupLimit;
use std::{
    ffi::OsString,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

/// Whether opening a file may block: opening a FIFO waits for its other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OpenMode {
    /// Only the caller waits.
    Blocking,
    /// The calling thread serves other workers and must not wait.
    Nonblocking,
}

/// Parameters of one start that are not part of the plan.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SpawnContext<'a> {
    /// The signal that the kernel sends to the child when the calling thread exits.
    pub(crate) death_signal: Option<i32>,
    /// The path of the control pipe, for the arguments; empty if there is none.
    pub(crate) control_path: &'a str,
    /// The path of the control pipe with the worker's key, for the environment.
    pub(crate) control: &'a str,
    /// Environment variables that override those of the plan.
    pub(crate) variables: &'a [(&'static str, OsString)],
    pub(crate) cgroup: CgroupPlacement<'a>,
}

/// The cgroup in which clone3(2) creates the process, by its directory. Not available with a user's own `Command`.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) enum CgroupPlacement<'a> {
    /// The cgroup of this process.
    #[default]
    Inherit,
    /// The given cgroup, or that of this process if clone3 fails.
    Preferred(BorrowedFd<'a>),
    /// The given cgroup, which has limits. The start fails with `SpawnStep::Cgroup` if clone3 fails.
    Required(BorrowedFd<'a>),
}

impl<'a> CgroupPlacement<'a> {
    /// Places the process in `directory`, if there is one. A cgroup with limits is required.
    pub(crate) fn new(directory: Option<&'a OwnedFd>, limits: &[CgroupLimit]) -> Self {
        match directory {
            Some(directory) if !limits.is_empty() => Self::Required(directory.as_fd()),
            Some(directory) => Self::Preferred(directory.as_fd()),
            None => Self::Inherit,
        }
    }

    pub(super) fn directory(self) -> Option<BorrowedFd<'a>> {
        match self {
            Self::Inherit => None,
            Self::Preferred(directory) | Self::Required(directory) => Some(directory),
        }
    }
}
