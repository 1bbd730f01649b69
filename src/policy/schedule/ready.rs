//! The tasks of one queue that wait for a slot only.

use super::{
    capacity::Capacity,
    task::{Demand, Rank},
};
use std::collections::{BTreeMap, BTreeSet};

/// Tasks by their demands. Programs have few different demands, so the search for a task that fits looks at one task of each.
#[derive(Debug, Default)]
pub(crate) struct ReadyTasks {
    by_demand: BTreeMap<Demand, BTreeSet<Rank>>,
}

impl ReadyTasks {
    pub(crate) fn insert(&mut self, demand: &Demand, rank: Rank) {
        match self.by_demand.get_mut(demand) {
            Some(ranks) => drop(ranks.insert(rank)),
            None => drop(self.by_demand.insert(demand.clone(), BTreeSet::from([rank]))),
        }
    }

    pub(crate) fn remove(&mut self, demand: &Demand, rank: Rank) {
        if let Some(ranks) = self.by_demand.get_mut(demand) {
            ranks.remove(&rank);
            if ranks.is_empty() {
                self.by_demand.remove(demand);
            }
        }
    }

    /// The first task that fits.
    pub(crate) fn first_fitting(&self, capacity: &Capacity) -> Option<Rank> {
        let fitting = self.by_demand.iter().filter(|(demand, _)| capacity.fits(demand));
        fitting.filter_map(|(_, ranks)| ranks.first().copied()).min()
    }
}
