//! The first and the last bytes of a stream, without the middle.

use std::mem;

/// The most bytes that are kept of the beginning: some programs print the cause of a failure first, and then a long trace.
const HEAD_BYTES_MAX: usize = 1 << 10;

/// Keeps up to `limit` bytes: a short stream completely, and of a longer one the beginning, a line with the number of omitted bytes, and
/// the end.
#[derive(Debug)]
pub(crate) struct KeptOutput {
    head: Vec<u8>,
    /// The last bytes after the head.
    tail: Vec<u8>,
    limit: usize,
    /// The number of bytes of the stream.
    seen: u64,
}

impl KeptOutput {
    pub(crate) fn of(limit: usize) -> Self {
        Self { head: Vec::new(), tail: Vec::new(), limit, seen: 0 }
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.seen = self.seen.saturating_add(bytes.len() as u64);
        let head_room = HEAD_BYTES_MAX.min(self.limit / 2).saturating_sub(self.head.len());
        let (head, rest) = bytes.split_at_checked(head_room).unwrap_or((bytes, &[]));
        self.head.extend_from_slice(head);
        let from = rest.len().saturating_sub(self.limit);
        self.tail.extend_from_slice(rest.get(from..).unwrap_or_default());
        // Truncated at twice the limit, so that not every short read moves the whole tail.
        if self.tail.len() > self.limit.saturating_mul(2) {
            self.cut(self.limit);
        }
    }

    fn cut(&mut self, limit: usize) {
        let surplus = self.tail.len().saturating_sub(limit);
        self.tail.drain(..surplus);
    }

    /// Takes the kept bytes, at most `limit`.
    pub(crate) fn take(&mut self) -> Box<[u8]> {
        self.take_counted().0
    }

    /// As [`take`](Self::take), with the number of omitted bytes.
    pub(crate) fn take_counted(&mut self) -> (Box<[u8]>, u64) {
        let seen = mem::take(&mut self.seen);
        let mut kept = mem::take(&mut self.head);
        let mut marker = Vec::new();
        if seen > self.limit as u64 {
            let longest = omission(seen).len();
            if let Some(room) = self.limit.checked_sub(kept.len() + longest) {
                self.cut(room);
                marker = omission(seen - (kept.len() + self.tail.len()) as u64);
            } else {
                // A limit of a few bytes only has room for the end.
                kept.append(&mut self.tail);
                mem::swap(&mut kept, &mut self.tail);
                self.cut(self.limit);
            }
        }
        let omitted = seen.saturating_sub((kept.len() + self.tail.len()) as u64);
        kept.append(&mut marker);
        kept.append(&mut self.tail);
        (kept.into_boxed_slice(), omitted)
    }
}

fn omission(bytes: u64) -> Vec<u8> {
    format!("\n[{bytes} bytes omitted]\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};

    fn kept(limit: usize, pieces: &[&[u8]]) -> String {
        let mut ends = KeptOutput::of(limit);
        for piece in pieces {
            ends.push(piece);
        }
        let taken = ends.take();
        assert!(ends.take().is_empty(), "nothing is left");
        String::from_utf8(taken.into()).unwrap()
    }

    #[test]
    fn p16_take_long_stream_keeps_first_and_last_bytes() {
        assert_eq!(kept(100, &[b"all of it", b" is short"]), "all of it is short");
        let filler = [b'.'; 10_000];
        let text = kept(8 << 10, &[b"error: no such port\n", &filler, b"the end\n"]);
        assert!(text.starts_with("error: no such port\n...") && text.ends_with("...the end\n"), "{text}");
        assert!(text.contains("bytes omitted]\n"), "{text}");
        assert_eq!(kept(5, &[b"0123", b"456789"]), "56789");
        assert_eq!(kept(0, &[b"0123"]), "");
        assert_eq!(kept(usize::MAX, &[b"0123", &filler]).len(), 10_004);
    }

    proptest! {
        #[test]
        fn p07_take_random_pieces_keeps_at_most_limit(limit in 0_usize..200, pieces in vec(vec(b'a'..=b'z', 0..80), 0..20)) {
            let all = pieces.concat();
            let pieces: Vec<_> = pieces.iter().map(Vec::as_slice).collect();
            let text = kept(limit, &pieces);
            if all.len() <= limit {
                prop_assert_eq!(text.as_bytes(), all);
            } else {
                prop_assert!(text.len() <= limit);
                let Some((head, rest)) = text.split_once("\n[") else {
                    prop_assert!(all.ends_with(text.as_bytes()));
                    return Ok(());
                };
                let (omitted, tail) = rest.split_once(" bytes omitted]\n").unwrap();
                prop_assert!(all.starts_with(head.as_bytes()) && all.ends_with(tail.as_bytes()));
                prop_assert_eq!(head.len() + omitted.parse::<usize>().unwrap() + tail.len(), all.len());
            }
        }
    }
}
