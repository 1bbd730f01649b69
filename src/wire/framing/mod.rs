//! Splits a stream of bytes into frames, and writes values as frames.

pub(crate) mod batch; // the frames that reads completed
mod content_length; // parses `Content-Length: N` headers
pub(crate) mod deframer; // bytes in, frames and errors out
mod delimited; // frames that end with a byte: lines, NUL
pub(crate) mod encode; // a value to one frame
pub(crate) mod error; // damaged bytes of a stream
mod header_framed; // frames with a header that announces their size
mod length_prefixed; // parses headers of four bytes
pub(crate) mod line_ending; // what ended a line
mod partial_frame; // the bytes of an incomplete frame
mod text; // lines of captured output, lossless

/// How messages are separated on a pipe.
///
/// Every framing skips a byte order mark before a frame: some writers emit one at the start of a stream, or of each message.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Framing {
    /// One JSON value per line, so that a worker in any language can use `print(json)`. A carriage return before the line feed is
    /// removed, and blank lines are skipped.
    #[default]
    #[doc(alias = "ndjson")]
    #[doc(alias = "jsonl")]
    Lines,
    /// A zero byte after each value; the value may span lines. Empty frames are skipped.
    Nul,
    /// Four bytes, the size of the value as a big-endian number, then the value. A size of zero is skipped.
    ///
    /// Damaged bytes end where the next size begins. A size is recognized by its first byte, which is zero: JSON and printed text
    /// contain no zero bytes. Reading therefore resumes after any damage without zero bytes, unless the next value has 16 MiB or
    /// more.
    LengthPrefixed,
    /// `Content-Length: 17`, a blank line, then the value: the framing of the language server and debug adapter protocols.
    ///
    /// Other header lines are accepted if their names begin with `Content-` or `X-`, and so is a bare line feed as line end. A
    /// header section has at most 4 KiB. Damaged bytes end at the next `Content-Length: 17` with a line end, even in the middle
    /// of a line or of a value, since no JSON contains it.
    ///
    /// With this framing and with [`LengthPrefixed`](Self::LengthPrefixed) the supervisor checks that each value is JSON, as with
    /// [`validate_json`](crate::WorkerSpec::validate_json): nothing else reveals a size that is too small.
    #[doc(alias = "lsp")]
    ContentLength,
}

impl Framing {
    /// Whether a header announces the size of each frame. A frame whose announced size is wrong is not JSON.
    pub(crate) const fn announces_sizes(self) -> bool {
        matches!(self, Self::LengthPrefixed | Self::ContentLength)
    }
}

/// U+FEFF in UTF-8.
pub(crate) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

#[cfg(test)]
#[expect(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "a test may panic")]
mod tests;
