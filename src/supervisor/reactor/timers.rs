//! The timers of the event loop: one entry for each purpose, however often it is set.
//!
//! A binary heap would be simpler, but has no removal: a worker that extends its deadline a million times a second would fill it with a
//! million stale entries, which the loop would have to skip.

use crate::{
    ids::{GroupId, WorkerId},
    supervisor::reactor::arena::Key,
};
use std::{
    collections::{BTreeSet, HashMap},
    hash::Hash,
    time::Instant,
};

/// Timers by key. Setting a timer again moves it, so there are never more entries than keys.
#[derive(Debug)]
pub(crate) struct TimerQueue<K> {
    /// Sorted by due time.
    order: BTreeSet<(Instant, K)>,
    due: HashMap<K, Instant>,
}

impl<K: Copy + Ord + Hash> TimerQueue<K> {
    pub(crate) fn new() -> Self {
        Self { order: BTreeSet::new(), due: HashMap::new() }
    }

    /// Sets the timer of `key`, or moves it.
    pub(crate) fn set(&mut self, key: K, due: Instant) {
        if let Some(before) = self.due.insert(key, due) {
            if before == due {
                return;
            }
            self.order.remove(&(before, key));
        }
        self.order.insert((due, key));
    }

    pub(crate) fn cancel(&mut self, key: K) {
        if let Some(due) = self.due.remove(&key) {
            self.order.remove(&(due, key));
        }
    }

    /// Returns the due time of the timer of `key`, if it is set.
    pub(crate) fn due(&self, key: K) -> Option<Instant> {
        self.due.get(&key).copied()
    }

    /// Returns the earliest due time.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.order.first().map(|(due, _)| *due)
    }

    /// Removes and returns the earliest timer, if it is due.
    pub(crate) fn take_due(&mut self, now: Instant) -> Option<K> {
        let (_, key) = self.order.first().copied().filter(|(due, _)| *due <= now)?;
        self.cancel(key);
        Some(key)
    }
}

/// The purpose of a timer. A [`Key`] names the incarnation it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Timer {
    /// The next deadline of the incarnation's lifecycle.
    Lifecycle(Key),
    /// The next deadline of the readiness or of the watchdog.
    Health(Key),
    /// Tokens are requested again.
    Jobserver,
    /// Retries to start the thread of the readiness probe.
    Probe(Key),
    /// The maximum runtime is reached.
    RuntimeMax(Key),
    /// The process tree is scanned again.
    TreeRescan(Key),
    /// The remaining processes of the tree are not waited for any longer.
    TreeTimeout(Key),
    /// The inspector had its time to kill the tree: the process group is killed without it.
    GroupKill(Key),
    /// Checks that the inspector makes progress.
    Inspector,
    /// Retries to kill a process that was reported as unkillable, by its number.
    Unkillable(u64),
    /// The timeout of a stop of all workers: kills those that still run.
    KillAll,
    /// The timeout of a stop of one worker.
    KillOne(Key),
    /// The stop timeout of a group.
    Group(GroupId),
    /// The backoff of a worker is over.
    Restart(WorkerId),
    /// The deadline of a job.
    JobDeadline(WorkerId),
    /// The worker was stopped during its start, which has not completed in time.
    SpawnTimeout(WorkerId),
    /// Retries refused registrations.
    RegistrationRetry,
    /// Checks whether queued starts wait for threads that hang in other starts.
    SpawnQueue,
    /// No process was attached to the worker in time.
    AttachTimeout(WorkerId),
    /// The worker has not connected to the control server in time.
    ControlConnectTimeout(Key),
    /// The control connection was closed, and the exit of the worker has not followed.
    DisconnectGrace(Key),
    /// A control connection has not completed its handshake in time.
    HandshakeTimeout(u64),
    /// The first line of a control connection is examined again after a shortage.
    HandshakeRetry(u64),
    /// The listener is registered again after a failed accept.
    AcceptBackoff,
    /// The guard is replaced after its backoff.
    Guard,
    /// Checks whether callers still read the control connection themselves.
    CallBurst(Key),
    /// Retries the control connection after a shortage of memory.
    ConnectionRetry(Key),
    /// Checks whether events are received that calls wait for.
    Receipts(Key),
    /// The readiness pipe was closed, and the exit of the worker has not followed.
    ReadinessPipeGrace(Key),
    /// The process has exited, and the message probe had its time to answer.
    MessageProbe(Key),
}

impl Timer {
    /// Returns all timers of one incarnation.
    pub(crate) fn of(key: Key) -> [Self; 15] {
        [
            Self::Lifecycle(key),
            Self::Health(key),
            Self::Probe(key),
            Self::RuntimeMax(key),
            Self::TreeRescan(key),
            Self::TreeTimeout(key),
            Self::GroupKill(key),
            Self::KillOne(key),
            Self::ControlConnectTimeout(key),
            Self::DisconnectGrace(key),
            Self::CallBurst(key),
            Self::ConnectionRetry(key),
            Self::Receipts(key),
            Self::ReadinessPipeGrace(key),
            Self::MessageProbe(key),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::clock::now;
    use proptest::prelude::*;
    use std::{collections::BTreeMap, time::Duration};

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Set(u8, u64),
        Cancel(u8),
        TakeUntil(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => (0..8_u8, 0..100_u64).prop_map(|(key, due)| Step::Set(key, due)),
            1 => (0..8_u8).prop_map(Step::Cancel),
            1 => (0..100_u64).prop_map(Step::TakeUntil),
        ];
        prop::collection::vec(step, 0..200)
    }

    proptest! {
        #[test]
        fn take_due_random_steps_returns_one_timer_per_key_in_order(steps in steps()) {
            let start = now();
            let at = |ms| start + Duration::from_millis(ms);
            let (mut timers, mut model) = (TimerQueue::new(), BTreeMap::new());
            for step in steps {
                match step {
                    Step::Set(key, due) => {
                        timers.set(key, at(due));
                        model.insert(key, due);
                    }
                    Step::Cancel(key) => {
                        timers.cancel(key);
                        model.remove(&key);
                    }
                    Step::TakeUntil(until) => {
                        let earliest = model.iter().map(|(key, due)| (*due, *key)).min();
                        let expected = earliest.filter(|(due, _)| *due <= until).map(|(_, key)| key);
                        prop_assert_eq!(timers.take_due(at(until)), expected);
                        expected.map(|key| model.remove(&key));
                    }
                }
                prop_assert_eq!(timers.order.len(), model.len());
                prop_assert_eq!(timers.due.len(), model.len());
                prop_assert_eq!(timers.next(), model.values().min().map(|due| at(*due)));
            }
        }
    }

    #[test]
    fn p07_set_same_key_repeatedly_keeps_one_entry() {
        let (start, mut timers) = (now(), TimerQueue::new());
        for us in 0..100_000 {
            timers.set("stop", start + Duration::from_micros(us));
        }
        assert_eq!((timers.order.len(), timers.due.len()), (1, 1));
        assert_eq!(timers.next(), Some(start + Duration::from_micros(99_999)));
    }
}
