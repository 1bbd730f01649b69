//! The call that makes a worker ready: when it is sent, when it is repeated, and what its answers mean.

use super::readiness::{ReadinessInput, ReadinessSource};
use crate::deadline::Deadline;
use std::time::{Duration, Instant};

/// The pause before the first and before late repetitions; it doubles in between.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// What the result of a [readiness call](crate::Readiness::call) means.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a call of a user's closure returns one of these three")]
pub enum ReadinessAnswer {
    /// The worker is ready.
    Ready,
    /// The worker is not ready yet: the call is repeated after a pause.
    NotYet,
    /// The worker can never be used, for this reason, for example because of its version. It is stopped, and not restarted.
    Fatal(String),
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ReadinessCallInput {
    /// The worker has connected to its control pipe.
    Connected,
    /// The worker has answered with a result.
    Answered,
    /// The worker has answered with an error, or the call could not be sent.
    Failed { error: Box<str>, is_permanent: bool },
    /// What the result means.
    Judged(ReadinessAnswer),
    /// The time of `poll_timeout` has come.
    Timeout,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ReadinessCallOutput {
    /// Send the call.
    Call,
    /// Ask what the result means.
    Judge,
    /// The end of the handshake, for the readiness.
    End(ReadinessInput),
}

/// The handshake of one incarnation.
#[derive(Debug)]
pub(crate) struct ReadinessCall {
    state: CallState,
    next_pause: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CallState {
    /// The worker has not connected.
    Waiting,
    /// The call was sent.
    Called,
    /// The meaning of the result is not known yet.
    Judging,
    /// The call is repeated at this time.
    Pausing(Deadline),
    Over,
}

impl Default for ReadinessCall {
    fn default() -> Self {
        Self { state: CallState::Waiting, next_pause: FIRST_PAUSE }
    }
}

impl ReadinessCall {
    pub(crate) fn handle(&mut self, input: ReadinessCallInput, now: Instant) -> Option<ReadinessCallOutput> {
        let (state, output) = match (self.state, input) {
            (CallState::Waiting, ReadinessCallInput::Connected) => (CallState::Called, ReadinessCallOutput::Call),
            (CallState::Pausing(until), ReadinessCallInput::Timeout) if until.is_due(now) => {
                (CallState::Called, ReadinessCallOutput::Call)
            }
            (CallState::Called, ReadinessCallInput::Answered) => (CallState::Judging, ReadinessCallOutput::Judge),
            (CallState::Judging, ReadinessCallInput::Judged(ReadinessAnswer::NotYet)) => {
                self.state = CallState::Pausing(Deadline::after(now, self.next_pause));
                self.next_pause = self.next_pause.saturating_mul(2).min(LONGEST_PAUSE);
                return None;
            }
            (CallState::Judging, ReadinessCallInput::Judged(ReadinessAnswer::Ready)) => {
                end(ReadinessInput::Observed(ReadinessSource::Call))
            }
            (CallState::Judging, ReadinessCallInput::Judged(ReadinessAnswer::Fatal(reason))) => {
                end(ReadinessInput::Rejected(reason.into()))
            }
            // The connection can end in any state.
            (
                CallState::Waiting | CallState::Called | CallState::Pausing(_),
                ReadinessCallInput::Failed { error, is_permanent },
            ) => end(if is_permanent { ReadinessInput::Rejected(error) } else { ReadinessInput::CallFailed(error) }),
            (
                CallState::Waiting | CallState::Called | CallState::Judging | CallState::Pausing(_) | CallState::Over,
                ReadinessCallInput::Connected
                | ReadinessCallInput::Answered
                | ReadinessCallInput::Failed { .. }
                | ReadinessCallInput::Judged(_)
                | ReadinessCallInput::Timeout,
            ) => return None,
        };
        self.state = state;
        Some(output)
    }

    /// When to pass `Timeout`, if no other input comes first.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            CallState::Pausing(until) => until.poll_timeout(),
            CallState::Waiting | CallState::Called | CallState::Judging | CallState::Over => None,
        }
    }

    /// Whether the meaning of a result is awaited.
    pub(crate) fn is_judging(&self) -> bool {
        self.state == CallState::Judging
    }
}

fn end(input: ReadinessInput) -> (CallState, ReadinessCallOutput) {
    (CallState::Over, ReadinessCallOutput::End(input))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deadline::start;
    use proptest::prelude::*;

    fn judged(answer: ReadinessAnswer) -> ReadinessCallInput {
        ReadinessCallInput::Judged(answer)
    }

    fn failed(is_permanent: bool) -> ReadinessCallInput {
        ReadinessCallInput::Failed { error: "no".into(), is_permanent }
    }

    /// A handshake whose first call is answered.
    fn answered(now: Instant) -> ReadinessCall {
        let mut call = ReadinessCall::default();
        assert_eq!(call.handle(ReadinessCallInput::Answered, now), None, "nothing was sent");
        assert_eq!(call.handle(ReadinessCallInput::Connected, now), Some(ReadinessCallOutput::Call));
        assert_eq!(call.handle(ReadinessCallInput::Connected, now), None);
        assert_eq!(call.handle(ReadinessCallInput::Answered, now), Some(ReadinessCallOutput::Judge));
        assert!(call.is_judging());
        call
    }

    #[test]
    fn p15_call_is_repeated_after_growing_pauses() {
        let mut now = start();
        let mut call = answered(now);
        let mut pauses = Vec::new();
        for _ in 0..9 {
            assert_eq!(call.handle(judged(ReadinessAnswer::NotYet), now), None);
            let until = call.poll_timeout().unwrap();
            assert_eq!(call.handle(ReadinessCallInput::Timeout, now), None, "too early");
            pauses.push((until - now).as_millis());
            now = until;
            assert_eq!(call.handle(ReadinessCallInput::Timeout, now), Some(ReadinessCallOutput::Call));
            assert_eq!(call.poll_timeout(), None);
            assert_eq!(call.handle(ReadinessCallInput::Answered, now), Some(ReadinessCallOutput::Judge));
        }
        assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 500, 500, 500]);
        let ready = ReadinessCallOutput::End(ReadinessInput::Observed(ReadinessSource::Call));
        assert_eq!(call.handle(judged(ReadinessAnswer::Ready), now), Some(ready));
        assert_eq!(call.handle(failed(true), now), None, "it is over");
    }

    #[test]
    fn p13_fatal_answers_and_permanent_errors_reject_the_worker() {
        let now = start();
        let rejected = ReadinessCallOutput::End(ReadinessInput::Rejected("no".into()));
        let mut call = answered(now);
        assert_eq!(call.handle(failed(true), now), None, "the result is there, whatever the connection does");
        assert_eq!(call.handle(judged(ReadinessAnswer::Fatal("no".into())), now).as_ref(), Some(&rejected));
        for (is_permanent, expected) in
            [(true, rejected), (false, ReadinessCallOutput::End(ReadinessInput::CallFailed("no".into())))]
        {
            let mut call = ReadinessCall::default();
            call.handle(ReadinessCallInput::Connected, now);
            assert_eq!(call.handle(failed(is_permanent), now), Some(expected));
        }
    }

    proptest! {
        #[test]
        fn p15_any_history_ends_once_and_each_result_answers_one_call(history in prop::collection::vec((0..7_u8, 0..400_u64), 0..60)) {
            let (mut now, mut call) = (start(), ReadinessCall::default());
            let (mut calls, mut judgements, mut ends) = (0, 0, 0);
            for (input, pause_ms) in history {
                now += Duration::from_millis(pause_ms);
                let input = match input {
                    0 => ReadinessCallInput::Connected,
                    1 => ReadinessCallInput::Answered,
                    2 => judged(ReadinessAnswer::Ready),
                    3 => judged(ReadinessAnswer::Fatal("no".into())),
                    4 => failed(pause_ms % 2 == 0),
                    5 => ReadinessCallInput::Timeout,
                    _ => judged(ReadinessAnswer::NotYet),
                };
                match call.handle(input, now) {
                    Some(ReadinessCallOutput::Call) => calls += 1,
                    Some(ReadinessCallOutput::Judge) => judgements += 1,
                    Some(ReadinessCallOutput::End(_)) => ends += 1,
                    None => {}
                }
                prop_assert!(judgements <= calls && calls <= judgements + 1);
            }
            prop_assert!(ends <= 1);
            prop_assert!(ends == 0 || call.poll_timeout().is_none());
        }
    }
}
