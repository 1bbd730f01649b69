//! Which call waits for which answer, and how a call ends.

use super::{
    message::DecodeError,
    rpc::{NotRpc, RemoteError},
};
use crate::exit::Exit;
use std::{collections::BTreeMap, io, sync::Arc};

/// Calls that wait for their answers. `W` is whatever wakes the caller.
#[derive(Debug)]
pub(crate) struct Calls<W> {
    last_id: u64,
    waiting: BTreeMap<u64, W>,
}

impl<W> Default for Calls<W> {
    fn default() -> Self {
        Self { last_id: 0, waiting: BTreeMap::new() }
    }
}

impl<W> Calls<W> {
    /// A new call; gives its id.
    pub(crate) fn begin(&mut self, waiter: W) -> u64 {
        self.last_id = self.last_id.wrapping_add(1);
        self.waiting.insert(self.last_id, waiter);
        self.last_id
    }

    /// A call has ended, by its answer or because its caller gave up. Nothing if it had ended before.
    pub(crate) fn end(&mut self, id: u64) -> Option<W> {
        self.waiting.remove(&id)
    }

    /// The connection has ended, and with it every call.
    pub(crate) fn end_all(&mut self) -> impl Iterator<Item = W> {
        std::mem::take(&mut self.waiting).into_values()
    }
}

/// Why a call has no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The other side answered with an error.
    #[error("the other side refused")]
    Remote(#[source] Box<RemoteError>),
    /// There was no answer in time. The other side was told that nobody waits any more.
    #[error("no answer in time")]
    TimedOut,
    /// The worker has ended, and this is how; or nobody knows how, where only its connection has ended so far.
    #[error("the worker is gone{}", ending(.0.as_deref()))]
    WorkerGone(Option<Arc<Exit>>),
    /// The parent has ended, or closed the connection.
    #[error("the parent is gone")]
    ParentGone,
    /// The call was cancelled on this side. The other side was told.
    #[error("the call was cancelled")]
    Cancelled,
    /// The worker has no control pipe: its spec gives it none.
    #[error("there is no control pipe: the spec has no `control`")]
    NoControl,
    /// The other side does not read, and what waits for it has reached the limit.
    #[error("{queued} bytes wait already for the other side to read")]
    Full {
        /// How many bytes wait.
        queued: usize,
    },
    /// The parameters do not turn into JSON.
    #[error("the parameters cannot be written as JSON")]
    Encode(#[source] serde_json::Error),
    /// The result is not what was wanted.
    #[error("the result was not understood")]
    NotUnderstood(#[source] Box<DecodeError>),
    /// The connection failed.
    #[error("the control pipe failed")]
    Io(#[source] io::Error),
}

fn ending(exit: Option<&Exit>) -> String {
    exit.map(|exit| format!(": {exit}")).unwrap_or_default()
}

impl From<CallError> for io::Error {
    fn from(error: CallError) -> Self {
        let kind = match &error {
            CallError::TimedOut => io::ErrorKind::TimedOut,
            CallError::WorkerGone(_) | CallError::ParentGone => io::ErrorKind::BrokenPipe,
            CallError::Cancelled => io::ErrorKind::Interrupted,
            CallError::NoControl => io::ErrorKind::NotConnected,
            CallError::Full { .. } => io::ErrorKind::WouldBlock,
            CallError::Encode(_) | CallError::NotUnderstood(_) => io::ErrorKind::InvalidData,
            CallError::Io(source) => source.kind(),
            CallError::Remote(_) => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

impl From<NotRpc> for io::Error {
    fn from(error: NotRpc) -> Self {
        Self::new(io::ErrorKind::InvalidData, error.reason)
    }
}

const _: () = assert!(size_of::<CallError>() <= 64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_ends_once() {
        let mut calls = Calls::default();
        let (first, second) = (calls.begin('a'), calls.begin('b'));
        assert_ne!(first, second);
        assert_eq!(calls.end(second), Some('b'));
        assert_eq!(calls.end(second), None, "an answer that comes twice");
        assert_eq!(calls.end(99), None, "an answer to no call");
        let third = calls.begin('c');
        assert!(third > second, "no id is used again");
        assert_eq!(calls.end_all().collect::<Vec<_>>(), ['a', 'c']);
        assert_eq!(calls.end(first), None);
    }
}
