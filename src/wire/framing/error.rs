//! Bytes that are no frame, as a value.

use crate::text::printable;
use std::fmt;

/// Damage in a message stream, reported at the moment at which it is known. The stream goes on after it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FrameError {
    /// What is wrong.
    pub kind: FrameErrorKind,
    /// Where the damage begins, in bytes from the beginning of the stream: at the first byte of the frame, its header included.
    pub offset: u64,
    /// How many damaged bytes were seen, without the header of a frame that is [`Truncated`](FrameErrorKind::Truncated) or
    /// [`Torn`](FrameErrorKind::Torn) in its value. For [`TooLong`](FrameErrorKind::TooLong) with a framing that announces sizes: the
    /// announced size.
    pub length: u64,
    /// The first of these bytes that had arrived, 256 at most.
    pub excerpt: Box<[u8]>,
}

/// What is wrong with the bytes of a [`FrameError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FrameErrorKind {
    /// The stream ended in the middle of a frame: the worker was killed while it wrote, or never flushed.
    Truncated,
    /// The frame is longer than the limit. Reported as soon as that is known: at the header where the framing announces the
    /// size, at the first byte too many otherwise. Its bytes are skipped.
    TooLong {
        /// The longest frame allowed, in bytes.
        limit: usize,
    },
    /// The frame is not UTF-8.
    NotUtf8 {
        /// Where in the frame, in bytes.
        offset: usize,
    },
    /// The frame is not JSON.
    NotJson {
        /// Where in the frame, in bytes.
        offset: usize,
    },
    /// The bytes between two frames are no header. Reading goes on at the next one.
    InvalidHeader,
    /// Another header stands inside the frame: its announced size is wrong, or its writer did not finish it. Reading goes on at
    /// that header.
    Torn {
        /// The announced size, in bytes.
        size: u64,
    },
    /// A line on the control connection is not JSON-RPC 2.0, or answers no open request.
    NotRpc,
}

/// The most bytes a [`FrameError`] shows.
pub(super) const EXCERPT_BYTES_MAX: usize = 256;

impl FrameError {
    /// A fault at this place, of so many bytes, which begin so.
    pub(crate) fn new(kind: FrameErrorKind, offset: u64, length: u64, begin: &[u8]) -> Self {
        let excerpt = begin.get(..EXCERPT_BYTES_MAX).unwrap_or(begin);
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
            FrameErrorKind::InvalidHeader => write!(f, "{length} bytes that are no header where one should stand")?,
            FrameErrorKind::Torn { size } => {
                write!(f, "a message of {size} bytes as announced, with another header after {length}")?;
            }
        }
        write!(f, ", at offset {}", self.offset)?;
        if self.excerpt.is_empty() {
            return Ok(());
        }
        write!(f, ": `{}`", printable(&self.excerpt))
    }
}
