//! Requests and notifications of the peer.

use super::{
    batch_reply::BatchReply,
    encode,
    error::{CallError, INTERNAL_ERROR, REQUEST_CANCELLED, RpcError},
    message::RequestId,
};
use crate::wire::{
    credit::Permit,
    decode::{DecodeError, decode},
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::{
    fmt, process,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// Sends lines to the peer.
pub(crate) trait RpcSender: Send + Sync + fmt::Debug {
    /// Sends one whole line, or queues it.
    fn send_line(&self, line: Vec<u8>) -> Result<(), CallError>;

    /// Sends an answer that must not be lost while the connection lasts: if the queue has no room for it, the connection is closed.
    fn send_reply(&self, line: Vec<u8>) -> Result<(), CallError> {
        self.send_line(line)
    }

    /// A request was answered and can no longer be cancelled.
    fn request_answered(&self, id: &str);
}

/// A request of the peer. It must be answered; dropping it sends an error. It can be answered later and on any thread.
///
/// A handler, as of [`Parent::serve`](crate::Parent::serve), gets notifications as requests too: requests without an answer
/// ([`is_notification`](Self::is_notification)), as JSON-RPC 2.0 defines them.
#[must_use = "a request that is dropped answers with an error"]
pub struct Request {
    method: String,
    params: Option<Box<RawValue>>,
    /// `None` for a notification.
    pending: Option<PendingReply>,
    _permit: Option<Permit>,
}

impl_debug!(Request, |request| {
    id: request.pending.as_ref().map_or("null", |pending| pending.id.text()),
    method: request.method,
    params: text(request.params.as_deref()),
});

/// The answer that the peer waits for. Dropping it sends an error.
struct PendingReply {
    id: RequestId,
    sender: Arc<dyn RpcSender>,
    cancelled: Arc<AtomicBool>,
    is_answered: bool,
    /// The process that received the request.
    owner: u32,
}

/// A notification of the peer: a message without an answer.
pub struct Notification {
    pub(crate) method: String,
    pub(crate) params: Option<Box<RawValue>>,
    pub(crate) _permit: Option<Permit>,
}

impl_debug!(Notification, |notification| { method: notification.method, params: text(notification.params.as_deref()) });

impl Notification {
    /// The name of the method.
    pub fn method(&self) -> &str {
        &self.method
    }

    /// The parameters. Missing ones read as `null`.
    ///
    /// # Errors
    ///
    /// If they are not a `T`.
    pub fn params<'a, T: Deserialize<'a>>(&'a self) -> Result<T, DecodeError> {
        decode(text(self.params.as_deref()))
    }
}

impl From<Notification> for Request {
    fn from(Notification { method, params, _permit: permit }: Notification) -> Self {
        Self { method, params, pending: None, _permit: permit }
    }
}

impl Request {
    pub(crate) fn new(
        id: RequestId,
        (method, params): (String, Option<Box<RawValue>>),
        sender: Arc<dyn RpcSender>,
        cancelled: Arc<AtomicBool>,
        permit: Option<Permit>,
    ) -> Self {
        let pending = PendingReply { id, sender, cancelled, is_answered: false, owner: process::id() };
        Self { method, params, pending: Some(pending), _permit: permit }
    }

    /// The name of the method.
    pub fn method(&self) -> &str {
        &self.method
    }

    /// The parameters. Missing ones read as `null`.
    ///
    /// # Errors
    ///
    /// If they are not a `T`.
    pub fn params<'a, T: Deserialize<'a>>(&'a self) -> Result<T, DecodeError> {
        decode(text(self.params.as_deref()))
    }

    /// Whether the peer waits for no answer. Answers are not sent then.
    pub fn is_notification(&self) -> bool {
        self.pending.is_none()
    }

    /// Whether the answer is no longer needed: the caller has cancelled the call, or the connection has ended. Methods that take long
    /// should check it from time to time.
    pub fn is_cancelled(&self) -> bool {
        self.pending.as_ref().is_some_and(PendingReply::is_cancelled)
    }

    /// The id, if it is a number of this library's kind.
    pub(crate) fn number(&self) -> Option<u64> {
        self.pending.as_ref()?.id.text().parse().ok()
    }

    /// Answers with a result.
    ///
    /// # Errors
    ///
    /// If the result cannot be serialized as JSON, in which case the peer receives an error, or if it cannot be sent.
    pub fn reply<R: Serialize + ?Sized>(mut self, result: &R) -> Result<(), CallError> {
        self.pending.take().map_or(Ok(()), |pending| pending.reply(result))
    }

    /// Answers with an error.
    ///
    /// # Errors
    ///
    /// If it cannot be sent.
    pub fn reply_error(mut self, error: &RpcError) -> Result<(), CallError> {
        self.pending.take().map_or(Ok(()), |mut pending| pending.answer_error(error))
    }

    /// Answers with the error for an unknown method.
    ///
    /// # Errors
    ///
    /// If it cannot be sent.
    pub fn reply_method_not_found(self) -> Result<(), CallError> {
        let error = RpcError::method_not_found(&self.method);
        self.reply_error(&error)
    }

    /// Answers with what a handler has returned; `None` if it has panicked.
    pub(crate) fn reply_outcome<R: Serialize>(self, outcome: Option<Result<R, RpcError>>) {
        let sent = match outcome {
            Some(Ok(result)) => self.reply(&result),
            Some(Err(error)) => self.reply_error(&error),
            None => self.reply_error(&RpcError::new(INTERNAL_ERROR, "the method panicked")),
        };
        // A peer that has exited needs no answer.
        drop(sent);
    }
}

impl PendingReply {
    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    fn reply<R: Serialize + ?Sized>(mut self, result: &R) -> Result<(), CallError> {
        match encode::response(&self.id, result) {
            Ok(line) => self.answer(line),
            Err(error) => {
                let error_reply = RpcError::new(INTERNAL_ERROR, "the result cannot be written as JSON");
                self.answer_error(&error_reply)?;
                Err(CallError::Encode(error))
            }
        }
    }

    fn answer_error(&mut self, error: &RpcError) -> Result<(), CallError> {
        let line = encode::error_response(&self.id, error).map_err(CallError::Encode)?;
        self.answer(line)
    }

    fn answer(&mut self, line: Vec<u8>) -> Result<(), CallError> {
        self.is_answered = true;
        self.sender.request_answered(self.id.text());
        if let Some(batch) = &self.id.batch {
            return self.answer_in_batch(batch, line);
        }
        match self.sender.send_line(line) {
            Err(CallError::QueueFull { queued }) => {
                let text = format!("answer dropped: {queued} bytes have not been read yet");
                self.sender.send_reply(self.dropped(text)?)?;
                Err(CallError::QueueFull { queued })
            }
            posted => posted,
        }
    }

    /// The answers of a batch are sent with the last one.
    fn answer_in_batch(&self, batch: &BatchReply, line: Vec<u8>) -> Result<(), CallError> {
        let fits = batch.has_room(line.len());
        let queued = line.len();
        let line = if fits { line } else { self.dropped("answer dropped: its batch has too many bytes".to_owned())? };
        if let Some(all) = batch.add(&line) {
            self.sender.send_reply(all)?;
        }
        if fits { Ok(()) } else { Err(CallError::QueueFull { queued }) }
    }

    /// The answer instead of one for which there is no room.
    fn dropped(&self, reason: String) -> Result<Vec<u8>, CallError> {
        encode::error_response(&self.id, &RpcError::new(INTERNAL_ERROR, reason)).map_err(CallError::Encode)
    }
}

impl Drop for PendingReply {
    fn drop(&mut self) {
        // After a fork both processes have a copy; only the original answers.
        if self.is_answered || self.owner != process::id() {
            return;
        }
        let error = if self.is_cancelled() {
            RpcError::new(REQUEST_CANCELLED, "the request was cancelled")
        } else {
            RpcError::new(INTERNAL_ERROR, "the request was dropped without an answer")
        };
        // A closed connection needs no answer.
        drop(self.answer_error(&error));
    }
}

fn text(params: Option<&RawValue>) -> &str {
    params.map_or("null", RawValue::get)
}
