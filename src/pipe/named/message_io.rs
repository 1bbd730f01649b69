//! Receives whole messages from a socket and sends them.

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

/// Size of the length prefix of a framed message.
const PREFIX_BYTES: usize = 4;

/// Largest allocation for framed data that has not arrived: an announced length alone must not cost memory.
const FRAME_ALLOCATION_MAX: usize = 64 * 1024;

pub(super) struct MessagePart {
    pub(super) bytes: usize,
    pub(super) is_complete: bool,
}

type Next = Option<ReceivedMessage>;

fn would_block() -> io::Error {
    io::ErrorKind::WouldBlock.into()
}

/// Receiving. The receive buffer is never locked while a thread waits, so that no thread delays the timeout of another.
impl Stream {
    pub(super) fn receive_next(&self, take: RecvAction, timeout: &StartedTimeout<'_>) -> Result<Next, MessageError> {
        self.check(Direction::reads)?;
        if timeout.is_cancelled()? {
            return Err(MessageError::Cancelled);
        }
        loop {
            let mut receive_buffer = locked(&self.inner.receive_buffer);
            if let Some((message, at)) = receive_buffer.current.take() {
                return Ok(Some(ReceivedMessage::without_fds(message.get(at..).unwrap_or_default().to_vec())));
            }
            match self.try_next(&mut receive_buffer, take) {
                Err(MessageError::Os(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return done,
            }
            drop(receive_buffer);
            self.await_input(timeout)?;
        }
    }

    /// Returns `None` if no data is available.
    pub(super) fn try_read_part(&self, buf: &mut [u8]) -> Result<Option<MessagePart>, MessageError> {
        let mut receive_buffer = locked(&self.inner.receive_buffer);
        if receive_buffer.current.is_none() {
            match self.try_next(&mut receive_buffer, RecvAction::Bytes) {
                Ok(Some(message)) => receive_buffer.current = Some((message.bytes, 0)),
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

    /// Reads messages as one stream of bytes.
    pub(super) fn try_read_through_messages(&self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.try_read_part(buf)? {
                None => return Err(would_block()),
                // An empty message is not the end of the stream.
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
        // After an unreadable frame the start of the next one is unknown.
        receive_buffer.ended =
            matches!(next, Ok(None) | Err(MessageError::TooLarge { .. } | MessageError::Truncated { .. }));
        next
    }

    fn try_next_packet(&self, take: RecvAction) -> Result<Next, MessageError> {
        // The kernel reports a reset once, before the messages that are still queued.
        let end_of_stream = || ReceivedDatagram { bytes: 0, sender: None, descriptors: Vec::new() };
        let receive = |buf: &mut [u8], take| {
            let first = socket::receive_message(self.socket(), buf, take);
            let was_reset = first.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset);
            drop(self.or_end_at_reset(first.as_ref().map(drop).map_err(|error| error.kind().into()), ()));
            if was_reset {
                self.or_end_at_reset(socket::receive_message(self.socket(), buf, take), end_of_stream())
            } else {
                first
            }
        };
        let peeked = receive(&mut [], RecvAction::Peek)?;
        if peeked.bytes == 0 && peeked.sender.is_none() {
            return Ok(None);
        }
        let mut message = vec![0; peeked.bytes];
        let got = receive(&mut message, take)?;
        if got.bytes == 0 && got.sender.is_none() {
            return Ok(None);
        }
        // Not the message that was peeked: another reader, possibly in another process, uses the same socket.
        if let Some(lost @ 1..) = got.bytes.checked_sub(message.len()) {
            let text = format!("another reader uses this socket: lost {lost} bytes of a message");
            return Err(MessageError::Os(io::Error::new(io::ErrorKind::InvalidData, text)));
        }
        message.truncate(got.bytes);
        Ok(Some(ReceivedMessage { bytes: message, fds: got.descriptors }))
    }

    fn try_next_frame(&self, receive_buffer: &mut ReceiveBuffer) -> Result<Next, MessageError> {
        loop {
            let have = receive_buffer.frame.len();
            let (wanted, limit) = (frame_size(&receive_buffer.frame), self.inner.terms.max_message_size);
            if wanted > limit.saturating_add(PREFIX_BYTES) {
                receive_buffer.frame = Vec::new();
                return Err(MessageError::TooLarge { bytes: wanted - PREFIX_BYTES, limit });
            }
            if have >= PREFIX_BYTES && have == wanted {
                let mut frame = std::mem::take(&mut receive_buffer.frame);
                frame.drain(..PREFIX_BYTES);
                return Ok(Some(ReceivedMessage::without_fds(frame)));
            }
            // Reads no further than this frame: the rest stays in the kernel, charged to the send buffer of the writer.
            receive_buffer.frame.resize(wanted.min(have + FRAME_ALLOCATION_MAX), 0);
            let room = receive_buffer.frame.get_mut(have..).unwrap_or_default();
            let got = self.or_end_at_reset(socket::receive(self.socket(), room), 0);
            receive_buffer.frame.truncate(have + got.as_ref().copied().unwrap_or(0));
            match got {
                Ok(0) => {
                    self.check_end()?;
                    return if have == 0 { Ok(None) } else { Err(MessageError::Truncated { missing: wanted - have }) };
                }
                Ok(_) => {}
                Err(error) => return Err(MessageError::from(error)),
            }
        }
    }
}

/// Size of the frame that starts with `begin`, prefix included; size of the prefix until that is complete.
fn frame_size(begin: &[u8]) -> usize {
    match begin.first_chunk::<PREFIX_BYTES>() {
        None => PREFIX_BYTES,
        Some(head) => usize::try_from(u32::from_be_bytes(*head)).unwrap_or(usize::MAX).saturating_add(PREFIX_BYTES),
    }
}

/// Sending. The send buffer is never locked while a thread waits.
impl Stream {
    pub(super) fn max_message_size(&self) -> io::Result<usize> {
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
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait_writable(timeout)?,
                // ENOBUFS: the kernel has the memory, but not in one piece.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EMSGSIZE | libc::ENOBUFS)) => {
                    let limit = self.max_message_size()?;
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

    fn wait_writable(&self, timeout: &StartedTimeout<'_>) -> Result<(), MessageError> {
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
            match self.send_rest(&mut send_buffer).and_then(|()| self.start_frame(&mut send_buffer, head, message)) {
                Ok(None) => return Ok(()),
                Ok(Some(number)) => break number,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    drop(send_buffer);
                    return Err(self.with_reason(error, timeout).into());
                }
            }
            drop(send_buffer);
            self.wait_writable(timeout)?;
        };
        self.finish_frame(Some(number), timeout)
    }

    /// Sends what fits. Stores a rest in the send buffer and returns its number.
    fn start_frame(
        &self,
        send_buffer: &mut SendBuffer,
        head: [u8; PREFIX_BYTES],
        message: &[u8],
    ) -> io::Result<Option<u64>> {
        let sent = self.send_some(&[IoSlice::new(&head), IoSlice::new(message)], &[])?;
        if sent == PREFIX_BYTES + message.len() {
            return Ok(None);
        }
        send_buffer.number += 1;
        send_buffer.sent = 0;
        send_buffer.rest = Vec::with_capacity(PREFIX_BYTES + message.len() - sent);
        send_buffer.rest.extend_from_slice(head.get(sent..).unwrap_or_default());
        send_buffer.rest.extend_from_slice(message.get(sent.saturating_sub(PREFIX_BYTES)..).unwrap_or_default());
        Ok(Some(send_buffer.number))
    }

    /// Waits until the rest with this number has been sent by any thread; without a number, until there is no rest.
    pub(super) fn finish_frame(&self, number: Option<u64>, timeout: &StartedTimeout<'_>) -> Result<(), MessageError> {
        loop {
            let mut send_buffer = locked(&self.inner.send_buffer);
            if number.is_some_and(|number| number != send_buffer.number) {
                return Ok(());
            }
            match self.send_rest(&mut send_buffer) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    drop(send_buffer);
                    return Err(self.with_reason(error, timeout).into());
                }
            }
            drop(send_buffer);
            match self.wait_writable(timeout) {
                Err(MessageError::TimedOut | MessageError::Cancelled) => return Err(MessageError::Unfinished),
                other => other?,
            }
        }
    }

    pub(super) fn flush_send_buffer(&self) -> io::Result<()> {
        self.send_rest(&mut locked(&self.inner.send_buffer))
    }

    /// Sends the whole rest without blocking, or returns `WouldBlock`.
    fn send_rest(&self, send_buffer: &mut SendBuffer) -> io::Result<()> {
        while let Some(rest) = send_buffer.rest.get(send_buffer.sent..).filter(|rest| !rest.is_empty()) {
            match self.send_some(&[IoSlice::new(rest)], &[]) {
                Ok(sent) => send_buffer.sent += sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
                Err(error) => {
                    // The peer will never read this rest.
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
