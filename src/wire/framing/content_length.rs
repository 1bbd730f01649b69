//! Header sections: `Content-Length: 17`, other lines, and a blank line.

use memchr::memchr2;

use super::{
    BYTE_ORDER_MARK,
    error::EXCERPT_BYTES_MAX,
    header_framed::{HeaderParser, HeaderProgress},
};

/// The longest header section, in bytes.
const SECTION_BYTES_MAX: u64 = 4096;

const CONTENT_LENGTH: &[u8] = b"content-length";

/// The prefixes of accepted header names.
const PREFIXES: [&[u8]; 2] = [b"content-", b"x-"];

/// Parses header sections, and finds a `Content-Length` line among other bytes.
#[derive(Debug, Default)]
pub(super) struct ContentLengthParser {
    /// Examines every byte, to find a `Content-Length` in the middle of a line too.
    finder: LengthLineFinder,
    /// The offset of the section.
    start: u64,
    /// The first bytes of the section, for errors. Empty outside a section.
    text: Vec<u8>,
    place: LinePart,
    line_start: u64,
    length: Option<u64>,
}

/// The position of the next byte in the section.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum LinePart {
    /// At the start of a line.
    #[default]
    Start,
    /// Within a byte order mark, after this many of its bytes.
    Mark(usize),
    /// Within a line that contains only spaces so far.
    Blank,
    /// Within a name with this prefix, after this many of its bytes.
    Name(&'static [u8], usize),
    /// Between a name and its colon.
    Named,
    /// After the colon of another line.
    Value,
    /// After the colon of a `Content-Length` line.
    Length,
}

/// The effect of a byte on the section.
enum Step {
    To(LinePart),
    /// It ended a blank line before the section, or a byte order mark.
    Skip,
    /// It ended the section.
    End,
    Invalid,
}

impl ContentLengthParser {
    fn step(&self, byte: u8) -> Step {
        match (self.place, byte) {
            (LinePart::Start | LinePart::Blank, b'\n') if self.line_start == self.start => Step::Skip,
            (LinePart::Start | LinePart::Blank, b'\n') => Step::End,
            (LinePart::Start | LinePart::Blank, b'\r' | b' ' | b'\t') => Step::To(LinePart::Blank),
            (LinePart::Start, first) if BYTE_ORDER_MARK.first() == Some(&first) && self.line_start == self.start => {
                Step::To(LinePart::Mark(1))
            }
            (LinePart::Start, first) => {
                let prefix = PREFIXES.iter().find(|prefix| prefix.first() == Some(&first.to_ascii_lowercase()));
                prefix.map_or(Step::Invalid, |prefix| Step::To(LinePart::Name(prefix, 1)))
            }
            (LinePart::Mark(seen), byte) if BYTE_ORDER_MARK.get(seen) == Some(&byte) => {
                let seen = seen.saturating_add(1);
                if seen == BYTE_ORDER_MARK.len() { Step::Skip } else { Step::To(LinePart::Mark(seen)) }
            }
            (LinePart::Name(prefix, seen), byte) if prefix.get(seen).is_some() => {
                let goes_on = prefix.get(seen) == Some(&byte.to_ascii_lowercase());
                if goes_on { Step::To(LinePart::Name(prefix, seen.saturating_add(1))) } else { Step::Invalid }
            }
            (LinePart::Name(..) | LinePart::Named, b':') => {
                let counts = self.finder.is_behind_colon() && self.finder.start == self.line_start;
                Step::To(if counts { LinePart::Length } else { LinePart::Value })
            }
            (LinePart::Name(..) | LinePart::Named, b' ' | b'\t') => Step::To(LinePart::Named),
            (LinePart::Name(prefix, seen), byte) if byte.is_ascii_graphic() => Step::To(LinePart::Name(prefix, seen)),
            (LinePart::Value, b'\n') => Step::To(LinePart::Start),
            (LinePart::Value, _) => Step::To(LinePart::Value),
            (LinePart::Length, _) if self.finder.may_have_begun() && self.finder.start == self.line_start => {
                Step::To(LinePart::Length)
            }
            (LinePart::Mark(_) | LinePart::Blank | LinePart::Name(..) | LinePart::Named | LinePart::Length, _) => {
                Step::Invalid
            }
        }
    }

    /// Handles a complete `Content-Length` line, which ends before `at`.
    fn has_length(&mut self, length: u64, at: u64) -> Option<HeaderProgress> {
        if self.finder.start == self.line_start && self.length.is_none_or(|earlier| earlier == length) {
            (self.place, self.line_start, self.length) = (LinePart::Start, at, Some(length));
            return None;
        }
        let (start, text) = (self.start, std::mem::take(&mut self.text));
        self.found(length, at);
        Some(HeaderProgress::Damage { start, text })
    }

    /// Begins a section with the line that the finder has found, which ends before `at`.
    fn found(&mut self, length: u64, at: u64) {
        self.start = self.finder.start;
        self.text.clone_from(&self.finder.text);
        (self.place, self.line_start, self.length) = (LinePart::Start, at, Some(length));
    }

    fn clear_section(&mut self) {
        self.text.clear();
        (self.place, self.length) = (LinePart::Start, None);
    }
}

impl HeaderParser for ContentLengthParser {
    fn parse(&mut self, bytes: &[u8], at: u64) -> (usize, HeaderProgress) {
        for (used, byte) in (1_usize..).zip(bytes) {
            let end = at.saturating_add(used as u64);
            let offset = end.saturating_sub(1);
            if self.text.is_empty() {
                (self.start, self.line_start) = (offset, offset);
            }
            if self.text.len() < EXCERPT_BYTES_MAX {
                self.text.push(*byte);
            }
            if let Some(length) = self.finder.step(*byte, offset) {
                match self.has_length(length, end) {
                    Some(damage) => return (used, damage),
                    None => continue,
                }
            }
            match self.step(*byte) {
                Step::To(LinePart::Start) => (self.place, self.line_start) = (LinePart::Start, end),
                Step::To(place) => self.place = place,
                Step::Skip => self.clear_section(),
                Step::End => return (used, self.length.map_or(HeaderProgress::Invalid, HeaderProgress::Size)),
                Step::Invalid => return (used, HeaderProgress::Invalid),
            }
            if end.saturating_sub(self.start) >= SECTION_BYTES_MAX {
                return (used, HeaderProgress::Invalid);
            }
        }
        (bytes.len(), HeaderProgress::Incomplete)
    }

    fn find(&mut self, bytes: &[u8], at: u64) -> Option<usize> {
        let mut next = 0_usize;
        while let Some(rest) = bytes.get(next..).filter(|rest| !rest.is_empty()) {
            if !self.finder.may_have_begun() {
                next = next.saturating_add(memchr2(b'c', b'C', rest)?);
            }
            let byte = bytes.get(next).copied()?;
            let offset = at.saturating_add(next as u64);
            next = next.saturating_add(1);
            if let Some(length) = self.finder.step(byte, offset) {
                self.found(length, offset.saturating_add(1));
                return Some(next);
            }
            if self.finder.may_have_begun() {
                self.start = self.finder.start;
            }
        }
        None
    }

    fn accept(&mut self) {
        self.clear_section();
        self.finder = LengthLineFinder::default();
    }

    fn reject(&mut self) -> bool {
        false
    }

    fn may_have_begun(&self) -> bool {
        self.finder.may_have_begun()
    }

    fn start(&self) -> u64 {
        self.start
    }

    fn excerpt(&self) -> &[u8] {
        if self.place == LinePart::Blank && self.line_start == self.start { &[] } else { &self.text }
    }

    fn reset(&mut self) {
        self.accept();
    }
}

/// Recognizes `Content-Length: 17` with its line ending, byte by byte.
#[derive(Debug, Default)]
struct LengthLineFinder {
    part: FinderState,
    start: u64,
    /// The bytes of the line so far, except surplus spaces.
    text: Vec<u8>,
    number: u64,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum FinderState {
    #[default]
    None,
    /// After this many bytes of the name.
    Name(usize),
    /// After the colon.
    Colon,
    Digits,
    /// In spaces after the digits.
    End,
}

impl LengthLineFinder {
    fn may_have_begun(&self) -> bool {
        self.part != FinderState::None
    }

    fn is_behind_colon(&self) -> bool {
        self.part == FinderState::Colon
    }

    /// Returns the length if this byte ends the line.
    fn step(&mut self, byte: u8, offset: u64) -> Option<u64> {
        let lower = byte.to_ascii_lowercase();
        let digit = char::from(byte).to_digit(10).map(u64::from);
        self.part = match (self.part, byte) {
            (FinderState::Name(seen), _) if CONTENT_LENGTH.get(seen) == Some(&lower) => {
                FinderState::Name(seen.saturating_add(1))
            }
            (FinderState::Name(seen), b' ' | b'\t') if seen == CONTENT_LENGTH.len() => FinderState::Name(seen),
            (FinderState::Name(seen), b':') if seen == CONTENT_LENGTH.len() => FinderState::Colon,
            (FinderState::Colon, b' ' | b'\t') => FinderState::Colon,
            (FinderState::Colon | FinderState::Digits, _) if digit.is_some() => {
                let number = if self.part == FinderState::Colon { 0 } else { self.number };
                match digit.and_then(|digit| number.checked_mul(10)?.checked_add(digit)) {
                    Some(number) => {
                        self.number = number;
                        FinderState::Digits
                    }
                    None => FinderState::None,
                }
            }
            (FinderState::Digits | FinderState::End, b' ' | b'\t' | b'\r') => FinderState::End,
            (FinderState::Digits | FinderState::End, b'\n') => {
                self.part = FinderState::None;
                self.text.push(byte);
                return Some(self.number);
            }
            (
                FinderState::None | FinderState::Name(_) | FinderState::Colon | FinderState::Digits | FinderState::End,
                _,
            ) => {
                self.text.clear();
                self.start = offset;
                if CONTENT_LENGTH.first() == Some(&lower) { FinderState::Name(1) } else { FinderState::None }
            }
        };
        if self.may_have_begun() && self.text.len() < EXCERPT_BYTES_MAX {
            self.text.push(byte);
        }
        None
    }
}
