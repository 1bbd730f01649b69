//! The lifecycle of one process, from spawn to reap: how a stop proceeds, how long its streams are drained, when it is killed.

use crate::deadline::Deadline;
use std::time::{Duration, Instant};

/// An output stream of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum StreamId {
    Messages,
    Stdout,
    Stderr,
}

impl StreamId {
    pub(crate) const ALL: [Self; 3] = [Self::Messages, Self::Stdout, Self::Stderr];

    /// The name in events and errors.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Messages => "messages",
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }

    pub(crate) fn index(self) -> usize {
        match self {
            Self::Messages => 0,
            Self::Stdout => 1,
            Self::Stderr => 2,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LifecycleInput {
    /// End of file on a stream: no process holds its write end any more.
    StreamEnded(StreamId),
    /// The process has exited and is not reaped. What it wrote before was read before this input.
    ProcessExited,
    /// No process is left in the process group of the exited worker. The answer to `WaitForProcessGroup`.
    ProcessGroupEnded,
    /// The process has exited, but its status cannot be taken yet: a tracer (debugger, strace) has to take it first.
    StatusUnavailable,
    /// The pidfd cannot be registered, so the exit would not be noticed.
    WatchFailed,
    Stop(StopRequest),
    /// The time of `poll_timeout` may have come.
    Timeout,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StopRequest {
    /// Begins the stop. During a stop, goes on to the next stage.
    Advance,
    /// Begins the stop, if it has not begun, and sends SIGKILL after this time at the latest.
    Within(Duration),
    /// The current stage is over: it had nothing to do, or its call was answered.
    StageDone,
    /// The worker asks for more time (`EXTEND_TIMEOUT_USEC`).
    Extend(Duration),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LifecycleOutput {
    /// Take the steps of the stage with this index of the stop policy.
    RunStopStage(usize),
    /// The process exited during a stop: check whether other processes of its group run, and wait for their end.
    WaitForProcessGroup,
    /// Send SIGKILL to the process and its tree.
    Kill,
    /// Close a stream whose write end another process still holds, and report it as leaked.
    CloseLeaked(StreamId),
    /// Take the exit status and report the exit. The last output, unless `StatusUnavailable` follows.
    Reap,
    /// The process has not exited after SIGKILL (uninterruptible sleep): report an exit all the same. The last output.
    ReportUnkillable,
}

#[derive(Debug, Clone)]
pub(crate) struct Timeouts {
    /// From the exit of the process to the end of its streams.
    pub(crate) drain_timeout: Duration,
    /// One per stage of the stop policy. SIGKILL follows the last one.
    pub(crate) grace_periods: Vec<Duration>,
    /// By how much the worker can extend its stop in total.
    pub(crate) max_extension: Duration,
    /// From SIGKILL to `ReportUnkillable`.
    pub(crate) kill_timeout: Duration,
}

/// The first and the longest delay before the status is taken again. The kernel does not report when a tracer lets go.
const FIRST_STATUS_RETRY: Duration = Duration::from_millis(1);
const LAST_STATUS_RETRY: Duration = Duration::from_millis(256);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LifecycleState {
    Running,
    Stopping {
        stage: usize,
        until: Deadline,
    },
    /// The process has exited, and the rest of its process group goes on through the stages.
    GroupStopping {
        stage: usize,
        until: Deadline,
    },
    Killed,
    Draining {
        until: Deadline,
    },
    Reaping {
        pause: Duration,
    },
    AwaitingStatus {
        retry_at: Deadline,
        pause: Duration,
    },
    Ended,
}

#[derive(Debug)]
pub(crate) struct Lifecycle {
    state: LifecycleState,
    open: [bool; StreamId::ALL.len()],
    timeouts: Timeouts,
    /// When SIGKILL is sent, whatever the stages say.
    kill_at: Deadline,
    /// What is left of `max_extension`.
    extension: Duration,
    /// The end of every wait. The longest duration of a stop is reported to its caller, who relies on it.
    unkillable_at: Deadline,
}

impl Lifecycle {
    pub(crate) fn new(streams: impl IntoIterator<Item = StreamId>, timeouts: Timeouts) -> Self {
        let mut open = [false; StreamId::ALL.len()];
        for stream in streams {
            set(&mut open, stream, true);
        }
        let extension = timeouts.max_extension;
        Self {
            state: LifecycleState::Running,
            open,
            timeouts,
            kill_at: Deadline::NEVER,
            extension,
            unkillable_at: Deadline::NEVER,
        }
    }

    /// A stream was opened after the start.
    pub(crate) fn stream_opened(&mut self, stream: StreamId) {
        set(&mut self.open, stream, true);
    }

    /// Whether the process runs and is not being stopped.
    pub(crate) fn is_running(&self) -> bool {
        self.state == LifecycleState::Running
    }

    pub(crate) fn waits_for_group(&self) -> bool {
        matches!(self.state, LifecycleState::GroupStopping { .. })
    }

    /// When to call `handle` with `Timeout`, if no other input comes first.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            LifecycleState::Running | LifecycleState::Reaping { .. } | LifecycleState::Ended => None,
            LifecycleState::Stopping { until: due, .. }
            | LifecycleState::GroupStopping { until: due, .. }
            | LifecycleState::Draining { until: due } => due.poll_timeout(),
            LifecycleState::Killed => self.unkillable_at.poll_timeout(),
            LifecycleState::AwaitingStatus { retry_at, .. } => retry_at.or(self.unkillable_at).poll_timeout(),
        }
    }

    pub(crate) fn handle(&mut self, input: LifecycleInput, now: Instant) -> Vec<LifecycleOutput> {
        use LifecycleInput as Input;
        use LifecycleState as State;
        match (self.state, input) {
            (_, Input::StreamEnded(stream)) => self.stream_ended(stream),
            (State::Stopping { stage, until }, Input::ProcessExited) => {
                self.state = State::GroupStopping { stage, until };
                vec![LifecycleOutput::WaitForProcessGroup]
            }
            (State::Running | State::Killed, Input::ProcessExited)
            | (State::GroupStopping { .. }, Input::ProcessGroupEnded) => self.drain(now),
            (State::Reaping { pause }, Input::StatusUnavailable) => {
                let retry_at = Deadline::after(now, pause);
                self.state = State::AwaitingStatus { retry_at, pause: (pause * 2).min(LAST_STATUS_RETRY) };
                Vec::new()
            }
            (_, Input::Stop(request)) => self.handle_stop(request, now),
            (State::Stopping { stage, until } | State::GroupStopping { stage, until }, Input::Timeout)
                if until.is_due(now) =>
            {
                self.begin_stage(stage + 1, now)
            }
            (State::Running | State::Stopping { .. }, Input::WatchFailed) => self.kill(now),
            (State::Killed | State::AwaitingStatus { .. }, Input::Timeout) if self.unkillable_at.is_due(now) => {
                self.state = State::Ended;
                vec![LifecycleOutput::ReportUnkillable]
            }
            (State::AwaitingStatus { retry_at, pause }, Input::Timeout) if retry_at.is_due(now) => {
                self.state = State::Reaping { pause };
                vec![LifecycleOutput::Reap]
            }
            (State::Draining { until }, Input::Timeout) if until.is_due(now) => self.close_leaked(),
            // Early timeouts, repeated inputs, and inputs after the end.
            (
                State::Running
                | State::Stopping { .. }
                | State::GroupStopping { .. }
                | State::Killed
                | State::AwaitingStatus { .. },
                Input::Timeout | Input::StatusUnavailable,
            )
            | (
                State::Running
                | State::Stopping { .. }
                | State::Killed
                | State::Draining { .. }
                | State::Reaping { .. }
                | State::AwaitingStatus { .. }
                | State::Ended,
                Input::ProcessGroupEnded,
            )
            | (State::GroupStopping { .. }, Input::ProcessExited)
            | (State::GroupStopping { .. } | State::Killed, Input::WatchFailed)
            | (
                State::Draining { .. } | State::Ended,
                Input::ProcessExited | Input::Timeout | Input::StatusUnavailable | Input::WatchFailed,
            )
            | (State::Reaping { .. }, Input::Timeout)
            | (State::Reaping { .. } | State::AwaitingStatus { .. }, Input::ProcessExited | Input::WatchFailed) => {
                Vec::new()
            }
        }
    }

    fn stream_ended(&mut self, stream: StreamId) -> Vec<LifecycleOutput> {
        set(&mut self.open, stream, false);
        match self.state {
            LifecycleState::Draining { .. } => self.reap_when_drained(),
            LifecycleState::Running
            | LifecycleState::Stopping { .. }
            | LifecycleState::GroupStopping { .. }
            | LifecycleState::Killed
            | LifecycleState::Reaping { .. }
            | LifecycleState::AwaitingStatus { .. }
            | LifecycleState::Ended => Vec::new(),
        }
    }

    fn handle_stop(&mut self, request: StopRequest, now: Instant) -> Vec<LifecycleOutput> {
        use LifecycleState as State;
        match (self.state, request) {
            (State::Running, StopRequest::Advance) => self.begin_stage(0, now),
            (State::Running, StopRequest::Within(time)) => {
                self.kill_at = Deadline::after(now, time);
                self.begin_stage(0, now)
            }
            (State::Stopping { stage, until }, StopRequest::Within(time)) => {
                self.kill_at = self.kill_at.or(Deadline::after(now, time));
                self.state = State::Stopping { stage, until: until.or(self.kill_at) };
                Vec::new()
            }
            (State::GroupStopping { stage, until }, StopRequest::Within(time)) => {
                self.kill_at = self.kill_at.or(Deadline::after(now, time));
                self.state = State::GroupStopping { stage, until: until.or(self.kill_at) };
                Vec::new()
            }
            (
                State::Stopping { stage, .. } | State::GroupStopping { stage, .. },
                StopRequest::Advance | StopRequest::StageDone,
            ) => self.begin_stage(stage + 1, now),
            (State::Stopping { stage, until }, StopRequest::Extend(time)) => {
                let time = time.min(self.extension);
                self.extension -= time;
                self.unkillable_at = self.unkillable_at.later(time);
                self.state = State::Stopping { stage, until: until.later(time).or(self.kill_at) };
                Vec::new()
            }
            (State::Draining { until }, StopRequest::Advance) => {
                self.state = State::Draining {
                    until: until.or(self.set_unkillable_after(Deadline::after(now, self.total_grace_period()))),
                };
                Vec::new()
            }
            (State::Draining { until }, StopRequest::Within(time)) => {
                self.state = State::Draining { until: until.or(self.set_unkillable_after(Deadline::after(now, time))) };
                Vec::new()
            }
            (State::AwaitingStatus { .. }, StopRequest::Advance | StopRequest::Within(_)) => {
                self.unkillable_at = self.unkillable_at.or(Deadline::after(now, self.timeouts.kill_timeout));
                Vec::new()
            }
            // Nothing is left to speed up.
            (State::Killed | State::Reaping { .. } | State::Ended, StopRequest::Advance | StopRequest::Within(_))
            | (
                State::Running
                | State::Killed
                | State::Draining { .. }
                | State::Reaping { .. }
                | State::AwaitingStatus { .. }
                | State::Ended,
                StopRequest::StageDone | StopRequest::Extend(_),
            )
            | (State::GroupStopping { .. }, StopRequest::Extend(_)) => Vec::new(),
        }
    }

    /// Begins this stage, or kills after the last one.
    fn begin_stage(&mut self, stage: usize, now: Instant) -> Vec<LifecycleOutput> {
        // At `kill_at` a stage would end in the instant in which it began, and its timeout would not be delivered.
        let may_last = !self.kill_at.is_due(now);
        let Some(&grace_period) = self.timeouts.grace_periods.get(stage).filter(|_| may_last) else {
            return self.kill(now);
        };
        let until = Deadline::after(now, grace_period).or(self.kill_at);
        self.state = match self.state {
            LifecycleState::GroupStopping { .. } => LifecycleState::GroupStopping { stage, until },
            LifecycleState::Running
            | LifecycleState::Stopping { .. }
            | LifecycleState::Killed
            | LifecycleState::Draining { .. }
            | LifecycleState::Reaping { .. }
            | LifecycleState::AwaitingStatus { .. }
            | LifecycleState::Ended => LifecycleState::Stopping { stage, until },
        };
        // All remaining stages may take their full grace periods.
        let rest = self.timeouts.grace_periods.get(stage + 1..).unwrap_or_default();
        let rest = rest.iter().fold(Duration::ZERO, |sum, period| sum.saturating_add(*period));
        self.set_unkillable_after(until.later(rest).or(self.kill_at));
        vec![LifecycleOutput::RunStopStage(stage)]
    }

    fn total_grace_period(&self) -> Duration {
        self.timeouts.grace_periods.iter().fold(Duration::ZERO, |sum, period| sum.saturating_add(*period))
    }

    fn set_unkillable_after(&mut self, killed_at: Deadline) -> Deadline {
        self.unkillable_at = killed_at.later(self.timeouts.kill_timeout);
        self.unkillable_at
    }

    fn kill(&mut self, now: Instant) -> Vec<LifecycleOutput> {
        let has_ended = self.waits_for_group();
        self.state = LifecycleState::Killed;
        self.unkillable_at = Deadline::after(now, self.timeouts.kill_timeout);
        let mut outputs = vec![LifecycleOutput::Kill];
        if has_ended {
            outputs.extend(self.drain(now));
        }
        outputs
    }

    fn drain(&mut self, now: Instant) -> Vec<LifecycleOutput> {
        self.state = LifecycleState::Draining {
            until: Deadline::after(now, self.timeouts.drain_timeout).or(self.unkillable_at),
        };
        self.reap_when_drained()
    }

    fn reap_when_drained(&mut self) -> Vec<LifecycleOutput> {
        if self.open.contains(&true) {
            return Vec::new();
        }
        self.state = LifecycleState::Reaping { pause: FIRST_STATUS_RETRY };
        vec![LifecycleOutput::Reap]
    }

    fn close_leaked(&mut self) -> Vec<LifecycleOutput> {
        self.state = LifecycleState::Reaping { pause: FIRST_STATUS_RETRY };
        let open = self.open;
        let held = StreamId::ALL.into_iter().filter(|stream| open.get(stream.index()) == Some(&true));
        held.map(LifecycleOutput::CloseLeaked).chain([LifecycleOutput::Reap]).collect()
    }
}

fn set(open: &mut [bool; StreamId::ALL.len()], stream: StreamId, value: bool) {
    if let Some(flag) = open.get_mut(stream.index()) {
        *flag = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deadline::start;
    use proptest::prelude::*;

    const DRAIN_TIMEOUT: Duration = Duration::from_millis(200);
    const GRACE_PERIOD: Duration = Duration::from_secs(2);
    const KILL_TIMEOUT: Duration = Duration::from_secs(5);

    fn timeouts() -> Timeouts {
        Timeouts {
            drain_timeout: DRAIN_TIMEOUT,
            grace_periods: vec![GRACE_PERIOD],
            max_extension: Duration::from_secs(3),
            kill_timeout: KILL_TIMEOUT,
        }
    }

    #[test]
    fn p01_exit_is_reported_after_every_stream_ended() {
        let t0 = start();
        let mut lifecycle = Lifecycle::new([StreamId::Messages, StreamId::Stderr], timeouts());
        assert_eq!(lifecycle.handle(LifecycleInput::ProcessExited, t0), []);
        assert_eq!(lifecycle.handle(LifecycleInput::StreamEnded(StreamId::Messages), t0), []);
        assert_eq!(lifecycle.handle(LifecycleInput::StreamEnded(StreamId::Stderr), t0), [LifecycleOutput::Reap]);
        assert_eq!(lifecycle.poll_timeout(), None);
    }

    #[test]
    fn p01_streams_may_end_before_the_process() {
        let t0 = start();
        let mut lifecycle = Lifecycle::new([StreamId::Messages], timeouts());
        assert_eq!(lifecycle.handle(LifecycleInput::StreamEnded(StreamId::Messages), t0), []);
        assert_eq!(lifecycle.poll_timeout(), None, "a process may run without open pipes");
        assert_eq!(lifecycle.handle(LifecycleInput::ProcessExited, t0), [LifecycleOutput::Reap]);
    }

    #[test]
    fn p04_leaked_stream_is_closed_after_drain_timeout() {
        let t0 = start();
        let mut lifecycle = Lifecycle::new(StreamId::ALL, timeouts());
        assert_eq!(lifecycle.handle(LifecycleInput::StreamEnded(StreamId::Stdout), t0), []);
        assert_eq!(lifecycle.handle(LifecycleInput::ProcessExited, t0), []);
        assert_eq!(lifecycle.poll_timeout(), Some(t0 + DRAIN_TIMEOUT));
        assert_eq!(lifecycle.handle(LifecycleInput::Timeout, t0 + DRAIN_TIMEOUT / 2), []);
        let outputs = lifecycle.handle(LifecycleInput::Timeout, t0 + DRAIN_TIMEOUT);
        let expected = [
            LifecycleOutput::CloseLeaked(StreamId::Messages),
            LifecycleOutput::CloseLeaked(StreamId::Stderr),
            LifecycleOutput::Reap,
        ];
        assert_eq!(outputs, expected);
    }

    #[test]
    fn p08_stop_kills_and_then_reports_unkillable() {
        let t0 = start();
        let mut lifecycle = Lifecycle::new([], timeouts());
        assert_eq!(
            lifecycle.handle(LifecycleInput::Stop(StopRequest::Advance), t0),
            [LifecycleOutput::RunStopStage(0)]
        );
        let t1 = t0 + GRACE_PERIOD;
        assert_eq!(lifecycle.handle(LifecycleInput::Timeout, t1), [LifecycleOutput::Kill]);
        assert_eq!(lifecycle.handle(LifecycleInput::Timeout, t1), [], "too early");
        assert_eq!(lifecycle.handle(LifecycleInput::Timeout, t1 + KILL_TIMEOUT), [LifecycleOutput::ReportUnkillable]);
        assert_eq!(lifecycle.handle(LifecycleInput::ProcessExited, t1 + KILL_TIMEOUT), [], "already reported");
    }

    #[test]
    fn p08_rest_of_process_group_keeps_grace_periods() {
        let t0 = start();
        let stages = Timeouts { grace_periods: vec![GRACE_PERIOD, GRACE_PERIOD], ..timeouts() };
        let stopped = || {
            let mut lifecycle = Lifecycle::new([], stages.clone());
            assert_eq!(
                lifecycle.handle(LifecycleInput::Stop(StopRequest::Advance), t0),
                [LifecycleOutput::RunStopStage(0)]
            );
            assert_eq!(lifecycle.handle(LifecycleInput::ProcessExited, t0), [LifecycleOutput::WaitForProcessGroup]);
            assert_eq!(
                lifecycle.poll_timeout(),
                Some(t0 + GRACE_PERIOD),
                "the grace period counts from the start of the stage"
            );
            lifecycle
        };
        assert_eq!(stopped().handle(LifecycleInput::ProcessGroupEnded, t0), [LifecycleOutput::Reap]);
        let mut slow = stopped();
        assert_eq!(slow.handle(LifecycleInput::Timeout, t0 + GRACE_PERIOD), [LifecycleOutput::RunStopStage(1)]);
        let end = t0 + 2 * GRACE_PERIOD;
        assert_eq!(slow.handle(LifecycleInput::Timeout, end), [LifecycleOutput::Kill, LifecycleOutput::Reap]);
        let mut hurried = stopped();
        assert_eq!(hurried.handle(LifecycleInput::Stop(StopRequest::Within(DRAIN_TIMEOUT)), t0), []);
        assert_eq!(hurried.poll_timeout(), Some(t0 + DRAIN_TIMEOUT));
        assert_eq!(
            stopped().handle(LifecycleInput::Stop(StopRequest::Advance), t0),
            [LifecycleOutput::RunStopStage(1)],
            "a second stop begins the next stage"
        );
        let mut alone = Lifecycle::new([], timeouts());
        assert_eq!(
            alone.handle(LifecycleInput::ProcessExited, t0),
            [LifecycleOutput::Reap],
            "the group is killed when the worker exits by itself"
        );
    }

    #[test]
    fn timeouts_beyond_the_clock_never_expire() {
        let endless = Timeouts { drain_timeout: Duration::MAX, grace_periods: vec![Duration::MAX], ..timeouts() };
        let t0 = start();
        let mut lifecycle = Lifecycle::new([StreamId::Messages], endless);
        assert_eq!(
            lifecycle.handle(LifecycleInput::Stop(StopRequest::Advance), t0),
            [LifecycleOutput::RunStopStage(0)]
        );
        assert_eq!(lifecycle.poll_timeout(), None);
        assert_eq!(lifecycle.handle(LifecycleInput::ProcessExited, t0), [LifecycleOutput::WaitForProcessGroup]);
        assert_eq!(lifecycle.handle(LifecycleInput::ProcessGroupEnded, t0), []);
        assert_eq!(lifecycle.poll_timeout(), None);
        assert_eq!(lifecycle.handle(LifecycleInput::StreamEnded(StreamId::Messages), t0), [LifecycleOutput::Reap]);
    }

    #[test]
    fn p08_drain_timeout_does_not_delay_a_stop() {
        let slow = Timeouts { drain_timeout: Duration::MAX, ..timeouts() };
        let t0 = start();
        let bound = t0 + GRACE_PERIOD + KILL_TIMEOUT;
        let histories: [&[LifecycleInput]; 2] = [
            &[LifecycleInput::ProcessExited, LifecycleInput::Stop(StopRequest::Advance)],
            &[LifecycleInput::Stop(StopRequest::Advance), LifecycleInput::ProcessExited],
        ];
        for history in histories {
            let mut lifecycle = Lifecycle::new([StreamId::Messages], slow.clone());
            for &input in history {
                lifecycle.handle(input, t0);
            }
            lifecycle.handle(LifecycleInput::ProcessGroupEnded, t0);
            assert_eq!(lifecycle.poll_timeout(), Some(bound), "{history:?}");
            assert_eq!(
                lifecycle.handle(LifecycleInput::Timeout, bound),
                [LifecycleOutput::CloseLeaked(StreamId::Messages), LifecycleOutput::Reap]
            );
        }
    }

    #[test]
    fn status_taken_by_tracer_is_retried() {
        let mut now = start();
        let mut lifecycle = Lifecycle::new([], timeouts());
        assert_eq!(lifecycle.handle(LifecycleInput::ProcessExited, now), [LifecycleOutput::Reap]);
        for _ in 0..20 {
            assert_eq!(lifecycle.handle(LifecycleInput::StatusUnavailable, now), []);
            let due = lifecycle.poll_timeout().unwrap();
            assert!(due > now && due <= now + LAST_STATUS_RETRY, "neither a busy loop nor a long delay");
            now = due;
            assert_eq!(lifecycle.handle(LifecycleInput::Timeout, now), [LifecycleOutput::Reap]);
        }
        lifecycle.handle(LifecycleInput::StatusUnavailable, now);
        lifecycle.handle(LifecycleInput::Stop(StopRequest::Advance), now);
        assert_eq!(lifecycle.handle(LifecycleInput::Timeout, now + KILL_TIMEOUT), [LifecycleOutput::ReportUnkillable]);
    }

    #[test]
    fn watch_failure_kills_and_reports_exit() {
        let t0 = start();
        let mut lifecycle = Lifecycle::new([], timeouts());
        assert_eq!(lifecycle.handle(LifecycleInput::WatchFailed, t0), [LifecycleOutput::Kill]);
        assert_eq!(lifecycle.handle(LifecycleInput::Stop(StopRequest::Advance), t0), []);
        assert_eq!(lifecycle.handle(LifecycleInput::Timeout, t0 + KILL_TIMEOUT), [LifecycleOutput::ReportUnkillable]);
    }

    #[test]
    fn p08_second_stop_begins_next_stage() {
        let t0 = start();
        let stages = Timeouts { grace_periods: vec![GRACE_PERIOD, GRACE_PERIOD], ..timeouts() };
        let mut lifecycle = Lifecycle::new([], stages);
        assert_eq!(
            lifecycle.handle(LifecycleInput::Stop(StopRequest::Advance), t0),
            [LifecycleOutput::RunStopStage(0)]
        );
        assert_eq!(
            lifecycle.handle(LifecycleInput::Stop(StopRequest::Advance), t0),
            [LifecycleOutput::RunStopStage(1)]
        );
        assert_eq!(lifecycle.poll_timeout(), Some(t0 + GRACE_PERIOD));
        assert_eq!(lifecycle.handle(LifecycleInput::Stop(StopRequest::Advance), t0), [LifecycleOutput::Kill]);
        assert_eq!(lifecycle.handle(LifecycleInput::Stop(StopRequest::Advance), t0), []);
    }

    #[test]
    fn p08_empty_stage_takes_no_time() {
        let t0 = start();
        let mut lifecycle = Lifecycle::new([], timeouts());
        assert_eq!(
            lifecycle.handle(LifecycleInput::Stop(StopRequest::Advance), t0),
            [LifecycleOutput::RunStopStage(0)]
        );
        assert_eq!(lifecycle.handle(LifecycleInput::Stop(StopRequest::StageDone), t0), [LifecycleOutput::Kill]);
    }

    #[test]
    fn p08_extension_is_capped_and_bounded_by_deadline() {
        let t0 = start();
        let mut lifecycle = Lifecycle::new([], timeouts());
        lifecycle.handle(LifecycleInput::Stop(StopRequest::Advance), t0);
        lifecycle.handle(LifecycleInput::Stop(StopRequest::Extend(Duration::from_secs(2))), t0);
        assert_eq!(lifecycle.poll_timeout(), Some(t0 + GRACE_PERIOD + Duration::from_secs(2)));
        lifecycle.handle(LifecycleInput::Stop(StopRequest::Extend(Duration::from_secs(2))), t0);
        assert_eq!(lifecycle.poll_timeout(), Some(t0 + GRACE_PERIOD + Duration::from_secs(3)), "the cap");
        lifecycle.handle(LifecycleInput::Stop(StopRequest::Within(Duration::from_secs(1))), t0);
        assert_eq!(lifecycle.poll_timeout(), Some(t0 + Duration::from_secs(1)));
        let mut two = Lifecycle::new([], timeouts());
        assert_eq!(
            two.handle(LifecycleInput::Stop(StopRequest::Within(Duration::from_millis(1))), t0),
            [LifecycleOutput::RunStopStage(0)]
        );
        assert_eq!(two.handle(LifecycleInput::Timeout, t0 + Duration::from_millis(1)), [LifecycleOutput::Kill]);
    }

    /// Like the event loop: each deadline is delivered once, and only if it is new.
    fn run_timeouts(lifecycle: &mut Lifecycle) -> Vec<(Instant, LifecycleOutput)> {
        let mut outputs = Vec::new();
        while let Some(due) = lifecycle.poll_timeout() {
            outputs.extend(lifecycle.handle(LifecycleInput::Timeout, due).into_iter().map(|output| (due, output)));
            assert_ne!(lifecycle.poll_timeout(), Some(due), "this deadline would not be delivered again: {outputs:?}");
        }
        outputs
    }

    #[test]
    fn p08_no_stage_outlasts_the_stop_timeout() {
        let t0 = start();
        let [first, second] = [GRACE_PERIOD / 2, GRACE_PERIOD * 2].map(|time| t0 + time);
        let stages = Timeouts { grace_periods: vec![GRACE_PERIOD; 3], ..timeouts() };
        let stopped = |requests: &[StopRequest]| {
            let mut lifecycle = Lifecycle::new([], stages.clone());
            let outputs: Vec<LifecycleOutput> =
                requests.iter().flat_map(|&request| lifecycle.handle(LifecycleInput::Stop(request), t0)).collect();
            (outputs, run_timeouts(&mut lifecycle))
        };
        let within = |due: Instant| StopRequest::Within(due - t0);
        let killed_at = |due| [(due, LifecycleOutput::Kill), (due + KILL_TIMEOUT, LifecycleOutput::ReportUnkillable)];
        assert_eq!(stopped(&[within(first)]), (vec![LifecycleOutput::RunStopStage(0)], killed_at(first).to_vec()));
        assert_eq!(
            stopped(&[StopRequest::Advance, within(first)]),
            (vec![LifecycleOutput::RunStopStage(0)], killed_at(first).to_vec())
        );
        let late =
            [(t0 + GRACE_PERIOD, LifecycleOutput::RunStopStage(1))].into_iter().chain(killed_at(second)).collect();
        assert_eq!(
            stopped(&[within(second)]),
            (vec![LifecycleOutput::RunStopStage(0)], late),
            "when the second stage ends"
        );
        assert_eq!(stopped(&[within(t0)]).0, [LifecycleOutput::Kill], "there is no time for a stage");
    }

    proptest! {
        #[test]
        fn any_history_reports_one_end(history in prop::collection::vec((0..11_u8, 0..3000_u64), 0..40)) {
            let mut now = start();
            let mut lifecycle = Lifecycle::new(StreamId::ALL, timeouts());
            let mut outputs = Vec::new();
            for (input, pause_ms) in history {
                now += Duration::from_millis(pause_ms);
                let input = match input {
                    0 => LifecycleInput::ProcessExited,
                    1 => LifecycleInput::Stop(StopRequest::Advance),
                    2 => LifecycleInput::Timeout,
                    3 => LifecycleInput::WatchFailed,
                    4 => LifecycleInput::Stop(StopRequest::Within(Duration::from_millis(pause_ms))),
                    5 => LifecycleInput::Stop(StopRequest::StageDone),
                    6 => LifecycleInput::Stop(StopRequest::Extend(Duration::from_millis(pause_ms))),
                    7 => LifecycleInput::ProcessGroupEnded,
                    stream => LifecycleInput::StreamEnded(StreamId::ALL[usize::from(stream) - 8]),
                };
                outputs.extend(lifecycle.handle(input, now));
            }
            // Whatever came before: a stop and enough time end it.
            for input in [LifecycleInput::Stop(StopRequest::Advance), LifecycleInput::Timeout, LifecycleInput::ProcessExited, LifecycleInput::Timeout, LifecycleInput::Timeout] {
                outputs.extend(lifecycle.handle(input, now));
                now += Duration::from_secs(10);
            }
            let ends = outputs.iter().filter(|output| matches!(output, LifecycleOutput::Reap | LifecycleOutput::ReportUnkillable)).count();
            prop_assert_eq!(ends, 1);
            prop_assert!(matches!(outputs.last(), Some(LifecycleOutput::Reap | LifecycleOutput::ReportUnkillable)), "the end is not last: {:?}", outputs);
            prop_assert_eq!(lifecycle.poll_timeout(), None);
        }
    }
}
