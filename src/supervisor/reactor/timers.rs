//! The event loop's timers: one for each purpose, however often it is set.
//!
//! A heap would be shorter, but could only add: a worker that asks for one more microsecond a million times a second would fill it
//! with a million entries, each of which the loop would have to skip later.

use crate::{
    ids::{GroupId, WorkerId},
    supervisor::reactor::arena::Key,
};
use std::{
    collections::{BTreeSet, HashMap},
    hash::Hash,
    time::Instant,
};

/// Timers, each known by its key. Setting one again moves it, so there are never more entries than keys.
#[derive(Debug)]
pub(crate) struct TimerQueue<K> {
    /// Earliest first.
    order: BTreeSet<(Instant, K)>,
    due: HashMap<K, Instant>,
}

impl<K: Copy + Ord + Hash> TimerQueue<K> {
    pub(crate) fn new() -> Self {
        Self { order: BTreeSet::new(), due: HashMap::new() }
    }

    /// Sets the timer of this key, or moves it.
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

    /// When the timer of this key is due, if it is set.
    pub(crate) fn due(&self, key: K) -> Option<Instant> {
        self.due.get(&key).copied()
    }

    /// When the earliest one is due.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.order.first().map(|(due, _)| *due)
    }

    /// Takes the earliest one out, if it is due by now.
    pub(crate) fn take_due(&mut self, now: Instant) -> Option<K> {
        let (_, key) = self.order.first().copied().filter(|(due, _)| *due <= now)?;
        self.cancel(key);
        Some(key)
    }
}

/// What a timer is for. Each is set once at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Timer {
    Lifecycle(Key),
    /// It should be ready by now, or have given a sign of life.
    Health(Key),
    /// The thread that asks whether it is ready could not be started.
    Probe(Key),
    /// It has run as long as it may.
    RuntimeMax(Key),
    /// Its tree is to be looked at again.
    TreeRescan(Key),
    /// What is left of its tree is not waited for any longer.
    TreeTimeout(Key),
    /// Its tree should have been killed by the inspector.
    GroupKill(Key),
    /// The inspector should get on.
    Inspector,
    /// It is tried again to kill this one.
    Unkillable(u64),
    /// Whoever should have ended by now is killed.
    KillAll,
    /// The same, of one.
    KillOne(Key),
    /// The same, in one group.
    Group(GroupId),
    /// It is to be started again.
    Restart(WorkerId),
    /// It was stopped while it was started, and should have arrived by now.
    SpawnTimeout(WorkerId),
    /// The kernel has refused to report something.
    RegistrationRetry,
    /// Starts wait, and those before them may hang.
    SpawnQueue,
    /// It should have connected to control by now.
    ControlConnectTimeout(Key),
    /// Its control connection has ended a while ago.
    DisconnectGrace(Key),
    /// It should have said by now who it is.
    HandshakeTimeout(u64),
    /// The door has been shut for a while.
    AcceptBackoff,
    /// The guard is to be replaced, or watched.
    Guard,
    /// Callers ask a worker one thing after the other.
    CallBurst(Key),
    /// The kernel was short of memory for its control connection.
    ConnectionRetry(Key),
    /// The pipe on which it should have told that it is ready has ended.
    ReadinessPipeGrace(Key),
    /// It has ended, and the message probe of its messages has had its time.
    MessageProbe(Key),
}

impl Timer {
    /// All timers of one incarnation.
    pub(crate) fn of(place: Key) -> [Self; 14] {
        [
            Self::Lifecycle(place),
            Self::Health(place),
            Self::Probe(place),
            Self::RuntimeMax(place),
            Self::TreeRescan(place),
            Self::TreeTimeout(place),
            Self::GroupKill(place),
            Self::KillOne(place),
            Self::ControlConnectTimeout(place),
            Self::DisconnectGrace(place),
            Self::CallBurst(place),
            Self::ConnectionRetry(place),
            Self::ReadinessPipeGrace(place),
            Self::MessageProbe(place),
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
        fn a_key_has_one_timer_and_the_earliest_comes_first(steps in steps()) {
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
    fn p07_a_timer_that_is_moved_again_and_again_takes_the_room_of_one() {
        let (start, mut timers) = (now(), TimerQueue::new());
        for us in 0..100_000 {
            timers.set("stop", start + Duration::from_micros(us));
        }
        assert_eq!((timers.order.len(), timers.due.len()), (1, 1));
        assert_eq!(timers.next(), Some(start + Duration::from_micros(99_999)));
    }
}
