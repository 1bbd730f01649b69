//! How other threads report to the event loop.

use std::fmt;

/// Takes reports for the event loop. The command sender implements it, so that what reports does not depend on the commands.
pub(crate) trait Report<T>: fmt::Debug + Send + Sync {
    /// Queues `report` and wakes the loop.
    fn report(&self, report: T);
}
