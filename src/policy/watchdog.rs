//! Whether a worker that runs still lives: how long its silence may last, and what is done then.

use super::{conflict::Conflict, deadline::Deadline};
use std::time::{Duration, Instant};

/// A worker has to give signs of life. One that does not is told as silent, then asked for a stack, then stopped.
///
/// What was not the worker's silence does not count: when our own loop was late, when the machine slept, and when the worker
/// is stopped (SIGSTOP, Ctrl-Z), its period begins anew. The price: where our loop is late all the time, nothing is ever found
/// dead.
///
/// ```
/// use pipewright::Watchdog;
/// use std::time::Duration;
///
/// let watchdog = Watchdog::ping(Duration::from_secs(30)).abort_signal(6); // SIGABRT: a core dump tells where it hangs
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a watchdog is a part of a worker's spec"]
#[doc(alias = "WatchdogSec")]
pub struct Watchdog {
    life: Life,
    period: Duration,
    ping_after: Option<Duration>,
    warn_after: Option<Duration>,
    abort_signal: Option<i32>,
    abort_timeout: Duration,
}

/// What counts as a sign of life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    /// Anything on the control pipe: an idle worker is pinged there, and need not speak unasked.
    Ping,
    /// Any message.
    Messages,
    /// `WATCHDOG=1` to its notify socket.
    Notify,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    /// Ping it over control. Its answer is a sign of life.
    Ping,
    /// Tell the user that it is slow or silent. Once for each silence, always before it is punished.
    TellSilent { since: Instant },
    /// This signal to the process, so that it shows where it hangs.
    AskForStack(i32),
    /// It is dead to us: begin the stop ladder. The last act.
    StopLadder,
}

/// The watch over one incarnation, from when it is ready.
#[derive(Debug)]
pub(crate) struct Vigil {
    watchdog: Watchdog,
    heard_at: Instant,
    state: State,
    /// When `timeout` is wanted. A sign of life does not move it, lest every message of a flood cost a timer: it may come too
    /// early, and is then set anew.
    armed: Deadline,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nobody expects anything: a ping comes first.
    Resting {
        from: Instant,
    },
    /// A sign of life is due.
    Waiting {
        from: Instant,
    },
    /// The same, and the user knows.
    Silent {
        from: Instant,
    },
    /// It has not come, and there is still a stack to be had.
    Dumping,
    Over,
}

impl Watchdog {
    /// How long a stack may take, by default. Core dumps of large processes are slow.
    const ABORT_TIMEOUT: Duration = Duration::from_secs(5);

    /// A worker with a control pipe, pinged when it has been silent for half of the period; it has the other half to answer. That
    /// begins when it has connected, or has had its [time for that](crate::WorkerSpec::control_connect_timeout).
    /// An answer is given by the library's own serving, so a worker is found dead when none of its serving threads is free.
    pub fn ping(period: Duration) -> Self {
        Self::new(Life::Ping, period)
    }

    /// A worker that sends a message at least once in each period, whichever.
    pub fn messages(period: Duration) -> Self {
        Self::new(Life::Messages, period)
    }

    /// A worker that sends `WATCHDOG=1` by `sd_notify` at least once in each period. It is told the period in `WATCHDOG_USEC`.
    #[doc(alias = "sd_watchdog_enabled")]
    pub fn notify(period: Duration) -> Self {
        Self::new(Life::Notify, period)
    }

    fn new(life: Life, period: Duration) -> Self {
        let abort_timeout = Self::ABORT_TIMEOUT;
        Self { life, period, ping_after: None, warn_after: None, abort_signal: None, abort_timeout }
    }

    /// After how long a silence it is pinged; by default half of the period. What is left of the period is the time to answer.
    pub fn ping_after(mut self, silence: Duration) -> Self {
        self.ping_after = Some(silence);
        self
    }

    /// After how long a silence it is told as silent; by default three quarters of the period, or half of the time to answer
    /// where [`ping_after`](Self::ping_after) is set.
    pub fn warn_after(mut self, silence: Duration) -> Self {
        self.warn_after = Some(silence);
        self
    }

    /// A signal that makes it show where it hangs, before it is stopped: 6 (SIGABRT) for a core dump, 3 (SIGQUIT) for a
    /// thread dump of Go and Java. By default none.
    #[doc(alias = "WatchdogSignal")]
    pub fn abort_signal(mut self, signal: i32) -> Self {
        self.abort_signal = Some(signal);
        self
    }

    /// How long after that signal it is stopped; by default 5 s. A sign of life in between does not save it.
    pub fn abort_timeout(mut self, grace: Duration) -> Self {
        self.abort_timeout = grace;
        self
    }

    /// How long a silence may last.
    pub fn period(&self) -> Duration {
        self.period
    }

    /// What counts as a sign of life, and so what the spec must give the worker.
    pub(crate) fn life(&self) -> Life {
        self.life
    }

    /// Looks for settings that cannot work.
    pub(crate) fn check(&self) -> Result<(), Conflict> {
        let (period, warning) = (self.period, self.warning());
        let refuse = |setting, reason: String| Err(Conflict::new(["watchdog", setting], reason));
        let times = [("period", Some(period)), ("ping_after", self.ping_after), ("warn_after", self.warn_after)];
        if let Some((setting, _)) = times.into_iter().find(|(_, time)| *time == Some(Duration::ZERO)) {
            return refuse(setting, "it is zero: give it a length, or leave it out".into());
        }
        if self.ping_after.is_some() && self.life != Life::Ping {
            return refuse("ping_after", "this watchdog does not ping: make it with `Watchdog::ping`".into());
        }
        let ping = self.pinged();
        if ping >= period {
            return refuse("ping_after", format!("its period of {period:?} is not longer than its ping's {ping:?}"));
        }
        if warning >= period {
            return refuse("warn_after", format!("{warning:?} is not before the period of {period:?} ends"));
        }
        if warning <= ping {
            return refuse("warn_after", format!("it would warn after {warning:?}, and pings only after {ping:?}"));
        }
        match self.abort_signal {
            Some(signal) if !(1..=64).contains(&signal) => {
                refuse("abort_signal", format!("there is no signal {signal}"))
            }
            _ => Ok(()),
        }
    }

    /// After which silence it is pinged; at once where nothing needs to ask for a sign of life.
    fn pinged(&self) -> Duration {
        match self.life {
            Life::Ping => self.ping_after.unwrap_or(self.period / 2),
            Life::Messages | Life::Notify => Duration::ZERO,
        }
    }

    fn warning(&self) -> Duration {
        let half = |from: Duration| from + self.period.saturating_sub(from) / 2;
        self.warn_after.unwrap_or_else(|| match self.life {
            Life::Ping => half(self.pinged()),
            Life::Messages | Life::Notify => half(self.period / 2),
        })
    }

    fn fresh(&self, from: Instant) -> State {
        match self.life {
            Life::Ping => State::Resting { from },
            Life::Messages | Life::Notify => State::Waiting { from },
        }
    }
}

impl Vigil {
    /// A loop that is later than this part of the period has not listened when it should have.
    const LATE: u32 = 4;

    pub(crate) fn new(watchdog: Watchdog, now: Instant) -> Self {
        let mut vigil = Self { watchdog, heard_at: now, state: State::Over, armed: Deadline::NEVER };
        vigil.state = watchdog.fresh(now);
        vigil.arm(now);
        vigil
    }

    /// A sign of life.
    pub(crate) fn alive(&mut self, now: Instant) {
        self.heard_at = now;
        self.excuse(now);
    }

    /// A silence is over, or was not the worker's fault.
    pub(crate) fn excuse(&mut self, now: Instant) {
        match self.state {
            State::Resting { .. } | State::Waiting { .. } | State::Silent { .. } => {
                self.state = self.watchdog.fresh(now);
                let comes_in_time =
                    self.next().is_none_or(|next| self.armed.poll_timeout().is_some_and(|armed| armed <= next));
                if !comes_in_time {
                    self.arm(now);
                }
            }
            State::Dumping | State::Over => {}
        }
    }

    /// The time of `poll_timeout` may have come. What the worker has said by now must be told first. `loop_was_late` is by how
    /// much our loop, or the machine, has overslept since it last listened; `is_excused` is whether the process is stopped, or
    /// nobody listens to it now.
    pub(crate) fn timeout(&mut self, now: Instant, loop_was_late: Duration, is_excused: bool) -> Vec<Act> {
        let Some(due) = self.armed.poll_timeout().filter(|&due| now >= due) else { return Vec::new() };
        if self.state == State::Dumping {
            return vec![self.stop()];
        }
        let late = loop_was_late.max(now.saturating_duration_since(due));
        if is_excused || late > self.watchdog.period / Self::LATE {
            self.state = self.watchdog.fresh(now);
        }
        let mut acts = Vec::new();
        while self.next().is_some_and(|next| now >= next) {
            acts.extend(self.advance(now));
        }
        if self.state != State::Dumping {
            self.arm(now);
        }
        acts
    }

    /// When to call `timeout`, if nothing else happens.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.armed.poll_timeout()
    }

    fn advance(&mut self, now: Instant) -> Option<Act> {
        match self.state {
            State::Resting { .. } => {
                self.state = State::Waiting { from: now };
                Some(Act::Ping)
            }
            State::Waiting { from } => {
                self.state = State::Silent { from };
                Some(Act::TellSilent { since: self.heard_at })
            }
            State::Silent { .. } => match self.watchdog.abort_signal {
                Some(signal) => {
                    self.state = State::Dumping;
                    self.armed.set(now, self.watchdog.abort_timeout);
                    Some(Act::AskForStack(signal))
                }
                None => Some(self.stop()),
            },
            State::Dumping | State::Over => None,
        }
    }

    fn stop(&mut self) -> Act {
        self.state = State::Over;
        self.armed.clear();
        Act::StopLadder
    }

    /// When the present state ends by itself; none for those that have no period.
    fn next(&self) -> Option<Instant> {
        let (from, after) = self.span()?;
        from.checked_add(after)
    }

    /// A wait begins with the ping, however late that was: only its answer is waited for.
    fn span(&self) -> Option<(Instant, Duration)> {
        let pinged = self.watchdog.pinged();
        match self.state {
            State::Resting { from } => Some((from, pinged)),
            State::Waiting { from } => Some((from, self.watchdog.warning().saturating_sub(pinged))),
            State::Silent { from } => Some((from, self.watchdog.period.saturating_sub(pinged))),
            State::Dumping | State::Over => None,
        }
    }

    fn arm(&mut self, now: Instant) {
        match self.next() {
            Some(next) => self.armed.set(now, next.saturating_duration_since(now)),
            None => self.armed.clear(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::deadline::start;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);
    const IN_TIME: Duration = Duration::ZERO;

    /// All acts until then, with a loop that is always in time.
    fn acts_until(one: &mut Vigil, end: Instant) -> Vec<(Instant, Act)> {
        let mut acts = Vec::new();
        while let Some(due) = one.poll_timeout().filter(|&due| due <= end) {
            acts.extend(one.timeout(due, IN_TIME, false).into_iter().map(|act| (due, act)));
        }
        acts
    }

    #[test]
    fn p15_an_unanswered_ping_is_told_then_punished() {
        let t0 = start();
        let mut one = Vigil::new(Watchdog::ping(8 * SECOND).abort_signal(6), t0);
        let expected = [
            (t0 + 4 * SECOND, Act::Ping),
            (t0 + 6 * SECOND, Act::TellSilent { since: t0 }),
            (t0 + 8 * SECOND, Act::AskForStack(6)),
            (t0 + 13 * SECOND, Act::StopLadder),
        ];
        assert_eq!(acts_until(&mut one, t0 + 100 * SECOND), expected);
        one.alive(t0 + 14 * SECOND);
        assert_eq!(one.poll_timeout(), None, "the ladder is the last act");
    }

    #[test]
    fn p15_a_silent_worker_without_a_ping_is_told_then_punished() {
        let t0 = start();
        for watchdog in [Watchdog::messages(8 * SECOND), Watchdog::notify(8 * SECOND)] {
            let mut one = Vigil::new(watchdog, t0);
            one.alive(t0 + SECOND);
            let expected =
                [(t0 + 7 * SECOND, Act::TellSilent { since: t0 + SECOND }), (t0 + 9 * SECOND, Act::StopLadder)];
            assert_eq!(acts_until(&mut one, t0 + 100 * SECOND), expected);
        }
    }

    #[test]
    fn p15_silence_alone_is_no_miss_where_it_is_pinged() {
        let t0 = start();
        let mut one = Vigil::new(Watchdog::ping(8 * SECOND), t0);
        let mut answered_at = t0;
        for _ in 0..50 {
            let due = answered_at + 4 * SECOND;
            assert_eq!(acts_until(&mut one, due), [(due, Act::Ping)]);
            answered_at = due + SECOND;
            one.alive(answered_at);
        }
        assert_eq!(acts_until(&mut one, answered_at + 3 * SECOND), []);
        // A bit late, but not too late: the ping is a bit late too, and the answer has all its time.
        let late = answered_at + 5 * SECOND;
        assert_eq!(one.timeout(late, IN_TIME, false), [Act::Ping]);
        assert_eq!(one.poll_timeout(), Some(late + 2 * SECOND));
    }

    #[test]
    fn p15_the_next_ping_comes_before_the_answer_to_the_last_was_due() {
        let t0 = start();
        let mut one = Vigil::new(Watchdog::ping(30 * SECOND).ping_after(SECOND), t0);
        assert_eq!(acts_until(&mut one, t0 + SECOND), [(t0 + SECOND, Act::Ping)]);
        one.alive(t0 + 2 * SECOND);
        assert_eq!(acts_until(&mut one, t0 + 3 * SECOND), [(t0 + 3 * SECOND, Act::Ping)]);
    }

    #[test]
    fn p14_a_flood_of_messages_costs_no_timers() {
        let t0 = start();
        let mut one = Vigil::new(Watchdog::messages(8 * SECOND), t0);
        let due = one.poll_timeout();
        for ms in 0..5000 {
            one.alive(t0 + Duration::from_millis(ms));
            assert_eq!(one.poll_timeout(), due);
        }
        let heard = t0 + Duration::from_millis(4999);
        assert_eq!(one.timeout(t0 + 6 * SECOND, IN_TIME, false), []);
        assert_eq!(one.poll_timeout(), Some(heard + 6 * SECOND), "three quarters after the last one");
    }

    #[test]
    fn p15_a_late_loop_does_not_count() {
        let t0 = start();
        let watchdog = Watchdog::messages(8 * SECOND);
        let mut one = Vigil::new(watchdog, t0);
        assert_eq!(one.timeout(t0 + 9 * SECOND, IN_TIME, false), [], "three seconds late, as it can see itself");
        assert_eq!(one.poll_timeout(), Some(t0 + 15 * SECOND));
        assert_eq!(one.timeout(t0 + 15 * SECOND, 2 * SECOND + SECOND / 1000, false), [], "as it was told");
        assert_eq!(one.poll_timeout(), Some(t0 + 21 * SECOND));
        let told = [Act::TellSilent { since: t0 }];
        assert_eq!(one.timeout(t0 + 21 * SECOND, 2 * SECOND, false), told, "a quarter of the period may be");
        let mut other = Vigil::new(watchdog, t0);
        let both = [Act::TellSilent { since: t0 }, Act::StopLadder];
        assert_eq!(
            other.timeout(t0 + 8 * SECOND, IN_TIME, false),
            both,
            "told before it is punished, also at one time"
        );
    }

    #[test]
    fn p15_a_stopped_child_does_not_count() {
        let t0 = start();
        let mut one = Vigil::new(Watchdog::ping(8 * SECOND), t0);
        for _ in 0..20 {
            let due = one.poll_timeout().unwrap();
            assert_eq!(one.timeout(due, IN_TIME, true), [], "not even pinged");
        }
        let begun = t0 + 80 * SECOND;
        assert_eq!(one.poll_timeout(), Some(begun + 4 * SECOND));
        // Stopped and continued while an answer is due.
        assert_eq!(one.timeout(begun + 4 * SECOND, IN_TIME, false), [Act::Ping]);
        one.excuse(begun + 5 * SECOND);
        let acts = acts_until(&mut one, begun + 9 * SECOND);
        assert_eq!(acts, [(begun + 9 * SECOND, Act::Ping)], "the period began anew");
    }

    #[test]
    fn p15_a_stack_has_its_time_and_nothing_saves_it_then() {
        let t0 = start();
        let mut one = Vigil::new(Watchdog::notify(4 * SECOND).abort_signal(3).abort_timeout(2 * SECOND), t0);
        let acts = acts_until(&mut one, t0 + 4 * SECOND);
        assert_eq!(acts.last(), Some(&(t0 + 4 * SECOND, Act::AskForStack(3))));
        one.alive(t0 + 5 * SECOND);
        one.excuse(t0 + 5 * SECOND);
        assert_eq!(one.timeout(t0 + 5 * SECOND, IN_TIME, false), []);
        assert_eq!(one.timeout(t0 + 6 * SECOND, 99 * SECOND, true), [Act::StopLadder]);
        assert_eq!(one.poll_timeout(), None);
    }

    #[test]
    fn p16_watchdogs_that_cannot_work_are_refused() {
        let ping = || Watchdog::ping(8 * SECOND);
        let period = 8 * SECOND;
        let refused = |watchdog: Watchdog| watchdog.check().unwrap_err().settings[1];
        for shorter in [ping().ping_after(8 * SECOND), ping().ping_after(9 * SECOND)] {
            assert_eq!(refused(shorter), "ping_after");
        }
        let late =
            [ping().warn_after(4 * SECOND), ping().warn_after(period), Watchdog::messages(period).warn_after(period)];
        assert_eq!(late.map(refused), ["warn_after"; 3]);
        assert_eq!(refused(Watchdog::messages(period).ping_after(SECOND)), "ping_after");
        assert_eq!(refused(Watchdog::notify(Duration::ZERO)), "period");
        assert_eq!(refused(ping().ping_after(Duration::ZERO)), "ping_after");
        assert_eq!(refused(ping().warn_after(Duration::ZERO)), "warn_after");
        assert_eq!(refused(ping().abort_signal(0)), "abort_signal");
        let lives = [ping(), Watchdog::messages(period), Watchdog::notify(period)].map(|watchdog| watchdog.life());
        assert_eq!(lives, [Life::Ping, Life::Messages, Life::Notify]);
        for good in [ping(), ping().ping_after(7 * SECOND), ping().abort_signal(6), Watchdog::notify(period)] {
            assert_eq!(good.check(), Ok(()), "{good:?}");
        }
        assert_eq!(Watchdog::messages(SECOND).warn_after(SECOND / 9).check(), Ok(()));
        assert_eq!(Vigil::new(Watchdog::ping(Duration::MAX), start()).poll_timeout(), None, "beyond the clock");
    }

    proptest! {
        /// The order of the acts, and that nobody is punished without a whole period of silence that was his own.
        #[test]
        fn p15_any_history_warns_before_it_punishes(
            pings: bool,
            stack: bool,
            history in prop::collection::vec((0..6_u8, 0..2500_u64), 0..60),
        ) {
            let period = 8 * SECOND;
            let mut watchdog = if pings { Watchdog::ping(period) } else { Watchdog::messages(period) };
            if stack {
                watchdog = watchdog.abort_signal(6);
            }
            let t0 = start();
            let (mut one, mut now, mut excused) = (Vigil::new(watchdog, t0), t0, t0);
            let (mut asked, mut told, mut dumped, mut over) = (!pings, false, false, false);
            for (event, pause_ms) in history {
                now += Duration::from_millis(pause_ms);
                prop_assert!(!over || one.poll_timeout().is_none());
                match event {
                    0 => {
                        one.alive(now);
                        excused = now;
                        (asked, told) = (!pings, false);
                    }
                    1 => {
                        let was_due = one.poll_timeout().is_some_and(|due| due <= now);
                        let acts = one.timeout(now, IN_TIME, true);
                        prop_assert!(acts.is_empty() || acts == [Act::StopLadder] && dumped, "{:?}", acts);
                        over |= !acts.is_empty();
                        if was_due {
                            excused = now;
                            (asked, told) = (!pings, false);
                        }
                    }
                    _ => for act in one.timeout(now, IN_TIME, false) {
                        match act {
                            Act::Ping => asked = true,
                            Act::TellSilent { .. } => {
                                prop_assert!(asked);
                                told = true;
                            }
                            Act::AskForStack(_) => {
                                prop_assert!(stack && told && !dumped && now - excused >= period);
                                dumped = true;
                            }
                            Act::StopLadder => {
                                prop_assert!(!over && dumped == stack);
                                prop_assert!(dumped || told && now - excused >= period);
                                over = true;
                            }
                        }
                    },
                }
            }
        }
    }
}
