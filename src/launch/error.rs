//! Errors of a start: the spec is invalid, or a system call failed.

use crate::{
    sys::child_setup::{SetupFailure, SetupStep},
    text::{printable, printable_path},
};
use std::{fmt, io, path::Path};

/// An error in a spec, found before anything is started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpecError {
    /// The program name is empty.
    #[error("empty program name")]
    EmptyProgram,
    /// The text of a [`Pass`](crate::Pass) has no `{}`.
    #[error("{text:?} has no placeholder for the fd number: write {{}} where it belongs")]
    MissingPlaceholder {
        /// The text as it was given.
        text: Box<str>,
    },
    /// Two handles have the same fixed fd number.
    #[error("{first:?} and {second:?} are both fixed to fd {number}")]
    DuplicateFd {
        /// The fd number.
        number: i32,
        /// The name of the first handle; `messages` is the message pipe.
        first: Box<str>,
        /// The name of the second handle.
        second: Box<str>,
    },
    /// The fixed fd number belongs to a standard stream, or is negative.
    #[error("fd {number} is reserved: stdin, stdout and stderr set fds 0, 1 and 2")]
    ReservedFd {
        /// The fd number.
        number: i32,
    },
    /// Two pipes have the same name.
    #[error("duplicate pipe name {name:?}")]
    DuplicatePipe {
        /// The name; `messages` is the message pipe.
        name: Box<str>,
    },
    /// The spec names two sources of messages.
    #[error("duplicate message stream: messages come from their own pipe, stdout or stderr")]
    DuplicateMessageStream,
    /// The control pipe is passed as a path and cannot have a fixed fd number.
    #[error("control pipe cannot be fd {number}: it is passed as a path")]
    ControlFixedFd {
        /// The fd number.
        number: i32,
    },
    /// [`spawn_unsupervised`](crate::WorkerSpec::spawn_unsupervised) of a spec with a control connection, or with Node's channel: only a
    /// supervisor serves it.
    #[error("control connection requires a supervisor")]
    ControlUnsupported,
    /// The spec passes the path of the control pipe twice.
    #[error("duplicate control pipe")]
    DuplicateControl,
    /// A text contains a NUL byte.
    #[error("{what} contains a NUL byte")]
    NulByte {
        /// Which text.
        what: &'static str,
    },
    /// The name of an environment variable is empty or contains `=`.
    #[error("invalid environment variable name {name:?}")]
    InvalidVariable {
        /// The name as it was given.
        name: Box<str>,
    },
    /// A size is 0, or above its limit.
    #[error("invalid {what}: {bytes} bytes")]
    InvalidSize {
        /// Which size.
        what: &'static str,
        /// The size as it was given.
        bytes: usize,
    },
    /// The processor number is above the kernel's limit of 8191.
    #[error("invalid processor number {number}: above 8191")]
    InvalidProcessor {
        /// The number as it was given.
        number: usize,
    },
    /// The nice value is out of range.
    #[error("invalid nice value {nice}: not within -20 to 19")]
    InvalidNice {
        /// The value as it was given.
        nice: i32,
    },
    /// The level of the I/O priority is above 7.
    #[error("invalid I/O priority level {level}: not within 0 to 7")]
    InvalidIoPriority {
        /// The level as it was given.
        level: u8,
    },
    /// The pattern is not a regular expression.
    #[error("invalid regular expression {pattern:?}: {source}")]
    InvalidPattern {
        /// The pattern as it was given.
        pattern: Box<str>,
        /// Why it is invalid.
        source: PatternError,
    },
    /// Two settings contradict each other.
    #[error("`{}` conflicts with `{}`: {reason}", .settings[0], .settings[1])]
    Conflict {
        /// The methods that set them.
        settings: [&'static str; 2],
        /// Why they conflict, and what to do.
        reason: Box<str>,
    },
    /// The jobserver that this process was started with cannot be passed on.
    #[error("{reason}")]
    Jobserver {
        /// Why, as [`JobserverError`](crate::jobserver::JobserverError) says it.
        reason: Box<str>,
    },
    /// The signal number is not within 1 to 64.
    #[error("invalid signal number {signal}")]
    InvalidSignal {
        /// The number as it was given.
        signal: i32,
    },
}

/// Why a pattern is not a regular expression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(transparent)]
pub struct PatternError(pub(crate) regex_lite::Error);

impl From<SpecError> for io::Error {
    fn from(error: SpecError) -> Self {
        Self::new(io::ErrorKind::InvalidInput, error)
    }
}

/// A worker was not started. A failed start leaves no process and no file descriptor.
///
/// The kernel's reason is the [`source`](std::error::Error::source), and [`io_error`](Self::io_error).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpawnError {
    /// The spec is invalid.
    #[error("invalid worker spec: {0}")]
    Spec(#[from] SpecError),
    /// A step of the start failed.
    #[error("failed to start {}: {step}: {source}", printable(&**program))]
    Failed {
        /// The program as the spec names it.
        program: Box<str>,
        /// The step that failed.
        step: SpawnStep,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The supervisor is closed, or its event loop has ended.
    #[error("supervisor is closed or has ended")]
    SupervisorGone,
}

/// The step of a start that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SpawnStep {
    /// Creating pipes.
    Pipes,
    /// Starting the server of the control pipe.
    Control,
    /// Waiting for a process to [attach](crate::Supervisor::attach).
    Attach,
    /// Creating the socket for `sd_notify`.
    Notify,
    /// Starting the [guard](crate::guard), which kills the process trees of all workers after this process is killed. Workers with
    /// [`outlive_supervisor`](crate::WorkerSpec::outlive_supervisor) need none.
    Guard,
    /// Opening a file for standard input, output or error.
    Open(Box<Path>),
    /// Reserving a fixed fd number that is in use in this process. Only a user's own `Command` has this limit: its fds keep
    /// the parent's numbers.
    FixedFd(i32),
    /// clone(2) or clone3(2).
    Clone,
    /// clone3(2) into the worker's cgroup.
    Cgroup,
    /// Setting a [`CgroupLimit`](crate::limits::CgroupLimit): no cgroup of its own, or no such controller.
    CgroupLimit,
    /// Entering the working directory.
    CurrentDir(Box<Path>),
    /// Moving fds to their numbers in the child.
    Fds,
    /// Creating the process group or session.
    ProcessGroup,
    /// Opening a pseudo-terminal, or making it the controlling terminal. `EAGAIN`: there are as many as
    /// `/proc/sys/kernel/pty/max` allows.
    Terminal,
    /// Setting the parent-death signal.
    ParentDeathSignal,
    /// Setting a resource limit.
    Rlimit,
    /// Setting the nice value.
    Nice,
    /// Setting the I/O priority.
    IoPriority,
    /// Setting the CPU affinity.
    CpuAffinity,
    /// Finding and executing the program; with the search path if the program name has no slash.
    Exec(Option<Box<str>>),
    /// Executing a script whose interpreter, named in its `#!` line, does not exist; or, with `None`, an executable whose dynamic loader
    /// does not exist, since it was built for another C library or architecture.
    Interpreter(Option<Box<str>>),
    /// Executing a file without execute permission.
    NotExecutable,
    /// Executing a directory.
    Directory,
    /// Executing a file that the kernel cannot execute: a script without a `#!` line, an empty file, an executable of another
    /// architecture.
    Format,
    /// Any step of a user's own `Command`: std does not report which.
    Command,
}

impl fmt::Display for SpawnStep {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pipes => formatter.write_str("creating pipes"),
            Self::Control => formatter.write_str("starting control pipe server"),
            Self::Attach => formatter.write_str("attaching a process"),
            Self::Notify => formatter.write_str("creating sd_notify socket"),
            Self::Guard => formatter.write_str("starting process tree guard"),
            Self::Open(path) => write!(formatter, "opening {}", printable_path(path)),
            Self::FixedFd(number) => write!(formatter, "fd {number} is in use in this process"),
            Self::Clone => formatter.write_str("clone"),
            Self::Cgroup => formatter.write_str("clone into cgroup"),
            Self::CgroupLimit => formatter.write_str("setting cgroup limit"),
            Self::CurrentDir(path) => write!(formatter, "entering working directory {}", printable_path(path)),
            Self::Fds => formatter.write_str("moving fds to their numbers"),
            Self::ProcessGroup => formatter.write_str("creating process group"),
            Self::Terminal => formatter.write_str("opening pseudo-terminal"),
            Self::ParentDeathSignal => formatter.write_str("setting parent-death signal"),
            Self::Rlimit => formatter.write_str("setting resource limit"),
            Self::Nice => formatter.write_str("setting nice value"),
            Self::IoPriority => formatter.write_str("setting I/O priority"),
            Self::CpuAffinity => formatter.write_str("setting CPU affinity"),
            Self::Exec(None) => formatter.write_str("execve"),
            Self::Exec(Some(path)) => write!(formatter, "execve (searched in {})", printable(&**path)),
            Self::Interpreter(Some(name)) => {
                write!(formatter, "interpreter {} of its `#!` line not found", printable(&**name))
            }
            Self::Interpreter(None) => formatter.write_str("dynamic loader for which it was built not found"),
            Self::NotExecutable => formatter.write_str("file is not executable"),
            Self::Directory => formatter.write_str("it is a directory"),
            Self::Format => formatter.write_str("file has no `#!` line and is not an executable for this machine"),
            Self::Command => formatter.write_str("user's Command failed"),
        }
    }
}

impl SpawnError {
    pub(crate) fn failed(program: impl Into<Box<str>>, step: SpawnStep, source: io::Error) -> Self {
        Self::Failed { program: program.into(), step, source }
    }

    /// Returns the kernel's reason if a system call failed.
    pub fn io_error(&self) -> Option<&io::Error> {
        match self {
            Self::Failed { source, .. } => Some(source),
            Self::Spec(_) | Self::SupervisorGone => None,
        }
    }

    /// Returns the step that failed if a system call failed.
    pub fn step(&self) -> Option<&SpawnStep> {
        match self {
            Self::Failed { step, .. } => Some(step),
            Self::Spec(_) | Self::SupervisorGone => None,
        }
    }

    /// Whether a retry cannot help: the program does not exist or cannot be executed, the spec is invalid, or a limit is not
    /// available. A shortage of processes, memory or fds is temporary.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Spec(_) | Self::SupervisorGone => true,
            Self::Failed { source, .. } => match source.raw_os_error() {
                Some(errno) => matches!(
                    errno,
                    libc::ENOENT
                        | libc::EACCES
                        | libc::EPERM
                        | libc::ENOEXEC
                        | libc::E2BIG
                        | libc::ENOTDIR
                        | libc::EISDIR
                        | libc::ELOOP
                        | libc::ENAMETOOLONG
                        | libc::EINVAL
                ),
                // A cgroup limit that is not available; a text with a NUL byte.
                None => matches!(
                    source.kind(),
                    io::ErrorKind::Unsupported
                        | io::ErrorKind::InvalidInput
                        | io::ErrorKind::PermissionDenied
                        | io::ErrorKind::ReadOnlyFilesystem
                ),
            },
        }
    }

    /// Whether this process, its user or the machine has run out of fds, processes or memory (`EMFILE`, `ENFILE`, `EAGAIN`,
    /// `ENOMEM`, `ENOBUFS`). A restart that fails for this reason is retried after a pause of up to 5 s, without a limit on the
    /// number of attempts, and does not count against the [intensity](crate::RestartIntensity).
    pub fn is_shortage(&self) -> bool {
        self.io_error().and_then(io::Error::raw_os_error).is_some_and(|errno| {
            matches!(errno, libc::EMFILE | libc::ENFILE | libc::EAGAIN | libc::ENOMEM | libc::ENOBUFS)
        })
    }

    /// A failure to start the guard process.
    pub(crate) fn guard(source: io::Error) -> Self {
        Self::failed("pipewright-guard", SpawnStep::Guard, source)
    }

    /// The same reason, reported as a failure of the guard.
    pub(crate) fn of_guard(self) -> Self {
        match self {
            Self::Failed { source, .. } => Self::guard(source),
            Self::Spec(_) | Self::SupervisorGone => self,
        }
    }

    /// Whether the program's file is open for writing (`ETXTBSY`).
    pub(crate) fn is_busy(&self) -> bool {
        self.io_error().is_some_and(|error| error.raw_os_error() == Some(libc::ETXTBSY))
    }
}

impl From<SpawnError> for io::Error {
    fn from(error: SpawnError) -> Self {
        let kind = match &error {
            SpawnError::Spec(_) => io::ErrorKind::InvalidInput,
            SpawnError::Failed { source, .. } => source.kind(),
            SpawnError::SupervisorGone => io::ErrorKind::BrokenPipe,
        };
        Self::new(kind, error)
    }
}

/// Maps a failure in the child to the step of the public error.
pub(super) fn step_of(failure: SetupFailure, directory: Option<&Path>, exec: SpawnStep) -> SpawnStep {
    match failure.step {
        SetupStep::Clone => SpawnStep::Clone,
        SetupStep::Cgroup => SpawnStep::Cgroup,
        SetupStep::Directory => SpawnStep::CurrentDir(directory.unwrap_or(Path::new(".")).into()),
        SetupStep::Descriptors => SpawnStep::Fds,
        SetupStep::Group => SpawnStep::ProcessGroup,
        SetupStep::Terminal => SpawnStep::Terminal,
        SetupStep::DeathSignal => SpawnStep::ParentDeathSignal,
        SetupStep::Limit => SpawnStep::Rlimit,
        SetupStep::Nice => SpawnStep::Nice,
        SetupStep::IoPriority => SpawnStep::IoPriority,
        SetupStep::Processors => SpawnStep::CpuAffinity,
        SetupStep::Exec => exec,
    }
}
