//! The deadline of one call on a tunnel.

use crate::{
    pipe::timeout::{Begun, Cancel, Wait},
    sys::poll::Deadline,
};
use std::time::Duration;

/// A deadline, cut short when ssh exits.
#[derive(Clone, Copy, Debug)]
pub(super) struct TunnelDeadline<'a> {
    pub(super) deadline: Deadline,
    /// Cancelled when ssh exits.
    pub(super) ended: &'a Cancel,
}

impl TunnelDeadline<'_> {
    pub(super) fn wait(&self) -> Wait<'_> {
        Wait::at_most(self.remaining()).or(self.ended)
    }

    /// The deadline alone, for finding out whether ssh has exited.
    pub(super) fn begun(&self) -> Begun<'_> {
        Begun::now(Wait::at_most(self.remaining()))
    }

    pub(super) fn remaining(&self) -> Duration {
        self.deadline.remaining().unwrap_or(Duration::MAX)
    }
}
