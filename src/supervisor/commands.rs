//! What the event loop is asked to do, and how.

use crate::{
    ids::{GroupId, WorkerId},
    launch::error::SpawnError,
    pipe::anonymous::ends::PipeReader,
    supervisor::{
        containment::{guard::GuardReport, inspector::request::Findings},
        control::{connection::ConnectionEvent, server::Server},
        reactor::report::Report,
        spec::{
            SharedSpec,
            group::{GroupError, GroupPolicy},
        },
        worker::{
            SharedWorker,
            group::{GroupStatus, SharedGroup},
            notify_socket::NotifySocket,
            process::WorkerProcess,
            status::SupervisorStatus,
        },
    },
    sys::eventfd::Waker,
};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// How long callers wait for an answer of the loop.
pub(crate) const ANSWER_TIME: Duration = Duration::from_secs(5);

/// What the loop is told.
#[derive(Debug)]
pub(crate) enum Command {
    Arrive(Box<SpawnedProcess>),
    /// The next incarnation of this worker could not be started.
    NotStarted(WorkerId, SpawnError),
    /// What made this incarnation of a worker ready was asked for and found.
    Reached(WorkerId, u32),
    /// Some messages of this incarnation of a worker were looked at, and do not make it ready.
    Passed(WorkerId, u32),
    /// What its user wants of a worker.
    Act(WorkerId, Action),
    /// The control server has been started.
    Listen(Box<Server>),
    /// A control connection reports.
    Connection(ConnectionEvent),
    /// About groups.
    Group(GroupCommand),
    /// The status of a group; `None` where there is no such group any more.
    GroupStatus(GroupId, Sender<Option<GroupStatus>>),
    /// The inspector has looked.
    Inspected(Box<Findings>),
    /// How is everybody?
    Report(Sender<SupervisorStatus>),
    /// Everybody is to end. Gives those who are there.
    StopAll(StopAll, Sender<Vec<Arc<SharedWorker>>>),
    /// The program is stopped by its user, with everybody, or goes on.
    Freeze(Sender<()>),
    Thaw,
    /// Nobody will come any more: end when everybody has gone.
    Close,
    /// What has come of a start of the guard.
    Guard(GuardReport),
    /// End everybody.
    Stop,
}

/// Who is to end, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StopAll {
    /// Who is there, by the ladders.
    Present,
    /// Also who is still on the way here.
    ForGood,
    /// The same, and in so much time.
    Within(Duration),
}

/// A process that has just been started.
#[derive(Debug)]
pub(crate) struct SpawnedProcess {
    pub(crate) shared: Arc<SharedWorker>,
    pub(crate) process: Arc<WorkerProcess>,
    pub(crate) spec: SharedSpec,
    /// What it will show when it connects.
    pub(crate) key: Option<String>,
    pub(crate) started: Instant,
    /// How many processes the starter had started by then, this one counted.
    pub(crate) starts_before: u64,
    pub(crate) messages: Option<PipeReader>,
    pub(crate) stdout: Option<PipeReader>,
    pub(crate) stderr: Option<PipeReader>,
    /// On which it tells that it is ready.
    pub(crate) bell: Option<PipeReader>,
    /// To which it tells how it is.
    pub(crate) notices: Option<NotifySocket>,
}

/// Why the loop has not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unanswered {
    /// It has ended, and has no workers.
    LoopGone,
    /// Not in time. What was asked for may be done later.
    Late,
}

impl From<Unanswered> for GroupError {
    fn from(why: Unanswered) -> Self {
        match why {
            Unanswered::LoopGone => Self::SupervisorGone,
            Unanswered::Late => Self::TimedOut,
        }
    }
}

/// Where commands for the loop are put.
#[derive(Debug, Clone)]
pub(crate) struct CommandSender {
    pub(crate) commands: Sender<Command>,
    pub(crate) waker: Arc<Waker>,
}

impl CommandSender {
    pub(crate) fn send(&self, command: Command) {
        self.push_no_wake(command);
        self.waker.wake();
    }

    /// Asks the loop, and waits for its answer. The loop answers between two looks at the kernel; [`ANSWER_TIME`] is for one that is
    /// not run at all.
    pub(crate) fn ask<T>(&self, question: impl FnOnce(Sender<T>) -> Command) -> Result<T, Unanswered> {
        self.ask_within(ANSWER_TIME, question)
    }

    pub(crate) fn ask_within<T>(
        &self,
        time: Duration,
        question: impl FnOnce(Sender<T>) -> Command,
    ) -> Result<T, Unanswered> {
        let (answer, answered) = crossbeam_channel::bounded(1);
        self.send(question(answer));
        answered.recv_timeout(time).map_err(|error| match error {
            RecvTimeoutError::Disconnected => Unanswered::LoopGone,
            RecvTimeoutError::Timeout => Unanswered::Late,
        })
    }

    /// For a loop that will be woken.
    pub(crate) fn push_no_wake(&self, command: Command) {
        // A loop that has ended has no workers: there is nothing to do for it.
        drop(self.commands.send(command));
    }
}

impl Report<ConnectionEvent> for CommandSender {
    fn report(&self, event: ConnectionEvent) {
        self.send(Command::Connection(event));
    }
}

impl Report<Findings> for CommandSender {
    fn report(&self, findings: Findings) {
        self.send(Command::Inspected(Box::new(findings)));
    }
}

impl Report<GuardReport> for CommandSender {
    fn report(&self, report: GuardReport) {
        self.send(Command::Guard(report));
    }
}

/// What its user wants of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Stop,
    StopWithin(Duration),
    Restart,
}

/// What is wanted of groups.
#[derive(Debug)]
pub(crate) enum GroupCommand {
    Add {
        group: Arc<SharedGroup>,
        parent: Option<GroupId>,
        policy: GroupPolicy,
        answer: Sender<Result<(), GroupError>>,
    },
    /// All of them, or none.
    AddWorkers {
        group: GroupId,
        workers: Newcomers,
        /// Whether the caller waits for the first start of the first of them, and takes its failure for a refusal.
        is_awaited: bool,
        answer: Sender<Result<Option<FirstStart>, GroupError>>,
    },
    Remove {
        group: GroupId,
        worker: WorkerId,
        answer: Sender<Result<(), GroupError>>,
    },
    StartMember {
        group: GroupId,
        worker: WorkerId,
        answer: Sender<Result<Restarted, GroupError>>,
    },
    /// Gives those who are to begin anew.
    Start(GroupId, Sender<Restarted>),
    /// Gives those who are to end.
    Stop(GroupId, Sender<Vec<Arc<SharedWorker>>>),
    /// As `Stop`, and for good.
    RemoveAll(GroupId, Sender<Result<Vec<Arc<SharedWorker>>, GroupError>>),
    /// As `Start`.
    Restart(GroupId, Sender<Restarted>),
}

/// Workers that start again, each with the number of its last incarnation before.
pub(crate) type Restarted = Vec<(Arc<SharedWorker>, u32)>;

/// Workers that are to be members, with their specs.
pub(crate) type Newcomers = Vec<(Arc<SharedWorker>, SharedSpec)>;

/// Has one answer, when the first start of a member has succeeded, failed or been called off.
pub(crate) type FirstStart = Receiver<Result<(), GroupError>>;
