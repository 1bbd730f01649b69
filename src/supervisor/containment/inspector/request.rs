//! What the event loop asks of the inspector's thread, and what that finds.

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

/// How many descriptors are kept for looking when the host has used up all others.
const RESERVE: usize = 8;

/// What the loop wants to know.
#[derive(Debug, Clone)]
pub(crate) struct ScanRequest {
    /// The answer carries it.
    pub(crate) number: u64,
    pub(crate) task: ScanTask,
    pub(crate) tree: Arc<ProcessTree>,
    /// The pipes of the worker, by inode and name.
    pub(crate) pipes: Vec<(u64, &'static str)>,
    /// It has lived so long that process numbers may have come again since.
    pub(crate) has_wrapped: bool,
    /// Sessions that were seen in its tree.
    pub(crate) sessions: HashSet<i32>,
    /// Those of other living workers, with the tick of the boot clock in which they were started.
    pub(crate) others: Arc<HashMap<i32, u64>>,
    /// The host is a subreaper, or process 1: orphans become its children.
    pub(crate) adopts: bool,
}

/// What is to be done with what is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ScanTask {
    /// The worker lives: kill it and its descendants.
    KillTree,
    /// Name what lives in its cgroup, and kill all of it.
    KillInhabitants,
    /// Reap what was killed in its cgroup, where it has become the host's.
    ReapKilled,
    /// Find what outlives it, and kill it or not.
    Survivors(SurvivorPolicy),
    /// Find what is left of its process group.
    Group,
    /// The worker is stopped: stop what has left its group.
    StopTree,
}

/// What was found.
#[derive(Debug)]
pub(crate) struct ScanResult {
    pub(crate) number: u64,
    pub(crate) task: ScanTask,
    pub(crate) survivors: Vec<Survivor>,
    /// How many were found, also those that are not named or held.
    pub(crate) count: usize,
    /// Some of them, to wait for their ends.
    pub(crate) held: Vec<PinnedProcess>,
    pub(crate) sessions: HashSet<i32>,
    /// See [`Exit::uninspected`](crate::Exit::uninspected).
    pub(crate) uninspected: Option<u32>,
    /// Some will show their environments in a moment, or could not be looked at for want of descriptors.
    pub(crate) look_again: bool,
    /// SIGKILL was refused to some, as they run as another user.
    pub(crate) refused: bool,
}

/// Where the thread is.
#[derive(Debug, Default)]
pub(crate) struct ScanProgress {
    /// The process at which it is; 0 for none.
    pub(crate) at: AtomicI32,
    pub(crate) steps: AtomicU64,
}

impl ScanResult {
    /// Nothing was found.
    pub(crate) fn none(request: &ScanRequest) -> Self {
        Self {
            number: request.number,
            task: request.task,
            survivors: Vec::new(),
            count: 0,
            held: Vec::new(),
            sessions: HashSet::new(),
            uninspected: None,
            look_again: false,
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
