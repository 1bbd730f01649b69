//! eventfd(2), and waiting for several descriptors at once: what lets a blocked call be woken without closing anything.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use super::{
    cvt, fd, is_shortage,
    poll::{self, Deadline, Interest, Patience, timeout_ms},
};

/// A flag that can be polled: readable from [`raise`](Flag::raise) on, for everybody and for ever.
#[derive(Debug)]
pub(crate) struct Flag(OwnedFd);

impl Flag {
    pub(crate) fn new() -> io::Result<Self> {
        eventfd(0, 0).map(Self)
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

/// Wakes a loop from any thread: readable from [`wake`](Waker::wake) until [`reset`](Waker::reset).
#[derive(Debug)]
pub(crate) struct Waker(OwnedFd);

impl Waker {
    pub(crate) fn new() -> io::Result<Self> {
        fd::lift(eventfd(0, 0)?, fd::OUT_OF_THE_WAY).map(Self)
    }

    pub(crate) fn wake(&self) {
        add_one(&self.0);
    }

    /// Forgets all calls of [`wake`](Self::wake) so far.
    pub(crate) fn reset(&self) {
        // Fails only when nobody woke us.
        drop(take(&self.0));
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A number of places that can be polled for: readable while one is free.
#[derive(Debug)]
pub(crate) struct Places(OwnedFd);

impl Places {
    pub(crate) fn new(free: u32) -> io::Result<Self> {
        eventfd(free, libc::EFD_SEMAPHORE).map(Self)
    }

    /// Takes one if one is free; never waits.
    pub(crate) fn take(&self) -> io::Result<bool> {
        match take(&self.0) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Gives one back.
    pub(crate) fn free(&self) {
        add_one(&self.0);
    }
}

impl AsFd for Places {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn eventfd(start: u32, flags: i32) -> io::Result<OwnedFd> {
    // SAFETY: eventfd(2) takes two numbers.
    let number = cvt(unsafe { libc::eventfd(start, flags | libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
    // SAFETY: the kernel made this number a moment ago and for us alone.
    let eventfd = unsafe { OwnedFd::from_raw_fd(number) };
    // In a host that has closed them, 0, 1 and 2 are free; a child that inherits them must not find this.
    fd::lift(eventfd, 3)
}

fn add_one(eventfd: &OwnedFd) {
    let one = 1_u64;
    let add = || {
        // SAFETY: write(2) reads eight bytes of ours.
        super::cvt_size(unsafe { libc::write(eventfd.as_raw_fd(), (&raw const one).cast(), size_of::<u64>()) })
    };
    // A lost wake-up would be a wait without end. Otherwise it fails only when the counter is full: it is readable anyway then.
    while add().is_err_and(|error| error.kind() == io::ErrorKind::Interrupted) {}
}

/// Takes one from a semaphore, and all from any other.
fn take(eventfd: &OwnedFd) -> io::Result<()> {
    let mut count = 0_u64;
    // SAFETY: read(2) writes at most the eight bytes that `count` has.
    super::cvt_size(unsafe { libc::read(eventfd.as_raw_fd(), (&raw mut count).cast(), size_of::<u64>()) }).map(drop)
}

/// Waits until one of the descriptors is ready and tells the first such one's place in the list, or `None` when the deadline
/// has passed. Looks once even if it has passed already. As with [`wait`](super::poll::wait), the end of the other side
/// counts as ready.
pub(crate) fn wait_any(watched: &[(BorrowedFd<'_>, Interest)], deadline: Deadline) -> io::Result<Option<usize>> {
    let mut asked: Vec<libc::pollfd> = watched
        .iter()
        .map(|(fd, interest)| {
            let events = match interest {
                Interest::Readable => libc::POLLIN,
                Interest::Writable => libc::POLLOUT,
                Interest::Hangup => 0,
            };
            libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 }
        })
        .collect();
    let count = libc::nfds_t::try_from(asked.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let mut patience = Patience::default();
    loop {
        // SAFETY: poll(2) reads and writes `count` structures at the pointer, and the vector has as many.
        match cvt(unsafe { libc::poll(asked.as_mut_ptr(), count, timeout_ms(deadline.remaining())) }) {
            Ok(0) if deadline.has_passed() => return Ok(None),
            // 0 before the deadline: it lay further away than `poll` can count.
            Ok(0) => {}
            Ok(_) if asked.iter().any(|one| one.revents & libc::POLLNVAL != 0) => {
                return Err(io::Error::from_raw_os_error(libc::EBADF));
            }
            Ok(_) => return Ok(asked.iter().position(|one| one.revents != 0)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if is_shortage(&error) && patience.wait() => {}
            Err(error) => return Err(error),
        }
    }
}
