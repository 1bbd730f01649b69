//! The time limit of one call on a tunnel.

use crate::{
    pipe::timeout::{Begun, Cancel, Wait},
    sys::poll::Deadline,
};
use std::time::Duration;

/// A deadline, and the end of ssh if that comes first.
#[derive(Clone, Copy, Debug)]
pub(super) struct Until<'a> {
    pub(super) deadline: Deadline,
    pub(super) ended: &'a Cancel,
}

impl Until<'_> {
    pub(super) fn wait(&self) -> Wait<'_> {
        Wait::at_most(self.remaining()).or(self.ended)
    }

    /// Without the end of ssh: to find out about that very end.
    pub(super) fn begun(&self) -> Begun<'_> {
        Begun::now(Wait::at_most(self.remaining()))
    }

    pub(super) fn remaining(&self) -> Duration {
        self.deadline.remaining().unwrap_or(Duration::MAX)
    }
}
