//! Headers of four bytes: the size as a big-endian number.

use memchr::memchr;

use super::{
    BYTE_ORDER_MARK,
    header_framed::{HeaderParser, HeaderProgress},
};

const BYTES: usize = 4;

/// Parses sizes. Among other bytes a size is recognized by its first byte, which is zero below 16 MiB, and by the first byte of
/// the value that follows.
#[derive(Debug)]
pub(super) struct LengthParser {
    /// The largest size that is recognized.
    max: usize,
    /// The offset of the size in `bytes`.
    start: u64,
    /// The bytes of the size so far.
    bytes: Vec<u8>,
    /// During a search: the last bytes, beginning with a zero.
    window: Vec<u8>,
}

impl LengthParser {
    pub(super) fn new(max: usize) -> Self {
        Self { max, start: 0, bytes: Vec::with_capacity(BYTES), window: Vec::with_capacity(BYTES) }
    }

    /// Whether the window is a size if this byte follows.
    fn is_size(&self, next: u8) -> bool {
        let fits = (1..=self.max as u64).contains(&u64::from(number(&self.window)));
        fits && matches!(next, b'{' | b'[' | b'"' | b'-' | b'0'..=b'9' | b't' | b'f' | b'n')
    }

    fn slide(&mut self) {
        let zero = self.window.iter().skip(1).position(|byte| *byte == 0);
        self.window.drain(..zero.map_or(self.window.len(), |zero| zero.saturating_add(1)));
    }
}

impl HeaderParser for LengthParser {
    fn parse(&mut self, bytes: &[u8], at: u64) -> (usize, HeaderProgress) {
        if self.bytes.is_empty() {
            self.start = at;
        }
        let missing = BYTES.saturating_sub(self.bytes.len());
        let part = bytes.get(..missing).unwrap_or(bytes);
        self.bytes.extend_from_slice(part);
        if self.bytes.len() < BYTES {
            return (part.len(), HeaderProgress::Incomplete);
        }
        if self.bytes.starts_with(BYTE_ORDER_MARK) {
            self.bytes.drain(..BYTE_ORDER_MARK.len());
            self.start = self.start.saturating_add(BYTE_ORDER_MARK.len() as u64);
            return (part.len(), HeaderProgress::Incomplete);
        }
        (part.len(), HeaderProgress::Size(number(&self.bytes).into()))
    }

    fn find(&mut self, bytes: &[u8], at: u64) -> Option<usize> {
        let mut next = 0_usize;
        while let Some(rest) = bytes.get(next..).filter(|rest| !rest.is_empty()) {
            if self.window.is_empty() {
                next = next.saturating_add(memchr(0, rest)?);
            }
            let byte = bytes.get(next).copied()?;
            let offset = at.saturating_add(next as u64);
            if self.window.len() == BYTES {
                if self.is_size(byte) {
                    self.start = offset.saturating_sub(BYTES as u64);
                    std::mem::swap(&mut self.bytes, &mut self.window);
                    self.window.clear();
                    return Some(next);
                }
                self.slide();
            }
            if byte == 0 || !self.window.is_empty() {
                self.window.push(byte);
                self.start = offset.saturating_add(1).saturating_sub(self.window.len() as u64);
            }
            next = next.saturating_add(1);
        }
        None
    }

    fn accept(&mut self) {
        self.bytes.clear();
        self.window.clear();
    }

    fn reject(&mut self) -> bool {
        // The first byte of a real size is zero or a control character.
        let is_text = self.bytes.first().is_some_and(|first| *first >= b' ' || first.is_ascii_whitespace());
        if is_text {
            let later: Vec<u8> = self.bytes.drain(..).skip(1).collect();
            let start = self.start;
            self.window.clear();
            // Three bytes are too few to complete a size.
            self.find(&later, start.saturating_add(1));
        }
        is_text
    }

    fn may_have_begun(&self) -> bool {
        !self.window.is_empty()
    }

    fn start(&self) -> u64 {
        self.start
    }

    fn excerpt(&self) -> &[u8] {
        &self.bytes
    }

    fn reset(&mut self) {
        self.accept();
    }
}

fn number(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |number, byte| (number << 8) | u32::from(*byte))
}
