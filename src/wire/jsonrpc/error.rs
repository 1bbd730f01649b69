//! Why a call has no result.

use crate::{exit::Exit, text::printable, wire::decode::DecodeError};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::{io, sync::Arc};

pub(crate) const INVALID_REQUEST: i64 = -32600;
pub(crate) const METHOD_NOT_FOUND: i64 = -32601;
pub(crate) const INVALID_PARAMS: i64 = -32602;
pub(crate) const INTERNAL_ERROR: i64 = -32603;
/// Of the Language Server Protocol: a request that was taken back.
pub(crate) const REQUEST_CANCELLED: i64 = -32800;

/// What the other side answered instead of a result: the `error` object of JSON-RPC 2.0.
#[derive(Debug, Clone, Serialize, Deserialize, thiserror::Error)]
#[error("{} (code {code})", printable(message))]
#[non_exhaustive]
pub struct RpcError {
    /// What kind of error; -32768 to -32000 are JSON-RPC's own.
    pub code: i64,
    /// One sentence.
    pub message: String,
    /// Anything more, as the method defines it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Box<RawValue>>,
}

impl RpcError {
    /// An error of a method's own; codes of -32000 and below are JSON-RPC's.
    pub fn new(code: i64, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), data: None }
    }

    /// The error of JSON-RPC 2.0 for a method that nobody knows.
    pub fn method_not_found(method: &str) -> Self {
        Self::new(METHOD_NOT_FOUND, format!("there is no method {method:?}"))
    }

    /// Adds data.
    ///
    /// # Errors
    ///
    /// When it does not turn into JSON.
    pub fn with_data(mut self, data: &impl Serialize) -> Result<Self, serde_json::Error> {
        self.data = Some(serde_json::value::to_raw_value(data)?);
        Ok(self)
    }
}

/// The error of JSON-RPC 2.0 for parameters that a method does not understand: what `?` makes of
/// [`Request::params`](crate::Request::params).
impl From<DecodeError> for RpcError {
    fn from(error: DecodeError) -> Self {
        Self::new(INVALID_PARAMS, error.to_string())
    }
}

/// What a response has instead of a result.
#[derive(Debug)]
pub(crate) enum RpcFailure {
    Error(RpcError),
    /// Its `error` is not what JSON-RPC 2.0 says: the call it answers ends all the same.
    Invalid(DecodeError),
}

/// How a call ends: the JSON text of its result, or why there is none.
pub(crate) type Answer = Result<Box<RawValue>, CallError>;

/// Why a call has no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The other side answered with an error.
    #[error("{0}")]
    Rpc(#[source] Box<RpcError>),
    /// There was no answer in time. The other side was told that nobody waits any more.
    #[error("no answer in time")]
    TimedOut,
    /// The worker has ended, and this is how; or nobody knows how, where only its connection has ended so far.
    #[error("the worker is gone{}", ending(.0.as_deref()))]
    WorkerExited(Option<Arc<Exit>>),
    /// The parent has ended, or closed the connection.
    #[error("the parent is gone")]
    ParentGone,
    /// The call was cancelled on this side. The other side was told.
    #[error("the call was cancelled")]
    Cancelled,
    /// The worker has no control pipe: its spec gives it none.
    #[error("there is no control pipe: the spec has no `control`")]
    NotConnected,
    /// The other side does not read, and what waits for it has reached the limit.
    #[error("{queued} bytes wait already for the other side to read")]
    QueueFull {
        /// How many bytes wait.
        queued: usize,
    },
    /// The parameters do not turn into JSON, or into neither an array nor an object, which is all that JSON-RPC allows: a single
    /// value goes into an array, `&[5]`.
    #[error("the parameters cannot be written as JSON: {}", printable(&.0.to_string()))]
    Encode(#[source] serde_json::Error),
    /// The result is not what was wanted.
    #[error("the result was not understood: {0}")]
    InvalidResult(#[source] Box<DecodeError>),
    /// The connection failed.
    #[error("the control pipe failed: {0}")]
    Io(#[source] io::Error),
}

fn ending(exit: Option<&Exit>) -> String {
    exit.map(|exit| format!(": {exit}")).unwrap_or_default()
}

impl From<RpcFailure> for CallError {
    fn from(refusal: RpcFailure) -> Self {
        match refusal {
            RpcFailure::Error(error) => Self::Rpc(Box::new(error)),
            RpcFailure::Invalid(error) => Self::InvalidResult(Box::new(error)),
        }
    }
}

impl From<CallError> for io::Error {
    fn from(error: CallError) -> Self {
        let kind = match &error {
            CallError::TimedOut => io::ErrorKind::TimedOut,
            CallError::WorkerExited(_) | CallError::ParentGone => io::ErrorKind::BrokenPipe,
            CallError::NotConnected => io::ErrorKind::NotConnected,
            CallError::QueueFull { .. } => io::ErrorKind::WouldBlock,
            CallError::Encode(_) | CallError::InvalidResult(_) => io::ErrorKind::InvalidData,
            CallError::Io(source) => source.kind(),
            // Not `Interrupted`, after which whoever reads or writes tries again.
            CallError::Rpc(_) | CallError::Cancelled => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

const _: () = assert!(size_of::<CallError>() <= 64);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::decode::decode;

    #[test]
    fn parameters_that_are_not_understood_are_an_error_of_the_caller() {
        let error = RpcError::from(decode::<u32>("\"x\"").unwrap_err());
        assert_eq!(error.code, -32602);
        assert!(error.message.contains("expected u32"), "{error}");
    }
}
