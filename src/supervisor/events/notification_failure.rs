//! Notifications whose handlers have failed.

use crate::{
    ids::WorkerId,
    text::printable,
    wire::{credit::Permit, jsonrpc::error::RpcError},
};
use std::fmt;

/// The longest reported name of a method, in characters.
const METHOD_MAX: usize = 128;

/// A notification of a worker whose handler has returned an error, or has panicked. The worker does not learn of it.
#[non_exhaustive]
pub struct NotificationFailure {
    /// The worker that sent it, which may have ended meanwhile.
    pub worker: WorkerId,
    /// The method, escaped by [`printable`], and not longer than 128 characters.
    pub method: Box<str>,
    /// The error.
    pub error: RpcError,
    /// Number of earlier failures of the same handler that were not reported.
    pub unreported: u64,
    _permit: Permit,
}

impl_debug!(NotificationFailure, |failure| {
    worker: failure.worker,
    method: failure.method,
    error: failure.error,
    unreported: failure.unreported,
});

impl NotificationFailure {
    /// The permit counts the report until it is dropped.
    pub(crate) fn new(worker: WorkerId, method: &str, error: RpcError, (permit, unreported): (Permit, u64)) -> Self {
        let method = method.chars().take(METHOD_MAX).collect::<String>();
        Self { worker, method: printable(&method).to_string().into(), error, unreported, _permit: permit }
    }
}

impl fmt::Display for NotificationFailure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { worker, method, error: RpcError { code, message, data: _ }, unreported, _permit: _ } = self;
        let message = printable(message);
        write!(formatter, "handler of notification `{method}` of worker {worker} failed: error {code}: {message}")?;
        if *unreported > 0 {
            write!(formatter, " ({unreported} earlier failures were not reported)")?;
        }
        Ok(())
    }
}
