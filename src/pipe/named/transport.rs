//! Tells the end of the peer from a failure of the transport between the two ends, such as a tunnel.

use std::{
    fmt, io,
    os::fd::BorrowedFd,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::pipe::timeout::{StartedTimeout, WakeReason};
use crate::sys::poll::Interest;

/// What forwards the bytes of one stream and can fail independently of the peer, such as a tunnel.
pub(crate) trait Transport: fmt::Debug + Send + Sync {
    /// Returns why the transport failed, or `None` while it works. Called only after a stream has ended. May block until
    /// `timeout` expires; a result that arrives later is kept for the next call.
    fn ended(&self, timeout: &StartedTimeout<'_>) -> io::Result<Option<io::Error>>;
}

/// What a stream knows about its transport.
#[derive(Debug, Default)]
pub(super) struct TransportState {
    transport: OnceLock<Arc<dyn Transport>>,
    /// A read reached the end of the stream.
    is_at_end: AtomicBool,
    /// The transport still worked after that, so the peer ended the stream.
    is_peer_end: AtomicBool,
}

impl TransportState {
    /// A second call has no effect.
    pub(super) fn set(&self, transport: Arc<dyn Transport>) {
        drop(self.transport.set(transport));
    }

    /// Called when a read reached the end. Returns `WouldBlock` until [`await_input`](Self::await_input) has determined
    /// whether the peer or the transport ended.
    pub(super) fn check_end(&self) -> io::Result<()> {
        if self.transport.get().is_none() || self.is_peer_end.load(Ordering::Acquire) {
            return Ok(());
        }
        self.is_at_end.store(true, Ordering::Release);
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Waits for input; at the end of the stream, for the state of the transport.
    pub(super) fn await_input(&self, socket: BorrowedFd<'_>, timeout: &StartedTimeout<'_>) -> io::Result<()> {
        let Some(transport) = self.transport.get().filter(|_| self.is_at_end.load(Ordering::Acquire)) else {
            return timeout.wait(&[(socket, Interest::Readable)]).and_then(WakeReason::into_io).map(drop);
        };
        if let Some(reason) = transport.ended(timeout)? {
            return Err(reason);
        }
        self.is_peer_end.store(true, Ordering::Release);
        Ok(())
    }

    /// Replaces a write error by the failure of the transport, if there is one and it is known in time.
    pub(super) fn with_reason(&self, error: io::Error, timeout: &StartedTimeout<'_>) -> io::Error {
        let transport = self.transport.get().filter(|_| error.kind() == io::ErrorKind::BrokenPipe);
        transport.and_then(|transport| transport.ended(timeout).ok().flatten()).unwrap_or(error)
    }
}
