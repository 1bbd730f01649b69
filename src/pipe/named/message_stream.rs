//! Whole messages over a named pipe.
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

/// A [`Stream`] whose messages stay whole. [`Stream::into_messages`] makes it.
///
/// Shared references send and receive, from any number of threads: messages never mix. Sending waits for room and receiving
/// for a message; deadlines, cancelling and the ends are as with [`Stream`].
///
/// A message can also be read in parts, through [`Read`]: each read stays within one message, and
/// [`is_message_complete`](Self::is_message_complete) tells whether it reached the message's end. Threads that share a stream
/// should not read in parts.
pub struct MessageStream {
    stream: Stream,
    is_message_complete: AtomicBool,
}

shown_as!(MessageStream, |stream| { stream: stream.stream });

impl Stream {
    /// The face that keeps messages whole.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) for a byte pipe: it has no messages.
    #[doc(alias = "ReadMode")]
    pub fn into_messages(self) -> io::Result<MessageStream> {
        match self.mode() {
            PipeMode::Byte => Err(io::Error::new(io::ErrorKind::InvalidInput, "a byte pipe has no messages")),
            PipeMode::Message | PipeMode::Framed => Ok(MessageStream::new(self)),
        }
    }
}

impl MessageStream {
    const fn new(stream: Stream) -> Self {
        Self { stream, is_message_complete: AtomicBool::new(true) }
    }

    /// The same connection as bytes: for its peer, its end, its state.
    pub const fn as_stream(&self) -> &Stream {
        &self.stream
    }

    /// Gives the face of whole messages up.
    pub fn into_stream(self) -> Stream {
        self.stream
    }

    /// The longest message that can be sent, in bytes. Of the message mode it is what the kernel takes from the
    /// [`send_buffer_size`](Stream::send_buffer_size), and [`Stream::set_send_buffer_size`] raises it, to 4 MiB at most; of the framed mode the
    /// limit that was set when the stream was opened. What can be received is the other side's limit.
    ///
    /// # Errors
    ///
    /// None is known.
    pub fn max_message_size(&self) -> io::Result<usize> {
        self.stream.message_limit()
    }

    /// Sends one message, which may be empty. Waits for room as long as it takes.
    ///
    /// # Errors
    ///
    /// [`MessageError::TooLarge`], [`MessageError::PeerGone`], ...
    pub fn send(&self, message: &[u8]) -> Result<(), MessageError> {
        self.send_timeout(message, Timeout::never())
    }

    /// As [`send`](Self::send), with an end to waiting.
    ///
    /// # Errors
    ///
    /// As `send`; [`MessageError::TimedOut`] or [`MessageError::Cancelled`] when nothing was sent, [`MessageError::Unfinished`]
    /// when the beginning of a framed message was.
    pub fn send_timeout<'a>(&self, message: &[u8], timeout: impl Into<Timeout<'a>>) -> Result<(), MessageError> {
        self.send_with_fds(message, &[], timeout)
    }

    /// As [`send_timeout`](Self::send_timeout), and sends copies of descriptors along, at most 253. The other side must ask
    /// for them; if it does not, they are closed unseen.
    ///
    /// # Errors
    ///
    /// As `send_timeout`; an [`Unsupported`](io::ErrorKind::Unsupported) error for a framed stream.
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

    /// Sends what is left of a framed message that could not be sent whole in time.
    ///
    /// # Errors
    ///
    /// [`MessageError::Unfinished`] when it still cannot be.
    pub fn flush<'a>(&self, timeout: impl Into<Timeout<'a>>) -> Result<(), MessageError> {
        self.stream.check(Direction::writes)?;
        self.stream.send_tail(None, &StartedTimeout::now(timeout.into()))
    }

    /// The next message, or what is left of one that was read in parts; `None` at the end.
    ///
    /// # Errors
    ///
    /// [`MessageError::CutOff`], [`MessageError::TooLarge`], ...
    pub fn recv(&self) -> Result<Option<Vec<u8>>, MessageError> {
        self.recv_timeout(Timeout::never())
    }

    /// As [`recv`](Self::recv), with an end to waiting. No message is lost by it.
    ///
    /// # Errors
    ///
    /// As `recv`; [`MessageError::TimedOut`], [`MessageError::Cancelled`].
    pub fn recv_timeout<'a>(&self, timeout: impl Into<Timeout<'a>>) -> Result<Option<Vec<u8>>, MessageError> {
        let next = self.stream.receive_next(RecvAction::Bytes, &StartedTimeout::now(timeout.into()))?;
        Ok(next.map(|parcel| parcel.bytes))
    }

    /// As [`recv_timeout`](Self::recv_timeout), and takes the descriptors that came along. They are close-on-exec. What they
    /// are is for the caller to find out before using them.
    ///
    /// # Errors
    ///
    /// As `recv_timeout`. A framed stream never has descriptors.
    pub fn recv_with_fds<'a>(&self, timeout: impl Into<Timeout<'a>>) -> Result<Option<ReceivedMessage>, MessageError> {
        self.stream.receive_next(RecvAction::Descriptors, &StartedTimeout::now(timeout.into()))
    }

    /// Reads from one message at most, as much as fits into `buf`; the next read goes on where this one stopped. 0 for an empty
    /// message, and at the end, which [`is_at_end`](Self::is_at_end) tells apart.
    ///
    /// # Errors
    ///
    /// As [`recv_timeout`](Self::recv_timeout).
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

    /// Whether the last read in parts reached the end of its message.
    #[doc(alias = "IsMessageComplete")]
    pub fn is_message_complete(&self) -> bool {
        self.is_message_complete.load(Ordering::Acquire)
    }

    /// Whether the end of the stream has been read: no message will come any more.
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
