//! What a group of workers does when members end.

use crate::{
    ids::{GroupId, WorkerId},
    launch::error::{SpawnError, SpecError},
    policy::{
        group::{
            error,
            model::{AutoShutdown, GroupSettings, Role, Strategy},
        },
        restart::{Restart, RestartIntensity},
    },
};
use std::time::Duration;

/// How a [`WorkerGroup`](crate::WorkerGroup) is kept alive.
#[derive(Debug, Clone, Copy)]
#[must_use]
pub struct GroupPolicy {
    strategy: Strategy,
    auto_shutdown: AutoShutdown,
    /// `None` for no limit.
    pub(crate) intensity: Option<RestartIntensity>,
    stop_timeout: Option<Duration>,
    /// `None` for the default of its place.
    pub(crate) restart: Option<Restart>,
    significant: bool,
}

impl Default for GroupPolicy {
    /// One for one; gives up after 5 restarts within 30 s, and is restarted then if it is in another group.
    fn default() -> Self {
        Self {
            strategy: Strategy::default(),
            auto_shutdown: AutoShutdown::default(),
            intensity: Some(RestartIntensity::new(5, Duration::from_secs(30))),
            stop_timeout: None,
            restart: None,
            significant: false,
        }
    }
}

impl From<Strategy> for GroupPolicy {
    fn from(strategy: Strategy) -> Self {
        Self { strategy, ..Self::default() }
    }
}

impl GroupPolicy {
    /// How many restarts within which time the group bears, in every strategy: of its workers and of the groups in it, counted
    /// together. With one more it gives up: all of it is stopped, and the group around it takes that for its failure. So it does at
    /// once when a member gives up whose [`Restart`] is not `Never`. By default 5 restarts within 30 s.
    ///
    /// A worker has no intensity of its own in a group unless its spec sets one, which then counts too. A worker whose
    /// [backoff](crate::Backoff) alone makes so many restarts longer than `period` is refused: its group would never give up.
    pub fn intensity(mut self, restarts: u32, period: Duration) -> Self {
        self.intensity = Some(RestartIntensity::new(restarts, period));
        self
    }

    /// As many restarts as it takes: only the backoff of the workers, and intensities of their own, bound them. OTP has no such
    /// setting, since its restarts have no backoff. For groups of many workers that have nothing to do with each other.
    pub fn unlimited_restarts(mut self) -> Self {
        self.intensity = None;
        self
    }

    /// Whether it ends by itself when its [significant](crate::WorkerSpec::significant) members have: by success, by failure, by giving
    /// up, or since what they wait for has failed. As in OTP, one that is stopped by its caller or with its siblings is not an end
    /// by itself and ends nothing, but it counts as gone when another significant one ends.
    pub fn auto_shutdown(mut self, when: AutoShutdown) -> Self {
        self.auto_shutdown = when;
        self
    }

    /// How long its end may take, from when it is stopped or gives up: whoever of it is left then is killed. By default as long as
    /// the stop ladders of those who wait for one another. A member whose ladder alone is longer is refused.
    #[doc(alias = "TimeoutStopSec")]
    pub fn stop_timeout(mut self, timeout: Duration) -> Self {
        self.stop_timeout = Some(timeout);
        self
    }

    /// When the group around it starts it again after it has given up, which is a failure, or has shut down by itself, which is
    /// a success. [`Always`](Restart::Always) by default within another group, as in OTP; with
    /// [`Never`](Restart::Never) neither its end nor its giving up concerns the group around it, and it does not come back when
    /// its siblings are restarted. The outermost group has none: nothing restarts it.
    ///
    /// It is restarted at once, but the worker whose end it gave up for waits for its backoff, which grows with the number of such
    /// lives in a row. Everything else begins anew: no restart of the life before counts.
    ///
    /// The difference to OTP: there a transient supervisor that gives up is not restarted, since it ends by the reason `shutdown`.
    pub fn restart(mut self, when: Restart) -> Self {
        self.restart = Some(when);
        self
    }

    /// Its end counts for the automatic shutdown of the group around it. Refused for one that is always restarted, which never
    /// ends for good: set its [`restart`](Self::restart) too.
    pub fn significant(mut self) -> Self {
        self.significant = true;
        self
    }

    pub(crate) fn settings(&self) -> GroupSettings {
        let Self { strategy, auto_shutdown, intensity, stop_timeout, .. } = *self;
        GroupSettings { strategy, auto_shutdown, intensity, stop_timeout }
    }

    pub(crate) fn role(&self, is_within_another: bool) -> Role {
        let by_place = if is_within_another { Restart::Always } else { Restart::Never };
        Role { restart: self.restart.unwrap_or(by_place), significant: self.significant }
    }
}

/// Why a group or a worker was not added.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GroupError {
    /// The worker's spec is invalid.
    #[error("invalid worker spec: {0}")]
    Spec(#[from] SpecError),
    /// It makes no sense in this group: it is significant but would never end, or nobody looks whether it does; it waits for
    /// somebody who waits for it, who never ends, or who is in no group.
    #[error("it cannot be in this group: {reason}")]
    Rejected {
        /// Which rule it breaks, naming workers and groups by their ids.
        reason: Box<str>,
    },
    /// The worker is in another group, or in none.
    #[error("worker {worker} is not a member of {group}, nor of a group within it")]
    NotAMember {
        /// The worker.
        worker: WorkerId,
        /// The group that was asked.
        group: GroupId,
    },
    /// The worker could not be started, and is not a member.
    #[error("the worker could not be started: {0}")]
    SpawnFailed(#[source] Box<SpawnError>),
    /// The supervisor takes no more workers.
    #[error("the supervisor takes no more workers")]
    SupervisorGone,
    /// The supervisor's event loop has not answered within 5 s, as in a process that is not run. Whether it does what was asked is not
    /// known.
    #[error("the supervisor's event loop has not answered within 5 s")]
    TimedOut,
}

impl From<error::DeclarationError> for GroupError {
    fn from(error: error::DeclarationError) -> Self {
        Self::Rejected { reason: error.to_string().into() }
    }
}
