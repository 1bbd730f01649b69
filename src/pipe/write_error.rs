//! Writes that need several system calls, and their error.

use std::io;

use super::timeout;

/// Error of a `write_all_timeout` of a [`PipeWriter`](super::anonymous::PipeWriter) or a named pipe's
/// [`Stream`](super::named::Stream): the cause, and how many bytes were written.
#[derive(Debug, thiserror::Error)]
#[error("{written} of {total} bytes were written: {source}")]
pub struct WriteError {
    written: usize,
    total: usize,
    source: io::Error,
}

impl WriteError {
    pub(super) fn new(written: usize, total: usize, source: io::Error) -> Self {
        Self { written, total, source }
    }

    /// Number of bytes written. Resume after them: they are in the pipe or were read already.
    pub fn written(&self) -> usize {
        self.written
    }

    /// Kind of the cause: [`TimedOut`](io::ErrorKind::TimedOut), [`BrokenPipe`](io::ErrorKind::BrokenPipe), `Other` for a cancelled
    /// call, and so on.
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }

    /// Returns true if a [`CancelToken`](super::CancelToken) ended the call.
    pub fn is_cancelled(&self) -> bool {
        timeout::is_cancelled(&self.source)
    }
}

impl From<WriteError> for io::Error {
    /// Keeps the kind; the `WriteError` becomes the inner error.
    fn from(error: WriteError) -> Self {
        Self::new(error.kind(), error)
    }
}

/// Calls `write` until `buf` is written.
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
