//! Waiting until the peer has read everything.
#![expect(single_use_lifetimes, reason = "`impl Into<Timeout<'_>>` is not stable Rust yet")]

use std::{io, sync::atomic::Ordering, time::Duration};

use super::stream::Stream;
use crate::pipe::{
    mode::Direction,
    timeout::{StartedTimeout, Timeout},
};
use crate::sys::{fifo, socket};

/// First and longest pause between two checks of [`Stream::wait_drained`]: the kernel sends no notification when the peer has
/// read everything.
const DRAIN_PAUSE_MIN: Duration = Duration::from_millis(1);
const DRAIN_PAUSE_MAX: Duration = Duration::from_millis(20);

impl Stream {
    /// Waits until the peer has read everything that was written. It may not have processed it yet; only a reply can tell
    /// that. Through a tunnel, the peer is the local end of the tunnel.
    ///
    /// # Errors
    ///
    /// [`DrainError`]. Returned at once if the peer closes the stream and leaves data unread.
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
            // Must come before the check for an error: a closing peer sets the error before it discards unread data.
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

    /// Disconnects once the peer has read everything. If the timeout expires first, the stream stays connected.
    ///
    /// # Errors
    ///
    /// Same as [`wait_drained`](Self::wait_drained).
    pub fn disconnect_drained<'a>(&self, timeout: impl Into<Timeout<'a>>) -> Result<(), DrainError> {
        self.drain(&StartedTimeout::now(timeout.into()))?;
        self.disconnect().map_err(DrainError::Os)
    }
}

/// Error of [`Stream::wait_drained`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DrainError {
    /// The peer closed the stream and left data unread.
    #[error("peer closed the connection with unread data")]
    PeerGone,
    /// The peer had not read everything when the timeout expired.
    #[error("timed out: peer has not read all data")]
    TimedOut,
    /// The call was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// The stream is read-only or was disconnected on this side, or a system call failed.
    #[error("cannot determine whether peer has read all data: {0}")]
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
