//! What a stream asks when it ends: whether the other side has ended, or only what carries the stream.

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

/// Something between the two ends that can fail on its own, as a tunnel does. One for each stream.
pub(crate) trait Transport: fmt::Debug + Send + Sync {
    /// Why it has ended; `None` while it works. Asked only when a stream has ended. It may take a moment, and no longer than
    /// the call: an answer that is late is there for the next call.
    fn ended(&self, timeout: &StartedTimeout<'_>) -> io::Result<Option<io::Error>>;
}

/// What a stream knows of its transport.
#[derive(Debug, Default)]
pub(super) struct TransportState {
    transport: OnceLock<Arc<dyn Transport>>,
    /// The end of what can be read was found.
    is_at_end: AtomicBool,
    /// The transport has outlived that: the end is the other side's.
    is_others_end: AtomicBool,
}

impl TransportState {
    /// The first transport stays.
    pub(super) fn set(&self, transport: Arc<dyn Transport>) {
        drop(self.transport.set(transport));
    }

    /// At the end of what can be read. `WouldBlock` until it is known whose end that is, which
    /// [`await_input`](Self::await_input) finds out.
    pub(super) fn check_end(&self) -> io::Result<()> {
        if self.transport.get().is_none() || self.is_others_end.load(Ordering::Acquire) {
            return Ok(());
        }
        self.is_at_end.store(true, Ordering::Release);
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Waits for something to read; at the end, for the transport's word.
    pub(super) fn await_input(&self, socket: BorrowedFd<'_>, timeout: &StartedTimeout<'_>) -> io::Result<()> {
        let Some(transport) = self.transport.get().filter(|_| self.is_at_end.load(Ordering::Acquire)) else {
            return timeout.wait(&[(socket, Interest::Readable)]).and_then(WakeReason::into_io).map(drop);
        };
        if let Some(reason) = transport.ended(timeout)? {
            return Err(reason);
        }
        self.is_others_end.store(true, Ordering::Release);
        Ok(())
    }

    /// A failure to write, with the transport's reason where it has one and tells it in time.
    pub(super) fn with_reason(&self, error: io::Error, timeout: &StartedTimeout<'_>) -> io::Error {
        let transport = self.transport.get().filter(|_| error.kind() == io::ErrorKind::BrokenPipe);
        transport.and_then(|transport| transport.ended(timeout).ok().flatten()).unwrap_or(error)
    }
}
