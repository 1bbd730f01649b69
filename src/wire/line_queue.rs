//! Lines that wait to be sent, each with what it belongs to.

use std::collections::VecDeque;

/// A queue of whole lines, of which the first may be sent in part.
#[derive(Debug)]
pub(crate) struct LineQueue<T> {
    lines: VecDeque<QueuedLine<T>>,
    /// The number of bytes of the first line that are sent.
    sent: usize,
    /// The number of bytes that are not sent.
    unsent: usize,
    /// Those of them that count against the limit of the queue.
    limited: usize,
}

/// What a line belongs to.
pub(crate) trait LineOwner {
    /// Whether the line counts against the limit of its queue.
    fn is_limited(&self) -> bool;
}

/// A line that waits to be sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct QueuedLine<T> {
    pub(crate) bytes: Vec<u8>,
    pub(crate) tag: T,
}

impl<T> Default for LineQueue<T> {
    fn default() -> Self {
        Self { lines: VecDeque::new(), sent: 0, unsent: 0, limited: 0 }
    }
}

impl<T: LineOwner> LineQueue<T> {
    /// The number of bytes that are not sent.
    pub(crate) fn len(&self) -> usize {
        self.unsent
    }

    /// The number of bytes that are not sent and count against the limit of the queue.
    pub(crate) fn limited_len(&self) -> usize {
        self.limited
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.unsent == 0
    }

    pub(crate) fn push(&mut self, line: QueuedLine<T>) {
        self.unsent = self.unsent.saturating_add(line.bytes.len());
        if line.tag.is_limited() {
            self.limited = self.limited.saturating_add(line.bytes.len());
        }
        self.lines.push_back(line);
    }

    /// The bytes that are not sent, line by line.
    pub(crate) fn parts(&self) -> impl Iterator<Item = &[u8]> {
        let sent = |at| if at == 0 { self.sent } else { 0 };
        self.lines.iter().enumerate().map(move |(at, line)| line.bytes.get(sent(at)..).unwrap_or_default())
    }

    /// Removes `sent` bytes from the front.
    pub(crate) fn advance(&mut self, sent: usize) {
        let mut left = sent;
        while let Some(first) = self.lines.front() {
            let part = first.bytes.len().saturating_sub(self.sent).min(left);
            left = left.saturating_sub(part);
            self.sent = self.sent.saturating_add(part);
            let is_whole = self.sent == first.bytes.len();
            self.uncount(part, first.tag.is_limited());
            if !is_whole {
                return;
            }
            self.sent = 0;
            self.lines.pop_front();
        }
    }

    fn uncount(&mut self, bytes: usize, is_limited: bool) {
        self.unsent = self.unsent.saturating_sub(bytes);
        if is_limited {
            self.limited = self.limited.saturating_sub(bytes);
        }
    }

    /// Removes the lines whose tag meets `condition` and of which no byte was sent.
    pub(crate) fn take_unsent(&mut self, condition: impl Fn(&T) -> bool) -> Vec<QueuedLine<T>> {
        let mut lines = std::mem::take(&mut self.lines).into_iter();
        let part = if self.sent > 0 { lines.next() } else { None };
        let (taken, kept): (Vec<_>, Vec<_>) = lines.partition(|line| condition(&line.tag));
        self.lines = part.into_iter().chain(kept).collect();
        for line in &taken {
            self.uncount(line.bytes.len(), line.tag.is_limited());
        }
        taken
    }

    /// Removes the first line whose tag meets `condition`, unless a part of it was sent.
    pub(crate) fn remove(&mut self, condition: impl Fn(&T) -> bool) -> Option<QueuedLine<T>> {
        let at = self.lines.iter().position(|line| condition(&line.tag))?;
        if at == 0 && self.sent > 0 {
            return None;
        }
        let line = self.lines.remove(at)?;
        self.uncount(line.bytes.len(), line.tag.is_limited());
        Some(line)
    }
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "a test may panic")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    impl LineOwner for usize {
        fn is_limited(&self) -> bool {
            self.is_multiple_of(3)
        }
    }

    fn line(tag: usize, bytes: &[u8]) -> QueuedLine<usize> {
        QueuedLine { bytes: bytes.to_vec(), tag }
    }

    proptest! {
        #[test]
        fn p02_rest_is_what_was_pushed_and_not_sent(
            steps in prop::collection::vec((prop::collection::vec(any::<u8>(), 1..40), 0..60_usize, 0..20_usize), 0..40),
        ) {
            let mut queue = LineQueue::default();
            // The unsent bytes of each line, and whether it is whole.
            let mut model: Vec<(usize, Vec<u8>, bool)> = Vec::new();
            for (tag, (bytes, sent, removed)) in steps.into_iter().enumerate() {
                queue.push(line(tag, &bytes));
                model.push((tag, bytes, true));
                let mut sent = sent.min(model.iter().map(|(_, bytes, _)| bytes.len()).sum());
                queue.advance(sent);
                while sent > 0 {
                    let (_, bytes, whole) = &mut model[0];
                    let part = sent.min(bytes.len());
                    bytes.drain(..part);
                    (*whole, sent) = (false, sent - part);
                    if bytes.is_empty() {
                        model.remove(0);
                    }
                }
                let expected = model.iter().position(|(tag, _, whole)| *tag == removed && *whole);
                let expected = expected.map(|at| model.remove(at)).map(|(tag, bytes, _)| QueuedLine { bytes, tag });
                prop_assert_eq!(queue.remove(|tag| *tag == removed), expected);
                let parts: Vec<Vec<u8>> = queue.parts().map(<[u8]>::to_vec).collect();
                prop_assert_eq!(&parts, &model.iter().map(|(_, bytes, _)| bytes.clone()).collect::<Vec<_>>());
                prop_assert_eq!(queue.len(), parts.concat().len());
                let limited = model.iter().filter(|(tag, ..)| tag % 3 == 0).map(|(_, bytes, _)| bytes.len());
                prop_assert_eq!(queue.limited_len(), limited.sum::<usize>());
                prop_assert_eq!(queue.is_empty(), model.is_empty());
            }
            let is_even = |tag: &usize| tag.is_multiple_of(2);
            let (taken, kept): (Vec<_>, Vec<_>) = model.into_iter().partition(|(tag, _, whole)| *whole && is_even(tag));
            let taken: Vec<_> = taken.into_iter().map(|(tag, bytes, _)| QueuedLine { bytes, tag }).collect();
            prop_assert_eq!(queue.take_unsent(is_even), taken);
            let limited = kept.iter().filter(|(tag, ..)| tag % 3 == 0).map(|(_, bytes, _)| bytes.len());
            prop_assert_eq!(queue.limited_len(), limited.sum::<usize>());
            let kept: Vec<_> = kept.into_iter().map(|(_, bytes, _)| bytes).collect();
            prop_assert_eq!(queue.len(), kept.concat().len());
            prop_assert_eq!(queue.parts().map(<[u8]>::to_vec).collect::<Vec<_>>(), kept);
        }
    }
}
