//! The tasks that wait for a worker.

use super::{
    ids::{DemandClass, MemberId},
    task::Rank,
};
use std::collections::{BTreeMap, BTreeSet};

/// The tasks that wait, by their places and by what they take of the budget. No set is empty.
#[derive(Debug, Default)]
pub(crate) struct WaitingTasks(BTreeMap<(Place, Option<DemandClass>), BTreeSet<Rank>>);

/// Where a task waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// For any worker.
    General,
    /// For a worker of its own: workers have died while it ran.
    Suspects,
    /// For one worker, because of its key.
    Keyed(MemberId),
}

impl WaitingTasks {
    pub(crate) fn insert(&mut self, place: Place, rank: Rank) {
        self.0.entry((place, rank.class)).or_default().insert(rank);
    }

    /// Removes a task, wherever it waits.
    pub(crate) fn remove(&mut self, rank: Rank) {
        let mut emptied = None;
        for (key, ranks) in &mut self.0 {
            if ranks.remove(&rank) {
                emptied = ranks.is_empty().then_some(*key);
                break;
            }
        }
        if let Some(key) = emptied {
            self.0.remove(&key);
        }
    }

    /// Takes the tasks that wait for a worker that takes no more.
    pub(crate) fn take_keyed(&mut self, member: MemberId) -> Vec<Rank> {
        let keys: Vec<_> = self.classes(Place::Keyed(member)).map(|(class, _)| (Place::Keyed(member), class)).collect();
        keys.into_iter().filter_map(|key| self.0.remove(&key)).flatten().collect()
    }

    /// The first task at a place that the budget permits.
    pub(crate) fn first(&self, place: Place, is_granted: impl Fn(Option<DemandClass>) -> bool) -> Option<Rank> {
        self.classes(place)
            .filter(|(class, _)| is_granted(*class))
            .filter_map(|(_, ranks)| ranks.first().copied())
            .min()
    }

    /// The number of tasks at a place that take this of the budget.
    pub(crate) fn count(&self, place: Place, class: DemandClass) -> usize {
        self.0.get(&(place, Some(class))).map_or(0, BTreeSet::len)
    }

    fn classes(&self, place: Place) -> impl Iterator<Item = (Option<DemandClass>, &BTreeSet<Rank>)> {
        let last = DemandClass(usize::MAX);
        self.0.range((place, None)..=(place, Some(last))).map(|((_, class), ranks)| (*class, ranks))
    }

    pub(crate) fn len(&self) -> usize {
        self.0.values().map(BTreeSet::len).sum()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn take_all(&mut self) -> impl Iterator<Item = Rank> + use<> {
        std::mem::take(&mut self.0).into_values().flatten()
    }
}
