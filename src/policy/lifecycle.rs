//! One process, from its start until it is reaped: when to wait for its last words, when to give them up, when to kill.

use super::deadline::Deadline;
use std::time::{Duration, Instant};

/// A stream that we read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum StreamId {
    Messages,
    Stdout,
    Stderr,
}

impl StreamId {
    pub(crate) const ALL: [Self; 3] = [Self::Messages, Self::Stdout, Self::Stderr];

    /// What a user calls it.
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

/// What the driver has learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Input {
    /// A stream has come to its end: nobody holds its other end any more.
    StreamEnded(StreamId),
    /// The process has ended; it is not reaped yet. What it had written was read before this input.
    Died,
    /// Nothing is left of the process group of a worker that has ended: the answer to `WaitForGroup`.
    GroupEnded,
    /// The process has ended, and yet its status cannot be taken: whoever traces it (a debugger, strace) comes first.
    Withheld,
    /// Its end would not be noticed.
    Unheard,
    /// About its stop.
    Ask(Ask),
    /// The time of `poll_timeout` may have come.
    Timeout,
}

/// What is wanted of one that is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ask {
    /// It shall end. Told again, it shall end sooner.
    Stop,
    /// It shall end, and be killed in so long at the latest.
    StopWithin(Duration),
    /// The present rung of the ladder had nothing to do.
    NothingDone,
    /// It asks for more time to end.
    Extend(Duration),
}

/// What the driver is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    /// Take the steps of this rung of the stop ladder.
    Climb(usize),
    /// The process has ended while it was being stopped: find out whether others of its group still run, and wait for their end.
    WaitForGroup,
    /// SIGKILL to the process and its tree.
    Kill,
    /// Close a stream that somebody else still holds, and tell of a leak.
    Abandon(StreamId),
    /// Take the status, tell of the exit. The last output, unless the answer is `Withheld`.
    Reap,
    /// Not even SIGKILL has ended it (uninterruptible sleep), as far as anybody knows: tell of an exit all the same. The last
    /// output.
    GiveUp,
}

/// How long things may take.
#[derive(Debug, Clone)]
pub(crate) struct Patience {
    /// From the death of the process to the end of its streams.
    pub(crate) drain_time: Duration,
    /// From each rung of the stop ladder to the next; after the last one comes SIGKILL.
    pub(crate) grace_periods: Vec<Duration>,
    /// How much longer a worker can make its stop by asking.
    pub(crate) longest_extension: Duration,
    /// From SIGKILL to giving up.
    pub(crate) longest_death: Duration,
}

/// How long to leave the status to a tracer before asking again, at first and at most: the kernel does not tell when it lets go.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LAST_PAUSE: Duration = Duration::from_millis(256);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    Stopping {
        rung: usize,
        until: Deadline,
    },
    /// The process has ended, and the rest of its group has the time that the ladder gives.
    GroupStopping {
        rung: usize,
        until: Deadline,
    },
    Killed,
    Draining {
        until: Deadline,
    },
    Reaping {
        pause: Duration,
    },
    Withheld {
        again_at: Deadline,
        pause: Duration,
    },
    Over,
}

#[derive(Debug)]
pub(crate) struct Incarnation {
    state: State,
    open: [bool; StreamId::ALL.len()],
    patience: Patience,
    /// No rung of the ladder lasts beyond this.
    kill_at: Deadline,
    /// What is left of the longest extension.
    extension: Duration,
    /// Whoever stops is told how long that takes at most: from then on nothing is waited for beyond this.
    give_up_at: Deadline,
}

impl Incarnation {
    pub(crate) fn new(streams: impl IntoIterator<Item = StreamId>, patience: Patience) -> Self {
        let mut open = [false; StreamId::ALL.len()];
        for stream in streams {
            set(&mut open, stream, true);
        }
        let extension = patience.longest_extension;
        Self { state: State::Running, open, patience, kill_at: Deadline::NEVER, extension, give_up_at: Deadline::NEVER }
    }

    /// Whether it has not ended, and nobody has it end.
    pub(crate) fn is_running(&self) -> bool {
        self.state == State::Running
    }

    /// Whether the rest of its process group is waited for.
    pub(crate) fn waits_for_group(&self) -> bool {
        matches!(self.state, State::GroupStopping { .. })
    }

    /// When to call with `Timeout`, if nothing else happens.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Running | State::Reaping { .. } | State::Over => None,
            State::Stopping { until: due, .. }
            | State::GroupStopping { until: due, .. }
            | State::Draining { until: due } => due.poll_timeout(),
            State::Killed => self.give_up_at.poll_timeout(),
            State::Withheld { again_at, .. } => again_at.or(self.give_up_at).poll_timeout(),
        }
    }

    pub(crate) fn handle(&mut self, input: Input, now: Instant) -> Vec<Output> {
        match (self.state, input) {
            (
                State::Running | State::Stopping { .. } | State::GroupStopping { .. } | State::Killed,
                Input::StreamEnded(stream),
            ) => {
                set(&mut self.open, stream, false);
                Vec::new()
            }
            (State::Draining { .. }, Input::StreamEnded(stream)) => {
                set(&mut self.open, stream, false);
                self.reap_when_drained()
            }
            (State::Stopping { rung, until }, Input::Died) => {
                self.state = State::GroupStopping { rung, until };
                vec![Output::WaitForGroup]
            }
            (State::Running | State::Killed, Input::Died) | (State::GroupStopping { .. }, Input::GroupEnded) => {
                self.drain(now)
            }
            (State::Reaping { pause }, Input::Withheld) => {
                let again_at = Deadline::after(now, pause);
                self.state = State::Withheld { again_at, pause: (pause * 2).min(LAST_PAUSE) };
                Vec::new()
            }
            (_, Input::Ask(ask)) => self.asked(ask, now),
            (State::Stopping { rung, until } | State::GroupStopping { rung, until }, Input::Timeout)
                if until.has_come(now) =>
            {
                self.climb(rung + 1, now)
            }
            (State::Running | State::Stopping { .. }, Input::Unheard) => self.kill(now),
            (State::Killed | State::Withheld { .. }, Input::Timeout) if self.give_up_at.has_come(now) => {
                self.state = State::Over;
                vec![Output::GiveUp]
            }
            (State::Withheld { again_at, pause }, Input::Timeout) if again_at.has_come(now) => {
                self.state = State::Reaping { pause };
                vec![Output::Reap]
            }
            (State::Draining { until }, Input::Timeout) if until.has_come(now) => self.abandon(),
            // Too early, or told twice, or after the end.
            (
                State::Running
                | State::Stopping { .. }
                | State::GroupStopping { .. }
                | State::Killed
                | State::Withheld { .. },
                Input::Timeout | Input::Withheld,
            )
            | (
                State::Running
                | State::Stopping { .. }
                | State::Killed
                | State::Draining { .. }
                | State::Reaping { .. }
                | State::Withheld { .. }
                | State::Over,
                Input::GroupEnded,
            )
            | (State::GroupStopping { .. }, Input::Died | Input::Unheard)
            | (State::Killed, Input::Unheard)
            | (State::Draining { .. }, Input::Died | Input::Timeout | Input::Withheld | Input::Unheard)
            | (State::Reaping { .. }, Input::Timeout)
            | (State::Reaping { .. } | State::Withheld { .. }, Input::StreamEnded(_) | Input::Died | Input::Unheard)
            | (State::Over, Input::StreamEnded(_) | Input::Died | Input::Withheld | Input::Unheard | Input::Timeout) => {
                Vec::new()
            }
        }
    }

    fn asked(&mut self, ask: Ask, now: Instant) -> Vec<Output> {
        match (self.state, ask) {
            (State::Running, Ask::Stop) => self.climb(0, now),
            (State::Running, Ask::StopWithin(time)) => {
                self.kill_at = Deadline::after(now, time);
                self.climb(0, now)
            }
            (State::Stopping { rung, until }, Ask::StopWithin(time)) => {
                self.kill_at = self.kill_at.or(Deadline::after(now, time));
                self.state = State::Stopping { rung, until: until.or(self.kill_at) };
                Vec::new()
            }
            (State::GroupStopping { rung, until }, Ask::StopWithin(time)) => {
                self.kill_at = self.kill_at.or(Deadline::after(now, time));
                self.state = State::GroupStopping { rung, until: until.or(self.kill_at) };
                Vec::new()
            }
            (State::Stopping { rung, .. } | State::GroupStopping { rung, .. }, Ask::Stop | Ask::NothingDone) => {
                self.climb(rung + 1, now)
            }
            (State::Stopping { rung, until }, Ask::Extend(time)) => {
                let time = time.min(self.extension);
                self.extension -= time;
                self.give_up_at = self.give_up_at.later(time);
                self.state = State::Stopping { rung, until: until.later(time).or(self.kill_at) };
                Vec::new()
            }
            (State::Draining { until }, Ask::Stop) => {
                self.state =
                    State::Draining { until: until.or(self.give_up_after(Deadline::after(now, self.longest_stop()))) };
                Vec::new()
            }
            (State::Draining { until }, Ask::StopWithin(time)) => {
                self.state = State::Draining { until: until.or(self.give_up_after(Deadline::after(now, time))) };
                Vec::new()
            }
            (State::Withheld { .. }, Ask::Stop | Ask::StopWithin(_)) => {
                self.give_up_at = self.give_up_at.or(Deadline::after(now, self.patience.longest_death));
                Vec::new()
            }
            // Nothing can be hurried, or there is nothing to hurry.
            (State::Killed | State::Reaping { .. } | State::Over, Ask::Stop | Ask::StopWithin(_))
            | (
                State::Running
                | State::Killed
                | State::Draining { .. }
                | State::Reaping { .. }
                | State::Withheld { .. }
                | State::Over,
                Ask::NothingDone | Ask::Extend(_),
            )
            | (State::GroupStopping { .. }, Ask::Extend(_)) => Vec::new(),
        }
    }

    /// The next rung of the ladder, or its end.
    fn climb(&mut self, rung: usize, now: Instant) -> Vec<Output> {
        // A rung that began when the time for all of them is over would end at the moment that has just come.
        let may_last = !self.kill_at.has_come(now);
        let Some(&grace_period) = self.patience.grace_periods.get(rung).filter(|_| may_last) else {
            return self.kill(now);
        };
        let until = Deadline::after(now, grace_period).or(self.kill_at);
        self.state = match self.state {
            State::GroupStopping { .. } => State::GroupStopping { rung, until },
            State::Running
            | State::Stopping { .. }
            | State::Killed
            | State::Draining { .. }
            | State::Reaping { .. }
            | State::Withheld { .. }
            | State::Over => State::Stopping { rung, until },
        };
        // Before it is known how long the rest of the ladder takes: the time of all of it.
        let rest = self.patience.grace_periods.get(rung + 1..).unwrap_or_default();
        let rest = rest.iter().fold(Duration::ZERO, |sum, period| sum.saturating_add(*period));
        self.give_up_after(until.later(rest).or(self.kill_at));
        vec![Output::Climb(rung)]
    }

    /// From the first rung to SIGKILL.
    fn longest_stop(&self) -> Duration {
        self.patience.grace_periods.iter().fold(Duration::ZERO, |sum, period| sum.saturating_add(*period))
    }

    fn give_up_after(&mut self, killed_at: Deadline) -> Deadline {
        self.give_up_at = killed_at.later(self.patience.longest_death);
        self.give_up_at
    }

    fn kill(&mut self, now: Instant) -> Vec<Output> {
        let has_ended = self.waits_for_group();
        self.state = State::Killed;
        self.give_up_at = Deadline::after(now, self.patience.longest_death);
        let mut outputs = vec![Output::Kill];
        if has_ended {
            outputs.extend(self.drain(now));
        }
        outputs
    }

    fn drain(&mut self, now: Instant) -> Vec<Output> {
        self.state = State::Draining { until: Deadline::after(now, self.patience.drain_time).or(self.give_up_at) };
        self.reap_when_drained()
    }

    fn reap_when_drained(&mut self) -> Vec<Output> {
        if self.open.contains(&true) {
            return Vec::new();
        }
        self.state = State::Reaping { pause: FIRST_PAUSE };
        vec![Output::Reap]
    }

    fn abandon(&mut self) -> Vec<Output> {
        self.state = State::Reaping { pause: FIRST_PAUSE };
        let open = self.open;
        let held = StreamId::ALL.into_iter().filter(|stream| open.get(stream.index()) == Some(&true));
        held.map(Output::Abandon).chain([Output::Reap]).collect()
    }
}

fn set(open: &mut [bool; StreamId::ALL.len()], stream: StreamId, value: bool) {
    if let Some(flag) = open.get_mut(stream.index()) {
        *flag = value;
    }
}

#[cfg(test)]
mod tests {
    use super::{super::deadline::start, *};
    use proptest::prelude::*;

    const DRAIN_TIME: Duration = Duration::from_millis(200);
    const GRACE_PERIOD: Duration = Duration::from_secs(2);
    const LONGEST_DEATH: Duration = Duration::from_secs(5);

    fn patience() -> Patience {
        Patience {
            drain_time: DRAIN_TIME,
            grace_periods: vec![GRACE_PERIOD],
            longest_extension: Duration::from_secs(3),
            longest_death: LONGEST_DEATH,
        }
    }

    #[test]
    fn p01_an_exit_waits_for_the_end_of_every_stream() {
        let t0 = start();
        let mut one = Incarnation::new([StreamId::Messages, StreamId::Stderr], patience());
        assert_eq!(one.handle(Input::Died, t0), []);
        assert_eq!(one.handle(Input::StreamEnded(StreamId::Messages), t0), []);
        assert_eq!(one.handle(Input::StreamEnded(StreamId::Stderr), t0), [Output::Reap]);
        assert_eq!(one.poll_timeout(), None);
    }

    #[test]
    fn p01_streams_may_end_long_before_the_process() {
        let t0 = start();
        let mut one = Incarnation::new([StreamId::Messages], patience());
        assert_eq!(one.handle(Input::StreamEnded(StreamId::Messages), t0), []);
        assert_eq!(one.poll_timeout(), None, "a process may live without its pipe");
        assert_eq!(one.handle(Input::Died, t0), [Output::Reap]);
    }

    #[test]
    fn p04_a_held_stream_is_given_up_after_the_drain_time() {
        let t0 = start();
        let mut one = Incarnation::new(StreamId::ALL, patience());
        assert_eq!(one.handle(Input::StreamEnded(StreamId::Stdout), t0), []);
        assert_eq!(one.handle(Input::Died, t0), []);
        assert_eq!(one.poll_timeout(), Some(t0 + DRAIN_TIME));
        assert_eq!(one.handle(Input::Timeout, t0 + DRAIN_TIME / 2), []);
        let outputs = one.handle(Input::Timeout, t0 + DRAIN_TIME);
        let expected = [Output::Abandon(StreamId::Messages), Output::Abandon(StreamId::Stderr), Output::Reap];
        assert_eq!(outputs, expected);
    }

    #[test]
    fn p08_stopping_ends_in_a_kill_and_then_in_a_report() {
        let t0 = start();
        let mut one = Incarnation::new([], patience());
        assert_eq!(one.handle(Input::Ask(Ask::Stop), t0), [Output::Climb(0)]);
        let t1 = t0 + GRACE_PERIOD;
        assert_eq!(one.handle(Input::Timeout, t1), [Output::Kill]);
        assert_eq!(one.handle(Input::Timeout, t1), [], "too early");
        assert_eq!(one.handle(Input::Timeout, t1 + LONGEST_DEATH), [Output::GiveUp]);
        assert_eq!(one.handle(Input::Died, t1 + LONGEST_DEATH), [], "told already");
    }

    #[test]
    fn p08_the_rest_of_a_group_keeps_the_grace_periods_of_a_stop() {
        let t0 = start();
        let ladder = Patience { grace_periods: vec![GRACE_PERIOD, GRACE_PERIOD], ..patience() };
        let stopped = || {
            let mut one = Incarnation::new([], ladder.clone());
            assert_eq!(one.handle(Input::Ask(Ask::Stop), t0), [Output::Climb(0)]);
            assert_eq!(one.handle(Input::Died, t0), [Output::WaitForGroup]);
            assert_eq!(one.poll_timeout(), Some(t0 + GRACE_PERIOD), "the step's own time, counted from its begin");
            one
        };
        assert_eq!(stopped().handle(Input::GroupEnded, t0), [Output::Reap]);
        let mut slow = stopped();
        assert_eq!(slow.handle(Input::Timeout, t0 + GRACE_PERIOD), [Output::Climb(1)]);
        let end = t0 + 2 * GRACE_PERIOD;
        assert_eq!(slow.handle(Input::Timeout, end), [Output::Kill, Output::Reap]);
        let mut hurried = stopped();
        assert_eq!(hurried.handle(Input::Ask(Ask::StopWithin(DRAIN_TIME)), t0), []);
        assert_eq!(hurried.poll_timeout(), Some(t0 + DRAIN_TIME));
        assert_eq!(stopped().handle(Input::Ask(Ask::Stop), t0), [Output::Climb(1)], "a second stop goes on");
        let mut alone = Incarnation::new([], patience());
        assert_eq!(alone.handle(Input::Died, t0), [Output::Reap], "one that ends by itself takes its group along");
    }

    #[test]
    fn times_beyond_the_clock_are_for_ever() {
        let endless = Patience { drain_time: Duration::MAX, grace_periods: vec![Duration::MAX], ..patience() };
        let t0 = start();
        let mut one = Incarnation::new([StreamId::Messages], endless);
        assert_eq!(one.handle(Input::Ask(Ask::Stop), t0), [Output::Climb(0)]);
        assert_eq!(one.poll_timeout(), None);
        assert_eq!(one.handle(Input::Died, t0), [Output::WaitForGroup]);
        assert_eq!(one.handle(Input::GroupEnded, t0), []);
        assert_eq!(one.poll_timeout(), None);
        assert_eq!(one.handle(Input::StreamEnded(StreamId::Messages), t0), [Output::Reap]);
    }

    #[test]
    fn p08_no_drain_time_holds_up_a_stop() {
        let slow = Patience { drain_time: Duration::MAX, ..patience() };
        let t0 = start();
        let bound = t0 + GRACE_PERIOD + LONGEST_DEATH;
        let histories: [&[Input]; 2] = [&[Input::Died, Input::Ask(Ask::Stop)], &[Input::Ask(Ask::Stop), Input::Died]];
        for history in histories {
            let mut one = Incarnation::new([StreamId::Messages], slow.clone());
            for &input in history {
                one.handle(input, t0);
            }
            one.handle(Input::GroupEnded, t0);
            assert_eq!(one.poll_timeout(), Some(bound), "{history:?}");
            assert_eq!(one.handle(Input::Timeout, bound), [Output::Abandon(StreamId::Messages), Output::Reap]);
        }
    }

    #[test]
    fn a_status_that_a_tracer_withholds_is_asked_for_again() {
        let mut now = start();
        let mut one = Incarnation::new([], patience());
        assert_eq!(one.handle(Input::Died, now), [Output::Reap]);
        for _ in 0..20 {
            assert_eq!(one.handle(Input::Withheld, now), []);
            let due = one.poll_timeout().unwrap();
            assert!(due > now && due <= now + LAST_PAUSE, "neither a spin nor a long wait");
            now = due;
            assert_eq!(one.handle(Input::Timeout, now), [Output::Reap]);
        }
        one.handle(Input::Withheld, now);
        one.handle(Input::Ask(Ask::Stop), now);
        assert_eq!(one.handle(Input::Timeout, now + LONGEST_DEATH), [Output::GiveUp]);
    }

    #[test]
    fn one_that_cannot_be_heard_is_killed_and_its_exit_told() {
        let t0 = start();
        let mut one = Incarnation::new([], patience());
        assert_eq!(one.handle(Input::Unheard, t0), [Output::Kill]);
        assert_eq!(one.handle(Input::Ask(Ask::Stop), t0), []);
        assert_eq!(one.handle(Input::Timeout, t0 + LONGEST_DEATH), [Output::GiveUp]);
    }

    #[test]
    fn p08_a_second_stop_goes_to_the_next_rung() {
        let t0 = start();
        let ladder = Patience { grace_periods: vec![GRACE_PERIOD, GRACE_PERIOD], ..patience() };
        let mut one = Incarnation::new([], ladder);
        assert_eq!(one.handle(Input::Ask(Ask::Stop), t0), [Output::Climb(0)]);
        assert_eq!(one.handle(Input::Ask(Ask::Stop), t0), [Output::Climb(1)]);
        assert_eq!(one.poll_timeout(), Some(t0 + GRACE_PERIOD));
        assert_eq!(one.handle(Input::Ask(Ask::Stop), t0), [Output::Kill]);
        assert_eq!(one.handle(Input::Ask(Ask::Stop), t0), []);
    }

    #[test]
    fn p08_a_rung_with_nothing_to_do_takes_no_time() {
        let t0 = start();
        let mut one = Incarnation::new([], patience());
        assert_eq!(one.handle(Input::Ask(Ask::Stop), t0), [Output::Climb(0)]);
        assert_eq!(one.handle(Input::Ask(Ask::NothingDone), t0), [Output::Kill]);
    }

    #[test]
    fn p08_a_worker_gets_more_time_within_a_cap_and_never_beyond_a_deadline() {
        let t0 = start();
        let mut one = Incarnation::new([], patience());
        one.handle(Input::Ask(Ask::Stop), t0);
        one.handle(Input::Ask(Ask::Extend(Duration::from_secs(2))), t0);
        assert_eq!(one.poll_timeout(), Some(t0 + GRACE_PERIOD + Duration::from_secs(2)));
        one.handle(Input::Ask(Ask::Extend(Duration::from_secs(2))), t0);
        assert_eq!(one.poll_timeout(), Some(t0 + GRACE_PERIOD + Duration::from_secs(3)), "the cap");
        one.handle(Input::Ask(Ask::StopWithin(Duration::from_secs(1))), t0);
        assert_eq!(one.poll_timeout(), Some(t0 + Duration::from_secs(1)));
        let mut two = Incarnation::new([], patience());
        assert_eq!(two.handle(Input::Ask(Ask::StopWithin(Duration::from_millis(1))), t0), [Output::Climb(0)]);
        assert_eq!(two.handle(Input::Timeout, t0 + Duration::from_millis(1)), [Output::Kill]);
    }

    /// As the driver does it: it is told of a moment once, and only of one that is new.
    fn end_by_time_alone(one: &mut Incarnation) -> Vec<(Instant, Output)> {
        let mut told = Vec::new();
        while let Some(due) = one.poll_timeout() {
            told.extend(one.handle(Input::Timeout, due).into_iter().map(|output| (due, output)));
            assert_ne!(one.poll_timeout(), Some(due), "nobody would be told of it again: {told:?}");
        }
        told
    }

    #[test]
    fn p08_no_rung_outlasts_the_time_that_a_stop_may_take() {
        let t0 = start();
        let [first, second] = [GRACE_PERIOD / 2, GRACE_PERIOD * 2].map(|time| t0 + time);
        let ladder = Patience { grace_periods: vec![GRACE_PERIOD; 3], ..patience() };
        let stopped = |asks: &[Ask]| {
            let mut one = Incarnation::new([], ladder.clone());
            let told: Vec<Output> = asks.iter().flat_map(|&ask| one.handle(Input::Ask(ask), t0)).collect();
            (told, end_by_time_alone(&mut one))
        };
        let within = |due: Instant| Ask::StopWithin(due - t0);
        let killed_at = |due| [(due, Output::Kill), (due + LONGEST_DEATH, Output::GiveUp)];
        assert_eq!(stopped(&[within(first)]), (vec![Output::Climb(0)], killed_at(first).to_vec()));
        assert_eq!(stopped(&[Ask::Stop, within(first)]), (vec![Output::Climb(0)], killed_at(first).to_vec()));
        let late = [(t0 + GRACE_PERIOD, Output::Climb(1))].into_iter().chain(killed_at(second)).collect();
        assert_eq!(stopped(&[within(second)]), (vec![Output::Climb(0)], late), "when the second rung ends");
        assert_eq!(stopped(&[within(t0)]).0, [Output::Kill], "there is no time for a rung");
    }

    proptest! {
        #[test]
        fn any_history_ends_once(history in prop::collection::vec((0..11_u8, 0..3000_u64), 0..40)) {
            let mut now = start();
            let mut one = Incarnation::new(StreamId::ALL, patience());
            let mut outputs = Vec::new();
            for (input, pause_ms) in history {
                now += Duration::from_millis(pause_ms);
                let input = match input {
                    0 => Input::Died,
                    1 => Input::Ask(Ask::Stop),
                    2 => Input::Timeout,
                    3 => Input::Unheard,
                    4 => Input::Ask(Ask::StopWithin(Duration::from_millis(pause_ms))),
                    5 => Input::Ask(Ask::NothingDone),
                    6 => Input::Ask(Ask::Extend(Duration::from_millis(pause_ms))),
                    7 => Input::GroupEnded,
                    stream => Input::StreamEnded(StreamId::ALL[usize::from(stream) - 8]),
                };
                outputs.extend(one.handle(input, now));
            }
            // Whatever came before: stop it, let time pass, and it is over.
            for input in [Input::Ask(Ask::Stop), Input::Timeout, Input::Died, Input::Timeout, Input::Timeout] {
                outputs.extend(one.handle(input, now));
                now += Duration::from_secs(10);
            }
            let ends = outputs.iter().filter(|output| matches!(output, Output::Reap | Output::GiveUp)).count();
            prop_assert_eq!(ends, 1);
            prop_assert!(matches!(outputs.last(), Some(Output::Reap | Output::GiveUp)), "the end is last: {:?}", outputs);
            prop_assert_eq!(one.poll_timeout(), None);
        }
    }
}
