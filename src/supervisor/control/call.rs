//! Calls that wait for their response.

use crate::{
    deadline::Deadline,
    supervisor::control::{
        call_router::CallRouter,
        call_span::CallSpan,
        connection::{LineTag, WhenDown, WhenFull, next_call_id},
        direct_call::Asked,
        send_line::CallerLine,
    },
    sys::this_process::own_pid,
    wire::{
        decode::decode,
        framing::encode::reframe,
        jsonrpc::{
            completion::Completion,
            encode,
            error::{Answer, CallError},
        },
        line_queue::QueuedLine,
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
    router: Arc<CallRouter>,
    id: u64,
    pub(crate) completion: Completion,
    pub(crate) span: CallSpan,
    /// The process that has started the call.
    owner: i32,
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

/// The calls of a worker, by one of its handles.
#[derive(Debug)]
pub(crate) struct Caller<'a> {
    pub(crate) router: &'a Arc<CallRouter>,
    pub(crate) when_down: WhenDown,
    pub(crate) when_full: WhenFull,
}

impl Caller<'_> {
    /// Calls a method and waits for the result. The caller reads it from the connection itself if no other side does.
    pub(crate) fn call<P: Serialize + ?Sized>(&self, method: &str, params: &P, timeout: Duration) -> Answer {
        let deadline = Deadline::after_now(timeout);
        let mut call = self.prepare(method, params)?;
        let pending = match call.router.connection() {
            Some(connection) => match connection.ask(call.id, call.line, (timeout, deadline))? {
                Asked::Answered(answer) => return answer,
                Asked::Pending(completion) => PendingCall::new(call.router, call.id, completion),
                Asked::Unsent(line) => {
                    call.line = line;
                    call.send(Completion::default())?
                }
            },
            None => call.send(Completion::default())?,
        };
        pending.answer_until(deadline)
    }

    pub(crate) fn prepare<P: Serialize + ?Sized>(&self, method: &str, params: &P) -> Result<UnsentCall, CallError> {
        let id = next_call_id();
        let line = self.line(Some(id), encode::request(id, method, params))?;
        Ok(UnsentCall { router: Arc::clone(self.router), id, line, span: CallSpan::default() })
    }

    /// Sends a call whose id the caller has chosen by [`next_call_id`]. It fails at once while no incarnation runs. The caller bounds
    /// what is queued.
    pub(crate) fn send_call<P: Serialize + ?Sized>(
        &self,
        id: u64,
        (method, params): (&str, &P),
        completion: Completion,
    ) -> Result<(), CallError> {
        let caller = Self { when_down: WhenDown::Fail, when_full: WhenFull::Queue, ..*self };
        let line = caller.line(Some(id), encode::request(id, method, params))?;
        self.router.submit(CallerLine { line, completion: Some(completion) })
    }

    pub(crate) fn notify<P: Serialize + ?Sized>(&self, method: &str, params: &P) -> Result<(), CallError> {
        self.send(encode::notification(method, params))
    }

    /// Sends a line that has no answer.
    pub(crate) fn send(&self, text: serde_json::Result<Vec<u8>>) -> Result<(), CallError> {
        let line = self.line(None, text)?;
        self.router.submit(CallerLine { line, completion: None })
    }

    fn line(&self, call: Option<u64>, text: serde_json::Result<Vec<u8>>) -> Result<QueuedLine<LineTag>, CallError> {
        let bytes = text.and_then(|text| reframe(self.router.protocol().framing, text)).map_err(CallError::Encode)?;
        Ok(QueuedLine { bytes, tag: LineTag::Caller { call, when_down: self.when_down, when_full: self.when_full } })
    }
}

/// A call that is not sent yet.
#[derive(Debug)]
pub(crate) struct UnsentCall {
    router: Arc<CallRouter>,
    id: u64,
    line: QueuedLine<LineTag>,
    pub(crate) span: CallSpan,
}

impl UnsentCall {
    /// Sends it. On an error, `completion` is not used.
    pub(crate) fn send(self, completion: Completion) -> Result<PendingCall, CallError> {
        let Self { router, id, line, mut span } = self;
        let submitted = router.submit(CallerLine { line, completion: Some(completion.clone()) });
        submitted.inspect_err(|error| span.end(Some(error)))?;
        let mut call = PendingCall::new(router, id, completion);
        call.span = span;
        Ok(call)
    }
}

impl PendingCall {
    fn new(router: Arc<CallRouter>, id: u64, completion: Completion) -> Self {
        Self { router, id, completion, span: CallSpan::default(), owner: own_pid() }
    }

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

    fn answer_until(&self, deadline: Deadline) -> Answer {
        // A timeout beyond the range of the clock never expires.
        let left = deadline.remaining().unwrap_or(Duration::MAX);
        self.completion.wait(left).unwrap_or_else(|| Err(self.router.timeout_error(self.id)))
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
        self.router.abandon(self.id);
    }
}
