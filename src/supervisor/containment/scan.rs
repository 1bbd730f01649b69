//! How the processes of a tree are recognised: by a token in their environment, and by their numbers.
//!
//! Every incarnation is given a token of its own, which what it starts inherits. `policy::descendants` lists the other signs.
//!
//! Process numbers are given in turn, so a descendant has a number that was given after the worker's own. Where no others were given
//! than to workers of this supervisor there is nothing to look for: most workers start nothing.

use crate::sys::proc::list;
use std::time::Duration;
/// How many processes a machine can start in a second, generously: so long no number comes twice.
const STARTS_PER_SECOND: i32 = 50_000;

/// The process numbers that were given since a worker was started.
#[derive(Debug)]
pub(crate) struct PidAllocation {
    /// So long no number comes twice.
    first_wrap: Duration,
}

impl PidAllocation {
    pub(crate) fn new() -> Self {
        let seconds = f64::from(list::highest_number()) / f64::from(STARTS_PER_SECOND);
        Self { first_wrap: Duration::from_secs_f64(seconds) }
    }

    /// Whether a number may have come again in this time.
    pub(crate) fn may_wrap_in(&self, time: Duration) -> bool {
        time >= self.first_wrap
    }

    /// Whether this process cannot have started any other: since its start no more numbers were given than to the `started`
    /// processes of this supervisor. Reads the one file of `/proc` that says so.
    pub(crate) fn shows_no_descendant(&self, pid: i32, lived: Duration, started: u64) -> bool {
        let given = list::last_number().map(|last| i64::from(last) - i64::from(pid));
        let started = i64::try_from(started).unwrap_or(i64::MAX);
        !self.may_wrap_in(lived) && given.is_ok_and(|given| (0..=started).contains(&given))
    }
}
