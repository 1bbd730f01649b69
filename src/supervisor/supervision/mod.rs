//! Workers and groups across incarnations: restarts, dependencies and shutdown.

pub(crate) mod attach;
pub(crate) mod groups;
pub(crate) mod job_tokens;
pub(crate) mod jobs;
pub(crate) mod membership;
pub(crate) mod restart;
pub(crate) mod shutdown;
pub(crate) mod token_waits;
pub(crate) mod worker;

use crate::{
    exit::ExitCause,
    ids::{GroupId, WorkerId},
    policy::{
        group::{
            model::{AutoShutdown, GroupSettings, Strategy},
            state::Groups,
            transition,
        },
        lifecycle::StopRequest,
    },
    supervisor::{
        control::server::ControlServer,
        events::sink::EventSink,
        process_trees::ProcessTrees,
        reactor::{Reactor, arena::Key},
        spawner::Spawner,
        supervision::{
            shutdown::{Phase, Shutdown},
            token_waits::TokenWaits,
            worker::{UnreportedEnd, WorkerRecord},
        },
        worker::group::SharedGroup,
    },
};
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

/// The parts of the event loop that supervision uses.
#[derive(Debug)]
pub(crate) struct SupervisionContext<'a> {
    pub(crate) reactor: &'a mut Reactor,
    pub(crate) sink: &'a mut EventSink,
    pub(crate) trees: &'a ProcessTrees,
    pub(crate) spawner: &'a Arc<Spawner>,
    pub(crate) shutdown: &'a Shutdown,
    /// Requests to stop incarnations, which the event loop passes on.
    pub(crate) stops: &'a mut VecDeque<StopOrder>,
    pub(crate) server: &'a mut Option<ControlServer>,
}

/// A request to stop an incarnation.
#[derive(Debug)]
pub(crate) struct StopOrder {
    pub(crate) incarnation: Key,
    pub(crate) request: StopRequest,
    pub(crate) cause: ExitCause,
}

impl SupervisionContext<'_> {
    pub(crate) fn stop(&mut self, incarnation: Key, request: StopRequest, cause: ExitCause) {
        self.stops.push_back(StopOrder { incarnation, request, cause });
    }

    /// Requests SIGKILL for the incarnation of a worker, if one runs.
    pub(crate) fn kill(&mut self, record: &WorkerRecord, cause: ExitCause) {
        if let Some(key) = record.key() {
            self.stop(key, StopRequest::Within(Duration::ZERO), record.stop_cause.unwrap_or(cause));
        }
    }

    /// The cause of a stop that a user requests now.
    pub(crate) fn requested_stop(&self) -> ExitCause {
        match self.shutdown.phase {
            Phase::Open => ExitCause::Stop,
            Phase::Stopping { .. } | Phase::Terminating { .. } => ExitCause::SupervisorEnd,
        }
    }
}

/// The workers of one supervisor across their incarnations, and the groups they are in.
#[derive(Debug)]
pub(crate) struct Supervision {
    /// Workers that run, or will run again.
    pub(crate) workers: HashMap<WorkerId, WorkerRecord>,
    pub(crate) seed: u64,
    pub(crate) groups: Groups,
    pub(crate) group_handles: HashMap<GroupId, Arc<SharedGroup>>,
    /// Inputs of the groups that are still to be handled.
    pub(crate) group_inputs: VecDeque<transition::GroupInput>,
    /// The end of an incarnation of the member `cause`, until its group has decided.
    pub(crate) unreported_end: Option<UnreportedEnd>,
    /// The member that exited last; events of groups name it.
    pub(crate) cause: WorkerId,
    /// Workers whose restart waits for room in their window.
    pub(crate) delayed_restarts: Vec<WorkerId>,
    pub(crate) token_waits: TokenWaits,
}

impl Supervision {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            workers: HashMap::new(),
            seed,
            groups: no_groups(),
            group_handles: HashMap::new(),
            group_inputs: VecDeque::new(),
            unreported_end: None,
            cause: WorkerId::SUPERVISOR,
            delayed_restarts: Vec::new(),
            token_waits: TokenWaits::default(),
        }
    }
}

/// The root group, which contains all groups.
pub(crate) const ROOT: GroupId = GroupId(0);

fn no_groups() -> Groups {
    // Without an intensity: each group in it has its own, and ends for good when it gives up.
    let (strategy, auto_shutdown) = (Strategy::OneForOne, AutoShutdown::Never);
    Groups::new(ROOT, GroupSettings { strategy, auto_shutdown, intensity: None, stop_timeout: None })
}
