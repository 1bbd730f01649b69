//! How long a call may block, and who may end it sooner.

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

/// Ends blocked calls of any thread: those that wait now, and those that are timeout later.
///
/// Clones are the same switch. It stays on for good; calls that shall not be bothered any more get a new one. One descriptor.
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

shown_as!(CancelToken, |cancel| { is_cancelled: cancel.0.is_raised().unwrap_or(false) });

impl CancelToken {
    /// A switch that is off.
    ///
    /// # Errors
    ///
    /// When the process is out of descriptors.
    pub fn new() -> io::Result<Self> {
        Flag::new().map(|flag| Self(Arc::new(flag)))
    }

    /// Turns it on: every call that was given it ends with an error of its kind that says so.
    pub fn cancel(&self) {
        self.0.raise();
    }

    /// Waits until it is on, and gives false when `timeout` ends first by its time.
    pub(crate) fn wait(&self, timeout: &StartedTimeout<'_>) -> io::Result<bool> {
        match timeout.wait(&[(self.0.as_fd(), Interest::Readable)])? {
            WakeReason::Ready(_) => Ok(true),
            WakeReason::TimedOut => Ok(false),
            WakeReason::Cancelled => Err(Cancelled.into()),
        }
    }

    /// Whether it is on.
    ///
    /// # Errors
    ///
    /// When the kernel is out of memory.
    pub fn is_cancelled(&self) -> io::Result<bool> {
        self.0.is_raised()
    }
}

/// What ends a blocking call if nothing else does: a time, a [`CancelToken`], both or neither.
///
/// Calls take `impl Into<Timeout>`, so that a [`Duration`] or a `&CancelToken` will do.
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
    /// As long as it takes.
    pub const fn never() -> Self {
        Self::after(Duration::MAX)
    }

    /// Counted from the start of the call. Zero looks once and does not wait.
    pub const fn after(timeout: Duration) -> Self {
        Self { timeout, cancel: None }
    }

    pub(crate) fn is_never(&self) -> bool {
        self.timeout == Duration::MAX && self.cancel.is_none()
    }

    /// Also until the switch is turned on.
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

/// The error inside an [`io::Error`] of the kind [`Other`](io::ErrorKind::Other) from a read or write that a [`CancelToken`] ended.
///
/// Not of the kind `Interrupted`: `read_exact` and its like would begin anew.
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

/// Why a wait has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WakeReason {
    /// The descriptor at this place of the list is ready.
    Ready(usize),
    TimedOut,
    Cancelled,
}

impl WakeReason {
    /// For the calls that end with an [`io::Error`].
    pub(super) fn into_io(self) -> io::Result<usize> {
        match self {
            Self::Ready(at) => Ok(at),
            Self::TimedOut => Err(io::ErrorKind::TimedOut.into()),
            Self::Cancelled => Err(Cancelled.into()),
        }
    }
}

/// A [`Timeout`] that has timeout.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StartedTimeout<'a> {
    deadline: Deadline,
    cancel: Option<&'a CancelToken>,
}

impl<'a> StartedTimeout<'a> {
    pub(crate) fn now(wait: Timeout<'a>) -> Self {
        Self { deadline: Deadline::after_now(wait.timeout), cancel: wait.cancel }
    }

    /// What is left of its time.
    pub(crate) fn remaining(&self) -> Duration {
        self.deadline.remaining().unwrap_or(Duration::MAX)
    }

    /// The same, and no longer than until then.
    pub(crate) fn no_later_than(self, deadline: Deadline) -> Self {
        Self { deadline: self.deadline.or(deadline), ..self }
    }

    /// What is left of it, for another call.
    pub(crate) fn rest(&self) -> Timeout<'a> {
        Timeout { timeout: self.remaining(), cancel: self.cancel }
    }

    /// Already cancelled? Asked before anything is done, so that a cancelled call does nothing.
    pub(super) fn is_cancelled(&self) -> io::Result<bool> {
        self.cancel.map_or(Ok(false), CancelToken::is_cancelled)
    }

    pub(super) fn has_passed(&self) -> bool {
        self.deadline.has_passed()
    }

    /// Waits for one descriptor. A single poll(2) without an allocation where nothing can cancel.
    pub(super) fn wait_for(&self, fd: BorrowedFd<'_>, interest: Interest) -> io::Result<WakeReason> {
        if self.cancel.is_some() {
            return self.wait(&[(fd, interest)]);
        }
        Ok(match poll::wait(fd, interest, self.deadline)? {
            PollOutcome::Ready => WakeReason::Ready(0),
            PollOutcome::TimedOut => WakeReason::TimedOut,
        })
    }

    /// Waits for the first of the descriptors.
    pub(super) fn wait(&self, watched: &[(BorrowedFd<'_>, Interest)]) -> io::Result<WakeReason> {
        self.wait_until(watched, self.deadline)
    }

    /// As [`wait`](Self::wait), and no longer than `pause`; whether it was the pause that ended, only
    /// [`has_passed`](Self::has_passed) tells.
    pub(super) fn wait_at_most(
        &self,
        watched: &[(BorrowedFd<'_>, Interest)],
        pause: Duration,
    ) -> io::Result<WakeReason> {
        self.wait_until(watched, self.deadline.or(Deadline::after_now(pause)))
    }

    pub(super) fn wait_until(&self, watched: &[(BorrowedFd<'_>, Interest)], until: Deadline) -> io::Result<WakeReason> {
        // The switch stands first, so that it wins over a descriptor that is always ready.
        let switch = self.cancel.map(|cancel| (cancel.0.as_fd(), Interest::Readable));
        let all: Vec<_> = switch.into_iter().chain(watched.iter().copied()).collect();
        let before = usize::from(switch.is_some());
        Ok(match poll::wait_any(&all, self.deadline.or(until))? {
            None => WakeReason::TimedOut,
            Some(at) if at < before => WakeReason::Cancelled,
            Some(at) => WakeReason::Ready(at - before),
        })
    }
}
