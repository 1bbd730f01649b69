//! Frames with a header that announces their size.
//!
//! Headers are searched for everywhere, even inside values: the headers of both framings cannot occur in JSON. A wrong size is
//! therefore detected where the next header begins, and reading resumes there.

use std::fmt;

use super::{
    batch::FrameCollector,
    error::{FrameError, FrameErrorKind},
    partial_frame::PartialFrame,
};

/// Parses headers of one kind and finds them among other bytes. The results do not depend on how the stream is divided into
/// reads. `at` is the offset of `bytes` in the stream.
pub(super) trait HeaderParser: fmt::Debug {
    /// Continues with a header, which [`find`](Self::find) may have found. Returns the number of bytes consumed.
    fn parse(&mut self, bytes: &[u8], at: u64) -> (usize, HeaderProgress);

    /// Searches for a header among bytes that should contain none. Returns the number of bytes consumed; [`parse`](Self::parse)
    /// continues there. Bytes of a header that was [accepted](Self::accept) are not considered again.
    fn find(&mut self, bytes: &[u8], at: u64) -> Option<usize>;

    /// Accepts the header: its value follows.
    fn accept(&mut self);

    /// Whether the bytes parsed as a size are text instead. Then the next header may begin among them.
    fn reject(&mut self) -> bool;

    /// Whether the last bytes that [`find`](Self::find) examined may be the start of a header.
    fn may_have_begun(&self) -> bool;

    /// The offset of the current header.
    fn start(&self) -> u64;

    /// Its first bytes, for errors.
    fn excerpt(&self) -> &[u8];

    /// Returns to the initial state.
    fn reset(&mut self);
}

/// The state of a header after more bytes.
#[derive(Debug)]
pub(super) enum HeaderProgress {
    /// More bytes are required.
    Incomplete,
    /// The header is complete and announces this size.
    Size(u64),
    /// These bytes are not a header. [`HeaderParser::find`] continues.
    Invalid,
    /// Bytes precede the header, which begins at [`HeaderParser::start`]. They begin at `start`, with `text`.
    Damage { start: u64, text: Vec<u8> },
}

/// Splits a stream of headers and values.
#[derive(Debug)]
pub(super) struct HeaderFramed<H> {
    parser: H,
    state: State,
    /// The longest frame, in bytes.
    max: usize,
    /// The offset of the frame whose value is being read.
    start: u64,
    pub(super) partial: PartialFrame,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Header,
    /// Within a value of this size. `partial` has its bytes so far.
    Value {
        size: u64,
    },
    /// Within a value that is too long and was reported. `left` bytes of it are missing.
    Skipping {
        left: u64,
    },
    /// Within damaged bytes that were reported.
    Resyncing,
}

impl<H: HeaderParser> HeaderFramed<H> {
    pub(super) fn new(parser: H, max: usize) -> Self {
        Self { parser, state: State::Header, max, start: 0, partial: PartialFrame::new(max) }
    }

    pub(super) fn feed(&mut self, read: &[u8], frames: &mut FrameCollector<'_>) {
        let mut at = 0_usize;
        while let Some(rest) = read.get(at..).filter(|rest| !rest.is_empty()) {
            let used = match self.state {
                State::Header => self.header(at, rest, frames),
                State::Value { size } => self.value(size, at, rest, frames),
                State::Skipping { left } => self.skip(left, at, rest, frames),
                State::Resyncing => self.seek(at, rest, frames),
            };
            at = at.saturating_add(used);
        }
    }

    pub(super) fn finish(&mut self, frames: &mut FrameCollector<'_>) {
        let end = frames.offset(0);
        match self.state {
            State::Header if !self.parser.excerpt().is_empty() => {
                frames.error_at(FrameErrorKind::Truncated, (self.parser.start(), end), self.parser.excerpt());
            }
            State::Value { .. } => {
                let bytes = self.partial.bytes();
                frames.error(FrameError::new(FrameErrorKind::Truncated, self.start, bytes.len() as u64, bytes));
            }
            State::Header | State::Skipping { .. } | State::Resyncing => {}
        }
        self.parser.reset();
        self.state = State::Header;
        self.partial.clear();
    }

    /// Continues with a header. Returns the number of bytes consumed.
    fn header(&mut self, at: usize, rest: &[u8], frames: &mut FrameCollector<'_>) -> usize {
        let (used, header) = self.parser.parse(rest, frames.offset(at));
        match header {
            HeaderProgress::Incomplete => used,
            HeaderProgress::Size(size) => used.saturating_add(self.begin(
                size,
                at.saturating_add(used),
                rest.get(used..).unwrap_or_default(),
                frames,
            )),
            HeaderProgress::Invalid => {
                let (start, text) = (self.parser.start(), self.parser.excerpt().to_vec());
                let (more, end) = self.resync(at.saturating_add(used), rest.get(used..).unwrap_or_default(), frames);
                frames.error_at(FrameErrorKind::InvalidHeader, (start, end), &text);
                used.saturating_add(more)
            }
            HeaderProgress::Damage { start, text } => {
                frames.error_at(FrameErrorKind::InvalidHeader, (start, self.parser.start()), &text);
                used
            }
        }
    }

    /// Begins a value of this size. Returns the number of bytes consumed.
    fn begin(&mut self, size: u64, at: usize, rest: &[u8], frames: &mut FrameCollector<'_>) -> usize {
        self.start = self.parser.start();
        if size <= self.max as u64 {
            // An empty value is skipped, as a blank line is.
            if size > 0 {
                self.state = State::Value { size };
            }
            self.parser.accept();
            return 0;
        }
        let text = self.parser.excerpt().to_vec();
        let (used, end) = if self.parser.reject() {
            self.resync(at, rest, frames)
        } else {
            self.parser.accept();
            self.state = State::Skipping { left: size };
            (0, frames.offset(at).saturating_add(size))
        };
        let excerpt = frames.excerpt(self.start, end, &text);
        frames.error(FrameError::new(FrameErrorKind::TooLong { limit: self.max }, self.start, size, &excerpt));
        used
    }

    /// Searches for the next header after damaged bytes. Returns the number of bytes consumed, and the offset up to which the
    /// bytes are damaged.
    fn resync(&mut self, at: usize, rest: &[u8], frames: &FrameCollector<'_>) -> (usize, u64) {
        let used = self.seek(at, rest, frames);
        let is_found = matches!(self.state, State::Header);
        (used, if is_found { self.parser.start() } else { frames.offset(at.saturating_add(used)) })
    }

    /// Continues with a value. Returns the number of bytes consumed.
    fn value(&mut self, size: u64, at: usize, rest: &[u8], frames: &mut FrameCollector<'_>) -> usize {
        let held = self.partial.bytes().len();
        let missing = usize::try_from(size).unwrap_or(usize::MAX).saturating_sub(held);
        let part = rest.get(..missing).unwrap_or(rest);
        let begin = frames.offset(at).saturating_sub(held as u64);
        let found = self.parser.find(part, frames.offset(at));
        let is_whole = part.len() == missing;
        if found.is_some() || is_whole && self.parser.may_have_begun() {
            let length = self.parser.start().saturating_sub(begin);
            let excerpt = frames.excerpt(begin, self.parser.start(), self.partial.bytes());
            frames.error(FrameError::new(FrameErrorKind::Torn { size }, self.start, length, &excerpt));
            self.partial.clear();
            self.state = if found.is_some() { State::Header } else { State::Resyncing };
        } else if !is_whole {
            self.partial.push(part);
        } else {
            self.state = State::Header;
            if held == 0 {
                frames.frame(at, at.saturating_add(missing));
            } else {
                self.partial.push(part);
                frames.own(self.partial.take(0..self.max), begin);
            }
        }
        found.unwrap_or(part.len())
    }

    /// Skips bytes of a value that is too long. Returns the number of bytes consumed.
    fn skip(&mut self, left: u64, at: usize, rest: &[u8], frames: &FrameCollector<'_>) -> usize {
        let part = usize::try_from(left).ok().and_then(|left| rest.get(..left)).unwrap_or(rest);
        if let Some(used) = self.parser.find(part, frames.offset(at)) {
            self.state = State::Header;
            return used;
        }
        let left = left.saturating_sub(part.len() as u64);
        self.state = match left {
            0 if self.parser.may_have_begun() => State::Resyncing,
            0 => State::Header,
            left => State::Skipping { left },
        };
        part.len()
    }

    /// Searches for the next header. Returns the number of bytes consumed.
    fn seek(&mut self, at: usize, rest: &[u8], frames: &FrameCollector<'_>) -> usize {
        let found = self.parser.find(rest, frames.offset(at));
        self.state = if found.is_some() { State::Header } else { State::Resyncing };
        found.unwrap_or(rest.len())
    }
}
