//! Bytes that wait to be sent.

/// A queue of bytes. Sent bytes are not removed one write at a time: moving the rest to the front after each write would cost the
/// square of a long line's length.
#[derive(Debug, Default)]
pub(crate) struct SendQueue {
    bytes: Vec<u8>,
    /// The number of bytes at the front that are sent.
    sent: usize,
}

impl SendQueue {
    pub(crate) fn is_empty(&self) -> bool {
        self.rest().is_empty()
    }

    /// The bytes that are not sent yet.
    pub(crate) fn rest(&self) -> &[u8] {
        self.bytes.get(self.sent..).unwrap_or_default()
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        // Once more than half is sent, moving the rest costs less than the sending did.
        if self.sent > self.bytes.len() / 2 {
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// Removes `sent` bytes from the front.
    pub(crate) fn advance(&mut self, sent: usize) {
        self.sent = self.sent.saturating_add(sent).min(self.bytes.len());
        if self.is_empty() {
            *self = Self::default();
        }
    }
}

impl From<Vec<u8>> for SendQueue {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, sent: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn p02_rest_is_what_was_pushed_and_not_sent(
            steps in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..40), 0..60_usize), 0..40),
        ) {
            let (mut queue, mut model) = (SendQueue::default(), Vec::new());
            for (bytes, sent) in steps {
                queue.push(&bytes);
                model.extend_from_slice(&bytes);
                let sent = sent.min(model.len());
                queue.advance(sent);
                model.drain(..sent);
                prop_assert_eq!(queue.rest(), model.as_slice());
                prop_assert_eq!(queue.is_empty(), model.is_empty());
            }
        }
    }

    #[test]
    fn p06_sending_a_long_line_in_parts_does_not_move_its_rest() {
        const LENGTH: usize = 1 << 20;
        let mut queue = SendQueue::from(vec![b'x'; LENGTH]);
        let begin = queue.rest().as_ptr();
        for sent in (0..LENGTH).step_by(4096) {
            assert_eq!(queue.rest().as_ptr().addr() - begin.addr(), sent);
            queue.advance(4096);
        }
        assert!(queue.is_empty());
    }
}
