//! Splits a stream of bytes into frames.

use super::{
    Framing,
    batch::{FRAME_BYTES_MAX, FrameBatch, FrameCollector},
    content_length::ContentLengthParser,
    delimited::DelimitedFrames,
    header_framed::HeaderFramed,
    length_prefixed::LengthParser,
    text::TextLines,
};

/// Splits a stream of bytes into frames, independent of how the stream is divided into reads.
#[derive(Debug)]
pub(crate) struct Deframer {
    splitter: Splitter,
    /// The offset of the next read in the stream.
    position: u64,
}

#[derive(Debug)]
enum Splitter {
    Delimited(DelimitedFrames),
    Text(TextLines),
    /// Every read is a frame.
    Bytes,
    LengthPrefixed(HeaderFramed<LengthParser>),
    ContentLength(HeaderFramed<ContentLengthParser>),
}

impl Deframer {
    /// For messages. Frames longer than `max_frame` bytes become errors.
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

    /// For captured output, without loss: blank lines are lines, a line longer than `max_line` bytes is split, and an unfinished
    /// last line is a line. Never reports an error.
    pub(crate) fn text(max_line: usize) -> Self {
        Self { splitter: Splitter::Text(TextLines::new(max_line.clamp(1, FRAME_BYTES_MAX))), position: 0 }
    }

    /// For captured output that is not split: each read is a frame.
    pub(crate) fn bytes() -> Self {
        Self { splitter: Splitter::Bytes, position: 0 }
    }

    /// Counts offsets from `position`: the bytes before it were read elsewhere.
    pub(crate) fn starting_at(mut self, position: u64) -> Self {
        self.position = position;
        self
    }

    /// Adds to `batch` what `read` completes, in stream order. Examines each byte once, independent of how the stream is divided
    /// into reads.
    pub(crate) fn feed(&mut self, read: &[u8], batch: &mut FrameBatch) {
        for part in read.chunks(FRAME_BYTES_MAX) {
            let mut frames = FrameCollector::new(part, self.position, batch);
            match &mut self.splitter {
                Splitter::Delimited(delimited) => delimited.feed(part, &mut frames),
                Splitter::Text(text) => text.feed(part, &mut frames),
                Splitter::Bytes => frames.frame(0, part.len()),
                Splitter::LengthPrefixed(prefixed) => prefixed.feed(part, &mut frames),
                Splitter::ContentLength(prefixed) => prefixed.feed(part, &mut frames),
            }
            frames.close();
            self.position = self.position.saturating_add(part.len() as u64);
        }
    }

    /// Returns the line and its offset if `read` is exactly one line: the usual case of requests and answers, which needs no copy.
    pub(crate) fn whole_line<'a>(&mut self, read: &'a [u8]) -> Option<(&'a [u8], u64)> {
        let Splitter::Delimited(delimited) = &self.splitter else { return None };
        let line = delimited.whole_line(read)?;
        let offset = self.position;
        self.position = self.position.saturating_add(read.len() as u64);
        Some((line, offset))
    }

    /// Handles the end of the stream: adds the error for an incomplete frame, or the last line.
    pub(crate) fn finish(&mut self, batch: &mut FrameBatch) {
        let mut frames = FrameCollector::new(&[], self.position, batch);
        match &mut self.splitter {
            Splitter::Delimited(delimited) => delimited.finish(&mut frames),
            Splitter::Text(text) => text.finish(&mut frames),
            Splitter::Bytes => {}
            Splitter::LengthPrefixed(prefixed) => prefixed.finish(&mut frames),
            Splitter::ContentLength(prefixed) => prefixed.finish(&mut frames),
        }
    }
}

#[cfg(test)]
impl Deframer {
    /// The memory of an incomplete frame, in bytes.
    pub(super) fn held_bytes(&self) -> usize {
        let partial = match &self.splitter {
            Splitter::Delimited(delimited) => &delimited.partial,
            Splitter::Text(text) => &text.partial,
            Splitter::Bytes => return 0,
            Splitter::LengthPrefixed(prefixed) => &prefixed.partial,
            Splitter::ContentLength(prefixed) => &prefixed.partial,
        };
        partial.capacity()
    }
}
