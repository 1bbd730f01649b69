//! When an ended worker is started again, and when that has no use any more.

use super::Conflict;
use crate::exit::ExitStatus;
use std::{
    collections::VecDeque,
    fmt,
    time::{Duration, Instant},
};

/// When a worker is started again after it has ended by itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Restart {
    /// It is not.
    #[default]
    #[doc(alias = "temporary")]
    Never,
    /// After a failure: any code but 0, any signal.
    #[doc(alias = "transient")]
    OnFailure,
    /// However it has ended.
    #[doc(alias = "permanent")]
    Always,
}

/// How long to wait before a restart: longer after each, up to a cap, and from the start again once a worker was stable.
#[derive(Debug, Clone, Copy, PartialEq)]
#[must_use]
pub struct Backoff {
    first: Duration,
    cap: Duration,
    jitter: f64,
    stable_after: Duration,
}

impl Default for Backoff {
    /// 100 ms, 200 ms, … 30 s, each shortened at random by up to a half; from the start again after 60 s of life.
    fn default() -> Self {
        Self::new(Duration::from_millis(100), Duration::from_secs(30))
    }
}

impl Backoff {
    /// The first pause, which doubles with each restart up to `cap`.
    pub const fn new(first: Duration, cap: Duration) -> Self {
        Self { first, cap, jitter: 0.5, stable_after: Duration::from_secs(60) }
    }

    /// The same pause each time, without jitter.
    pub const fn constant(pause: Duration) -> Self {
        Self { jitter: 0.0, ..Self::new(pause, pause) }
    }

    /// Which part of each pause is left to chance, from 0 to 1, so that workers that failed together do not come back together;
    /// by default 0.5.
    pub const fn jitter(mut self, part: f64) -> Self {
        self.jitter = part;
        self
    }

    /// How long a worker must live to count as stable: its next pause is the first one again. By default 60 s.
    pub const fn stable_after(mut self, time: Duration) -> Self {
        self.stable_after = time;
        self
    }

    /// The pause before the restart of this number, counted from 0, before chance shortens it.
    fn whole(&self, number: u32) -> Duration {
        let factor = 2_u32.checked_pow(number).unwrap_or(u32::MAX);
        self.first.saturating_mul(factor).min(self.cap)
    }

    /// The shortest time that so many restarts in a row take.
    fn least(&self, restarts: u32) -> Duration {
        // From here on every pause is the cap, or all of them are nothing.
        const GROWING: u32 = 64;
        let growing = (0..restarts.min(GROWING)).map(|number| self.pause(number, 1.0));
        let rest = self.pause(GROWING, 1.0).saturating_mul(restarts.saturating_sub(GROWING));
        growing.fold(rest, Duration::saturating_add)
    }

    /// As [`whole`](Self::whole), shortened by chance: `chance` from 0 to 1.
    fn pause(&self, number: u32, chance: f64) -> Duration {
        let whole = self.whole(number);
        Duration::try_from_secs_f64(whole.as_secs_f64() * (1.0 - self.jitter * chance)).unwrap_or(whole)
    }
}

/// How many restarts within which time are too many: then the worker gives up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[doc(alias = "StartLimitBurst")]
pub struct Intensity {
    restarts: u32,
    period: Duration,
}

impl Default for Intensity {
    /// 5 restarts within 30 s.
    fn default() -> Self {
        Self::new(5, Duration::from_secs(30))
    }
}

impl Intensity {
    /// At most so many restarts within any stretch of `period`.
    #[must_use]
    pub const fn new(restarts: u32, period: Duration) -> Self {
        Self { restarts, period }
    }

    /// As many as it takes.
    #[must_use]
    pub const fn unlimited() -> Self {
        Self::new(u32::MAX, Duration::ZERO)
    }
}

/// Everything about restarts, for [`WorkerSpec::restart`](crate::WorkerSpec::restart), which also takes a bare [`Restart`].
///
/// ```
/// use pipewright::{Backoff, Intensity, Restart, RestartPolicy, WorkerSpec};
/// use std::time::Duration;
///
/// WorkerSpec::new("plugin").restart(Restart::Always);
/// let policy = RestartPolicy::from(Restart::OnFailure)
///     .success_codes([77]) // "skipped"
///     .fatal_codes([125]) // it says itself that another try has no use
///     .backoff(Backoff::new(Duration::from_millis(50), Duration::from_secs(5)))
///     .intensity(Intensity::new(10, Duration::from_secs(60)));
/// WorkerSpec::new("plugin").restart(policy);
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
#[must_use]
pub struct RestartPolicy {
    when: Restart,
    success_codes: Vec<i32>,
    success_signals: Vec<i32>,
    fatal_codes: Vec<i32>,
    fatal_signals: Vec<i32>,
    forced_codes: Vec<i32>,
    forced_signals: Vec<i32>,
    backoff: Backoff,
    /// `None` where the spec does not say: the default, or in a group no bound but the group's.
    intensity: Option<Intensity>,
}

impl From<Restart> for RestartPolicy {
    fn from(when: Restart) -> Self {
        Self { when, ..Self::default() }
    }
}

impl RestartPolicy {
    /// Exit codes that are no failure, beside 0.
    #[doc(alias = "SuccessExitStatus")]
    pub fn success_codes(mut self, codes: impl IntoIterator<Item = i32>) -> Self {
        self.success_codes.extend(codes);
        self
    }

    /// Signals that are no failure when they end it.
    pub fn success_signals(mut self, signals: impl IntoIterator<Item = i32>) -> Self {
        self.success_signals.extend(signals);
        self
    }

    /// Exit codes after which it is never started again: it gives up at once.
    #[doc(alias = "RestartPreventExitStatus")]
    pub fn fatal_codes(mut self, codes: impl IntoIterator<Item = i32>) -> Self {
        self.fatal_codes.extend(codes);
        self
    }

    /// Signals after which it is never started again when they end it.
    pub fn fatal_signals(mut self, signals: impl IntoIterator<Item = i32>) -> Self {
        self.fatal_signals.extend(signals);
        self
    }

    /// Exit codes after which it is started again whatever the [`Restart`] says.
    #[doc(alias = "RestartForceExitStatus")]
    pub fn forced_codes(mut self, codes: impl IntoIterator<Item = i32>) -> Self {
        self.forced_codes.extend(codes);
        self
    }

    /// Signals after which it is started again, when they end it, whatever the [`Restart`] says.
    pub fn forced_signals(mut self, signals: impl IntoIterator<Item = i32>) -> Self {
        self.forced_signals.extend(signals);
        self
    }

    /// How long it waits.
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// When it gives up; by default after 5 restarts within 30 s.
    ///
    /// In a [group](crate::WorkerGroup) the restarts of all members count together, against the intensity of
    /// [the group](crate::GroupPolicy::intensity), and there is no default for the single member. What is set here then counts as
    /// well: a member that exceeds it gives up, and its group with it.
    pub fn intensity(mut self, intensity: Intensity) -> Self {
        self.intensity = Some(intensity);
        self
    }

    /// When it is started again, without the causes that refine it.
    pub(crate) fn when(&self) -> Restart {
        self.when
    }

    /// Whether this end is a success.
    pub(crate) fn is_success(&self, status: ExitStatus) -> bool {
        status == ExitStatus::Code(0) || is_among(status, &self.success_codes, &self.success_signals)
    }

    fn is_fatal(&self, status: ExitStatus) -> bool {
        is_among(status, &self.fatal_codes, &self.fatal_signals)
    }

    fn is_forced(&self, status: ExitStatus) -> bool {
        is_among(status, &self.forced_codes, &self.forced_signals)
    }

    /// Whether there is any end after which it would be started again.
    pub(crate) fn comes_back(&self) -> bool {
        self.when != Restart::Never || !self.forced_codes.is_empty() || !self.forced_signals.is_empty()
    }

    /// Looks for settings that cannot work together.
    pub(crate) fn check(&self) -> Result<(), Conflict> {
        self.check_values()?;
        self.check_reach(self.intensity.unwrap_or_default())
    }

    /// As [`check`](Self::check), for a member of a group of this intensity, if that is limited.
    pub(crate) fn check_in_group(&self, group: Option<Intensity>) -> Result<(), Conflict> {
        self.check_values()?;
        self.intensity.into_iter().chain(group).try_for_each(|intensity| self.check_reach(intensity))
    }

    fn check_values(&self) -> Result<(), Conflict> {
        let Self { backoff, .. } = self;
        let intensity = self.intensity.unwrap_or_default();
        let lists = [&self.success_signals, &self.fatal_signals, &self.forced_signals];
        if let Some(signal) = lists.into_iter().flatten().find(|signal| !(1..=64).contains(*signal)) {
            return Err(Conflict::new(["restart", "signals"], format!("there is no signal {signal}")));
        }
        let codes = [&self.success_codes, &self.fatal_codes, &self.forced_codes];
        if let Some(code) = codes.into_iter().flatten().find(|code| !(0..=255).contains(*code)) {
            return Err(Conflict::new(["restart", "codes"], format!("no program can exit with code {code}: 0 to 255")));
        }
        if intensity.period.is_zero() && intensity != Intensity::unlimited() {
            let reason =
                "within no time there are never too many restarts: give it a period, or use `Intensity::unlimited()`";
            return Err(Conflict::new(["intensity", "period"], reason));
        }
        if !(0.0..=1.0).contains(&backoff.jitter) {
            return Err(Conflict::new(["backoff", "jitter"], format!("{} is not from 0 to 1", backoff.jitter)));
        }
        if backoff.first > backoff.cap {
            let reason = format!("the first pause, {:?}, is longer than the longest, {:?}", backoff.first, backoff.cap);
            return Err(Conflict::new(["backoff", "cap"], reason));
        }
        if let Some(code) = self.fatal_codes.iter().find(|code| self.forced_codes.contains(code)) {
            return Err(Conflict::new(["fatal_codes", "forced_codes"], format!("exit code {code} is in both")));
        }
        if let Some(signal) = self.fatal_signals.iter().find(|signal| self.forced_signals.contains(signal)) {
            return Err(Conflict::new(["fatal_signals", "forced_signals"], format!("signal {signal} is in both")));
        }
        Ok(())
    }

    /// A number of restarts that takes longer than the period, for their pauses alone, would never be too many.
    fn check_reach(&self, intensity: Intensity) -> Result<(), Conflict> {
        if !self.comes_back() || intensity == Intensity::unlimited() {
            return Ok(());
        }
        let least = self.backoff.least(intensity.restarts);
        if least <= intensity.period {
            return Ok(());
        }
        let Intensity { restarts, period } = intensity;
        let reason = format!(
            "{restarts} restarts take {least:?} at least, so there are never too many of them within {period:?}: make the period \
             longer, or use `Intensity::unlimited()`"
        );
        Err(Conflict::new(["intensity", "backoff"], reason))
    }
}

fn is_among(status: ExitStatus, codes: &[i32], signals: &[i32]) -> bool {
    match status {
        ExitStatus::Code(code) => codes.contains(&code),
        ExitStatus::Signal { signal, .. } => signals.contains(&signal),
        ExitStatus::Stuck | ExitStatus::KillRefused | ExitStatus::NeverStarted | ExitStatus::Unknown => false,
    }
}

/// Why a worker is not started again, though its policy would have it so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum GaveUp {
    /// It was started again too often within its [`Intensity`]'s period.
    TooOften,
    /// It ended with one of the [`fatal_codes`](RestartPolicy::fatal_codes).
    FatalCode,
    /// It was ended by one of the [`fatal_signals`](RestartPolicy::fatal_signals).
    FatalSignal,
    /// It cannot be started at all: its program is gone, or may not be run.
    CannotStart,
}

impl fmt::Display for GaveUp {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::TooOften => "it was restarted too often",
            Self::FatalCode => "another try has no use, as its exit code says",
            Self::FatalSignal => "another try has no use after this signal",
            Self::CannotStart => "it cannot be started",
        })
    }
}

/// How an incarnation has come to its end, or was none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// It ended by itself, after so long.
    Ended { status: ExitStatus, ran: Duration },
    /// We ended it, after so long, because it did not become ready, gave no sign of life, or had had its time.
    Unhealthy { ran: Duration },
    /// It could not be started, for a reason that may pass.
    NotStarted,
    /// It could not be started, since the host is short of a resource: no fault of its own.
    Shortage,
    /// It can never be started.
    CannotStart,
}

/// What becomes of the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Again {
        after: Duration,
    },
    /// As `Again`, but nothing of its own has failed, so it counts as no restart and asks no policy.
    Postponed {
        after: Duration,
    },
    Finished,
    GivenUp(GaveUp),
}

/// Between starts for which the host is short of something. A short shortage costs little time; one that lasts is made worse by trying
/// harder.
const SHORTAGE: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));

/// What is known of the restarts of one worker.
#[derive(Debug)]
pub(crate) struct Restarts {
    policy: RestartPolicy,
    intensity: Intensity,
    /// When it was started again, as far back as the period goes.
    recent: VecDeque<Instant>,
    /// Since it was stable, or since its group began a new life.
    in_a_row: u32,
    /// How many lives of its group in a row it has ended.
    lives_in_a_row: u32,
    /// How many starts in a row the host was too short for.
    shortages_in_a_row: u32,
    chance: u64,
}

impl Restarts {
    pub(crate) fn new(policy: RestartPolicy, seed: u64) -> Self {
        let intensity = policy.intensity.unwrap_or_default();
        Self {
            policy,
            intensity,
            recent: VecDeque::new(),
            in_a_row: 0,
            lives_in_a_row: 0,
            shortages_in_a_row: 0,
            chance: seed,
        }
    }

    /// Of a member of a group, whose intensity bounds what the member's own policy does not.
    pub(crate) fn of_member(policy: RestartPolicy, seed: u64) -> Self {
        let intensity = policy.intensity.unwrap_or(Intensity::unlimited());
        Self { intensity, ..Self::new(policy, seed) }
    }

    /// A user has started it, or its group begins a new life in which it is no worse than its siblings.
    pub(crate) fn begin_anew(&mut self) {
        self.recent.clear();
        self.in_a_row = 0;
        self.lives_in_a_row = 0;
    }

    /// Its group begins a new life because of its last end. What it did in the old one counts no more, and the pause before the
    /// new one grows with the number of lives that it has ended: else the restarts that the group around it allows are spent
    /// at once.
    pub(crate) fn begin_next_life(&mut self) -> Duration {
        let lives = self.lives_in_a_row;
        self.begin_anew();
        self.lives_in_a_row = lives.saturating_add(1);
        self.pause(lives)
    }

    pub(crate) fn decide(&mut self, cause: Cause, now: Instant) -> Verdict {
        if let Cause::Ended { ran, .. } | Cause::Unhealthy { ran } = cause
            && ran >= self.policy.backoff.stable_after
        {
            self.in_a_row = 0;
            self.lives_in_a_row = 0;
        }
        let shortages = match cause {
            Cause::Shortage => self.shortages_in_a_row.saturating_add(1),
            Cause::Ended { .. } | Cause::Unhealthy { .. } | Cause::NotStarted | Cause::CannotStart => 0,
        };
        let before = std::mem::replace(&mut self.shortages_in_a_row, shortages);
        let is_wanted = match cause {
            Cause::Shortage => {
                let chance = self.chance();
                return Verdict::Postponed { after: SHORTAGE.pause(before, chance) };
            }
            Cause::Ended { status, .. } if self.policy.is_fatal(status) => {
                let by_code = matches!(status, ExitStatus::Code(_));
                return Verdict::GivenUp(if by_code { GaveUp::FatalCode } else { GaveUp::FatalSignal });
            }
            Cause::Ended { status, .. } if self.policy.is_forced(status) => true,
            Cause::Ended { status, .. } => match self.policy.when {
                Restart::Never => false,
                Restart::OnFailure => !self.policy.is_success(status),
                Restart::Always => true,
            },
            Cause::Unhealthy { .. } | Cause::NotStarted => self.policy.when != Restart::Never,
            Cause::CannotStart => return Verdict::GivenUp(GaveUp::CannotStart),
        };
        if !is_wanted {
            return Verdict::Finished;
        }
        if self.is_too_often(now) {
            return Verdict::GivenUp(GaveUp::TooOften);
        }
        let after = self.next_pause();
        self.recent.push_back(now.checked_add(after).unwrap_or(now));
        Verdict::Again { after }
    }

    /// How long the next start has to wait, whatever the last end was.
    pub(crate) fn next_pause(&mut self) -> Duration {
        let number = self.in_a_row;
        self.in_a_row = number.saturating_add(1);
        self.pause(number)
    }

    fn pause(&mut self, number: u32) -> Duration {
        let chance = self.chance();
        self.policy.backoff.pause(number, chance)
    }

    fn is_too_often(&mut self, now: Instant) -> bool {
        let Intensity { restarts, period } = self.intensity;
        while self.recent.front().is_some_and(|&first| now.saturating_duration_since(first) > period) {
            self.recent.pop_front();
        }
        if self.intensity == Intensity::unlimited() {
            self.recent.clear();
            return false;
        }
        self.recent.len() >= usize::try_from(restarts).unwrap_or(usize::MAX)
    }

    /// From 0 to 1: splitmix64, <https://prng.di.unimi.it/splitmix64.c>.
    fn chance(&mut self) -> f64 {
        self.chance = self.chance.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.chance;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        let high = u32::try_from((mixed ^ mixed >> 31) >> 32).unwrap_or_default();
        f64::from(high) / f64::from(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::deadline::start, *};
    use proptest::prelude::*;

    const CRASH: Cause =
        Cause::Ended { status: ExitStatus::Signal { signal: 11, core_dumped: false }, ran: Duration::from_millis(1) };

    const UNHEALTHY: Cause = Cause::Unhealthy { ran: Duration::from_millis(1) };

    fn code(code: i32) -> Cause {
        Cause::Ended { status: ExitStatus::Code(code), ran: Duration::from_millis(1) }
    }

    fn decide(policy: impl Into<RestartPolicy>, cause: Cause) -> Verdict {
        Restarts::new(policy.into(), 7).decide(cause, start())
    }

    fn is_again(verdict: Verdict) -> bool {
        matches!(verdict, Verdict::Again { .. })
    }

    #[test]
    fn p13_the_policy_says_who_comes_back() {
        for (restart, after_success, after_crash) in
            [(Restart::Never, false, false), (Restart::OnFailure, false, true), (Restart::Always, true, true)]
        {
            assert_eq!(is_again(decide(restart, code(0))), after_success, "{restart:?}");
            assert_eq!(is_again(decide(restart, CRASH)), after_crash, "{restart:?}");
            assert_eq!(is_again(decide(restart, UNHEALTHY)), after_crash, "{restart:?}");
        }
    }

    #[test]
    fn p13_a_shortage_of_the_host_counts_as_no_failure() {
        for when in [Restart::Never, Restart::OnFailure, Restart::Always] {
            let policy = RestartPolicy::from(when).intensity(Intensity::new(1, Duration::from_secs(3600)));
            let mut restarts = Restarts::new(policy, 7);
            let mut pauses = Vec::new();
            for _ in 0..100 {
                match restarts.decide(Cause::Shortage, start()) {
                    Verdict::Postponed { after } => pauses.push(after),
                    other @ (Verdict::Again { .. } | Verdict::Finished | Verdict::GivenUp(_)) => panic!("{other:?}"),
                }
            }
            assert!(pauses[0] <= Duration::from_millis(100), "{pauses:?}");
            let is_slow = |after: &Duration| (2..=5).contains(&after.as_secs());
            assert!(pauses.iter().skip(7).all(is_slow), "up to 5 s, less chance: {pauses:?}");
            if when != Restart::Never {
                assert!(is_again(restarts.decide(CRASH, start())), "its own restarts are all left");
                let Verdict::Postponed { after } = restarts.decide(Cause::Shortage, start()) else {
                    panic!("{when:?}")
                };
                assert!(after <= Duration::from_millis(100), "a new shortage: {after:?}");
                assert_eq!(restarts.decide(CRASH, start()), Verdict::GivenUp(GaveUp::TooOften));
            }
        }
    }

    #[test]
    fn p13_a_new_life_of_its_group_has_a_fresh_history_and_waits_longer_each_time() {
        let backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(4)).jitter(0.0);
        let policy = RestartPolicy::from(Restart::Always).backoff(backoff).intensity(Intensity::new(2, Duration::MAX));
        let mut restarts = Restarts::of_member(policy, 7);
        for life in [1, 2, 4, 4] {
            for after in [1, 2].map(Duration::from_secs) {
                assert_eq!(restarts.decide(CRASH, start()), Verdict::Again { after });
            }
            assert_eq!(restarts.decide(CRASH, start()), Verdict::GivenUp(GaveUp::TooOften));
            assert_eq!(restarts.begin_next_life(), Duration::from_secs(life));
        }
        restarts.begin_anew();
        assert_eq!(restarts.begin_next_life(), Duration::from_secs(1), "as if it had never failed");
        let stable = Cause::Ended { status: ExitStatus::Code(1), ran: Duration::from_secs(60) };
        assert_eq!(restarts.decide(stable, start()), Verdict::Again { after: Duration::from_secs(1) });
        assert_eq!(restarts.begin_next_life(), Duration::from_secs(1));
        let mut unset = Restarts::of_member(RestartPolicy::from(Restart::Always), 7);
        assert!(
            (0..100).all(|_| is_again(unset.decide(CRASH, start()))),
            "its group's intensity is the one that counts"
        );
    }

    #[test]
    fn p13_causes_refine_it() {
        let policy = RestartPolicy::from(Restart::OnFailure).success_codes([77]).success_signals([11]);
        let policy = policy.fatal_codes([125]).forced_codes([0]);
        assert_eq!(decide(policy.clone(), code(77)), Verdict::Finished);
        assert_eq!(decide(policy.clone(), CRASH), Verdict::Finished);
        assert_eq!(decide(policy.clone(), code(125)), Verdict::GivenUp(GaveUp::FatalCode));
        assert!(is_again(decide(policy.clone(), code(0))));
        let policy_of_signals = RestartPolicy::from(Restart::Never).forced_signals([11]);
        assert!(is_again(decide(policy_of_signals, CRASH)));
        let policy_of_signals = RestartPolicy::from(Restart::Always).fatal_signals([11]);
        assert_eq!(decide(policy_of_signals, CRASH), Verdict::GivenUp(GaveUp::FatalSignal));
        assert_eq!(decide(Restart::Always, Cause::CannotStart), Verdict::GivenUp(GaveUp::CannotStart));
        assert_eq!(decide(Restart::Never, Cause::NotStarted), Verdict::Finished);
        assert!(is_again(decide(policy, Cause::NotStarted)));
    }

    #[test]
    fn p13_pauses_double_up_to_the_cap_and_begin_anew_after_a_stable_time() {
        let backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(4)).jitter(0.0);
        let policy = RestartPolicy::from(Restart::Always).backoff(backoff).intensity(Intensity::unlimited());
        let mut restarts = Restarts::new(policy, 1);
        let now = start();
        let mut pause = |cause| match restarts.decide(cause, now) {
            Verdict::Again { after } => after.as_secs(),
            other @ (Verdict::Postponed { .. } | Verdict::Finished | Verdict::GivenUp(_)) => panic!("{other:?}"),
        };
        assert_eq!([pause(CRASH), pause(CRASH), pause(CRASH), pause(CRASH)], [1, 2, 4, 4]);
        let stable = Cause::Ended { status: ExitStatus::Code(1), ran: Duration::from_secs(60) };
        assert_eq!([pause(stable), pause(CRASH)], [1, 2]);
        let hung_after_a_day = Cause::Unhealthy { ran: Duration::from_secs(86_400) };
        assert_eq!([pause(hung_after_a_day), pause(UNHEALTHY)], [1, 2]);
    }

    #[test]
    fn p13_too_many_within_the_period_is_the_end() {
        let policy = RestartPolicy::from(Restart::Always).backoff(Backoff::constant(Duration::ZERO));
        let policy = policy.intensity(Intensity::new(2, Duration::from_secs(10)));
        let mut restarts = Restarts::new(policy, 1);
        let t0 = start();
        assert!(is_again(restarts.decide(CRASH, t0)));
        assert!(is_again(restarts.decide(CRASH, t0 + Duration::from_secs(6))));
        // The first one is out of the period by now, so there is room for one more.
        assert!(is_again(restarts.decide(CRASH, t0 + Duration::from_secs(11))));
        let verdict = restarts.decide(CRASH, t0 + Duration::from_secs(12));
        assert_eq!(verdict, Verdict::GivenUp(GaveUp::TooOften));
    }

    #[test]
    fn settings_that_cannot_work_are_refused() {
        assert_eq!(RestartPolicy::from(Restart::Always).check(), Ok(()), "the defaults fit each other");
        let always = || RestartPolicy::from(Restart::Always);
        let slow = always().backoff(Backoff::constant(Duration::from_secs(10)));
        let settings = |policy: RestartPolicy| policy.check().unwrap_err().settings;
        assert_eq!(settings(slow.intensity(Intensity::new(5, Duration::from_secs(30)))), ["intensity", "backoff"]);
        let many = always().backoff(Backoff::constant(Duration::from_secs(1)));
        let just_too_short = Intensity::new(1_000_000, Duration::from_secs(999_999));
        assert_eq!(settings(many.clone().intensity(just_too_short)), ["intensity", "backoff"]);
        assert_eq!(many.intensity(Intensity::new(1_000_000, Duration::from_secs(1_000_000))).check(), Ok(()));
        let upside_down = Backoff::new(Duration::from_secs(2), Duration::from_secs(1));
        assert_eq!(settings(always().backoff(upside_down)), ["backoff", "cap"]);
        assert_eq!(settings(always().backoff(Backoff::default().jitter(1.5))), ["backoff", "jitter"]);
        assert_eq!(settings(always().backoff(Backoff::default().jitter(f64::NAN))), ["backoff", "jitter"]);
        assert_eq!(settings(always().fatal_codes([1, 2]).forced_codes([2])), ["fatal_codes", "forced_codes"]);
        let both = always().fatal_signals([9]).forced_signals([9]);
        assert_eq!(settings(both), ["fatal_signals", "forced_signals"]);
        assert_eq!(settings(always().success_signals([65])), ["restart", "signals"]);
        let never = RestartPolicy::from(Restart::Never).backoff(Backoff::constant(Duration::from_secs(10)));
        assert_eq!(never.check(), Ok(()), "its intensity does not matter");
        assert_eq!(settings(never.forced_signals([11])), ["intensity", "backoff"], "and now it does");
    }

    proptest! {
        #[test]
        fn p13_never_more_than_allowed_within_any_period(
            seed: u64, restarts in 0..6_u32, period_ms in 1..5000_u64, pauses_ms in prop::collection::vec(0..2000_u64, 1..60),
        ) {
            let period = Duration::from_millis(period_ms);
            let policy = RestartPolicy::from(Restart::Always).intensity(Intensity::new(restarts, period));
            let mut state = Restarts::new(policy, seed);
            let (mut now, mut started) = (start(), Vec::new());
            for pause_ms in pauses_ms {
                now += Duration::from_millis(pause_ms);
                match state.decide(CRASH, now) {
                    Verdict::Again { after } => {
                        prop_assert!(after <= Duration::from_secs(30));
                        now += after;
                        started.push(now);
                    }
                    verdict @ (Verdict::Postponed { .. } | Verdict::Finished | Verdict::GivenUp(_)) => { prop_assert_eq!(verdict, Verdict::GivenUp(GaveUp::TooOften)); break }
                }
            }
            for (at, &first) in started.iter().enumerate() {
                let within = started.iter().skip(at).filter(|&&one| one - first < period).count();
                prop_assert!(within <= restarts as usize, "{within} restarts within {period:?}");
            }
        }
    }
}
