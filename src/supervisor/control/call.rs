//! A call that is under way, in the hands of whoever waits for its answer.

use crate::{
    deadline::Deadline,
    supervisor::control::{call_span::CallSpan, connection::Link},
    sys::this_process::own_pid,
    wire::{
        decode::decode,
        jsonrpc::error::{Answer, CallError},
    },
};
use crossbeam_channel::{Receiver, Sender};
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use std::{sync::Arc, time::Duration};

/// The result of a call, as the caller wants it.
pub(crate) fn understand<R: DeserializeOwned>(result: &RawValue) -> Result<R, CallError> {
    decode(result.get()).map_err(|error| CallError::InvalidResult(Box::new(error)))
}

/// A call that is under way: [`Worker::start_call`](crate::Worker::start_call). Dropping it cancels it.
#[must_use = "a call that is dropped is cancelled"]
pub struct PendingCall {
    pub(crate) link: Arc<Link>,
    pub(crate) id: u64,
    pub(crate) answer: Receiver<Answer>,
    pub(crate) answered: Sender<Answer>,
    pub(crate) span: CallSpan,
    /// The process that has begun it.
    pub(crate) owner: i32,
}

shown_as!(PendingCall, |call| { id: call.id });

/// Ends a [`PendingCall`] from another thread.
#[derive(Clone)]
pub struct CallCanceller {
    answered: Sender<Answer>,
}

shown_as!(CallCanceller, |cancel| { is_over: cancel.answered.is_full() });

impl CallCanceller {
    /// Ends the call with [`CallError::Cancelled`], unless it has its answer already; the worker is told.
    pub fn cancel(&self) {
        drop(self.answered.try_send(Err(CallError::Cancelled)));
    }
}

impl PendingCall {
    /// Waits for the result, at most so long.
    ///
    /// # Errors
    ///
    /// [`CallError`]: the worker's own error, or why there is no answer.
    pub fn wait<R: DeserializeOwned>(mut self, timeout: Duration) -> Result<R, CallError> {
        let result = self.answer_until(Deadline::after_now(timeout)).and_then(|answer| understand(&answer));
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
        self.link.give_up(self.id);
    }
}
