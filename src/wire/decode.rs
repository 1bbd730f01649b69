//! Parses JSON and reports the offset of errors.

use super::framing::error::FrameErrorKind;
use crate::text::printable;
use serde::{Deserialize, de::IgnoredAny};
use std::{io, str, str::Utf8Error};

/// A message is not JSON, or not of the expected type.
#[derive(Debug, thiserror::Error)]
#[error("invalid message at byte {offset}: `{excerpt}`: {source}")]
pub struct DecodeError {
    offset: usize,
    excerpt: Box<str>,
    source: DecodeSource,
}

const _: () = assert!(size_of::<DecodeError>() <= 64);

/// The most bytes of an excerpt before the offset, and after it.
const EXCERPT_SIDE_BYTES: usize = 40;

/// Parses JSON text.
pub(crate) fn decode<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, DecodeError> {
    serde_json::from_str(text).map_err(|error| DecodeError::json(text.as_bytes(), error))
}

/// Checks that a message is JSON, without building a value.
pub(crate) fn check(bytes: &[u8]) -> Result<(), FrameErrorKind> {
    let text = str::from_utf8(bytes).map_err(|error| FrameErrorKind::NotUtf8 { offset: error.valid_up_to() })?;
    serde_json::from_str::<IgnoredAny>(text)
        .map(|_| ())
        .map_err(|error| FrameErrorKind::NotJson { offset: json_offset(bytes, &error) })
}

impl DecodeError {
    /// The offset in the message at which parsing stopped, in bytes: at the invalid byte, or after the value of the wrong type.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// The message around that offset, which `[here]` marks: at most 80 bytes, with control characters escaped and invalid UTF-8
    /// replaced.
    pub fn excerpt(&self) -> &str {
        &self.excerpt
    }

    pub(super) fn utf8(bytes: &[u8], error: Utf8Error) -> Self {
        Self::new(bytes, error.valid_up_to(), DecodeSource::Utf8(error))
    }

    pub(super) fn json(bytes: &[u8], error: serde_json::Error) -> Self {
        Self::new(bytes, json_offset(bytes, &error), DecodeSource::Json(error))
    }

    fn new(bytes: &[u8], offset: usize, source: DecodeSource) -> Self {
        let start = offset.saturating_sub(EXCERPT_SIDE_BYTES);
        let end = offset.saturating_add(EXCERPT_SIDE_BYTES).min(bytes.len());
        let text = |from: usize, to: usize| printable(bytes.get(from..to).unwrap_or_default());
        let more = |is_cut| if is_cut { "…" } else { "" };
        let (before, after) = (text(start, offset), text(offset, end));
        let excerpt = format!("{}{before}[here]{after}{}", more(start > 0), more(end < bytes.len()));
        Self { offset, excerpt: excerpt.into(), source }
    }
}

impl From<DecodeError> for io::Error {
    fn from(error: DecodeError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

#[derive(Debug, thiserror::Error)]
enum DecodeSource {
    #[error(transparent)]
    Utf8(Utf8Error),
    /// Its text may quote the message.
    #[error("{}", printable(&.0.to_string()))]
    Json(serde_json::Error),
}

/// The offset at which parsing stopped. `serde_json` reports lines and columns, both from 1, and column 0 for a line feed.
fn json_offset(bytes: &[u8], error: &serde_json::Error) -> usize {
    if error.is_eof() {
        return bytes.len();
    }
    let lines_before = error.line().saturating_sub(1);
    let line = match lines_before.checked_sub(1) {
        Some(nth) => memchr::memchr_iter(b'\n', bytes).nth(nth).map_or(0, |end| end.saturating_add(1)),
        None => 0,
    };
    line.saturating_add(error.column().saturating_sub(1)).min(bytes.len())
}
