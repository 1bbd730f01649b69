//! The answers to the requests of a batch, which are sent as one array when the last one is there.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// The most bytes of results that are kept until the last answer is there. Errors replace further ones.
const RESULTS_MAX: usize = 1 << 20;

/// The array of the answers so far. The requests of the batch share it.
#[derive(Debug)]
pub(crate) struct BatchReply(Mutex<Answers>);

#[derive(Debug)]
struct Answers {
    /// The number of missing answers.
    missing: usize,
    array: Vec<u8>,
}

impl BatchReply {
    /// For this number of requests.
    pub(super) fn new(requests: usize) -> Self {
        Self(Mutex::new(Answers { missing: requests, array: Vec::new() }))
    }

    /// Whether there is room for an answer of this length. There is always room for a first answer, and for an error.
    pub(super) fn has_room(&self, length: usize) -> bool {
        let array = &self.lock().array;
        array.is_empty() || array.len().saturating_add(length) <= RESULTS_MAX
    }

    /// Adds an answer, which is a line. Returns the array, as a line, with the last one.
    pub(super) fn add(&self, line: &[u8]) -> Option<Vec<u8>> {
        let mut answers = self.lock();
        let Answers { missing, array } = &mut *answers;
        array.push(if array.is_empty() { b'[' } else { b',' });
        array.extend_from_slice(line.trim_ascii_end());
        *missing = missing.saturating_sub(1);
        if *missing > 0 {
            return None;
        }
        array.extend_from_slice(b"]\n");
        Some(std::mem::take(array))
    }

    fn lock(&self) -> MutexGuard<'_, Answers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p02_answers_are_one_array_in_the_order_in_which_they_came() {
        let reply = BatchReply::new(3);
        assert_eq!(reply.add(b"{\"id\":2}\n"), None);
        assert_eq!(reply.add(b"{\"id\":1}\n"), None);
        assert_eq!(reply.add(b"{\"id\":3}\n").unwrap(), b"[{\"id\":2},{\"id\":1},{\"id\":3}]\n");
    }

    #[test]
    fn p07_results_that_wait_for_the_last_one_are_bounded() {
        let reply = BatchReply::new(3);
        assert!(reply.has_room(2 * RESULTS_MAX));
        reply.add(&vec![b'x'; RESULTS_MAX / 2]);
        assert!(reply.has_room(RESULTS_MAX / 4) && !reply.has_room(RESULTS_MAX));
    }
}
