//! Groups of workers that are started, stopped and restarted together.

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

/// The time that [`WorkerGroup::add`] waits for the start. A longer start is blocked, for example by a file system that does not answer.
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

/// A group of workers, from [`Supervisor::group`](crate::supervisor::Supervisor::group). Cheap to clone; dropping it changes nothing.
///
/// The [`Strategy`](crate::Strategy) says which members are restarted together. The rules are those of an OTP supervisor; the differences
/// and their reasons are listed below.
///
/// # Order
///
/// Members start in the order in which they were added, each as soon as its [dependencies](WorkerSpec::depends_on) are met. With
/// [`Strategy::OneForAll`](crate::Strategy::OneForAll) and [`Strategy::RestForOne`](crate::Strategy::RestForOne) a member also waits until
/// all earlier members that are starting run, including their backoff, at the first start and at each restart. With
/// [`Strategy::OneForOne`](crate::Strategy::OneForOne) members do not wait for each other.
///
/// Members stop in the reverse order. A member on which others depend by [`WorkerSpec::depends_on`] is stopped when these have ended. All
/// others are stopped at the same time: OTP stops them one by one, so that a group takes the sum of the stop policies of its members, which
/// for processes are seconds each.
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
    pub(super) shared: Arc<SharedGroup>,
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

    /// Returns the id that names the group in events.
    pub fn id(&self) -> GroupId {
        self.shared.id
    }

    /// Adds a group to this one. This group restarts it when it gives up, unless its [`restart`](GroupPolicy::restart) says otherwise.
    ///
    /// # Errors
    ///
    /// [`GroupError::Rejected`] if the group is significant but never ends, or its intensity has no period.
    pub fn group(&self, policy: impl Into<GroupPolicy>) -> Result<Self, GroupError> {
        Self::add_to(Some(self.id()), policy.into(), &self.commands, &self.registry)
    }

    /// Adds a worker. If it can start at once, returns when its program runs, like
    /// [`Supervisor::spawn`](crate::supervisor::Supervisor::spawn). Returns before the start if the group does not run or the worker waits
    /// for others, and after 5 s if the start blocks. A start that fails later is an [event](crate::EventKind::SpawnFailed), and a failure
    /// of the member.
    ///
    /// # Errors
    ///
    /// [`GroupError::Spec`], [`GroupError::Rejected`], or [`GroupError::SpawnFailed`]. The worker is then not a member, and its siblings
    /// are not affected.
    pub fn add(&self, spec: WorkerSpec) -> Result<Worker, GroupError> {
        spec.validate_apart_from_restart()?;
        let shared = self.registry.register(WorkerId(self.registry.next_id()), &spec, None);
        let workers = vec![(Arc::clone(&shared), Arc::new(DropInBackground::new(spec)))];
        if let Some(started) = self.declare(workers, true)? {
            match started.recv_timeout(START_TIME) {
                // A longer start continues, and its failure is an event.
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

    /// Starts a member of this group, or of a group in it, that was stopped or has ended. Its earlier failures are forgotten. A running
    /// member is not changed. If the group of the member is restarting, it starts with the group.
    ///
    /// # Errors
    ///
    /// [`GroupError::NotAMember`]. [`GroupError::Rejected`] if the group itself has ended: start the group.
    ///
    /// ```no_run
    /// # use pipewright::{Restart, Strategy, Supervisor, WorkerSpec};
    /// # use std::time::Duration;
    /// # let supervisor = Supervisor::new()?;
    /// let group = supervisor.group(Strategy::OneForOne)?;
    /// let web = group.add(WorkerSpec::new("web").restart(Restart::Always))?;
    /// web.stop().wait(Duration::from_secs(10));
    /// group.start_member(&web)?.wait(Duration::from_secs(10))?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "restart_child")]
    pub fn start_member(&self, worker: &Worker) -> Result<RestartHandle, GroupError> {
        let restarted =
            self.put(|answer| GroupCommand::StartMember { group: self.id(), worker: worker.id(), answer })?;
        restarted.map(RestartHandle::new)
    }

    /// Removes a worker from this group, or from a group in it. The worker is stopped first, and ends for good.
    ///
    /// # Errors
    ///
    /// [`GroupError::NotAMember`]. [`GroupError::Rejected`] if another member depends on it.
    #[doc(alias = "delete_child")]
    pub fn remove(&self, worker: &Worker) -> Result<(), GroupError> {
        self.ask(|answer| GroupCommand::Remove { group: self.id(), worker: worker.id(), answer })
    }

    /// Returns the status of the group, its members and the groups in it. `None` if it was removed or the supervisor has ended, and if the
    /// event loop does not answer within 5 s.
    #[doc(alias = "which_children")]
    pub fn status(&self) -> Option<GroupStatus> {
        self.commands.ask(|answer| Command::GroupStatus(self.id(), answer)).ok().flatten()
    }

    /// Waits until the group has ended: no member runs, and only a call starts it again. A restart of the group, also by its parent group,
    /// does not end the wait. A group whose members have all ended has not ended itself: see [`GroupPolicy::auto_shutdown`].
    ///
    /// ```no_run
    /// # use pipewright::{AutoShutdown, GroupPolicy, Supervisor, WorkerSpec, status::GroupEndReason};
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

    /// As [`wait`](Self::wait), up to `timeout`; `None` if the group still runs or will run again.
    pub fn wait_timeout(&self, timeout: Duration) -> Option<GroupEndReason> {
        self.shared.wait(timeout)
    }

    /// Removes the group with all members and groups in it, which are stopped first and end for good. Returns a handle to wait for that.
    /// Later additions to the group are rejected.
    ///
    /// # Errors
    ///
    /// [`GroupError::Rejected`] if a member of another group depends on a member of this one.
    #[doc(alias = "terminate_child")]
    pub fn remove_all(&self) -> Result<StopHandle, GroupError> {
        let began = now();
        let ended = self.put(|answer| GroupCommand::RemoveAll(self.id(), answer))?;
        ended.map(|workers| StopHandle::new(workers, began))
    }

    /// Starts the group again, with all members and groups in it, after [`stop`](Self::stop) or after it has ended. Returns a handle to
    /// wait for the members that start.
    pub fn start(&self) -> RestartHandle {
        RestartHandle::answered(self.put(|answer| GroupCommand::Start(self.id(), answer)))
    }

    /// Stops all members and groups in it, in reverse order; only [`start`](Self::start) or [`restart`](Self::restart) starts them again.
    /// Returns at once, with a handle to wait for the end, which [`GroupEnded`](crate::EventKind::GroupEnded) reports too.
    pub fn stop(&self) -> StopHandle {
        let began = now();
        match self.put(|answer| GroupCommand::Stop(self.id(), answer)) {
            Ok(workers) => StopHandle::new(workers, began),
            Err(why) => StopHandle::unanswered(why, began),
        }
    }

    /// Stops the group and starts it again. Returns a handle to wait for its members, except those with [`Restart::Never`], which do not
    /// start again by themselves.
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
