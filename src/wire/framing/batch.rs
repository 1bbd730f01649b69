//! What one read brought, cut into frames.

use super::{
    error::{EXCERPT_BYTES_MAX, FrameError, FrameErrorKind},
    line_ending::LineEnding,
};
use std::ops::Range;

/// Frames are held as 30-bit ranges of their chunk; no cap can be higher than what they can name.
pub(super) const FRAME_BYTES_MAX: usize = 0x3fff_0000;

/// What reads brought, in the order of the stream. Reused: [`drain`](Self::drain) empties it and keeps its room.
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
    /// Bytes of their own, where in the stream they began, and the frames that lie in them: never none, never overlapping, in
    /// order.
    Frames { bytes: Vec<u8>, offset: u64, spans: &'a [Span] },
    /// Bytes that are no frame.
    Error(FrameError),
}

/// Where a frame lies in its chunk, and for a line how it ends. Half the size of a `Range<usize>`, since every message waiting
/// for its consumer has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    /// The two highest bits are the higher bits of the line's ending.
    start: u32,
    /// The two highest bits are the lower bits of it.
    end: u32,
}

const PLACE_BITS: u32 = 30;
const PLACE: u32 = (1 << PLACE_BITS) - 1;
const _: () = assert!(FRAME_BYTES_MAX <= PLACE as usize);

impl Span {
    /// Both numbers are at most [`FRAME_BYTES_MAX`], the longest part of a read and the longest frame.
    #[inline]
    pub(crate) fn new(start: usize, end: usize) -> Self {
        let narrow = |number| u32::try_from(number).unwrap_or(PLACE).min(PLACE);
        Self { start: narrow(start), end: narrow(end) }
    }

    fn of_line(start: usize, end: usize, ending: LineEnding) -> Self {
        let Self { start, end } = Self::new(start, end);
        let code = ending.code();
        Self { start: start | (code >> 2) << PLACE_BITS, end: end | (code & 3) << PLACE_BITS }
    }

    pub(crate) fn start(self) -> usize {
        (self.start & PLACE) as usize
    }

    fn end(self) -> usize {
        (self.end & PLACE) as usize
    }

    /// Its bytes in the chunk.
    #[inline]
    pub(crate) fn of(self, chunk: &[u8]) -> &[u8] {
        chunk.get(self.start()..self.end()).unwrap_or_default()
    }

    pub(crate) fn ending(self) -> LineEnding {
        LineEnding::of_code((self.start >> PLACE_BITS) << 2 | self.end >> PLACE_BITS)
    }
}

impl FrameBatch {
    /// Whether there is nothing to drain.
    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Gives all pieces in order and leaves the batch empty.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = FrameChunk<'_>> {
        let Self { items, spans } = self;
        items.drain(..).map(|item| match item {
            BatchItem::Chunk { bytes, offset, spans: range } => {
                FrameChunk::Frames { bytes, offset, spans: spans.get(range).unwrap_or_default() }
            }
            BatchItem::Error(fault) => FrameChunk::Error(fault),
        })
    }
}

/// Collects the frames of one read: frames that follow each other become one chunk.
pub(super) struct FrameCollector<'a> {
    read: &'a [u8],
    /// Where in the stream `read` begins.
    position: u64,
    batch: &'a mut FrameBatch,
    /// Where the open chunk begins and ends in `read`; it is open while it has spans.
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

    /// The place in the stream of a place in this read.
    pub(super) fn offset(&self, at: usize) -> u64 {
        self.position.saturating_add(at as u64)
    }

    /// A frame that lies whole in this read.
    #[inline]
    pub(super) fn frame(&mut self, start: usize, end: usize) {
        self.line(start, end, LineEnding::None);
    }

    /// A line that lies whole in this read.
    #[inline]
    pub(super) fn line(&mut self, start: usize, end: usize, ending: LineEnding) {
        if self.batch.spans.len() == self.first_span {
            self.start = start;
        }
        self.end = end;
        let (start, end) = (start.saturating_sub(self.start), end.saturating_sub(self.start));
        self.batch.spans.push(Span::of_line(start, end, ending));
    }

    /// A frame that began in an earlier read, at this place in the stream.
    pub(super) fn own(&mut self, bytes: Vec<u8>, offset: u64) {
        self.own_line(bytes, offset, LineEnding::None);
    }

    /// A line that began in an earlier read.
    pub(super) fn own_line(&mut self, bytes: Vec<u8>, offset: u64, ending: LineEnding) {
        self.close();
        let end = bytes.len();
        self.batch.spans.push(Span::of_line(0, end, ending));
        self.push_chunk(bytes, offset);
    }

    pub(super) fn fault(&mut self, fault: FrameError) {
        self.close();
        self.batch.items.push(BatchItem::Error(fault));
    }

    /// A fault of the bytes from `offset` to `end`, of which `before` came in earlier reads.
    pub(super) fn damage(&mut self, kind: FrameErrorKind, (offset, end): (u64, u64), before: &[u8]) {
        let length = end.saturating_sub(offset);
        let excerpt = self.excerpt(offset, end, before);
        self.fault(FrameError::new(kind, offset, length, &excerpt));
    }

    /// The bytes of the stream from `offset` to `end`, at most as many as a fault shows. The first of them that came in earlier
    /// reads are `before`, or the first few of them.
    pub(super) fn excerpt(&self, offset: u64, end: u64, before: &[u8]) -> Vec<u8> {
        let place = |offset: u64| usize::try_from(offset.saturating_sub(self.position)).unwrap_or(usize::MAX);
        let (start, end) = (place(offset), place(end).min(self.read.len()));
        let early = usize::try_from(self.position.saturating_sub(offset)).unwrap_or(usize::MAX);
        let before = before.get(..early).unwrap_or(before);
        let here = if before.len() == early { self.read.get(start..end).unwrap_or_default() } else { &[] };
        before.iter().chain(here).take(EXCERPT_BYTES_MAX).copied().collect()
    }

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
