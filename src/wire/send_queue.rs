//! Bytes that wait to be sent.

/// A queue of bytes of which the front may be sent. To move the rest to the front at each write would cost the square of a long line's
/// length.
#[derive(Debug, Default)]
pub(crate) struct SendQueue {
    bytes: Vec<u8>,
    /// How many of them are sent.
    sent: usize,
}

impl SendQueue {
    pub(crate) fn len(&self) -> usize {
        self.rest().len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest().is_empty()
    }

    /// What is still to be sent.
    pub(crate) fn rest(&self) -> &[u8] {
        self.bytes.get(self.sent..).unwrap_or_default()
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        // Moved when more than half of it is sent: the cost of moving is less than that of what was sent.
        if self.sent > self.bytes.len() / 2 {
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// So many bytes of the rest are sent.
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
        fn p02_what_is_pushed_is_what_is_left_behind_what_was_sent(
            steps in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..40), 0..60_usize), 0..40),
        ) {
            let (mut outgoing, mut model) = (SendQueue::default(), Vec::new());
            for (bytes, sent) in steps {
                outgoing.push(&bytes);
                model.extend_from_slice(&bytes);
                let sent = sent.min(model.len());
                outgoing.advance(sent);
                model.drain(..sent);
                prop_assert_eq!(outgoing.rest(), model.as_slice());
                prop_assert_eq!((outgoing.len(), outgoing.is_empty()), (model.len(), model.is_empty()));
            }
        }
    }

    #[test]
    fn p06_sending_a_long_line_in_parts_does_not_move_its_rest() {
        const LENGTH: usize = 1 << 20;
        let mut outgoing = SendQueue::from(vec![b'x'; LENGTH]);
        let begin = outgoing.rest().as_ptr();
        for sent in (0..LENGTH).step_by(4096) {
            assert_eq!(outgoing.rest().as_ptr().addr() - begin.addr(), sent);
            outgoing.advance(4096);
        }
        assert!(outgoing.is_empty());
    }
}
