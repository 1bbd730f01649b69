//! The frames that reads have completed.
//!
//! Frames that lie whole in one read share one copy of that part of the read: one allocation and one `memcpy` for thousands of
//! messages. Only a frame that began in an earlier read gets a copy of its own.

use super::{
    error::{EXCERPT_BYTES_MAX, FrameError, FrameErrorKind},
    line_ending::LineEnding,
};
use std::ops::Range;

/// The longest frame, in bytes: frames are stored as 30-bit ranges of their chunk.
pub(super) const FRAME_BYTES_MAX: usize = 0x3fff_0000;

/// The frames and errors that reads completed, in stream order. Reusable: [`drain`](Self::drain) keeps the allocations.
#[derive(Debug, Default)]
pub(crate) struct FrameBatch {
    items: Vec<BatchItem>,
    /// The frames of all chunks in `items`.
    spans: Vec<Span>,
}

#[derive(Debug)]
enum BatchItem {
    Chunk { bytes: Vec<u8>, offset: u64, spans: Range<usize> },
    Error(FrameError),
}

/// A part of a [`FrameBatch`].
#[derive(Debug)]
pub(crate) enum FrameChunk<'a> {
    /// A chunk, its offset in the stream, and the frames in it: at least one, in order, without overlap.
    Frames {
        bytes: Vec<u8>,
        offset: u64,
        spans: &'a [Span],
    },
    Error(FrameError),
}

/// The range of a frame in its chunk, and the ending of a line. Half the size of a `Range<usize>`, since every queued message has
/// one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    /// The two highest bits are the higher bits of the line ending's code.
    start: u32,
    /// The two highest bits are its lower bits.
    end: u32,
}

const INDEX_BITS: u32 = 30;
const INDEX_MASK: u32 = (1 << INDEX_BITS) - 1;
const _: () = assert!(FRAME_BYTES_MAX <= INDEX_MASK as usize);

impl Span {
    /// Both numbers must be at most [`FRAME_BYTES_MAX`].
    #[inline]
    pub(crate) fn new(start: usize, end: usize) -> Self {
        let narrow = |number| u32::try_from(number).unwrap_or(INDEX_MASK).min(INDEX_MASK);
        Self { start: narrow(start), end: narrow(end) }
    }

    fn of_line(start: usize, end: usize, ending: LineEnding) -> Self {
        let Self { start, end } = Self::new(start, end);
        let code = ending.code();
        Self { start: start | (code >> 2) << INDEX_BITS, end: end | (code & 3) << INDEX_BITS }
    }

    pub(crate) fn start(self) -> usize {
        (self.start & INDEX_MASK) as usize
    }

    fn end(self) -> usize {
        (self.end & INDEX_MASK) as usize
    }

    /// The bytes of the frame.
    #[inline]
    pub(crate) fn of(self, chunk: &[u8]) -> &[u8] {
        chunk.get(self.start()..self.end()).unwrap_or_default()
    }

    pub(crate) fn ending(self) -> LineEnding {
        LineEnding::of_code((self.start >> INDEX_BITS) << 2 | self.end >> INDEX_BITS)
    }
}

impl FrameBatch {
    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Returns all chunks and errors in order, and leaves the batch empty.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = FrameChunk<'_>> {
        let Self { items, spans } = self;
        items.drain(..).map(|item| match item {
            BatchItem::Chunk { bytes, offset, spans: range } => {
                FrameChunk::Frames { bytes, offset, spans: spans.get(range).unwrap_or_default() }
            }
            BatchItem::Error(error) => FrameChunk::Error(error),
        })
    }
}

/// Adds the frames of one read to a batch. Consecutive frames become one chunk.
pub(super) struct FrameCollector<'a> {
    read: &'a [u8],
    /// The offset of `read` in the stream.
    position: u64,
    batch: &'a mut FrameBatch,
    /// The range of the open chunk in `read`; a chunk is open once it has spans.
    start: usize,
    end: usize,
    first_span: usize,
}

impl<'a> FrameCollector<'a> {
    pub(super) fn new(read: &'a [u8], position: u64, batch: &'a mut FrameBatch) -> Self {
        if batch.items.is_empty() {
            batch.spans.clear();
        }
        let first_span = batch.spans.len();
        Self { read, position, batch, start: 0, end: 0, first_span }
    }

    /// The offset in the stream of an index of this read.
    pub(super) fn offset(&self, at: usize) -> u64 {
        self.position.saturating_add(at as u64)
    }

    /// Adds a frame that lies whole in this read.
    #[inline]
    pub(super) fn frame(&mut self, start: usize, end: usize) {
        self.line(start, end, LineEnding::None);
    }

    /// Adds a line that lies whole in this read.
    #[inline]
    pub(super) fn line(&mut self, start: usize, end: usize, ending: LineEnding) {
        if self.batch.spans.len() == self.first_span {
            self.start = start;
        }
        self.end = end;
        let (start, end) = (start.saturating_sub(self.start), end.saturating_sub(self.start));
        self.batch.spans.push(Span::of_line(start, end, ending));
    }

    /// Adds a frame that began in an earlier read, at `offset`.
    pub(super) fn own(&mut self, bytes: Vec<u8>, offset: u64) {
        self.own_line(bytes, offset, LineEnding::None);
    }

    /// Adds a line that began in an earlier read.
    pub(super) fn own_line(&mut self, bytes: Vec<u8>, offset: u64, ending: LineEnding) {
        self.close();
        let end = bytes.len();
        self.batch.spans.push(Span::of_line(0, end, ending));
        self.push_chunk(bytes, offset);
    }

    pub(super) fn error(&mut self, error: FrameError) {
        self.close();
        self.batch.items.push(BatchItem::Error(error));
    }

    /// Adds an error for the bytes from `offset` to `end`, of which `before` came in earlier reads.
    pub(super) fn error_at(&mut self, kind: FrameErrorKind, (offset, end): (u64, u64), before: &[u8]) {
        let length = end.saturating_sub(offset);
        let excerpt = self.excerpt(offset, end, before);
        self.error(FrameError::new(kind, offset, length, &excerpt));
    }

    /// The bytes of the stream from `offset` to `end`, at most as many as an error keeps. `before` has those from earlier reads, or
    /// the first few of them.
    pub(super) fn excerpt(&self, offset: u64, end: u64, before: &[u8]) -> Vec<u8> {
        let index = |offset: u64| usize::try_from(offset.saturating_sub(self.position)).unwrap_or(usize::MAX);
        let (start, end) = (index(offset), index(end).min(self.read.len()));
        let early = usize::try_from(self.position.saturating_sub(offset)).unwrap_or(usize::MAX);
        let before = before.get(..early).unwrap_or(before);
        let here = if before.len() == early { self.read.get(start..end).unwrap_or_default() } else { &[] };
        before.iter().chain(here).take(EXCERPT_BYTES_MAX).copied().collect()
    }

    /// Ends the open chunk.
    pub(super) fn close(&mut self) {
        if self.batch.spans.len() > self.first_span {
            let bytes = self.read.get(self.start..self.end).unwrap_or_default().to_vec();
            self.push_chunk(bytes, self.offset(self.start));
        }
    }

    fn push_chunk(&mut self, bytes: Vec<u8>, offset: u64) {
        let spans = self.first_span..self.batch.spans.len();
        self.first_span = spans.end;
        self.batch.items.push(BatchItem::Chunk { bytes, offset, spans });
    }
}
