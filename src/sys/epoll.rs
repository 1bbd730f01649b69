//! epoll(7), level-triggered.

use super::{cvt, fd};
use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
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
#[derive(Debug)]
pub(crate) struct Reports(Vec<libc::epoll_event>);

impl Reports {
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self(Vec::with_capacity(capacity))
    }

    /// The tokens of the descriptors that are readable, or whose other side is gone.
    pub(crate) fn tokens(&self) -> impl Iterator<Item = u64> {
        self.0.iter().map(|event| event.u64)
    }
}

impl Poller {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: epoll_create1(2) takes a flag.
        let descriptor = cvt(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: just opened for us.
        let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
        fd::lift(descriptor, fd::OUT_OF_THE_WAY).map(Self)
    }

    /// Reports `descriptor` under `token` for as long as it is readable.
    pub(crate) fn add(&self, descriptor: &impl AsFd, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events: libc::EPOLLIN.cast_unsigned(), u64: token };
        self.control(libc::EPOLL_CTL_ADD, descriptor.as_fd(), &mut event)
    }

    /// Reports a descriptor that was added while it is readable, while it is writable, both or neither. The hang-up of the
    /// other side is reported all the same.
    pub(crate) fn watch(&self, descriptor: &impl AsFd, token: u64, interests: Interests) -> io::Result<()> {
        let reads = if interests.reads { libc::EPOLLIN } else { 0 };
        let writes = if interests.writes { libc::EPOLLOUT } else { 0 };
        let mut event = libc::epoll_event { events: (reads | writes).cast_unsigned(), u64: token };
        self.control(libc::EPOLL_CTL_MOD, descriptor.as_fd(), &mut event)
    }

    fn control(&self, operation: i32, descriptor: BorrowedFd<'_>, event: &mut libc::epoll_event) -> io::Result<()> {
        // SAFETY: epoll_ctl(2) reads `event`; both descriptors are open.
        cvt(unsafe { libc::epoll_ctl(self.0.as_raw_fd(), operation, descriptor.as_raw_fd(), event) }).map(drop)
    }

    /// Stops reporting. Masking the interest would not do: the kernel always reports a hang-up, and a paused pipe whose
    /// writer has died would make the loop spin.
    pub(crate) fn remove(&self, descriptor: &impl AsFd) -> io::Result<()> {
        let descriptor = descriptor.as_fd().as_raw_fd();
        // SAFETY: EPOLL_CTL_DEL does not look at the event; both descriptors are open.
        cvt(unsafe { libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_DEL, descriptor, std::ptr::null_mut()) })
            .map(drop)
    }

    /// Waits until something is readable or `timeout` is over; for ever where there is none. A signal ends it too, or that the
    /// process was stopped: how much of the time is left is for the caller to say.
    pub(crate) fn wait(&self, reports: &mut Reports, timeout: Option<Duration>) -> io::Result<()> {
        // Rounded up: a timer that is due in 0.3 ms would otherwise be polled for with a timeout of 0, again and again.
        let timeout_ms = timeout.map_or(-1, |timeout| {
            let whole = timeout.as_nanos().div_ceil(1_000_000);
            libc::c_int::try_from(whole).unwrap_or(libc::c_int::MAX)
        });
        reports.0.clear();
        let room = libc::c_int::try_from(reports.0.capacity()).unwrap_or(libc::c_int::MAX);
        // SAFETY: epoll_wait(2) writes at most `room` events into memory that the vector has reserved for them.
        let waited = cvt(unsafe { libc::epoll_wait(self.0.as_raw_fd(), reports.0.as_mut_ptr(), room, timeout_ms) });
        let count = match waited {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            waited => waited?,
        };
        // SAFETY: the kernel has initialised so many.
        unsafe { reports.0.set_len(usize::try_from(count).unwrap_or(0)) };
        Ok(())
    }
}

/// Readable while something in it is.
impl AsFd for Poller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
