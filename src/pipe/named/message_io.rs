//! What a stream of messages keeps between two calls, and how messages are cut out of a socket and pushed into one.

use std::{
    io::{self, IoSlice},
    os::fd::BorrowedFd,
    sync::atomic::Ordering,
};

use super::{
    buffers::{Inbox, Outbox},
    message::{MessageError, ReceivedMessage},
    stream::{Stream, locked},
};
use crate::pipe::{
    mode::{Direction, PipeMode},
    timeout::{StartedTimeout, WakeReason},
};
use crate::sys::{
    poll::Interest,
    socket::{self, Received, Take},
};

/// The length before each message of a framed stream.
const HEAD_BYTES: usize = 4;

/// How much room is made for a framed message before any of it has come: what a stranger announces costs nothing yet.
const ROOM_BYTES_MAX: usize = 64 * 1024;

pub(super) struct Part {
    pub(super) bytes: usize,
    pub(super) is_complete: bool,
}

type Next = Option<ReceivedMessage>;

fn would_block() -> io::Error {
    io::ErrorKind::WouldBlock.into()
}

/// Receiving. Whoever holds the inbox never waits; waiting is done without it, so that no thread holds up another's deadline.
impl Stream {
    pub(super) fn receive_next(&self, take: Take, begun: &StartedTimeout<'_>) -> Result<Next, MessageError> {
        self.check(Direction::reads)?;
        if begun.is_cancelled()? {
            return Err(MessageError::Cancelled);
        }
        loop {
            let mut inbox = locked(&self.inner.inbox);
            if let Some((message, at)) = inbox.current.take() {
                return Ok(Some(ReceivedMessage::bare(message.get(at..).unwrap_or_default().to_vec())));
            }
            match self.try_next(&mut inbox, take) {
                Err(MessageError::Os(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return done,
            }
            drop(inbox);
            self.await_input(begun)?;
        }
    }

    /// `None` when there is nothing yet.
    pub(super) fn try_read_part(&self, buf: &mut [u8]) -> Result<Option<Part>, MessageError> {
        let mut inbox = locked(&self.inner.inbox);
        if inbox.current.is_none() {
            match self.try_next(&mut inbox, Take::Bytes) {
                Ok(Some(parcel)) => inbox.current = Some((parcel.bytes, 0)),
                Ok(None) => return Ok(Some(Part { bytes: 0, is_complete: true })),
                Err(MessageError::Os(error)) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        let Some((message, at)) = inbox.current.as_mut() else { return Ok(None) };
        let rest = message.get(*at..).unwrap_or_default();
        let bytes = rest.len().min(buf.len());
        buf[..bytes].copy_from_slice(&rest[..bytes]);
        *at += bytes;
        let is_complete = *at >= message.len();
        if is_complete {
            inbox.current = None;
        }
        Ok(Some(Part { bytes, is_complete }))
    }

    /// The byte face of a message mode.
    pub(super) fn try_read_through_messages(&self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.try_read_part(buf)? {
                None => return Err(would_block()),
                // An empty message is not the end.
                Some(part) if part.bytes == 0 && !locked(&self.inner.inbox).ended => {}
                Some(part) => return Ok(part.bytes),
            }
        }
    }

    fn try_next(&self, inbox: &mut Inbox, take: Take) -> Result<Next, MessageError> {
        if inbox.ended {
            return Ok(None);
        }
        let next = match self.mode() {
            PipeMode::Framed => self.try_next_frame(inbox),
            PipeMode::Byte | PipeMode::Message => self.try_next_packet(take),
        };
        // After a frame that is not to be had, nobody knows where the next one begins.
        inbox.ended = matches!(next, Ok(None) | Err(MessageError::TooLarge { .. } | MessageError::CutOff { .. }));
        next
    }

    fn try_next_packet(&self, take: Take) -> Result<Next, MessageError> {
        // A reset comes before the messages that are still queued, once; after it they can be received.
        let ends = || Received { bytes: 0, sender: None, descriptors: Vec::new() };
        let receive = |buf: &mut [u8], take| {
            let first = socket::receive_message(self.socket(), buf, take);
            let was_reset = first.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset);
            drop(self.at_reset(first.as_ref().map(drop).map_err(|error| error.kind().into()), ()));
            if was_reset { self.at_reset(socket::receive_message(self.socket(), buf, take), ends()) } else { first }
        };
        let seen = receive(&mut [], Take::Peek)?;
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

    fn try_next_frame(&self, inbox: &mut Inbox) -> Result<Next, MessageError> {
        loop {
            let have = inbox.frame.len();
            let (wanted, limit) = (frame_bytes(&inbox.frame), self.inner.terms.frame_bytes_max);
            if wanted > limit.saturating_add(HEAD_BYTES) {
                inbox.frame = Vec::new();
                return Err(MessageError::TooLarge { bytes: wanted - HEAD_BYTES, limit });
            }
            if have >= HEAD_BYTES && have == wanted {
                let mut frame = std::mem::take(&mut inbox.frame);
                frame.drain(..HEAD_BYTES);
                return Ok(Some(ReceivedMessage::bare(frame)));
            }
            // Never beyond this frame: what follows stays in the kernel, where the writer is charged for it.
            inbox.frame.resize(wanted.min(have + ROOM_BYTES_MAX), 0);
            let room = inbox.frame.get_mut(have..).unwrap_or_default();
            let got = self.at_reset(socket::receive(self.socket(), room), 0);
            inbox.frame.truncate(have + got.as_ref().copied().unwrap_or(0));
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

/// Sending. Whoever holds the outbox never waits.
impl Stream {
    pub(super) fn message_limit(&self) -> io::Result<usize> {
        match self.mode() {
            PipeMode::Framed => Ok(self.inner.terms.frame_bytes_max),
            PipeMode::Byte | PipeMode::Message => socket::message_limit(self.socket()),
        }
    }

    pub(super) fn send_whole(
        &self,
        message: &[u8],
        descriptors: &[BorrowedFd<'_>],
        begun: &StartedTimeout<'_>,
    ) -> Result<(), MessageError> {
        if self.mode() == PipeMode::Framed {
            return if descriptors.is_empty() {
                self.send_frame(message, begun)
            } else {
                Err(MessageError::Os(io::ErrorKind::Unsupported.into()))
            };
        }
        loop {
            match self.send_some(&[IoSlice::new(message)], descriptors) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.await_room(begun)?,
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

    fn await_room(&self, begun: &StartedTimeout<'_>) -> Result<(), MessageError> {
        match begun.wait(&[(self.socket(), Interest::Writable)])? {
            WakeReason::Ready(_) => Ok(()),
            WakeReason::TimedOut => Err(MessageError::TimedOut),
            WakeReason::Cancelled => Err(MessageError::Cancelled),
        }
    }

    fn send_frame(&self, message: &[u8], begun: &StartedTimeout<'_>) -> Result<(), MessageError> {
        let limit = self.inner.terms.frame_bytes_max;
        let head = match u32::try_from(message.len()) {
            Ok(length) if message.len() <= limit => length.to_be_bytes(),
            _ => return Err(MessageError::TooLarge { bytes: message.len(), limit }),
        };
        let number = loop {
            let mut outbox = locked(&self.inner.outbox);
            match self.push(&mut outbox).and_then(|()| self.begin_frame(&mut outbox, head, message)) {
                Ok(None) => return Ok(()),
                Ok(Some(number)) => break number,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    drop(outbox);
                    return Err(self.with_reason(error, begun).into());
                }
            }
            drop(outbox);
            self.await_room(begun)?;
        };
        self.send_tail(Some(number), begun)
    }

    /// Sends what fits, and leaves the rest, if there is one, in the outbox under a number.
    fn begin_frame(&self, outbox: &mut Outbox, head: [u8; HEAD_BYTES], message: &[u8]) -> io::Result<Option<u64>> {
        let sent = self.send_some(&[IoSlice::new(&head), IoSlice::new(message)], &[])?;
        if sent == HEAD_BYTES + message.len() {
            return Ok(None);
        }
        outbox.number += 1;
        outbox.sent = 0;
        outbox.rest = Vec::with_capacity(HEAD_BYTES + message.len() - sent);
        outbox.rest.extend_from_slice(head.get(sent..).unwrap_or_default());
        outbox.rest.extend_from_slice(message.get(sent.saturating_sub(HEAD_BYTES)..).unwrap_or_default());
        Ok(Some(outbox.number))
    }

    /// Waits until the rest with this number has gone, whoever sends it; or any rest.
    pub(super) fn send_tail(&self, number: Option<u64>, begun: &StartedTimeout<'_>) -> Result<(), MessageError> {
        loop {
            let mut outbox = locked(&self.inner.outbox);
            if number.is_some_and(|number| number != outbox.number) {
                return Ok(());
            }
            match self.push(&mut outbox) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    drop(outbox);
                    return Err(self.with_reason(error, begun).into());
                }
            }
            drop(outbox);
            match self.await_room(begun) {
                Err(MessageError::TimedOut | MessageError::Cancelled) => return Err(MessageError::Unfinished),
                other => other?,
            }
        }
    }

    pub(super) fn push_outbox(&self) -> io::Result<()> {
        self.push(&mut locked(&self.inner.outbox))
    }

    /// Sends the rest, without waiting: all of it, or `WouldBlock`.
    fn push(&self, outbox: &mut Outbox) -> io::Result<()> {
        while let Some(rest) = outbox.rest.get(outbox.sent..).filter(|rest| !rest.is_empty()) {
            match self.send_some(&[IoSlice::new(rest)], &[]) {
                Ok(sent) => outbox.sent += sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
                Err(error) => {
                    // Nobody will read this rest.
                    self.inner.was_reset.store(true, Ordering::Relaxed);
                    *outbox = Outbox { number: outbox.number, ..Outbox::default() };
                    return Err(error);
                }
            }
        }
        *outbox = Outbox { number: outbox.number, ..Outbox::default() };
        Ok(())
    }
}
