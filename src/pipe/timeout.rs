//! Timeouts and cancellation of blocking calls.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    time::Duration,
};

use crate::deadline::Deadline;
use crate::sys::{
    eventfd::Flag,
    poll::{self, Interest, PollOutcome},
};

/// Cancels blocking calls from another thread: those in progress, and every later call that is given the token.
///
/// Clones share one state. A cancelled token stays cancelled; create a new one for calls that should run again. Each token
/// uses one file descriptor.
///
/// ```
/// use pipewright::pipe::{CancelToken, named::{AcceptError, Listener, PipeName}};
///
/// # let directory = std::env::temp_dir().join(format!("pipewright-doc-cancel-{}", std::process::id()));
/// # std::fs::create_dir(&directory)?;
/// let listener = Listener::bind(&PipeName::new(directory.join("build"))?)?;
/// let cancel = CancelToken::new()?;
/// cancel.cancel();
/// assert!(matches!(listener.accept_timeout(&cancel), Err(AcceptError::Cancelled)));
/// # drop(listener);
/// # std::fs::remove_dir(&directory)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "CancellationToken")]
#[derive(Clone)]
pub struct CancelToken(Arc<Flag>);

impl_debug!(CancelToken, |cancel| { is_cancelled: cancel.0.is_raised().unwrap_or(false) });

impl CancelToken {
    /// Creates a token that is not cancelled.
    ///
    /// # Errors
    ///
    /// If the process is out of file descriptors.
    pub fn new() -> io::Result<Self> {
        Flag::new().map(|flag| Self(Arc::new(flag)))
    }

    /// Cancels the token: every call that was given it returns its error for a cancelled call.
    pub fn cancel(&self) {
        self.0.raise();
    }

    /// Waits until the token is cancelled. Returns false if `timeout` expires first.
    pub(crate) fn wait(&self, timeout: &StartedTimeout<'_>) -> io::Result<bool> {
        match timeout.wait(&[(self.0.as_fd(), Interest::Readable)])? {
            WakeReason::Ready(_) => Ok(true),
            WakeReason::TimedOut => Ok(false),
            WakeReason::Cancelled => Err(Cancelled.into()),
        }
    }

    /// Returns whether the token is cancelled.
    ///
    /// # Errors
    ///
    /// If the kernel is out of memory.
    pub fn is_cancelled(&self) -> io::Result<bool> {
        self.0.is_raised()
    }
}

/// Bounds a blocking call: by a duration, a [`CancelToken`], both or neither.
///
/// Calls take `impl Into<Timeout>`, so a [`Duration`] or a `&CancelToken` can be passed directly.
///
/// ```
/// use pipewright::pipe::{CancelToken, Timeout};
/// use std::time::Duration;
///
/// let cancel = CancelToken::new()?;
/// let either = Timeout::after(Duration::from_secs(5)).or_cancelled(&cancel);
/// # let _ = (either, Timeout::never());
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Timeout<'a> {
    timeout: Duration,
    cancel: Option<&'a CancelToken>,
}

impl<'a> Timeout<'a> {
    /// Waits without limit.
    pub const fn never() -> Self {
        Self::after(Duration::MAX)
    }

    /// Expires `timeout` after the start of the call. Zero checks once without blocking.
    pub const fn after(timeout: Duration) -> Self {
        Self { timeout, cancel: None }
    }

    pub(crate) fn is_never(&self) -> bool {
        self.timeout == Duration::MAX && self.cancel.is_none()
    }

    /// Also ends the call when `cancel` is cancelled.
    #[must_use]
    pub const fn or_cancelled(self, cancel: &'a CancelToken) -> Self {
        Self { cancel: Some(cancel), ..self }
    }
}

impl From<Duration> for Timeout<'_> {
    fn from(timeout: Duration) -> Self {
        Self::after(timeout)
    }
}

impl<'a> From<&'a CancelToken> for Timeout<'a> {
    fn from(cancel: &'a CancelToken) -> Self {
        Self::never().or_cancelled(cancel)
    }
}

/// The inner error of an [`io::Error`] returned by a read or write that a [`CancelToken`] ended.
///
/// The kind is [`Other`](io::ErrorKind::Other), not `Interrupted`: `read_exact` and similar calls retry on the latter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cancelled")]
#[non_exhaustive]
pub struct Cancelled;

impl From<Cancelled> for io::Error {
    fn from(cancelled: Cancelled) -> Self {
        Self::other(cancelled)
    }
}

pub(super) fn is_cancelled(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.downcast_ref::<Cancelled>().is_some())
}

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WakeReason {
    /// The descriptor at this index is ready.
    Ready(usize),
    TimedOut,
    Cancelled,
}

impl WakeReason {
    /// Converts the other two reasons into an [`io::Error`].
    pub(super) fn into_io(self) -> io::Result<usize> {
        match self {
            Self::Ready(at) => Ok(at),
            Self::TimedOut => Err(io::ErrorKind::TimedOut.into()),
            Self::Cancelled => Err(Cancelled.into()),
        }
    }
}

/// A [`Timeout`] whose clock runs: the deadline of one call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StartedTimeout<'a> {
    deadline: Deadline,
    cancel: Option<&'a CancelToken>,
}

impl<'a> StartedTimeout<'a> {
    pub(crate) fn now(wait: Timeout<'a>) -> Self {
        // Without reading the clock if there is no deadline.
        let deadline = if wait.timeout == Duration::MAX { Deadline::NEVER } else { Deadline::after_now(wait.timeout) };
        Self { deadline, cancel: wait.cancel }
    }

    /// Time left until the deadline; `Duration::MAX` without one.
    pub(crate) fn remaining(&self) -> Duration {
        self.deadline.remaining().unwrap_or(Duration::MAX)
    }

    /// Moves the deadline forward to `deadline` if that is earlier.
    pub(crate) fn no_later_than(self, deadline: Deadline) -> Self {
        Self { deadline: self.deadline.or(deadline), ..self }
    }

    /// The remaining time and the token, for another call.
    pub(crate) fn rest(&self) -> Timeout<'a> {
        Timeout { timeout: self.remaining(), cancel: self.cancel }
    }

    /// Checked before the first effect of a call, so that a cancelled call does nothing.
    pub(super) fn is_cancelled(&self) -> io::Result<bool> {
        self.cancel.map_or(Ok(false), CancelToken::is_cancelled)
    }

    pub(super) fn has_passed(&self) -> bool {
        self.deadline.has_passed()
    }

    /// Waits for one descriptor. Without a token it is a single poll(2) without allocation.
    pub(super) fn wait_for(&self, fd: BorrowedFd<'_>, interest: Interest) -> io::Result<WakeReason> {
        if self.cancel.is_some() {
            return self.wait(&[(fd, interest)]);
        }
        Ok(match poll::wait(fd, interest, self.deadline)? {
            PollOutcome::Ready => WakeReason::Ready(0),
            PollOutcome::TimedOut => WakeReason::TimedOut,
        })
    }

    /// Waits until a read would not block.
    pub(crate) fn wait_readable(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.wait_for(fd, Interest::Readable)?.into_io().map(drop)
    }

    /// Waits until the other side has closed. Returns false if the timeout expires first.
    pub(crate) fn wait_hangup(&self, fd: BorrowedFd<'_>) -> io::Result<bool> {
        match self.wait_for(fd, Interest::Hangup)? {
            WakeReason::Ready(_) => Ok(true),
            WakeReason::TimedOut => Ok(false),
            WakeReason::Cancelled => Err(Cancelled.into()),
        }
    }

    /// Waits for the first of the descriptors.
    pub(super) fn wait(&self, watched: &[(BorrowedFd<'_>, Interest)]) -> io::Result<WakeReason> {
        self.wait_until(watched, self.deadline)
    }

    /// Like [`wait`](Self::wait), but no longer than `pause`. Returns `TimedOut` for both; check
    /// [`has_passed`](Self::has_passed) to tell them apart.
    pub(super) fn wait_at_most(
        &self,
        watched: &[(BorrowedFd<'_>, Interest)],
        pause: Duration,
    ) -> io::Result<WakeReason> {
        self.wait_until(watched, self.deadline.or(Deadline::after_now(pause)))
    }

    pub(super) fn wait_until(&self, watched: &[(BorrowedFd<'_>, Interest)], until: Deadline) -> io::Result<WakeReason> {
        // The token comes first so that it takes precedence over a descriptor that is always ready.
        let token = self.cancel.map(|cancel| (cancel.0.as_fd(), Interest::Readable));
        let all: Vec<_> = token.into_iter().chain(watched.iter().copied()).collect();
        let before = usize::from(token.is_some());
        Ok(match poll::wait_any(&all, self.deadline.or(until))? {
            None => WakeReason::TimedOut,
            Some(at) if at < before => WakeReason::Cancelled,
            Some(at) => WakeReason::Ready(at - before),
        })
    }
}
