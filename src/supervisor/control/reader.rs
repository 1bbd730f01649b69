//! Who reads a control connection: the loop, or a caller that waits for its answer.
//!
//! An answer that goes through the loop wakes two threads, one after the other; one that its caller reads itself wakes one.
//! So the reading is a thing that exists once: whoever has it reads, and the loop is not told of what comes meanwhile.

use crate::wire::{
    framing::{
        Framing,
        batch::{FrameBatch, FrameChunk},
        deframer::Deframer,
        error::{FrameError, FrameErrorKind},
    },
    jsonrpc::message::RpcMessage,
};
use serde_json::value::RawValue;

/// The most that a caller reads at once.
const READ_BYTES: usize = 16 << 10;

/// The reading side of a connection.
#[derive(Debug)]
pub(crate) struct Reading {
    deframer: Deframer,
    batch: FrameBatch,
    /// What a caller has read that is no answer: the loop tells it before it reads on.
    pub(crate) unheard: Vec<Heard>,
    /// Where a caller reads to; kept for its room.
    scratch: Vec<u8>,
}

/// A line, understood or not.
#[derive(Debug)]
pub(crate) enum Heard {
    /// With the length of the line.
    Message(RpcMessage, usize),
    Fault(FrameError),
}

/// The bytes of a line, and where it begins in the connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RawLine<'a> {
    bytes: &'a [u8],
    offset: u64,
}

impl RawLine<'_> {
    /// No bytes: for lines whose bytes are not kept, since no fault can come of them any more.
    pub(crate) const NONE: RawLine<'static> = RawLine { bytes: &[], offset: 0 };

    fn heard(self) -> Heard {
        match RpcMessage::parse(self.bytes) {
            Some(packet) => Heard::Message(packet, self.bytes.len()),
            None => Heard::Fault(self.not_rpc()),
        }
    }

    /// The members of a batch, or the line itself.
    fn each(self, mut hear: impl FnMut(Self)) {
        let is_array = self.bytes.trim_ascii_start().starts_with(b"[");
        let members: Option<Vec<&RawValue>> = if is_array { serde_json::from_slice(self.bytes).ok() } else { None };
        match members {
            Some(members) if !members.is_empty() => {
                for member in members {
                    hear(RawLine { bytes: member.get().as_bytes(), offset: self.offset });
                }
            }
            _ => hear(self),
        }
    }

    /// A line that is no JSON-RPC, or answers no open request.
    pub(crate) fn not_rpc(self) -> FrameError {
        FrameError::new(FrameErrorKind::NotRpc, self.offset, self.bytes.len() as u64, self.bytes)
    }
}

impl Reading {
    /// With the bytes that were read behind the first `position`; no request was sent before them.
    pub(crate) fn begun(max_frame: usize, said: &[u8], position: u64) -> Self {
        let deframer = Deframer::new(Framing::Lines, max_frame).starting_at(position);
        let mut reading = Self { deframer, batch: FrameBatch::default(), unheard: Vec::new(), scratch: Vec::new() };
        if !said.is_empty() {
            reading.understand(said, |heard, line, unheard| {
                let is_answer =
                    matches!(heard, Heard::Message(RpcMessage::Response { .. } | RpcMessage::UnidentifiedError(_), _));
                unheard.push(if is_answer { Heard::Fault(line.not_rpc()) } else { heard });
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
    pub(crate) fn understand(&mut self, bytes: &[u8], mut hear: impl FnMut(Heard, RawLine<'_>, &mut Vec<Heard>)) {
        let Self { deframer, batch, unheard, scratch: _ } = self;
        if let Some((bytes, offset)) = deframer.whole_line(bytes) {
            return RawLine { bytes, offset }.each(|line| hear(line.heard(), line, unheard));
        }
        if bytes.is_empty() {
            deframer.finish(batch);
        } else {
            deframer.feed(bytes, batch);
        }
        for piece in batch.drain() {
            match piece {
                FrameChunk::Error(fault) => hear(Heard::Fault(fault), RawLine::NONE, unheard),
                FrameChunk::Frames { bytes, offset, spans } => {
                    for span in spans {
                        let line = RawLine { bytes: span.of(&bytes), offset: offset + span.start() as u64 };
                        line.each(|line| hear(line.heard(), line, unheard));
                    }
                }
            }
        }
    }
}
