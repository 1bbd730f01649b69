//! How many grants of a budget there are.

use super::ids::DemandClass;
use std::collections::BTreeMap;

/// The grants of each class that has tasks.
#[derive(Debug, Default)]
pub(crate) struct Grants(BTreeMap<DemandClass, ClassGrants>);

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ClassGrants {
    /// Those that the budget has not answered.
    pub(crate) requested: usize,
    /// Those that no call has.
    pub(crate) free: usize,
}

impl Grants {
    pub(crate) fn of(&mut self, class: DemandClass) -> &mut ClassGrants {
        self.0.entry(class).or_default()
    }

    /// Whether a task of this class can be sent.
    pub(crate) fn is_granted(&self, class: Option<DemandClass>) -> bool {
        class.is_none_or(|class| self.0.get(&class).is_some_and(|grants| grants.free > 0))
    }

    pub(crate) fn classes(&self) -> Vec<DemandClass> {
        self.0.keys().copied().collect()
    }
}
