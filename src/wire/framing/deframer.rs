//! A [`Deframer`] is fed with what one read brought, and says which whole frames lie in it. Frames that lie whole in one read
//! share one copy of that stretch of the read: one allocation and one `memcpy` for thousands of messages. Only a frame that
//! began in an earlier read is collected on its own.

use super::{
    Framing,
    batch::{Batch, Cuts, FRAME_BYTES_MAX},
    content_length::ContentLength,
    delimited::Delimited,
    header_framed::Prefixed,
    length_prefixed::Length32,
    text::Text,
};

/// Cuts a stream of bytes into frames, whatever pieces it arrives in.
#[derive(Debug)]
pub(crate) struct Deframer {
    cutter: Cutter,
    /// How many bytes of the stream were read.
    position: u64,
}

#[derive(Debug)]
enum Cutter {
    Delimited(Delimited),
    Text(Text),
    Length32(Prefixed<Length32>),
    ContentLength(Prefixed<ContentLength>),
}

impl Deframer {
    /// For messages: frames longer than `max_frame` bytes become faults.
    pub(crate) fn new(framing: Framing, max_frame: usize) -> Self {
        let max = max_frame.min(FRAME_BYTES_MAX);
        let cutter = match framing {
            Framing::Lines => Cutter::Delimited(Delimited::lines(max)),
            Framing::Nul => Cutter::Delimited(Delimited::nul(max)),
            Framing::LengthPrefixed => Cutter::Length32(Prefixed::new(Length32::new(max), max)),
            Framing::ContentLength => Cutter::ContentLength(Prefixed::new(ContentLength::default(), max)),
        };
        Self { cutter, position: 0 }
    }

    /// For captured output, of which nothing may be lost: blank lines are lines, a line longer than `max_line` bytes comes in
    /// pieces, and an unfinished last line is a line. Never gives a fault.
    pub(crate) fn text(max_line: usize) -> Self {
        Self { cutter: Cutter::Text(Text::new(max_line.clamp(1, FRAME_BYTES_MAX))), position: 0 }
    }

    /// Counts offsets from `position` on: so many bytes of the stream were read elsewhere.
    pub(crate) fn starting_at(mut self, position: u64) -> Self {
        self.position = position;
        self
    }

    /// Adds to `batch` what `read` completes, in the order of the stream. Each byte is looked at once, however the stream is
    /// cut into reads.
    pub(crate) fn feed(&mut self, read: &[u8], batch: &mut Batch) {
        for part in read.chunks(FRAME_BYTES_MAX) {
            let mut cuts = Cuts::new(part, self.position, batch);
            match &mut self.cutter {
                Cutter::Delimited(delimited) => delimited.feed(part, &mut cuts),
                Cutter::Text(text) => text.feed(part, &mut cuts),
                Cutter::Length32(prefixed) => prefixed.feed(part, &mut cuts),
                Cutter::ContentLength(prefixed) => prefixed.feed(part, &mut cuts),
            }
            cuts.close();
            self.position = self.position.saturating_add(part.len() as u64);
        }
    }

    /// What was read, if it is just one whole line, and its offset: the usual case of a conversation, which needs no copy.
    pub(crate) fn whole_line<'a>(&mut self, read: &'a [u8]) -> Option<(&'a [u8], u64)> {
        let Cutter::Delimited(delimited) = &self.cutter else { return None };
        let line = delimited.whole_line(read)?;
        let offset = self.position;
        self.position = self.position.saturating_add(read.len() as u64);
        Some((line, offset))
    }

    /// The stream has ended: adds what is to say of an unfinished frame.
    pub(crate) fn finish(&mut self, batch: &mut Batch) {
        let mut cuts = Cuts::new(&[], self.position, batch);
        match &mut self.cutter {
            Cutter::Delimited(delimited) => delimited.finish(&mut cuts),
            Cutter::Text(text) => text.finish(&mut cuts),
            Cutter::Length32(prefixed) => prefixed.finish(&mut cuts),
            Cutter::ContentLength(prefixed) => prefixed.finish(&mut cuts),
        }
    }
}

#[cfg(test)]
impl Deframer {
    /// The memory an unfinished frame occupies, in bytes.
    pub(super) fn held_bytes(&self) -> usize {
        let tail = match &self.cutter {
            Cutter::Delimited(delimited) => &delimited.tail,
            Cutter::Text(text) => &text.tail,
            Cutter::Length32(prefixed) => &prefixed.tail,
            Cutter::ContentLength(prefixed) => &prefixed.tail,
        };
        tail.capacity()
    }
}
