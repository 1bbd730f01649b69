//! Frames that end with a byte.

use memchr::memchr_iter;

use super::frame::{Cuts, FaultKind, Tail};

/// Cuts at each delimiter.
#[derive(Debug)]
pub(super) struct Delimited {
    rule: Rule,
    /// The longest frame, in bytes.
    max: usize,
    pub(super) tail: Tail,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// Messages, one a line.
    Lines,
    /// Messages, each ended by a zero byte.
    Nul,
    /// What a program prints: every byte counts.
    Text,
}

impl Delimited {
    pub(super) fn lines(max: usize) -> Self {
        Self::new(Rule::Lines, max)
    }

    pub(super) fn nul(max: usize) -> Self {
        Self::new(Rule::Nul, max)
    }

    pub(super) fn text(max: usize) -> Self {
        Self::new(Rule::Text, max)
    }

    fn new(rule: Rule, max: usize) -> Self {
        // One byte more than a frame may have, for the carriage return before a line feed; text is cut when it has one more.
        let keep = max.saturating_add(if rule == Rule::Text { 2 } else { 1 });
        Self { rule, max, tail: Tail::new(keep) }
    }

    pub(super) fn feed(&mut self, read: &[u8], cuts: &mut Cuts<'_>) {
        let delimiter = if self.rule == Rule::Nul { 0 } else { b'\n' };
        let mut start = 0_usize;
        for end in memchr_iter(delimiter, read) {
            let frame = read.get(start..end).unwrap_or_default();
            if self.tail.is_empty() {
                self.whole(start, frame, cuts);
            } else {
                self.collect(frame, cuts);
                self.complete(cuts);
            }
            start = end.saturating_add(1);
        }
        let mut rest = read.get(start..).unwrap_or_default();
        if self.rule == Rule::Text && self.tail.is_empty() {
            let done = self.text_pieces(start, rest, self.max.saturating_add(1), cuts);
            rest = rest.get(done..).unwrap_or_default();
        }
        self.collect(rest, cuts);
    }

    /// `read` without its line end, if it is one whole message and nothing waits before it.
    pub(super) fn whole_line<'a>(&self, read: &'a [u8]) -> Option<&'a [u8]> {
        let (b'\n', line) = read.split_last()? else { return None };
        let is_one = self.rule == Rule::Lines && self.tail.is_empty() && memchr::memchr(b'\n', line).is_none();
        let line = self.content(line);
        (is_one && line.len() <= self.max && !self.is_blank(line)).then_some(line)
    }

    pub(super) fn finish(&mut self, cuts: &mut Cuts<'_>) {
        if self.tail.is_empty() {
            return;
        }
        if self.rule == Rule::Text {
            return self.text_end(self.tail.bytes().len(), cuts);
        }
        let (bytes, seen) = (self.tail.bytes(), self.tail.seen());
        if self.is_too_long(bytes) {
            cuts.fault(FaultKind::TooLong { limit: self.max }, seen, bytes);
        } else if !self.is_blank(bytes) {
            cuts.fault(FaultKind::CutOff, seen, bytes);
        }
        self.tail.clear();
    }

    /// A frame whose first and last byte lie in this read.
    #[inline]
    fn whole(&self, start: usize, frame: &[u8], cuts: &mut Cuts<'_>) {
        let content = self.content(frame);
        if self.rule == Rule::Text {
            let done = self.text_pieces(start, content, self.max, cuts);
            cuts.frame(start.saturating_add(done), start.saturating_add(content.len()));
        } else if content.len() > self.max {
            cuts.fault(FaultKind::TooLong { limit: self.max }, frame.len() as u64, frame);
        } else if !self.is_blank(content) {
            cuts.frame(start, start.saturating_add(content.len()));
        }
    }

    /// The frame in the tail has met its delimiter.
    fn complete(&mut self, cuts: &mut Cuts<'_>) {
        let bytes = self.tail.bytes();
        let length = self.content(bytes).len();
        if self.rule == Rule::Text {
            self.text_end(length, cuts);
        } else if self.is_too_long(bytes) {
            cuts.fault(FaultKind::TooLong { limit: self.max }, self.tail.seen(), bytes);
            self.tail.clear();
        } else if self.is_blank(bytes) {
            self.tail.clear();
        } else {
            cuts.own(self.tail.take(length));
        }
    }

    /// Adds bytes of an unfinished frame to the tail.
    fn collect(&mut self, mut bytes: &[u8], cuts: &mut Cuts<'_>) {
        if self.rule == Rule::Text {
            loop {
                let room = self.max.saturating_add(2).saturating_sub(self.tail.bytes().len());
                let Some((head, rest)) = bytes.split_at_checked(room) else { break };
                self.tail.push(head);
                self.text_piece(self.piece(self.tail.bytes()), cuts);
                bytes = rest;
            }
        }
        self.tail.push(bytes);
    }

    /// Cuts pieces off a line until what is left has at most `left_max` bytes. Says how many bytes were cut off.
    fn text_pieces(&self, start: usize, line: &[u8], left_max: usize, cuts: &mut Cuts<'_>) -> usize {
        let mut done = 0_usize;
        loop {
            let rest = line.get(done..).unwrap_or_default();
            if rest.len() <= left_max {
                return done;
            }
            let next = done.saturating_add(self.piece(rest));
            cuts.frame(start.saturating_add(done), start.saturating_add(next));
            done = next;
        }
    }

    /// The line in the tail ends after `length` bytes, which are at most one more than fit.
    fn text_end(&mut self, length: usize, cuts: &mut Cuts<'_>) {
        let first = self.piece(self.tail.bytes().get(..length).unwrap_or_default());
        self.text_piece(first, cuts);
        let second = length.saturating_sub(first);
        if second > 0 {
            cuts.own(self.tail.take(second));
        }
        self.tail.clear();
    }

    /// The first `length` bytes of the tail are a piece; the few others stay.
    fn text_piece(&mut self, length: usize, cuts: &mut Cuts<'_>) {
        let rest = self.tail.bytes().get(length..).unwrap_or_default().to_vec();
        cuts.own(self.tail.take(length));
        self.tail.push(&rest);
    }

    /// How long the first piece of a line is: all of it, or as many whole characters as fit.
    fn piece(&self, line: &[u8]) -> usize {
        if line.len() <= self.max {
            return line.len();
        }
        let is_inside = |at: &usize| line.get(*at).is_some_and(|byte| byte & 0b1100_0000 == 0b1000_0000);
        let back = (0..4).map(|back| self.max.saturating_sub(back)).find(|at| !is_inside(at));
        back.filter(|at| *at > 0).unwrap_or(self.max)
    }

    /// The frame without the carriage return of its line end.
    fn content<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        match frame {
            [content @ .., b'\r'] if self.rule != Rule::Nul => content,
            _ => frame,
        }
    }

    /// Whether the frame in the tail, of which these bytes are kept, is too long.
    fn is_too_long(&self, kept: &[u8]) -> bool {
        !self.tail.is_whole() || self.content(kept).len() > self.max
    }

    fn is_blank(&self, frame: &[u8]) -> bool {
        match self.rule {
            Rule::Lines => frame.iter().all(|byte| matches!(byte, b' ' | b'\t' | b'\r')),
            Rule::Nul => frame.is_empty(),
            Rule::Text => false,
        }
    }
}
