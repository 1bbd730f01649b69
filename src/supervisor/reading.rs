//! Who reads a control connection: the loop, or a caller that waits for its answer.
//!
//! An answer that goes through the loop wakes two threads, one after the other; one that its caller reads itself wakes one.
//! So the reading is a thing that exists once: whoever has it reads, and the loop is not told of what comes meanwhile.

use crate::wire::{
    frame::{Batch, Deframer, Fault, FaultKind, Framing, Piece},
    rpc::{self, Packet},
};

/// The most that a caller reads at once.
const READ_BYTES: usize = 16 << 10;

/// The reading side of a connection.
#[derive(Debug)]
pub(super) struct Reading {
    deframer: Deframer,
    batch: Batch,
    /// What a caller has read that is no answer: the loop tells it before it reads on.
    pub(super) unheard: Vec<Heard>,
    /// Where a caller reads to; kept for its room.
    scratch: Vec<u8>,
}

/// A line, understood or not.
#[derive(Debug)]
pub(super) enum Heard {
    /// With the length of the line.
    Packet(Packet, usize),
    Fault(Fault),
}

impl Reading {
    fn new(max_frame: usize) -> Self {
        let deframer = Deframer::new(Framing::Lines, max_frame);
        Self { deframer, batch: Batch::default(), unheard: Vec::new(), scratch: Vec::new() }
    }

    /// With what was read already; nobody has been asked anything yet.
    pub(super) fn begun(max_frame: usize, said: &[u8]) -> Self {
        let mut reading = Self::new(max_frame);
        if !said.is_empty() {
            reading.understand(said, |heard, line, unheard| {
                let is_answer = matches!(heard, Heard::Packet(Packet::Response { .. }, _));
                unheard.push(if is_answer { Heard::Fault(not_rpc(line)) } else { heard });
            });
        }
        reading
    }

    pub(super) fn take_scratch(&mut self) -> Vec<u8> {
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.resize(READ_BYTES, 0);
        scratch
    }

    pub(super) fn put_scratch(&mut self, scratch: Vec<u8>) {
        self.scratch = scratch;
    }

    /// Understands what was read, each line with its bytes; no bytes are the end of the connection.
    pub(super) fn understand(&mut self, bytes: &[u8], mut hear: impl FnMut(Heard, &[u8], &mut Vec<Heard>)) {
        let Self { deframer, batch, unheard, scratch: _ } = self;
        if let Some(line) = deframer.whole_line(bytes) {
            return hear(heard(line), line, unheard);
        }
        if bytes.is_empty() {
            deframer.finish(batch);
        } else {
            deframer.feed(bytes, batch);
        }
        for piece in batch.drain() {
            match piece {
                Piece::Fault(fault) => hear(Heard::Fault(fault), &[], unheard),
                Piece::Frames { bytes, spans } => {
                    for span in spans {
                        let line = bytes.get(span.start as usize..span.end as usize).unwrap_or_default();
                        hear(heard(line), line, unheard);
                    }
                }
            }
        }
    }
}

fn heard(line: &[u8]) -> Heard {
    match rpc::parse(line) {
        Ok(packet) => Heard::Packet(packet, line.len()),
        Err(_) => Heard::Fault(not_rpc(line)),
    }
}

/// A line that is no JSON-RPC, or answers what nobody has asked.
pub(super) fn not_rpc(line: &[u8]) -> Fault {
    Fault::new(FaultKind::NotRpc, line.len() as u64, line)
}
