//! Calls that follow one another closely: between them the loop is not asked to listen, which would cost two system calls each.
//!
//! The loop is told when a burst begins, and looks in every [`LOOK`] whether it goes on. What the worker says unasked meanwhile
//! is read by the next call, or when the burst is over.

use std::time::{Duration, Instant};

/// Calls that begin no further apart belong together.
const GAP: Duration = Duration::from_millis(1);
/// So many of them make a burst.
const CALLS: u32 = 8;
/// How often the loop looks whether a burst goes on.
pub(crate) const LOOK: Duration = Duration::from_millis(2);

#[derive(Debug, Default)]
pub(crate) struct Burst {
    last: Option<Instant>,
    /// How many have followed closely, up to a burst.
    calls: u32,
    is_on: bool,
    /// Since the loop has looked.
    has_called: bool,
}

impl Burst {
    pub(crate) fn is_on(&self) -> bool {
        self.is_on
    }

    /// A caller reads for itself. True where that begins a burst, of which the loop is to be told.
    pub(crate) fn call(&mut self, now: Instant) -> bool {
        let is_close = self.last.is_some_and(|last| now.saturating_duration_since(last) <= GAP);
        self.calls = if is_close { (self.calls + 1).min(CALLS) } else { 0 };
        (self.last, self.has_called) = (Some(now), true);
        let begins = self.calls == CALLS && !self.is_on;
        self.is_on |= begins;
        begins
    }

    /// The loop looks.
    pub(crate) fn goes_on(&mut self) -> bool {
        self.is_on &= self.has_called;
        self.has_called = false;
        self.is_on
    }

    /// Somebody waits for an answer that he does not read himself.
    pub(crate) fn end(&mut self) {
        (self.is_on, self.calls) = (false, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::super::deadline::start;
    use super::*;

    #[test]
    fn only_calls_that_follow_closely_make_a_burst() {
        let (mut burst, t0) = (Burst::default(), start());
        for call in 0..100 {
            assert!(!burst.call(t0 + 2 * GAP * call), "too far apart");
        }
        let t1 = t0 + Duration::from_secs(1);
        let begun: Vec<bool> = (0..20).map(|call| burst.call(t1 + GAP * call)).collect();
        assert_eq!(begun.iter().position(|begins| *begins), Some(8), "the first has nobody before it");
        assert_eq!(begun.iter().filter(|begins| **begins).count(), 1, "it is told once");
        assert!(burst.is_on());
    }

    #[test]
    fn it_is_over_when_nobody_calls_between_two_looks() {
        let (mut burst, t0) = (Burst::default(), start());
        assert!(!burst.goes_on());
        assert_eq!((0..=CALLS).filter(|_| burst.call(t0)).count(), 1);
        assert!(burst.goes_on() && burst.is_on());
        burst.call(t0);
        assert!(burst.goes_on());
        assert!(!burst.goes_on() && !burst.is_on());
        assert!(burst.call(t0), "and the next call begins it anew");
        burst.end();
        assert!(!burst.is_on() && !burst.call(t0));
    }
}
