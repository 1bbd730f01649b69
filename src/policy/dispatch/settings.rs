//! The settings of a pool.

use crate::policy::restart::Backoff;
use std::{ops::RangeInclusive, time::Duration};

#[derive(Debug, Clone)]
pub(crate) struct DispatchSettings {
    /// The fewest workers.
    pub(crate) min: usize,
    /// The most workers, at least 1, apart from those that are being replaced.
    pub(crate) max: usize,
    /// How many tasks a worker may have at once, at least 1.
    pub(crate) in_flight: usize,
    /// How long a worker above `min` waits for a task.
    pub(crate) idle_time: Duration,
    /// After how many tasks a worker is replaced.
    pub(crate) tasks_max: Option<u64>,
    /// After which time it is replaced.
    pub(crate) age_max: Option<Duration>,
    /// How long a worker may take to answer a cancelled call before it is killed.
    pub(crate) cancel_grace: Duration,
    /// How many starts in a row may fail.
    pub(crate) start_failures_max: u32,
    /// The delays between them.
    pub(crate) backoff: Backoff,
    pub(crate) halt: Option<Halt>,
}

/// When a pool gives up its tasks: after so many that have [failed](crate::pool::TaskError), for whatever reason but cancellation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Halt {
    pub(crate) failures: u64,
    /// Also tasks that run are ended.
    pub(crate) is_immediate: bool,
}

impl Halt {
    /// After `failures` failures no other task is sent. Those that workers have are finished.
    pub const fn soon(failures: u64) -> Self {
        Self { failures, is_immediate: false }
    }

    /// After `failures` failures all tasks are ended.
    pub const fn now(failures: u64) -> Self {
        Self { failures, is_immediate: true }
    }
}

/// The number of workers of a pool: fixed (`8`), or a range (`1..=8`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolSize {
    pub(crate) min: usize,
    pub(crate) max: usize,
}

impl From<usize> for PoolSize {
    fn from(workers: usize) -> Self {
        Self { min: workers, max: workers }
    }
}

impl From<RangeInclusive<usize>> for PoolSize {
    fn from(workers: RangeInclusive<usize>) -> Self {
        Self { min: *workers.start(), max: *workers.end() }
    }
}

impl Default for DispatchSettings {
    fn default() -> Self {
        Self {
            min: 1,
            max: 1,
            in_flight: 1,
            idle_time: Duration::from_secs(10),
            tasks_max: None,
            age_max: None,
            cancel_grace: Duration::from_secs(5),
            start_failures_max: 5,
            backoff: Backoff::exponential(Duration::from_millis(100), Duration::from_secs(5)).jitter(0.0),
            halt: None,
        }
    }
}
