//! The open calls of this side, and the open requests of the peer.

use super::message::whole_number;
use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// Calls that wait for their answers. `C` wakes a caller.
#[derive(Debug)]
pub(crate) struct PendingCalls<C> {
    last_id: u64,
    waiting: BTreeMap<u64, WaitingCall<C>>,
    /// Requests whose answers are ignored: their callers have timed out, or there were none.
    ignored: BTreeSet<u64>,
}

/// A call that waits for its answer.
#[derive(Debug)]
pub(crate) struct WaitingCall<C> {
    pub(crate) caller: C,
    pub(crate) when_abandoned: WhenAbandoned,
}

/// What the peer receives when the caller of a sent request no longer waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WhenAbandoned {
    /// The cancellation of the dialect.
    Cancel,
    /// Nothing: protocols forbid to cancel the calls of their life cycle.
    Ignore,
}

/// The most ignored answers that are remembered. Beyond it, answers to the oldest such requests count as unexpected.
const IGNORED_MAX: usize = 16 << 10;

/// The request that an answer belongs to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answered<C> {
    /// A call that waits for the answer.
    Call(C),
    /// A request whose answer is ignored.
    Ignored,
    /// No open request: the id is unknown, or the request was answered before. The first answer counts.
    Unexpected,
}

impl<C> Default for PendingCalls<C> {
    fn default() -> Self {
        Self { last_id: 0, waiting: BTreeMap::new(), ignored: BTreeSet::new() }
    }
}

impl<C> PendingCalls<C> {
    /// The id of a new call. Ids are not reused.
    pub(crate) fn next_id(&mut self) -> u64 {
        self.last_id = self.last_id.wrapping_add(1);
        self.last_id
    }

    /// Registers a call that waits for its answer.
    pub(crate) fn wait(&mut self, id: u64, caller: C, when_abandoned: WhenAbandoned) {
        self.waiting.insert(id, WaitingCall { caller, when_abandoned });
    }

    /// Registers a new call and returns its id.
    pub(crate) fn begin(&mut self, caller: C) -> u64 {
        let id = self.next_id();
        self.wait(id, caller, WhenAbandoned::Cancel);
        id
    }

    /// Registers a request whose answer is ignored.
    pub(crate) fn expect_ignored(&mut self, id: u64) {
        if self.ignored.len() >= IGNORED_MAX {
            self.ignored.pop_first();
        }
        self.ignored.insert(id);
    }

    /// Whether no call is waiting.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Removes the call that this answer belongs to.
    pub(crate) fn answer(&mut self, id: u64) -> Answered<C> {
        match self.waiting.remove(&id) {
            Some(call) => Answered::Call(call.caller),
            None if self.ignored.remove(&id) => Answered::Ignored,
            None => Answered::Unexpected,
        }
    }

    /// Handles an error without an id: the peer could not parse a request. It is attributed to the waiting call if there is exactly
    /// one.
    pub(crate) fn answer_without_id(&mut self) -> Answered<C> {
        if self.waiting.len() > 1 {
            return Answered::Unexpected;
        }
        match self.waiting.pop_first() {
            Some((_, call)) => Answered::Call(call.caller),
            None if self.ignored.pop_first().is_some() => Answered::Ignored,
            None => Answered::Unexpected,
        }
    }

    /// The caller of a sent request no longer waits. Returns `None` if the call has ended.
    pub(crate) fn abandon(&mut self, id: u64) -> Option<WaitingCall<C>> {
        let call = self.waiting.remove(&id)?;
        self.expect_ignored(id);
        Some(call)
    }

    /// Whether this call waits for its answer.
    pub(crate) fn is_waiting(&self, id: u64) -> bool {
        self.waiting.contains_key(&id)
    }

    /// Removes a call whose request was not sent. Returns `None` if the call has ended.
    pub(crate) fn withdraw(&mut self, id: u64) -> Option<C> {
        self.waiting.remove(&id).map(|call| call.caller)
    }

    /// As [`abandon`](Self::abandon), for all calls. Returns them with their ids.
    pub(crate) fn abandon_all(&mut self) -> BTreeMap<u64, WaitingCall<C>> {
        let calls = mem::take(&mut self.waiting);
        for id in calls.keys() {
            self.expect_ignored(*id);
        }
        calls
    }

    /// Removes all calls.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = C> {
        mem::take(&mut self.waiting).into_values().map(|call| call.caller)
    }
}

/// The unanswered requests of the peer, by id, each with its cancellation flag. Numeric ids are compared by value, in any notation.
#[derive(Debug, Default)]
pub(crate) struct PendingRequests(BTreeMap<RequestKey, Arc<AtomicBool>>);

/// An id by which requests are compared.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum RequestKey {
    /// A whole number, in whatever notation.
    Number(u64),
    /// The JSON text of any other id.
    Text(Box<str>),
}

impl PendingRequests {
    /// Registers a request and returns its cancellation flag.
    pub(crate) fn begin(&mut self, id: &str) -> Arc<AtomicBool> {
        let cancelled = Arc::new(AtomicBool::new(false));
        self.0.insert(RequestKey::of(id), Arc::clone(&cancelled));
        cancelled
    }

    /// Sets the flag of a request, unless it was answered.
    pub(crate) fn cancel(&self, id: &str) {
        if let Some(cancelled) = self.0.get(&RequestKey::of(id)) {
            cancelled.store(true, Ordering::Relaxed);
        }
    }

    /// Removes an answered request.
    pub(crate) fn end(&mut self, id: &str) {
        self.0.remove(&RequestKey::of(id));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Cancels and removes all requests: the connection has ended.
    pub(crate) fn cancel_all(&mut self) {
        for cancelled in mem::take(&mut self.0).into_values() {
            cancelled.store(true, Ordering::Relaxed);
        }
    }
}

impl RequestKey {
    fn of(id: &str) -> Self {
        // A string is no number, whatever it says.
        whole_number(id).map_or_else(|| Self::Text(id.into()), Self::Number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_is_cancelled_unless_answered() {
        let mut requests = PendingRequests::default();
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
    fn p02_first_answer_counts() {
        let mut calls = PendingCalls::default();
        let (first, second) = (calls.begin('a'), calls.begin('b'));
        assert_eq!(calls.answer_without_id(), Answered::Unexpected, "it can belong to either");
        assert_eq!(calls.answer(second), Answered::Call('b'));
        assert_eq!(calls.answer(second), Answered::Unexpected, "an answer that comes twice");
        assert_eq!(calls.answer(99), Answered::Unexpected, "an answer to no call");
        let third = calls.begin('c');
        assert!(third > second, "no id is used again");
        assert_eq!(calls.abandon(third).map(|call| call.caller), Some('c'));
        assert_eq!((calls.answer(third), calls.answer(third)), (Answered::Ignored, Answered::Unexpected));
        assert_eq!(calls.answer_without_id(), Answered::Call('a'));
        assert_eq!((calls.answer(first), calls.answer_without_id()), (Answered::Unexpected, Answered::Unexpected));
        let late = calls.begin('l');
        calls.abandon(late);
        assert_eq!((calls.answer_without_id(), calls.answer_without_id()), (Answered::Ignored, Answered::Unexpected));
        let [fourth, fifth] = ['d', 'e'].map(|caller| calls.begin(caller));
        assert_eq!(
            (calls.withdraw(fourth), calls.is_waiting(fourth), calls.is_waiting(fifth)),
            (Some('d'), false, true)
        );
        assert_eq!(calls.answer(fourth), Answered::Unexpected);
        assert_eq!(calls.drain().collect::<Vec<_>>(), ['e']);
        assert_eq!(calls.answer(fifth), Answered::Unexpected);
    }

    #[test]
    fn p06_ignored_answers_are_bounded() {
        let mut calls: PendingCalls<()> = PendingCalls::default();
        for _ in 0..3 * IGNORED_MAX {
            let id = calls.begin(());
            calls.abandon(id);
        }
        assert_eq!(calls.ignored.len(), IGNORED_MAX);
        assert_eq!(calls.answer(calls.last_id), Answered::Ignored);
    }

    #[test]
    fn p02_numerically_equal_ids_are_the_same_request() {
        let mut requests = PendingRequests::default();
        let [number, text] = ["7.0", "\"7\""].map(|id| requests.begin(id));
        requests.cancel("7");
        assert_eq!([&number, &text].map(|flag| flag.load(Ordering::Relaxed)), [true, false]);
        requests.end("70e-1");
        requests.end("\"7\"");
        assert!(requests.is_empty());
    }
}
