//! The processes of all incarnations of one supervisor.

use crate::{
    ids::WorkerId,
    supervisor::{
        commands::CommandSender,
        containment::{
            inspector::{Inspector, request::ScanTask},
            scan::PidAllocation,
        },
        reactor::arena::Key,
        worker::process::WorkerProcess,
    },
    sys::proc::pinned::PinnedProcess,
};
use crossbeam_channel::Sender;
use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

/// What is known of the processes of all trees.
#[derive(Debug)]
pub(crate) struct ProcessTrees {
    pub(crate) numbers: PidAllocation,
    pub(crate) inspector: Inspector,
    /// The number of the last request to the inspector.
    pub(crate) requests: u64,
    /// Requests that the inspector has not answered, by their numbers.
    pub(crate) asked: HashMap<u64, (Key, ScanTask)>,
    /// The workers' own processes, and in which tick of the boot clock each was started.
    pub(crate) own: HashMap<i32, u64>,
    /// Processes that have left their worker's group and were stopped together with the host.
    pub(crate) away: Vec<PinnedProcess>,
    /// Dropped when everything that is stopped together with the host is stopped.
    pub(crate) suspending: Option<Sender<()>>,
    pub(crate) guard: GuardWatch,
    /// Processes that were reported as unkillable, by a number of their own.
    pub(crate) unkillable: HashMap<u64, UnkillableProcess>,
}

/// A process that SIGKILL had not ended in time; it is reaped when it ends after all.
#[derive(Debug)]
pub(crate) struct UnkillableProcess {
    pub(crate) worker: WorkerId,
    pub(crate) process: Arc<WorkerProcess>,
}

/// The guard that is watched.
#[derive(Debug, Default)]
pub(crate) struct GuardWatch {
    pub(crate) end: Option<OwnedFd>,
    pub(crate) since: Option<Instant>,
    pub(crate) pause: Duration,
}

impl ProcessTrees {
    /// `adopts`: the host is a subreaper, and orphans become its children.
    pub(crate) fn new(commands: CommandSender, adopts: bool) -> Self {
        Self {
            numbers: PidAllocation::new(),
            inspector: Inspector::new(Arc::new(commands), adopts),
            requests: 0,
            asked: HashMap::new(),
            own: HashMap::new(),
            away: Vec::new(),
            suspending: None,
            guard: GuardWatch::default(),
            unkillable: HashMap::new(),
        }
    }
}
