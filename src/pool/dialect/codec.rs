//! The messages of a protocol that has no calls of JSON-RPC.

use crate::{supervisor::spec::WorkerSpec, wire::jsonrpc::error::Answer};
use serde_json::value::RawValue;
use std::fmt;

/// Turns tasks into messages, and messages into answers. Pure: it keeps no state, and sends nothing.
pub(crate) trait Codec: Send + Sync + fmt::Debug {
    /// Adds to the spec what the workers need.
    fn prepare(&self, spec: WorkerSpec) -> WorkerSpec;

    /// The most tasks that a worker can have at once, and the name of the dialect.
    fn in_flight_max(&self) -> Option<(usize, &'static str)>;

    /// What a worker receives first, as complete frames. It answers with one message.
    fn greeting(&self) -> Option<serde_json::Result<Vec<u8>>>;

    /// A task, as complete frames.
    fn request(&self, id: u64, request: &RawValue) -> serde_json::Result<Vec<u8>>;

    /// What asks a worker to cancel a task.
    fn cancel_request(&self, id: u64) -> Option<Vec<u8>>;

    /// What a worker receives before it is stopped.
    fn end(&self) -> Option<Vec<u8>>;

    /// What a message of a worker says, or why it cannot be one.
    fn reply(&self, message: &[u8]) -> Result<Reply, Box<str>>;
}

/// A message of a worker. Without an id it is about the only task that the worker has.
#[derive(Debug)]
pub(crate) enum Reply {
    Answer(Option<u64>, Answer),
    Progress(Option<u64>, Box<RawValue>),
}
