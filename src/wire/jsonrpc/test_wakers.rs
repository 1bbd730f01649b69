//! Wakers for tests.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Wake,
};

/// Counts how often its task was woken.
#[derive(Default)]
pub(crate) struct Count(AtomicUsize);

impl Count {
    pub(crate) fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

pub(crate) struct Panicking;

impl Wake for Panicking {
    #[expect(clippy::panic, reason = "the tests are about it")]
    fn wake(self: Arc<Self>) {
        std::panic::panic_any("a waker that panics, for a test");
    }
}
