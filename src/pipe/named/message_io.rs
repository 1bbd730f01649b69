//! What a stream of messages keeps between two calls, and how messages are cut out of a socket and pushed into one.

use std::{
    io::{self, IoSlice},
    os::fd::BorrowedFd,
    sync::atomic::Ordering,
};

use super::{
    buffers::{ReceiveBuffer, SendBuffer},
    message::{MessageError, ReceivedMessage},
    stream::{Stream, locked},
};
use crate::pipe::{
    mode::{Direction, PipeMode},
    timeout::{StartedTimeout, WakeReason},
};
use crate::sys::{
    poll::Interest,
    socket::{self, ReceivedDatagram, RecvAction},
};

/// The length before each message of a framed stream.
const HEAD_BYTES: usize = 4;

/// How much room is made for a framed message before any of it has come: what a stranger announces costs nothing yet.
const ROOM_BYTES_MAX: usize = 64 * 1024;

pub(super) struct MessagePart {
    pub(super) bytes: usize,
    pub(super) is_complete: bool,
}

type Next = Option<ReceivedMessage>;

fn would_block() -> io::Error {
    io::ErrorKind::WouldBlock.into()
}

/// Receiving. Whoever holds the receive_buffer never waits; waiting is done without it, so that no thread holds up another's deadline.
impl Stream {
    pub(super) fn receive_next(&self, take: RecvAction, timeout: &StartedTimeout<'_>) -> Result<Next, MessageError> {
        self.check(Direction::reads)?;
        if timeout.is_cancelled()? {
            return Err(MessageError::Cancelled);
        }
        loop {
            let mut receive_buffer = locked(&self.inner.receive_buffer);
            if let Some((message, at)) = receive_buffer.current.take() {
                return Ok(Some(ReceivedMessage::bare(message.get(at..).unwrap_or_default().to_vec())));
            }
            match self.try_next(&mut receive_buffer, take) {
                Err(MessageError::Os(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return done,
            }
            drop(receive_buffer);
            self.await_input(timeout)?;
        }
    }

    /// `None` when there is nothing yet.
    pub(super) fn try_read_part(&self, buf: &mut [u8]) -> Result<Option<MessagePart>, MessageError> {
        let mut receive_buffer = locked(&self.inner.receive_buffer);
        if receive_buffer.current.is_none() {
            match self.try_next(&mut receive_buffer, RecvAction::Bytes) {
                Ok(Some(parcel)) => receive_buffer.current = Some((parcel.bytes, 0)),
                Ok(None) => return Ok(Some(MessagePart { bytes: 0, is_complete: true })),
                Err(MessageError::Os(error)) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        let Some((message, at)) = receive_buffer.current.as_mut() else { return Ok(None) };
        let rest = message.get(*at..).unwrap_or_default();
        let bytes = rest.len().min(buf.len());
        buf[..bytes].copy_from_slice(&rest[..bytes]);
        *at += bytes;
        let is_complete = *at >= message.len();
        if is_complete {
            receive_buffer.current = None;
        }
        Ok(Some(MessagePart { bytes, is_complete }))
    }

    /// The byte face of a message mode.
    pub(super) fn try_read_through_messages(&self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.try_read_part(buf)? {
                None => return Err(would_block()),
                // An empty message is not the end.
                Some(part) if part.bytes == 0 && !locked(&self.inner.receive_buffer).ended => {}
                Some(part) => return Ok(part.bytes),
            }
        }
    }

    fn try_next(&self, receive_buffer: &mut ReceiveBuffer, take: RecvAction) -> Result<Next, MessageError> {
        if receive_buffer.ended {
            return Ok(None);
        }
        let next = match self.mode() {
            PipeMode::Framed => self.try_next_frame(receive_buffer),
            PipeMode::Byte | PipeMode::Message => self.try_next_packet(take),
        };
        // After a frame that is not to be had, nobody knows where the next one begins.
        receive_buffer.ended =
            matches!(next, Ok(None) | Err(MessageError::TooLarge { .. } | MessageError::CutOff { .. }));
        next
    }

    fn try_next_packet(&self, take: RecvAction) -> Result<Next, MessageError> {
        // A reset comes before the messages that are still queued, once; after it they can be received.
        let ends = || ReceivedDatagram { bytes: 0, sender: None, descriptors: Vec::new() };
        let receive = |buf: &mut [u8], take| {
            let first = socket::receive_message(self.socket(), buf, take);
            let was_reset = first.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset);
            drop(self.at_reset(first.as_ref().map(drop).map_err(|error| error.kind().into()), ()));
            if was_reset { self.at_reset(socket::receive_message(self.socket(), buf, take), ends()) } else { first }
        };
        let seen = receive(&mut [], RecvAction::Peek)?;
        if seen.bytes == 0 && seen.sender.is_none() {
            return Ok(None);
        }
        let mut message = vec![0; seen.bytes];
        let got = receive(&mut message, take)?;
        if got.bytes == 0 && got.sender.is_none() {
            return Ok(None);
        }
        // Another one than was looked at, where another stream, here or in another process, reads from the same socket.
        if let Some(lost @ 1..) = got.bytes.checked_sub(message.len()) {
            let text = format!("somebody else reads from this socket, too; {lost} bytes of a message are lost");
            return Err(MessageError::Os(io::Error::new(io::ErrorKind::InvalidData, text)));
        }
        message.truncate(got.bytes);
        Ok(Some(ReceivedMessage { bytes: message, descriptors: got.descriptors }))
    }

    fn try_next_frame(&self, receive_buffer: &mut ReceiveBuffer) -> Result<Next, MessageError> {
        loop {
            let have = receive_buffer.frame.len();
            let (wanted, limit) = (frame_bytes(&receive_buffer.frame), self.inner.terms.max_message_size);
            if wanted > limit.saturating_add(HEAD_BYTES) {
                receive_buffer.frame = Vec::new();
                return Err(MessageError::TooLarge { bytes: wanted - HEAD_BYTES, limit });
            }
            if have >= HEAD_BYTES && have == wanted {
                let mut frame = std::mem::take(&mut receive_buffer.frame);
                frame.drain(..HEAD_BYTES);
                return Ok(Some(ReceivedMessage::bare(frame)));
            }
            // Never beyond this frame: what follows stays in the kernel, where the writer is charged for it.
            receive_buffer.frame.resize(wanted.min(have + ROOM_BYTES_MAX), 0);
            let room = receive_buffer.frame.get_mut(have..).unwrap_or_default();
            let got = self.at_reset(socket::receive(self.socket(), room), 0);
            receive_buffer.frame.truncate(have + got.as_ref().copied().unwrap_or(0));
            match got {
                Ok(0) => {
                    self.check_end()?;
                    return if have == 0 { Ok(None) } else { Err(MessageError::CutOff { missing: wanted - have }) };
                }
                Ok(_) => {}
                Err(error) => return Err(MessageError::from(error)),
            }
        }
    }
}

/// How many bytes the frame that begins like this has with its head; the head's, as long as that is not whole.
fn frame_bytes(begin: &[u8]) -> usize {
    match begin.first_chunk::<HEAD_BYTES>() {
        None => HEAD_BYTES,
        Some(head) => usize::try_from(u32::from_be_bytes(*head)).unwrap_or(usize::MAX).saturating_add(HEAD_BYTES),
    }
}

/// Sending. Whoever holds the send_buffer never waits.
impl Stream {
    pub(super) fn message_limit(&self) -> io::Result<usize> {
        match self.mode() {
            PipeMode::Framed => Ok(self.inner.terms.max_message_size),
            PipeMode::Byte | PipeMode::Message => socket::message_limit(self.socket()),
        }
    }

    pub(super) fn send_whole(
        &self,
        message: &[u8],
        descriptors: &[BorrowedFd<'_>],
        timeout: &StartedTimeout<'_>,
    ) -> Result<(), MessageError> {
        if self.mode() == PipeMode::Framed {
            return if descriptors.is_empty() {
                self.send_frame(message, timeout)
            } else {
                Err(MessageError::Os(io::ErrorKind::Unsupported.into()))
            };
        }
        loop {
            match self.send_some(&[IoSlice::new(message)], descriptors) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.await_room(timeout)?,
                // The kernel says ENOBUFS where it has the room but not in one piece.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EMSGSIZE | libc::ENOBUFS)) => {
                    let limit = self.message_limit()?;
                    let is_long = message.len() > limit;
                    return Err(if is_long {
                        MessageError::TooLarge { bytes: message.len(), limit }
                    } else {
                        MessageError::Os(error)
                    });
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn await_room(&self, timeout: &StartedTimeout<'_>) -> Result<(), MessageError> {
        match timeout.wait(&[(self.socket(), Interest::Writable)])? {
            WakeReason::Ready(_) => Ok(()),
            WakeReason::TimedOut => Err(MessageError::TimedOut),
            WakeReason::Cancelled => Err(MessageError::Cancelled),
        }
    }

    fn send_frame(&self, message: &[u8], timeout: &StartedTimeout<'_>) -> Result<(), MessageError> {
        let limit = self.inner.terms.max_message_size;
        let head = match u32::try_from(message.len()) {
            Ok(length) if message.len() <= limit => length.to_be_bytes(),
            _ => return Err(MessageError::TooLarge { bytes: message.len(), limit }),
        };
        let number = loop {
            let mut send_buffer = locked(&self.inner.send_buffer);
            match self.push(&mut send_buffer).and_then(|()| self.begin_frame(&mut send_buffer, head, message)) {
                Ok(None) => return Ok(()),
                Ok(Some(number)) => break number,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    drop(send_buffer);
                    return Err(self.with_reason(error, timeout).into());
                }
            }
            drop(send_buffer);
            self.await_room(timeout)?;
        };
        self.send_tail(Some(number), timeout)
    }

    /// Sends what fits, and leaves the rest, if there is one, in the send_buffer under a number.
    fn begin_frame(
        &self,
        send_buffer: &mut SendBuffer,
        head: [u8; HEAD_BYTES],
        message: &[u8],
    ) -> io::Result<Option<u64>> {
        let sent = self.send_some(&[IoSlice::new(&head), IoSlice::new(message)], &[])?;
        if sent == HEAD_BYTES + message.len() {
            return Ok(None);
        }
        send_buffer.number += 1;
        send_buffer.sent = 0;
        send_buffer.rest = Vec::with_capacity(HEAD_BYTES + message.len() - sent);
        send_buffer.rest.extend_from_slice(head.get(sent..).unwrap_or_default());
        send_buffer.rest.extend_from_slice(message.get(sent.saturating_sub(HEAD_BYTES)..).unwrap_or_default());
        Ok(Some(send_buffer.number))
    }

    /// Waits until the rest with this number has gone, whoever sends it; or any rest.
    pub(super) fn send_tail(&self, number: Option<u64>, timeout: &StartedTimeout<'_>) -> Result<(), MessageError> {
        loop {
            let mut send_buffer = locked(&self.inner.send_buffer);
            if number.is_some_and(|number| number != send_buffer.number) {
                return Ok(());
            }
            match self.push(&mut send_buffer) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    drop(send_buffer);
                    return Err(self.with_reason(error, timeout).into());
                }
            }
            drop(send_buffer);
            match self.await_room(timeout) {
                Err(MessageError::TimedOut | MessageError::Cancelled) => return Err(MessageError::Unfinished),
                other => other?,
            }
        }
    }

    pub(super) fn flush_send_buffer(&self) -> io::Result<()> {
        self.push(&mut locked(&self.inner.send_buffer))
    }

    /// Sends the rest, without waiting: all of it, or `WouldBlock`.
    fn push(&self, send_buffer: &mut SendBuffer) -> io::Result<()> {
        while let Some(rest) = send_buffer.rest.get(send_buffer.sent..).filter(|rest| !rest.is_empty()) {
            match self.send_some(&[IoSlice::new(rest)], &[]) {
                Ok(sent) => send_buffer.sent += sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
                Err(error) => {
                    // Nobody will read this rest.
                    self.inner.was_reset.store(true, Ordering::Relaxed);
                    *send_buffer = SendBuffer { number: send_buffer.number, ..SendBuffer::default() };
                    return Err(error);
                }
            }
        }
        *send_buffer = SendBuffer { number: send_buffer.number, ..SendBuffer::default() };
        Ok(())
    }
}
