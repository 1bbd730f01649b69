//! Starts that fail.

use std::time::Instant;

/// The starts of workers that fail one after the other.
#[derive(Debug, Default)]
pub(crate) struct Starts {
    pub(super) failures: u32,
    /// Workers that are started together fail together: of a round one failure counts.
    pub(super) round: u32,
    /// No start before.
    pub(super) not_before: Option<Instant>,
}

impl Starts {
    /// Workers do start.
    pub(crate) fn on_answer(&mut self) {
        self.failures = 0;
    }
}
