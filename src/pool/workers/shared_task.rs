//! A task as its handle and the pool share it.

use crate::{
    policy::dispatch::ids::TaskNumber,
    pool::workers::error::{TaskError, TaskErrorKind},
    supervisor::{clock::now, sync::lock},
};
use serde_json::value::RawValue;
use std::{
    fmt, mem,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

/// The JSON text of the result of a task, or the error.
pub(crate) type TaskResult = Result<Box<RawValue>, TaskError>;

/// Receives the end of a task that has no handle any more.
pub(crate) trait DeliverFinished: Send + Sync {
    fn deliver(&self, task: Arc<SharedTask>, result: TaskResult);
}

pub(crate) struct SharedTask {
    pub(crate) number: TaskNumber,
    /// As the user has named it.
    name: Option<Box<str>>,
    pub(crate) request: Box<RawValue>,
    state: Mutex<TaskState>,
    ended: Condvar,
    has_ended: AtomicBool,
}

struct TaskState {
    result: ResultState,
    progress: Option<Box<RawValue>>,
    has_waiter: bool,
}

enum ResultState {
    Open,
    /// Nothing waits for the task, and its end goes there.
    Detached(Arc<dyn DeliverFinished>),
    Ended(TaskResult),
    /// The result was taken.
    Taken,
}

impl SharedTask {
    pub(crate) fn new(number: TaskNumber, name: Option<Box<str>>, request: Box<RawValue>) -> Self {
        let state = TaskState { result: ResultState::Open, progress: None, has_waiter: false };
        let has_ended = AtomicBool::new(false);
        Self { number, name, request, state: Mutex::new(state), ended: Condvar::new(), has_ended }
    }

    pub(crate) fn name(&self) -> Box<str> {
        self.name.clone().unwrap_or_else(|| format!("task {}", self.number.0).into())
    }

    pub(crate) fn error(&self, attempts: u32, kind: TaskErrorKind) -> TaskError {
        TaskError { request: self.name(), attempts, kind }
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::SeqCst)
    }

    /// Sets the result. Called once.
    pub(crate) fn end(self: &Arc<Self>, result: TaskResult) {
        self.has_ended.store(true, Ordering::SeqCst);
        let mut state = lock(&self.state);
        match mem::replace(&mut state.result, ResultState::Taken) {
            ResultState::Detached(receiver) => {
                drop(state);
                receiver.deliver(Arc::clone(self), result);
            }
            ResultState::Open => {
                state.result = ResultState::Ended(result);
                let has_waiter = state.has_waiter;
                drop(state);
                if has_waiter {
                    self.ended.notify_all();
                }
            }
            ended @ (ResultState::Ended(_) | ResultState::Taken) => {
                debug_assert!(false, "a task ends once");
                state.result = ended;
            }
        }
    }

    /// Delivers the result there when the task ends, or now.
    pub(crate) fn detach(self: &Arc<Self>, receiver: Arc<dyn DeliverFinished>) {
        let mut state = lock(&self.state);
        match mem::replace(&mut state.result, ResultState::Taken) {
            ResultState::Ended(result) => {
                drop(state);
                receiver.deliver(Arc::clone(self), result);
            }
            ResultState::Open => state.result = ResultState::Detached(receiver),
            other @ (ResultState::Detached(_) | ResultState::Taken) => state.result = other,
        }
    }

    /// Takes the result; `None` if the task has not ended at the deadline, or the result was taken. Without a deadline it waits for good.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> Option<TaskResult> {
        let mut state = lock(&self.state);
        while matches!(state.result, ResultState::Open) {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(now()));
            if left.is_some_and(|left| left.is_zero()) {
                return None;
            }
            state.has_waiter = true;
            state = match left {
                Some(left) => self.ended.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
                None => self.ended.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
        match mem::replace(&mut state.result, ResultState::Taken) {
            ResultState::Ended(result) => Some(result),
            other @ (ResultState::Open | ResultState::Detached(_) | ResultState::Taken) => {
                state.result = other;
                None
            }
        }
    }

    pub(crate) fn set_progress(&self, progress: Box<RawValue>) {
        // The previous one is dropped outside the lock.
        let previous = lock(&self.state).progress.replace(progress);
        drop(previous);
    }

    /// Takes the last report since the last call.
    pub(crate) fn take_progress(&self) -> Option<Box<RawValue>> {
        lock(&self.state).progress.take()
    }
}

impl fmt::Debug for SharedTask {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut task = formatter.debug_struct("Task");
        task.field("name", &self.name()).field("has_ended", &self.has_ended()).finish()
    }
}
