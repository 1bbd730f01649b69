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

/// A set of descriptors to wait for.
#[derive(Debug)]
pub(crate) struct Poller(OwnedFd);

/// What of a descriptor is to be reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Interests {
    pub(crate) reads: bool,
    pub(crate) writes: bool,
}

impl Interests {
    /// What [`Poller::add`] asks for.
    pub(crate) const READS: Self = Self { reads: true, writes: false };
}

/// Room for what one wait reports.
pub(crate) struct EpollEvents(Vec<Event>);

impl EpollEvents {
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self(Vec::with_capacity(capacity))
    }

    /// The tokens of the descriptors that are readable, or whose other side is gone.
    pub(crate) fn tokens(&self) -> impl Iterator<Item = u64> {
        self.0.iter().map(|event| event.data.u64())
    }
}

impl Poller {
    pub(crate) fn new() -> io::Result<Self> {
        fd::dup_above(rustix::event::epoll::create(CreateFlags::CLOEXEC)?, fd::MIN_FD).map(Self)
    }

    /// Reports `descriptor` under `token` for as long as it is readable.
    pub(crate) fn add(&self, descriptor: &impl AsFd, token: u64) -> io::Result<()> {
        Ok(rustix::event::epoll::add(&self.0, descriptor, EventData::new_u64(token), EventFlags::IN)?)
    }

    /// Reports a descriptor that was added while it is readable, while it is writable, both or neither. The hang-up of the
    /// other side is reported all the same.
    pub(crate) fn watch(&self, descriptor: &impl AsFd, token: u64, interests: Interests) -> io::Result<()> {
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, interests.reads);
        flags.set(EventFlags::OUT, interests.writes);
        Ok(rustix::event::epoll::modify(&self.0, descriptor, EventData::new_u64(token), flags)?)
    }

    /// Stops reporting. Masking the interest would not do: the kernel always reports a hang-up, and a paused pipe whose
    /// writer has died would make the loop spin.
    pub(crate) fn remove(&self, descriptor: &impl AsFd) -> io::Result<()> {
        Ok(rustix::event::epoll::delete(&self.0, descriptor)?)
    }

    /// Waits until something is readable or `timeout` is over; for ever where there is none. A signal ends it too, or that the
    /// process was stopped: how much of the time is left is for the caller to say.
    pub(crate) fn wait(&self, reports: &mut EpollEvents, timeout: Option<Duration>) -> io::Result<()> {
        // In whole milliseconds that fit into 31 bits: for any other timeout rustix calls epoll_pwait2(2), of Linux 5.11.
        let timeout = timeout.map(whole_milliseconds);
        reports.0.clear();
        match rustix::event::epoll::wait(&self.0, spare_capacity(&mut reports.0), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Readable while something in it is.
impl AsFd for Poller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
