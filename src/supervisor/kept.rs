//! One worker across its incarnations, as the loop sees it.

use super::{clock::now, driver::Place, guest::SharedSpec, worker::WorkerShared};
use crate::{
    exit::{Exit, ExitStatus},
    policy::restart::{Cause, Restarts, Verdict},
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// What its user wants of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    /// What the policy says.
    Policy,
    /// To begin anew.
    Again,
    /// To end.
    End,
}

/// Where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Lives(Place),
    /// It is started again then, unless that has changed.
    Waits(Instant),
    /// It is started as soon as its last process has ended, which SIGKILL has not ended in time.
    Held,
    /// The spawner has it.
    Starts,
    /// A member of a group that is not to run just now.
    Rests,
}

#[derive(Debug)]
pub(super) struct Kept {
    pub(super) shared: Arc<WorkerShared>,
    pub(super) spec: SharedSpec,
    pub(super) standing: Standing,
    pub(super) wish: Wish,
    /// How many times it was started again.
    pub(super) restarts: u32,
    policy: Restarts,
    /// How its last incarnation ended, and when.
    pub(super) last: Option<(Arc<Exit>, Instant)>,
    /// Its group says when it starts.
    pub(super) is_member: bool,
    /// It is told to have ended, until its group wants it again.
    pub(super) is_resting: bool,
    /// Its group's end has had its time while it was being started.
    pub(super) is_overdue: bool,
    /// How long to wait if its group has it come back.
    pub(super) backoff: Duration,
}

impl Kept {
    pub(super) fn new(shared: &Arc<WorkerShared>, spec: &SharedSpec, standing: Standing, seed: u64) -> Self {
        Self {
            shared: Arc::clone(shared),
            spec: Arc::clone(spec),
            standing,
            wish: Wish::Policy,
            restarts: 0,
            policy: Restarts::new(spec.restart.clone(), seed),
            last: None,
            is_member: false,
            is_resting: false,
            is_overdue: false,
            backoff: Duration::ZERO,
        }
    }

    /// How its last incarnation has ended, and when: its group's end may come much later.
    pub(super) fn last_exit(&self) -> (Arc<Exit>, Instant) {
        self.last.clone().unwrap_or_else(|| (Arc::new(Exit::of(ExitStatus::NeverStarted)), now()))
    }

    pub(super) fn place(&self) -> Option<Place> {
        match self.standing {
            Standing::Lives(place) => Some(place),
            Standing::Waits(_) | Standing::Held | Standing::Starts | Standing::Rests => None,
        }
    }

    /// What becomes of it now that an incarnation has ended, or could not begin.
    pub(super) fn verdict(&mut self, cause: Cause, now: Instant) -> Verdict {
        match self.wish {
            Wish::Policy => self.policy.decide(cause, now),
            Wish::End => Verdict::Finished,
            Wish::Again => {
                self.wish = Wish::Policy;
                Verdict::Again { after: Duration::ZERO }
            }
        }
    }
}
