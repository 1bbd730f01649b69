//! The tasks that wait for a worker.

use super::{ids::MemberId, task::Rank};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Default)]
pub(crate) struct WaitingTasks {
    /// For any worker.
    general: BTreeSet<Rank>,
    /// For one worker, because of their keys. No set is empty.
    keyed: BTreeMap<MemberId, BTreeSet<Rank>>,
    /// For a worker of their own: workers have died while they ran.
    suspects: BTreeSet<Rank>,
}

/// Where a task waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    General,
    Keyed(MemberId),
    Suspects,
}

impl WaitingTasks {
    pub(crate) fn insert(&mut self, place: Place, rank: Rank) {
        match place {
            Place::General => self.general.insert(rank),
            Place::Keyed(member) => self.keyed.entry(member).or_default().insert(rank),
            Place::Suspects => self.suspects.insert(rank),
        };
    }

    /// Removes a task, wherever it waits.
    pub(crate) fn remove(&mut self, rank: Rank) {
        if self.general.remove(&rank) || self.suspects.remove(&rank) {
            return;
        }
        for ranks in self.keyed.values_mut() {
            ranks.remove(&rank);
        }
        self.keyed.retain(|_, ranks| !ranks.is_empty());
    }

    /// Takes the tasks that wait for a worker that takes no more.
    pub(crate) fn take_keyed(&mut self, member: MemberId) -> BTreeSet<Rank> {
        self.keyed.remove(&member).unwrap_or_default()
    }

    /// The first task for a worker that has others to do.
    pub(crate) fn first_for(&self, member: MemberId) -> Option<Rank> {
        let keyed = self.keyed.get(&member).and_then(BTreeSet::first);
        keyed.into_iter().chain(self.general.first()).min().copied()
    }

    pub(crate) fn first_suspect(&self) -> Option<Rank> {
        self.suspects.first().copied()
    }

    pub(crate) fn len(&self) -> usize {
        self.general.len() + self.suspects.len() + self.keyed.values().map(BTreeSet::len).sum::<usize>()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.general.is_empty() && self.suspects.is_empty() && self.keyed.is_empty()
    }

    pub(crate) fn take_all(&mut self) -> impl Iterator<Item = Rank> + use<> {
        let Self { general, keyed, suspects } = std::mem::take(self);
        general.into_iter().chain(keyed.into_values().flatten()).chain(suspects)
    }
}

#[cfg(test)]
impl WaitingTasks {
    /// The number of tasks that any worker without others may get.
    pub(crate) fn count_general(&self) -> usize {
        self.general.len() + self.suspects.len()
    }
}
