//! The numbers of slots: each running task has the lowest one that was free when it started.

use std::{cmp::Reverse, collections::BinaryHeap};

/// The free numbers, from 1.
#[derive(Debug, Default)]
pub(crate) struct SlotNumbers {
    /// Numbers up to `highest` that are free.
    free: BinaryHeap<Reverse<u32>>,
    /// The highest number that was taken so far.
    highest: u32,
}

impl SlotNumbers {
    pub(crate) fn take(&mut self) -> u32 {
        if let Some(Reverse(number)) = self.free.pop() {
            return number;
        }
        self.highest = self.highest.saturating_add(1);
        self.highest
    }

    pub(crate) fn give_back(&mut self, number: u32) {
        self.free.push(Reverse(number));
    }
}
