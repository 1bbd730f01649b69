//! epoll(7), level-triggered.

use super::{fd, poll::whole_milliseconds};
use rustix::{
    buffer::spare_capacity,
    event::epoll::{CreateFlags, Event, EventData, EventFlags},
    io::Errno,
};
use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

/// An epoll instance.
#[derive(Debug)]
pub(crate) struct Poller(OwnedFd);

/// Which events of a descriptor are reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Interests {
    pub(crate) reads: bool,
    pub(crate) writes: bool,
}

impl Interests {
    /// The interests that [`Poller::add`] registers.
    pub(crate) const READS: Self = Self { reads: true, writes: false };
}

/// A buffer for the events of one wait.
pub(crate) struct EpollEvents(Vec<Event>);

impl EpollEvents {
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self(Vec::with_capacity(capacity))
    }

    /// The tokens of the ready descriptors. Hangup and error count as ready.
    pub(crate) fn tokens(&self) -> impl Iterator<Item = u64> {
        self.0.iter().map(|event| event.data.u64())
    }
}

impl Poller {
    pub(crate) fn new() -> io::Result<Self> {
        fd::dup_above(rustix::event::epoll::create(CreateFlags::CLOEXEC)?, fd::MIN_FD).map(Self)
    }

    /// Registers `descriptor` for reading under `token`.
    pub(crate) fn add(&self, descriptor: &impl AsFd, token: u64) -> io::Result<()> {
        Ok(rustix::event::epoll::add(&self.0, descriptor, EventData::new_u64(token), EventFlags::IN)?)
    }

    /// Registers `descriptor` for writing under `token`.
    pub(crate) fn add_for_writes(&self, descriptor: &impl AsFd, token: u64) -> io::Result<()> {
        Ok(rustix::event::epoll::add(&self.0, descriptor, EventData::new_u64(token), EventFlags::OUT)?)
    }

    /// Changes the interests of a registered descriptor. Hangups are reported in any case.
    pub(crate) fn watch(&self, descriptor: &impl AsFd, token: u64, interests: Interests) -> io::Result<()> {
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, interests.reads);
        flags.set(EventFlags::OUT, interests.writes);
        Ok(rustix::event::epoll::modify(&self.0, descriptor, EventData::new_u64(token), flags)?)
    }

    /// Deregisters a descriptor. Empty interests would not suffice: the kernel always reports a hangup, and a paused pipe whose writer
    /// has ended would make the loop spin.
    pub(crate) fn remove(&self, descriptor: &impl AsFd) -> io::Result<()> {
        Ok(rustix::event::epoll::delete(&self.0, descriptor)?)
    }

    /// Waits for events up to `timeout`, without limit if there is none. A signal ends the wait early, as does SIGCONT after a stop:
    /// the caller computes the time that is left.
    pub(crate) fn wait(&self, reports: &mut EpollEvents, timeout: Option<Duration>) -> io::Result<()> {
        // In whole milliseconds that fit into 31 bits: for other timeouts rustix uses epoll_pwait2(2), which needs Linux 5.11.
        let timeout = timeout.map(whole_milliseconds);
        reports.0.clear();
        match rustix::event::epoll::wait(&self.0, spare_capacity(&mut reports.0), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Readable while one of its descriptors is ready.
impl AsFd for Poller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
