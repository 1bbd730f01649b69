//! Connections that keep messages whole.
#![expect(single_use_lifetimes, reason = "`impl Into<Timeout<'_>>` is not stable Rust yet")]

use std::{
    io::{self, Read},
    os::fd::BorrowedFd,
    sync::atomic::{AtomicBool, Ordering},
};

use super::{
    message::{MessageError, ReceivedMessage},
    stream::{Stream, locked},
};
use crate::pipe::{
    mode::{Direction, PipeMode},
    timeout::{StartedTimeout, Timeout},
};
use crate::sys::socket::RecvAction;

/// A connection that sends and receives whole messages. Created by [`Stream::into_messages`].
///
/// All methods take `&self`, so threads can share it; their messages never mix. Sending blocks while the send buffer is full,
/// receiving while no message is available. Timeouts, cancellation and the end of the stream work as for [`Stream`].
///
/// [`Read`] reads one message in parts: a read never crosses the end of a message, and
/// [`is_message_complete`](Self::is_message_complete) returns whether the last one reached it. Threads that share a stream
/// should not use it.
pub struct MessageStream {
    stream: Stream,
    is_message_complete: AtomicBool,
}

impl_debug!(MessageStream, |stream| { stream: stream.stream });

impl Stream {
    /// Converts the stream into one that keeps messages whole.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) for a byte pipe, which has no messages.
    #[doc(alias = "ReadMode")]
    pub fn into_messages(self) -> io::Result<MessageStream> {
        match self.mode() {
            PipeMode::Byte => Err(io::Error::new(io::ErrorKind::InvalidInput, "byte pipe has no messages")),
            PipeMode::Message | PipeMode::Framed => Ok(MessageStream::new(self)),
        }
    }
}

impl MessageStream {
    const fn new(stream: Stream) -> Self {
        Self { stream, is_message_complete: AtomicBool::new(true) }
    }

    /// The connection as a byte stream: for its peer, state and shutdown.
    pub const fn as_stream(&self) -> &Stream {
        &self.stream
    }

    /// Converts back into a byte stream.
    pub fn into_stream(self) -> Stream {
        self.stream
    }

    /// Longest message that can be sent, in bytes.
    ///
    /// In message mode it follows from the [`send_buffer_size`](Stream::send_buffer_size), and
    /// [`Stream::set_send_buffer_size`] raises it to at most 4 MiB. In framed mode it is the limit set when the stream was
    /// opened. The peer may have another limit for what it receives.
    ///
    /// # Errors
    ///
    /// None known.
    pub fn max_message_size(&self) -> io::Result<usize> {
        self.stream.max_message_size()
    }

    /// Sends one message, which may be empty. Blocks while the send buffer is full.
    ///
    /// # Errors
    ///
    /// [`MessageError::TooLarge`], [`MessageError::PeerGone`] and so on.
    pub fn send(&self, message: &[u8]) -> Result<(), MessageError> {
        self.send_timeout(message, Timeout::never())
    }

    /// Like [`send`](Self::send), with a timeout.
    ///
    /// # Errors
    ///
    /// Same as `send`; [`MessageError::TimedOut`] or [`MessageError::Cancelled`] if nothing was sent,
    /// [`MessageError::Unfinished`] if the beginning of a framed message was sent.
    pub fn send_timeout<'a>(&self, message: &[u8], timeout: impl Into<Timeout<'a>>) -> Result<(), MessageError> {
        self.send_with_fds(message, &[], timeout)
    }

    /// Like [`send_timeout`](Self::send_timeout), and passes copies of up to 253 file descriptors with the message. A peer that
    /// receives without [`recv_with_fds`](Self::recv_with_fds) closes them.
    ///
    /// # Errors
    ///
    /// Same as `send_timeout`; [`Unsupported`](io::ErrorKind::Unsupported) for a framed stream.
    pub fn send_with_fds<'a>(
        &self,
        message: &[u8],
        descriptors: &[BorrowedFd<'_>],
        timeout: impl Into<Timeout<'a>>,
    ) -> Result<(), MessageError> {
        let timeout = StartedTimeout::now(timeout.into());
        self.stream.check(Direction::writes)?;
        if timeout.is_cancelled()? {
            return Err(MessageError::Cancelled);
        }
        self.stream.send_whole(message, descriptors, &timeout)
    }

    /// Sends the rest of a framed message that was sent in part.
    ///
    /// # Errors
    ///
    /// [`MessageError::Unfinished`] if the timeout expires again.
    pub fn flush<'a>(&self, timeout: impl Into<Timeout<'a>>) -> Result<(), MessageError> {
        self.stream.check(Direction::writes)?;
        self.stream.finish_frame(None, &StartedTimeout::now(timeout.into()))
    }

    /// Receives the next message, or the rest of one that was read in part. Returns `None` at the end of the stream.
    ///
    /// # Errors
    ///
    /// [`MessageError::Truncated`], [`MessageError::TooLarge`] and so on.
    pub fn recv(&self) -> Result<Option<Vec<u8>>, MessageError> {
        self.recv_timeout(Timeout::never())
    }

    /// Like [`recv`](Self::recv), with a timeout. No message is lost when it expires.
    ///
    /// # Errors
    ///
    /// Same as `recv`; [`MessageError::TimedOut`], [`MessageError::Cancelled`].
    pub fn recv_timeout<'a>(&self, timeout: impl Into<Timeout<'a>>) -> Result<Option<Vec<u8>>, MessageError> {
        let next = self.stream.receive_next(RecvAction::Bytes, &StartedTimeout::now(timeout.into()))?;
        Ok(next.map(|message| message.bytes))
    }

    /// Like [`recv_timeout`](Self::recv_timeout), and also returns the file descriptors passed with the message. They are
    /// close-on-exec, and of any type the peer chose: check them before use. A framed stream carries none.
    ///
    /// # Errors
    ///
    /// Same as `recv_timeout`.
    pub fn recv_with_fds<'a>(&self, timeout: impl Into<Timeout<'a>>) -> Result<Option<ReceivedMessage>, MessageError> {
        self.stream.receive_next(RecvAction::Descriptors, &StartedTimeout::now(timeout.into()))
    }

    /// Reads as much of the current message as fits into `buf`; the next read continues there. Returns 0 for an empty message
    /// and at the end of the stream; [`is_at_end`](Self::is_at_end) tells them apart.
    ///
    /// # Errors
    ///
    /// Same as [`recv_timeout`](Self::recv_timeout).
    pub fn read_timeout<'a>(&self, buf: &mut [u8], timeout: impl Into<Timeout<'a>>) -> Result<usize, MessageError> {
        let timeout = StartedTimeout::now(timeout.into());
        self.stream.check(Direction::reads)?;
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            match self.stream.try_read_part(buf) {
                Ok(Some(part)) => {
                    self.is_message_complete.store(part.is_complete, Ordering::Release);
                    return Ok(part.bytes);
                }
                Ok(None) => self.stream.await_input(&timeout)?,
                Err(error) => return Err(error),
            }
        }
    }

    /// Returns whether the last [`read_timeout`](Self::read_timeout) or [`Read`] reached the end of its message.
    #[doc(alias = "IsMessageComplete")]
    pub fn is_message_complete(&self) -> bool {
        self.is_message_complete.load(Ordering::Acquire)
    }

    /// Returns whether the end of the stream was reached: no further message will arrive.
    pub fn is_at_end(&self) -> bool {
        locked(&self.stream.inner.receive_buffer).ended
    }
}

impl Read for MessageStream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        (&*self).read(buf)
    }
}

impl Read for &MessageStream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.read_timeout(buf, Timeout::never()).map_err(Into::into)
    }
}
