//! Which call waits for which answer, and which request of the other side has none yet.

use super::message::whole_number;
use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// PendingCalls that wait for their answers. `W` is whatever wakes the caller.
#[derive(Debug)]
pub(crate) struct PendingCalls<W> {
    last_id: u64,
    waiting: BTreeMap<u64, W>,
    /// Sent requests whose answers may come and have no waiting caller: it gave up, or there was none.
    ignored: BTreeSet<u64>,
}

/// The most late answers that are expected; beyond that those to the oldest requests count as answers to no request.
const IGNORED_MAX: usize = 1024;

/// What an answer belongs to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answered<W> {
    /// A call that waits for it.
    Call(W),
    /// A request whose answer has no waiting caller.
    Ignored,
    /// No open request: there was none of this id, or it has its answer already. The first one counts.
    Unexpected,
}

impl<W> Default for PendingCalls<W> {
    fn default() -> Self {
        Self { last_id: 0, waiting: BTreeMap::new(), ignored: BTreeSet::new() }
    }
}

impl<W> PendingCalls<W> {
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

    /// The answer to this id may come, and has no waiting caller.
    pub(crate) fn expect_ignored(&mut self, id: u64) {
        if self.ignored.len() >= IGNORED_MAX {
            self.ignored.pop_first();
        }
        self.ignored.insert(id);
    }

    /// Whether no caller waits for an answer.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// An answer has come.
    pub(crate) fn answer(&mut self, id: u64) -> Answered<W> {
        match self.waiting.remove(&id) {
            Some(waiter) => Answered::Call(waiter),
            None if self.ignored.remove(&id) => Answered::Ignored,
            None => Answered::Unexpected,
        }
    }

    /// An answer without an id has come: the other side did not understand a request. It is taken for that of the call that
    /// waits, if just one does.
    pub(crate) fn answer_without_id(&mut self) -> Answered<W> {
        if self.waiting.len() > 1 {
            return Answered::Unexpected;
        }
        match self.waiting.pop_first() {
            Some((_, waiter)) => Answered::Call(waiter),
            None if self.ignored.pop_first().is_some() => Answered::Ignored,
            None => Answered::Unexpected,
        }
    }

    /// The caller of a request that was sent has given up. Nothing if it had its answer.
    pub(crate) fn abandon(&mut self, id: u64) -> Option<W> {
        let waiter = self.waiting.remove(&id)?;
        self.expect_ignored(id);
        Some(waiter)
    }

    /// A request was not sent after all.
    pub(crate) fn withdraw(&mut self, id: u64) {
        self.waiting.remove(&id);
    }

    /// The connection has ended, and with it every call.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = W> {
        std::mem::take(&mut self.waiting).into_values()
    }
}

/// The other side's requests that are not answered yet, by their ids as they came: each with the flag that says whether it was
/// cancelled. Numbers are the same however they are written.
#[derive(Debug, Default)]
pub(crate) struct PendingRequests(HashMap<String, Arc<AtomicBool>>);

impl PendingRequests {
    /// A new one; gives its flag.
    pub(crate) fn begin(&mut self, id: &str) -> Arc<AtomicBool> {
        let cancelled = Arc::new(AtomicBool::new(false));
        self.0.insert(key(id).into_owned(), Arc::clone(&cancelled));
        cancelled
    }

    /// It is taken back. Nothing if it was answered before.
    pub(crate) fn cancel(&self, id: &str) {
        if let Some(cancelled) = self.0.get(&*key(id)) {
            cancelled.store(true, Ordering::Relaxed);
        }
    }

    /// It is answered.
    pub(crate) fn end(&mut self, id: &str) {
        self.0.remove(&*key(id));
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

/// An id, whole numbers in their shortest form.
fn key(id: &str) -> Cow<'_, str> {
    if id.starts_with('"') { id.into() } else { whole_number(id).map_or(id.into(), |id| id.to_string().into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_cancelled_until_it_is_answered() {
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
    fn p02_the_first_answer_counts() {
        let mut calls = PendingCalls::default();
        let (first, second) = (calls.begin('a'), calls.begin('b'));
        assert_eq!(calls.answer_without_id(), Answered::Unexpected, "it can belong to either");
        assert_eq!(calls.answer(second), Answered::Call('b'));
        assert_eq!(calls.answer(second), Answered::Unexpected, "an answer that comes twice");
        assert_eq!(calls.answer(99), Answered::Unexpected, "an answer to no call");
        let third = calls.begin('c');
        assert!(third > second, "no id is used again");
        assert_eq!(calls.abandon(third), Some('c'));
        assert_eq!((calls.answer(third), calls.answer(third)), (Answered::Ignored, Answered::Unexpected));
        assert_eq!(calls.answer_without_id(), Answered::Call('a'));
        assert_eq!((calls.answer(first), calls.answer_without_id()), (Answered::Unexpected, Answered::Unexpected));
        let late = calls.begin('l');
        calls.abandon(late);
        assert_eq!((calls.answer_without_id(), calls.answer_without_id()), (Answered::Ignored, Answered::Unexpected));
        let [fourth, fifth] = ['d', 'e'].map(|caller| calls.begin(caller));
        calls.withdraw(fourth);
        assert_eq!(calls.answer(fourth), Answered::Unexpected);
        assert_eq!(calls.drain().collect::<Vec<_>>(), ['e']);
        assert_eq!(calls.answer(fifth), Answered::Unexpected);
    }

    #[test]
    fn p07_late_answers_are_expected_within_bounds() {
        let mut calls: PendingCalls<()> = PendingCalls::default();
        for _ in 0..3 * IGNORED_MAX {
            let id = calls.begin(());
            calls.abandon(id);
        }
        assert_eq!(calls.ignored.len(), IGNORED_MAX);
        assert_eq!(calls.answer(calls.last_id), Answered::Ignored);
    }

    #[test]
    fn p02_numerically_equal_ids_are_one_request() {
        let mut requests = PendingRequests::default();
        let [number, text] = ["7.0", "\"7\""].map(|id| requests.begin(id));
        requests.cancel("7");
        assert_eq!([&number, &text].map(|flag| flag.load(Ordering::Relaxed)), [true, false]);
        requests.end("70e-1");
        requests.end("\"7\"");
        assert!(requests.is_empty());
    }
}
