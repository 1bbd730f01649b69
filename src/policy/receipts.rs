//! Whether answers of a worker wait for a consumer that has stopped receiving events.

use std::time::{Duration, Instant};

/// The consumer has stopped if it has received nothing for this long.
const SILENCE_MAX: Duration = Duration::from_millis(100);
/// The time between two checks.
pub(crate) const CHECK_INTERVAL: Duration = Duration::from_millis(25);

/// Why an answer may have to wait for the consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Obstacle {
    /// The control window is full of events that are not received, and the connection is not read.
    FullWindow,
    /// The answer may depend on the program: the worker waits for the answer to a request that is not received, or for room in a pipe whose
    /// window is full, or messages wait for their handler.
    Program,
}

/// What becomes of the open calls of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CallOutlook {
    /// Their answers can arrive.
    Clear,
    /// Their answers are held up, by a consumer that is not known to have stopped.
    HeldUp,
    /// The consumer has stopped. Only the program can tell whether it goes on, so the calls have their time; at their timeouts this is the
    /// reason.
    Doubtful,
    /// The consumer has stopped, and no answer can be read before it goes on: the calls fail.
    Hopeless,
}

/// Observes whether the consumer receives events while answers wait for it.
#[derive(Debug, Default)]
pub(crate) struct ReceiptWatch {
    /// `None` while nothing is in the way.
    silence: Option<Silence>,
}

#[derive(Debug, Clone, Copy)]
struct Silence {
    /// How many events were received.
    received: u64,
    lasted: Duration,
    checked: Instant,
}

impl ReceiptWatch {
    /// Whether the last check has found an obstacle.
    pub(crate) fn is_silent(&self) -> bool {
        self.silence.is_some()
    }

    /// Checks again, after `CHECK_INTERVAL` or at any other time. `received` counts what the consumer has received so far. Events are
    /// received in the order in which they were sent, so any receipt is progress, also that of another worker's event.
    pub(crate) fn check(&mut self, obstacle: Option<Obstacle>, received: u64, now: Instant) -> CallOutlook {
        let Some(obstacle) = obstacle else {
            self.silence = None;
            return CallOutlook::Clear;
        };
        let silence = match self.silence {
            Some(Silence { received: before, lasted, checked }) if before == received => {
                // If a check comes late, the process did not run, and neither did the consumer.
                let since = now.saturating_duration_since(checked).min(CHECK_INTERVAL);
                Silence { received, lasted: lasted.saturating_add(since), checked: now }
            }
            _ => Silence { received, lasted: Duration::ZERO, checked: now },
        };
        self.silence = Some(silence);
        match obstacle {
            _ if silence.lasted < SILENCE_MAX => CallOutlook::HeldUp,
            Obstacle::Program => CallOutlook::Doubtful,
            Obstacle::FullWindow => CallOutlook::Hopeless,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deadline::start;
    use CallOutlook as Outlook;
    use Obstacle::FullWindow;
    use proptest::prelude::*;

    /// The outlooks at checks every `interval`, with the numbers of received events at each.
    fn outlooks(obstacle: Obstacle, interval: Duration, received: impl IntoIterator<Item = u64>) -> Vec<Outlook> {
        let (start, mut watch) = (start(), ReceiptWatch::default());
        let check = |(nth, received)| watch.check(Some(obstacle), received, start + interval * nth);
        (0..).zip(received).map(check).collect()
    }

    #[test]
    fn p15_calls_fail_after_100_ms_without_a_receipt() {
        let seen = outlooks(FullWindow, CHECK_INTERVAL, [7; 6]);
        let held_up = Outlook::HeldUp;
        assert_eq!(seen, [held_up, held_up, held_up, held_up, Outlook::Hopeless, Outlook::Hopeless]);
        let seen = outlooks(Obstacle::Program, CHECK_INTERVAL, [7; 5]);
        assert_eq!(seen.last(), Some(&Outlook::Doubtful), "what the program does next is not known");
    }

    #[test]
    fn p15_a_receipt_or_a_clear_way_begins_the_time_again() {
        let seen = outlooks(FullWindow, CHECK_INTERVAL, [7, 7, 7, 7, 8, 8, 8, 8, 8]);
        assert_eq!(seen.iter().filter(|outlook| **outlook == Outlook::Hopeless).count(), 1, "{seen:?}");
        let (start, mut watch) = (start(), ReceiptWatch::default());
        let at = |ms| start + Duration::from_millis(ms);
        for ms in [0, 25, 50, 75] {
            watch.check(Some(FullWindow), 7, at(ms));
        }
        assert_eq!(watch.check(None, 7, at(90)), Outlook::Clear);
        assert_eq!(watch.check(Some(FullWindow), 7, at(100)), Outlook::HeldUp);
    }

    #[test]
    fn p15_time_in_which_the_process_did_not_run_is_no_silence() {
        let seen = outlooks(FullWindow, Duration::from_secs(10), [7; 5]);
        assert_eq!(seen.iter().position(|outlook| *outlook == Outlook::Hopeless), Some(4), "{seen:?}");
    }

    proptest! {
        #[test]
        fn p15_a_slow_consumer_never_ends_a_call(intervals in prop::collection::vec(0..90_u64, 1..200), offset in 0..25_u64) {
            // An event is received after each interval, and the loop checks every 25 ms.
            let received_at = |ms: u64| {
                let times = intervals.iter().scan(0, |now, interval| { *now += interval; Some(*now) });
                times.filter(|time| *time <= ms).count() as u64
            };
            let end: u64 = intervals.iter().sum();
            let (start, mut watch) = (start(), ReceiptWatch::default());
            for ms in (offset..end).step_by(25) {
                let outlook = watch.check(Some(FullWindow), received_at(ms), start + Duration::from_millis(ms));
                prop_assert_eq!(outlook, Outlook::HeldUp);
            }
        }
    }
}
