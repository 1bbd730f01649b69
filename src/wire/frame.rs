//! Where one frame ends and the next begins.
//!
//! A [`Deframer`] is fed with what one read brought, and says which whole frames lie in it. Frames that lie whole in one read
//! share one copy of that stretch of the read: one allocation and one `memcpy` for thousands of messages. Only a frame that
//! began in an earlier read is collected on its own.

use std::{fmt, io::Write as _};

use memchr::memchr2;
use serde::{Serialize, ser::Error as _};

use super::{delimited::Delimited, prefixed::Prefixed};
use crate::text::printable;

/// How messages are told apart on a pipe.
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
    Length32,
    /// `Content-Length: 17`, a blank line, then the value: what language servers and debug adapters speak.
    ///
    /// Other header lines are tolerated, and so is a bare line feed as line end. A header section has at most 4 KiB. After a
    /// [`FaultKind::BadHeader`] reading goes on at the next line that starts with `Content-Length`.
    #[doc(alias = "lsp")]
    ContentLength,
}

/// Bytes on a message pipe that are no message. The stream goes on after them.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fault {
    /// What is wrong.
    pub kind: FaultKind,
    /// How many bytes of the frame were seen, its line end or header not counted; of the header for
    /// [`FaultKind::BadHeader`], or when the frame is cut off there.
    pub length: u64,
    /// The first of these bytes, 256 at most.
    pub excerpt: Box<[u8]>,
}

/// What is wrong with the bytes of a [`Fault`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FaultKind {
    /// The stream ended in the middle of a frame: the worker was killed while it wrote, or never flushed.
    CutOff,
    /// The frame is longer than the limit, in bytes; it was skipped. Told once, when its end was seen.
    TooLong {
        /// The longest frame allowed, in bytes.
        limit: usize,
    },
    /// The frame is not UTF-8.
    NotUtf8 {
        /// Where in the frame, in bytes.
        offset: usize,
    },
    /// The frame is not JSON.
    NotJson {
        /// Where in the frame, in bytes.
        offset: usize,
    },
    /// What stands where a `Content-Length` header should, is none.
    BadHeader,
    /// A line on the control connection is not JSON-RPC 2.0, or answers what nobody has asked.
    NotRpc,
}

/// The most bytes a [`Fault`] shows.
const EXCERPT_BYTES_MAX: usize = 256;

/// Frames are held as `u32` ranges of their chunk; no cap can be higher than what they can name.
const FRAME_BYTES_MAX: usize = 0x7fff_0000;

/// A buffer larger than this is given away or given back after use, so that ten thousand idle workers hold little.
const KEPT_BYTES_MAX: usize = 8 * 1024;

/// Cuts a stream of bytes into frames, whatever pieces it arrives in.
#[derive(Debug)]
pub(crate) struct Deframer {
    cutter: Cutter,
}

#[derive(Debug)]
enum Cutter {
    Delimited(Delimited),
    Prefixed(Prefixed),
}

impl Deframer {
    /// For messages: frames longer than `max_frame` bytes become faults.
    pub(crate) fn new(framing: Framing, max_frame: usize) -> Self {
        let max_frame = max_frame.min(FRAME_BYTES_MAX);
        let cutter = match framing {
            Framing::Lines => Cutter::Delimited(Delimited::lines(max_frame)),
            Framing::Nul => Cutter::Delimited(Delimited::nul(max_frame)),
            Framing::Length32 => Cutter::Prefixed(Prefixed::length32(max_frame)),
            Framing::ContentLength => Cutter::Prefixed(Prefixed::content_length(max_frame)),
        };
        Self { cutter }
    }

    /// For captured output, of which nothing may be lost: blank lines are lines, a line longer than `max_line` bytes comes in
    /// pieces, and an unfinished last line is a line. Never gives a fault.
    pub(crate) fn text(max_line: usize) -> Self {
        Self { cutter: Cutter::Delimited(Delimited::text(max_line.clamp(1, FRAME_BYTES_MAX))) }
    }

    /// Adds to `batch` what `read` completes, in the order of the stream. Each byte is looked at once, however the stream is
    /// cut into reads.
    pub(crate) fn feed(&mut self, read: &[u8], batch: &mut Batch) {
        for part in read.chunks(FRAME_BYTES_MAX) {
            let mut cuts = Cuts::new(part, batch);
            match &mut self.cutter {
                Cutter::Delimited(delimited) => delimited.feed(part, &mut cuts),
                Cutter::Prefixed(prefixed) => prefixed.feed(part, &mut cuts),
            }
            cuts.close();
        }
    }

    /// What was read, if it is just one whole line: the usual case of a conversation, which needs no copy.
    pub(crate) fn whole_line<'a>(&self, read: &'a [u8]) -> Option<&'a [u8]> {
        match &self.cutter {
            Cutter::Delimited(delimited) => delimited.whole_line(read),
            Cutter::Prefixed(_) => None,
        }
    }

    /// The stream has ended: adds what is to say of an unfinished frame. The deframer is as new afterwards.
    pub(crate) fn finish(&mut self, batch: &mut Batch) {
        let mut cuts = Cuts::new(&[], batch);
        match &mut self.cutter {
            Cutter::Delimited(delimited) => delimited.finish(&mut cuts),
            Cutter::Prefixed(prefixed) => prefixed.finish(&mut cuts),
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
    Chunk { bytes: Vec<u8>, spans: std::ops::Range<usize> },
    Fault(Fault),
}

/// A part of a [`Batch`].
#[derive(Debug)]
pub(crate) enum Piece<'a> {
    /// Bytes of their own, and the frames that lie in them: never none, never overlapping, in order.
    Frames { bytes: Vec<u8>, spans: &'a [Span] },
    /// Bytes that are no frame.
    Fault(Fault),
}

/// Where a frame lies in its chunk. Half the size of a `Range<usize>`, since every message waiting for its consumer has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) start: u32,
    pub(crate) end: u32,
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
            Item::Chunk { bytes, spans: range } => Piece::Frames { bytes, spans: spans.get(range).unwrap_or_default() },
            Item::Fault(fault) => Piece::Fault(fault),
        })
    }
}

/// Collects the cuts of one read: frames that follow each other become one chunk.
pub(super) struct Cuts<'a> {
    read: &'a [u8],
    batch: &'a mut Batch,
    /// Where the open chunk begins and ends in `read`; it is open while it has spans.
    start: usize,
    end: usize,
    first_span: usize,
}

impl<'a> Cuts<'a> {
    fn new(read: &'a [u8], batch: &'a mut Batch) -> Self {
        if batch.items.is_empty() {
            batch.spans.clear();
        }
        let first_span = batch.spans.len();
        Self { read, batch, start: 0, end: 0, first_span }
    }

    /// A frame that lies whole in this read.
    #[inline]
    pub(super) fn frame(&mut self, start: usize, end: usize) {
        if self.batch.spans.len() == self.first_span {
            self.start = start;
        }
        self.end = end;
        self.batch.spans.push(span(start.saturating_sub(self.start), end.saturating_sub(self.start)));
    }

    /// A frame that began in an earlier read.
    pub(super) fn own(&mut self, bytes: Vec<u8>) {
        self.close();
        let end = bytes.len();
        self.batch.spans.push(span(0, end));
        self.push_chunk(bytes);
    }

    pub(super) fn fault(&mut self, kind: FaultKind, length: u64, begin: &[u8]) {
        self.close();
        self.batch.items.push(Item::Fault(Fault::new(kind, length, begin)));
    }

    fn close(&mut self) {
        if self.batch.spans.len() > self.first_span {
            let bytes = self.read.get(self.start..self.end).unwrap_or_default().to_vec();
            self.push_chunk(bytes);
        }
    }

    fn push_chunk(&mut self, bytes: Vec<u8>) {
        let spans = self.first_span..self.batch.spans.len();
        self.first_span = spans.end;
        self.batch.items.push(Item::Chunk { bytes, spans });
    }
}

/// Both numbers are at most [`FRAME_BYTES_MAX`], the longest part of a read and the longest frame.
#[inline]
fn span(start: usize, end: usize) -> Span {
    let narrow = |number| u32::try_from(number).unwrap_or(u32::MAX);
    Span { start: narrow(start), end: narrow(end) }
}

/// What has come of a frame that is not whole yet.
#[derive(Debug)]
pub(super) struct Tail {
    bytes: Vec<u8>,
    seen: u64,
    /// The frame is kept up to this size; of a longer one only the excerpt.
    keep: usize,
}

impl Tail {
    pub(super) fn new(keep: usize) -> Self {
        Self { bytes: Vec::new(), seen: 0, keep }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.seen == 0
    }

    /// How many bytes of the frame have come, kept or not.
    pub(super) fn seen(&self) -> u64 {
        self.seen
    }

    /// The bytes kept: all, or the first few of a frame that is too long.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn is_whole(&self) -> bool {
        self.seen <= self.keep as u64
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.seen = self.seen.saturating_add(bytes.len() as u64);
        let needed = self.bytes.len().saturating_add(bytes.len());
        if self.is_whole() {
            // Doubles like any `Vec`, but not past what can ever be needed.
            if needed > self.bytes.capacity() {
                let room = self.bytes.capacity().saturating_mul(2).min(self.keep).max(needed);
                self.bytes.reserve_exact(room.saturating_sub(self.bytes.len()));
            }
            self.bytes.extend_from_slice(bytes);
        } else {
            let missing = EXCERPT_BYTES_MAX.saturating_sub(self.bytes.len());
            self.bytes.extend_from_slice(bytes.get(..missing).unwrap_or(bytes));
            self.bytes.truncate(EXCERPT_BYTES_MAX);
            self.bytes.shrink_to(KEPT_BYTES_MAX);
        }
    }

    /// Takes the first `length` bytes kept as a chunk of their own and forgets the rest. A small buffer is copied, to be
    /// used again; a large one is given away.
    pub(super) fn take(&mut self, length: usize) -> Vec<u8> {
        self.seen = 0;
        self.bytes.truncate(length);
        if self.bytes.capacity() > KEPT_BYTES_MAX {
            let mut bytes = std::mem::take(&mut self.bytes);
            bytes.shrink_to_fit();
            return bytes;
        }
        let bytes = self.bytes.clone();
        self.bytes.clear();
        bytes
    }

    pub(super) fn clear(&mut self) {
        self.seen = 0;
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_BYTES_MAX);
    }

    /// Forgets all and begins a frame of which up to `keep` bytes are kept.
    pub(super) fn restart(&mut self, keep: usize) {
        self.clear();
        self.keep = keep;
    }
}

impl Fault {
    /// A fault of a frame of `length` bytes which begins so.
    pub(crate) fn new(kind: FaultKind, length: u64, begin: &[u8]) -> Self {
        let excerpt = begin.get(..EXCERPT_BYTES_MAX).unwrap_or(begin);
        Self { kind, length, excerpt: excerpt.into() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let length = self.length;
        match self.kind {
            FaultKind::CutOff => write!(f, "the stream ended within a message, after {length} bytes of it")?,
            FaultKind::TooLong { limit } => write!(f, "a message of {length} bytes, longer than the {limit} allowed")?,
            FaultKind::NotUtf8 { offset } => {
                write!(f, "a message of {length} bytes that is not UTF-8 at byte {offset}")?;
            }
            FaultKind::NotJson { offset } => {
                write!(f, "a message of {length} bytes that is not JSON at byte {offset}")?;
            }
            FaultKind::NotRpc => write!(f, "a line of {length} bytes that is not JSON-RPC 2.0")?,
            FaultKind::BadHeader => write!(f, "{length} bytes where a Content-Length header should stand")?,
        }
        if self.excerpt.is_empty() {
            return Ok(());
        }
        write!(f, ": `{}`", printable(&self.excerpt))
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
    if framing == Framing::Length32 {
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
        Framing::Length32 => {
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
        match &self.cutter {
            Cutter::Delimited(delimited) => delimited.tail.bytes.capacity(),
            Cutter::Prefixed(prefixed) => prefixed.tail.bytes.capacity(),
        }
    }
}
