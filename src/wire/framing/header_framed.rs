//! Frames that begin with their size.
//!
//! A header is looked for everywhere, also inside values: neither framing has headers that can stand in JSON. So a wrong size is
//! noticed, and reading goes on, where the next header begins.

use std::fmt;

use super::{
    batch::Cuts,
    error::{FrameError, FrameErrorKind},
    partial_frame::Tail,
};

/// Reads headers of one kind, and recognizes them among other bytes. What it says does not depend on how the stream is cut into
/// reads; `at` is the offset in the stream of the first of `bytes`.
pub(super) trait Headers: fmt::Debug {
    /// Reads on in a header, which may have been found by [`seek`](Self::seek). Says how many bytes it took.
    fn read(&mut self, bytes: &[u8], at: u64) -> (usize, Header);

    /// Looks for a header among bytes that should have none. Says how many bytes it took; [`read`](Self::read) goes on there.
    /// After a header that was read is [done](Self::done), nothing is left of it here.
    fn seek(&mut self, bytes: &[u8], at: u64) -> Option<usize>;

    /// The header was read: a value follows, in which no other may stand.
    fn done(&mut self);

    /// What was read is no size, though it can be read as one: the next header may begin in it.
    fn disbelieve(&mut self) -> bool;

    /// Whether the last bytes that [`seek`](Self::seek) saw can be the beginning of a header.
    fn is_begun(&self) -> bool;

    /// Where the header that is read, or was found, begins.
    fn start(&self) -> u64;

    /// Its first bytes, as far as they are kept for a fault.
    fn text(&self) -> &[u8];

    /// Forgets everything.
    fn reset(&mut self);
}

/// What has come of a header.
#[derive(Debug)]
pub(super) enum Header {
    /// More bytes are needed.
    Open,
    /// It is whole, and the value has this size.
    Size(u64),
    /// There is none. [`Headers::seek`] goes on.
    Bad,
    /// The bytes before another header, which begins at [`Headers::start`]. They began at `start`, with `text`.
    Damage { start: u64, text: Vec<u8> },
}

/// Reads a size, then as many bytes.
#[derive(Debug)]
pub(super) struct Prefixed<H> {
    headers: H,
    state: State,
    /// The longest frame, in bytes.
    max: usize,
    /// Where the frame whose value is read begins.
    start: u64,
    pub(super) tail: Tail,
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
    Lost,
}

impl<H: Headers> Prefixed<H> {
    pub(super) fn new(headers: H, max: usize) -> Self {
        Self { headers, state: State::Header, max, start: 0, tail: Tail::new(max) }
    }

    pub(super) fn feed(&mut self, read: &[u8], cuts: &mut Cuts<'_>) {
        let mut at = 0_usize;
        while let Some(rest) = read.get(at..).filter(|rest| !rest.is_empty()) {
            let used = match self.state {
                State::Header => self.header(at, rest, cuts),
                State::Value { size } => self.value(size, at, rest, cuts),
                State::Skipping { left } => self.skip(left, at, rest, cuts),
                State::Lost => self.seek(at, rest, cuts),
            };
            at = at.saturating_add(used);
        }
    }

    pub(super) fn finish(&mut self, cuts: &mut Cuts<'_>) {
        let end = cuts.offset(0);
        match self.state {
            State::Header if !self.headers.text().is_empty() => {
                cuts.damage(FrameErrorKind::Truncated, (self.headers.start(), end), self.headers.text());
            }
            State::Value { .. } => {
                let bytes = self.tail.bytes();
                cuts.fault(FrameError::new(FrameErrorKind::Truncated, self.start, bytes.len() as u64, bytes));
            }
            State::Header | State::Skipping { .. } | State::Lost => {}
        }
        self.headers.reset();
        self.state = State::Header;
        self.tail.clear();
    }

    /// Reads a header. Says how many bytes it took.
    fn header(&mut self, at: usize, rest: &[u8], cuts: &mut Cuts<'_>) -> usize {
        let (used, header) = self.headers.read(rest, cuts.offset(at));
        match header {
            Header::Open => used,
            Header::Size(size) => used.saturating_add(self.begin(
                size,
                at.saturating_add(used),
                rest.get(used..).unwrap_or_default(),
                cuts,
            )),
            Header::Bad => {
                let (start, text) = (self.headers.start(), self.headers.text().to_vec());
                let (more, end) = self.lose(at.saturating_add(used), rest.get(used..).unwrap_or_default(), cuts);
                cuts.damage(FrameErrorKind::BadHeader, (start, end), &text);
                used.saturating_add(more)
            }
            Header::Damage { start, text } => {
                cuts.damage(FrameErrorKind::BadHeader, (start, self.headers.start()), &text);
                used
            }
        }
    }

    /// A value of this size begins. Says how many bytes of it were taken.
    fn begin(&mut self, size: u64, at: usize, rest: &[u8], cuts: &mut Cuts<'_>) -> usize {
        self.start = self.headers.start();
        if size <= self.max as u64 {
            // No bytes are not JSON; they are passed over like a blank line.
            if size > 0 {
                self.state = State::Value { size };
            }
            self.headers.done();
            return 0;
        }
        let text = self.headers.text().to_vec();
        let (used, end) = if self.headers.disbelieve() {
            self.lose(at, rest, cuts)
        } else {
            self.headers.done();
            self.state = State::Skipping { left: size };
            (0, cuts.offset(at).saturating_add(size))
        };
        let excerpt = cuts.excerpt(self.start, end, &text);
        cuts.fault(FrameError::new(FrameErrorKind::TooLong { limit: self.max }, self.start, size, &excerpt));
        used
    }

    /// Damage has begun. Looks for the next header, and says how many bytes that took, and where the damage ends that is here.
    fn lose(&mut self, at: usize, rest: &[u8], cuts: &Cuts<'_>) -> (usize, u64) {
        let used = self.seek(at, rest, cuts);
        let is_found = matches!(self.state, State::Header);
        (used, if is_found { self.headers.start() } else { cuts.offset(at.saturating_add(used)) })
    }

    /// Reads of a value what is here of it. Says how many bytes it took.
    fn value(&mut self, size: u64, at: usize, rest: &[u8], cuts: &mut Cuts<'_>) -> usize {
        let held = self.tail.bytes().len();
        let missing = usize::try_from(size).unwrap_or(usize::MAX).saturating_sub(held);
        let part = rest.get(..missing).unwrap_or(rest);
        let begin = cuts.offset(at).saturating_sub(held as u64);
        let found = self.headers.seek(part, cuts.offset(at));
        let is_whole = part.len() == missing;
        if found.is_some() || is_whole && self.headers.is_begun() {
            let length = self.headers.start().saturating_sub(begin);
            let excerpt = cuts.excerpt(begin, self.headers.start(), self.tail.bytes());
            cuts.fault(FrameError::new(FrameErrorKind::Torn { size }, self.start, length, &excerpt));
            self.tail.clear();
            self.state = if found.is_some() { State::Header } else { State::Lost };
        } else if !is_whole {
            self.tail.push(part);
        } else {
            self.state = State::Header;
            if held == 0 {
                cuts.frame(at, at.saturating_add(missing));
            } else {
                self.tail.push(part);
                cuts.own(self.tail.take(0..self.max), begin);
            }
        }
        found.unwrap_or(part.len())
    }

    /// Passes over a value that is too long. Says how many bytes it took.
    fn skip(&mut self, left: u64, at: usize, rest: &[u8], cuts: &Cuts<'_>) -> usize {
        let part = usize::try_from(left).ok().and_then(|left| rest.get(..left)).unwrap_or(rest);
        if let Some(used) = self.headers.seek(part, cuts.offset(at)) {
            self.state = State::Header;
            return used;
        }
        let left = left.saturating_sub(part.len() as u64);
        self.state = match left {
            0 if self.headers.is_begun() => State::Lost,
            0 => State::Header,
            left => State::Skipping { left },
        };
        part.len()
    }

    /// Looks for the next header. Says how many bytes it took.
    fn seek(&mut self, at: usize, rest: &[u8], cuts: &Cuts<'_>) -> usize {
        let found = self.headers.seek(rest, cuts.offset(at));
        self.state = if found.is_some() { State::Header } else { State::Lost };
        found.unwrap_or(rest.len())
    }
}
