//! Which call waits for which answer, and how a call ends.

use super::{
    message::DecodeError,
    rpc::{NotRpc, Refusal, RemoteError},
};
use crate::exit::Exit;
use std::{
    collections::{BTreeMap, HashMap},
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

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
    /// The id of a new call, never given again.
    pub(crate) fn next_id(&mut self) -> u64 {
        self.last_id = self.last_id.wrapping_add(1);
        self.last_id
    }

    /// A call of this id waits for its answer from now on.
    pub(crate) fn wait(&mut self, id: u64, waiter: W) {
        self.waiting.insert(id, waiter);
    }

    /// A new call that waits; gives its id.
    pub(crate) fn begin(&mut self, waiter: W) -> u64 {
        let id = self.next_id();
        self.wait(id, waiter);
        id
    }

    /// Whether this id was given once.
    pub(crate) fn has_been(&self, id: u64) -> bool {
        (1..=self.last_id).contains(&id)
    }

    /// Whether nobody waits for an answer.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
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

/// The other side's requests that are not answered yet, by their ids as they came: each with the flag that says whether it was
/// cancelled.
#[derive(Debug, Default)]
pub(crate) struct Requests(HashMap<String, Arc<AtomicBool>>);

impl Requests {
    /// A new one; gives its flag.
    pub(crate) fn begin(&mut self, id: &str) -> Arc<AtomicBool> {
        let cancelled = Arc::new(AtomicBool::new(false));
        self.0.insert(id.to_owned(), Arc::clone(&cancelled));
        cancelled
    }

    /// It is taken back. Nothing if it was answered before.
    pub(crate) fn cancel(&self, id: &str) {
        if let Some(cancelled) = self.0.get(id) {
            cancelled.store(true, Ordering::Relaxed);
        }
    }

    /// It is answered.
    pub(crate) fn end(&mut self, id: &str) {
        self.0.remove(id);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The connection has ended: nobody waits for any of them.
    pub(crate) fn cancel_all(&mut self) {
        for (_, cancelled) in self.0.drain() {
            cancelled.store(true, Ordering::Relaxed);
        }
    }
}

/// Why a call has no result.
#[derive(thiserror::Error)]
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

explains_itself!(CallError);

fn ending(exit: Option<&Exit>) -> String {
    exit.map(|exit| format!(": {exit}")).unwrap_or_default()
}

impl From<Refusal> for CallError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Told(error) => Self::Remote(Box::new(error)),
            Refusal::NotUnderstood(error) => Self::NotUnderstood(Box::new(error)),
        }
    }
}

impl From<CallError> for io::Error {
    fn from(error: CallError) -> Self {
        let kind = match &error {
            CallError::TimedOut => io::ErrorKind::TimedOut,
            CallError::WorkerGone(_) | CallError::ParentGone => io::ErrorKind::BrokenPipe,
            CallError::NoControl => io::ErrorKind::NotConnected,
            CallError::Full { .. } => io::ErrorKind::WouldBlock,
            CallError::Encode(_) | CallError::NotUnderstood(_) => io::ErrorKind::InvalidData,
            CallError::Io(source) => source.kind(),
            // Not `Interrupted`, after which whoever reads or writes tries again.
            CallError::Remote(_) | CallError::Cancelled => io::ErrorKind::Other,
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
    fn a_request_is_cancelled_until_it_is_answered() {
        let mut requests = Requests::default();
        let [first, second, third] = ["1", "\"a\"", "3"].map(|id| requests.begin(id));
        requests.cancel("\"a\"");
        requests.cancel("99");
        requests.end("1");
        requests.cancel("1");
        assert_eq!([&first, &second, &third].map(|flag| flag.load(Ordering::Relaxed)), [false, true, false]);
        requests.cancel_all();
        assert!(third.load(Ordering::Relaxed) && !first.load(Ordering::Relaxed));
    }

    #[test]
    fn a_call_ends_once() {
        let mut calls = Calls::default();
        let (first, second) = (calls.begin('a'), calls.begin('b'));
        assert_ne!(first, second);
        assert_eq!(calls.end(second), Some('b'));
        assert_eq!(calls.end(second), None, "an answer that comes twice");
        assert_eq!(calls.end(99), None, "an answer to no call");
        assert_eq!([0, first, second, 99].map(|id| calls.has_been(id)), [false, true, true, false]);
        let third = calls.begin('c');
        assert!(third > second, "no id is used again");
        assert_eq!(calls.end_all().collect::<Vec<_>>(), ['a', 'c']);
        assert_eq!(calls.end(first), None);
    }
}
