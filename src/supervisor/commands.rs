//! The commands to the event loop, and how they are sent.

use crate::{
    ids::{GroupId, WorkerId},
    launch::{descriptors::ParentSockets, error::SpawnError},
    pipe::anonymous::ends::PipeReader,
    policy::{
        readiness_call::ReadinessAnswer,
        schedule::task::{QueueId, TaskOutput},
    },
    supervisor::{
        containment::{guard::GuardReport, inspector::request::ScanResult},
        control::{
            connection::ConnectionEvent,
            server::{AuthenticatedClient, ControlListener},
        },
        events::{notification_failure::NotificationFailure, observer::ObserveEvents},
        reactor::report::Report,
        spec::{
            SharedSpec,
            group::{GroupError, GroupPolicy},
        },
        worker::{
            SharedWorker,
            group::{GroupStatus, SharedGroup},
            handlers::{HandlerQueue, HandlerScope},
            job::ScheduledJob,
            notify_socket::NotifySocket,
            process::WorkerProcess,
            status::SupervisorStatus,
        },
    },
    sys::eventfd::Waker,
};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use std::{
    fmt,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

/// How long callers wait for an answer of the loop.
pub(crate) const ANSWER_TIME: Duration = Duration::from_secs(5);

/// A command to the event loop.
#[derive(Debug)]
pub(crate) enum Command {
    /// A process was started.
    Spawned(Box<SpawnedProcess>),
    /// A worker whose process is started elsewhere.
    Attach(Box<AttachedWorker>),
    /// The next incarnation of a worker could not be started.
    SpawnFailed(WorkerId, SpawnError),
    /// The readiness probe of this incarnation of a worker has succeeded.
    ProbeSucceeded(WorkerId, u32),
    /// What the result of the readiness call of this incarnation of a worker means.
    ReadinessJudged(WorkerId, u32, ReadinessAnswer),
    /// A batch of messages of this incarnation of a worker does not make it ready.
    MessagesRejected(WorkerId, u32),
    /// A call on a worker's handle.
    Worker(WorkerId, Action),
    /// The listener for control connections was created.
    ControlListener(Box<ControlListener>),
    /// A control connection reports.
    Connection(ConnectionEvent),
    /// A call on a group's handle.
    Group(GroupCommand),
    /// A new job, or a decision about one.
    Job(JobCommand),
    /// Returns the status of a group; `None` where the group does not exist any more.
    GroupStatus(GroupId, Sender<Option<GroupStatus>>),
    /// The inspector reports.
    ScanResult(Box<ScanResult>),
    /// Passes the events of a worker to an observer. Sent before the worker is started.
    Observe(WorkerId, Arc<dyn ObserveEvents>),
    /// The worker of an observer was not started.
    EndObservation(WorkerId),
    /// Passes requests and notifications to a handler.
    Serve(HandlerScope, Weak<HandlerQueue>),
    /// The handler of a notification has failed.
    NotificationFailed(Box<NotificationFailure>),
    /// Returns the status of all workers.
    Snapshot(Sender<SupervisorStatus>),
    /// Stops all workers. Returns those that have not ended.
    StopAll(StopAll, Sender<Vec<Arc<SharedWorker>>>),
    /// The user suspends the program: stops all trees, and drops the sender when they have stopped.
    Suspend(Sender<()>),
    /// The program continues.
    Resume,
    /// No more workers are added: the loop ends with the last worker.
    Close,
    /// The guard reports.
    Guard(GuardReport),
    /// The supervisor is dropped: ends all workers within the grace period.
    Terminate,
}

/// Which workers are stopped, and within which time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StopAll {
    /// The workers that exist, by their stop policies.
    Present,
    /// Also workers that are being started.
    ForGood,
    /// The same, within this time.
    Within(Duration),
}

/// A process that has just been started.
#[derive(Debug)]
pub(crate) struct SpawnedProcess {
    pub(crate) shared: Arc<SharedWorker>,
    pub(crate) process: Arc<WorkerProcess>,
    pub(crate) spec: SharedSpec,
    /// The key that it sends when it connects for control.
    pub(crate) key: Option<String>,
    pub(crate) started: Instant,
    /// The number of processes that the spawner had started by then, this one included.
    pub(crate) starts_before: u64,
    pub(crate) messages: Option<PipeReader>,
    pub(crate) stdout: Option<PipeReader>,
    pub(crate) stderr: Option<PipeReader>,
    /// The control connection, if the process is one that has connected.
    pub(crate) client: Option<AuthenticatedClient>,
    /// The sockets that carry control, unless the worker connects.
    pub(crate) sockets: Option<ParentSockets>,
    /// The pipe on which it writes a newline when it is ready.
    pub(crate) readiness_pipe: Option<PipeReader>,
    /// The socket to which it sends `sd_notify` datagrams.
    pub(crate) notify_socket: Option<NotifySocket>,
}

/// A worker that waits for a process that is started elsewhere.
#[derive(Debug)]
pub(crate) struct AttachedWorker {
    pub(crate) shared: Arc<SharedWorker>,
    pub(crate) spec: SharedSpec,
    /// The key that the process sends when it connects.
    pub(crate) key: String,
}

/// Why the loop has not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AskError {
    /// The loop has ended, and has no workers.
    LoopGone,
    /// The loop has not answered in time. It may execute the command later.
    TimedOut,
}

impl From<AskError> for GroupError {
    fn from(why: AskError) -> Self {
        match why {
            AskError::LoopGone => Self::SupervisorGone,
            AskError::TimedOut => Self::TimedOut,
        }
    }
}

/// Sends commands to the event loop.
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

    /// Sends a command with a channel for its answer, and waits up to [`ANSWER_TIME`]. The loop answers between two calls of `epoll_wait`;
    /// the timeout is for a process that is not scheduled.
    pub(crate) fn ask<T>(&self, question: impl FnOnce(Sender<T>) -> Command) -> Result<T, AskError> {
        self.ask_within(ANSWER_TIME, question)
    }

    pub(crate) fn ask_within<T>(
        &self,
        time: Duration,
        question: impl FnOnce(Sender<T>) -> Command,
    ) -> Result<T, AskError> {
        let (answer, answered) = crossbeam_channel::bounded(1);
        self.send(question(answer));
        answered.recv_timeout(time).map_err(|error| match error {
            RecvTimeoutError::Disconnected => AskError::LoopGone,
            RecvTimeoutError::Timeout => AskError::TimedOut,
        })
    }

    /// Queues a command without waking the loop.
    pub(crate) fn push_no_wake(&self, command: Command) {
        // A loop that has ended has no workers, so there is nothing to do.
        drop(self.try_push(command));
    }

    /// As [`push_no_wake`](Self::push_no_wake). Returns the command if the loop has ended.
    pub(crate) fn try_push(&self, command: Command) -> Option<Command> {
        self.commands.send(command).err().map(|unsent| unsent.0)
    }
}

impl Report<ConnectionEvent> for CommandSender {
    fn report(&self, event: ConnectionEvent) {
        self.send(Command::Connection(event));
    }
}

impl Report<ScanResult> for CommandSender {
    fn report(&self, findings: ScanResult) {
        self.send(Command::ScanResult(Box::new(findings)));
    }
}

impl Report<TaskOutput> for CommandSender {
    fn report(&self, output: TaskOutput) {
        self.send(Command::Job(JobCommand::Decided(output)));
    }
}

impl Report<GuardReport> for CommandSender {
    fn report(&self, report: GuardReport) {
        self.send(Command::Guard(report));
    }
}

/// A call on a worker's handle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Stop,
    StopWithin(Duration),
    Restart,
}

/// A call on a group's handle.
#[derive(Debug)]
pub(crate) enum GroupCommand {
    Add {
        group: Arc<SharedGroup>,
        parent: Option<GroupId>,
        policy: GroupPolicy,
        answer: Sender<Result<(), GroupError>>,
    },
    /// Adds all of the workers, or none.
    AddWorkers {
        group: GroupId,
        workers: NewMembers,
        /// Whether the caller waits for the first start of the first worker, whose failure then refuses the worker.
        is_awaited: bool,
        answer: Sender<Result<Option<FirstStartResult>, GroupError>>,
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
    /// Returns the workers that start.
    Start(GroupId, Sender<Restarted>),
    /// Returns the workers that stop.
    Stop(GroupId, Sender<Vec<Arc<SharedWorker>>>),
    /// As `Stop`; the group and its workers are then removed.
    RemoveAll(GroupId, Sender<Result<Vec<Arc<SharedWorker>>, GroupError>>),
    /// As `Start`.
    Restart(GroupId, Sender<Restarted>),
}

/// A new job, or a decision about one.
#[derive(Debug)]
pub(crate) enum JobCommand {
    Add(Box<NewJob>),
    /// A decision of the schedule.
    Decided(TaskOutput),
    /// Cancels all jobs of a queue. Returns those that have not ended.
    CancelAll(QueueId, Sender<Vec<Arc<SharedWorker>>>),
}

/// A job that is in the schedule.
#[derive(Debug)]
pub(crate) struct NewJob {
    pub(crate) shared: Arc<SharedWorker>,
    pub(crate) spec: SharedSpec,
    pub(crate) job: ScheduledJob,
    /// The time until its deadline.
    pub(crate) deadline: Option<Duration>,
    /// Keeps the loop running until it has the job.
    pub(crate) permit: Box<dyn fmt::Debug + Send>,
}

/// Workers that start again, each with the number of its last incarnation before.
pub(crate) type Restarted = Vec<(Arc<SharedWorker>, u32)>;

/// New members of a group, with their specs.
pub(crate) type NewMembers = Vec<(Arc<SharedWorker>, SharedSpec)>;

/// Receives one result, when the first start of a member has succeeded, failed or been cancelled.
pub(crate) type FirstStartResult = Receiver<Result<(), GroupError>>;
