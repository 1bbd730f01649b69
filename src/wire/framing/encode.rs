//! Writes values as frames.

use super::Framing;
use memchr::memchr2;
use serde::{Serialize, ser::Error as _};
use std::io::Write as _;

/// Appends `value` to `out` as one frame. After an error `out` is unchanged.
///
/// Only a `RawValue` can contain raw line endings, between its tokens; [`Framing::Lines`] replaces them by spaces. JSON contains
/// no zero byte.
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

/// Ends the line whose text starts at `body`.
pub(crate) fn end_line(out: &mut Vec<u8>, body: usize) {
    let mut rest = out.get_mut(body..).unwrap_or_default();
    while let Some((raw, next)) = memchr2(b'\n', b'\r', rest).and_then(|at| rest.get_mut(at..)?.split_first_mut()) {
        *raw = b' ';
        rest = next;
    }
    out.push(b'\n');
}

/// Gives a line, which is one value and a line feed, another framing.
pub(crate) fn reframe(framing: Framing, mut line: Vec<u8>) -> Result<Vec<u8>, serde_json::Error> {
    let body = line.len().saturating_sub(1);
    let header = match framing {
        Framing::Lines => return Ok(line),
        Framing::Nul => {
            line.truncate(body);
            line.push(0);
            return Ok(line);
        }
        Framing::LengthPrefixed => size_prefix(body)?.to_vec(),
        Framing::ContentLength => format!("Content-Length: {body}\r\n\r\n").into_bytes(),
    };
    Ok([header.as_slice(), line.get(..body).unwrap_or_default()].concat())
}

fn size_prefix(length: usize) -> Result<[u8; 4], serde_json::Error> {
    let size = u32::try_from(length).map_err(|_| serde_json::Error::custom("a value of more than 4 GiB"))?;
    Ok(size.to_be_bytes())
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
        Framing::Lines => end_line(out, body),
        Framing::Nul => out.push(0),
        Framing::LengthPrefixed => {
            let prefix = size_prefix(length)?;
            if let Some(place) = out.get_mut(start..body) {
                place.copy_from_slice(&prefix);
            }
        }
        Framing::ContentLength => {
            // The size is known only now: the header is written after the value, then rotated in front of it.
            let end = out.len();
            write!(out, "Content-Length: {length}\r\n\r\n").map_err(serde_json::Error::io)?;
            out.get_mut(start..).unwrap_or_default().rotate_left(end.saturating_sub(start));
        }
    }
    Ok(())
}
