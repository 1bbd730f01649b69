//! Where one frame ends and the next begins.

pub(crate) mod batch; // what one read brought, cut into frames
mod content_length; // headers `Content-Length: N`
pub(crate) mod deframer; // bytes in, frames out
mod delimited; // frames that end with a byte: lines, NUL
pub(crate) mod encode; // a value as one frame
pub(crate) mod error; // damage in a stream, as a value
mod header_framed; // frames that begin with their size
mod length_prefixed; // headers of four bytes
pub(crate) mod line_ending; // what ended a line
mod partial_frame; // the bytes of a frame that is not whole yet
mod text; // captured output, of which nothing may be lost

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
    /// [`validate_json`](crate::WorkerSpec::validate_json): a size that is too small shows in nothing else.
    #[doc(alias = "lsp")]
    ContentLength,
}

impl Framing {
    /// Whether a frame says how long it is. If that is wrong, the frame is not JSON.
    pub(crate) const fn announces_sizes(self) -> bool {
        matches!(self, Self::LengthPrefixed | Self::ContentLength)
    }
}

/// What some writers put before their first byte, or before each message: U+FEFF in UTF-8.
pub(crate) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

#[cfg(test)]
#[expect(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "a test may panic")]
mod tests;
