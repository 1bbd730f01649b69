//! Where one frame ends and the next begins.
//!
//! A [`Deframer`] is fed with what one read brought, and says which whole frames lie in it. Frames that lie whole in one read
//! share one copy of that stretch of the read: one allocation and one `memcpy` for thousands of messages. Only a frame that
//! began in an earlier read is collected on its own.

use std::{io::Write as _, ops::Range};

use memchr::memchr2;
use serde::{Serialize, ser::Error as _};

mod content_length; // headers `Content-Length: N`
mod delimited; // frames that end with a byte: lines, NUL
mod error; // damage in a stream, as a value
mod header_framed; // frames that begin with their size
mod length_prefixed; // headers of four bytes
mod text; // captured output, of which nothing may be lost

#[cfg(test)]
#[expect(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "a test may panic")]
mod tests;

use super::message::LineEnding;
use content_length::ContentLength;
use delimited::Delimited;
use error::EXCERPT_BYTES_MAX;
use header_framed::Prefixed;
use length_prefixed::Length32;
use text::Text;

pub use error::{FrameError, FrameErrorKind};

/// How messages are told apart on a pipe.
///
/// With every framing a byte order mark before a frame is skipped: some writers begin a stream with one, or each message.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Framing {
    /// One JSON value a line, so that a worker in any language is `print(json)`. A carriage return before the line feed is
    /// taken off, blank lines are skipped.
    #[default]
    #[doc(alias = "ndjson")]
    #[doc(alias = "jsonl")]
    Lines,
    /// A zero byte after each value; the value may span lines. Empty frames are skipped.
    Nul,
    /// Four bytes, the size of the value as a big-endian number, then the value. A size of zero is skipped.
    ///
    /// Damaged bytes end where the next size begins. It is recognized by its first byte, which is zero: JSON and printed text
    /// have no zero bytes. So reading goes on after any damage without zero bytes, unless the next value has 16 MiB or more.
    LengthPrefixed,
    /// `Content-Length: 17`, a blank line, then the value: what language servers and debug adapters speak.
    ///
    /// Other header lines are tolerated if their names begin with `Content-` or `X-`, and so is a bare line feed as line end. A
    /// header section has at most 4 KiB. Damaged bytes end at the next `Content-Length: 17` with a line end, wherever it stands:
    /// in the middle of a line or of a value as well, since no JSON contains it.
    ///
    /// With this framing and with [`LengthPrefixed`](Self::LengthPrefixed) the supervisor checks that each value is JSON, as with
    /// [`check_json`](crate::WorkerSpec::check_json): a size that is too small shows in nothing else.
    #[doc(alias = "lsp")]
    ContentLength,
}

/// Frames are held as 30-bit ranges of their chunk; no cap can be higher than what they can name.
const FRAME_BYTES_MAX: usize = 0x3fff_0000;

/// A buffer larger than this is given away or given back after use, so that ten thousand idle workers hold little.
const KEPT_BYTES_MAX: usize = 8 * 1024;

impl Framing {
    /// Whether a frame says how long it is. If that is wrong, the frame is not JSON.
    pub(crate) const fn announces_sizes(self) -> bool {
        matches!(self, Self::LengthPrefixed | Self::ContentLength)
    }
}

/// What some writers put before their first byte, or before each message: U+FEFF in UTF-8.
pub(crate) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Cuts a stream of bytes into frames, whatever pieces it arrives in.
#[derive(Debug)]
pub(crate) struct Deframer {
    cutter: Cutter,
    /// How many bytes of the stream were read.
    position: u64,
}

#[derive(Debug)]
enum Cutter {
    Delimited(Delimited),
    Text(Text),
    Length32(Prefixed<Length32>),
    ContentLength(Prefixed<ContentLength>),
}

impl Deframer {
    /// For messages: frames longer than `max_frame` bytes become faults.
    pub(crate) fn new(framing: Framing, max_frame: usize) -> Self {
        let max = max_frame.min(FRAME_BYTES_MAX);
        let cutter = match framing {
            Framing::Lines => Cutter::Delimited(Delimited::lines(max)),
            Framing::Nul => Cutter::Delimited(Delimited::nul(max)),
            Framing::LengthPrefixed => Cutter::Length32(Prefixed::new(Length32::new(max), max)),
            Framing::ContentLength => Cutter::ContentLength(Prefixed::new(ContentLength::default(), max)),
        };
        Self { cutter, position: 0 }
    }

    /// For captured output, of which nothing may be lost: blank lines are lines, a line longer than `max_line` bytes comes in
    /// pieces, and an unfinished last line is a line. Never gives a fault.
    pub(crate) fn text(max_line: usize) -> Self {
        Self { cutter: Cutter::Text(Text::new(max_line.clamp(1, FRAME_BYTES_MAX))), position: 0 }
    }

    /// Counts offsets from `position` on: so many bytes of the stream were read elsewhere.
    pub(crate) fn starting_at(mut self, position: u64) -> Self {
        self.position = position;
        self
    }

    /// Adds to `batch` what `read` completes, in the order of the stream. Each byte is looked at once, however the stream is
    /// cut into reads.
    pub(crate) fn feed(&mut self, read: &[u8], batch: &mut Batch) {
        for part in read.chunks(FRAME_BYTES_MAX) {
            let mut cuts = Cuts::new(part, self.position, batch);
            match &mut self.cutter {
                Cutter::Delimited(delimited) => delimited.feed(part, &mut cuts),
                Cutter::Text(text) => text.feed(part, &mut cuts),
                Cutter::Length32(prefixed) => prefixed.feed(part, &mut cuts),
                Cutter::ContentLength(prefixed) => prefixed.feed(part, &mut cuts),
            }
            cuts.close();
            self.position = self.position.saturating_add(part.len() as u64);
        }
    }

    /// What was read, if it is just one whole line, and its offset: the usual case of a conversation, which needs no copy.
    pub(crate) fn whole_line<'a>(&mut self, read: &'a [u8]) -> Option<(&'a [u8], u64)> {
        let Cutter::Delimited(delimited) = &self.cutter else { return None };
        let line = delimited.whole_line(read)?;
        let offset = self.position;
        self.position = self.position.saturating_add(read.len() as u64);
        Some((line, offset))
    }

    /// The stream has ended: adds what is to say of an unfinished frame.
    pub(crate) fn finish(&mut self, batch: &mut Batch) {
        let mut cuts = Cuts::new(&[], self.position, batch);
        match &mut self.cutter {
            Cutter::Delimited(delimited) => delimited.finish(&mut cuts),
            Cutter::Text(text) => text.finish(&mut cuts),
            Cutter::Length32(prefixed) => prefixed.finish(&mut cuts),
            Cutter::ContentLength(prefixed) => prefixed.finish(&mut cuts),
        }
    }
}

/// What reads brought, in the order of the stream. Reused: [`drain`](Self::drain) empties it and keeps its room.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    items: Vec<Item>,
    /// The frames of all chunks in `items`.
    spans: Vec<Span>,
}

#[derive(Debug)]
enum Item {
    Chunk { bytes: Vec<u8>, offset: u64, spans: Range<usize> },
    Fault(FrameError),
}

/// A part of a [`Batch`].
#[derive(Debug)]
pub(crate) enum Piece<'a> {
    /// Bytes of their own, where in the stream they began, and the frames that lie in them: never none, never overlapping, in
    /// order.
    Frames { bytes: Vec<u8>, offset: u64, spans: &'a [Span] },
    /// Bytes that are no frame.
    Fault(FrameError),
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

impl Batch {
    /// Whether there is nothing to drain.
    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Gives all pieces in order and leaves the batch empty.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Piece<'_>> {
        let Self { items, spans } = self;
        items.drain(..).map(|item| match item {
            Item::Chunk { bytes, offset, spans: range } => {
                Piece::Frames { bytes, offset, spans: spans.get(range).unwrap_or_default() }
            }
            Item::Fault(fault) => Piece::Fault(fault),
        })
    }
}

/// Collects the cuts of one read: frames that follow each other become one chunk.
pub(super) struct Cuts<'a> {
    read: &'a [u8],
    /// Where in the stream `read` begins.
    position: u64,
    batch: &'a mut Batch,
    /// Where the open chunk begins and ends in `read`; it is open while it has spans.
    start: usize,
    end: usize,
    first_span: usize,
}

impl<'a> Cuts<'a> {
    fn new(read: &'a [u8], position: u64, batch: &'a mut Batch) -> Self {
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
        self.batch.items.push(Item::Fault(fault));
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

    fn close(&mut self) {
        if self.batch.spans.len() > self.first_span {
            let bytes = self.read.get(self.start..self.end).unwrap_or_default().to_vec();
            self.push_chunk(bytes, self.offset(self.start));
        }
    }

    fn push_chunk(&mut self, bytes: Vec<u8>, offset: u64) {
        let spans = self.first_span..self.batch.spans.len();
        self.first_span = spans.end;
        self.batch.items.push(Item::Chunk { bytes, offset, spans });
    }
}

/// The bytes of a frame that is not whole yet.
#[derive(Debug)]
pub(super) struct Tail {
    bytes: Vec<u8>,
    /// How many bytes there can be at most.
    most: usize,
}

impl Tail {
    pub(super) fn new(most: usize) -> Self {
        Self { bytes: Vec::new(), most }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        let needed = self.bytes.len().saturating_add(bytes.len());
        // Doubles like any `Vec`, but not past what can ever be needed.
        if needed > self.bytes.capacity() {
            let room = self.bytes.capacity().saturating_mul(2).min(self.most).max(needed);
            self.bytes.reserve_exact(room.saturating_sub(self.bytes.len()));
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// Takes these bytes as a chunk of their own and forgets the rest. A small buffer is copied, to be used again; a large one is
    /// given away.
    pub(super) fn take(&mut self, range: Range<usize>) -> Vec<u8> {
        self.bytes.truncate(range.end);
        if self.bytes.capacity() > KEPT_BYTES_MAX {
            let mut bytes = std::mem::take(&mut self.bytes);
            bytes.drain(..range.start.min(bytes.len()));
            bytes.shrink_to_fit();
            return bytes;
        }
        let bytes = self.bytes.get(range.start..).unwrap_or_default().to_vec();
        self.bytes.clear();
        bytes
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_BYTES_MAX);
    }
}

/// Appends `value` to `out` as one whole frame. After an error `out` is as it was.
///
/// Only a `RawValue` can carry raw line ends, between its tokens; in [`Framing::Lines`] they become spaces. A zero byte
/// cannot stand in JSON.
pub(crate) fn encode<T: Serialize + ?Sized>(
    framing: Framing,
    value: &T,
    out: &mut Vec<u8>,
) -> Result<(), serde_json::Error> {
    let start = out.len();
    let encoded = encode_from(framing, value, out, start);
    if encoded.is_err() {
        out.truncate(start);
    }
    encoded
}

fn encode_from<T: Serialize + ?Sized>(
    framing: Framing,
    value: &T,
    out: &mut Vec<u8>,
    start: usize,
) -> Result<(), serde_json::Error> {
    if framing == Framing::LengthPrefixed {
        out.extend_from_slice(&[0; 4]);
    }
    let body = out.len();
    serde_json::to_writer(&mut *out, value)?;
    let length = out.len().saturating_sub(body);
    match framing {
        Framing::Lines => {
            let mut rest = out.get_mut(body..).unwrap_or_default();
            while let Some((raw, behind)) =
                memchr2(b'\n', b'\r', rest).and_then(|at| rest.get_mut(at..)?.split_first_mut())
            {
                *raw = b' ';
                rest = behind;
            }
            out.push(b'\n');
        }
        Framing::Nul => out.push(0),
        Framing::LengthPrefixed => {
            let size = u32::try_from(length).map_err(|_| serde_json::Error::custom("a value of more than 4 GiB"))?;
            if let Some(place) = out.get_mut(start..body) {
                place.copy_from_slice(&size.to_be_bytes());
            }
        }
        Framing::ContentLength => {
            // The size is known only now: the header is written behind the value, then they change places.
            let end = out.len();
            write!(out, "Content-Length: {length}\r\n\r\n").map_err(serde_json::Error::io)?;
            out.get_mut(start..).unwrap_or_default().rotate_left(end.saturating_sub(start));
        }
    }
    Ok(())
}

#[cfg(test)]
impl Deframer {
    /// The memory an unfinished frame occupies, in bytes.
    pub(super) fn held_bytes(&self) -> usize {
        let tail = match &self.cutter {
            Cutter::Delimited(delimited) => &delimited.tail,
            Cutter::Text(text) => &text.tail,
            Cutter::Length32(prefixed) => &prefixed.tail,
            Cutter::ContentLength(prefixed) => &prefixed.tail,
        };
        tail.bytes.capacity()
    }
}
