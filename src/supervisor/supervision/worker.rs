//! One worker across its incarnations, as the loop sees it.

use crate::{
    exit::{Exit, ExitStatus},
    policy::{
        restart::GiveUpReason,
        restart_history::{RestartDecision, RestartHistory, RunEnd},
    },
    supervisor::{
        clock::now,
        reactor::arena::Key,
        spec::{SharedSpec, group::GroupError},
        worker::SharedWorker,
    },
};
use crossbeam_channel::Sender;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// What its user wants of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DesiredState {
    /// What the policy says.
    Run,
    /// To begin anew.
    Restart,
    /// To end.
    Stop,
}

/// Where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WorkerPhase {
    Running(Key),
    /// It is started again then, unless that has changed.
    Backoff(Instant),
    /// It is started as soon as its last process has ended, which SIGKILL has not ended in time.
    Blocked,
    /// The spawner has it.
    Spawning,
    /// A member of a group that is not to run just now.
    Stopped,
}

/// The restarts of one worker.
#[derive(Debug)]
pub(crate) struct Restarts {
    /// How many there were.
    pub(crate) count: u32,
    pub(crate) history: RestartHistory,
    /// When the worker exited last, if that was its own exit, and the delay of its next start from then on. `None` once it is started,
    /// and where a user starts it.
    pub(crate) own_end: Option<(Instant, Duration)>,
}

impl Restarts {
    fn new(history: RestartHistory) -> Self {
        Self { count: 0, history, own_end: None }
    }
}

#[derive(Debug)]
pub(crate) struct WorkerRecord {
    pub(crate) shared: Arc<SharedWorker>,
    pub(crate) spec: SharedSpec,
    pub(crate) phase: WorkerPhase,
    pub(crate) desired: DesiredState,
    pub(crate) restarts: Restarts,
    /// How its last incarnation ended, and when.
    pub(crate) last: Option<(Arc<Exit>, Instant)>,
    /// Its group says when it starts.
    pub(crate) is_member: bool,
    /// It is told to have ended, until its group wants it again.
    pub(crate) is_stopped: bool,
    /// Its group's end has had its time while it was being started.
    pub(crate) is_overdue: bool,
    /// It gave up, and the group around its group may start it again all the same.
    pub(crate) gave_up: Option<GiveUpReason>,
    /// Waits for its first start, or for the reason why there is none.
    pub(crate) first_start: Option<Sender<Result<(), GroupError>>>,
}

impl WorkerRecord {
    pub(crate) fn new(shared: &Arc<SharedWorker>, spec: &SharedSpec, phase: WorkerPhase, seed: u64) -> Self {
        Self {
            shared: Arc::clone(shared),
            spec: Arc::clone(spec),
            phase,
            desired: DesiredState::Run,
            restarts: Restarts::new(RestartHistory::new(spec.restart.clone(), seed)),
            last: None,
            is_member: false,
            is_stopped: false,
            is_overdue: false,
            gave_up: None,
            first_start: None,
        }
    }

    /// A member of a group, not started yet.
    pub(crate) fn member(shared: &Arc<SharedWorker>, spec: &SharedSpec, seed: u64) -> Self {
        let restarts = Restarts::new(RestartHistory::of_member(spec.restart.clone(), seed));
        Self { is_member: true, restarts, ..Self::new(shared, spec, WorkerPhase::Stopped, seed) }
    }

    /// A user starts it: nothing that was counts any more.
    pub(crate) fn begin_anew(&mut self) {
        self.restarts.history.reset();
        self.restarts.own_end = None;
    }

    /// Its group begins a new life.
    pub(crate) fn begin_next_life(&mut self) {
        match &mut self.restarts.own_end {
            Some((_, pause)) => *pause = self.restarts.history.on_group_restart_caused(),
            None => self.restarts.history.reset(),
        }
    }

    /// Whoever waits for its first start has an answer. An answer that is not received any more is not needed.
    pub(crate) fn answer_first_start(&mut self) {
        drop(self.first_start.take().map(|answer| answer.send(Ok(()))));
    }

    /// How its last incarnation has ended, and when: its group's end may come much later.
    pub(crate) fn last_exit(&self) -> (Arc<Exit>, Instant) {
        self.last.clone().unwrap_or_else(|| (Arc::new(Exit::of(ExitStatus::NeverStarted)), now()))
    }

    pub(crate) fn key(&self) -> Option<Key> {
        match self.phase {
            WorkerPhase::Running(place) => Some(place),
            WorkerPhase::Backoff(_) | WorkerPhase::Blocked | WorkerPhase::Spawning | WorkerPhase::Stopped => None,
        }
    }

    /// What becomes of it now that an incarnation has ended, or could not begin.
    pub(crate) fn decide(&mut self, cause: RunEnd, now: Instant) -> RestartDecision {
        match self.desired {
            DesiredState::Run => self.restarts.history.decide(cause, now),
            DesiredState::Stop => RestartDecision::Finish,
            DesiredState::Restart => {
                self.desired = DesiredState::Run;
                RestartDecision::Restart { after: Duration::ZERO }
            }
        }
    }
}
