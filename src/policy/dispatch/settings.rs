//! The settings of a pool.

use crate::policy::restart::Backoff;
use std::time::Duration;

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
    pub(crate) halt: Option<HaltPolicy>,
}

/// When a pool gives up its tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HaltPolicy {
    /// After how many failures, at least 1.
    pub(crate) failures: u64,
    /// Also tasks that run are ended.
    pub(crate) is_immediate: bool,
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
