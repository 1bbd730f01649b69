//! What a stream asks when it ends: whether the other side has ended, or only what carries the stream.

use std::{fmt, io, sync::Arc};

use super::stream::Stream;

/// Something between the two ends that can fail on its own, as a tunnel does.
pub(crate) trait Carrier: fmt::Debug + Send + Sync {
    /// Why it has ended; `None` while it works. Asked only when a stream has ended, so it may take a moment.
    fn ended(&self) -> Option<io::Error>;
}

impl Stream {
    /// From now on this stream ends with its carrier's reason if that is what has ended. The first carrier stays.
    pub(crate) fn set_carrier(&self, carrier: Arc<dyn Carrier>) {
        drop(self.inner.carrier.set(carrier));
    }

    /// At the end of what can be read: whether that is the other side's end.
    pub(super) fn check_carrier(&self) -> io::Result<()> {
        self.inner.carrier.get().and_then(|carrier| carrier.ended()).map_or(Ok(()), Err)
    }

    /// A failure to write, with the carrier's reason where it has one.
    pub(super) fn with_reason(&self, error: io::Error) -> io::Error {
        match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => self.check_carrier().err().unwrap_or(error),
            _ => error,
        }
    }
}
