//! A [`Deframer`] is fed with what one read brought, and says which whole frames lie in it. Frames that lie whole in one read
//! share one copy of that stretch of the read: one allocation and one `memcpy` for thousands of messages. Only a frame that
//! began in an earlier read is collected on its own.

use super::{
    Framing,
    batch::{FRAME_BYTES_MAX, FrameBatch, FrameCollector},
    content_length::ContentLengthParser,
    delimited::DelimitedFrames,
    header_framed::HeaderFramed,
    length_prefixed::LengthParser,
    text::TextLines,
};

/// FrameCollector a stream of bytes into frames, whatever pieces it arrives in.
#[derive(Debug)]
pub(crate) struct Deframer {
    splitter: Splitter,
    /// How many bytes of the stream were read.
    position: u64,
}

#[derive(Debug)]
enum Splitter {
    Delimited(DelimitedFrames),
    Text(TextLines),
    LengthPrefixed(HeaderFramed<LengthParser>),
    ContentLength(HeaderFramed<ContentLengthParser>),
}

impl Deframer {
    /// For messages: frames longer than `max_frame` bytes become faults.
    pub(crate) fn new(framing: Framing, max_frame: usize) -> Self {
        let max = max_frame.min(FRAME_BYTES_MAX);
        let splitter = match framing {
            Framing::Lines => Splitter::Delimited(DelimitedFrames::lines(max)),
            Framing::Nul => Splitter::Delimited(DelimitedFrames::nul(max)),
            Framing::LengthPrefixed => Splitter::LengthPrefixed(HeaderFramed::new(LengthParser::new(max), max)),
            Framing::ContentLength => Splitter::ContentLength(HeaderFramed::new(ContentLengthParser::default(), max)),
        };
        Self { splitter, position: 0 }
    }

    /// For captured output, of which nothing may be lost: blank lines are lines, a line longer than `max_line` bytes comes in
    /// pieces, and an unfinished last line is a line. Never gives a fault.
    pub(crate) fn text(max_line: usize) -> Self {
        Self { splitter: Splitter::Text(TextLines::new(max_line.clamp(1, FRAME_BYTES_MAX))), position: 0 }
    }

    /// Counts offsets from `position` on: so many bytes of the stream were read elsewhere.
    pub(crate) fn starting_at(mut self, position: u64) -> Self {
        self.position = position;
        self
    }

    /// Adds to `batch` what `read` completes, in the order of the stream. Each byte is looked at once, however the stream is
    /// cut into reads.
    pub(crate) fn feed(&mut self, read: &[u8], batch: &mut FrameBatch) {
        for part in read.chunks(FRAME_BYTES_MAX) {
            let mut frames = FrameCollector::new(part, self.position, batch);
            match &mut self.splitter {
                Splitter::Delimited(delimited) => delimited.feed(part, &mut frames),
                Splitter::Text(text) => text.feed(part, &mut frames),
                Splitter::LengthPrefixed(prefixed) => prefixed.feed(part, &mut frames),
                Splitter::ContentLength(prefixed) => prefixed.feed(part, &mut frames),
            }
            frames.close();
            self.position = self.position.saturating_add(part.len() as u64);
        }
    }

    /// What was read, if it is just one whole line, and its offset: the usual case of a conversation, which needs no copy.
    pub(crate) fn whole_line<'a>(&mut self, read: &'a [u8]) -> Option<(&'a [u8], u64)> {
        let Splitter::Delimited(delimited) = &self.splitter else { return None };
        let line = delimited.whole_line(read)?;
        let offset = self.position;
        self.position = self.position.saturating_add(read.len() as u64);
        Some((line, offset))
    }

    /// The stream has ended: adds what is to say of an unfinished frame.
    pub(crate) fn finish(&mut self, batch: &mut FrameBatch) {
        let mut frames = FrameCollector::new(&[], self.position, batch);
        match &mut self.splitter {
            Splitter::Delimited(delimited) => delimited.finish(&mut frames),
            Splitter::Text(text) => text.finish(&mut frames),
            Splitter::LengthPrefixed(prefixed) => prefixed.finish(&mut frames),
            Splitter::ContentLength(prefixed) => prefixed.finish(&mut frames),
        }
    }
}

#[cfg(test)]
impl Deframer {
    /// The memory an unfinished frame occupies, in bytes.
    pub(super) fn held_bytes(&self) -> usize {
        let tail = match &self.splitter {
            Splitter::Delimited(delimited) => &delimited.tail,
            Splitter::Text(text) => &text.tail,
            Splitter::LengthPrefixed(prefixed) => &prefixed.tail,
            Splitter::ContentLength(prefixed) => &prefixed.tail,
        };
        tail.capacity()
    }
}
