//! The recipe of a worker: what to run, what to hand it, how to look after it.

use crate::{
    ids::WorkerId,
    launch::{
        error::SpecError,
        limits::{CgroupLimit, IoPriority, ResourceLimit},
        pass::Pass,
        plan::{Argument, EnvironmentChange, FdSource, LaunchPlan, MESSAGES, Program},
        stdio::{OutputMode, ProcessGroup, StdinMode},
    },
    policy::{
        group::model::DependencyCondition, restart::RestartPolicy, stop::StopPolicy, survivors::SurvivorPolicy,
        watchdog::Watchdog,
    },
    supervisor::spec::{
        control_source::ControlSource,
        parent::{DeathSignal, StartedBy},
        readiness::{READINESS_PIPE, Readiness, Wanted},
    },
    sys::deferred_close::{DropInBackground, MayBlock},
    wire::framing::Framing,
};
use std::{ffi::OsString, os::fd::OwnedFd, path::PathBuf, process::Command, sync::Arc, time::Duration};
pub(crate) mod attach;
pub(crate) mod control;
pub(crate) mod control_source;
pub(crate) mod group;
mod jobserver;
pub(crate) mod parent;
pub(crate) mod readiness;
pub(crate) mod readiness_call;
pub(crate) mod survivors;
pub(crate) mod terminal;
pub(crate) mod unsupervised;
pub(crate) mod validate;

/// The default limit of a message, in bytes.
const MAX_MESSAGE_SIZE: usize = 16 << 20;
/// The default window of a worker, in bytes.
const WINDOW: usize = 1 << 20;
/// The default drain timeout.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(200);
/// The default size of the tail of standard error, in bytes.
const STDERR_TAIL: usize = 8 << 10;
/// The default window of the control connection, in bytes.
const CONTROL_WINDOW: usize = 8 << 20;

/// Where a worker's messages come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MessageSource {
    Nowhere,
    Pipe,
    Stdout,
    Stderr,
}

/// Describes how to start and supervise a worker. A spec holds no live resource, can be used any number of times, and is cheap to clone.
///
/// The setters do not check anything. [`validate`](Self::validate), which every start calls, returns a typed error before anything is
/// spawned.
///
/// ```
/// use pipewright::{OutputMode, Pass, WorkerSpec};
///
/// let compiler = WorkerSpec::new("/usr/lib/build/compile-worker")
///     .arg("--optimize")
///     .messages(Pass::arg("--messages={}")) // {} is replaced by the number of the file descriptor
///     .stderr(OutputMode::Lines)
///     .env("LC_ALL", "C");
/// let first = compiler.clone().arg("a.c");
/// assert!(first.validate().is_ok());
/// ```
#[derive(Clone)]
#[must_use = "a spec is a recipe: hand it to Supervisor::spawn"]
pub struct WorkerSpec {
    pub(crate) plan: LaunchPlan,
    pub(crate) name: Option<Box<str>>,
    pub(crate) messages: MessageSource,
    /// The requested mode; `plan.stdout` is what follows from it.
    pub(crate) stdout: Option<OutputMode>,
    /// As `stdout`.
    pub(crate) stderr: Option<OutputMode>,
    /// As `stdout`.
    pub(crate) stdin: Option<StdinMode>,
    pub(crate) framing: Framing,
    pub(crate) max_message_size: usize,
    pub(crate) validate_json: bool,
    pub(crate) pipe_capacity: Option<usize>,
    pub(crate) window: usize,
    pub(crate) drain_timeout: Duration,
    pub(crate) stderr_tail: usize,
    pub(crate) control: ControlSource,
    /// As requested: without it, each way of starting has a default of its own.
    pub(crate) control_connect_timeout: Option<Duration>,
    pub(crate) control_window: usize,
    pub(crate) peer_user: Option<u32>,
    pub(crate) death_signal: DeathSignal,
    pub(crate) restart: RestartPolicy,
    /// The requested policy; `stop` is what follows from it.
    pub(crate) stop_asked: Option<StopPolicy>,
    pub(crate) stop: StopPolicy,
    pub(crate) outlives_supervisor: bool,
    pub(crate) survivors: SurvivorPolicy,
    pub(crate) survivor_grace_period: Duration,
    /// As `stop_asked`.
    pub(crate) ready_asked: Option<Readiness>,
    pub(crate) ready: Option<Readiness>,
    pub(crate) watchdog: Option<Watchdog>,
    pub(crate) runtime_max: Option<Duration>,
    pub(crate) is_significant: bool,
    pub(crate) started_by: StartedBy,
    pub(crate) cgroup_limits: Vec<CgroupLimit>,
    /// The members on which it depends, in a group.
    pub(crate) dependencies: Vec<(WorkerId, DependencyCondition)>,
}

impl_debug!(WorkerSpec, |spec| {
    name: spec.name,
    program: spec.plan.program,
    arguments: spec.plan.arguments,
    environment: spec.plan.variable_names(),
    directory: spec.plan.directory,
});

/// Program, arguments and environment.
impl WorkerSpec {
    /// Creates the spec of a worker that runs `program`. A name without a slash is searched in the worker's `PATH`. Relative paths, also in
    /// `PATH`, are resolved in the worker's [working directory](Self::current_dir).
    ///
    /// A file that the kernel does not execute, such as a script without a `#!` line, fails with
    /// [`SpawnStep::Format`](crate::SpawnStep::Format): no shell runs it.
    pub fn new(program: impl Into<OsString>) -> Self {
        Self::of(Program::Named(program.into()))
    }

    /// Creates the spec of a worker that a [`Command`] starts, for settings that only std has. `make` is called for
    /// each incarnation, on the thread that spawns: it must not wait for another spawn.
    ///
    /// Starting costs a fork of the parent's address space, since `command-fds` needs a hook between fork and exec: milliseconds in a large
    /// parent, where [`new`](Self::new) takes a constant fraction of one. Granted file descriptors keep the numbers that they have in the
    /// parent, 10 or above; a fixed number works only while it is free in the parent. The standard streams are those of this spec, whatever
    /// the `Command` says. The program is searched and rejected by the same rules as that of `new`.
    ///
    /// File descriptors that the `Command` passes on by hooks of its own are closed: use [`inherit_fd`](Self::inherit_fd).
    pub fn from_command(make: impl Fn() -> Command + Send + Sync + 'static) -> Self {
        Self::of(Program::Command(Arc::new(make)))
    }

    fn of(program: Program) -> Self {
        Self {
            plan: LaunchPlan::new(program),
            name: None,
            messages: MessageSource::Nowhere,
            stdout: None,
            stderr: None,
            stdin: None,
            framing: Framing::default(),
            max_message_size: MAX_MESSAGE_SIZE,
            validate_json: false,
            pipe_capacity: None,
            window: WINDOW,
            drain_timeout: DRAIN_TIMEOUT,
            stderr_tail: STDERR_TAIL,
            control: ControlSource::Nowhere,
            control_connect_timeout: None,
            control_window: CONTROL_WINDOW,
            peer_user: None,
            death_signal: DeathSignal::Unset,
            restart: RestartPolicy::default(),
            stop_asked: None,
            stop: StopPolicy::default(),
            outlives_supervisor: false,
            survivors: SurvivorPolicy::Kill,
            survivor_grace_period: Duration::ZERO,
            ready_asked: None,
            ready: None,
            watchdog: None,
            runtime_max: None,
            is_significant: false,
            started_by: StartedBy::Supervisor,
            cgroup_limits: Vec::new(),
            dependencies: Vec::new(),
        }
    }

    /// Sets the name of the worker in errors, logs and status; by default the file name of the program.
    pub fn name(mut self, name: impl Into<Box<str>>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Appends an argument. Braces in it are not replaced.
    pub fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.plan.arguments.push(Argument::Plain(argument.into()));
        self
    }

    /// Appends arguments.
    pub fn args(mut self, arguments: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.plan.arguments.extend(arguments.into_iter().map(|argument| Argument::Plain(argument.into())));
        self
    }

    /// Sets an environment variable, whatever its name. Others are inherited, except those that name file descriptors of the host, such as
    /// `LISTEN_FDS`, `NODE_CHANNEL_FD`, or the jobserver in `MAKEFLAGS` ([list](crate::docs::protocol), "Variables that are removed").
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.plan.environment.push(EnvironmentChange::Set(name.into(), value.into()));
        self
    }

    /// Removes an environment variable.
    pub fn env_remove(mut self, name: impl Into<OsString>) -> Self {
        self.plan.environment.push(EnvironmentChange::Remove(name.into()));
        self
    }

    /// Removes all environment variables set so far, and all inherited ones.
    pub fn env_clear(mut self) -> Self {
        self.plan.environment.push(EnvironmentChange::Clear);
        self
    }

    /// Sets the working directory; by default that of the host.
    pub fn current_dir(mut self, directory: impl Into<PathBuf>) -> Self {
        self.plan.directory = Some(directory.into());
        self
    }
}

/// Streams, pipes and file descriptors.
impl WorkerSpec {
    /// Adds a pipe for messages, so that standard output stays free for text.
    pub fn messages(mut self, pass: Pass) -> Self {
        self.plan.add_fd(MESSAGES, FdSource::OutputPipe, pass);
        self.messages_from(MessageSource::Pipe)
    }

    /// Reads messages from standard output: for programs that have no other output.
    pub fn messages_on_stdout(self) -> Self {
        self.messages_from(MessageSource::Stdout)
    }

    /// Reads messages from standard error.
    pub fn messages_on_stderr(self) -> Self {
        self.messages_from(MessageSource::Stderr)
    }

    pub(crate) fn messages_from(mut self, source: MessageSource) -> Self {
        if self.messages != MessageSource::Nowhere {
            self.plan.first_error.get_or_insert(SpecError::DuplicateMessageStream);
        }
        self.messages = source;
        self.settle_outputs()
    }

    /// Captures the stream that carries messages. `validate` checks a conflicting mode, so the order of the calls does not matter.
    fn settle_outputs(mut self) -> Self {
        let settled = |is_source, asked: &Option<OutputMode>| {
            if is_source { OutputMode::Lines } else { asked.clone().unwrap_or_default() }
        };
        self.plan.stdout = settled(self.messages == MessageSource::Stdout, &self.stdout);
        self.plan.stderr = settled(self.messages == MessageSource::Stderr, &self.stderr);
        self
    }

    /// Adds a pipe that the worker reads. [`Worker::take_writer`](crate::Worker::take_writer) with this name returns our end.
    pub fn input_pipe(mut self, name: &str, pass: Pass) -> Self {
        self.plan.add_fd(name, FdSource::InputPipe, pass);
        self
    }

    /// Adds a pipe that the worker writes. [`Worker::take_reader`](crate::Worker::take_reader) with this name returns our end; the
    /// supervisor does not read it.
    pub fn output_pipe(mut self, name: &str, pass: Pass) -> Self {
        self.plan.add_fd(name, FdSource::OutputPipe, pass);
        self
    }

    /// Passes a file descriptor of the host: a listening socket, a jobserver's pipe, a file. All incarnations share it.
    #[doc(alias = "pass_fds")]
    #[doc(alias = "ExtraFiles")]
    pub fn inherit_fd(mut self, fd: impl Into<OwnedFd>, pass: Pass) -> Self {
        let name = format!("fd {}", self.plan.extra_fds.len());
        self.plan.add_fd(&name, FdSource::Inherited(Arc::new(fd.into())), pass);
        self
    }

    /// Sets standard input; `/dev/null` by default.
    pub fn stdin(mut self, stdin: impl Into<StdinMode>) -> Self {
        let stdin = stdin.into();
        self.plan.stdin = stdin.clone();
        self.stdin = Some(stdin);
        self
    }

    /// Sets standard output; inherited by default.
    pub fn stdout(mut self, stdout: impl Into<OutputMode>) -> Self {
        self.stdout = Some(stdout.into());
        self.settle_outputs()
    }

    /// Sets standard error; inherited by default.
    pub fn stderr(mut self, stderr: impl Into<OutputMode>) -> Self {
        self.stderr = Some(stderr.into());
        self.settle_outputs()
    }
}

/// Process attributes and limits.
impl WorkerSpec {
    /// Sets the process group; a new one by default, so that the worker can be killed together with its descendants.
    #[doc(alias = "detached")]
    #[doc(alias = "setsid")]
    pub fn process_group(mut self, group: ProcessGroup) -> Self {
        self.plan.group = group;
        self
    }

    /// Sets the soft and the hard value of a resource limit; `u64::MAX` for unlimited.
    #[doc(alias = "setrlimit")]
    pub fn rlimit(mut self, limit: ResourceLimit, value: u64) -> Self {
        self.plan.limits.push((limit, value));
        self
    }

    /// Limits the worker together with its descendants. Requires a cgroup (v2) with the controller: the supervisor's process must be
    /// in a leaf of a subtree that is delegated to it (systemd's `Delegate=yes` and `DelegateSubgroup=main`), to its user or to its
    /// container. Otherwise the start fails with [`SpawnStep::CgroupLimit`](crate::SpawnStep::CgroupLimit). Conflicts with
    /// [`from_command`](Self::from_command) and [`outlive_supervisor`](Self::outlive_supervisor).
    pub fn cgroup_limit(mut self, limit: CgroupLimit) -> Self {
        self.cgroup_limits.push(limit);
        self
    }

    /// Sets the nice value, from -20 (highest priority) to 19 (lowest).
    pub fn nice(mut self, nice: i32) -> Self {
        self.plan.nice = Some(nice);
        self
    }

    /// Sets the I/O priority.
    pub fn io_priority(mut self, priority: IoPriority) -> Self {
        self.plan.io_priority = Some(priority);
        self
    }

    /// Restricts the worker to these processors, numbered from 0; inherited by default. Further calls add processors.
    #[doc(alias = "sched_setaffinity")]
    #[doc(alias = "cpuset")]
    pub fn cpu_affinity(mut self, numbers: impl IntoIterator<Item = usize>) -> Self {
        for number in numbers {
            self.plan.allow_processor(number);
        }
        self
    }

    /// Sets the file mode creation mask of umask(2); inherited by default.
    pub fn umask(mut self, mask: u32) -> Self {
        self.plan.umask = Some(mask);
        self
    }
}

/// Restart, readiness, watchdog and stop.
impl WorkerSpec {
    /// Sets when the worker is restarted after it has ended by itself: a [`Restart`](crate::Restart), or a [`RestartPolicy`] with backoff,
    /// intensity and causes; by default never.
    ///
    /// Each incarnation has new pipes and a new control address, and receives the same file descriptors of yours. A start that can never
    /// succeed (the program does not exist, or may not be executed) is not retried.
    pub fn restart(mut self, policy: impl Into<RestartPolicy>) -> Self {
        self.restart = policy.into();
        self
    }

    /// Sets what makes the worker ready, and the time that it has for that; by default it is ready when it runs, or when it
    /// has answered the handshake of its [protocol](Self::control_on_stdio).
    pub fn ready(mut self, ready: Readiness) -> Self {
        if let Wanted::Newline(pass) = &ready.wanted {
            self.plan.add_fd(READINESS_PIPE, FdSource::OutputPipe, pass.clone());
        }
        self.ready_asked = Some(ready);
        self.settle_ready()
    }

    /// In a [group](crate::WorkerGroup): the worker starts only when `other`, a member of the same or of another group, meets `condition`.
    pub fn depends_on(mut self, other: impl Into<WorkerId>, condition: DependencyCondition) -> Self {
        self.dependencies.push((other.into(), condition));
        self
    }

    /// In a [group](crate::WorkerGroup) with an [automatic shutdown](crate::GroupPolicy::auto_shutdown): the end of the worker counts for
    /// that, whatever the cause. Rejected with [`Restart::Always`](crate::Restart::Always), with which it never ends for good.
    pub fn significant(mut self) -> Self {
        self.is_significant = true;
        self
    }

    /// Sets which signs of life the worker must give once it is ready, and how often; by default none.
    pub fn watchdog(mut self, watchdog: Watchdog) -> Self {
        self.watchdog = Some(watchdog);
        self
    }

    /// Sets how long each incarnation may run; by default without limit. At the limit
    /// [`RuntimeExceeded`](crate::EventKind::RuntimeExceeded) is reported and the worker is stopped, which counts as a failure for its
    /// restart policy, however it ends. The time is wall-clock time without the time for which the user has [stopped the
    /// program](crate::Supervisor::handle_signals).
    #[doc(alias = "RuntimeMaxSec")]
    #[doc(alias = "timeout")]
    pub fn runtime_max(mut self, limit: Duration) -> Self {
        self.runtime_max = Some(limit);
        self
    }

    /// Sets how the worker is stopped; by default the control notification `shutdown` and closed pipes, 1 s, SIGTERM, 5 s, SIGKILL, or what
    /// the protocol of [`control_on_stdio`](Self::control_on_stdio) says.
    #[doc(alias = "KillMode")]
    pub fn stop(mut self, policy: StopPolicy) -> Self {
        self.stop_asked = Some(policy);
        self.settle_stop()
    }
}

/// Messages and output.
impl WorkerSpec {
    /// Sets the framing of its messages; by default one a line.
    pub fn framing(mut self, framing: Framing) -> Self {
        self.framing = framing;
        self
    }

    /// Sets the largest message in bytes; by default 16 MiB, at most 1 GiB. A longer message is skipped and reported as a
    /// [`FrameError`](crate::events::FrameError) as soon as its length is known. This bounds the memory of one worker's incomplete message.
    #[doc(alias = "max_frame_length")]
    pub fn max_message_size(mut self, bytes: usize) -> Self {
        self.max_message_size = bytes;
        self
    }

    /// Validates every message when it arrives: what is not JSON is reported as an error at once and never as a
    /// [`Message`](crate::Message). By default the consumer finds errors when it parses.
    pub fn validate_json(mut self) -> Self {
        self.validate_json = true;
        self
    }

    /// Sets the capacity of the message pipe, rounded up by the kernel; by default 64 KiB. A larger pipe lets the worker run further ahead,
    /// and counts against its user's quota (`/proc/sys/fs/pipe-user-pages-soft`). If the kernel refuses, the pipe keeps its size.
    pub fn pipe_capacity(mut self, bytes: usize) -> Self {
        self.pipe_capacity = Some(bytes);
        self
    }

    /// Sets how many bytes of its messages, lines and other events may wait for the consumer before this worker alone is paused and its
    /// next restart delayed; by default 1 MiB. Each message counts 64 bytes more than its length.
    #[doc(alias = "high_water_mark")]
    pub fn window(mut self, bytes: usize) -> Self {
        self.window = bytes;
        self
    }

    /// Sets how long after the exit the end of its streams is waited for, if a descendant holds them open; by default 200 ms. The stream is
    /// then closed, and reported in [`Exit::leaked_streams`](crate::Exit::leaked_streams).
    #[doc(alias = "WaitDelay")]
    pub fn drain_timeout(mut self, timeout: Duration) -> Self {
        self.drain_timeout = timeout;
        self
    }

    /// Sets how many bytes of a captured standard error are kept for the exit; by default 8 KiB. Of longer output the first KiB (half of a
    /// limit below 2 KiB) and the last bytes are kept, with a line between them that says how many are missing: some programs print the
    /// reason of a failure first, others last.
    pub fn stderr_tail(mut self, bytes: usize) -> Self {
        self.stderr_tail = bytes;
        self
    }
}

impl MayBlock for WorkerSpec {
    fn may_block(&self) -> bool {
        self.plan.holds_user_values() || self.ready.as_ref().is_some_and(Readiness::holds_closure)
    }
}

/// A spec that is shared in the supervisor. Its last owner may be the loop or a spawner thread, so the user's closures and file descriptors
/// in it are dropped in the background.
pub(crate) type SharedSpec = Arc<DropInBackground<WorkerSpec>>;
