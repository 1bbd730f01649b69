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

/// The restart and shutdown policy of a [`WorkerGroup`](crate::WorkerGroup).
#[derive(Debug, Clone, Copy)]
#[must_use]
pub struct GroupPolicy {
    strategy: Strategy,
    auto_shutdown: AutoShutdown,
    /// `None` for no limit.
    pub(crate) intensity: Option<RestartIntensity>,
    stop_timeout: Option<Duration>,
    /// `None` for the default: `Always` in a parent group, otherwise `Never`.
    pub(crate) restart: Option<Restart>,
    significant: bool,
}

impl Default for GroupPolicy {
    /// One for one; gives up after 5 restarts within 30 s, and is then restarted if it is in a parent group.
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
    /// Sets how many restarts within which time the group permits, with every strategy: of its workers and of the groups in it together.
    /// With one more it gives up: all of it is stopped, and its parent group takes that for a failure. It also gives up when a member gives
    /// up whose [`Restart`] is not `Never`. By default 5 restarts within 30 s.
    ///
    /// A worker in a group has no intensity of its own unless its spec sets one, which then applies too. A worker is rejected if its
    /// [backoff](crate::Backoff) alone spreads so many restarts over more than `period`: its group would never give up.
    pub fn intensity(mut self, restarts: u32, period: Duration) -> Self {
        self.intensity = Some(RestartIntensity::new(restarts, period));
        self
    }

    /// Removes the limit: restarts are bounded only by the backoff of the workers, and by intensities of their own. For groups of many
    /// independent workers. OTP has no such setting, since its restarts have no backoff.
    pub fn unlimited_restarts(mut self) -> Self {
        self.intensity = None;
        self
    }

    /// Sets whether the group ends by itself when its [significant](crate::WorkerSpec::significant) members have ended: by success, by
    /// failure, by giving up, or because a dependency has failed. As in OTP, a member that is stopped by a call or with its siblings ends
    /// nothing, but it counts as ended when another significant member ends.
    pub fn auto_shutdown(mut self, when: AutoShutdown) -> Self {
        self.auto_shutdown = when;
        self
    }

    /// Sets how long a stop of the group may take, from the call or from when it gives up; its remaining workers are then killed. By
    /// default as long as the stop policies of members that depend on each other take together. A member whose stop policy alone takes
    /// longer is rejected.
    #[doc(alias = "TimeoutStopSec")]
    pub fn stop_timeout(mut self, timeout: Duration) -> Self {
        self.stop_timeout = Some(timeout);
        self
    }

    /// Sets when the parent group restarts this group after it has given up, which is a failure, or has shut down by itself, which is a
    /// success. By default [`Always`](Restart::Always) in a parent group, as in OTP. With [`Never`](Restart::Never) its end does not affect
    /// the parent group, and it does not start again when its siblings are restarted. A group without a parent is never restarted.
    ///
    /// The group restarts at once, but the worker whose end made it give up waits for its backoff, which grows with the number of
    /// consecutive restarts of the group. Earlier restarts of members do not count any more.
    ///
    /// In OTP a transient supervisor that gives up is not restarted, since its exit reason is `shutdown`.
    pub fn restart(mut self, when: Restart) -> Self {
        self.restart = Some(when);
        self
    }

    /// Its end counts for the automatic shutdown of the parent group. Rejected for a group that is always restarted, which never ends for
    /// good: set [`restart`](Self::restart) too.
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
    /// The member does not fit the group: it is significant but never ends, or the group has no automatic shutdown; or it depends on a
    /// worker that depends on it, that never ends, or that is in no group.
    #[error("it cannot be in this group: {reason}")]
    Rejected {
        /// The violated rule, with the ids of workers and groups.
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
    /// The supervisor accepts no more workers.
    #[error("the supervisor takes no more workers")]
    SupervisorGone,
    /// The supervisor's event loop has not answered within 5 s, as in a process that is not scheduled. It may still execute the call.
    #[error("the supervisor's event loop has not answered within 5 s")]
    TimedOut,
}

impl From<error::DeclarationError> for GroupError {
    fn from(error: error::DeclarationError) -> Self {
        Self::Rejected { reason: error.to_string().into() }
    }
}
