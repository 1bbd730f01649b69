//! What a connection knows of events that are not received.

use crate::wire::jsonrpc::error::CallError;

/// What is known of the calls of a connection.
#[derive(Debug, Default)]
pub(crate) struct HeldUpCalls {
    /// The loop checks at intervals whether events are received.
    pub(super) is_watched: bool,
    /// Set while the program does not receive events.
    pub(super) unreceived: Option<Unreceived>,
}

/// The requests and notifications of a worker that are not received.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unreceived {
    pub(crate) events: usize,
    pub(crate) bytes: usize,
}

impl From<Unreceived> for CallError {
    fn from(Unreceived { events, bytes }: Unreceived) -> Self {
        Self::EventsUnreceived { events, bytes }
    }
}
