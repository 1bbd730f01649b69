//! Restart policy: which exits are restarted, after which delay, and when the worker gives up.

use super::conflict::Conflict;
use crate::exit::ExitStatus;
use std::{fmt, time::Duration};

/// Which exits of a worker are followed by a restart. A stop is never followed by one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Restart {
    /// The worker is not restarted.
    #[default]
    #[doc(alias = "temporary")]
    Never,
    /// Restarted after a failure: an exit code other than 0, or a signal.
    #[doc(alias = "transient")]
    OnFailure,
    /// Restarted after every exit.
    #[doc(alias = "permanent")]
    Always,
}

/// The delay before a restart. It grows with each restart, up to a maximum, and is reset once a worker has run long enough.
#[derive(Debug, Clone, Copy, PartialEq)]
#[must_use]
pub struct Backoff {
    min: Duration,
    max: Duration,
    jitter: f64,
    reset_after: Duration,
}

impl Default for Backoff {
    /// 100 ms, 200 ms, … 30 s, each shortened at random by up to a half; reset after 60 s of running.
    fn default() -> Self {
        Self::exponential(Duration::from_millis(100), Duration::from_secs(30))
    }
}

impl Backoff {
    /// A delay of `min` before the first restart, which doubles with each further restart up to `max`.
    pub const fn exponential(min: Duration, max: Duration) -> Self {
        Self { min, max, jitter: 0.5, reset_after: Duration::from_secs(60) }
    }

    /// The same delay before each restart, without jitter.
    pub const fn constant(delay: Duration) -> Self {
        Self { jitter: 0.0, ..Self::exponential(delay, delay) }
    }

    /// The largest fraction, from 0 to 1, by which a delay is shortened at random, so that workers that failed together do not
    /// restart together; by default 0.5.
    pub const fn jitter(mut self, fraction: f64) -> Self {
        self.jitter = fraction;
        self
    }

    /// How long a worker must run for the backoff to start again from `min`; by default 60 s.
    pub const fn reset_after(mut self, time: Duration) -> Self {
        self.reset_after = time;
        self
    }

    pub(super) fn is_reset_by(&self, ran: Duration) -> bool {
        ran >= self.reset_after
    }

    /// The delay before the restart of this index, counted from 0, without jitter.
    fn base_delay(&self, index: u32) -> Duration {
        let factor = 2_u32.checked_pow(index).unwrap_or(u32::MAX);
        self.min.saturating_mul(factor).min(self.max)
    }

    /// The shortest time that `restarts` restarts in a row take.
    fn shortest_total(&self, restarts: u32) -> Duration {
        // From this index on every delay is the maximum, or all of them are zero.
        const GROWING: u32 = 64;
        let growing = (0..restarts.min(GROWING)).map(|index| self.delay(index, 1.0));
        let rest = self.delay(GROWING, 1.0).saturating_mul(restarts.saturating_sub(GROWING));
        growing.fold(rest, Duration::saturating_add)
    }

    /// [`base_delay`](Self::base_delay) with jitter applied; `random` is from 0 to 1.
    pub(super) fn delay(&self, index: u32, random: f64) -> Duration {
        let base = self.base_delay(index);
        Duration::try_from_secs_f64(base.as_secs_f64() * (1.0 - self.jitter * random)).unwrap_or(base)
    }
}

/// The number of restarts allowed within a period. With one more, the worker gives up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[doc(alias = "StartLimitBurst")]
#[doc(alias = "StartLimitIntervalSec")]
pub struct RestartIntensity {
    pub(crate) restarts: u32,
    pub(crate) period: Duration,
}

impl Default for RestartIntensity {
    /// 5 restarts within 30 s.
    fn default() -> Self {
        Self::new(5, Duration::from_secs(30))
    }
}

impl RestartIntensity {
    /// Allows at most `restarts` restarts within any interval of length `period`.
    #[must_use]
    pub const fn new(restarts: u32, period: Duration) -> Self {
        Self { restarts, period }
    }

    /// Allows any number of restarts.
    #[must_use]
    pub const fn unlimited() -> Self {
        Self::new(u32::MAX, Duration::ZERO)
    }
}

/// An exit code or a signal, for the exits that a [`RestartPolicy`] treats specially.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ExitMatch {
    /// The process exited with this code, from 0 to 255.
    Code(i32),
    /// The process was terminated by this signal, from 1 to 64.
    Signal(i32),
}

impl ExitMatch {
    fn matches(self, exit: ExitStatus) -> bool {
        match exit {
            ExitStatus::Code(code) => self == Self::Code(code),
            ExitStatus::Signal { signal, .. } => self == Self::Signal(signal),
            ExitStatus::Unkillable
            | ExitStatus::KillRefused
            | ExitStatus::NeverStarted
            | ExitStatus::Unknown
            | ExitStatus::Detached => false,
        }
    }

    /// Why no process exits like this.
    fn invalid(self) -> Option<String> {
        match self {
            Self::Code(code) if !(0..=255).contains(&code) => Some(format!("exit code {code} is not from 0 to 255")),
            Self::Signal(signal) if !(1..=64).contains(&signal) => Some(format!("there is no signal {signal}")),
            Self::Code(_) | Self::Signal(_) => None,
        }
    }
}

impl fmt::Display for ExitMatch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(formatter, "exit code {code}"),
            Self::Signal(signal) => write!(formatter, "signal {signal}"),
        }
    }
}

/// All settings of restarts, for [`WorkerSpec::restart`](crate::WorkerSpec::restart), which also accepts a bare [`Restart`].
///
/// ```
/// use pipewright::{Backoff, ExitMatch, Restart, RestartIntensity, RestartPolicy, WorkerSpec};
/// use std::time::Duration;
///
/// WorkerSpec::new("plugin").restart(Restart::Always);
/// let policy = RestartPolicy::from(Restart::OnFailure)
///     .success([ExitMatch::Code(77)]) // "skipped"
///     .fatal([ExitMatch::Code(125)]) // a restart would not help
///     .backoff(Backoff::exponential(Duration::from_millis(50), Duration::from_secs(5)))
///     .intensity(RestartIntensity::new(10, Duration::from_secs(60)));
/// WorkerSpec::new("plugin").restart(policy);
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
#[must_use]
pub struct RestartPolicy {
    restart: Restart,
    success: Vec<ExitMatch>,
    fatal: Vec<ExitMatch>,
    force_restart: Vec<ExitMatch>,
    backoff: Backoff,
    /// `None` where it is not set: then the default applies, or for a member of a group only the intensity of the group.
    intensity: Option<RestartIntensity>,
}

impl From<Restart> for RestartPolicy {
    fn from(restart: Restart) -> Self {
        Self { restart, ..Self::default() }
    }
}

impl RestartPolicy {
    /// Adds exits that are no failure, besides exit code 0.
    #[doc(alias = "SuccessExitStatus")]
    pub fn success(mut self, exits: impl IntoIterator<Item = ExitMatch>) -> Self {
        self.success.extend(exits);
        self
    }

    /// Adds exits after which the worker gives up at once, whatever the [`Restart`] is.
    #[doc(alias = "RestartPreventExitStatus")]
    pub fn fatal(mut self, exits: impl IntoIterator<Item = ExitMatch>) -> Self {
        self.fatal.extend(exits);
        self
    }

    /// Adds exits after which the worker is restarted, whatever the [`Restart`] is.
    #[doc(alias = "RestartForceExitStatus")]
    pub fn force_restart(mut self, exits: impl IntoIterator<Item = ExitMatch>) -> Self {
        self.force_restart.extend(exits);
        self
    }

    /// Sets the delay before each restart.
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// Sets how many restarts are allowed before the worker gives up; by default 5 within 30 s.
    ///
    /// In a [group](crate::WorkerGroup) the restarts of all members count together against the intensity of
    /// [the group](crate::GroupPolicy::intensity), and a member has no default of its own. An intensity that is set here applies
    /// in addition: a member that exceeds it gives up, and its group with it.
    pub fn intensity(mut self, intensity: RestartIntensity) -> Self {
        self.intensity = Some(intensity);
        self
    }

    /// Allows exactly `retries` restarts after failures, however far apart. With [`Restart::Always`] also after successes.
    pub(crate) fn with_retries(mut self, retries: u32) -> Self {
        self.restart = match self.restart {
            _ if retries == 0 => Restart::Never,
            Restart::Never => Restart::OnFailure,
            restart @ (Restart::OnFailure | Restart::Always) => restart,
        };
        self.intensity(RestartIntensity::new(retries, Duration::MAX))
    }

    pub(crate) fn restart(&self) -> Restart {
        self.restart
    }

    pub(crate) fn is_success(&self, exit: ExitStatus) -> bool {
        exit == ExitStatus::Code(0) || is_among(&self.success, exit)
    }

    pub(super) fn is_fatal(&self, exit: ExitStatus) -> bool {
        is_among(&self.fatal, exit)
    }

    pub(super) fn forces_restart(&self, exit: ExitStatus) -> bool {
        is_among(&self.force_restart, exit)
    }

    pub(super) fn delays(&self) -> &Backoff {
        &self.backoff
    }

    pub(super) fn own_intensity(&self) -> Option<RestartIntensity> {
        self.intensity
    }

    /// Whether any exit is followed by a restart.
    pub(crate) fn can_restart(&self) -> bool {
        self.restart != Restart::Never || !self.force_restart.is_empty()
    }

    /// Checks for settings that contradict each other.
    pub(crate) fn check(&self) -> Result<(), Conflict> {
        self.check_values()?;
        self.check_intensity(self.intensity.unwrap_or_default())
    }

    /// [`check`](Self::check) for a member of a group, which may have an intensity.
    pub(crate) fn check_in_group(&self, group: Option<RestartIntensity>) -> Result<(), Conflict> {
        self.check_values()?;
        self.intensity.into_iter().chain(group).try_for_each(|intensity| self.check_intensity(intensity))
    }

    fn check_values(&self) -> Result<(), Conflict> {
        let Self { backoff, .. } = self;
        let lists = [("success", &self.success), ("fatal", &self.fatal), ("force_restart", &self.force_restart)];
        for (setting, exits) in lists {
            if let Some(reason) = exits.iter().find_map(|exit| exit.invalid()) {
                return Err(Conflict::new(["restart", setting], reason));
            }
        }
        let intensity = self.intensity.unwrap_or_default();
        if intensity.period.is_zero() && intensity != RestartIntensity::unlimited() {
            let reason = "the period is zero, so the limit is never reached: set a period, or use `RestartIntensity::unlimited()`";
            return Err(Conflict::new(["intensity", "period"], reason));
        }
        if !(0.0..=1.0).contains(&backoff.jitter) {
            return Err(Conflict::new(["backoff", "jitter"], format!("{} is not from 0 to 1", backoff.jitter)));
        }
        if backoff.min > backoff.max {
            let reason =
                format!("the minimum delay {:?} is longer than the maximum delay {:?}", backoff.min, backoff.max);
            return Err(Conflict::new(["backoff", "max"], reason));
        }
        if let Some(exit) = self.fatal.iter().find(|exit| self.force_restart.contains(exit)) {
            return Err(Conflict::new(["fatal", "force_restart"], format!("{exit} is in both")));
        }
        Ok(())
    }

    /// Refuses an intensity that can never be exceeded because the delays alone take longer than its period.
    fn check_intensity(&self, intensity: RestartIntensity) -> Result<(), Conflict> {
        if !self.can_restart() || intensity == RestartIntensity::unlimited() {
            return Ok(());
        }
        let shortest = self.backoff.shortest_total(intensity.restarts);
        if shortest <= intensity.period {
            return Ok(());
        }
        let RestartIntensity { restarts, period } = intensity;
        let reason = format!(
            "{restarts} restarts take at least {shortest:?}, so the limit within {period:?} is never reached: make the period \
             longer, or use `RestartIntensity::unlimited()`"
        );
        Err(Conflict::new(["intensity", "backoff"], reason))
    }
}

fn is_among(exits: &[ExitMatch], exit: ExitStatus) -> bool {
    exits.iter().any(|one| one.matches(exit))
}

/// What happens to a worker after an exit, or after a start that failed.
///
/// `Display` writes a phrase: `restarts in 200ms`, `finished`, `gave up: restarted too often`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum AfterExit {
    /// It is started again, unless it is stopped before.
    Restart {
        /// The backoff until then. An estimate for a member of a group: the member also waits for siblings and dependencies, and the
        /// backoff begins anew if the whole group is restarted.
        after: Duration,
    },
    /// It does not run again: its [`Restart`] does not ask for it, or it was stopped, by itself or with its group or its supervisor.
    Finished,
    /// It does not run again, although its [`Restart`] asks for it.
    GaveUp(GiveUpReason),
}

impl AfterExit {
    /// Whether the worker does not run again by itself.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Restart { .. } => false,
            Self::Finished | Self::GaveUp(_) => true,
        }
    }
}

impl fmt::Display for AfterExit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Restart { after } => write!(formatter, "restarts in {after:.1?}"),
            Self::Finished => formatter.write_str("finished"),
            Self::GaveUp(reason) => write!(formatter, "gave up: {reason}"),
        }
    }
}

/// Why a worker is not started or restarted although its policy asks for that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum GiveUpReason {
    /// It was restarted more often than its [`RestartIntensity`] allows.
    IntensityExceeded,
    /// It exited with a code that is [`fatal`](RestartPolicy::fatal).
    FatalCode,
    /// It was terminated by a signal that is [`fatal`](RestartPolicy::fatal).
    FatalSignal,
    /// It can never be started: its program does not exist or is not executable.
    SpawnFailed,
    /// Its answer to the [readiness call](crate::Readiness::call) is [fatal](crate::ReadinessAnswer::Fatal).
    FatalAnswer,
    /// The [deadline](crate::pool::JobSpec::deadline) of its job has passed.
    DeadlineExceeded,
    /// Another job of its queue has failed ([`Jobs::on_failure`](crate::pool::Jobs::on_failure)).
    FailFast,
}

impl fmt::Display for GiveUpReason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::IntensityExceeded => "restarted too often",
            Self::FatalCode => "its exit code is fatal",
            Self::FatalSignal => "it was terminated by a fatal signal",
            Self::SpawnFailed => "its program cannot be started",
            Self::FatalAnswer => "its answer to the readiness call is fatal",
            Self::DeadlineExceeded => "its deadline has passed",
            Self::FailFast => "another job has failed",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_conflicting_settings_are_refused() {
        assert_eq!(RestartPolicy::from(Restart::Always).check(), Ok(()), "the defaults fit each other");
        let always = || RestartPolicy::from(Restart::Always);
        let slow = always().backoff(Backoff::constant(Duration::from_secs(10)));
        let settings = |policy: RestartPolicy| policy.check().unwrap_err().settings;
        assert_eq!(
            settings(slow.intensity(RestartIntensity::new(5, Duration::from_secs(30)))),
            ["intensity", "backoff"]
        );
        let many = always().backoff(Backoff::constant(Duration::from_secs(1)));
        let just_too_short = RestartIntensity::new(1_000_000, Duration::from_secs(999_999));
        assert_eq!(settings(many.clone().intensity(just_too_short)), ["intensity", "backoff"]);
        assert_eq!(many.intensity(RestartIntensity::new(1_000_000, Duration::from_secs(1_000_000))).check(), Ok(()));
        let upside_down = Backoff::exponential(Duration::from_secs(2), Duration::from_secs(1));
        assert_eq!(settings(always().backoff(upside_down)), ["backoff", "max"]);
        assert_eq!(settings(always().backoff(Backoff::default().jitter(1.5))), ["backoff", "jitter"]);
        assert_eq!(settings(always().backoff(Backoff::default().jitter(f64::NAN))), ["backoff", "jitter"]);
        assert_eq!(
            settings(always().fatal([ExitMatch::Code(1), ExitMatch::Code(2)]).force_restart([ExitMatch::Code(2)])),
            ["fatal", "force_restart"]
        );
        let both = always().fatal([ExitMatch::Signal(9)]).force_restart([ExitMatch::Signal(9)]);
        assert_eq!(settings(both), ["fatal", "force_restart"]);
        assert_eq!(settings(always().success([ExitMatch::Signal(65)])), ["restart", "success"]);
        let never = RestartPolicy::from(Restart::Never).backoff(Backoff::constant(Duration::from_secs(10)));
        assert_eq!(never.check(), Ok(()), "an intensity without restarts has no effect");
        assert_eq!(settings(never.force_restart([ExitMatch::Signal(11)])), ["intensity", "backoff"]);
    }
}
