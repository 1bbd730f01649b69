//! Damaged bytes of a stream.

use crate::text::printable;
use std::fmt;

/// Damaged bytes in a message stream, reported as soon as the damage is detected. The stream continues after them.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FrameError {
    /// The kind of damage.
    pub kind: FrameErrorKind,
    /// The offset of the damage in the stream, in bytes: that of the first byte of the frame or of its header.
    pub offset: u64,
    /// The number of damaged bytes seen, without the header of a frame that is [`Truncated`](FrameErrorKind::Truncated) or
    /// [`Torn`](FrameErrorKind::Torn) in its value. For [`TooLong`](FrameErrorKind::TooLong) with a framing that announces sizes,
    /// the announced size.
    pub length: u64,
    /// The first of these bytes that had arrived, at most 256.
    pub excerpt: Box<[u8]>,
}

/// The kind of damage that a [`FrameError`] reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FrameErrorKind {
    /// The stream ended in the middle of a frame: the worker was killed while it wrote, or did not flush.
    Truncated,
    /// The frame is longer than the limit. Reported at the header if the framing announces the size, otherwise at the first byte
    /// beyond the limit. Its bytes are skipped.
    TooLong {
        /// The longest frame allowed, in bytes.
        limit: usize,
    },
    /// The frame is not UTF-8.
    NotUtf8 {
        /// The offset in the frame, in bytes.
        offset: usize,
    },
    /// The frame is not JSON.
    NotJson {
        /// The offset in the frame, in bytes.
        offset: usize,
    },
    /// The bytes between two frames are not a header. Reading resumes at the next header.
    InvalidHeader,
    /// Another header begins inside the frame: the announced size is wrong, or the writer did not finish the frame. Reading
    /// resumes at that header.
    Torn {
        /// The announced size, in bytes.
        size: u64,
    },
    /// A line of the control connection is not JSON-RPC 2.0.
    NotRpc,
    /// A line of the control connection answers no open request: a request that was answered before, or one that was never sent.
    UnexpectedAnswer,
}

/// The most bytes of [`FrameError::excerpt`].
pub(super) const EXCERPT_BYTES_MAX: usize = 256;

impl FrameError {
    pub(crate) fn new(kind: FrameErrorKind, offset: u64, length: u64, bytes: &[u8]) -> Self {
        let excerpt = bytes.get(..EXCERPT_BYTES_MAX).unwrap_or(bytes);
        Self { kind, offset, length, excerpt: excerpt.into() }
    }
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let length = self.length;
        match self.kind {
            FrameErrorKind::Truncated => write!(f, "the stream ended within a message, after {length} bytes of it")?,
            FrameErrorKind::TooLong { limit } if length > limit as u64 => {
                write!(f, "a message of at least {length} bytes, longer than the {limit} allowed")?;
            }
            FrameErrorKind::TooLong { limit } => write!(f, "a message longer than the {limit} bytes allowed")?,
            FrameErrorKind::NotUtf8 { offset } => {
                write!(f, "a message of {length} bytes that is not UTF-8 at byte {offset}")?;
            }
            FrameErrorKind::NotJson { offset } => {
                write!(f, "a message of {length} bytes that is not JSON at byte {offset}")?;
            }
            FrameErrorKind::NotRpc => write!(f, "a line of {length} bytes that is not JSON-RPC 2.0")?,
            FrameErrorKind::UnexpectedAnswer => write!(f, "an answer of {length} bytes to no open request")?,
            FrameErrorKind::InvalidHeader => write!(f, "{length} bytes in place of a header")?,
            FrameErrorKind::Torn { size } => {
                write!(f, "a message announced with {size} bytes, with another header after {length}")?;
            }
        }
        write!(f, ", at offset {}", self.offset)?;
        if self.excerpt.is_empty() {
            return Ok(());
        }
        write!(f, ": `{}`", printable(&self.excerpt))
    }
}
