//! The deadline of one call on a tunnel.

use crate::{
    deadline::Deadline,
    pipe::timeout::{CancelToken, StartedTimeout, Timeout},
};
use std::time::Duration;

/// A deadline, cut short when ssh exits.
#[derive(Clone, Copy, Debug)]
pub(super) struct TunnelDeadline<'a> {
    pub(super) deadline: Deadline,
    /// Cancelled when ssh exits.
    pub(super) ended: &'a CancelToken,
}

impl TunnelDeadline<'_> {
    pub(super) fn wait(&self) -> Timeout<'_> {
        Timeout::after(self.remaining()).or_cancelled(self.ended)
    }

    /// The deadline alone, for finding out whether ssh has exited.
    pub(super) fn begun(&self) -> StartedTimeout<'_> {
        StartedTimeout::now(Timeout::after(self.remaining()))
    }

    pub(super) fn remaining(&self) -> Duration {
        self.deadline.remaining().unwrap_or(Duration::MAX)
    }
}
