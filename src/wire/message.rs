//! Messages, lines and other output: slices of shared chunks, parsed by their consumer and not by the event loop.

use super::{
    credit::Permit,
    decode::{DecodeError, decode},
    framing::{batch::Span, line_ending::LineEnding},
};
use crate::text::printable;
use serde::Deserialize;
use std::{borrow::Cow, fmt, str, sync::Arc};

/// One message of a worker: JSON text that is not parsed yet.
///
/// A message is a slice of a chunk that it shares with its neighbours. Cloning is cheap and copies no bytes. The chunk counts
/// against its worker's window until the last message in it is dropped, so parse what you need and drop the message.
#[derive(Clone)]
pub struct Message {
    slice: Slice,
}

/// One line that a worker printed on standard output or standard error, without its line ending.
///
/// Lines end at a line feed, at a carriage return (which programs use to overwrite a progress line), or at both. Together with
/// their [`endings`](Self::ending), the lines of a stream are byte for byte what the worker wrote.
///
/// Cheap to clone: it shares its bytes with its neighbours as [`Message`] does.
#[derive(Clone)]
pub struct Line {
    slice: Slice,
}

/// Bytes that a worker wrote on standard output or standard error, with [`OutputMode::Bytes`](crate::OutputMode::Bytes).
///
/// Cheap to clone, without a copy of the bytes. They count against the worker's window until the last clone is dropped.
#[derive(Clone)]
pub struct OutputBytes {
    slice: Slice,
}

/// Bytes that several messages share.
#[derive(Debug)]
pub(crate) struct Chunk {
    bytes: Vec<u8>,
    /// Returned to the window with the last slice.
    _permit: Permit,
}

#[derive(Clone)]
struct Slice {
    chunk: Arc<Chunk>,
    span: Span,
}

// There is one for each queued message; half of it is the pointer to the chunk.
const _: () = assert!(size_of::<Message>() == 16 || size_of::<usize>() != 8);

impl Message {
    /// The frames of a chunk as messages, in order. Increments the reference count of the chunk for each but the last: collect
    /// them before the first is sent, so that no consumer contends for the count meanwhile.
    pub(crate) fn of(chunk: Arc<Chunk>, spans: &[Span]) -> impl Iterator<Item = Self> {
        slices(chunk, spans).map(|slice| Self { slice })
    }

    /// A message that shares its chunk with no other.
    pub(crate) fn single(bytes: Vec<u8>, permit: Permit) -> Self {
        let span = Span::new(0, bytes.len());
        Self { slice: Slice { chunk: Chunk::new(bytes, permit), span } }
    }

    /// The message as bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.slice.bytes()
    }

    /// The message as text.
    ///
    /// # Errors
    ///
    /// If it is not UTF-8.
    pub fn as_str(&self) -> Result<&str, DecodeError> {
        str::from_utf8(self.as_bytes()).map_err(|error| DecodeError::utf8(self.as_bytes(), error))
    }

    /// Parses the message. The value may borrow from it: use `Cow<str>` with `#[serde(borrow)]` for strings, since a `&str`
    /// cannot represent a string with escapes.
    ///
    /// # Errors
    ///
    /// If the message is not UTF-8, not JSON, or not a `T`. The error has the offset. Later messages are not affected.
    pub fn json<'a, T: Deserialize<'a>>(&'a self) -> Result<T, DecodeError> {
        decode(self.as_str()?)
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.as_bytes().len()
    }

    /// Whether its length is zero. No framing delivers such a message.
    pub fn is_empty(&self) -> bool {
        self.as_bytes().is_empty()
    }
}

impl Line {
    /// The frames of a chunk as lines, in order, as [`Message::of`] does.
    pub(crate) fn of(chunk: Arc<Chunk>, spans: &[Span]) -> impl Iterator<Item = Self> {
        slices(chunk, spans).map(|slice| Self { slice })
    }

    /// The line as the worker wrote it, without its [`ending`](Self::ending).
    pub fn as_bytes(&self) -> &[u8] {
        self.slice.bytes()
    }

    /// The ending of the line.
    pub fn ending(&self) -> LineEnding {
        self.slice.span.ending()
    }

    /// Whether the line is longer than 64 KiB and continues in the next [`Line`] of its stream.
    pub fn is_partial(&self) -> bool {
        self.ending() == LineEnding::Partial
    }

    /// The line as text, with invalid UTF-8 replaced by `�`. It may contain control characters: see [`printable`].
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(self.as_bytes())
    }
}

impl OutputBytes {
    /// The frames of a chunk, in order, as [`Message::of`] does.
    pub(crate) fn of(chunk: Arc<Chunk>, spans: &[Span]) -> impl Iterator<Item = Self> {
        slices(chunk, spans).map(|slice| Self { slice })
    }

    /// The bytes as the worker wrote them.
    pub fn as_bytes(&self) -> &[u8] {
        self.slice.bytes()
    }

    /// The number of bytes.
    pub fn len(&self) -> usize {
        self.as_bytes().len()
    }

    /// Whether there are no bytes. No event contains such a value.
    pub fn is_empty(&self) -> bool {
        self.as_bytes().is_empty()
    }
}

impl Chunk {
    pub(crate) fn new(bytes: Vec<u8>, permit: Permit) -> Arc<Self> {
        Arc::new(Self { bytes, _permit: permit })
    }
}

fn slices(chunk: Arc<Chunk>, spans: &[Span]) -> impl Iterator<Item = Slice> {
    let (last, others) = spans.split_last().map_or((None, spans), |(last, others)| (Some(*last), others));
    let shared = Arc::clone(&chunk);
    let others = others.iter().map(move |span| Slice { chunk: Arc::clone(&shared), span: *span });
    others.chain(last.map(|span| Slice { chunk, span }))
}

impl Slice {
    fn bytes(&self) -> &[u8] {
        self.span.of(&self.chunk.bytes)
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Message({})", printable(self.as_bytes()))
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Line({})", printable(self.as_bytes()))
    }
}

impl fmt::Debug for OutputBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OutputBytes({})", printable(self.as_bytes()))
    }
}

impl AsRef<[u8]> for OutputBytes {
    fn as_ref(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl AsRef<[u8]> for Message {
    fn as_ref(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl AsRef<[u8]> for Line {
    fn as_ref(&self) -> &[u8] {
        self.as_bytes()
    }
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "a test may panic")]
mod tests {
    use std::{error::Error as _, io, sync::atomic::AtomicUsize, sync::atomic::Ordering};

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::wire::{credit::ReturnCredit, decode::check, framing::error::FrameErrorKind};

    #[derive(Debug, Default)]
    struct CountedCredit(AtomicUsize);

    impl ReturnCredit for CountedCredit {
        fn returned(&self, bytes: usize) {
            self.0.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    fn message(bytes: &[u8]) -> Message {
        let chunk = Chunk::new(bytes.to_vec(), Permit::new(0, Arc::new(CountedCredit::default())));
        Message::of(chunk, &[Span::new(0, bytes.len())]).next().unwrap()
    }

    #[test]
    fn p06_permit_returns_with_the_last_slice() {
        let credit = Arc::new(CountedCredit::default());
        let chunk = Chunk::new(b"12\n345".to_vec(), Permit::new(99, Arc::<CountedCredit>::clone(&credit)));
        let spans = [Span::new(0, 2), Span::new(3, 6)];
        let messages = Message::of(chunk, &spans).collect::<Vec<_>>();
        assert_eq!(messages.iter().map(Message::as_bytes).collect::<Vec<_>>(), [b"12".as_slice(), b"345"]);
        assert_eq!(messages.iter().map(Message::len).sum::<usize>(), 5);
        let kept = messages[1].clone();
        drop(messages);
        assert_eq!(credit.0.load(Ordering::Relaxed), 0);
        drop(kept);
        assert_eq!(credit.0.load(Ordering::Relaxed), 99);
    }

    #[test]
    fn p06_permit_of_a_chunk_without_slices_returns_at_once() {
        let credit = Arc::new(CountedCredit::default());
        assert_eq!(
            Line::of(Chunk::new(Vec::new(), Permit::new(7, Arc::<CountedCredit>::clone(&credit))), &[]).count(),
            0
        );
        assert_eq!(credit.0.load(Ordering::Relaxed), 7);
    }

    #[test]
    fn message_is_parsed_by_its_consumer() {
        assert_eq!(message(b"{\"done\": 1}").json::<Value>().unwrap(), json!({"done": 1}));
        assert_eq!(message(b"\"borrowed\"").json::<&str>().unwrap(), "borrowed");
        assert_eq!(format!("{:?}", message(b"{\n}")), "Message({\\n})");
    }

    #[test]
    fn p16_decode_error_shows_offset_and_excerpt() {
        let error = |bytes: &[u8]| message(bytes).json::<Vec<u32>>().unwrap_err();
        let place = |bytes: &[u8]| (error(bytes).offset(), error(bytes).excerpt().to_owned());
        assert_eq!(place(b"[1, x]"), (4, "[1, [here]x]".into()));
        assert_eq!(place(b"[1,\n\n x]"), (6, "[1,\\n\\n [here]x]".into()));
        assert_eq!(place(b"[1, "), (4, "[1, [here]".into()));
        assert_eq!(place(b"[1] 2"), (4, "[1] [here]2".into()));
        assert_eq!(place(b"[\"\xff\"]"), (2, "[\"[here]\u{fffd}\"]".into()));
        assert_eq!(place(b""), (0, "[here]".into()));
        let long = [&[b' '; 100], b"x".as_slice(), &[b'y'; 100]].concat();
        assert_eq!(place(&long), (100, format!("…{}[here]x{}…", " ".repeat(40), "y".repeat(39))));

        let error = error(b"[1, x]");
        assert_eq!(error.to_string(), "invalid message at byte 4: `[1, [here]x]`: expected value at line 1 column 5");
        assert_eq!(error.source().unwrap().to_string(), "expected value at line 1 column 5");
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn check_reports_invalid_utf8_and_json() {
        assert_eq!(check(b" {\"a\": [1.5e3, \"\\u00e9\"]} "), Ok(()));
        assert_eq!(check(b"{\"a\" 1}"), Err(FrameErrorKind::NotJson { offset: 5 }));
        assert_eq!(check(b"\"\xc3\""), Err(FrameErrorKind::NotUtf8 { offset: 1 }));
        assert_eq!(check(&vec![b'['; 100_000]), Err(FrameErrorKind::NotJson { offset: 100_000 }));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_value_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..40), text in "[\\[{\"\\n0-9,:é]{0,40}") {
            for bytes in [bytes.as_slice(), text.as_bytes()] {
                match message(bytes).json::<Value>() {
                    Ok(_) => prop_assert_eq!(check(bytes), Ok(())),
                    Err(error) => prop_assert!(error.offset() <= bytes.len()),
                }
            }
        }
    }
}
