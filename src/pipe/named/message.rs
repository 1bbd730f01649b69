//! One message of a named pipe, and why one was not sent or received.

use std::{io, os::fd::OwnedFd};

use crate::pipe::timeout::{Cancelled, is_cancelled};

/// The longest message of a framed pipe in bytes, unless told otherwise.
pub(super) const DEFAULT_MAX_MESSAGE_SIZE: usize = 16 * 1024 * 1024;

/// A message and the descriptors that came with it.
#[derive(Debug)]
#[non_exhaustive]
pub struct ReceivedMessage {
    /// The message.
    pub bytes: Vec<u8>,
    /// Close-on-exec, in the order in which they were sent.
    pub descriptors: Vec<OwnedFd>,
}

impl ReceivedMessage {
    pub(super) const fn bare(bytes: Vec<u8>) -> Self {
        Self { bytes, descriptors: Vec::new() }
    }
}

/// Why a message was not sent or received.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MessageError {
    /// Longer than the pipe carries. Nothing of it was sent; or, of a framed stream, the other side announces it, and nothing
    /// more can be received.
    #[error("a message of {bytes} bytes, {limit} at most")]
    TooLarge {
        /// So long is the message.
        bytes: usize,
        /// And so long it may be: see [`MessageStream::max_message_size`](super::MessageStream::max_message_size).
        limit: usize,
    },
    /// Nothing was sent or received within the time. It can be tried again.
    #[error("no message within the time")]
    TimedOut,
    /// Cancelled before anything was sent or received.
    #[error("cancelled")]
    Cancelled,
    /// The beginning of a framed message was sent before the time was up or the call was cancelled. The rest goes out before
    /// the next message, or with [`MessageStream::flush`](super::MessageStream::flush): do not send this one again.
    #[error("the message is on its way, but not all of it")]
    Unfinished,
    /// The other side is gone.
    #[error("the other side is gone")]
    PeerGone,
    /// The other side went in the middle of a framed message.
    #[error("the other side went and left a message unfinished, {missing} bytes are missing")]
    CutOff {
        /// At least so many.
        missing: usize,
    },
    /// The stream does not go that way, or was disconnected on this side; or the kernel failed.
    #[error("cannot send or receive: {0}")]
    Os(#[source] io::Error),
}

impl From<io::Error> for MessageError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::TimedOut => Self::TimedOut,
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Self::PeerGone,
            _ if is_cancelled(&error) => Self::Cancelled,
            _ => Self::Os(error),
        }
    }
}

impl From<MessageError> for io::Error {
    fn from(error: MessageError) -> Self {
        let kind = match &error {
            MessageError::TooLarge { .. } => io::ErrorKind::InvalidInput,
            MessageError::TimedOut | MessageError::Unfinished => io::ErrorKind::TimedOut,
            MessageError::Cancelled => return Cancelled.into(),
            MessageError::PeerGone => io::ErrorKind::BrokenPipe,
            MessageError::CutOff { .. } => io::ErrorKind::UnexpectedEof,
            MessageError::Os(source) => source.kind(),
        };
        Self::new(kind, error)
    }
}
