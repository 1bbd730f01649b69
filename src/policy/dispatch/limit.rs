//! Time limits of tasks.

use std::time::Duration;

/// How many durations are kept for the median.
const SAMPLES: usize = 101;
/// How many are needed.
const SAMPLES_MIN: usize = 5;

/// A limit for the running time of tasks: of their [timeout](crate::pool::PoolBuilder::timeout), or of being
/// [slow](crate::pool::PoolBuilder::slow_after). A `Duration` converts into a fixed one.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub enum TimeLimit {
    /// No limit.
    #[default]
    Never,
    /// So long.
    After(Duration),
    /// So many times the median of the last 101 tasks of the pool that were answered. No limit applies before five tasks were.
    Median {
        /// The factor.
        factor: f64,
        /// The shortest limit.
        min: Duration,
    },
}

impl From<Duration> for TimeLimit {
    fn from(time: Duration) -> Self {
        Self::After(time)
    }
}

impl TimeLimit {
    /// The limit now; `None` if there is none.
    pub(crate) fn now(self, median: &RunningMedian) -> Option<Duration> {
        match self {
            Self::Never => None,
            Self::After(time) => Some(time),
            Self::Median { factor, min } => {
                let seconds = median.get()?.as_secs_f64() * factor;
                Some(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX).max(min))
            }
        }
    }

    /// The time to check, counted from the start of the task; `None` if there is no limit.
    pub(crate) fn check_after(self, median: &RunningMedian, ran: Duration) -> Option<Duration> {
        match (self, self.now(median)) {
            (Self::Never, _) => None,
            (_, Some(limit)) => Some(limit),
            // The median is not known yet.
            (Self::Median { min, .. }, None) => Some(ran.saturating_add(min.max(Duration::from_millis(100)))),
            (Self::After(time), None) => Some(time),
        }
    }
}

/// The median of the last durations.
#[derive(Debug, Default)]
pub(crate) struct RunningMedian {
    /// A ring.
    last: Vec<Duration>,
    next: usize,
}

impl RunningMedian {
    pub(crate) fn add(&mut self, duration: Duration) {
        match self.last.get_mut(self.next) {
            Some(oldest) => *oldest = duration,
            None => self.last.push(duration),
        }
        self.next = (self.next + 1) % SAMPLES;
    }

    /// `None` before the first few.
    pub(crate) fn get(&self) -> Option<Duration> {
        if self.last.len() < SAMPLES_MIN {
            return None;
        }
        let mut sorted = self.last.clone();
        let middle = sorted.len() / 2;
        Some(*sorted.select_nth_unstable(middle).1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_follows_the_last_durations() {
        let mut median = RunningMedian::default();
        let seconds = Duration::from_secs;
        let limit = TimeLimit::Median { factor: 3.0, min: seconds(2) };
        for n in [9, 1, 2, 8] {
            median.add(seconds(n));
            assert_eq!((median.get(), limit.now(&median)), (None, None));
        }
        assert_eq!(limit.check_after(&median, seconds(4)), Some(seconds(6)), "checked again later");
        median.add(seconds(3));
        assert_eq!((median.get(), limit.now(&median)), (Some(seconds(3)), Some(seconds(9))));
        for _ in 0..SAMPLES {
            median.add(Duration::from_millis(1));
        }
        assert_eq!(limit.check_after(&median, seconds(1)), Some(seconds(2)), "the minimum");
        assert_eq!(TimeLimit::Never.check_after(&median, seconds(1)), None);
        assert_eq!(TimeLimit::After(seconds(5)).check_after(&RunningMedian::default(), seconds(1)), Some(seconds(5)));
    }
}
