//! eventfd(2): wakes a blocked call without closing a descriptor.

use rustix::{event::EventfdFlags, io::Errno};
use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use super::{fd, poll};

/// A flag that can be polled: readable once [`raise`](Flag::raise) was called, permanently.
#[derive(Debug)]
pub(crate) struct Flag(OwnedFd);

impl Flag {
    pub(crate) fn new() -> io::Result<Self> {
        eventfd(0, EventfdFlags::empty()).map(Self)
    }

    pub(crate) fn raise(&self) {
        add_one(&self.0);
    }

    pub(crate) fn is_raised(&self) -> io::Result<bool> {
        poll::is_readable(self.0.as_fd())
    }
}

impl AsFd for Flag {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Wakes an event loop from any thread: readable from [`wake`](Waker::wake) until [`reset`](Waker::reset).
#[derive(Debug)]
pub(crate) struct Waker(OwnedFd);

impl Waker {
    pub(crate) fn new() -> io::Result<Self> {
        fd::dup_above(eventfd(0, EventfdFlags::empty())?, fd::MIN_FD).map(Self)
    }

    pub(crate) fn wake(&self) {
        add_one(&self.0);
    }

    /// Clears all calls of [`wake`](Self::wake) so far.
    pub(crate) fn reset(&self) {
        // Fails only if `wake` was not called.
        drop(take(&self.0));
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A counting semaphore that can be polled: readable while its value is positive.
#[derive(Debug)]
pub(crate) struct Semaphore(OwnedFd);

impl Semaphore {
    pub(crate) fn new(free: u32) -> io::Result<Self> {
        eventfd(free, EventfdFlags::SEMAPHORE).map(Self)
    }

    /// Decrements it if it is positive. Never blocks.
    pub(crate) fn take(&self) -> io::Result<bool> {
        match take(&self.0) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Increments it.
    pub(crate) fn free(&self) {
        add_one(&self.0);
    }
}

impl AsFd for Semaphore {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn eventfd(start: u32, flags: EventfdFlags) -> io::Result<OwnedFd> {
    let eventfd = rustix::event::eventfd(start, flags | EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    // In a host that has closed 0, 1 or 2, the eventfd would get that number, and a child would inherit it.
    fd::dup_above(eventfd, 3)
}

fn add_one(eventfd: &OwnedFd) {
    // A lost wake-up would block the waiter forever. Any other error means that the counter is full, and so readable.
    while rustix::io::write(eventfd, &1_u64.to_ne_bytes()) == Err(Errno::INTR) {}
}

/// Takes one from a semaphore, or the whole value of a plain counter.
fn take(eventfd: &OwnedFd) -> io::Result<()> {
    let mut count = [0; size_of::<u64>()];
    rustix::io::read(eventfd, &mut count)?;
    Ok(())
}
