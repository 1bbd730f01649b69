//! The `tracing` event that records a call over control. Without the feature `tracing` nothing is recorded.

#[cfg(feature = "tracing")]
use crate::supervisor::{clock::now, panics::catch};
use crate::{ids::WorkerId, wire::jsonrpc::error::CallError};
#[cfg(feature = "tracing")]
use std::time::Instant;
#[cfg(feature = "tracing")]
use tracing::{Level, enabled, event};

/// The target of all spans and events. It does not follow the module path, which is private.
#[cfg(feature = "tracing")]
pub(crate) const TARGET: &str = "pipewright";

/// Records one call. Empty while no subscriber is interested.
#[derive(Debug, Default)]
pub(crate) struct CallSpan {
    #[cfg(feature = "tracing")]
    record: Option<Box<CallRecord>>,
}

#[cfg(feature = "tracing")]
#[derive(Debug)]
struct CallRecord {
    worker: WorkerId,
    method: Box<str>,
    began: Instant,
}

#[cfg(feature = "tracing")]
impl CallSpan {
    pub(crate) fn begin(worker: WorkerId, method: &str) -> Self {
        let is_enabled = catch(|| enabled!(target: TARGET, Level::DEBUG)).unwrap_or(false);
        let record = || Box::new(CallRecord { worker, method: method.into(), began: now() });
        Self { record: is_enabled.then(record) }
    }

    /// Records the end of the call, in the span of the calling thread. A second call does nothing.
    pub(crate) fn end(&mut self, error: Option<&CallError>) {
        let Some(record) = self.record.take() else { return };
        let CallRecord { worker, method, began } = *record;
        let took_us = u64::try_from(now().saturating_duration_since(began).as_micros()).unwrap_or(u64::MAX);
        catch(|| {
            let (worker, method, outcome) = (worker.0, &*method, outcome(error));
            event!(target: TARGET, Level::DEBUG, worker, method, took_us, outcome, "call");
        });
    }
}

#[cfg(not(feature = "tracing"))]
#[expect(clippy::unused_self, reason = "the signatures are those with the feature")]
impl CallSpan {
    pub(crate) fn begin(_: WorkerId, _: &str) -> Self {
        Self {}
    }

    pub(crate) fn end(&mut self, _: Option<&CallError>) {}
}

/// A fixed text for each kind of result: the worker's own error text may hold secrets.
#[cfg(feature = "tracing")]
fn outcome(error: Option<&CallError>) -> &'static str {
    match error {
        None => "answered",
        Some(CallError::Rpc(_)) => "refused",
        Some(CallError::TimedOut) => "timed out",
        Some(CallError::NotReady) => "not ready",
        Some(CallError::WorkerExited { .. }) => "worker gone",
        Some(CallError::ParentGone) => "parent gone",
        Some(CallError::Cancelled) => "cancelled",
        Some(CallError::NotConnected) => "no control",
        Some(CallError::Unsupported { .. }) => "not supported",
        Some(CallError::QueueFull { .. }) => "full",
        Some(CallError::EventsUnreceived { .. }) => "held up",
        Some(CallError::Encode(_)) => "not written",
        Some(CallError::InvalidResult(_)) => "not understood",
        Some(CallError::Io(_)) => "failed",
    }
}
