//! poll(2) with deadlines, for blocking calls.

use rustix::event::{PollFd, PollFlags, Timespec};
use std::{
    io,
    os::fd::BorrowedFd,
    thread,
    time::{Duration, Instant},
};

use super::is_shortage;
use crate::deadline::Deadline;

/// Pauses between repetitions of a call that failed for lack of memory: 1 ms, then twice as long each time, 255 ms in total. For calls
/// that are not repeated later; the event loop uses timers.
#[derive(Debug, Default)]
pub(crate) struct ShortageBackoff(u32);

impl ShortageBackoff {
    const PAUSES: u32 = 8;

    /// Returns false once the total time is used up.
    #[expect(clippy::disallowed_methods, reason = "the end of a shortage is not reported by any descriptor")]
    pub(crate) fn wait(&mut self) -> bool {
        if self.0 == Self::PAUSES {
            return false;
        }
        thread::sleep(Duration::from_millis(1 << self.0));
        self.0 += 1;
        true
    }
}

/// The event to wait for. An error or a hangup always ends the wait: poll(2) reports both unconditionally.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interest {
    Readable,
    Writable,
    /// Only the hangup of the peer.
    Hangup,
}

impl Interest {
    const fn events(self) -> PollFlags {
        match self {
            Self::Readable => PollFlags::IN,
            Self::Writable => PollFlags::OUT,
            Self::Hangup => PollFlags::empty(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PollOutcome {
    /// The event occurred, or the peer is gone (`POLLHUP` on a reading end or a socket, `POLLERR` on a writing end): a read or a
    /// write does not block now.
    Ready,
    TimedOut,
}

/// The methods that read the clock.
impl Deadline {
    /// Never, where the timeout is too long for the clock.
    pub(crate) fn after_now(timeout: Duration) -> Self {
        Self::after(now(), timeout)
    }

    pub(crate) fn has_passed(self) -> bool {
        self.is_due(now())
    }

    /// The time left; `None` for a deadline that never comes.
    pub(crate) fn remaining(self) -> Option<Duration> {
        self.poll_timeout().map(|at| at.saturating_duration_since(now()))
    }
}

/// Waits until the descriptor is ready or the deadline has passed. Polls at least once, also with a deadline in the past; a lack of
/// memory can delay that.
///
/// Continues after signals, with the time that is left, and after a temporary lack of memory.
pub(crate) fn wait(fd: BorrowedFd<'_>, interest: Interest, deadline: Deadline) -> io::Result<PollOutcome> {
    let mut asked = [PollFd::from_borrowed_fd(fd, interest.events())];
    Ok(if poll(&mut asked, deadline)?.is_some() { PollOutcome::Ready } else { PollOutcome::TimedOut })
}

/// Waits until one of the descriptors is ready and returns the index of the first ready one, or `None` when the deadline has passed.
/// Polls at least once. As with [`wait`], a hangup counts as ready.
pub(crate) fn wait_any(watched: &[(BorrowedFd<'_>, Interest)], deadline: Deadline) -> io::Result<Option<usize>> {
    let asked = watched.iter().map(|(fd, interest)| PollFd::from_borrowed_fd(*fd, interest.events()));
    poll(&mut asked.collect::<Vec<_>>(), deadline)
}

fn poll(asked: &mut [PollFd<'_>], deadline: Deadline) -> io::Result<Option<usize>> {
    let mut backoff = ShortageBackoff::default();
    loop {
        let timeout = deadline.remaining().map(whole_milliseconds);
        match rustix::event::poll(asked, timeout.as_ref()).map_err(io::Error::from) {
            Ok(0) if deadline.has_passed() => return Ok(None),
            // 0 before the deadline: `whole_milliseconds` has shortened the timeout.
            Ok(0) => {}
            Ok(_) if asked.iter().any(|one| one.revents().contains(PollFlags::NVAL)) => {
                return Err(io::Error::from_raw_os_error(libc::EBADF));
            }
            Ok(_) => return Ok(asked.iter().position(|one| !one.revents().is_empty())),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if is_shortage(&error) && backoff.wait() => {}
            Err(error) => return Err(error),
        }
    }
}

/// Whether a read returns without blocking, at the end of the file too. Never blocks.
pub(crate) fn is_readable(fd: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(wait(fd, Interest::Readable, Deadline::after_now(Duration::ZERO))? == PollOutcome::Ready)
}

/// Rounded up: rounded down, the last fraction of a millisecond would be spent in calls with a timeout of 0. At most `i32::MAX`
/// milliseconds (24 days), the limit of `epoll_pwait`.
pub(super) fn whole_milliseconds(left: Duration) -> Timespec {
    let whole = i32::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX);
    Timespec { tv_sec: i64::from(whole / 1000), tv_nsec: (whole % 1000 * 1_000_000).into() }
}

#[expect(clippy::disallowed_methods, reason = "blocking faces measure real time; this is the one place they ask")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_round_up_and_never_overflow() {
        let milliseconds = |left| {
            let timeout = whole_milliseconds(left);
            timeout.tv_sec * 1000 + timeout.tv_nsec / 1_000_000
        };
        assert_eq!(milliseconds(Duration::ZERO), 0);
        assert_eq!(milliseconds(Duration::from_nanos(1)), 1);
        assert_eq!(milliseconds(Duration::from_millis(7)), 7);
        assert_eq!(milliseconds(Duration::from_micros(7_001)), 8);
        assert_eq!(milliseconds(Duration::MAX), i64::from(i32::MAX));
    }

    #[test]
    fn timeout_beyond_the_clock_is_infinite() {
        assert!(Deadline::after_now(Duration::MAX).remaining().is_none());
        let soon = Deadline::after_now(Duration::from_secs(1));
        assert!(soon.or(Deadline::NEVER).remaining().is_some());
        assert!(Deadline::NEVER.or(soon).remaining().is_some());
    }
}
