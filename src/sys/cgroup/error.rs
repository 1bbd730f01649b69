//! Why a cgroup cannot be made or used.

use std::{fmt, io, path::Path};

/// Why a cgroup operation failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CgroupError {
    #[error("no cgroups available: {0}")]
    Unavailable(CgroupUnavailable),
    /// Not usable as the name of a directory.
    #[error("invalid cgroup name {name:?}")]
    BadName { name: Box<str> },
    /// The kernel gave no random number.
    #[error("failed to choose a cgroup name: {0}")]
    NoName(#[source] io::Error),
    /// The kernel refused the operation. `EACCES` and `EROFS`: the subtree is not delegated to this process. `EBUSY`: processes are in it.
    #[error("cgroup {path}: {operation} failed: {source}")]
    Refused {
        operation: CgroupOperation,
        path: Box<str>,
        #[source]
        source: io::Error,
    },
    /// A limit or a statistic needs a controller that is not available.
    #[error("cgroup controller {controller} unavailable: {reason}")]
    Controller { controller: Controller, reason: ControllerUnavailable },
}

impl CgroupError {
    pub(super) fn refused(operation: CgroupOperation, path: &Path, source: io::Error) -> Self {
        Self::Refused { operation, path: path.to_string_lossy().into(), source }
    }

    /// Whether a retry fails in the same way: missing support and permissions do not change, shortages end.
    pub(crate) fn is_permanent(&self) -> bool {
        match self {
            Self::Unavailable(_) | Self::BadName { .. } | Self::Controller { .. } => true,
            Self::NoName(_) => false,
            Self::Refused { source, .. } => {
                matches!(source.raw_os_error(), Some(libc::EACCES | libc::EPERM | libc::EROFS))
            }
        }
    }

    /// `Unsupported` where a retry fails in the same way.
    pub(crate) fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Unavailable(_) | Self::Controller { .. } => io::ErrorKind::Unsupported,
            Self::BadName { .. } => io::ErrorKind::InvalidInput,
            Self::NoName(source) | Self::Refused { source, .. } => source.kind(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CgroupUnavailable {
    #[error("/proc is not mounted")]
    NoProc,
    #[error("cgroup v2 is not mounted")]
    NotMounted,
    #[error("this process's cgroup is not below any visible cgroup mount")]
    OutOfSight,
}

/// The operation that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CgroupOperation {
    Make,
    Open,
    Kill,
    Freeze,
    Read,
    Remove,
    SetLimit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Controller {
    Memory,
    Cpu,
    Pids,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ControllerUnavailable {
    #[error("not delegated to this process's cgroup, or in use by cgroup v1")]
    NotDelegated,
    /// The "no internal processes" rule: a cgroup that enables controllers for its children must not contain processes.
    #[error(
        "this process's cgroup contains processes, itself among them: start it in a child of the delegated cgroup (systemd: \
         Delegate=yes, DelegateSubgroup=main)"
    )]
    Occupied,
    #[error("enabling it for child cgroups is not permitted")]
    NotPermitted,
}

impl fmt::Display for CgroupOperation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Make => "mkdir",
            Self::Open => "open",
            Self::Kill => "kill",
            Self::Freeze => "freeze or thaw",
            Self::Read => "read",
            Self::Remove => "rmdir",
            Self::SetLimit => "set limit",
        })
    }
}

impl Controller {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Pids => "pids",
        }
    }
}

impl fmt::Display for Controller {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}
