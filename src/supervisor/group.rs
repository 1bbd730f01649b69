//! Workers that belong together: who starts after whom, and who is restarted with whom.

use super::{
    clock::now,
    driver::{Command, GroupCommand, Mailbox, Unanswered},
    roster::Roster,
    spec::WorkerSpec,
    stopping::{Restarting, Stopping},
    worker::{Worker, WorkerId},
};
use crate::{
    launch::SpecError,
    policy::{
        group::{AutoShutdown, GroupIntensity, GroupSettings, Strategy},
        refusal,
        restart::Restart,
    },
};
use crossbeam_channel::Sender;
use std::{fmt, io, sync::Arc, time::Duration};

/// The name of a group in events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub(super) u64);

impl fmt::Display for GroupId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "group #{}", self.0)
    }
}

/// How a [`WorkerGroup`] is kept alive.
#[derive(Debug, Clone, Copy)]
#[must_use]
pub struct GroupPolicy {
    strategy: Strategy,
    auto_shutdown: AutoShutdown,
    restarts: u32,
    period: Duration,
    stop_within: Option<Duration>,
    pub(super) restart: Restart,
    pub(super) significant: bool,
}

impl Default for GroupPolicy {
    /// One for one; gives up after 5 restarts within 30 s; ended for good then.
    fn default() -> Self {
        Self {
            strategy: Strategy::default(),
            auto_shutdown: AutoShutdown::default(),
            restarts: 5,
            period: Duration::from_secs(30),
            stop_within: None,
            restart: Restart::Never,
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
    /// How many restarts within which time the group bears: those that take others along, and those of whole groups in it. With
    /// one more it gives up: all of it is stopped, and the group around it takes that for its failure. A worker that comes back
    /// alone is bounded by its own [`Intensity`](crate::Intensity).
    pub fn intensity(mut self, restarts: u32, period: Duration) -> Self {
        (self.restarts, self.period) = (restarts, period);
        self
    }

    /// Whether it ends by itself when its [significant](WorkerSpec::significant) members have.
    pub fn auto_shutdown(mut self, when: AutoShutdown) -> Self {
        self.auto_shutdown = when;
        self
    }

    /// How long its end may take, from when it is stopped or gives up: whoever of it is left then is killed. By default as long as
    /// the stop ladders of those who wait for one another. A member whose ladder alone is longer is refused.
    pub fn stop_within(mut self, time: Duration) -> Self {
        self.stop_within = Some(time);
        self
    }

    /// When the group around it starts it again after it has given up, or ended by itself; by default never. There must be a group
    /// around it, whose intensity bounds that.
    pub fn restart(mut self, when: Restart) -> Self {
        self.restart = when;
        self
    }

    /// Its end counts for the automatic shutdown of the group around it.
    pub fn significant(mut self) -> Self {
        self.significant = true;
        self
    }

    pub(super) fn settings(&self) -> GroupSettings {
        let intensity = GroupIntensity { restarts: self.restarts, period: self.period };
        let Self { strategy, auto_shutdown, stop_within, .. } = *self;
        GroupSettings { strategy, auto_shutdown, intensity, stop_within }
    }
}

/// Why a group or a worker was not added.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GroupError {
    /// The worker's spec is wrong.
    #[error("the worker's spec is wrong: {0}")]
    Spec(#[from] SpecError),
    /// It makes no sense in this group: it is significant but would never end, or nobody looks whether it does; it waits for
    /// somebody who waits for it, who never ends, or who is in no group.
    #[error("it cannot be in this group: {reason}")]
    Refused {
        /// Which rule it breaks, naming workers and groups by their ids.
        reason: Box<str>,
    },
    /// The supervisor takes no more workers.
    #[error("the supervisor takes no more workers")]
    SupervisorGone,
    /// The supervisor's event loop has not answered within 5 s, as in a process that is not run. Whether it does what was asked is not
    /// known.
    #[error("the supervisor's event loop has not answered within 5 s")]
    Unanswered,
}

impl From<Unanswered> for GroupError {
    fn from(why: Unanswered) -> Self {
        match why {
            Unanswered::LoopGone => Self::SupervisorGone,
            Unanswered::Late => Self::Unanswered,
        }
    }
}

impl From<refusal::GroupError> for GroupError {
    fn from(error: refusal::GroupError) -> Self {
        Self::Refused { reason: error.to_string().into() }
    }
}

impl From<GroupError> for io::Error {
    fn from(error: GroupError) -> Self {
        let kind = match &error {
            GroupError::Spec(_) | GroupError::Refused { .. } => io::ErrorKind::InvalidInput,
            GroupError::SupervisorGone => io::ErrorKind::BrokenPipe,
            GroupError::Unanswered => io::ErrorKind::TimedOut,
        };
        Self::new(kind, error)
    }
}

/// Workers that belong together, as their parent holds them: from [`Supervisor::group`](super::Supervisor::group). Cheap to clone;
/// dropping it changes nothing.
///
/// Members start in the order in which they were added, each as soon as what it [waits for](WorkerSpec::after) is there, and stop
/// in the reverse order. Who is restarted with whom is the group's [`Strategy`].
///
/// ```no_run
/// use pipewright::{Ready, Restart, Strategy, Supervisor, When, WorkerSpec};
///
/// let supervisor = Supervisor::new()?;
/// let group = supervisor.group(Strategy::RestForOne)?;
/// let database = WorkerSpec::new("database").ready(Ready::connect_tcp("127.0.0.1:5432")).restart(Restart::Always);
/// let database = group.add(database)?;
/// group.add(WorkerSpec::new("web").restart(Restart::Always).after(&database, When::Ready))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
#[doc(alias = "supervisor")]
pub struct WorkerGroup {
    id: GroupId,
    mailbox: Mailbox,
    roster: Arc<Roster>,
}

shown_as!(WorkerGroup, |group| { id: group.id.0 });

impl WorkerGroup {
    pub(super) fn add_to(
        parent: Option<GroupId>,
        policy: GroupPolicy,
        mailbox: &Mailbox,
        roster: &Arc<Roster>,
    ) -> Result<Self, GroupError> {
        if policy.period.is_zero() {
            let reason = "within no time there are never too many restarts: give its intensity a period".into();
            return Err(GroupError::Refused { reason });
        }
        if parent.is_none() && policy.restart != Restart::Never {
            let reason =
                "there is no group around it that could restart it: put it into one, whose intensity bounds that";
            return Err(GroupError::Refused { reason: reason.into() });
        }
        let group = Self { id: GroupId(roster.next_id()), mailbox: mailbox.clone(), roster: Arc::clone(roster) };
        group.ask(|answer| GroupCommand::Add { group: group.id, parent, policy, answer })?;
        Ok(group)
    }

    /// Its name in events.
    pub fn id(&self) -> GroupId {
        self.id
    }

    /// A group within this one.
    ///
    /// # Errors
    ///
    /// [`GroupError::Refused`] where it is significant and that makes no sense, or its intensity has no period.
    pub fn group(&self, policy: impl Into<GroupPolicy>) -> Result<Self, GroupError> {
        Self::add_to(Some(self.id), policy.into(), &self.mailbox, &self.roster)
    }

    /// Adds a worker. It is started when what it waits for is there and its group runs; that it could not be started is an
    /// [event](crate::EventKind::NotStarted).
    ///
    /// # Errors
    ///
    /// A mistake in the spec, or [`GroupError::Refused`].
    pub fn add(&self, spec: WorkerSpec) -> Result<Worker, GroupError> {
        spec.check_member()?;
        let shared = self.roster.enter(WorkerId(self.roster.next_id()), &spec, self.mailbox.clone(), None);
        let (ours, spec) = (Arc::clone(&shared), Arc::new(crate::sys::closing::Released::new(spec)));
        self.ask(|answer| GroupCommand::AddWorker { group: self.id, shared, spec, answer })?;
        Ok(Worker { shared: ours })
    }

    /// Forgets a worker of this group or of one within it: it is stopped before, and ends for good.
    ///
    /// # Errors
    ///
    /// [`GroupError::Refused`] where another member waits for it, or it is in no group.
    pub fn remove(&self, worker: &Worker) -> Result<(), GroupError> {
        self.ask(|answer| GroupCommand::Remove { worker: worker.id(), answer })
    }

    /// Forgets all of it, also the groups in it: everybody is stopped before, and ends for good. Gives what can be waited for. What
    /// is added to it from then on is refused.
    ///
    /// # Errors
    ///
    /// [`GroupError::Refused`] where a member of another group waits for one of its own.
    pub fn dissolve(&self) -> Result<Stopping, GroupError> {
        let began = now();
        let ended = self.put(|answer| GroupCommand::Dissolve(self.id, answer))?;
        ended.map(|workers| Stopping::new(workers, began))
    }

    /// Starts it again, with all in it, after [`stop`](Self::stop) or after it has ended. Gives what can be waited for: those who
    /// come back with that.
    pub fn start(&self) -> Restarting {
        self.put(|answer| GroupCommand::Start(self.id, answer)).unwrap_or_else(Restarting::unanswered)
    }

    /// Ends all in it, in reverse order; only [`start`](Self::start) or [`restart`](Self::restart) brings them back. Does not wait
    /// for it, but gives what can be waited for; [`GroupEnded`](crate::EventKind::GroupEnded) tells too when it is over.
    pub fn stop(&self) -> Stopping {
        let began = now();
        match self.put(|answer| GroupCommand::Stop(self.id, answer)) {
            Ok(workers) => Stopping::new(workers, began),
            Err(why) => Stopping::unanswered(why, began),
        }
    }

    /// Ends all in it and starts it again. Gives what can be waited for: all but those with [`Restart::Never`], whom nothing but
    /// their user starts a second time.
    pub fn restart(&self) -> Restarting {
        self.put(|answer| GroupCommand::Restart(self.id, answer)).unwrap_or_else(Restarting::unanswered)
    }

    fn ask(&self, command: impl FnOnce(Sender<Result<(), GroupError>>) -> GroupCommand) -> Result<(), GroupError> {
        self.put(command)?
    }

    fn put<T>(&self, command: impl FnOnce(Sender<T>) -> GroupCommand) -> Result<T, Unanswered> {
        self.mailbox.ask(|answer| Command::Group(command(answer)))
    }
}
