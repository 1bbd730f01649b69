//! The jobs that wait for tokens of a jobserver.

use crate::{ids::WorkerId, jobserver::client::JobserverClient};
use std::{
    collections::VecDeque,
    os::fd::{AsFd, BorrowedFd},
};

/// The jobs that have a slot and wait for a token, in the order of their slots.
#[derive(Debug, Default)]
pub(crate) struct TokenWaits {
    pub(super) jobs: VecDeque<WorkerId>,
    /// The jobserver, while its descriptor is registered.
    pub(super) watched: Option<JobserverClient>,
}

impl TokenWaits {
    /// The descriptor to register: readable while a token may be there.
    pub(crate) fn watched_fd(&self) -> Option<BorrowedFd<'_>> {
        self.watched.as_ref().map(AsFd::as_fd)
    }
}
