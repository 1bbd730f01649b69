//! Headers of lines: `Content-Length: 17`, others, and a blank line.

use memchr::memchr2;

use super::{
    BYTE_ORDER_MARK,
    error::EXCERPT_BYTES_MAX,
    header_framed::{Header, Headers},
};

/// The longest header section, in bytes.
const SECTION_BYTES_MAX: u64 = 4096;

const CONTENT_LENGTH: &[u8] = b"content-length";

/// What the names of header lines begin with.
const PREFIXES: [&[u8]; 2] = [b"content-", b"x-"];

/// Reads header sections, and recognizes the line that makes one among other bytes.
#[derive(Debug, Default)]
pub(super) struct ContentLength {
    /// Sees every byte, and finds what stands in the middle of a line.
    seeker: Seeker,
    /// Where the section begins.
    start: u64,
    /// Its first bytes, for a fault. It has begun when there are any.
    text: Vec<u8>,
    place: Place,
    line_start: u64,
    length: Option<u64>,
}

/// Where in a section the next byte stands.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// At the begin of a line.
    #[default]
    Start,
    /// Within a byte order mark, of which so many bytes have come.
    Mark(usize),
    /// Within a line that has only spaces so far.
    Blank,
    /// Within a name, which begins with this prefix, and has so many bytes so far.
    Name(&'static [u8], usize),
    /// Between a name and its colon.
    Named,
    /// Behind the colon of this line.
    Value,
    /// Behind the colon of a line whose name is the one that counts.
    Length,
}

/// What has come of a section with a byte.
enum Step {
    To(Place),
    /// It was the end of a line that means nothing before a section, or of a byte order mark.
    Nothing,
    /// It was the end of the section.
    End,
    Bad,
}

impl ContentLength {
    fn step(&self, byte: u8) -> Step {
        match (self.place, byte) {
            (Place::Start | Place::Blank, b'\n') if self.line_start == self.start => Step::Nothing,
            (Place::Start | Place::Blank, b'\n') => Step::End,
            (Place::Start | Place::Blank, b'\r' | b' ' | b'\t') => Step::To(Place::Blank),
            (Place::Start, first) if BYTE_ORDER_MARK.first() == Some(&first) && self.line_start == self.start => {
                Step::To(Place::Mark(1))
            }
            (Place::Start, first) => {
                let prefix = PREFIXES.iter().find(|prefix| prefix.first() == Some(&first.to_ascii_lowercase()));
                prefix.map_or(Step::Bad, |prefix| Step::To(Place::Name(prefix, 1)))
            }
            (Place::Mark(seen), byte) if BYTE_ORDER_MARK.get(seen) == Some(&byte) => {
                let seen = seen.saturating_add(1);
                if seen == BYTE_ORDER_MARK.len() { Step::Nothing } else { Step::To(Place::Mark(seen)) }
            }
            (Place::Name(prefix, seen), byte) if prefix.get(seen).is_some() => {
                let goes_on = prefix.get(seen) == Some(&byte.to_ascii_lowercase());
                if goes_on { Step::To(Place::Name(prefix, seen.saturating_add(1))) } else { Step::Bad }
            }
            (Place::Name(..) | Place::Named, b':') => {
                let counts = self.seeker.is_behind_colon() && self.seeker.start == self.line_start;
                Step::To(if counts { Place::Length } else { Place::Value })
            }
            (Place::Name(..) | Place::Named, b' ' | b'\t') => Step::To(Place::Named),
            (Place::Name(prefix, seen), byte) if byte.is_ascii_graphic() => Step::To(Place::Name(prefix, seen)),
            (Place::Value, b'\n') => Step::To(Place::Start),
            (Place::Value, _) => Step::To(Place::Value),
            (Place::Length, _) if self.seeker.is_begun() && self.seeker.start == self.line_start => {
                Step::To(Place::Length)
            }
            (Place::Mark(_) | Place::Blank | Place::Name(..) | Place::Named | Place::Length, _) => Step::Bad,
        }
    }

    /// The line that counts has ended, before `at`.
    fn has_length(&mut self, length: u64, at: u64) -> Option<Header> {
        if self.seeker.start == self.line_start && self.length.is_none_or(|earlier| earlier == length) {
            (self.place, self.line_start, self.length) = (Place::Start, at, Some(length));
            return None;
        }
        let (start, text) = (self.start, std::mem::take(&mut self.text));
        self.found(length, at);
        Some(Header::Damage { start, text })
    }

    /// A section begins with the line that the seeker has found, which ends before `at`.
    fn found(&mut self, length: u64, at: u64) {
        self.start = self.seeker.start;
        self.text.clone_from(&self.seeker.text);
        (self.place, self.line_start, self.length) = (Place::Start, at, Some(length));
    }

    fn forget_section(&mut self) {
        self.text.clear();
        (self.place, self.length) = (Place::Start, None);
    }
}

impl Headers for ContentLength {
    fn read(&mut self, bytes: &[u8], at: u64) -> (usize, Header) {
        for (used, byte) in (1_usize..).zip(bytes) {
            let behind = at.saturating_add(used as u64);
            let offset = behind.saturating_sub(1);
            if self.text.is_empty() {
                (self.start, self.line_start) = (offset, offset);
            }
            if self.text.len() < EXCERPT_BYTES_MAX {
                self.text.push(*byte);
            }
            if let Some(length) = self.seeker.step(*byte, offset) {
                match self.has_length(length, behind) {
                    Some(damage) => return (used, damage),
                    None => continue,
                }
            }
            match self.step(*byte) {
                Step::To(Place::Start) => (self.place, self.line_start) = (Place::Start, behind),
                Step::To(place) => self.place = place,
                Step::Nothing => self.forget_section(),
                Step::End => return (used, self.length.map_or(Header::Bad, Header::Size)),
                Step::Bad => return (used, Header::Bad),
            }
            if behind.saturating_sub(self.start) >= SECTION_BYTES_MAX {
                return (used, Header::Bad);
            }
        }
        (bytes.len(), Header::Open)
    }

    fn seek(&mut self, bytes: &[u8], at: u64) -> Option<usize> {
        let mut next = 0_usize;
        while let Some(rest) = bytes.get(next..).filter(|rest| !rest.is_empty()) {
            if !self.seeker.is_begun() {
                next = next.saturating_add(memchr2(b'c', b'C', rest)?);
            }
            let byte = bytes.get(next).copied()?;
            let offset = at.saturating_add(next as u64);
            next = next.saturating_add(1);
            if let Some(length) = self.seeker.step(byte, offset) {
                self.found(length, offset.saturating_add(1));
                return Some(next);
            }
            if self.seeker.is_begun() {
                self.start = self.seeker.start;
            }
        }
        None
    }

    fn done(&mut self) {
        self.forget_section();
        self.seeker = Seeker::default();
    }

    fn disbelieve(&mut self) -> bool {
        false
    }

    fn is_begun(&self) -> bool {
        self.seeker.is_begun()
    }

    fn start(&self) -> u64 {
        self.start
    }

    fn text(&self) -> &[u8] {
        if self.place == Place::Blank && self.line_start == self.start { &[] } else { &self.text }
    }

    fn reset(&mut self) {
        self.done();
    }
}

/// Recognizes `Content-Length: 17` with its line end, byte by byte.
#[derive(Debug, Default)]
struct Seeker {
    part: Part,
    start: u64,
    /// Its bytes so far, but for surplus spaces.
    text: Vec<u8>,
    number: u64,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Part {
    #[default]
    None,
    /// So many bytes of the name.
    Name(usize),
    /// Behind the colon.
    Colon,
    Digits,
    /// Spaces behind the digits.
    End,
}

impl Seeker {
    fn is_begun(&self) -> bool {
        self.part != Part::None
    }

    fn is_behind_colon(&self) -> bool {
        self.part == Part::Colon
    }

    /// The length, if this byte ends the line.
    fn step(&mut self, byte: u8, offset: u64) -> Option<u64> {
        let lower = byte.to_ascii_lowercase();
        let digit = char::from(byte).to_digit(10).map(u64::from);
        self.part = match (self.part, byte) {
            (Part::Name(seen), _) if CONTENT_LENGTH.get(seen) == Some(&lower) => Part::Name(seen.saturating_add(1)),
            (Part::Name(seen), b' ' | b'\t') if seen == CONTENT_LENGTH.len() => Part::Name(seen),
            (Part::Name(seen), b':') if seen == CONTENT_LENGTH.len() => Part::Colon,
            (Part::Colon, b' ' | b'\t') => Part::Colon,
            (Part::Colon | Part::Digits, _) if digit.is_some() => {
                let number = if self.part == Part::Colon { 0 } else { self.number };
                match digit.and_then(|digit| number.checked_mul(10)?.checked_add(digit)) {
                    Some(number) => {
                        self.number = number;
                        Part::Digits
                    }
                    None => Part::None,
                }
            }
            (Part::Digits | Part::End, b' ' | b'\t' | b'\r') => Part::End,
            (Part::Digits | Part::End, b'\n') => {
                self.part = Part::None;
                self.text.push(byte);
                return Some(self.number);
            }
            (Part::None | Part::Name(_) | Part::Colon | Part::Digits | Part::End, _) => {
                self.text.clear();
                self.start = offset;
                if CONTENT_LENGTH.first() == Some(&lower) { Part::Name(1) } else { Part::None }
            }
        };
        if self.is_begun() && self.text.len() < EXCERPT_BYTES_MAX {
            self.text.push(byte);
        }
        None
    }
}
