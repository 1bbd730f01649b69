//! The restarts of one worker so far, and from them the decision whether and when it is started next.

use super::restart::{AfterExit, Backoff, GiveUpReason, Restart, RestartIntensity, RestartPolicy};
use crate::exit::ExitStatus;
use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Why a process of the worker ended or did not start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RunEnd {
    /// It exited by itself after `ran`.
    Exited { status: ExitStatus, ran: Duration },
    /// The supervisor ended it after `ran`: it did not become ready, its watchdog timed out, or it exceeded its runtime.
    Unhealthy { ran: Duration },
    /// The supervisor ended it after `ran`, since its answer to the readiness call is fatal.
    Rejected { ran: Duration },
    /// It could not be started, for a reason that may pass.
    StartFailed,
    /// It could not be started because the host is short of a resource, which is no failure of the worker.
    HostShortage,
    /// It can never be started.
    Unstartable,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RestartDecision {
    Restart {
        after: Duration,
    },
    /// Start again after a shortage of the host. This is not a restart: no policy applies and no intensity counts it.
    Postpone {
        after: Duration,
    },
    Finish,
    GiveUp(GiveUpReason),
}

impl From<RestartDecision> for AfterExit {
    fn from(decision: RestartDecision) -> Self {
        match decision {
            RestartDecision::Restart { after } | RestartDecision::Postpone { after } => Self::Restart { after },
            RestartDecision::Finish => Self::Finished,
            RestartDecision::GiveUp(reason) => Self::GaveUp(reason),
        }
    }
}

/// The delay between starts during a shortage of the host. A short shortage costs little time, and frequent attempts would make a
/// long one worse.
const SHORTAGE_BACKOFF: Backoff = Backoff::exponential(Duration::from_millis(50), Duration::from_secs(5));

#[derive(Debug)]
pub(crate) struct RestartHistory {
    policy: RestartPolicy,
    intensity: RestartIntensity,
    /// The times of the restarts within the period of the intensity.
    recent: VecDeque<Instant>,
    /// Restarts since the backoff was reset, or since the group was restarted.
    in_a_row: u32,
    /// How many restarts of its group in a row this member has caused.
    group_restarts_in_a_row: u32,
    shortages_in_a_row: u32,
    random_state: u64,
}

impl RestartHistory {
    pub(crate) fn new(policy: RestartPolicy, seed: u64) -> Self {
        let intensity = policy.own_intensity().unwrap_or_default();
        Self {
            policy,
            intensity,
            recent: VecDeque::new(),
            in_a_row: 0,
            group_restarts_in_a_row: 0,
            shortages_in_a_row: 0,
            random_state: seed,
        }
    }

    /// The history of a member of a group: unless its own policy sets an intensity, only that of the group applies.
    pub(crate) fn of_member(policy: RestartPolicy, seed: u64) -> Self {
        let intensity = policy.own_intensity().unwrap_or(RestartIntensity::unlimited());
        Self { intensity, ..Self::new(policy, seed) }
    }

    /// Clears the history: a user started the worker, or its group was restarted because of another member.
    pub(crate) fn reset(&mut self) {
        self.recent.clear();
        self.in_a_row = 0;
        self.group_restarts_in_a_row = 0;
    }

    /// Clears the history after a restart of the group that this member caused. Returns the delay before its next start, which grows
    /// with the number of such restarts: otherwise the restarts that the parent group allows would be used up at once.
    pub(crate) fn on_group_restart_caused(&mut self) -> Duration {
        let restarts = self.group_restarts_in_a_row;
        self.reset();
        self.group_restarts_in_a_row = restarts.saturating_add(1);
        self.delay(restarts)
    }

    pub(crate) fn decide(&mut self, end: RunEnd, now: Instant) -> RestartDecision {
        if let RunEnd::Exited { ran, .. } | RunEnd::Unhealthy { ran } | RunEnd::Rejected { ran } = end
            && self.policy.delays().is_reset_by(ran)
        {
            self.in_a_row = 0;
            self.group_restarts_in_a_row = 0;
        }
        let shortages = match end {
            RunEnd::HostShortage => self.shortages_in_a_row.saturating_add(1),
            RunEnd::Exited { .. }
            | RunEnd::Unhealthy { .. }
            | RunEnd::Rejected { .. }
            | RunEnd::StartFailed
            | RunEnd::Unstartable => 0,
        };
        let shortages_before = std::mem::replace(&mut self.shortages_in_a_row, shortages);
        let is_wanted = match end {
            RunEnd::HostShortage => {
                let random = self.random();
                return RestartDecision::Postpone { after: SHORTAGE_BACKOFF.delay(shortages_before, random) };
            }
            RunEnd::Exited { status, .. } if self.policy.is_fatal(status) => {
                let by_code = matches!(status, ExitStatus::Code(_));
                return RestartDecision::GiveUp(if by_code {
                    GiveUpReason::FatalCode
                } else {
                    GiveUpReason::FatalSignal
                });
            }
            RunEnd::Exited { status, .. } if self.policy.forces_restart(status) => true,
            RunEnd::Exited { status, .. } => match self.policy.restart() {
                Restart::Never => false,
                Restart::OnFailure => !self.policy.is_success(status),
                Restart::Always => true,
            },
            RunEnd::Unhealthy { .. } | RunEnd::StartFailed => self.policy.restart() != Restart::Never,
            RunEnd::Unstartable => return RestartDecision::GiveUp(GiveUpReason::SpawnFailed),
            RunEnd::Rejected { .. } => return RestartDecision::GiveUp(GiveUpReason::FatalAnswer),
        };
        if !is_wanted {
            return RestartDecision::Finish;
        }
        if self.exceeds_intensity(now) {
            return RestartDecision::GiveUp(GiveUpReason::IntensityExceeded);
        }
        let after = self.next_delay();
        self.recent.push_back(now.checked_add(after).unwrap_or(now));
        RestartDecision::Restart { after }
    }

    /// The delay before the next start, whatever ended the last run.
    pub(crate) fn next_delay(&mut self) -> Duration {
        let index = self.in_a_row;
        self.in_a_row = index.saturating_add(1);
        self.delay(index)
    }

    fn delay(&mut self, index: u32) -> Duration {
        let random = self.random();
        self.policy.delays().delay(index, random)
    }

    fn exceeds_intensity(&mut self, now: Instant) -> bool {
        let RestartIntensity { restarts, period } = self.intensity;
        while self.recent.front().is_some_and(|&first| now.saturating_duration_since(first) > period) {
            self.recent.pop_front();
        }
        if self.intensity == RestartIntensity::unlimited() {
            self.recent.clear();
            return false;
        }
        self.recent.len() >= usize::try_from(restarts).unwrap_or(usize::MAX)
    }

    /// A number from 0 to 1, by splitmix64, <https://prng.di.unimi.it/splitmix64.c>.
    fn random(&mut self) -> f64 {
        self.random_state = self.random_state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.random_state;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        let high = u32::try_from((mixed ^ mixed >> 31) >> 32).unwrap_or_default();
        f64::from(high) / f64::from(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{deadline::start, policy::restart::ExitMatch};
    use proptest::prelude::*;

    const CRASH: RunEnd =
        RunEnd::Exited { status: ExitStatus::Signal { signal: 11, core_dumped: false }, ran: Duration::from_millis(1) };

    const UNHEALTHY: RunEnd = RunEnd::Unhealthy { ran: Duration::from_millis(1) };

    fn code(code: i32) -> RunEnd {
        RunEnd::Exited { status: ExitStatus::Code(code), ran: Duration::from_millis(1) }
    }

    fn decide(policy: impl Into<RestartPolicy>, cause: RunEnd) -> RestartDecision {
        RestartHistory::new(policy.into(), 7).decide(cause, start())
    }

    fn is_restart(decision: RestartDecision) -> bool {
        matches!(decision, RestartDecision::Restart { .. })
    }

    #[test]
    fn p13_policy_decides_about_restarts() {
        for (restart, after_success, after_crash) in
            [(Restart::Never, false, false), (Restart::OnFailure, false, true), (Restart::Always, true, true)]
        {
            assert_eq!(is_restart(decide(restart, code(0))), after_success, "{restart:?}");
            assert_eq!(is_restart(decide(restart, CRASH)), after_crash, "{restart:?}");
            assert_eq!(is_restart(decide(restart, UNHEALTHY)), after_crash, "{restart:?}");
        }
    }

    #[test]
    fn p13_host_shortage_counts_as_no_failure() {
        for when in [Restart::Never, Restart::OnFailure, Restart::Always] {
            let policy = RestartPolicy::from(when).intensity(RestartIntensity::new(1, Duration::from_secs(3600)));
            let mut restarts = RestartHistory::new(policy, 7);
            let mut delays = Vec::new();
            for _ in 0..100 {
                match restarts.decide(RunEnd::HostShortage, start()) {
                    RestartDecision::Postpone { after } => delays.push(after),
                    other
                    @ (RestartDecision::Restart { .. } | RestartDecision::Finish | RestartDecision::GiveUp(_)) => {
                        panic!("{other:?}")
                    }
                }
            }
            assert!(delays[0] <= Duration::from_millis(100), "{delays:?}");
            let is_slow = |after: &Duration| (2..=5).contains(&after.as_secs());
            assert!(delays.iter().skip(7).all(is_slow), "5 s less jitter: {delays:?}");
            if when != Restart::Never {
                assert!(is_restart(restarts.decide(CRASH, start())), "none of its own restarts is used up");
                let RestartDecision::Postpone { after } = restarts.decide(RunEnd::HostShortage, start()) else {
                    panic!("{when:?}")
                };
                assert!(after <= Duration::from_millis(100), "the backoff of a new shortage: {after:?}");
                assert_eq!(restarts.decide(CRASH, start()), RestartDecision::GiveUp(GiveUpReason::IntensityExceeded));
            }
        }
    }

    #[test]
    fn p13_group_restart_clears_history_and_backs_off() {
        let backoff = Backoff::exponential(Duration::from_secs(1), Duration::from_secs(4)).jitter(0.0);
        let policy =
            RestartPolicy::from(Restart::Always).backoff(backoff).intensity(RestartIntensity::new(2, Duration::MAX));
        let mut restarts = RestartHistory::of_member(policy, 7);
        for seconds in [1, 2, 4, 4] {
            for after in [1, 2].map(Duration::from_secs) {
                assert_eq!(restarts.decide(CRASH, start()), RestartDecision::Restart { after });
            }
            assert_eq!(restarts.decide(CRASH, start()), RestartDecision::GiveUp(GiveUpReason::IntensityExceeded));
            assert_eq!(restarts.on_group_restart_caused(), Duration::from_secs(seconds));
        }
        restarts.reset();
        assert_eq!(restarts.on_group_restart_caused(), Duration::from_secs(1), "as after the first failure");
        let stable = RunEnd::Exited { status: ExitStatus::Code(1), ran: Duration::from_secs(60) };
        assert_eq!(restarts.decide(stable, start()), RestartDecision::Restart { after: Duration::from_secs(1) });
        assert_eq!(restarts.on_group_restart_caused(), Duration::from_secs(1));
        let mut unset = RestartHistory::of_member(RestartPolicy::from(Restart::Always), 7);
        assert!((0..100).all(|_| is_restart(unset.decide(CRASH, start()))), "only the intensity of the group applies");
    }

    #[test]
    fn p13_exit_matches_override_the_policy() {
        let policy = RestartPolicy::from(Restart::OnFailure).success([ExitMatch::Code(77), ExitMatch::Signal(11)]);
        let policy = policy.fatal([ExitMatch::Code(125)]).force_restart([ExitMatch::Code(0)]);
        assert_eq!(decide(policy.clone(), code(77)), RestartDecision::Finish);
        assert_eq!(decide(policy.clone(), CRASH), RestartDecision::Finish);
        assert_eq!(decide(policy.clone(), code(125)), RestartDecision::GiveUp(GiveUpReason::FatalCode));
        assert!(is_restart(decide(policy.clone(), code(0))));
        let signals = RestartPolicy::from(Restart::Never).force_restart([ExitMatch::Signal(11)]);
        assert!(is_restart(decide(signals, CRASH)));
        let signals = RestartPolicy::from(Restart::Always).fatal([ExitMatch::Signal(11)]);
        assert_eq!(decide(signals, CRASH), RestartDecision::GiveUp(GiveUpReason::FatalSignal));
        assert_eq!(decide(Restart::Always, RunEnd::Unstartable), RestartDecision::GiveUp(GiveUpReason::SpawnFailed));
        for restart in [Restart::Never, Restart::OnFailure, Restart::Always] {
            let rejected = RunEnd::Rejected { ran: Duration::ZERO };
            assert_eq!(decide(restart, rejected), RestartDecision::GiveUp(GiveUpReason::FatalAnswer));
        }
        assert_eq!(decide(Restart::Never, RunEnd::StartFailed), RestartDecision::Finish);
        assert!(is_restart(decide(policy, RunEnd::StartFailed)));
    }

    #[test]
    fn p13_delays_double_up_to_the_maximum_and_reset() {
        let backoff = Backoff::exponential(Duration::from_secs(1), Duration::from_secs(4)).jitter(0.0);
        let policy = RestartPolicy::from(Restart::Always).backoff(backoff).intensity(RestartIntensity::unlimited());
        let mut restarts = RestartHistory::new(policy, 1);
        let now = start();
        let mut pause = |cause| match restarts.decide(cause, now) {
            RestartDecision::Restart { after } => after.as_secs(),
            other @ (RestartDecision::Postpone { .. } | RestartDecision::Finish | RestartDecision::GiveUp(_)) => {
                panic!("{other:?}")
            }
        };
        assert_eq!([pause(CRASH), pause(CRASH), pause(CRASH), pause(CRASH)], [1, 2, 4, 4]);
        let stable = RunEnd::Exited { status: ExitStatus::Code(1), ran: Duration::from_secs(60) };
        assert_eq!([pause(stable), pause(CRASH)], [1, 2]);
        let hung_after_a_day = RunEnd::Unhealthy { ran: Duration::from_secs(86_400) };
        assert_eq!([pause(hung_after_a_day), pause(UNHEALTHY)], [1, 2]);
    }

    #[test]
    fn p13_too_many_restarts_within_the_period_give_up() {
        let policy = RestartPolicy::from(Restart::Always).backoff(Backoff::constant(Duration::ZERO));
        let policy = policy.intensity(RestartIntensity::new(2, Duration::from_secs(10)));
        let mut restarts = RestartHistory::new(policy, 1);
        let t0 = start();
        assert!(is_restart(restarts.decide(CRASH, t0)));
        assert!(is_restart(restarts.decide(CRASH, t0 + Duration::from_secs(6))));
        // The first restart is older than the period.
        assert!(is_restart(restarts.decide(CRASH, t0 + Duration::from_secs(11))));
        let decision = restarts.decide(CRASH, t0 + Duration::from_secs(12));
        assert_eq!(decision, RestartDecision::GiveUp(GiveUpReason::IntensityExceeded));
    }

    proptest! {
        #[test]
        fn p13_restarts_within_any_period_never_exceed_intensity(
            seed: u64, restarts in 0..6_u32, period_ms in 1..5000_u64, delays_ms in prop::collection::vec(0..2000_u64, 1..60),
        ) {
            let period = Duration::from_millis(period_ms);
            let policy = RestartPolicy::from(Restart::Always).intensity(RestartIntensity::new(restarts, period));
            let mut state = RestartHistory::new(policy, seed);
            let (mut now, mut started) = (start(), Vec::new());
            for pause_ms in delays_ms {
                now += Duration::from_millis(pause_ms);
                match state.decide(CRASH, now) {
                    RestartDecision::Restart { after } => {
                        prop_assert!(after <= Duration::from_secs(30));
                        now += after;
                        started.push(now);
                    }
                    decision @ (RestartDecision::Postpone { .. } | RestartDecision::Finish | RestartDecision::GiveUp(_)) => { prop_assert_eq!(decision, RestartDecision::GiveUp(GiveUpReason::IntensityExceeded)); break }
                }
            }
            for (at, &first) in started.iter().enumerate() {
                let within = started.iter().skip(at).filter(|&&one| one - first < period).count();
                prop_assert!(within <= restarts as usize, "{within} restarts within {period:?}");
            }
        }
    }
}
