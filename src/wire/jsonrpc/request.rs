//! A request of the other side, to be answered now or later, on any thread.

use super::{
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

/// Where lines for the other side are put. Must not block for long.
pub(crate) trait RpcSender: Send + Sync + fmt::Debug {
    /// Takes one whole line.
    fn send_line(&self, line: Vec<u8>) -> Result<(), CallError>;

    /// The same for an answer, which its caller waits for: it is never left out while the connection lasts. One that finds no room ends
    /// the connection.
    fn send_reply(&self, line: Vec<u8>) -> Result<(), CallError> {
        self.send_line(line)
    }

    /// A request has been answered: it can be cancelled no more.
    fn request_answered(&self, id: &str);
}

/// A request of the other side. It must be answered: one that is dropped answers with an error by itself.
#[must_use = "a request that is dropped answers with an error"]
pub struct Request {
    id: RequestId,
    method: String,
    params: Option<Box<RawValue>>,
    sender: Arc<dyn RpcSender>,
    cancelled: Arc<AtomicBool>,
    is_answered: bool,
    /// The process that has received it.
    owner: u32,
    _permit: Option<Permit>,
}

shown_as!(Request, |request| {
    id: request.id.text(),
    method: request.method,
    params: text(request.params.as_deref()),
});

/// A notification of the other side: nobody waits for an answer.
pub struct Notification {
    pub(crate) method: String,
    pub(crate) params: Option<Box<RawValue>>,
    pub(crate) _permit: Option<Permit>,
}

shown_as!(Notification, |notification| { method: notification.method, params: text(notification.params.as_deref()) });

impl Notification {
    /// What it is about.
    pub fn method(&self) -> &str {
        &self.method
    }

    /// Its parameters. Those that were left out read as `null`.
    ///
    /// # Errors
    ///
    /// When they are not a `T`.
    pub fn params<'a, T: Deserialize<'a>>(&'a self) -> Result<T, DecodeError> {
        decode(text(self.params.as_deref()))
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
        Self { id, method, params, sender, cancelled, is_answered: false, owner: process::id(), _permit: permit }
    }

    /// What is wanted.
    pub fn method(&self) -> &str {
        &self.method
    }

    /// Its parameters. Those that were left out read as `null`.
    ///
    /// # Errors
    ///
    /// When they are not a `T`.
    pub fn params<'a, T: Deserialize<'a>>(&'a self) -> Result<T, DecodeError> {
        decode(text(self.params.as_deref()))
    }

    /// Whether nobody waits for the answer any more: the caller has given up, or the connection has ended. Long work looks
    /// here now and then.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Answers with a result.
    ///
    /// # Errors
    ///
    /// When the result does not turn into JSON, which the other side is then told, or it cannot be sent any more.
    pub fn reply<R: Serialize + ?Sized>(mut self, result: &R) -> Result<(), CallError> {
        match encode::response(&self.id, result) {
            Ok(line) => self.answer(line),
            Err(error) => {
                let told = RpcError::new(INTERNAL_ERROR, "the result cannot be written as JSON");
                self.answer_error(&told)?;
                Err(CallError::Encode(error))
            }
        }
    }

    /// Answers with an error.
    ///
    /// # Errors
    ///
    /// When it cannot be sent any more.
    pub fn reply_error(mut self, error: &RpcError) -> Result<(), CallError> {
        self.answer_error(error)
    }

    /// Answers that there is no such method.
    ///
    /// # Errors
    ///
    /// When it cannot be sent any more.
    pub fn reply_method_not_found(mut self) -> Result<(), CallError> {
        self.answer_error(&RpcError::method_not_found(&self.method))
    }

    fn answer_error(&mut self, error: &RpcError) -> Result<(), CallError> {
        let line = encode::error_response(&self.id, error).map_err(CallError::Encode)?;
        self.answer(line)
    }

    fn answer(&mut self, line: Vec<u8>) -> Result<(), CallError> {
        self.is_answered = true;
        self.sender.request_answered(self.id.text());
        match self.sender.send_line(line) {
            Err(CallError::QueueFull { queued }) => {
                let text = format!("the answer was left out: {queued} bytes are not read yet");
                let told = RpcError::new(INTERNAL_ERROR, text);
                let line = encode::error_response(&self.id, &told).map_err(CallError::Encode)?;
                self.sender.send_reply(line)?;
                Err(CallError::QueueFull { queued })
            }
            posted => posted,
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        // A fork has a copy: the answer is its parent's to give.
        if self.is_answered || self.owner != process::id() {
            return;
        }
        let error = if self.is_cancelled() {
            RpcError::new(REQUEST_CANCELLED, "the request was cancelled")
        } else {
            RpcError::new(INTERNAL_ERROR, "the request was dropped without an answer")
        };
        // A connection that is gone needs no answer.
        drop(self.answer_error(&error));
    }
}

fn text(params: Option<&RawValue>) -> &str {
    params.map_or("null", RawValue::get)
}
