//! Frames that begin with their size.

use memchr::memchr;

use super::frame::{Cuts, FaultKind, Tail};

/// The longest header section of [`Framing::ContentLength`](super::frame::Framing::ContentLength), in bytes.
const HEADER_BYTES_MAX: usize = 4096;

const CONTENT_LENGTH: &[u8] = b"content-length";

/// Reads a size, then as many bytes.
#[derive(Debug)]
pub(super) struct Prefixed {
    head: Head,
    /// The size of the frame that has begun; `None` between frames and within a header.
    size: Option<u64>,
    /// The longest frame, in bytes.
    max: usize,
    pub(super) tail: Tail,
}

#[derive(Debug)]
enum Head {
    Length32(Vec<u8>),
    ContentLength(Section),
}

/// What a header came to.
enum Outcome {
    /// More bytes are needed.
    Open,
    Size(u64),
    /// These bytes are no header.
    Bad(Vec<u8>),
}

impl Prefixed {
    pub(super) fn length32(max: usize) -> Self {
        Self::new(Head::Length32(Vec::new()), max)
    }

    pub(super) fn content_length(max: usize) -> Self {
        Self::new(Head::ContentLength(Section::default()), max)
    }

    fn new(head: Head, max: usize) -> Self {
        Self { head, size: None, max, tail: Tail::new(max) }
    }

    pub(super) fn feed(&mut self, read: &[u8], cuts: &mut Cuts<'_>) {
        let mut at = 0_usize;
        while let Some(rest) = read.get(at..).filter(|rest| !rest.is_empty()) {
            let used = match self.size {
                None => self.begin(rest, cuts),
                Some(size) => self.go_on(size, at, rest, cuts),
            };
            at = at.saturating_add(used);
        }
    }

    pub(super) fn finish(&mut self, cuts: &mut Cuts<'_>) {
        if let Some(size) = self.size.take() {
            let kind = if self.fits(size) { FaultKind::CutOff } else { FaultKind::TooLong { limit: self.max } };
            cuts.fault(kind, self.tail.seen(), self.tail.bytes());
            self.tail.clear();
        } else {
            let header = self.head.take();
            let is_blank = matches!(self.head, Head::ContentLength(_)) && header.trim_ascii().is_empty();
            if !header.is_empty() && !is_blank {
                cuts.fault(FaultKind::CutOff, header.len() as u64, &header);
            }
        }
    }

    /// Reads a header. Says how many bytes it took.
    fn begin(&mut self, rest: &[u8], cuts: &mut Cuts<'_>) -> usize {
        let (used, outcome) = self.head.feed(rest);
        match outcome {
            // No bytes are not JSON; they are passed over like a blank line.
            Outcome::Open | Outcome::Size(0) => {}
            Outcome::Size(size) => {
                self.size = Some(size);
                // Of a frame that is too long only the excerpt is kept.
                self.tail.restart(if self.fits(size) { self.max } else { 0 });
            }
            Outcome::Bad(header) => cuts.fault(FaultKind::BadHeader, header.len() as u64, &header),
        }
        used
    }

    /// Reads of a frame what is here of it. Says how many bytes it took.
    fn go_on(&mut self, size: u64, at: usize, rest: &[u8], cuts: &mut Cuts<'_>) -> usize {
        let missing = usize::try_from(size.saturating_sub(self.tail.seen())).unwrap_or(usize::MAX);
        let Some(end) = rest.get(..missing) else {
            self.tail.push(rest);
            return rest.len();
        };
        self.size = None;
        if !self.fits(size) {
            self.tail.push(end);
            cuts.fault(FaultKind::TooLong { limit: self.max }, size, self.tail.bytes());
            self.tail.clear();
        } else if self.tail.is_empty() {
            cuts.frame(at, at.saturating_add(missing));
        } else {
            self.tail.push(end);
            cuts.own(self.tail.take(self.max));
        }
        missing
    }

    fn fits(&self, size: u64) -> bool {
        size <= self.max as u64
    }
}

impl Head {
    fn feed(&mut self, rest: &[u8]) -> (usize, Outcome) {
        match self {
            Self::Length32(bytes) => {
                let missing = 4_usize.saturating_sub(bytes.len());
                let head = rest.get(..missing).unwrap_or(rest);
                bytes.extend_from_slice(head);
                let Ok(size) = <[u8; 4]>::try_from(bytes.as_slice()) else { return (head.len(), Outcome::Open) };
                bytes.clear();
                (head.len(), Outcome::Size(u32::from_be_bytes(size).into()))
            }
            Self::ContentLength(section) => section.feed(rest),
        }
    }

    /// What there is of an unfinished header. The next is as the first.
    fn take(&mut self) -> Vec<u8> {
        match self {
            Self::Length32(bytes) => std::mem::take(bytes),
            Self::ContentLength(section) => {
                let section = std::mem::take(section);
                if section.state == State::Reading { section.bytes } else { Vec::new() }
            }
        }
    }
}

/// A header section that is being read.
#[derive(Debug, Default)]
struct Section {
    state: State,
    /// While reading: the section so far. While seeking: the begin of the line, no longer than the name sought.
    bytes: Vec<u8>,
    /// Where in `bytes` the last line begins.
    line: usize,
    length: Option<u64>,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Reading,
    /// After a bad header, at the begin of a line: is it the one we seek?
    Seeking,
    /// After a bad header, in a line that is not the one.
    Skipping,
}

impl Section {
    /// Takes at most one line.
    fn feed(&mut self, rest: &[u8]) -> (usize, Outcome) {
        match self.state {
            State::Reading => self.read(rest),
            State::Seeking => (self.seek(rest), Outcome::Open),
            State::Skipping => (self.skip(rest), Outcome::Open),
        }
    }

    fn read(&mut self, rest: &[u8]) -> (usize, Outcome) {
        let room = HEADER_BYTES_MAX.saturating_sub(self.bytes.len());
        // Looks no further than the section may reach: what follows can be a body of megabytes.
        let head = rest.get(..room).unwrap_or(rest);
        let Some(end) = memchr(b'\n', head) else {
            self.bytes.extend_from_slice(head);
            if head.len() == rest.len() {
                return (head.len(), Outcome::Open);
            }
            return (head.len(), self.bad(State::Skipping));
        };
        let (head, used) = (head.get(..=end).unwrap_or_default(), end.saturating_add(1));
        self.bytes.extend_from_slice(head);
        (used, self.line())
    }

    /// A line of the section is whole.
    fn line(&mut self) -> Outcome {
        let line = self.bytes.get(self.line..).unwrap_or_default().trim_ascii_end();
        if line.is_empty() {
            if self.line == 0 {
                // A blank line before the headers: some writers end their bodies with one.
                self.bytes.clear();
                return Outcome::Open;
            }
            let Some(length) = self.length.take() else { return self.bad(State::Seeking) };
            self.restart(State::Reading);
            return Outcome::Size(length);
        }
        let colon = memchr(b':', line).filter(|colon| *colon > 0);
        let Some((name, value)) = colon.and_then(|colon| line.split_at_checked(colon)) else {
            return self.bad(State::Seeking);
        };
        if name.trim_ascii().eq_ignore_ascii_case(CONTENT_LENGTH) {
            let length = value.split_first().and_then(|(_, digits)| parse(digits.trim_ascii()));
            if length.is_none() || self.length.is_some_and(|earlier| Some(earlier) != length) {
                return self.bad(State::Seeking);
            }
            self.length = length;
        }
        self.line = self.bytes.len();
        Outcome::Open
    }

    /// Looks at the first bytes of a line.
    fn seek(&mut self, rest: &[u8]) -> usize {
        let missing = CONTENT_LENGTH.len().saturating_sub(self.bytes.len());
        let head = rest.get(..missing).unwrap_or(rest);
        if let Some(end) = memchr(b'\n', head) {
            self.bytes.clear();
            return end.saturating_add(1);
        }
        self.bytes.extend_from_slice(head);
        if self.bytes.eq_ignore_ascii_case(CONTENT_LENGTH) {
            self.state = State::Reading;
        } else if self.bytes.len() == CONTENT_LENGTH.len() {
            self.restart(State::Skipping);
        }
        head.len()
    }

    fn skip(&mut self, rest: &[u8]) -> usize {
        let Some(end) = memchr(b'\n', rest) else { return rest.len() };
        self.restart(State::Seeking);
        end.saturating_add(1)
    }

    fn bad(&mut self, state: State) -> Outcome {
        let bytes = std::mem::take(&mut self.bytes);
        self.restart(state);
        Outcome::Bad(bytes)
    }

    /// Keeps the room of `bytes`, which is never much.
    fn restart(&mut self, state: State) {
        self.state = state;
        self.bytes.clear();
        self.line = 0;
        self.length = None;
    }
}

/// Digits only: `str::parse` would also take a plus sign.
fn parse(digits: &[u8]) -> Option<u64> {
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}
