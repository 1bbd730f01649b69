//! A received message, and the error of sending and receiving.

use std::{io, os::fd::OwnedFd};

use crate::pipe::timeout::{Cancelled, is_cancelled};

/// Longest message of a framed pipe in bytes, unless configured.
pub(super) const DEFAULT_MAX_MESSAGE_SIZE: usize = 16 * 1024 * 1024;

/// A message and the file descriptors received with it.
#[derive(Debug)]
#[non_exhaustive]
pub struct ReceivedMessage {
    /// Content of the message.
    pub bytes: Vec<u8>,
    /// File descriptors in the order in which they were sent. They are close-on-exec.
    pub fds: Vec<OwnedFd>,
}

impl ReceivedMessage {
    pub(super) const fn without_fds(bytes: Vec<u8>) -> Self {
        Self { bytes, fds: Vec::new() }
    }
}

/// Error of sending or receiving a message.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MessageError {
    /// The message exceeds the limit of the pipe. When sending, nothing was sent. When receiving on a framed stream, no further
    /// message can be received.
    #[error("message of {bytes} bytes exceeds the limit of {limit} bytes")]
    TooLarge {
        /// Size of the message.
        bytes: usize,
        /// Largest size, see [`MessageStream::max_message_size`](super::MessageStream::max_message_size).
        limit: usize,
    },
    /// The timeout expired before anything was sent or received. The call can be repeated.
    #[error("timed out: no message was transferred")]
    TimedOut,
    /// The call was cancelled before anything was sent or received.
    #[error("cancelled")]
    Cancelled,
    /// The timeout expired or the call was cancelled after the beginning of a framed message was sent. Do not send the message
    /// again: the rest is sent before the next message, or by [`MessageStream::flush`](super::MessageStream::flush).
    #[error("message sent in part: the rest follows with the next message or flush")]
    Unfinished,
    /// The peer has closed the connection.
    #[error("peer closed the connection")]
    PeerGone,
    /// The peer closed the connection in the middle of a framed message.
    #[error("peer closed the connection within a message: at least {missing} bytes missing")]
    Truncated {
        /// Number of missing bytes, at least.
        missing: usize,
    },
    /// The stream does not have this direction or was disconnected on this side, or a system call failed.
    #[error("cannot transfer message: {0}")]
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
            MessageError::Truncated { .. } => io::ErrorKind::UnexpectedEof,
            MessageError::Os(source) => source.kind(),
        };
        Self::new(kind, error)
    }
}
