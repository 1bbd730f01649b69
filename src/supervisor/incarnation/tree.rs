//! The process tree of one incarnation after its exit.

use crate::{exit::Survivor, sys::proc::pinned::PinnedProcess};
use std::{collections::HashSet, time::Instant};

/// The process tree of an incarnation, and the wait for its end before the worker is reaped.
#[derive(Debug, Default)]
pub(crate) struct TreeExit {
    /// The number of processes that the supervisor had started, including this one: an upper bound of the pids that workers took until
    /// then.
    pub(crate) starts_before: u64,
    pub(crate) scan: TreeScan,
    /// Set while the supervisor waits for processes of the tree.
    pub(crate) termination: Option<TreeTermination>,
    pub(crate) survivors: Vec<Survivor>,
}

/// The results of scans of the tree.
#[derive(Debug, Default)]
pub(crate) struct TreeScan {
    /// The number of processes that could not be attributed; `None` if unknown.
    pub(crate) uninspected: Option<u32>,
    /// The number of the request that the inspector has not answered.
    pub(crate) request: Option<u64>,
    /// Sessions of processes of the tree.
    pub(crate) sessions: HashSet<i32>,
    /// SIGKILL was refused, since a process of the tree runs as another user.
    pub(crate) kill_refused: bool,
}

/// The wait for the exits of processes that have outlived a worker.
#[derive(Debug, Default)]
pub(crate) struct TreeTermination {
    pub(crate) waited_for: Vec<PinnedProcess>,
    /// The number of scans that found survivors, or of checks of the cgroup.
    pub(crate) scans: u32,
    /// The number of scans that were repeated because a process was in the middle of an exec.
    pub(crate) exec_rescans: u32,
    /// The cgroup was killed, and not checked since.
    pub(crate) is_killed: bool,
    pub(crate) deadline: Option<Instant>,
    /// When descendants that still run are survivors.
    pub(crate) grace_until: Option<Instant>,
    /// The number of scans, or checks of the cgroup, until then.
    pub(crate) grace_scans: u32,
}
