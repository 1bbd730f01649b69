//! Futures of workers and calls.

use crate::{
    exit::Exit,
    supervisor::{
        control::{
            call::{PendingCall, decode_result},
            connection::WhenFull,
        },
        handles::{
            group::WorkerGroup,
            stop::{RestartHandle, StopHandle, StopReport},
            worker::Worker,
        },
        worker::{group::GroupEndReason, process::WorkerProcess, wait_error::WaitError},
    },
    wire::jsonrpc::{completion::Completion, error::CallError},
};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    marker::PhantomData,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

/// A call as a future: from [`Worker::call_async`] and [`PendingCall::result`]. Its output is the result or why there is none.
///
/// The call was sent already: polling only waits for the answer. Dropping the future cancels the call, and the worker is notified; so does
/// the time limit of a runtime, such as `tokio::time::timeout`, which drops it. It must not be polled after its output was returned.
#[must_use = "a call that is dropped is cancelled"]
pub struct CallFuture<R> {
    /// The error is taken by the first poll.
    call: Result<PendingCall, Option<CallError>>,
    result: PhantomData<fn() -> R>,
}

impl<R> std::fmt::Debug for CallFuture<R> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("CallFuture").field("call", &self.call).finish()
    }
}

impl<R: DeserializeOwned> Future for CallFuture<R> {
    type Output = Result<R, CallError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.call {
            Ok(call) => call.completion.poll(context.waker()).map(|answer| {
                let result = answer.and_then(|answer| decode_result(&answer));
                call.span.end(result.as_ref().err());
                result
            }),
            Err(error) => error.take().map_or(Poll::Pending, |error| Poll::Ready(Err(error))),
        }
    }
}

impl PendingCall {
    /// Returns a future of the result, for asynchronous programs. Dropping it cancels the call.
    ///
    /// Requires the feature `async`.
    pub fn result<R: DeserializeOwned>(self) -> CallFuture<R> {
        CallFuture { call: Ok(self), result: PhantomData }
    }
}

/// For asynchronous programs, with the feature `async`.
impl Worker {
    /// Calls a method of the worker. As [`call`](Self::call), for a task instead of a thread. The call is sent at once, also if the future
    /// is never polled. A call that cannot be sent yet waits in its place among other calls and notifications, and has no limit: it is
    /// never refused with [`QueueFull`](CallError::QueueFull), since its bytes belong to the future.
    ///
    /// There is no timeout: `tokio::time::timeout` and the like end a call by dropping its future.
    ///
    /// Cancel safe: dropping the future cancels the call. The worker is notified by `$/cancelRequest`, unless the call waits still and is
    /// never sent.
    pub fn call_async<P, R>(&self, method: &str, params: &P) -> CallFuture<R>
    where
        P: Serialize + ?Sized,
        R: DeserializeOwned,
    {
        let call = self.prepare_call(method, params, WhenFull::Queue);
        let call = call.and_then(|call| call.send(Completion::default()));
        CallFuture { call: call.map_err(Some), result: PhantomData }
    }

    /// Waits until the worker has ended for good and its last event is in the channel, as [`wait`](Self::wait). A restart does not end the
    /// wait.
    ///
    /// A worker whose window is full cannot end before its events are received: await it in another task than the one that receives
    /// events, or beside it.
    ///
    /// Cancel safe: dropping the future changes nothing.
    pub fn exited(&self) -> impl Future<Output = Arc<Exit>> + Send + use<> {
        let worker = self.clone();
        async move {
            loop {
                if let Err(WaitError::Ended { exit, .. }) = worker.shared().until(|_| false).await {
                    return exit;
                }
            }
        }
    }

    /// Waits until the current or the next incarnation is ready, as [`wait_ready`](Self::wait_ready).
    ///
    /// Cancel safe: dropping the future changes nothing.
    ///
    /// # Errors
    ///
    /// [`WaitError::Ended`] if the worker has ended.
    pub fn ready(&self) -> impl Future<Output = Result<(), WaitError>> + Send + use<> {
        let worker = self.clone();
        async move { worker.shared().until(WorkerProcess::is_ready).await }
    }
}

impl StopHandle {
    /// Waits until all of the workers have ended for good, and reports how each has ended: [`wait`](Self::wait) for asynchronous programs,
    /// with the feature `async`. The stop policy of each worker ends with SIGKILL, so the time is limited by them.
    ///
    /// A worker whose window is full cannot end before its output is received, unless it is killed: receive events in another task.
    ///
    /// Cancel safe: dropping the future changes nothing.
    pub fn ended(&self) -> impl Future<Output = StopReport> + Send + use<> {
        let stopping = self.clone();
        async move {
            for shared in stopping.workers() {
                // An error is the end of the worker.
                while Arc::clone(shared).until(|_| false).await.is_ok() {}
            }
            stopping.wait(Duration::ZERO)
        }
    }
}

impl RestartHandle {
    /// Waits until a later incarnation of each worker is ready: [`wait`](Self::wait) for asynchronous programs, with the feature `async`.
    ///
    /// Cancel safe: dropping the future changes nothing.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait), except for the timeout.
    pub fn ready(&self) -> impl Future<Output = Result<(), WaitError>> + Send + use<> {
        self.clone().until_ready()
    }
}

impl WorkerGroup {
    /// Waits until the group has ended: [`wait`](Self::wait) for asynchronous programs, with the feature `async`.
    ///
    /// Cancel safe: dropping the future changes nothing.
    pub fn ended(&self) -> impl Future<Output = GroupEndReason> + Send + use<> {
        Arc::clone(&self.shared).ended()
    }
}
