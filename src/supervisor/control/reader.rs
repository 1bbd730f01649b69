//! The reading side of a control connection, owned by the loop or by a caller that waits for its response.
//!
//! A response that passes through the loop wakes two threads, one after the other; a response that its caller reads wakes one. So the
//! reading side is a value that exists once: its owner reads, and the loop is not notified of what arrives meanwhile.

use crate::wire::{
    framing::Framing,
    jsonrpc::{
        message::RpcMessage,
        reader::{RpcInput, RpcLine, RpcReader},
    },
};

/// The most bytes that a caller reads at once.
const READ_BYTES: usize = 16 << 10;

/// The reading side of a connection.
#[derive(Debug)]
pub(crate) struct FrameReader {
    reader: RpcReader,
    /// Messages other than responses that a caller has read: the loop processes them before it reads on.
    pub(crate) pending: Vec<RpcInput>,
    /// The buffer of callers; reused to save allocations.
    scratch: Vec<u8>,
}

impl FrameReader {
    pub(crate) fn new(framing: Framing, max_message_size: usize) -> Self {
        Self { reader: RpcReader::new(framing, max_message_size), pending: Vec::new(), scratch: Vec::new() }
    }

    /// Starts with the bytes that were read after the first `position` bytes; no request was sent before them.
    pub(crate) fn starting_with(max_message_size: usize, received: &[u8], position: u64) -> Self {
        let reader = RpcReader::new(Framing::Lines, max_message_size).starting_at(position);
        let mut reading = Self { reader, pending: Vec::new(), scratch: Vec::new() };
        if !received.is_empty() {
            reading.feed(received, |input, line, pending| {
                let is_answer = matches!(
                    input,
                    RpcInput::Message(RpcMessage::Response { .. } | RpcMessage::UnidentifiedError(_), _)
                );
                pending.push(if is_answer { RpcInput::Error(line.unexpected_answer()) } else { input });
            });
        }
        reading
    }

    pub(crate) fn take_scratch(&mut self) -> Vec<u8> {
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.resize(READ_BYTES, 0);
        scratch
    }

    pub(crate) fn put_scratch(&mut self, scratch: Vec<u8>) {
        self.scratch = scratch;
    }

    /// Decodes what was read, each line with its bytes; no bytes mean the end of the connection.
    pub(crate) fn feed(&mut self, bytes: &[u8], mut receive: impl FnMut(RpcInput, RpcLine<'_>, &mut Vec<RpcInput>)) {
        let Self { reader, pending, scratch: _ } = self;
        reader.read(bytes, |input, line| receive(input, line, pending));
    }
}
