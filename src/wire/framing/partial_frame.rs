//! The bytes of an incomplete frame.

use std::ops::Range;

/// A buffer larger than this is not kept after use, so that ten thousand idle workers occupy little memory.
const KEPT_BYTES_MAX: usize = 8 * 1024;

/// The bytes of an incomplete frame.
#[derive(Debug)]
pub(super) struct PartialFrame {
    bytes: Vec<u8>,
    /// In bytes.
    max: usize,
}

impl PartialFrame {
    pub(super) fn new(max: usize) -> Self {
        Self { bytes: Vec::new(), max }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        let needed = self.bytes.len().saturating_add(bytes.len());
        // Doubles as any `Vec`, but not beyond the maximum.
        if needed > self.bytes.capacity() {
            let room = self.bytes.capacity().saturating_mul(2).min(self.max).max(needed);
            self.bytes.reserve_exact(room.saturating_sub(self.bytes.len()));
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// Removes these bytes as a chunk and discards the others. A small buffer is copied and kept; a large one becomes the chunk.
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

#[cfg(test)]
impl PartialFrame {
    pub(super) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }
}
