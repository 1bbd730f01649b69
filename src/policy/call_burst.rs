//! Bursts of calls. During one the control connection is not registered with the event loop, which saves two system calls a call.
//!
//! The loop is notified when a burst begins, and checks every [`CHECK_INTERVAL`] whether it continues. What the worker sends
//! unasked meanwhile is read by the next call, or at the end of the burst.

use std::time::{Duration, Instant};

/// The longest time between the starts of two calls of one burst.
const MAX_GAP: Duration = Duration::from_millis(1);
/// After this many such gaps in a row a burst begins.
const MIN_GAPS: u32 = 8;
pub(crate) const CHECK_INTERVAL: Duration = Duration::from_millis(2);

#[derive(Debug, Default)]
pub(crate) struct CallBurst {
    last_call: Option<Instant>,
    /// Calls in a row within `MAX_GAP`, up to `MIN_GAPS`.
    gaps: u32,
    is_active: bool,
    /// Since the last check.
    has_called: bool,
}

impl CallBurst {
    pub(crate) fn is_active(&self) -> bool {
        self.is_active
    }

    /// A call begins whose caller reads the reply itself. Returns whether a burst begins with it.
    pub(crate) fn on_call(&mut self, now: Instant) -> bool {
        let is_close = self.last_call.is_some_and(|last| now.saturating_duration_since(last) <= MAX_GAP);
        self.gaps = if is_close { (self.gaps + 1).min(MIN_GAPS) } else { 0 };
        (self.last_call, self.has_called) = (Some(now), true);
        let begins = self.gaps == MIN_GAPS && !self.is_active;
        self.is_active |= begins;
        begins
    }

    /// Ends the burst if there was no call since the last check. Returns whether it continues.
    pub(crate) fn check(&mut self) -> bool {
        self.is_active &= self.has_called;
        self.has_called = false;
        self.is_active
    }

    /// Ends the burst: a call waits for a reply that its caller does not read itself.
    pub(crate) fn reset(&mut self) {
        (self.is_active, self.gaps) = (false, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deadline::start;

    #[test]
    fn burst_begins_after_calls_in_close_succession() {
        let (mut burst, t0) = (CallBurst::default(), start());
        for call in 0..100 {
            assert!(!burst.on_call(t0 + 2 * MAX_GAP * call), "too far apart");
        }
        let t1 = t0 + Duration::from_secs(1);
        let begun: Vec<bool> = (0..20).map(|call| burst.on_call(t1 + MAX_GAP * call)).collect();
        assert_eq!(begun.iter().position(|begins| *begins), Some(8), "the first call follows none");
        assert_eq!(begun.iter().filter(|begins| **begins).count(), 1, "the start is returned once");
        assert!(burst.is_active());
    }

    #[test]
    fn burst_ends_without_calls_between_two_checks() {
        let (mut burst, t0) = (CallBurst::default(), start());
        assert!(!burst.check());
        assert_eq!((0..=MIN_GAPS).filter(|_| burst.on_call(t0)).count(), 1);
        assert!(burst.check() && burst.is_active());
        burst.on_call(t0);
        assert!(burst.check());
        assert!(!burst.check() && !burst.is_active());
        assert!(burst.on_call(t0), "the next call begins a new burst");
        burst.reset();
        assert!(!burst.is_active() && !burst.on_call(t0));
    }
}
