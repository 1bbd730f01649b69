//! How many tests ended in which way.

use crate::{runner::TestResult, verdict::Verdict};

#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Tests that were started; a TAP program that skips everything counts as skipped.
    pub(crate) run: usize,
    pub(crate) passed: usize,
    /// Of those that passed.
    pub(crate) slow: usize,
    pub(crate) flaky: usize,
    pub(crate) leaky: usize,
    pub(crate) failed: usize,
    pub(crate) timed_out: usize,
    pub(crate) not_started: usize,
    pub(crate) interrupted: usize,
    pub(crate) skipped: usize,
    pub(crate) not_run: usize,
}

impl Counts {
    pub(crate) fn of(results: &[TestResult]) -> Self {
        let mut counts = Self::default();
        for result in results {
            counts.add(result);
        }
        counts
    }

    fn add(&mut self, result: &TestResult) {
        let Some(last) = result.last() else {
            self.not_run += 1;
            return;
        };
        self.run += usize::from(last.verdict != Verdict::Skipped);
        match last.verdict {
            Verdict::Passed => {
                self.passed += 1;
                self.slow += usize::from(last.is_slow);
                self.flaky += usize::from(result.is_flaky());
                self.leaky += usize::from(!last.leaks.is_empty());
            }
            Verdict::Failed | Verdict::LeakFailed => self.failed += 1,
            Verdict::TimedOut => self.timed_out += 1,
            Verdict::NotStarted => self.not_started += 1,
            Verdict::Interrupted => self.interrupted += 1,
            Verdict::Skipped => self.skipped += 1,
        }
    }

    pub(crate) fn has_failures(&self) -> bool {
        self.failed + self.timed_out + self.not_started > 0
    }

    /// `3/5 tests run: 2 passed (1 flaky), 1 failed, 7 skipped`. `others` were not selected.
    pub(crate) fn summary(&self, others: usize) -> String {
        let Self { run, passed, slow, flaky, leaky, failed, timed_out, not_started, interrupted, skipped, not_run } =
            *self;
        let tests = if not_run > 0 { format!("{run}/{}", count(run + not_run, "test")) } else { count(run, "test") };
        let mut parts = vec![format!("{tests} run: {passed} passed")];
        let of_passed = listed(&[(slow, "slow"), (flaky, "flaky"), (leaky, "leaky")]).join(", ");
        if !of_passed.is_empty() {
            parts = vec![format!("{tests} run: {passed} passed ({of_passed})")];
        }
        parts.extend(listed(&[
            (failed, "failed"),
            (not_started, "exec failed"),
            (timed_out, "timed out"),
            (interrupted, "interrupted"),
            (skipped + others, "skipped"),
        ]));
        parts.join(", ")
    }
}

/// `1 test`, `2 tests`.
pub(crate) fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// `1 slow`, `2 flaky`: the counts that are not zero.
fn listed(counts: &[(usize, &str)]) -> Vec<String> {
    counts.iter().filter(|(number, _)| *number > 0).map(|(number, what)| format!("{number} {what}")).collect()
}
