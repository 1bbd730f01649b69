//! Carries out what the dispatch decides.

use crate::{
    exit::Exit,
    policy::{
        dispatch::{
            dispatcher::Dispatch,
            ids::{CallNumber, DemandClass, TaskNumber},
            settings::DispatchSettings,
            task::TaskTerms,
        },
        schedule::task::{TaskId, TaskOutput},
    },
    pool::workers::{
        endpoint::Endpoint,
        error::{SubmitError, TaskErrorKind},
        shared_task::SharedTask,
        state::{Effect, PoolState},
        tickets::BudgetQueue,
    },
    supervisor::{
        clock::now, handles::spawn::WorkerStarter, reactor::report::Report, spec::WorkerSpec, sync::lock,
        worker::budget::SharedBudget,
    },
    wire::jsonrpc::{
        completion::{Completion, ObserveCompletion},
        error::{Answer, CallError},
    },
};
use serde_json::value::RawValue;
use std::{
    fmt,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

/// What the handles, the workers' observers and the thread of a pool share.
pub(crate) struct PoolCore {
    me: Weak<Self>,
    state: Mutex<PoolState>,
    /// Notified when the queue has room.
    room: Condvar,
    /// Notified when the pool's thread has something to do.
    work: Condvar,
    /// Notified when the last worker has exited after the end of the pool.
    over: Condvar,
    pub(crate) endpoint: Arc<dyn Endpoint>,
    pub(crate) starter: WorkerStarter,
    pub(crate) spec: WorkerSpec,
    /// How many tasks may wait.
    queue_limit: usize,
    budget: Option<BudgetQueue>,
}

/// A task that is not in the pool yet.
#[derive(Debug)]
pub(crate) struct NewTask {
    pub(crate) request: Box<RawValue>,
    pub(crate) name: Option<Box<str>>,
    pub(crate) terms: TaskTerms,
}

/// A task that was not accepted.
#[derive(Debug)]
pub(crate) struct RefusedTask {
    pub(crate) error: SubmitError,
    pub(crate) task: NewTask,
}

/// How long a submit waits for room.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Patience {
    None,
    Until(Option<Instant>),
}

impl PoolCore {
    pub(crate) fn new(
        starter: WorkerStarter,
        spec: WorkerSpec,
        endpoint: Arc<dyn Endpoint>,
        (settings, queue_limit): (DispatchSettings, usize),
        budget: Option<Arc<SharedBudget>>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            state: Mutex::new(PoolState::new(Dispatch::new(settings))),
            room: Condvar::new(),
            work: Condvar::new(),
            over: Condvar::new(),
            endpoint,
            starter,
            spec,
            queue_limit,
            budget: budget.map(|budget| BudgetQueue::new(budget, Weak::clone(me))),
        })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, PoolState> {
        lock(&self.state)
    }

    /// Changes the state, and carries out what follows. `exit` is the exit of a worker, if that is the change.
    pub(crate) fn change<T>(
        &self,
        exit: Option<&Arc<Exit>>,
        change: impl FnOnce(&mut PoolState, Instant, &mut Vec<Effect>) -> T,
    ) -> T {
        self.change_locked(self.lock(), exit, change)
    }

    fn change_locked<T>(
        &self,
        mut state: MutexGuard<'_, PoolState>,
        exit: Option<&Arc<Exit>>,
        change: impl FnOnce(&mut PoolState, Instant, &mut Vec<Effect>) -> T,
    ) -> T {
        let mut effects = Vec::new();
        let result = change(&mut state, now(), &mut effects);
        state.collect(exit, || self.endpoint.next_id(), &mut effects);
        let is_over = state.dispatch.is_over();
        // With half of the queue free, so that a submitter does not run once for each task.
        if state.submitters > 0 && (state.dispatch.count_waiting() <= self.queue_limit / 2 || !state.dispatch.is_open())
        {
            self.room.notify_all();
        }
        let is_earlier = |due: Instant| state.thread_due.is_none_or(|thread_due| due < thread_due);
        if is_over
            || !state.starts.is_empty()
            || !state.events.is_empty()
            || state.dispatch.next_timer().is_some_and(is_earlier)
        {
            self.work.notify_all();
        }
        if is_over {
            self.over.notify_all();
        }
        drop(state);
        for effect in effects {
            self.carry_out(effect);
        }
        if let (true, Some(budget)) = (is_over, &self.budget) {
            budget.end();
        }
        result
    }

    fn carry_out(&self, effect: Effect) {
        match effect {
            Effect::Send { call, id, worker, task } => {
                // A method runs, so there is a reference.
                let me = self.me.upgrade();
                let completion = me.map_or_else(Completion::default, |me| Completion::observed(me, call.0));
                let sent = self.endpoint.send(&worker, (id, &task.request), completion);
                if let Err(error) = sent {
                    self.not_sent(call, error);
                } else if task.has_ended() {
                    // It may have been cancelled before it was sent. A second cancellation is ignored.
                    self.endpoint.cancel(&worker, id);
                }
            }
            Effect::Cancel { worker, id } => self.endpoint.cancel(&worker, id),
            Effect::Stop { worker, within } => {
                self.endpoint.ending(&worker);
                drop(match within {
                    Some(time) => worker.stop_timeout(time),
                    None => worker.stop(),
                });
            }
            // If it is refused, the supervisor reports that with the exit.
            Effect::Kill(worker) => drop(worker.kill()),
            Effect::End(task, result) => task.end(result),
            Effect::RequestGrant(class) => {
                if let Some(budget) = &self.budget {
                    budget.request(TaskId(self.starter.registry.next_id()), class);
                }
            }
            Effect::ReturnGrant(class) => {
                if let Some(budget) = &self.budget {
                    budget.give_back(class);
                }
            }
        }
    }

    fn not_sent(&self, call: CallNumber, error: CallError) {
        if let CallError::Encode(_) = error {
            return self.answered(call, Err(error));
        }
        self.change(None, |state, now, _| {
            state.calls.remove(&call);
            state.dispatch.unsent(call, now);
        });
    }

    /// A call has ended.
    pub(crate) fn answered(&self, call: CallNumber, answer: Answer) {
        match answer {
            // The exit follows, and with it more is known; or the connection is closed, and the worker is killed.
            Err(CallError::WorkerExited { .. }) => return,
            // The worker reads no more.
            Err(CallError::Io(_)) => {
                return self.change(None, |state, now, _| {
                    if let Some(member) = state.calls.get(&call).map(|call| call.member) {
                        state.dispatch.lost(member, now);
                    }
                });
            }
            Ok(_) | Err(_) => {}
        }
        let answer = self.endpoint.interpret(answer);
        let is_failure = answer.is_err();
        let ended = self.change(None, |state, now, _| state.answered(call, is_failure, now));
        if let Some((task, attempts)) = ended {
            let result = answer.map_err(|error| {
                task.error(
                    attempts,
                    match error {
                        CallError::Rpc(error) => TaskErrorKind::Failed(error),
                        CallError::InvalidResult(error) => TaskErrorKind::InvalidResult(error),
                        other => TaskErrorKind::Call(Box::new(other)),
                    },
                )
            });
            task.end(result);
        }
    }

    /// The budget has granted a request.
    fn granted(&self, ticket: TaskId) {
        if let Some(class) = self.budget.as_ref().and_then(|budget| budget.granted(ticket)) {
            self.change(None, |state, now, _| state.dispatch.granted(class, now));
        }
    }

    /// The class of tasks that take this of the budget.
    pub(crate) fn class(&self, weight: u64, needs: &[(Box<str>, u64)]) -> Result<Option<DemandClass>, SubmitError> {
        match &self.budget {
            Some(budget) => Ok(Some(budget.class(weight, needs)?)),
            None => Err(SubmitError::NoBudget),
        }
    }

    /// Adds a task. Returns it with the error if it is not accepted.
    pub(crate) fn submit(&self, new: NewTask, patience: Patience) -> Result<Arc<SharedTask>, Box<RefusedTask>> {
        let mut state = self.lock();
        while state.dispatch.is_open() && state.dispatch.count_waiting() >= self.queue_limit {
            let left = match patience {
                Patience::None => Some(Duration::ZERO),
                Patience::Until(deadline) => deadline.map(|deadline| deadline.saturating_duration_since(now())),
            };
            if left.is_some_and(|left| left.is_zero()) {
                let error = SubmitError::Full { waiting: state.dispatch.count_waiting() };
                return Err(Box::new(RefusedTask { error, task: new }));
            }
            state.submitters += 1;
            state = match left {
                Some(left) => self.room.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
                None => self.room.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
            state.submitters -= 1;
        }
        self.change_locked(state, None, |state, now, _| match state.dispatch.submit(new.terms, now) {
            Ok(number) => {
                let task = Arc::new(SharedTask::new(number, new.name, new.request));
                state.tasks.insert(number, Arc::clone(&task));
                Ok(task)
            }
            Err(refusal) => Err(Box::new(RefusedTask { error: state.refusal(refusal), task: new })),
        })
    }

    pub(crate) fn cancel(&self, task: TaskNumber) {
        self.change(None, |state, now, _| state.dispatch.cancel(task, now));
    }

    /// Waits until all workers have exited after the end of the pool. Returns false at the deadline.
    pub(crate) fn wait_over(&self, deadline: Option<Instant>) -> bool {
        let mut state = self.lock();
        while !state.dispatch.is_over() {
            let left = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(now()));
            if left.is_zero() {
                return false;
            }
            state = self.over.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Waits, on the pool's thread, until there is something to do, a timer is due, or until `also_due`.
    pub(crate) fn wait_for_work<'a>(
        &self,
        mut state: MutexGuard<'a, PoolState>,
        also_due: Option<Instant>,
    ) -> MutexGuard<'a, PoolState> {
        let due = state.dispatch.next_timer().into_iter().chain(also_due).min();
        state.thread_due = due;
        let mut state = match due {
            Some(due) => {
                let left = due.saturating_duration_since(now());
                self.work.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
            }
            None => self.work.wait(state).unwrap_or_else(PoisonError::into_inner),
        };
        state.thread_due = None;
        state
    }
}

impl Report<TaskOutput> for PoolCore {
    fn report(&self, output: TaskOutput) {
        if let TaskOutput::Start { task, .. } = output {
            self.granted(task);
        }
    }
}

impl ObserveCompletion for PoolCore {
    fn completed(&self, tag: u64, answer: Answer) {
        self.answered(CallNumber(tag), answer);
    }
}

impl fmt::Debug for PoolCore {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("PoolCore").finish_non_exhaustive()
    }
}
