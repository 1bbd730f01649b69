//! Whether the other side has read everything.
#![expect(single_use_lifetimes, reason = "`impl Into<Timeout<'_>>` is not stable Rust yet")]

use std::{io, sync::atomic::Ordering, time::Duration};

use super::stream::Stream;
use crate::pipe::{
    mode::Direction,
    timeout::{StartedTimeout, Timeout},
};
use crate::sys::{fifo, socket};

/// How long [`Stream::wait_drained`] waits before it asks again, at first and at most: the kernel tells nobody when the other
/// side has read everything.
const DRAIN_PAUSE_MIN: Duration = Duration::from_millis(1);
const DRAIN_PAUSE_MAX: Duration = Duration::from_millis(20);

impl Stream {
    /// Waits until the other side has read everything; whether it has dealt with it, only an answer can tell. (At the end of a
    /// tunnel, "the other side" is the tunnel.)
    ///
    /// # Errors
    ///
    /// [`DrainError`]: at once when the other side goes and leaves something unread.
    #[doc(alias = "WaitForPipeDrain")]
    pub fn wait_drained<'a>(&self, timeout: impl Into<Timeout<'a>>) -> Result<(), DrainError> {
        self.drain(&StartedTimeout::now(timeout.into()))
    }

    fn drain(&self, timeout: &StartedTimeout<'_>) -> Result<(), DrainError> {
        self.check(Direction::writes)?;
        let mut pause = DRAIN_PAUSE_MIN;
        loop {
            if timeout.is_cancelled()? {
                return Err(DrainError::Cancelled);
            }
            let all_sent = self.flush_send_buffer();
            // Asked first: a side that leaves lets the error be known before it throws away what it has not read.
            let unread = fifo::unread_by_peer(self.socket())?;
            if socket::take_error(self.socket())?.is_some() {
                self.inner.was_reset.store(true, Ordering::Relaxed);
            }
            match all_sent {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Err(DrainError::PeerGone),
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error.into()),
                Ok(()) if unread == 0 => {
                    let reset = self.inner.was_reset.load(Ordering::Relaxed);
                    return if reset { Err(DrainError::PeerGone) } else { self.check_here().map_err(DrainError::Os) };
                }
                _ => {}
            }
            if timeout.has_passed() {
                return Err(DrainError::TimedOut);
            }
            timeout.wait_at_most(&[], pause)?;
            pause = (pause * 2).min(DRAIN_PAUSE_MAX);
        }
    }

    /// Disconnects as soon as the other side has read everything. When it has not in time, the stream stays connected.
    ///
    /// # Errors
    ///
    /// As [`wait_drained`](Self::wait_drained).
    pub fn disconnect_drained<'a>(&self, timeout: impl Into<Timeout<'a>>) -> Result<(), DrainError> {
        self.drain(&StartedTimeout::now(timeout.into()))?;
        self.disconnect().map_err(DrainError::Os)
    }
}

/// Why not everything has been read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DrainError {
    /// The other side is gone and left something unread.
    #[error("the other side went without reading everything")]
    PeerGone,
    /// It still has something to read.
    #[error("the other side has not read everything within the time")]
    TimedOut,
    /// The call was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// The stream only reads, or was disconnected on this side; or the kernel failed.
    #[error("cannot tell whether the other side has read everything: {0}")]
    Os(#[from] io::Error),
}

impl From<DrainError> for io::Error {
    fn from(error: DrainError) -> Self {
        let kind = match &error {
            DrainError::PeerGone => io::ErrorKind::BrokenPipe,
            DrainError::TimedOut => io::ErrorKind::TimedOut,
            DrainError::Cancelled => io::ErrorKind::Other,
            DrainError::Os(source) => source.kind(),
        };
        Self::new(kind, error)
    }
}
