//! A call that is under way, in the hands of whoever waits for its answer.

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
            encode,
            error::{Answer, CallError},
            request::RpcSender,
        },
    },
};
use crossbeam_channel::{Receiver, Sender};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use std::{sync::Arc, time::Duration};

/// The result of a call, as the caller wants it.
pub(crate) fn decode_result<R: DeserializeOwned>(result: &RawValue) -> Result<R, CallError> {
    decode(result.get()).map_err(|error| CallError::InvalidResult(Box::new(error)))
}

/// A call that is under way: [`Worker::start_call`](crate::Worker::start_call). Dropping it cancels it.
#[must_use = "a call that is dropped is cancelled"]
pub struct PendingCall {
    pub(crate) connection: Arc<RpcConnection>,
    pub(crate) id: u64,
    pub(crate) answer: Receiver<Answer>,
    pub(crate) answered: Sender<Answer>,
    pub(crate) span: CallSpan,
    /// The process that has begun it.
    pub(crate) owner: i32,
}

impl_debug!(PendingCall, |call| { id: call.id });

/// Ends a [`PendingCall`] from another thread.
#[derive(Clone)]
pub struct CallCanceller {
    answered: Sender<Answer>,
}

impl_debug!(CallCanceller, |cancel| { is_over: cancel.answered.is_full() });

impl CallCanceller {
    /// Ends the call with [`CallError::Cancelled`], unless it has its answer already; the worker is told.
    pub fn cancel(&self) {
        drop(self.answered.try_send(Err(CallError::Cancelled)));
    }
}

impl RpcConnection {
    pub(crate) fn call<P: Serialize + ?Sized>(
        self: &Arc<Self>,
        method: &str,
        params: &P,
    ) -> Result<PendingCall, CallError> {
        let id = self.lock().endpoint.calls.next_id();
        let line = encode::request(id, method, params).map_err(CallError::Encode)?;
        self.send_call(id, line)
    }

    pub(crate) fn send_call(self: &Arc<Self>, id: u64, line: Vec<u8>) -> Result<PendingCall, CallError> {
        let call = self.begin(&mut self.lock(), id);
        let sent = self.send_line(line);
        if sent.is_err() {
            // Nothing was asked, so there is nothing to take back.
            self.lock().endpoint.calls.withdraw(id);
        }
        sent.map(|()| call)
    }

    /// A call that waits for others to read its answer.
    pub(crate) fn begin(self: &Arc<Self>, state: &mut ConnectionState, id: u64) -> PendingCall {
        let (answered, answer) = crossbeam_channel::bounded(1);
        if let SocketState::Closed(exit) = &state.socket {
            drop(answered.try_send(Err(CallError::WorkerExited(exit.clone()))));
        } else {
            state.endpoint.calls.wait(id, answered.clone());
            // The loop reads its answer.
            state.burst.reset();
            state.watch();
        }
        PendingCall { connection: Arc::clone(self), id, answer, answered, span: CallSpan::default(), owner: own_pid() }
    }

    pub(crate) fn abandon_call(&self, id: u64) {
        let cancellation = self.lock().endpoint.abandon(id);
        // The worker is told, so that it can stop working on it. If that cannot be sent, its answer will be passed over.
        drop(cancellation.map(|line| self.send_line(line)));
    }
}

impl PendingCall {
    /// Waits for the result, at most so long.
    ///
    /// # Errors
    ///
    /// [`CallError`]: the worker's own error, or why there is no answer.
    pub fn wait<R: DeserializeOwned>(mut self, timeout: Duration) -> Result<R, CallError> {
        let result = self.answer_until(Deadline::after_now(timeout)).and_then(|answer| decode_result(&answer));
        self.span.end(result.as_ref().err());
        result
    }

    pub(crate) fn answer_until(&self, deadline: Deadline) -> Answer {
        // Longer than any clock counts is for ever.
        let left = deadline.remaining().unwrap_or(Duration::MAX);
        self.answer.recv_timeout(left).unwrap_or(Err(CallError::TimedOut))
    }

    /// A way to cancel it from elsewhere.
    pub fn cancel_handle(&self) -> CallCanceller {
        CallCanceller { answered: self.answered.clone() }
    }
}

impl Drop for PendingCall {
    fn drop(&mut self) {
        if self.owner != own_pid() {
            // A fork has a copy: its parent still waits for the answer.
            return;
        }
        self.span.end(Some(&CallError::Cancelled));
        // Does nothing once it is answered.
        self.connection.abandon_call(self.id);
    }
}
