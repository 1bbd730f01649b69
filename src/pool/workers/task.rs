//! Tasks that were submitted.

use crate::{
    pool::workers::{
        core::PoolCore,
        error::{TaskError, TaskErrorKind},
        shared_task::{DeliverFinished, SharedTask, TaskResult},
    },
    supervisor::clock::now,
    wire::decode::{DecodeError, decode},
};
use crossbeam_channel::Sender;
use serde::de::DeserializeOwned;
use std::{fmt, marker::PhantomData, process, sync::Arc, time::Duration};

/// A task of a [`Pool`](crate::pool::Pool), from [`submit`](crate::pool::Pool::submit). Dropping it cancels the task, unless it has ended.
#[must_use = "a task that is dropped is cancelled"]
pub struct Task<Response> {
    pub(crate) shared: Arc<SharedTask>,
    pool: Arc<PoolCore>,
    /// Where the result goes when it is detached.
    finished: Sender<FinishedTask<Response>>,
    /// The process that has submitted it.
    owner: u32,
}

impl<Response> Task<Response> {
    pub(crate) fn new(shared: Arc<SharedTask>, pool: Arc<PoolCore>, finished: Sender<FinishedTask<Response>>) -> Self {
        Self { shared, pool, finished, owner: process::id() }
    }

    /// The number of the task in its pool, counted from 1.
    pub fn number(&self) -> u64 {
        self.shared.number.0
    }

    /// Whether the task has ended: its result is there.
    pub fn is_finished(&self) -> bool {
        self.shared.has_ended()
    }

    /// Cancels the task, unless it has ended. One that waits for a worker is not sent. Otherwise the worker is notified
    /// (`$/cancelRequest`); if it does not answer within the [grace period](crate::pool::PoolBuilder::cancel_grace), it is killed and
    /// replaced. [`wait`](Self::wait) returns [`Cancelled`](TaskErrorKind::Cancelled) at once.
    pub fn cancel(&self) {
        self.pool.cancel(self.shared.number);
    }
}

impl<Response: DeserializeOwned> Task<Response> {
    /// Waits for the result. Without a [timeout](crate::pool::TaskBuilder::timeout) of the task, this takes as long as the worker does.
    ///
    /// # Errors
    ///
    /// [`TaskError`].
    pub fn wait(self) -> Result<Response, TaskError> {
        // The result is taken by this call alone, so there is one.
        let result = self.shared.wait(None);
        result
            .map_or_else(|| Err(self.shared.error(0, TaskErrorKind::Cancelled)), |result| decoded(&self.shared, result))
    }

    /// Waits up to `timeout` for the result. The task goes on if there is none yet, and is returned.
    ///
    /// # Errors
    ///
    /// The task, if it has not ended.
    pub fn wait_timeout(self, timeout: Duration) -> Result<Result<Response, TaskError>, Self> {
        // A timeout beyond the range of the clock never expires.
        let deadline = now().checked_add(timeout);
        match self.shared.wait(deadline) {
            Some(result) => Ok(decoded(&self.shared, result)),
            None => Err(self),
        }
    }

    /// Returns what the worker has last reported with [`CurrentTask::progress`](crate::pool::CurrentTask::progress) since the last call of
    /// this method; `None` if there is nothing new. Earlier reports are not kept. Never blocks.
    ///
    /// # Errors
    ///
    /// If it is not a `P`.
    pub fn progress<P: DeserializeOwned>(&self) -> Result<Option<P>, DecodeError> {
        self.shared.take_progress().map(|value| decode(value.get())).transpose()
    }

    /// Lets the task end without this handle. Its result is received from [`Pool::finished`](crate::pool::Pool::finished). Returns the
    /// number of the task.
    pub fn detach(self) -> u64
    where
        Response: Send + 'static,
    {
        let finished = self.finished.clone();
        self.detach_to(finished)
    }

    pub(crate) fn detach_to(mut self, finished: Sender<FinishedTask<Response>>) -> u64
    where
        Response: Send + 'static,
    {
        // No longer cancelled by the drop.
        self.owner = 0;
        self.shared.detach(Arc::new(Finished(finished)));
        self.number()
    }
}

fn decoded<R: DeserializeOwned>(task: &SharedTask, result: TaskResult) -> Result<R, TaskError> {
    decode(result?.get()).map_err(|error| task.error(1, TaskErrorKind::InvalidResult(Box::new(error))))
}

impl<Response> Drop for Task<Response> {
    fn drop(&mut self) {
        // A fork of the host has a copy, and its parent still waits.
        if !self.shared.has_ended() && self.owner == process::id() {
            self.cancel();
        }
    }
}

impl<Response> fmt::Debug for Task<Response> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.shared, formatter)
    }
}

/// A task that has ended, from [`Pool::finished`](crate::pool::Pool::finished).
pub struct FinishedTask<Response> {
    shared: Arc<SharedTask>,
    result: TaskResult,
    response: PhantomData<fn() -> Response>,
}

impl<Response: DeserializeOwned> FinishedTask<Response> {
    /// The number of the task in its pool.
    pub fn number(&self) -> u64 {
        self.shared.number.0
    }

    /// The name of the task: as [given](crate::pool::TaskBuilder::name), or `task N`.
    pub fn name(&self) -> Box<str> {
        self.shared.name()
    }

    /// Returns the result.
    ///
    /// # Errors
    ///
    /// [`TaskError`].
    pub fn into_result(self) -> Result<Response, TaskError> {
        decoded(&self.shared, self.result)
    }
}

impl<Response> fmt::Debug for FinishedTask<Response> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let error = self.result.as_ref().err();
        formatter.debug_struct("FinishedTask").field("name", &self.shared.name()).field("error", &error).finish()
    }
}

struct Finished<Response>(Sender<FinishedTask<Response>>);

impl<Response> DeliverFinished for Finished<Response> {
    fn deliver(&self, task: Arc<SharedTask>, result: TaskResult) {
        // Fails if the pool and all receivers are dropped.
        drop(self.0.send(FinishedTask { shared: task, result, response: PhantomData }));
    }
}
