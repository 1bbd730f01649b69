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

/// The process trees of all incarnations.
#[derive(Debug)]
pub(crate) struct ProcessTrees {
    pub(crate) numbers: PidAllocation,
    pub(crate) inspector: Inspector,
    /// The number of the last request to the inspector.
    pub(crate) requests: u64,
    /// Requests that the inspector has not answered, by number.
    pub(crate) unanswered: HashMap<u64, (Key, ScanTask)>,
    /// The pids of the workers, with the start time of each in ticks of the boot clock.
    pub(crate) worker_pids: HashMap<i32, u64>,
    /// Processes outside their worker's process group that were suspended together with the host.
    pub(crate) suspended_outside_group: Vec<PinnedProcess>,
    /// Dropped when all processes are suspended, which notifies the caller.
    pub(crate) suspending: Option<Sender<()>>,
    pub(crate) guard: GuardWatch,
    /// Processes that were reported as unkillable, by consecutive numbers.
    pub(crate) unkillable: HashMap<u64, UnkillableProcess>,
}

/// A process that did not exit in time after SIGKILL. It is reaped if it exits later.
#[derive(Debug)]
pub(crate) struct UnkillableProcess {
    pub(crate) worker: WorkerId,
    pub(crate) process: Arc<WorkerProcess>,
}

/// The watched guard process.
#[derive(Debug, Default)]
pub(crate) struct GuardWatch {
    /// Readable when the guard has exited.
    pub(crate) end: Option<OwnedFd>,
    pub(crate) started: Option<Instant>,
    /// The time before the next replacement.
    pub(crate) backoff: Duration,
}

impl ProcessTrees {
    /// `adopts`: the host is a subreaper, and orphans become its children.
    pub(crate) fn new(commands: CommandSender, adopts: bool) -> Self {
        Self {
            numbers: PidAllocation::new(),
            inspector: Inspector::new(Arc::new(commands), adopts),
            requests: 0,
            unanswered: HashMap::new(),
            worker_pids: HashMap::new(),
            suspended_outside_group: Vec::new(),
            suspending: None,
            guard: GuardWatch::default(),
            unkillable: HashMap::new(),
        }
    }
}
