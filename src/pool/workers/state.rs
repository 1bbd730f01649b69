//! The state of a pool behind its lock: decisions become effects, which are carried out without the lock.

use crate::{
    exit::Exit,
    ids::WorkerId,
    launch::error::SpawnError,
    policy::dispatch::{
        dispatcher::{Dispatch, DispatchState},
        ids::{CallNumber, DemandClass, MemberId, TaskNumber},
        task::{DispatchOutput, Ending},
    },
    pool::workers::{
        error::{StartFailure, SubmitError, TaskErrorKind},
        event::{PoolEvent, PoolEvents},
        shared_task::{SharedTask, TaskResult},
    },
    supervisor::handles::worker::Worker,
};
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

#[derive(Debug)]
pub(crate) struct PoolState {
    pub(crate) dispatch: Dispatch,
    /// The tasks that have not ended.
    pub(crate) tasks: HashMap<TaskNumber, Arc<SharedTask>>,
    pub(crate) calls: HashMap<CallNumber, OpenCall>,
    pub(crate) members: HashMap<MemberId, PoolMember>,
    /// How workers that are killed for it have violated their protocol.
    violations: HashMap<MemberId, Arc<str>>,
    /// The one of the worker whose exit is being handled.
    violation: Option<Arc<str>>,
    /// The workers that the pool's thread has to start.
    pub(crate) starts: VecDeque<MemberId>,
    /// Why the last start has failed.
    start_failure: Option<StartFailure>,
    /// The number of threads that wait for room in the queue.
    pub(crate) submitters: usize,
    /// When the pool's thread wakes by itself, while it waits.
    pub(crate) thread_due: Option<Instant>,
    /// Within which time workers are stopped; `None` for their stop policies.
    pub(crate) stop_within: Option<Duration>,
    pub(crate) counts: PoolCounts,
    pub(crate) events: PoolEvents,
}

/// What has happened so far.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct PoolCounts {
    pub(crate) succeeded: u64,
    pub(crate) failed: u64,
    pub(crate) deaths: u64,
}

/// A call on the wire.
#[derive(Debug)]
pub(crate) struct OpenCall {
    /// Its id there.
    pub(crate) id: u64,
    pub(crate) member: MemberId,
    pub(crate) task: Arc<SharedTask>,
}

#[derive(Debug)]
pub(crate) enum PoolMember {
    /// The pool's thread starts it, or will.
    Spawning {
        is_ready: bool,
        is_stopped: bool,
    },
    Running(Worker),
}

/// What is carried out without the lock.
#[derive(Debug)]
pub(crate) enum Effect {
    Send { call: CallNumber, id: u64, worker: Worker, task: Arc<SharedTask> },
    Cancel { worker: Worker, id: u64 },
    Stop { worker: Worker, within: Option<Duration> },
    Kill(Worker),
    End(Arc<SharedTask>, TaskResult),
    RequestGrant(DemandClass),
    ReturnGrant(DemandClass),
}

impl PoolState {
    pub(crate) fn new(dispatch: Dispatch) -> Self {
        Self {
            dispatch,
            tasks: HashMap::new(),
            calls: HashMap::new(),
            members: HashMap::new(),
            violations: HashMap::new(),
            violation: None,
            starts: VecDeque::new(),
            start_failure: None,
            submitters: 0,
            thread_due: None,
            stop_within: None,
            counts: PoolCounts::default(),
            events: PoolEvents::default(),
        }
    }

    /// A worker was started.
    pub(crate) fn started(&mut self, id: MemberId, worker: Worker, now: Instant, effects: &mut Vec<Effect>) {
        // It may have exited already.
        let Some(PoolMember::Spawning { is_ready, is_stopped }) = self.members.get(&id) else { return };
        let (is_ready, is_stopped) = (*is_ready, *is_stopped);
        if is_stopped {
            effects.push(Effect::Stop { worker: worker.clone(), within: self.stop_within });
        }
        self.members.insert(id, PoolMember::Running(worker));
        if is_ready {
            self.dispatch.ready(id, now);
        }
    }

    /// A worker could not be started.
    pub(crate) fn not_started(&mut self, id: MemberId, error: SpawnError, now: Instant) {
        if matches!(error, SpawnError::SupervisorGone) {
            self.start_failure = Some(StartFailure::SupervisorGone);
            self.dispatch.give_up(now);
        } else {
            let error = Arc::new(error);
            self.events.push(|| PoolEvent::StartFailed(Arc::clone(&error)));
            self.start_failure = Some(StartFailure::Spawn(error));
        }
        self.members.remove(&id);
        self.dispatch.exited(id, now);
    }

    pub(crate) fn ready(&mut self, id: MemberId, worker: WorkerId, now: Instant) {
        self.events.push(|| PoolEvent::WorkerReady(worker));
        match self.members.get_mut(&id) {
            Some(PoolMember::Spawning { is_ready, .. }) => *is_ready = true,
            Some(PoolMember::Running(_)) => self.dispatch.ready(id, now),
            None => {}
        }
    }

    pub(crate) fn exited(&mut self, (id, worker): (MemberId, WorkerId), exit: Option<&Arc<Exit>>, now: Instant) {
        self.members.remove(&id);
        self.violation = self.violations.remove(&id);
        self.calls.retain(|_, call| call.member != id);
        self.counts.deaths += 1;
        if let Some(exit) = exit {
            self.events.push(|| PoolEvent::WorkerExited { worker, exit: Arc::clone(exit) });
            self.start_failure = Some(match &self.violation {
                Some(reason) => StartFailure::Protocol { reason: Arc::clone(reason) },
                None => StartFailure::Exited(Arc::clone(exit)),
            });
        }
        self.dispatch.exited(id, now);
    }

    /// A worker does not keep to its protocol. Its exit ends the tasks that it has.
    pub(crate) fn violated(&mut self, (id, worker): (MemberId, WorkerId), reason: Arc<str>, now: Instant) {
        self.events.push(|| PoolEvent::ProtocolViolated { worker, reason: Arc::clone(&reason) });
        // The first one is the cause.
        self.violations.entry(id).or_insert(reason);
        self.dispatch.lost(id, now);
    }

    /// A call was answered. Returns the task if it ends with that, and the number of attempts.
    pub(crate) fn answered(
        &mut self,
        call: CallNumber,
        is_failure: bool,
        now: Instant,
    ) -> Option<(Arc<SharedTask>, u32)> {
        self.calls.remove(&call);
        let (task, attempts) = self.dispatch.answered(call, is_failure, now)?;
        let count = if is_failure { &mut self.counts.failed } else { &mut self.counts.succeeded };
        *count += 1;
        Some((self.tasks.remove(&task)?, attempts))
    }

    /// The call with this id on the wire of a worker. What follows a violation of the protocol is not trusted.
    pub(crate) fn call_of(&self, member: MemberId, id: u64) -> Option<(CallNumber, &OpenCall)> {
        if self.violations.contains_key(&member) {
            return None;
        }
        let mut calls = self.calls.iter();
        calls.find(|(_, call)| call.id == id && call.member == member).map(|(number, call)| (*number, call))
    }

    /// Why tasks are refused.
    pub(crate) fn refusal(&self, state: DispatchState) -> SubmitError {
        match state {
            DispatchState::Halted => SubmitError::Halted,
            DispatchState::Broken => SubmitError::NoWorkers(self.no_workers()),
            DispatchState::Open | DispatchState::Closed => SubmitError::ShutDown,
        }
    }

    fn no_workers(&self) -> StartFailure {
        self.start_failure.clone().unwrap_or(StartFailure::SupervisorGone)
    }

    /// Turns decisions into effects. `exit` is the exit that they follow from, if there is one.
    pub(crate) fn collect(&mut self, exit: Option<&Arc<Exit>>, next_id: impl Fn() -> u64, effects: &mut Vec<Effect>) {
        for output in self.dispatch.take_outputs() {
            match output {
                DispatchOutput::Start(member) => {
                    self.members.insert(member, PoolMember::Spawning { is_ready: false, is_stopped: false });
                    self.starts.push_back(member);
                }
                DispatchOutput::Send { call, task, member } => {
                    let (Some(PoolMember::Running(worker)), Some(task)) =
                        (self.members.get(&member), self.tasks.get(&task))
                    else {
                        continue;
                    };
                    let (id, task) = (next_id(), Arc::clone(task));
                    self.calls.insert(call, OpenCall { id, member, task: Arc::clone(&task) });
                    effects.push(Effect::Send { call, id, worker: worker.clone(), task });
                }
                DispatchOutput::Cancel { call, member } => {
                    if let (Some(PoolMember::Running(worker)), Some(call)) =
                        (self.members.get(&member), self.calls.get(&call))
                    {
                        effects.push(Effect::Cancel { worker: worker.clone(), id: call.id });
                    }
                }
                DispatchOutput::Stop(member) => match self.members.get_mut(&member) {
                    Some(PoolMember::Running(worker)) => {
                        effects.push(Effect::Stop { worker: worker.clone(), within: self.stop_within });
                    }
                    Some(PoolMember::Spawning { is_stopped, .. }) => *is_stopped = true,
                    None => {}
                },
                DispatchOutput::Kill(member) => match self.members.get_mut(&member) {
                    Some(PoolMember::Running(worker)) => effects.push(Effect::Kill(worker.clone())),
                    Some(PoolMember::Spawning { is_stopped, .. }) => *is_stopped = true,
                    None => {}
                },
                DispatchOutput::Request(class) => effects.push(Effect::RequestGrant(class)),
                DispatchOutput::Return(class) => effects.push(Effect::ReturnGrant(class)),
                DispatchOutput::Slow { task, after } => {
                    if let Some(task) = self.tasks.get(&task) {
                        self.events.push(|| PoolEvent::Slow { request: task.name(), after });
                    }
                }
                DispatchOutput::End { task, attempts, ending } => {
                    let Some(task) = self.tasks.remove(&task) else { continue };
                    self.counts.failed += 1;
                    let error = task.error(attempts, self.reason(ending, exit));
                    effects.push(Effect::End(task, Err(error)));
                }
            }
        }
        self.violation = None;
    }

    fn reason(&self, ending: Ending, exit: Option<&Arc<Exit>>) -> TaskErrorKind {
        if let (Ending::Died | Ending::Poison, Some(reason)) = (&ending, &self.violation) {
            return TaskErrorKind::Protocol { reason: Arc::clone(reason) };
        }
        match (ending, exit) {
            (Ending::Died, Some(exit)) => TaskErrorKind::WorkerDied(Arc::clone(exit)),
            (Ending::Poison, Some(exit)) => TaskErrorKind::Poison(Arc::clone(exit)),
            (Ending::TimedOut(limit), _) => TaskErrorKind::TimedOut { limit },
            (Ending::Cancelled, _) => TaskErrorKind::Cancelled,
            (Ending::Halted, _) => TaskErrorKind::Halted,
            (Ending::ShutDown, _) => TaskErrorKind::ShutDown,
            (Ending::NoWorkers, _) => TaskErrorKind::NoWorkers(self.no_workers()),
            // The event loop has ended without an exit.
            (Ending::Died | Ending::Poison, None) => TaskErrorKind::NoWorkers(StartFailure::SupervisorGone),
        }
    }
}
