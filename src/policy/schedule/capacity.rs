//! The slots and named resources of a budget: limits, and what is taken.

use super::task::{Demand, DemandError};

/// One limit, and how much of it is taken.
#[derive(Debug, Clone, Copy)]
struct Amount {
    limit: u64,
    /// Can exceed the limit after the limit was lowered.
    used: u64,
}

impl Amount {
    fn new(limit: u64) -> Self {
        Self { limit, used: 0 }
    }

    /// Whether `wanted` can be taken. A demand above the limit, which was lowered after the task was submitted, takes all of it.
    fn fits(self, wanted: u64) -> bool {
        let free = self.limit.saturating_sub(self.used);
        wanted == 0 || free > 0 && wanted.min(self.limit) <= free
    }
}

/// The slots and named resources of a budget.
#[derive(Debug)]
pub(crate) struct Capacity {
    slots: Amount,
    resources: Vec<(Box<str>, Amount)>,
}

impl Capacity {
    pub(crate) fn new(slots: u64) -> Self {
        Self { slots: Amount::new(slots), resources: Vec::new() }
    }

    pub(crate) fn limit(&self) -> u64 {
        self.slots.limit
    }

    pub(crate) fn set_limit(&mut self, limit: u64) {
        self.slots.limit = limit;
    }

    /// Adds a resource, or changes its amount.
    pub(crate) fn set_resource(&mut self, name: &str, limit: u64) {
        match self.resources.iter_mut().find(|(other, _)| **other == *name) {
            Some((_, amount)) => amount.limit = limit,
            None => self.resources.push((name.into(), Amount::new(limit))),
        }
    }

    /// The demand of a new task. A limit of zero pauses, so any demand is accepted then.
    pub(crate) fn demand(&self, slots: u64, needs: &[(Box<str>, u64)]) -> Result<Demand, DemandError> {
        let limit = self.slots.limit;
        if slots == 0 {
            return Err(DemandError::NoSlots);
        }
        if slots > limit && limit > 0 {
            return Err(DemandError::TooManySlots { wanted: slots, limit });
        }
        let mut resources: Vec<(usize, u64)> = Vec::new();
        for (name, wanted) in needs {
            let index = self.resources.iter().position(|(other, _)| other == name);
            let index = index.ok_or_else(|| DemandError::UnknownResource { name: name.clone() })?;
            match resources.iter_mut().find(|(other, _)| *other == index) {
                Some((_, sum)) => *sum = sum.saturating_add(*wanted),
                None => resources.push((index, *wanted)),
            }
        }
        resources.retain(|(_, wanted)| *wanted > 0);
        resources.sort_unstable();
        for &(index, wanted) in &resources {
            if let Some((name, Amount { limit, .. })) = self.resources.get(index)
                && wanted > *limit
                && *limit > 0
            {
                return Err(DemandError::TooMuch { name: name.clone(), wanted, limit: *limit });
            }
        }
        Ok(Demand { slots, resources: resources.into() })
    }

    pub(crate) fn has_free_slot(&self) -> bool {
        self.slots.fits(1)
    }

    pub(crate) fn fits(&self, demand: &Demand) -> bool {
        let resource_fits =
            |&(index, wanted): &(usize, u64)| self.resources.get(index).is_some_and(|(_, amount)| amount.fits(wanted));
        self.slots.fits(demand.slots) && demand.resources.iter().all(resource_fits)
    }

    /// Takes what the demand asks for, of which there is enough. Returns what was taken.
    pub(crate) fn take(&mut self, demand: &Demand) -> Demand {
        let mut taken = demand.clone();
        taken.slots = taken.slots.min(self.slots.limit);
        self.slots.used = self.slots.used.saturating_add(taken.slots);
        for (index, wanted) in &mut taken.resources {
            if let Some((_, amount)) = self.resources.get_mut(*index) {
                *wanted = (*wanted).min(amount.limit);
                amount.used = amount.used.saturating_add(*wanted);
            }
        }
        taken
    }

    /// Returns what [`take`](Self::take) has returned.
    pub(crate) fn give_back(&mut self, taken: &Demand) {
        self.slots.used = self.slots.used.saturating_sub(taken.slots);
        for (index, wanted) in &taken.resources {
            if let Some((_, amount)) = self.resources.get_mut(*index) {
                amount.used = amount.used.saturating_sub(*wanted);
            }
        }
    }
}
