//! Frames that begin with their size.
//!
//! A header is looked for everywhere, also inside values: neither framing has headers that can stand in JSON. So a wrong size is
//! noticed, and reading goes on, where the next header begins.

use std::fmt;

use super::{
    batch::FrameCollector,
    error::{FrameError, FrameErrorKind},
    partial_frame::PartialFrame,
};

/// Reads headers of one kind, and recognizes them among other bytes. What it says does not depend on how the stream is cut into
/// reads; `at` is the offset in the stream of the first of `bytes`.
pub(super) trait HeaderParser: fmt::Debug {
    /// Reads on in a header, which may have been found by [`seek`](Self::seek). Says how many bytes it took.
    fn read(&mut self, bytes: &[u8], at: u64) -> (usize, HeaderProgress);

    /// Looks for a header among bytes that should have none. Says how many bytes it took; [`read`](Self::read) goes on there.
    /// After a header that was read is [accepted](Self::accept), nothing is left of it here.
    fn seek(&mut self, bytes: &[u8], at: u64) -> Option<usize>;

    /// The header was read: a value follows, in which no other may stand.
    fn accept(&mut self);

    /// What was read is no size, though it can be read as one: the next header may begin in it.
    fn is_text_instead(&mut self) -> bool;

    /// Whether the last bytes that [`seek`](Self::seek) saw can be the beginning of a header.
    fn may_be_inside(&self) -> bool;

    /// Where the header that is read, or was found, begins.
    fn start(&self) -> u64;

    /// Its first bytes, as far as they are kept for a fault.
    fn text(&self) -> &[u8];

    /// Forgets everything.
    fn reset(&mut self);
}

/// What has come of a header.
#[derive(Debug)]
pub(super) enum HeaderProgress {
    /// More bytes are needed.
    Incomplete,
    /// It is whole, and the value has this size.
    Size(u64),
    /// There is none. [`HeaderParser::seek`] goes on.
    Invalid,
    /// The bytes before another header, which begins at [`HeaderParser::start`]. They began at `start`, with `text`.
    Damage { start: u64, text: Vec<u8> },
}

/// Reads a size, then as many bytes.
#[derive(Debug)]
pub(super) struct HeaderFramed<H> {
    parser: H,
    state: State,
    /// The longest frame, in bytes.
    max: usize,
    /// Where the frame whose value is read begins.
    start: u64,
    pub(super) tail: PartialFrame,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Header,
    /// Within the value of a frame of this size. The tail has what there is of it.
    Value {
        size: u64,
    },
    /// Within a value that is too long, which was reported; so many bytes of it are missing.
    Skipping {
        left: u64,
    },
    /// Within damage that was reported.
    Resyncing,
}

impl<H: HeaderParser> HeaderFramed<H> {
    pub(super) fn new(parser: H, max: usize) -> Self {
        Self { parser, state: State::Header, max, start: 0, tail: PartialFrame::new(max) }
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
            State::Header if !self.parser.text().is_empty() => {
                frames.damage(FrameErrorKind::Truncated, (self.parser.start(), end), self.parser.text());
            }
            State::Value { .. } => {
                let bytes = self.tail.bytes();
                frames.fault(FrameError::new(FrameErrorKind::Truncated, self.start, bytes.len() as u64, bytes));
            }
            State::Header | State::Skipping { .. } | State::Resyncing => {}
        }
        self.parser.reset();
        self.state = State::Header;
        self.tail.clear();
    }

    /// Reads a header. Says how many bytes it took.
    fn header(&mut self, at: usize, rest: &[u8], frames: &mut FrameCollector<'_>) -> usize {
        let (used, header) = self.parser.read(rest, frames.offset(at));
        match header {
            HeaderProgress::Incomplete => used,
            HeaderProgress::Size(size) => used.saturating_add(self.begin(
                size,
                at.saturating_add(used),
                rest.get(used..).unwrap_or_default(),
                frames,
            )),
            HeaderProgress::Invalid => {
                let (start, text) = (self.parser.start(), self.parser.text().to_vec());
                let (more, end) = self.resync(at.saturating_add(used), rest.get(used..).unwrap_or_default(), frames);
                frames.damage(FrameErrorKind::InvalidHeader, (start, end), &text);
                used.saturating_add(more)
            }
            HeaderProgress::Damage { start, text } => {
                frames.damage(FrameErrorKind::InvalidHeader, (start, self.parser.start()), &text);
                used
            }
        }
    }

    /// A value of this size begins. Says how many bytes of it were taken.
    fn begin(&mut self, size: u64, at: usize, rest: &[u8], frames: &mut FrameCollector<'_>) -> usize {
        self.start = self.parser.start();
        if size <= self.max as u64 {
            // No bytes are not JSON; they are passed over like a blank line.
            if size > 0 {
                self.state = State::Value { size };
            }
            self.parser.accept();
            return 0;
        }
        let text = self.parser.text().to_vec();
        let (used, end) = if self.parser.is_text_instead() {
            self.resync(at, rest, frames)
        } else {
            self.parser.accept();
            self.state = State::Skipping { left: size };
            (0, frames.offset(at).saturating_add(size))
        };
        let excerpt = frames.excerpt(self.start, end, &text);
        frames.fault(FrameError::new(FrameErrorKind::TooLong { limit: self.max }, self.start, size, &excerpt));
        used
    }

    /// Damage has begun. Looks for the next header, and says how many bytes that took, and where the damage ends that is here.
    fn resync(&mut self, at: usize, rest: &[u8], frames: &FrameCollector<'_>) -> (usize, u64) {
        let used = self.seek(at, rest, frames);
        let is_found = matches!(self.state, State::Header);
        (used, if is_found { self.parser.start() } else { frames.offset(at.saturating_add(used)) })
    }

    /// Reads of a value what is here of it. Says how many bytes it took.
    fn value(&mut self, size: u64, at: usize, rest: &[u8], frames: &mut FrameCollector<'_>) -> usize {
        let held = self.tail.bytes().len();
        let missing = usize::try_from(size).unwrap_or(usize::MAX).saturating_sub(held);
        let part = rest.get(..missing).unwrap_or(rest);
        let begin = frames.offset(at).saturating_sub(held as u64);
        let found = self.parser.seek(part, frames.offset(at));
        let is_whole = part.len() == missing;
        if found.is_some() || is_whole && self.parser.may_be_inside() {
            let length = self.parser.start().saturating_sub(begin);
            let excerpt = frames.excerpt(begin, self.parser.start(), self.tail.bytes());
            frames.fault(FrameError::new(FrameErrorKind::Torn { size }, self.start, length, &excerpt));
            self.tail.clear();
            self.state = if found.is_some() { State::Header } else { State::Resyncing };
        } else if !is_whole {
            self.tail.push(part);
        } else {
            self.state = State::Header;
            if held == 0 {
                frames.frame(at, at.saturating_add(missing));
            } else {
                self.tail.push(part);
                frames.own(self.tail.take(0..self.max), begin);
            }
        }
        found.unwrap_or(part.len())
    }

    /// Passes over a value that is too long. Says how many bytes it took.
    fn skip(&mut self, left: u64, at: usize, rest: &[u8], frames: &FrameCollector<'_>) -> usize {
        let part = usize::try_from(left).ok().and_then(|left| rest.get(..left)).unwrap_or(rest);
        if let Some(used) = self.parser.seek(part, frames.offset(at)) {
            self.state = State::Header;
            return used;
        }
        let left = left.saturating_sub(part.len() as u64);
        self.state = match left {
            0 if self.parser.may_be_inside() => State::Resyncing,
            0 => State::Header,
            left => State::Skipping { left },
        };
        part.len()
    }

    /// Looks for the next header. Says how many bytes it took.
    fn seek(&mut self, at: usize, rest: &[u8], frames: &FrameCollector<'_>) -> usize {
        let found = self.parser.seek(rest, frames.offset(at));
        self.state = if found.is_some() { State::Header } else { State::Resyncing };
        found.unwrap_or(rest.len())
    }
}
