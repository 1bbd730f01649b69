//! The times at which a pool has something to do.

use super::ids::{CallNumber, MemberId};
use std::{collections::BTreeSet, time::Instant};

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum DispatchTimer {
    /// The timeout of a call, or the end of the time to react to its cancellation.
    Deadline(CallNumber),
    Slow(CallNumber),
    /// A worker may have been idle for long enough to be stopped.
    Idle(MemberId),
    /// A worker has reached its age.
    Age(MemberId),
    /// Workers may be started again.
    Start,
}

#[derive(Debug, Default)]
pub(crate) struct Timers(BTreeSet<(Instant, DispatchTimer)>);

impl Timers {
    /// Without a time, nothing is due.
    pub(crate) fn set(&mut self, due: Option<Instant>, timer: DispatchTimer) {
        self.0.extend(due.map(|due| (due, timer)));
    }

    /// `due` is the time for which it was set, if it was.
    pub(crate) fn cancel(&mut self, due: Option<Instant>, timer: DispatchTimer) {
        if let Some(due) = due {
            self.0.remove(&(due, timer));
        }
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        self.0.first().map(|(due, _)| *due)
    }

    pub(crate) fn take_due(&mut self, now: Instant) -> Option<DispatchTimer> {
        if self.next()? > now {
            return None;
        }
        self.0.pop_first().map(|(_, timer)| timer)
    }
}

#[cfg(test)]
impl Timers {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}
