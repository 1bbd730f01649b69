//! Lines of captured output with their original endings: no byte is lost.

use std::mem;

use memchr::memchr2;

use super::line_ending::LineEnding;
use super::{batch::FrameCollector, partial_frame::PartialFrame};

/// Splits at each line feed and at each carriage return, which programs use to overwrite a progress line.
#[derive(Debug)]
pub(super) struct TextLines {
    /// The longest line, in bytes. Longer lines are split.
    max: usize,
    pub(super) partial: PartialFrame,
    /// The partial line ended with a carriage return. The next byte shows whether a line feed belongs to it.
    has_return: bool,
}

impl TextLines {
    pub(super) fn new(max: usize) -> Self {
        Self { max, partial: PartialFrame::new(max), has_return: false }
    }

    pub(super) fn feed(&mut self, read: &[u8], frames: &mut FrameCollector<'_>) {
        let mut start = 0_usize;
        if let (Some(first), true) = (read.first(), mem::take(&mut self.has_return)) {
            let is_feed = *first == b'\n';
            let ending = if is_feed { LineEnding::CarriageReturnLineFeed } else { LineEnding::CarriageReturn };
            // The carriage return was the last byte of the previous read.
            let end = frames.offset(0).saturating_sub(1);
            self.end(end, ending, frames);
            start = usize::from(is_feed);
        }
        while let Some(rest) = read.get(start..).filter(|rest| !rest.is_empty()) {
            let Some(length) = memchr2(b'\n', b'\r', rest) else { return self.collect(start, rest, frames) };
            let end = start.saturating_add(length);
            let line = rest.get(..length).unwrap_or_default();
            let ending = match rest.get(length..).unwrap_or_default() {
                [b'\n', ..] => LineEnding::LineFeed,
                [_, b'\n', ..] => LineEnding::CarriageReturnLineFeed,
                [_, _, ..] => LineEnding::CarriageReturn,
                _ => {
                    self.has_return = true;
                    return self.collect(start, line, frames);
                }
            };
            if self.partial.is_empty() {
                let last = self.split_long(start, line, frames);
                frames.line(last, end, ending);
            } else {
                self.collect(start, line, frames);
                self.end(frames.offset(end), ending, frames);
            }
            start = end.saturating_add(ending.as_bytes().len());
        }
    }

    pub(super) fn finish(&mut self, frames: &mut FrameCollector<'_>) {
        let end = frames.offset(0);
        if mem::take(&mut self.has_return) {
            self.end(end.saturating_sub(1), LineEnding::CarriageReturn, frames);
        } else if !self.partial.is_empty() {
            self.end(end, LineEnding::None, frames);
        }
    }

    /// Completes the partial line, which ends at this offset in the stream.
    fn end(&mut self, end: u64, ending: LineEnding, frames: &mut FrameCollector<'_>) {
        let length = self.partial.bytes().len();
        frames.own_line(self.partial.take(0..length), end.saturating_sub(length as u64), ending);
    }

    /// Adds bytes to the partial line.
    fn collect(&mut self, at: usize, bytes: &[u8], frames: &mut FrameCollector<'_>) {
        let mut done = 0_usize;
        loop {
            let rest = bytes.get(done..).unwrap_or_default();
            let held = self.partial.bytes().len();
            let Some((head, _)) =
                rest.split_at_checked(self.max.saturating_sub(held)).filter(|(_, rest)| !rest.is_empty())
            else {
                return self.partial.push(rest);
            };
            // The byte after `head` exceeds the limit.
            let next = rest.get(head.len()).copied();
            self.partial.push(head);
            let offset = frames.offset(at.saturating_add(done)).saturating_sub(held as u64);
            let first = part_length(self.partial.bytes(), next);
            let kept = self.partial.bytes().get(first..).unwrap_or_default().to_vec();
            frames.own_line(self.partial.take(0..first), offset, LineEnding::Partial);
            self.partial.push(&kept);
            done = done.saturating_add(head.len());
        }
    }

    /// Splits parts off a line until the rest is within the limit. Returns the index of the rest in the read.
    fn split_long(&self, start: usize, line: &[u8], frames: &mut FrameCollector<'_>) -> usize {
        let mut done = 0_usize;
        while let Some(rest) = line.get(done..).filter(|rest| rest.len() > self.max) {
            let (head, next) =
                rest.split_at_checked(self.max).map_or((rest, None), |(head, rest)| (head, rest.first()));
            let end = done.saturating_add(part_length(head, next.copied()));
            frames.line(start.saturating_add(done), start.saturating_add(end), LineEnding::Partial);
            done = end;
        }
        start.saturating_add(done)
    }
}

/// The length of the part that ends with these bytes if `next` follows: all of them, or without the last character if `next`
/// continues it.
fn part_length(bytes: &[u8], next: Option<u8>) -> usize {
    let is_continuation = |byte: &u8| *byte & 0b1100_0000 == 0b1000_0000;
    if next.is_none_or(|next| !is_continuation(&next)) {
        return bytes.len();
    }
    let back =
        bytes.iter().rev().take(3).position(|byte| !is_continuation(byte)).map(|inside| inside.saturating_add(1));
    let cut = back.and_then(|back| bytes.len().checked_sub(back));
    cut.filter(|cut| *cut > 0).unwrap_or(bytes.len())
}
