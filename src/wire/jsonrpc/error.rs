//! Errors of calls.

use crate::{exit::Exit, text::printable, wire::decode::DecodeError};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::{any::Any, error::Error, fmt, io, sync::Arc, time::Duration};

/// A line that is not JSON.
pub(crate) const PARSE_ERROR: i64 = -32700;
pub(crate) const INVALID_REQUEST: i64 = -32600;
pub(crate) const METHOD_NOT_FOUND: i64 = -32601;
pub(crate) const INVALID_PARAMS: i64 = -32602;
pub(crate) const INTERNAL_ERROR: i64 = -32603;
/// From the Language Server Protocol.
pub(crate) const REQUEST_CANCELLED: i64 = -32800;

/// The `error` object of JSON-RPC 2.0: the answer to a request that failed.
///
/// Every [`Error`] converts into it, so that a handler can use `?`:
///
/// | error | code | message |
/// |---|---|---|
/// | [`DecodeError`], for example of [`Request::params`](crate::Request::params) | -32602, invalid parameters | its text |
/// | any other | -32603, internal error | its text and those of its [sources](Error::source), separated by colons |
///
/// The caller receives it as [`CallError::Rpc`]. It is not an [`Error`] itself, since a type that every error converts into cannot be.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RpcError {
    /// The kind of error. JSON-RPC reserves -32768 to -32000.
    pub code: i64,
    /// A short description.
    pub message: String,
    /// Further information, as the method defines it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Box<RawValue>>,
}

impl RpcError {
    /// An error that a method defines. JSON-RPC reserves -32768 to -32000.
    pub fn new(code: i64, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), data: None }
    }

    /// The error of JSON-RPC 2.0 for an unknown method.
    pub fn method_not_found(method: &str) -> Self {
        Self::new(METHOD_NOT_FOUND, format!("method not found: {method:?}"))
    }

    /// Whether the same request would fail in the same way again: it is the request that is wrong.
    pub(crate) fn is_permanent(&self) -> bool {
        matches!(self.code, INVALID_REQUEST | METHOD_NOT_FOUND | INVALID_PARAMS)
    }

    /// Adds data.
    ///
    /// # Errors
    ///
    /// If it cannot be serialized as JSON.
    pub fn with_data(mut self, data: &impl Serialize) -> Result<Self, serde_json::Error> {
        self.data = Some(serde_json::value::to_raw_value(data)?);
        Ok(self)
    }
}

impl fmt::Display for RpcError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { code, message, data: _ } = self;
        write!(formatter, "remote error {code}: {}", printable(message))
    }
}

impl<E: Error + 'static> From<E> for RpcError {
    fn from(error: E) -> Self {
        let is_decode_error = (&error as &dyn Any).is::<DecodeError>();
        Self::new(if is_decode_error { INVALID_PARAMS } else { INTERNAL_ERROR }, text_with_sources(&error))
    }
}

/// The text of an error and of its sources. The text of a source that the text before it quotes is left out.
fn text_with_sources(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let reason = error.to_string();
        if !text.contains(&reason) {
            text.push_str(": ");
            text.push_str(&reason);
        }
        source = error.source();
    }
    text
}

/// The failure that a response reports.
#[derive(Debug)]
pub(crate) enum RpcFailure {
    Error(RpcError),
    /// The `error` member is not valid JSON-RPC 2.0. The response ends its call all the same.
    Invalid(DecodeError),
}

/// The JSON text of the result of a call, or the error.
pub(crate) type Answer = Result<Box<RawValue>, CallError>;

/// Why a call has no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The peer answered with an error.
    #[error("{0}")]
    Rpc(Box<RpcError>),
    /// No answer arrived before the timeout. The peer is notified that the call is cancelled.
    #[error("no answer before the timeout")]
    TimedOut,
    /// The worker was not ready for calls before the timeout: it has not connected, has not answered its
    /// [readiness call](crate::Readiness::call), or is being stopped. The call was not sent.
    #[error("the worker was not ready for calls before the timeout")]
    NotReady,
    /// The worker does not run, or has exited before it answered. A call that was sent is never repeated: whether the worker has
    /// executed it is not known.
    #[error("{}", ending(.exit.as_deref(), *.restarts_in))]
    WorkerExited {
        /// The exit of the incarnation that was called, or of the last one. `None` if there was none, and if the worker has closed its
        /// control connection or has not connected in time.
        exit: Option<Arc<Exit>>,
        /// The time until the next incarnation starts; `None` if the worker is not restarted.
        restarts_in: Option<Duration>,
    },
    /// The parent has exited or closed the connection.
    #[error("parent is gone")]
    ParentGone,
    /// The call was cancelled on this side. The peer is notified.
    #[error("call was cancelled")]
    Cancelled,
    /// There is no control pipe: the spec of the worker does not set `control`.
    #[error("no control pipe: the spec does not set `control`")]
    NotConnected,
    /// The connection of the worker is of another kind.
    #[error("{operation} is not possible: {reason}")]
    Unsupported {
        /// The operation.
        operation: &'static str,
        /// The reason.
        reason: &'static str,
    },
    /// The peer does not read, and the queue of bytes for it has reached its limit.
    #[error("send queue is full: the peer has not read {queued} bytes")]
    QueueFull {
        /// The queued bytes.
        queued: usize,
    },
    /// The parameters cannot be serialized as a JSON array or object. JSON-RPC allows nothing else: pass a single value as an
    /// array, `&[5]`.
    #[error("cannot serialize parameters: {}", printable(&.0.to_string()))]
    Encode(#[source] serde_json::Error),
    /// The result does not have the expected type.
    #[error("invalid result: {0}")]
    InvalidResult(#[source] Box<DecodeError>),
    /// The program does not receive events, and the answer waits for that. The peer is notified that the call is cancelled.
    /// [`Supervisor::serve`](crate::Supervisor::serve) handles requests and notifications on threads of their own.
    ///
    /// * Before the timeout: the [control window](crate::WorkerSpec::control_window) of the worker is full of requests and notifications that
    ///   it sent before the answer, and no event was received for 100 ms.
    /// * At the timeout, instead of [`TimedOut`](Self::TimedOut): no event was received for at least the last 100 ms, although a request of
    ///   the worker is among them, or the [window](crate::WorkerSpec::window) of its output is full, so that it may be unable to write on; or
    ///   what it sent waits for its handler as long.
    #[error(
        "no answer while {events} events are not received ({bytes} bytes of this worker): \
         receive or `serve` them on another thread than the caller's"
    )]
    EventsUnreceived {
        /// The events that are not received, of all workers, and what waits for the handler of this worker.
        events: usize,
        /// The size of those of this worker.
        bytes: usize,
    },
    /// The connection failed.
    #[error("control pipe failed: {0}")]
    Io(#[source] io::Error),
}

fn ending(exit: Option<&Exit>, restarts_in: Option<Duration>) -> String {
    let end = exit.map_or_else(
        || "worker has no control connection: it has closed it, or did not connect in time".to_owned(),
        |exit| format!("worker exited: {}", exit.with_last_words()),
    );
    restarts_in.map_or_else(|| end.clone(), |after| format!("{end}; restarts in {after:.1?}"))
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
            CallError::TimedOut | CallError::NotReady => io::ErrorKind::TimedOut,
            CallError::WorkerExited { .. } | CallError::ParentGone => io::ErrorKind::BrokenPipe,
            CallError::NotConnected => io::ErrorKind::NotConnected,
            CallError::Unsupported { .. } => io::ErrorKind::Unsupported,
            CallError::QueueFull { .. } | CallError::EventsUnreceived { .. } => io::ErrorKind::WouldBlock,
            CallError::Encode(_) | CallError::InvalidResult(_) => io::ErrorKind::InvalidData,
            CallError::Io(source) => source.kind(),
            // Not `Interrupted`, after which readers and writers repeat their call.
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
    fn decode_error_becomes_invalid_params() {
        let error = RpcError::from(decode::<u32>("\"x\"").unwrap_err());
        assert_eq!(error.code, -32602);
        assert!(error.message.contains("expected u32"), "{error}");
    }

    #[test]
    fn p16_other_errors_become_internal_errors_with_their_sources() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot load {file}")]
        struct LoadError {
            file: &'static str,
            source: io::Error,
        }
        let error = |source| RpcError::from(LoadError { file: "a.toml", source });
        let refused = error(io::Error::from_raw_os_error(13));
        assert_eq!(refused.code, -32603);
        assert_eq!(refused.message, "cannot load a.toml: Permission denied (os error 13)");
        assert_eq!(RpcError::from(CallError::TimedOut).message, "no answer before the timeout");
        let nested = RpcError::from(io::Error::other(CallError::Io(io::Error::other("no route"))));
        assert_eq!(nested.message, "control pipe failed: no route", "no text appears twice");
    }
}
