//! How far a write of several pieces came.

use std::io;

use super::timeout;

/// Why `write_all_timeout` of a [`PipeWriter`](super::anonymous::PipeWriter) or of a named pipe's [`Stream`](super::named::Stream) could not write all, and
/// how far it came.
#[derive(Debug, thiserror::Error)]
#[error("{written} of {asked} bytes were written: {source}")]
pub struct WriteError {
    written: usize,
    asked: usize,
    source: io::Error,
}

impl WriteError {
    pub(super) fn new(written: usize, asked: usize, source: io::Error) -> Self {
        Self { written, asked, source }
    }

    /// How many bytes, from the start, are in the pipe or read already. Go on after them, or the reader sees them twice.
    pub fn written(&self) -> usize {
        self.written
    }

    /// [`TimedOut`](io::ErrorKind::TimedOut), [`BrokenPipe`](io::ErrorKind::BrokenPipe), `Other` for a cancelled call, ...
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }

    /// Whether a [`CancelToken`](super::CancelToken) ended the call.
    pub fn is_cancelled(&self) -> bool {
        timeout::is_cancelled(&self.source)
    }
}

impl From<WriteError> for io::Error {
    /// Keeps the kind; the `WriteError` is the error inside.
    fn from(error: WriteError) -> Self {
        Self::new(error.kind(), error)
    }
}

/// Calls `write` until all is written. The error says how far it came.
pub(super) fn write_all(buf: &[u8], mut write: impl FnMut(&[u8]) -> io::Result<usize>) -> Result<(), WriteError> {
    let mut written = 0;
    while let Some(rest) = buf.get(written..).filter(|rest| !rest.is_empty()) {
        let source = match write(rest) {
            Ok(0) => io::ErrorKind::WriteZero.into(),
            Ok(count) => {
                written += count;
                continue;
            }
            Err(source) => source,
        };
        return Err(WriteError::new(written, buf.len(), source));
    }
    Ok(())
}
