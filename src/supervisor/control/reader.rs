//! Who reads a control connection: the loop, or a caller that waits for its answer.
//!
//! An answer that goes through the loop wakes two threads, one after the other; one that its caller reads itself wakes one.
//! So the reading is a thing that exists once: whoever has it reads, and the loop is not told of what comes meanwhile.

use crate::wire::jsonrpc::{
    message::RpcMessage,
    reader::{RpcInput, RpcLine, RpcReader},
};

/// The most that a caller reads at once.
const READ_BYTES: usize = 16 << 10;

/// The reading side of a connection.
#[derive(Debug)]
pub(crate) struct FrameReader {
    reader: RpcReader,
    /// What a caller has read that is no answer: the loop tells it before it reads on.
    pub(crate) pending: Vec<RpcInput>,
    /// Where a caller reads to; kept for its room.
    scratch: Vec<u8>,
}

impl FrameReader {
    /// With the bytes that were read behind the first `position`; no request was sent before them.
    pub(crate) fn starting_with(max_message_size: usize, said: &[u8], position: u64) -> Self {
        let reader = RpcReader::new(max_message_size).starting_at(position);
        let mut reading = Self { reader, pending: Vec::new(), scratch: Vec::new() };
        if !said.is_empty() {
            reading.feed(said, |input, line, pending| {
                let is_answer = matches!(
                    input,
                    RpcInput::Message(RpcMessage::Response { .. } | RpcMessage::UnidentifiedError(_), _)
                );
                pending.push(if is_answer { RpcInput::Error(line.not_rpc()) } else { input });
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

    /// Understands what was read, each line with its bytes; no bytes are the end of the connection.
    pub(crate) fn feed(&mut self, bytes: &[u8], mut receive: impl FnMut(RpcInput, RpcLine<'_>, &mut Vec<RpcInput>)) {
        let Self { reader, pending, scratch: _ } = self;
        reader.read(bytes, |input, line| receive(input, line, pending));
    }
}
