//! Calls that wait for their response.

use crate::{
    deadline::Deadline,
    supervisor::control::{
        call_span::CallSpan,
        connection::{ConnectionState, RpcConnection, SocketState},
    },
    sys::this_process::own_pid,
    wire::{
        decode::decode,
        jsonrpc::{
            completion::Completion,
            encode,
            error::{Answer, CallError},
            request::RpcSender,
        },
    },
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use std::{sync::Arc, time::Duration};

/// Decodes the result of a call.
pub(crate) fn decode_result<R: DeserializeOwned>(result: &RawValue) -> Result<R, CallError> {
    decode(result.get()).map_err(|error| CallError::InvalidResult(Box::new(error)))
}

/// A call that waits for its response, from [`Worker::start_call`](crate::Worker::start_call). Dropping it cancels it.
#[must_use = "a call that is dropped is cancelled"]
pub struct PendingCall {
    pub(crate) connection: Arc<RpcConnection>,
    pub(crate) id: u64,
    pub(crate) completion: Completion,
    pub(crate) span: CallSpan,
    /// The process that has started the call.
    pub(crate) owner: i32,
}

impl_debug!(PendingCall, |call| { id: call.id });

/// Cancels a [`PendingCall`] from another thread.
#[derive(Clone)]
pub struct CallCanceller {
    completion: Completion,
}

impl_debug!(CallCanceller, |cancel| { is_over: cancel.completion.is_complete() });

impl CallCanceller {
    /// Ends the call with [`CallError::Cancelled`], unless it has its response already, and notifies the worker.
    pub fn cancel(&self) {
        self.completion.complete(Err(CallError::Cancelled));
    }
}

/// A call that is not sent yet.
#[derive(Debug)]
pub(crate) struct UnsentCall {
    connection: Arc<RpcConnection>,
    id: u64,
    line: Vec<u8>,
    pub(crate) span: CallSpan,
}

impl UnsentCall {
    pub(crate) fn new<P>(connection: Arc<RpcConnection>, method: &str, params: &P) -> Result<Self, CallError>
    where
        P: Serialize + ?Sized,
    {
        let id = connection.lock().endpoint.calls.next_id();
        let line = encode::request(id, method, params).map_err(CallError::Encode)?;
        Ok(Self { connection, id, line, span: CallSpan::default() })
    }

    /// Sends it. On an error, `completion` is not used.
    pub(crate) fn send(self, completion: Completion) -> Result<PendingCall, CallError> {
        let Self { connection, id, line, mut span } = self;
        let mut call = connection.send_call(id, line, completion).inspect_err(|error| span.end(Some(error)))?;
        call.span = span;
        Ok(call)
    }
}

impl RpcConnection {
    /// Sends a call, or queues it. On an error its completion is not used.
    pub(crate) fn send_call(
        self: &Arc<Self>,
        id: u64,
        line: Vec<u8>,
        completion: Completion,
    ) -> Result<PendingCall, CallError> {
        let mut state = self.lock();
        // The loop reads the answer.
        state.burst.reset();
        state.watch();
        state.send_or_queue(line)?;
        // Under the same lock, so that the call exists before its answer is processed, and only if it was sent.
        Ok(self.begin(&mut state, id, completion))
    }

    /// Adds a call that was sent and whose answer the loop reads.
    pub(crate) fn begin(self: &Arc<Self>, state: &mut ConnectionState, id: u64, completion: Completion) -> PendingCall {
        if let SocketState::Closed(exit) = &state.socket {
            completion.complete(Err(CallError::WorkerExited { exit: exit.clone(), restarts_in: None }));
        } else {
            state.endpoint.calls.wait(id, completion.clone());
            // The loop reads its answer.
            state.burst.reset();
            state.watch();
            state.check_if_held_up();
        }
        PendingCall { connection: Arc::clone(self), id, completion, span: CallSpan::default(), owner: own_pid() }
    }

    pub(crate) fn abandon_call(&self, id: u64) {
        let cancellation = self.lock().endpoint.abandon(id);
        // The worker is notified, so that it can stop processing the call. If that cannot be sent, its response is ignored.
        drop(cancellation.map(|line| self.send_line(line)));
    }
}

impl PendingCall {
    /// Waits up to `timeout` for the result.
    ///
    /// # Errors
    ///
    /// [`CallError`]: the error that the worker returns, or why there is no result.
    pub fn wait<R: DeserializeOwned>(mut self, timeout: Duration) -> Result<R, CallError> {
        let result = self.answer_until(Deadline::after_now(timeout)).and_then(|answer| decode_result(&answer));
        self.span.end(result.as_ref().err());
        result
    }

    /// Takes the result if the call has ended; `None` while it is open. The result is returned once: after that the call is over, this
    /// method returns `None`, and [`wait`](Self::wait) returns [`TimedOut`](CallError::TimedOut) at once. Never blocks.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait).
    pub fn try_wait<R: DeserializeOwned>(&mut self) -> Option<Result<R, CallError>> {
        let result = self.completion.take()?.and_then(|answer| decode_result(&answer));
        self.span.end(result.as_ref().err());
        Some(result)
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.completion.is_complete()
    }

    pub(crate) fn answer_until(&self, deadline: Deadline) -> Answer {
        // A timeout beyond the range of the clock never expires.
        let left = deadline.remaining().unwrap_or(Duration::MAX);
        self.completion.wait(left).unwrap_or_else(|| Err(self.connection.timeout_error()))
    }

    /// Returns a handle that cancels the call from another thread.
    pub fn cancel_handle(&self) -> CallCanceller {
        CallCanceller { completion: self.completion.clone() }
    }
}

impl Drop for PendingCall {
    fn drop(&mut self) {
        if self.owner != own_pid() {
            // A fork of the host has a copy, and its parent still waits for the response.
            return;
        }
        self.span.end(Some(&CallError::Cancelled));
        // Does nothing after the response.
        self.connection.abandon_call(self.id);
    }
}
