//! What is known of the processes of one incarnation after its exit.

use crate::{exit::Survivor, sys::proc::pinned::PinnedProcess};
use std::{collections::HashSet, time::Instant};

/// What is known of the tree of an incarnation, and what is waited for before its process is reaped.
#[derive(Debug, Default)]
pub(crate) struct TreeExit {
    /// How many processes the supervisor had started before this one, which is counted too: no more numbers were given to
    /// workers by then.
    pub(crate) starts_before: u64,
    pub(crate) scan: TreeScan,
    /// While processes of the tree are waited for.
    pub(crate) termination: Option<TreeTermination>,
    pub(crate) survivors: Vec<Survivor>,
}

/// What is known of its tree.
#[derive(Debug, Default)]
pub(crate) struct TreeScan {
    /// How many processes could not be attributed, once that is known.
    pub(crate) uninspected: Option<u32>,
    /// The number of the request that the inspector has not answered.
    pub(crate) asked: Option<u64>,
    /// Sessions that were seen in it.
    pub(crate) sessions: HashSet<i32>,
    /// SIGKILL was refused, as a process of it runs as another user.
    pub(crate) kill_refused: bool,
}

/// Waiting for the end of those who have outlived a worker.
#[derive(Debug, Default)]
pub(crate) struct TreeTermination {
    pub(crate) waited_for: Vec<PinnedProcess>,
    pub(crate) rounds: u32,
    /// How often those were looked at again that were in the middle of an exec.
    pub(crate) waits: u32,
    /// Its cgroup was killed, and not looked at since.
    pub(crate) is_killed: bool,
    pub(crate) until: Option<Instant>,
}
