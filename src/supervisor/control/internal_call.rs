//! Calls of a protocol's life cycle, which the supervisor itself makes on one connection.

use crate::{
    supervisor::control::connection::{RpcConnection, next_call_id},
    wire::jsonrpc::{completion::Completion, encode, error::CallError},
};
use serde::Serialize;
use std::sync::Arc;

/// A call to one incarnation, which ends with it. After its drop the answer is ignored; it is not cancelled.
#[derive(Debug)]
pub(crate) struct InternalCall {
    connection: Arc<RpcConnection>,
    id: u64,
    completion: Completion,
}

impl InternalCall {
    /// Sends a call.
    ///
    /// # Errors
    ///
    /// If the connection does not carry calls, is not open, or its queue is full.
    pub(crate) fn start<P: Serialize + ?Sized>(
        connection: &Arc<RpcConnection>,
        (method, params): (&str, &P),
        completion: Completion,
    ) -> Result<Self, CallError> {
        if !connection.is_open() || !connection.has_calls() {
            return Err(CallError::NotConnected);
        }
        let id = next_call_id();
        let line = encode::request(id, method, params).map_err(CallError::Encode)?;
        connection.send_own_call(id, line, completion.clone())?;
        Ok(Self { connection: Arc::clone(connection), id, completion })
    }

    pub(crate) fn completion(&self) -> &Completion {
        &self.completion
    }
}

impl Drop for InternalCall {
    fn drop(&mut self) {
        // Does nothing after the response.
        self.connection.abandon_call(self.id);
    }
}
