//! Workers that belong together: who starts after whom, and who is restarted with whom.

use crate::{
    ids::{GroupId, WorkerId},
    policy::restart::Restart,
    supervisor::{
        clock::now,
        commands::{AskError, Command, CommandSender, FirstStartResult, GroupCommand, NewMembers},
        handles::{
            stop::{RestartHandle, StopHandle},
            worker::Worker,
        },
        spec::{
            WorkerSpec,
            group::{GroupError, GroupPolicy},
        },
        worker::{
            group::{GroupEndReason, GroupStatus, SharedGroup},
            registry::WorkerRegistry,
        },
    },
    sys::deferred_close::DropInBackground,
};
use crossbeam_channel::{RecvTimeoutError, Sender};
use std::{io, sync::Arc, time::Duration};

/// How long [`WorkerGroup::add`] waits for the start. One that takes longer hangs, as on a file system that does not answer.
const START_TIME: Duration = Duration::from_secs(5);

impl From<GroupError> for io::Error {
    fn from(error: GroupError) -> Self {
        let kind = match &error {
            GroupError::Spec(_) | GroupError::Rejected { .. } | GroupError::NotAMember { .. } => {
                io::ErrorKind::InvalidInput
            }
            GroupError::SpawnFailed(error) => error.io_error().map_or(io::ErrorKind::Other, Self::kind),
            GroupError::SupervisorGone => io::ErrorKind::BrokenPipe,
            GroupError::TimedOut => io::ErrorKind::TimedOut,
        };
        Self::new(kind, error)
    }
}

/// Workers that belong together, as their parent holds them: from [`Supervisor::group`](crate::supervisor::Supervisor::group). Cheap to clone;
/// dropping it changes nothing.
///
/// Who is restarted with whom is the group's [`Strategy`](crate::Strategy). The rules are those of an OTP supervisor; the differences, with their
/// reasons, are listed below.
///
/// # Order
///
/// Members start in the order in which they were added, each as soon as what it [waits for](WorkerSpec::depends_on) is there. With
/// [`Strategy::OneForAll`](crate::Strategy::OneForAll) and [`Strategy::RestForOne`](crate::Strategy::RestForOne) a member also waits until every earlier one that is being started runs,
/// its backoff included, at the first start and at each restart. With [`Strategy::OneForOne`](crate::Strategy::OneForOne) they do not wait for each other.
///
/// They are asked to stop in the reverse order. Where one waits for another by [`WorkerSpec::depends_on`], the other is asked when the
/// first is gone. All others end at the same time: OTP ends them one by one, and then a group takes as long as the
/// stop policies of all its members together, which for processes is seconds each.
///
/// # Differences to OTP
///
/// * A stopped member stays stopped when its siblings are restarted. What a caller has stopped, only a caller starts.
/// * Restarts of workers wait for their [backoff](crate::Backoff). An OTP supervisor restarts at once.
/// * A member that could not be started because the host is short of a resource is tried again without counting as a restart.
/// * Members may wait for others, of any group. One that waits for another that fails is not started
///   ([`DependencyFailed`](crate::EventKind::DependencyFailed)), and that is no failure of its group.
/// * Members that have ended stay in the group and can be started again, also those with [`Restart::Never`], until they are
///   [removed](Self::remove).
/// * With [`OneForAll`](crate::Strategy::OneForAll) and [`RestForOne`](crate::Strategy::RestForOne), as in OTP, a member with
///   [`Restart::OnFailure`] that has ended with success runs again when its siblings are restarted, although
///   [`Worker::wait`](crate::supervisor::handles::worker::Worker::wait) has returned for it.
///
/// ```no_run
/// use pipewright::{Readiness, Restart, Strategy, Supervisor, DependencyCondition, WorkerSpec};
///
/// let supervisor = Supervisor::new()?;
/// let group = supervisor.group(Strategy::RestForOne)?;
/// let database = WorkerSpec::new("database").ready(Readiness::connect_tcp("127.0.0.1:5432")).restart(Restart::Always);
/// let database = group.add(database)?;
/// group.add(WorkerSpec::new("web").restart(Restart::Always).depends_on(&database, DependencyCondition::Ready))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
#[doc(alias = "supervisor")]
pub struct WorkerGroup {
    shared: Arc<SharedGroup>,
    pub(crate) commands: CommandSender,
    pub(crate) registry: Arc<WorkerRegistry>,
}

impl_debug!(WorkerGroup, |group| { id: group.id().0 });

impl WorkerGroup {
    pub(crate) fn add_to(
        parent: Option<GroupId>,
        policy: GroupPolicy,
        commands: &CommandSender,
        registry: &Arc<WorkerRegistry>,
    ) -> Result<Self, GroupError> {
        if policy.intensity.is_some_and(|intensity| intensity.period.is_zero()) {
            let reason =
                "within no time there are never too many restarts: give its intensity a period, or use `unlimited_restarts`"
                    .into();
            return Err(GroupError::Rejected { reason });
        }
        if parent.is_none() && policy.restart.is_some_and(|restart| restart != Restart::Never) {
            let reason =
                "there is no group around it that could restart it: put it into one, whose intensity bounds that";
            return Err(GroupError::Rejected { reason: reason.into() });
        }
        let shared = Arc::new(SharedGroup::new(GroupId(registry.next_id())));
        let group = Self { shared, commands: commands.clone(), registry: Arc::clone(registry) };
        let shared = Arc::clone(&group.shared);
        group.ask(|answer| GroupCommand::Add { group: shared, parent, policy, answer })?;
        Ok(group)
    }

    /// Its name in events.
    pub fn id(&self) -> GroupId {
        self.shared.id
    }

    /// A group within this one, which restarts it when it gives up, unless its [`restart`](GroupPolicy::restart) says otherwise.
    ///
    /// # Errors
    ///
    /// [`GroupError::Rejected`] where it is significant and that makes no sense, or its intensity has no period.
    pub fn group(&self, policy: impl Into<GroupPolicy>) -> Result<Self, GroupError> {
        Self::add_to(Some(self.id()), policy.into(), &self.commands, &self.registry)
    }

    /// Adds a worker. Where it can start at once, returns when its program runs, as
    /// [`Supervisor::spawn`](crate::supervisor::Supervisor::spawn) does. Where its group does not run, or it waits for another or for its turn,
    /// it returns before, and so it does for a start that hangs, after 5 s: a start that fails later is an
    /// [event](crate::EventKind::SpawnFailed), and a failure of the member.
    ///
    /// # Errors
    ///
    /// A mistake in the spec, [`GroupError::Rejected`], or [`GroupError::SpawnFailed`]. Then nothing is left of it: it is no member, and
    /// its siblings do not notice it.
    pub fn add(&self, spec: WorkerSpec) -> Result<Worker, GroupError> {
        spec.validate_apart_from_restart()?;
        let shared = self.registry.enter(WorkerId(self.registry.next_id()), &spec, None);
        let workers = vec![(Arc::clone(&shared), Arc::new(DropInBackground::new(spec)))];
        if let Some(started) = self.declare(workers, true)? {
            match started.recv_timeout(START_TIME) {
                // A start that takes longer goes on, and its failure is an event.
                Ok(Ok(())) | Err(RecvTimeoutError::Timeout) => {}
                Ok(Err(error)) => return Err(error),
                Err(RecvTimeoutError::Disconnected) => return Err(GroupError::SupervisorGone),
            }
        }
        Ok(Worker::new(shared, &self.commands))
    }

    pub(crate) fn declare(
        &self,
        workers: NewMembers,
        is_awaited: bool,
    ) -> Result<Option<FirstStartResult>, GroupError> {
        self.put(|answer| GroupCommand::AddWorkers { group: self.id(), workers, is_awaited, answer })?
    }

    /// Starts one member of this group or of one within it, which was stopped or has ended, as if it had never failed. One that
    /// runs is not changed. One whose group is being restarted starts with it.
    ///
    /// # Errors
    ///
    /// [`GroupError::NotAMember`]. [`GroupError::Rejected`] where the group itself has ended: start the group.
    ///
    /// ```no_run
    /// # use pipewright::{Restart, Strategy, Supervisor, WorkerSpec};
    /// # use std::time::Duration;
    /// # let supervisor = Supervisor::new()?;
    /// let group = supervisor.group(Strategy::OneForOne)?;
    /// let web = group.add(WorkerSpec::new("web").restart(Restart::Always))?;
    /// web.stop().wait(Duration::from_secs(10));
    /// assert!(group.start_member(&web)?.wait(Duration::from_secs(10)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "restart_child")]
    pub fn start_member(&self, worker: &Worker) -> Result<RestartHandle, GroupError> {
        let restarted =
            self.put(|answer| GroupCommand::StartMember { group: self.id(), worker: worker.id(), answer })?;
        restarted.map(RestartHandle::new)
    }

    /// Forgets a worker of this group or of one within it: it is stopped before, and ends for good.
    ///
    /// # Errors
    ///
    /// [`GroupError::NotAMember`]. [`GroupError::Rejected`] where another member waits for it.
    #[doc(alias = "delete_child")]
    pub fn remove(&self, worker: &Worker) -> Result<(), GroupError> {
        self.ask(|answer| GroupCommand::Remove { group: self.id(), worker: worker.id(), answer })
    }

    /// How the group, its members and the groups within it are; `None` once it is removed or the
    /// supervisor has ended, and where its event loop does not answer within 5 s.
    #[doc(alias = "which_children")]
    pub fn status(&self) -> Option<GroupStatus> {
        self.commands.ask(|answer| Command::GroupStatus(self.id(), answer)).ok().flatten()
    }

    /// Waits until the group has ended for good: no member runs, and only a caller starts it again. A restart of it, also by the
    /// group around it, is no end. A group whose members have all ended has not: see [`GroupPolicy::auto_shutdown`].
    ///
    /// ```no_run
    /// # use pipewright::{AutoShutdown, GroupEndReason, GroupPolicy, Supervisor, WorkerSpec};
    /// # let supervisor = Supervisor::new()?;
    /// let group = supervisor.group(GroupPolicy::default().auto_shutdown(AutoShutdown::AllSignificant))?;
    /// group.add(WorkerSpec::new("./migrate").significant())?;
    /// assert_eq!(group.wait(), GroupEndReason::ShutDown);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn wait(&self) -> GroupEndReason {
        loop {
            if let Some(end) = self.shared.wait(Duration::MAX) {
                return end;
            }
        }
    }

    /// As [`wait`](Self::wait), at most so long; `None` if it runs then, or will run again.
    pub fn wait_timeout(&self, timeout: Duration) -> Option<GroupEndReason> {
        self.shared.wait(timeout)
    }

    /// Forgets all of it, also the groups in it: everybody is stopped before, and ends for good. Gives what can be waited for. What
    /// is added to it from then on is refused.
    ///
    /// # Errors
    ///
    /// [`GroupError::Rejected`] where a member of another group waits for one of its own.
    #[doc(alias = "terminate_child")]
    pub fn remove_all(&self) -> Result<StopHandle, GroupError> {
        let began = now();
        let ended = self.put(|answer| GroupCommand::RemoveAll(self.id(), answer))?;
        ended.map(|workers| StopHandle::new(workers, began))
    }

    /// Starts it again, with all in it, after [`stop`](Self::stop) or after it has ended. Gives what can be waited for: those who
    /// come back with that.
    pub fn start(&self) -> RestartHandle {
        RestartHandle::answered(self.put(|answer| GroupCommand::Start(self.id(), answer)))
    }

    /// Ends all in it, in reverse order; only [`start`](Self::start) or [`restart`](Self::restart) brings them back. Does not wait
    /// for it, but gives what can be waited for; [`GroupEnded`](crate::EventKind::GroupEnded) tells too when it is over.
    pub fn stop(&self) -> StopHandle {
        let began = now();
        match self.put(|answer| GroupCommand::Stop(self.id(), answer)) {
            Ok(workers) => StopHandle::new(workers, began),
            Err(why) => StopHandle::unanswered(why, began),
        }
    }

    /// Ends all in it and starts it again. Gives what can be waited for: all but those with [`Restart::Never`], whom nothing but
    /// their user starts a second time.
    pub fn restart(&self) -> RestartHandle {
        RestartHandle::answered(self.put(|answer| GroupCommand::Restart(self.id(), answer)))
    }

    fn ask(&self, command: impl FnOnce(Sender<Result<(), GroupError>>) -> GroupCommand) -> Result<(), GroupError> {
        self.put(command)?
    }

    fn put<T>(&self, command: impl FnOnce(Sender<T>) -> GroupCommand) -> Result<T, AskError> {
        self.commands.ask(|answer| Command::Group(command(answer)))
    }
}
