//! The watchdog: how long a running worker may be silent, and what follows.

use super::conflict::Conflict;
use crate::deadline::Deadline;
use std::time::{Duration, Instant};

/// Detects a worker that hangs. After a silence the supervisor sends a warning event, then optionally a signal that makes the
/// worker show where it hangs, and then stops the worker.
///
/// Silence that is not the worker's fault does not count: when the event loop was late, when the machine was suspended, and when
/// the worker is stopped (SIGSTOP, Ctrl-Z), its period starts again. The price: if the event loop is late all the time, no hang is
/// detected.
///
/// ```
/// use pipewright::Watchdog;
/// use std::time::Duration;
///
/// let watchdog = Watchdog::ping(Duration::from_secs(30)).abort_signal(6); // SIGABRT: a core dump shows where it hangs
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a watchdog is a part of a worker's spec"]
#[doc(alias = "WatchdogSec")]
pub struct Watchdog {
    source: LivenessSource,
    period: Duration,
    ping_after: Option<Duration>,
    warn_after: Option<Duration>,
    abort_signal: Option<i32>,
    abort_timeout: Duration,
}

/// What counts as activity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LivenessSource {
    /// Any traffic on the control connection. An idle worker is pinged there.
    Ping,
    /// Any message.
    Messages,
    /// `WATCHDOG=1` on the notify socket.
    Notify,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WatchdogAction {
    /// Send a ping over the control connection. The reply counts as activity.
    Ping,
    /// Send a warning event. Once for each silence, always before the worker is stopped.
    Warn { since: Instant },
    /// Send this signal to the process, so that it shows where it hangs.
    SendAbortSignal(i32),
    /// Stop the worker by its stop policy. The last action.
    Stop,
}

/// Watches one incarnation, from when it is ready.
#[derive(Debug)]
pub(crate) struct WatchdogTimer {
    watchdog: Watchdog,
    last_activity: Instant,
    state: WatchdogState,
    /// When `timeout` is to be called. Activity does not move it, so that a flood of messages costs no timers: it may expire too early
    /// and is then set again.
    armed: Deadline,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WatchdogState {
    /// No activity is expected before the next ping.
    Idle {
        from: Instant,
    },
    Expecting {
        from: Instant,
    },
    /// Activity is overdue, and the warning was sent.
    Warned {
        from: Instant,
    },
    /// The abort signal was sent, and its timeout runs.
    Aborting,
    Stopped,
}

impl Watchdog {
    /// Core dumps of large processes are slow.
    const ABORT_TIMEOUT: Duration = Duration::from_secs(5);

    /// For a worker with a control connection. The worker is pinged after half of the period without activity, and has the other
    /// half to reply. The watch starts when it has connected, or when its [timeout for
    /// that](crate::WorkerSpec::control_connect_timeout) has passed. The library replies in the worker, so a worker counts as hung when
    /// none of its serving threads is free.
    pub fn ping(period: Duration) -> Self {
        Self::new(LivenessSource::Ping, period)
    }

    /// For a worker that sends at least one message in each period.
    pub fn messages(period: Duration) -> Self {
        Self::new(LivenessSource::Messages, period)
    }

    /// For a worker that sends `WATCHDOG=1` by `sd_notify` at least once in each period. It finds the period in `WATCHDOG_USEC`.
    #[doc(alias = "sd_watchdog_enabled")]
    pub fn notify(period: Duration) -> Self {
        Self::new(LivenessSource::Notify, period)
    }

    fn new(source: LivenessSource, period: Duration) -> Self {
        let abort_timeout = Self::ABORT_TIMEOUT;
        Self { source, period, ping_after: None, warn_after: None, abort_signal: None, abort_timeout }
    }

    /// Sets the silence after which the worker is pinged; by default half of the period. The rest of the period is the time to
    /// reply.
    pub fn ping_after(mut self, silence: Duration) -> Self {
        self.ping_after = Some(silence);
        self
    }

    /// Sets the silence after which [`WatchdogWarning`](crate::EventKind::WatchdogWarning) is sent; by default three quarters of the
    /// period, or half of the time to reply where [`ping_after`](Self::ping_after) is set.
    pub fn warn_after(mut self, silence: Duration) -> Self {
        self.warn_after = Some(silence);
        self
    }

    /// Sets a signal that is sent before the worker is stopped, so that it shows where it hangs: 6 (SIGABRT) for a core dump, 3
    /// (SIGQUIT) for a thread dump of Go and Java. By default none.
    #[doc(alias = "WatchdogSignal")]
    pub fn abort_signal(mut self, signal: i32) -> Self {
        self.abort_signal = Some(signal);
        self
    }

    /// Sets the time from that signal to the stop; by default 5 s. Activity in between does not prevent the stop.
    pub fn abort_timeout(mut self, timeout: Duration) -> Self {
        self.abort_timeout = timeout;
        self
    }

    /// The longest silence before the worker is stopped.
    pub fn period(&self) -> Duration {
        self.period
    }

    pub(crate) fn liveness_source(&self) -> LivenessSource {
        self.source
    }

    /// Checks for settings that contradict each other.
    pub(crate) fn check(&self) -> Result<(), Conflict> {
        let (period, warning) = (self.period, self.warn_delay());
        let refuse = |setting, reason: String| Err(Conflict::new(["watchdog", setting], reason));
        let times = [("period", Some(period)), ("ping_after", self.ping_after), ("warn_after", self.warn_after)];
        if let Some((setting, _)) = times.into_iter().find(|(_, time)| *time == Some(Duration::ZERO)) {
            return refuse(setting, "the time is zero".into());
        }
        if self.ping_after.is_some() && self.source != LivenessSource::Ping {
            return refuse("ping_after", "only `Watchdog::ping` sends pings".into());
        }
        let ping = self.ping_delay();
        if ping >= period {
            return refuse(
                "ping_after",
                format!("the ping after {ping:?} is not before the period of {period:?} ends"),
            );
        }
        if warning >= period {
            return refuse(
                "warn_after",
                format!("the warning after {warning:?} is not before the period of {period:?} ends"),
            );
        }
        if warning <= ping {
            return refuse(
                "warn_after",
                format!("the warning after {warning:?} is not later than the ping after {ping:?}"),
            );
        }
        match self.abort_signal {
            Some(signal) if !(1..=64).contains(&signal) => {
                refuse("abort_signal", format!("there is no signal {signal}"))
            }
            _ => Ok(()),
        }
    }

    /// Zero for sources that are not pinged.
    fn ping_delay(&self) -> Duration {
        match self.source {
            LivenessSource::Ping => self.ping_after.unwrap_or(self.period / 2),
            LivenessSource::Messages | LivenessSource::Notify => Duration::ZERO,
        }
    }

    fn warn_delay(&self) -> Duration {
        let half = |from: Duration| from + self.period.saturating_sub(from) / 2;
        self.warn_after.unwrap_or_else(|| match self.source {
            LivenessSource::Ping => half(self.ping_delay()),
            LivenessSource::Messages | LivenessSource::Notify => half(self.period / 2),
        })
    }

    fn initial_state(&self, from: Instant) -> WatchdogState {
        match self.source {
            LivenessSource::Ping => WatchdogState::Idle { from },
            LivenessSource::Messages | LivenessSource::Notify => WatchdogState::Expecting { from },
        }
    }
}

impl WatchdogTimer {
    /// A delay of the event loop by more than the period divided by this excuses the worker.
    const LATE_DIVISOR: u32 = 4;

    pub(crate) fn new(watchdog: Watchdog, now: Instant) -> Self {
        let mut timer = Self { watchdog, last_activity: now, state: WatchdogState::Stopped, armed: Deadline::NEVER };
        timer.state = watchdog.initial_state(now);
        timer.arm(now);
        timer
    }

    pub(crate) fn record_activity(&mut self, now: Instant) {
        self.last_activity = now;
        self.reset(now);
    }

    /// Starts the period again: there was activity, or the silence was not the worker's fault.
    pub(crate) fn reset(&mut self, now: Instant) {
        match self.state {
            WatchdogState::Idle { .. } | WatchdogState::Expecting { .. } | WatchdogState::Warned { .. } => {
                self.state = self.watchdog.initial_state(now);
                let is_early_enough =
                    self.next().is_none_or(|next| self.armed.poll_timeout().is_some_and(|armed| armed <= next));
                if !is_early_enough {
                    self.arm(now);
                }
            }
            WatchdogState::Aborting | WatchdogState::Stopped => {}
        }
    }

    /// Called when the time of `poll_timeout` may have come. What the worker did before must be recorded first. `loop_delay` is by
    /// how much the event loop, or the machine, was late since it last read; `is_exempt` says that the process is stopped, or that
    /// nothing reads from it now.
    pub(crate) fn timeout(&mut self, now: Instant, loop_delay: Duration, is_exempt: bool) -> Vec<WatchdogAction> {
        let Some(due) = self.armed.poll_timeout().filter(|&due| now >= due) else { return Vec::new() };
        if self.state == WatchdogState::Aborting {
            return vec![self.stop()];
        }
        let late = loop_delay.max(now.saturating_duration_since(due));
        if is_exempt || late > self.watchdog.period / Self::LATE_DIVISOR {
            self.state = self.watchdog.initial_state(now);
        }
        let mut actions = Vec::new();
        while self.next().is_some_and(|next| now >= next) {
            actions.extend(self.advance(now));
        }
        if self.state != WatchdogState::Aborting {
            self.arm(now);
        }
        actions
    }

    /// When to call `timeout`.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.armed.poll_timeout()
    }

    fn advance(&mut self, now: Instant) -> Option<WatchdogAction> {
        match self.state {
            WatchdogState::Idle { .. } => {
                self.state = WatchdogState::Expecting { from: now };
                Some(WatchdogAction::Ping)
            }
            WatchdogState::Expecting { from } => {
                self.state = WatchdogState::Warned { from };
                Some(WatchdogAction::Warn { since: self.last_activity })
            }
            WatchdogState::Warned { .. } => match self.watchdog.abort_signal {
                Some(signal) => {
                    self.state = WatchdogState::Aborting;
                    self.armed.set(now, self.watchdog.abort_timeout);
                    Some(WatchdogAction::SendAbortSignal(signal))
                }
                None => Some(self.stop()),
            },
            WatchdogState::Aborting | WatchdogState::Stopped => None,
        }
    }

    fn stop(&mut self) -> WatchdogAction {
        self.state = WatchdogState::Stopped;
        self.armed.clear();
        WatchdogAction::Stop
    }

    /// When the current state ends, if it has a limit.
    fn next(&self) -> Option<Instant> {
        let (from, after) = self.current_limit()?;
        from.checked_add(after)
    }

    /// The time to reply counts from the ping, however late it was sent.
    fn current_limit(&self) -> Option<(Instant, Duration)> {
        let pinged = self.watchdog.ping_delay();
        match self.state {
            WatchdogState::Idle { from } => Some((from, pinged)),
            WatchdogState::Expecting { from } => Some((from, self.watchdog.warn_delay().saturating_sub(pinged))),
            WatchdogState::Warned { from } => Some((from, self.watchdog.period.saturating_sub(pinged))),
            WatchdogState::Aborting | WatchdogState::Stopped => None,
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
    use crate::deadline::start;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);
    const IN_TIME: Duration = Duration::ZERO;

    /// All actions up to `end`, from an event loop that is never late.
    fn actions_until(timer: &mut WatchdogTimer, end: Instant) -> Vec<(Instant, WatchdogAction)> {
        let mut actions = Vec::new();
        while let Some(due) = timer.poll_timeout().filter(|&due| due <= end) {
            actions.extend(timer.timeout(due, IN_TIME, false).into_iter().map(|action| (due, action)));
        }
        actions
    }

    #[test]
    fn p15_unanswered_ping_warns_then_stops() {
        let t0 = start();
        let mut timer = WatchdogTimer::new(Watchdog::ping(8 * SECOND).abort_signal(6), t0);
        let expected = [
            (t0 + 4 * SECOND, WatchdogAction::Ping),
            (t0 + 6 * SECOND, WatchdogAction::Warn { since: t0 }),
            (t0 + 8 * SECOND, WatchdogAction::SendAbortSignal(6)),
            (t0 + 13 * SECOND, WatchdogAction::Stop),
        ];
        assert_eq!(actions_until(&mut timer, t0 + 100 * SECOND), expected);
        timer.record_activity(t0 + 14 * SECOND);
        assert_eq!(timer.poll_timeout(), None, "the stop is the last action");
    }

    #[test]
    fn p15_silence_without_ping_warns_then_stops() {
        let t0 = start();
        for watchdog in [Watchdog::messages(8 * SECOND), Watchdog::notify(8 * SECOND)] {
            let mut timer = WatchdogTimer::new(watchdog, t0);
            timer.record_activity(t0 + SECOND);
            let expected = [
                (t0 + 7 * SECOND, WatchdogAction::Warn { since: t0 + SECOND }),
                (t0 + 9 * SECOND, WatchdogAction::Stop),
            ];
            assert_eq!(actions_until(&mut timer, t0 + 100 * SECOND), expected);
        }
    }

    #[test]
    fn p15_answered_pings_are_enough() {
        let t0 = start();
        let mut timer = WatchdogTimer::new(Watchdog::ping(8 * SECOND), t0);
        let mut answered_at = t0;
        for _ in 0..50 {
            let due = answered_at + 4 * SECOND;
            assert_eq!(actions_until(&mut timer, due), [(due, WatchdogAction::Ping)]);
            answered_at = due + SECOND;
            timer.record_activity(answered_at);
        }
        assert_eq!(actions_until(&mut timer, answered_at + 3 * SECOND), []);
        // Slightly late: the ping is late too, and the reply has its full time.
        let late = answered_at + 5 * SECOND;
        assert_eq!(timer.timeout(late, IN_TIME, false), [WatchdogAction::Ping]);
        assert_eq!(timer.poll_timeout(), Some(late + 2 * SECOND));
    }

    #[test]
    fn p15_next_ping_may_precede_the_last_reply_deadline() {
        let t0 = start();
        let mut timer = WatchdogTimer::new(Watchdog::ping(30 * SECOND).ping_after(SECOND), t0);
        assert_eq!(actions_until(&mut timer, t0 + SECOND), [(t0 + SECOND, WatchdogAction::Ping)]);
        timer.record_activity(t0 + 2 * SECOND);
        assert_eq!(actions_until(&mut timer, t0 + 3 * SECOND), [(t0 + 3 * SECOND, WatchdogAction::Ping)]);
    }

    #[test]
    fn p14_flood_of_messages_sets_no_timers() {
        let t0 = start();
        let mut timer = WatchdogTimer::new(Watchdog::messages(8 * SECOND), t0);
        let due = timer.poll_timeout();
        for ms in 0..5000 {
            timer.record_activity(t0 + Duration::from_millis(ms));
            assert_eq!(timer.poll_timeout(), due);
        }
        let last = t0 + Duration::from_millis(4999);
        assert_eq!(timer.timeout(t0 + 6 * SECOND, IN_TIME, false), []);
        assert_eq!(
            timer.poll_timeout(),
            Some(last + 6 * SECOND),
            "three quarters of the period after the last message"
        );
    }

    #[test]
    fn p15_late_event_loop_does_not_count() {
        let t0 = start();
        let watchdog = Watchdog::messages(8 * SECOND);
        let mut timer = WatchdogTimer::new(watchdog, t0);
        assert_eq!(timer.timeout(t0 + 9 * SECOND, IN_TIME, false), [], "three seconds late by its own deadline");
        assert_eq!(timer.poll_timeout(), Some(t0 + 15 * SECOND));
        assert_eq!(
            timer.timeout(t0 + 15 * SECOND, 2 * SECOND + SECOND / 1000, false),
            [],
            "late as reported by the loop"
        );
        assert_eq!(timer.poll_timeout(), Some(t0 + 21 * SECOND));
        let warned = [WatchdogAction::Warn { since: t0 }];
        assert_eq!(
            timer.timeout(t0 + 21 * SECOND, 2 * SECOND, false),
            warned,
            "a delay of a quarter of the period is tolerated"
        );
        let mut other = WatchdogTimer::new(watchdog, t0);
        let both = [WatchdogAction::Warn { since: t0 }, WatchdogAction::Stop];
        assert_eq!(
            other.timeout(t0 + 8 * SECOND, IN_TIME, false),
            both,
            "the warning comes before the stop, also in one call"
        );
    }

    #[test]
    fn p15_stopped_process_does_not_count() {
        let t0 = start();
        let mut timer = WatchdogTimer::new(Watchdog::ping(8 * SECOND), t0);
        for _ in 0..20 {
            let due = timer.poll_timeout().unwrap();
            assert_eq!(timer.timeout(due, IN_TIME, true), [], "no ping either");
        }
        let begun = t0 + 80 * SECOND;
        assert_eq!(timer.poll_timeout(), Some(begun + 4 * SECOND));
        // Stopped and continued while a reply is due.
        assert_eq!(timer.timeout(begun + 4 * SECOND, IN_TIME, false), [WatchdogAction::Ping]);
        timer.reset(begun + 5 * SECOND);
        let actions = actions_until(&mut timer, begun + 9 * SECOND);
        assert_eq!(actions, [(begun + 9 * SECOND, WatchdogAction::Ping)], "the period started again");
    }

    #[test]
    fn p15_abort_timeout_is_final() {
        let t0 = start();
        let mut timer = WatchdogTimer::new(Watchdog::notify(4 * SECOND).abort_signal(3).abort_timeout(2 * SECOND), t0);
        let actions = actions_until(&mut timer, t0 + 4 * SECOND);
        assert_eq!(actions.last(), Some(&(t0 + 4 * SECOND, WatchdogAction::SendAbortSignal(3))));
        timer.record_activity(t0 + 5 * SECOND);
        timer.reset(t0 + 5 * SECOND);
        assert_eq!(timer.timeout(t0 + 5 * SECOND, IN_TIME, false), []);
        assert_eq!(timer.timeout(t0 + 6 * SECOND, 99 * SECOND, true), [WatchdogAction::Stop]);
        assert_eq!(timer.poll_timeout(), None);
    }

    #[test]
    fn p16_contradictory_watchdogs_are_refused() {
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
        let lives =
            [ping(), Watchdog::messages(period), Watchdog::notify(period)].map(|watchdog| watchdog.liveness_source());
        assert_eq!(lives, [LivenessSource::Ping, LivenessSource::Messages, LivenessSource::Notify]);
        for good in [ping(), ping().ping_after(7 * SECOND), ping().abort_signal(6), Watchdog::notify(period)] {
            assert_eq!(good.check(), Ok(()), "{good:?}");
        }
        assert_eq!(Watchdog::messages(SECOND).warn_after(SECOND / 9).check(), Ok(()));
        assert_eq!(
            WatchdogTimer::new(Watchdog::ping(Duration::MAX), start()).poll_timeout(),
            None,
            "a period beyond the clock never ends"
        );
    }

    proptest! {
        /// Checks the order of the actions, and that no worker is stopped without a whole period of silence of its own.
        #[test]
        fn p15_any_history_warns_before_it_stops(
            pings: bool,
            has_signal: bool,
            history in prop::collection::vec((0..6_u8, 0..2500_u64), 0..60),
        ) {
            let period = 8 * SECOND;
            let mut watchdog = if pings { Watchdog::ping(period) } else { Watchdog::messages(period) };
            if has_signal {
                watchdog = watchdog.abort_signal(6);
            }
            let t0 = start();
            let (mut timer, mut now, mut silent_since) = (WatchdogTimer::new(watchdog, t0), t0, t0);
            let (mut asked, mut warned, mut aborted, mut over) = (!pings, false, false, false);
            for (event, pause_ms) in history {
                now += Duration::from_millis(pause_ms);
                prop_assert!(!over || timer.poll_timeout().is_none());
                match event {
                    0 => {
                        timer.record_activity(now);
                        silent_since = now;
                        (asked, warned) = (!pings, false);
                    }
                    1 => {
                        let was_due = timer.poll_timeout().is_some_and(|due| due <= now);
                        let actions = timer.timeout(now, IN_TIME, true);
                        prop_assert!(actions.is_empty() || actions == [WatchdogAction::Stop] && aborted, "{:?}", actions);
                        over |= !actions.is_empty();
                        if was_due {
                            silent_since = now;
                            (asked, warned) = (!pings, false);
                        }
                    }
                    _ => for action in timer.timeout(now, IN_TIME, false) {
                        match action {
                            WatchdogAction::Ping => asked = true,
                            WatchdogAction::Warn { .. } => {
                                prop_assert!(asked);
                                warned = true;
                            }
                            WatchdogAction::SendAbortSignal(_) => {
                                prop_assert!(has_signal && warned && !aborted && now - silent_since >= period);
                                aborted = true;
                            }
                            WatchdogAction::Stop => {
                                prop_assert!(!over && aborted == has_signal);
                                prop_assert!(aborted || warned && now - silent_since >= period);
                                over = true;
                            }
                        }
                    },
                }
            }
        }
    }
}
