//! Recognises a tree without descendants by process ids.
//!
//! The kernel assigns process ids in ascending order, and after the highest from the beginning again. Until then a descendant has a higher
//! id than the worker. If no ids but those of this
//! supervisor's workers were assigned since its start, it has no descendants and no scan is needed, which is the usual case.

use crate::sys::proc::list;
use std::{ops::RangeInclusive, time::Duration};

/// An upper bound of process starts a second, which gives the time until process ids wrap around.
const STARTS_PER_SECOND: i32 = 50_000;

/// The assignment of process ids since a worker was started.
#[derive(Debug)]
pub(crate) struct PidAllocation {
    /// The shortest time until an id is assigned again.
    first_wrap: Duration,
}

impl PidAllocation {
    pub(crate) fn new() -> Self {
        let seconds = f64::from(list::highest_number()) / f64::from(STARTS_PER_SECOND);
        Self { first_wrap: Duration::from_secs_f64(seconds) }
    }

    /// Whether an id may have been assigned twice within `time`.
    pub(crate) fn may_wrap_in(&self, time: Duration) -> bool {
        time >= self.first_wrap
    }

    /// Whether process `pid` cannot have started others: since its start no more ids were assigned than to the `started` processes of this
    /// supervisor. Reads one file of `/proc`.
    pub(crate) fn shows_no_descendant(&self, pid: i32, lived: Duration, started: u64) -> bool {
        let given = list::last_number().map(|last| i64::from(last) - i64::from(pid));
        let started = i64::try_from(started).unwrap_or(i64::MAX);
        !self.may_wrap_in(lived) && given.is_ok_and(|given| (0..=started).contains(&given))
    }

    /// The ids that were assigned from `from` on, where `last` is the last one; empty if there are none. `None` if the ids have wrapped
    /// around since `from - 1` was assigned.
    pub(crate) fn assigned(from: i32, last: i32) -> Option<RangeInclusive<i32>> {
        (last >= from.saturating_sub(1)).then_some(from..=last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p09_ids_below_the_previous_one_are_after_a_wrap() {
        let assigned = |from, last| PidAllocation::assigned(from, last).map(Iterator::collect::<Vec<_>>);
        assert_eq!(assigned(7, 9), Some(vec![7, 8, 9]));
        assert_eq!(assigned(7, 6), Some(vec![]), "none since 6");
        assert_eq!(assigned(32767, 32766), Some(vec![]));
        assert_eq!((assigned(32767, 300), assigned(7, 5), assigned(7, 0)), (None, None, None));
        assert_eq!(assigned(i32::MAX, i32::MAX), Some(vec![i32::MAX]));
    }
}
