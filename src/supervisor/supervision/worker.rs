//! One worker across its incarnations.

use crate::{
    exit::{Exit, ExitCause, ExitStatus},
    launch::error::SpawnError,
    policy::{
        restart::{AfterExit, GiveUpReason},
        restart_history::{RestartDecision, RestartHistory, RunEnd},
    },
    supervisor::{
        clock::now,
        events::{
            event::{Event, EventKind},
            sink::EventSink,
        },
        reactor::arena::Key,
        spec::{SharedSpec, group::GroupError},
        worker::{SharedWorker, job::ScheduledJob},
    },
};
use crossbeam_channel::Sender;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// The state that the user has requested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DesiredState {
    /// Running, and restarted according to its policy.
    Run,
    /// Restarted.
    Restart,
    /// Stopped for good.
    Stop,
}

/// The present phase of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WorkerPhase {
    Running(Key),
    /// Waits for its restart at this time.
    Backoff(Instant),
    /// Waits for the exit of its last process, which was reported as unkillable.
    Blocked,
    /// The spawner starts it.
    Spawning,
    /// Waits for a process that is started elsewhere.
    Attaching,
    /// A member that its group does not run at present.
    Stopped,
    /// A job that waits for its dependencies or for a slot.
    Queued,
}

/// The end of an incarnation, until it is decided what happens to the worker.
#[derive(Debug)]
pub(crate) enum UnreportedEnd {
    Exited(Arc<Exit>),
    SpawnFailed(Arc<SpawnError>),
}

/// How far the end of a worker has been reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EndState {
    /// The final event of the present run has not been sent.
    Unreported,
    /// The final event has been sent, or none is due. Siblings restart the worker: it has another final event if it starts.
    Reported,
    /// The final event has been sent, and the handles know the end.
    Published,
}

/// The restarts of one worker.
#[derive(Debug)]
pub(crate) struct Restarts {
    /// The number of restarts.
    pub(crate) count: u32,
    pub(crate) history: RestartHistory,
    /// The time of the last exit that its group did not cause, and the delay from then to the next start. `None` once it is started, and if a
    /// user starts it.
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
    /// The last exit and its time.
    pub(crate) last: Option<(Arc<Exit>, Instant)>,
    /// It belongs to a group, which decides when it starts.
    pub(crate) is_member: bool,
    pub(crate) end: EndState,
    /// The stop timeout of its group has expired during its start.
    pub(crate) is_overdue: bool,
    /// Why its present incarnation is stopped, or is to be stopped once it has started.
    pub(crate) stop_cause: Option<ExitCause>,
    /// It gave up, but a restart of a group may start it again.
    pub(crate) gave_up: Option<GiveUpReason>,
    /// Receives the result of the first start.
    pub(crate) first_start: Option<Sender<Result<(), GroupError>>>,
    /// It is a job of a queue, whose schedule decides when it starts.
    pub(crate) job: Option<ScheduledJob>,
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
            end: EndState::Unreported,
            is_overdue: false,
            stop_cause: None,
            gave_up: None,
            first_start: None,
            job: None,
        }
    }

    /// Creates the record of a member that is not started yet.
    pub(crate) fn member(shared: &Arc<SharedWorker>, spec: &SharedSpec, seed: u64) -> Self {
        let restarts = Restarts::new(RestartHistory::of_member(spec.restart.clone(), seed));
        Self { is_member: true, restarts, ..Self::new(shared, spec, WorkerPhase::Stopped, seed) }
    }

    /// Resets the history of restarts, since a user starts the worker.
    pub(crate) fn reset_restarts(&mut self) {
        self.restarts.history.reset();
        self.restarts.own_end = None;
    }

    /// Adjusts the history of restarts to a restart of the group.
    pub(crate) fn on_group_restart(&mut self) {
        match &mut self.restarts.own_end {
            Some((_, pause)) => *pause = self.restarts.history.on_group_restart_caused(),
            None => self.restarts.history.reset(),
        }
    }

    /// Reports a completed first start to the caller that waits for it.
    pub(crate) fn answer_first_start(&mut self) {
        drop(self.first_start.take().map(|answer| answer.send(Ok(()))));
    }

    /// Returns the last exit and its time, which can be long before the end of its group.
    pub(crate) fn last_exit(&self) -> (Arc<Exit>, Instant) {
        self.last.clone().unwrap_or_else(|| (Arc::new(Exit::of(ExitStatus::NeverStarted)), now()))
    }

    /// Sends the final event of the present run, and publishes the end with it.
    pub(crate) fn send_final(&mut self, event: Event, sink: &mut EventSink) {
        self.end = EndState::Published;
        self.set_job_outcome(&event.kind);
        sink.send_final(event, &self.shared, self.last_exit());
    }

    /// Publishes the end of a worker that has no process and is not started again: with the final event of the present run, unless it
    /// has been sent.
    pub(crate) fn publish_end(&mut self, next: AfterExit, sink: &mut EventSink) {
        match self.end {
            EndState::Published => {}
            EndState::Reported => {
                self.end = EndState::Published;
                self.shared.set_ended(self.last_exit());
            }
            EndState::Unreported => {
                let event = Event::of(&self.shared, self.shared.incarnation(), EventKind::NotStarted { next });
                self.send_final(event, sink);
            }
        }
    }

    /// Whether it is published as ended, until its group starts it again.
    pub(crate) fn has_ended(&self) -> bool {
        self.end == EndState::Published
    }

    /// Returns the key of the running incarnation.
    pub(crate) fn key(&self) -> Option<Key> {
        match self.phase {
            WorkerPhase::Running(key) => Some(key),
            WorkerPhase::Backoff(_)
            | WorkerPhase::Blocked
            | WorkerPhase::Spawning
            | WorkerPhase::Attaching
            | WorkerPhase::Stopped
            | WorkerPhase::Queued => None,
        }
    }

    /// Decides about a restart after the end of an incarnation or a failed start.
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
