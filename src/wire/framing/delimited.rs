//! Frames that end with a delimiter byte.

use std::{mem, ops::Range};

use memchr::memchr_iter;

use super::{BYTE_ORDER_MARK, batch::FrameCollector, error::FrameErrorKind, partial_frame::PartialFrame};

/// Splits at each delimiter.
#[derive(Debug)]
pub(super) struct DelimitedFrames {
    /// The delimiter is a line feed; otherwise it is a zero byte.
    is_lines: bool,
    /// The longest frame, in bytes.
    max: usize,
    pub(super) partial: PartialFrame,
    /// Inside a frame that is too long and was reported.
    is_skipping: bool,
}

impl DelimitedFrames {
    pub(super) fn lines(max: usize) -> Self {
        // One byte more than a frame, for the carriage return before a line feed.
        Self { is_lines: true, max, partial: PartialFrame::new(max.saturating_add(1)), is_skipping: false }
    }

    pub(super) fn nul(max: usize) -> Self {
        Self { is_lines: false, max, partial: PartialFrame::new(max), is_skipping: false }
    }

    pub(super) fn feed(&mut self, read: &[u8], frames: &mut FrameCollector<'_>) {
        let delimiter = if self.is_lines { b'\n' } else { 0 };
        let mut start = 0_usize;
        for end in memchr_iter(delimiter, read) {
            let frame = read.get(start..end).unwrap_or_default();
            if mem::take(&mut self.is_skipping) || !self.fits(start, frame, frames) {
                self.is_skipping = false;
            } else if self.partial.is_empty() {
                let content = self.content(frame);
                if !self.is_blank(frame.get(content.clone()).unwrap_or_default()) {
                    frames.frame(start.saturating_add(content.start), start.saturating_add(content.end));
                }
            } else {
                self.partial.push(frame);
                self.complete(end, frames);
            }
            start = end.saturating_add(1);
        }
        let rest = read.get(start..).unwrap_or_default();
        if !self.is_skipping && self.fits(start, rest, frames) {
            self.partial.push(rest);
        }
    }

    /// Returns `read` without its line ending if it is exactly one message and no incomplete frame precedes it.
    pub(super) fn whole_line<'a>(&self, read: &'a [u8]) -> Option<&'a [u8]> {
        let (b'\n', line) = read.split_last()? else { return None };
        let is_one =
            self.is_lines && self.partial.is_empty() && !self.is_skipping && memchr::memchr(b'\n', line).is_none();
        let line = line.get(self.content(line))?;
        (is_one && line.len() <= self.max && !self.is_blank(line)).then_some(line)
    }

    pub(super) fn finish(&mut self, frames: &mut FrameCollector<'_>) {
        let bytes = self.partial.bytes();
        let end = frames.offset(0);
        if !self.is_blank(bytes.get(self.content(bytes)).unwrap_or_default()) {
            frames.error_at(FrameErrorKind::Truncated, (end.saturating_sub(bytes.len() as u64), end), bytes);
        }
        self.partial.clear();
        self.is_skipping = false;
    }

    /// Whether the partial frame and these bytes are within the limit. Otherwise reports the frame and skips it.
    fn fits(&mut self, at: usize, bytes: &[u8], frames: &mut FrameCollector<'_>) -> bool {
        let before = self.partial.bytes();
        let Some(known) = self.too_long(before, bytes) else { return true };
        let start = frames.offset(at).saturating_sub(before.len() as u64);
        let kind = FrameErrorKind::TooLong { limit: self.max };
        frames.error_at(kind, (start, start.saturating_add(known as u64)), before);
        self.partial.clear();
        self.is_skipping = true;
        false
    }

    /// Returns the number of bytes that prove the frame too long.
    fn too_long(&self, before: &[u8], bytes: &[u8]) -> Option<usize> {
        let length = before.len().saturating_add(bytes.len());
        let extra = before.get(self.max).or_else(|| bytes.get(self.max.checked_sub(before.len())?))?;
        // A carriage return belongs to the line ending if it is the last byte.
        let known = self.max.saturating_add(if self.is_lines && *extra == b'\r' { 2 } else { 1 });
        (known <= length).then_some(known)
    }

    /// Completes the partial frame, whose delimiter is at `end`.
    fn complete(&mut self, end: usize, frames: &mut FrameCollector<'_>) {
        let bytes = self.partial.bytes();
        let content = self.content(bytes);
        if self.is_blank(bytes.get(content.clone()).unwrap_or_default()) {
            return self.partial.clear();
        }
        let start = frames.offset(end).saturating_sub(bytes.len() as u64);
        let offset = start.saturating_add(content.start as u64);
        frames.own(self.partial.take(content), offset);
    }

    /// The range of the frame without a byte order mark and without the carriage return of its line ending.
    fn content(&self, frame: &[u8]) -> Range<usize> {
        let start = if frame.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len() } else { 0 };
        let has_return = self.is_lines && frame.ends_with(b"\r");
        start..frame.len().saturating_sub(usize::from(has_return))
    }

    fn is_blank(&self, content: &[u8]) -> bool {
        content.is_empty() || self.is_lines && content.iter().all(|byte| matches!(byte, b' ' | b'\t' | b'\r'))
    }
}
