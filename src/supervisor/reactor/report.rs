//! Reports of other threads to the event loop.

use std::fmt;

/// Sends reports to the event loop. The command sender implements it, so that reporting modules do not depend on the commands.
pub(crate) trait Report<T>: fmt::Debug + Send + Sync {
    /// Queues `report` and wakes the loop.
    fn report(&self, report: T);
}
