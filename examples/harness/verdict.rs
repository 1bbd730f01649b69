//! How one attempt to run a test ended.

use super::tap::TapResult;
use pipewright::{Exit, ExitCause};
use std::{sync::Arc, time::Duration};

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Verdict {
    Passed,
    /// A TAP program that skips all its points.
    Skipped,
    Failed,
    /// It left a process or an open output behind, which is a failure on request only.
    LeakFailed,
    TimedOut,
    NotStarted,
    /// The harness was interrupted, so there is no result.
    Interrupted,
}

impl Verdict {
    pub(crate) fn is_failure(self) -> bool {
        match self {
            Self::Failed | Self::LeakFailed | Self::TimedOut | Self::NotStarted => true,
            Self::Passed | Self::Skipped | Self::Interrupted => false,
        }
    }
}

/// One attempt to run a test.
#[derive(Debug)]
pub(crate) struct Attempt {
    /// Counted from 1.
    pub(crate) number: u32,
    pub(crate) verdict: Verdict,
    /// The reason of the verdict, if there is more to say.
    pub(crate) reason: Option<String>,
    pub(crate) exit: Option<Arc<Exit>>,
    pub(crate) duration: Duration,
    /// Whether it took longer than the slow timeout.
    pub(crate) is_slow: bool,
    /// What the test left behind, one process or stream each.
    pub(crate) leaks: Vec<String>,
    /// What the test wrote, if it is to be shown.
    pub(crate) output: Option<String>,
}

impl Attempt {
    /// A first attempt that passed, with nothing to say about it.
    pub(crate) fn of(exit: Option<Arc<Exit>>) -> Self {
        Self {
            number: 1,
            verdict: Verdict::Passed,
            reason: None,
            exit,
            duration: Duration::ZERO,
            is_slow: false,
            leaks: Vec::new(),
            output: None,
        }
    }
}

/// The verdict, and its reason.
pub(crate) fn judge(exit: &Exit, tap: Option<TapResult>, fails_on_leaks: bool) -> (Verdict, Option<String>) {
    match exit.cause {
        // However it ended: a test that handles SIGTERM may exit with 0.
        ExitCause::TimeLimit => return (Verdict::TimedOut, None),
        ExitCause::SupervisorEnd | ExitCause::Stop | ExitCause::Kill => return (Verdict::Interrupted, None),
        _ => {}
    }
    let tap_failure = match &tap {
        Some(TapResult::Failed(reason)) => Some(reason.clone()),
        _ => None,
    };
    if !exit.success() {
        let reason = tap_failure.map_or_else(|| exit.to_string(), |failure| format!("{failure}; {exit}"));
        return (Verdict::Failed, Some(reason));
    }
    if tap_failure.is_some() {
        return (Verdict::Failed, tap_failure);
    }
    if fails_on_leaks && !leaks(exit).is_empty() {
        return (Verdict::LeakFailed, None);
    }
    match tap {
        Some(TapResult::Skipped(reason)) => (Verdict::Skipped, Some(reason).filter(|reason| !reason.is_empty())),
        Some(TapResult::Passed { points, skipped: 0 }) => (Verdict::Passed, Some(format!("{points} points"))),
        Some(TapResult::Passed { points, skipped }) => {
            (Verdict::Passed, Some(format!("{points} points, {skipped} of them skipped")))
        }
        _ => (Verdict::Passed, None),
    }
}

/// What the process left behind: its descendants, and its streams that a process holds open which is not one of them.
pub(crate) fn leaks(exit: &Exit) -> Vec<String> {
    let is_held =
        |stream: &str| exit.survivors.iter().any(|survivor| survivor.holds.iter().any(|held| **held == *stream));
    let streams = exit.leaked_streams.iter().filter(|leaked| !is_held(&leaked.stream)).map(ToString::to_string);
    exit.survivors.iter().map(ToString::to_string).chain(streams).collect()
}
