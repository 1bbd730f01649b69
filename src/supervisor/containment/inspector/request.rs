//! The requests of the event loop to the inspector's thread, and their results.

use crate::{
    exit::Survivor,
    policy::survivors::SurvivorPolicy,
    supervisor::{containment::process_tree::ProcessTree, sync::lock},
    sys::{pidfd, proc::pinned::PinnedProcess},
};
use std::{
    collections::{HashMap, HashSet},
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI32, AtomicU64},
    },
};

/// The number of file descriptors that are reserved for scans when the host has used up all others.
const RESERVE: usize = 8;

/// A request of the event loop.
#[derive(Debug, Clone)]
pub(crate) struct ScanRequest {
    /// Copied to the result.
    pub(crate) number: u64,
    pub(crate) task: ScanTask,
    pub(crate) tree: Arc<ProcessTree>,
    /// The pipes of the worker, by inode and name.
    pub(crate) pipes: Vec<(u64, &'static str)>,
    /// Whether process ids may have wrapped around since the worker was started.
    pub(crate) has_wrapped: bool,
    /// The sessions of processes of the tree that were found before.
    pub(crate) sessions: HashSet<i32>,
    /// The processes of other running workers, with their start in ticks of the boot clock.
    pub(crate) others: Arc<HashMap<i32, u64>>,
    /// Whether orphans become children of the host, as a subreaper or process 1.
    pub(crate) adopts: bool,
}

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ScanTask {
    /// Kills a running worker and its descendants.
    KillTree,
    /// Lists the processes in the cgroup, and kills them.
    KillInhabitants,
    /// Reaps killed processes of the cgroup that have become children of the host.
    ReapKilled,
    /// Finds the processes that outlive the worker, and kills them if the policy says so.
    Survivors(SurvivorPolicy),
    /// Finds the rest of the process group.
    Group,
    /// Stops the processes of a stopped worker that have left its group.
    StopTree,
}

/// The result of a request.
#[derive(Debug)]
pub(crate) struct ScanResult {
    pub(crate) number: u64,
    pub(crate) task: ScanTask,
    pub(crate) survivors: Vec<Survivor>,
    /// The number of processes found, also of those that are not in `survivors` or `held`.
    pub(crate) count: usize,
    /// Some of the processes, to wait for their exits.
    pub(crate) held: Vec<PinnedProcess>,
    pub(crate) sessions: HashSet<i32>,
    /// See [`Exit::uninspected`](crate::Exit::uninspected).
    pub(crate) uninspected: Option<u32>,
    /// Whether to scan again soon: a process was in the middle of an exec, or file descriptors were short.
    pub(crate) needs_rescan: bool,
    /// Whether SIGKILL was refused for a process that runs as another user.
    pub(crate) refused: bool,
}

/// The progress of the thread.
#[derive(Debug, Default)]
pub(crate) struct ScanProgress {
    /// The process id that it inspects; 0 for none.
    pub(crate) at: AtomicI32,
    pub(crate) steps: AtomicU64,
}

impl ScanResult {
    /// A result without processes.
    pub(crate) fn none(request: &ScanRequest) -> Self {
        Self {
            number: request.number,
            task: request.task,
            survivors: Vec::new(),
            count: 0,
            held: Vec::new(),
            sessions: HashSet::new(),
            uninspected: None,
            needs_rescan: false,
            refused: false,
        }
    }
}

/// Opens descriptors until the reserve is full, or no more can be had.
pub(crate) fn refill(reserve: &Mutex<Vec<OwnedFd>>) {
    let mut reserve = lock(reserve);
    while reserve.len() < RESERVE {
        let Ok(descriptor) = pidfd::placeholder() else { return };
        reserve.push(descriptor);
    }
}
