//! What a connection knows of events that are not received.

use crate::wire::jsonrpc::error::CallError;

/// What is known of the calls of a connection.
#[derive(Debug, Default)]
pub(crate) struct HeldUpCalls {
    /// The loop checks at intervals whether events are received.
    pub(super) is_watched: bool,
    /// The output of the worker is not read: it may be unable to go on before it has written.
    pub(super) is_output_paused: bool,
    /// Set while the program does not receive events.
    pub(super) unreceived: Option<Unreceived>,
}

/// What the program has not received.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unreceived {
    /// Of all workers: the channel does not tell whose events it holds.
    pub(crate) events: usize,
    /// Of this worker.
    pub(crate) bytes: usize,
}

impl From<Unreceived> for CallError {
    fn from(Unreceived { events, bytes }: Unreceived) -> Self {
        Self::EventsUnreceived { events, bytes }
    }
}
