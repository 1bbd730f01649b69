//! Whole messages over a named pipe.
#![expect(single_use_lifetimes, reason = "`impl Into<Wait<'_>>` is not stable Rust yet")]

use std::{
    io::{self, Read},
    os::fd::BorrowedFd,
    sync::atomic::{AtomicBool, Ordering},
};

use super::{
    message::{MessageError, Parcel},
    stream::{Stream, locked},
};
use crate::pipe::{
    mode::{Direction, PipeMode},
    timeout::{Begun, Wait},
};
use crate::sys::socket::Take;

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
    /// [`out_buffer`](Stream::out_buffer), and [`Stream::set_out_buffer`] raises it, to 4 MiB at most; of the framed mode the
    /// limit that was set when the stream was opened. What can be received is the other side's limit.
    ///
    /// # Errors
    ///
    /// None is known.
    pub fn limit(&self) -> io::Result<usize> {
        self.stream.message_limit()
    }

    /// Sends one message, which may be empty. Waits for room as long as it takes.
    ///
    /// # Errors
    ///
    /// [`MessageError::TooLarge`], [`MessageError::PeerGone`], ...
    pub fn send(&self, message: &[u8]) -> Result<(), MessageError> {
        self.send_deadline(message, Wait::forever())
    }

    /// As [`send`](Self::send), with an end to waiting.
    ///
    /// # Errors
    ///
    /// As `send`; [`MessageError::TimedOut`] or [`MessageError::Cancelled`] when nothing was sent, [`MessageError::Unfinished`]
    /// when the beginning of a framed message was.
    pub fn send_deadline<'a>(&self, message: &[u8], wait: impl Into<Wait<'a>>) -> Result<(), MessageError> {
        self.send_descriptors(message, &[], wait)
    }

    /// As [`send_deadline`](Self::send_deadline), and sends copies of descriptors along, at most 253. The other side must ask
    /// for them; if it does not, they are closed unseen.
    ///
    /// # Errors
    ///
    /// As `send_deadline`; an [`Unsupported`](io::ErrorKind::Unsupported) error for a framed stream.
    pub fn send_descriptors<'a>(
        &self,
        message: &[u8],
        descriptors: &[BorrowedFd<'_>],
        wait: impl Into<Wait<'a>>,
    ) -> Result<(), MessageError> {
        let begun = Begun::now(wait.into());
        self.stream.check(Direction::writes)?;
        if begun.is_cancelled()? {
            return Err(MessageError::Cancelled);
        }
        self.stream.send_whole(message, descriptors, &begun)
    }

    /// Sends what is left of a framed message that could not be sent whole in time.
    ///
    /// # Errors
    ///
    /// [`MessageError::Unfinished`] when it still cannot be.
    pub fn flush<'a>(&self, wait: impl Into<Wait<'a>>) -> Result<(), MessageError> {
        self.stream.check(Direction::writes)?;
        self.stream.send_tail(None, &Begun::now(wait.into()))
    }

    /// The next message, or what is left of one that was read in parts; `None` at the end.
    ///
    /// # Errors
    ///
    /// [`MessageError::CutOff`], [`MessageError::TooLarge`], ...
    pub fn recv(&self) -> Result<Option<Vec<u8>>, MessageError> {
        self.recv_deadline(Wait::forever())
    }

    /// As [`recv`](Self::recv), with an end to waiting. No message is lost by it.
    ///
    /// # Errors
    ///
    /// As `recv`; [`MessageError::TimedOut`], [`MessageError::Cancelled`].
    pub fn recv_deadline<'a>(&self, wait: impl Into<Wait<'a>>) -> Result<Option<Vec<u8>>, MessageError> {
        let next = self.stream.receive_next(Take::Bytes, &Begun::now(wait.into()))?;
        Ok(next.map(|parcel| parcel.bytes))
    }

    /// As [`recv_deadline`](Self::recv_deadline), and takes the descriptors that came along. They are close-on-exec. What they
    /// are is for the caller to find out before using them.
    ///
    /// # Errors
    ///
    /// As `recv_deadline`. A framed stream never has descriptors.
    pub fn recv_descriptors<'a>(&self, wait: impl Into<Wait<'a>>) -> Result<Option<Parcel>, MessageError> {
        self.stream.receive_next(Take::Descriptors, &Begun::now(wait.into()))
    }

    /// Reads from one message at most, as much as fits into `buf`; the next read goes on where this one stopped. 0 for an empty
    /// message, and at the end, which [`is_at_end`](Self::is_at_end) tells apart.
    ///
    /// # Errors
    ///
    /// As [`recv_deadline`](Self::recv_deadline).
    pub fn read_deadline<'a>(&self, buf: &mut [u8], wait: impl Into<Wait<'a>>) -> Result<usize, MessageError> {
        let begun = Begun::now(wait.into());
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
                Ok(None) => self.stream.await_input(&begun)?,
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
        locked(&self.stream.inner.inbox).ended
    }
}

impl Read for MessageStream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        (&*self).read(buf)
    }
}

impl Read for &MessageStream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.read_deadline(buf, Wait::forever()).map_err(Into::into)
    }
}
