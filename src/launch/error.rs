//! Why a worker could not be started: the recipe was wrong, or the system refused a step.

use crate::{
    sys::child_setup::{Failure, Step},
    text::{printable, printable_path},
};
use std::{fmt, io, path::Path};

/// A recipe that can never work, found before anything is started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpecError {
    /// The name of the program is empty.
    #[error("the program has no name")]
    EmptyProgram,
    /// A [`Pass`](crate::Pass) text without a `{}`.
    #[error("{text:?} has no place for the handle's number: write {{}} where it belongs")]
    MissingPlaceholder {
        /// The text as it was given.
        text: Box<str>,
    },
    /// Two handles are to have the same number.
    #[error("{first:?} and {second:?} are both to be number {number}: each handle needs its own")]
    DuplicateFd {
        /// The number that both were given.
        number: i32,
        /// The name of the one; `messages` is the message pipe's.
        first: Box<str>,
        /// The name of the other.
        second: Box<str>,
    },
    /// A handle is to have a number that belongs to standard input, output or error, or none at all.
    #[error("a handle cannot be number {number}: 0, 1 and 2 are set by stdin, stdout and stderr")]
    ReservedFd {
        /// The number that was given.
        number: i32,
    },
    /// Two pipes have the same name.
    #[error("two pipes are named {name:?}")]
    DuplicatePipe {
        /// The name of both; `messages` is the message pipe's.
        name: Box<str>,
    },
    /// The messages are to come from two places.
    #[error("messages come from one place: a pipe of their own, stdout or stderr")]
    DuplicateMessageStream,
    /// The address of the control pipe is a text, and has no number.
    #[error("the control pipe has an address and cannot be number {number}")]
    ControlFixedFd {
        /// The number that was given.
        number: i32,
    },
    /// A process started by hand cannot have a control pipe.
    #[error("a process started by hand has no control pipe: its server is a supervisor's")]
    ControlUnsupported,
    /// Two places for the address of the control pipe.
    #[error("the address of the control pipe is told twice")]
    DuplicateControl,
    /// A text for the kernel with a zero byte in it.
    #[error("{what} contains a zero byte")]
    NulByte {
        /// Which of the recipe's texts.
        what: &'static str,
    },
    /// An environment variable without a name, or with `=` in it.
    #[error("{name:?} cannot be the name of an environment variable")]
    InvalidVariable {
        /// The name as it was given.
        name: Box<str>,
    },
    /// A size that leaves no room for a single byte, or is beyond what can be counted.
    #[error("{what} cannot be {bytes} bytes")]
    InvalidSize {
        /// Which size.
        what: &'static str,
        /// What it was set to.
        bytes: usize,
    },
    /// A processor number beyond what any kernel has.
    #[error("there is no processor {number}")]
    InvalidProcessor {
        /// The number that was given.
        number: usize,
    },
    /// A nice value that there is not.
    #[error("there is no nice value {nice}: -20 to 19")]
    InvalidNice {
        /// The value that was given.
        nice: i32,
    },
    /// A level of I/O priority beyond 7.
    #[error("there is no I/O priority of level {level}: 0 to 7")]
    InvalidIoPriority {
        /// The level that was given.
        level: u8,
    },
    /// A regular expression that is none.
    #[error("{pattern:?} is not a regular expression")]
    InvalidPattern {
        /// As it was given.
        pattern: Box<str>,
    },
    /// Two settings that cannot work together.
    #[error("`{}` and `{}` do not fit each other: {reason}", .settings[0], .settings[1])]
    Conflict {
        /// Which.
        settings: [&'static str; 2],
        /// Why not, and what to do.
        reason: Box<str>,
    },
    /// A signal number that the kernel does not have.
    #[error("there is no signal {signal}")]
    InvalidSignal {
        /// The number that was given.
        signal: i32,
    },
}

impl From<SpecError> for io::Error {
    fn from(error: SpecError) -> Self {
        Self::new(io::ErrorKind::InvalidInput, error)
    }
}

/// A worker that was not started. Nothing is left of the attempt: no process, no descriptor.
///
/// The kernel's reason is the [`source`](std::error::Error::source), and [`io_error`](Self::io_error).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpawnError {
    /// The recipe is wrong.
    #[error("the worker's spec is wrong: {0}")]
    Spec(#[from] SpecError),
    /// The system refused.
    #[error("failed to start {}: {step}: {source}", printable(&**program))]
    Failed {
        /// The program as the spec names it.
        program: Box<str>,
        /// What was being done.
        step: SpawnStep,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The supervisor was closed, or its threads have ended.
    #[error("the supervisor takes no more workers: it was closed, or has ended")]
    SupervisorGone,
}

/// What was being done when a worker could not be started.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SpawnStep {
    /// Making its pipes.
    Pipes,
    /// Starting the server of the control pipe.
    Control,
    /// Making the socket for its `sd_notify`.
    Notify,
    /// Starting the [guard](crate::guard), which ends the trees of all workers when this process is killed. Workers that may
    /// [survive](crate::WorkerSpec::outlive_supervisor) need none.
    Guard,
    /// Opening a file for its standard input, output or error.
    Open(Box<Path>),
    /// Placing a handle at a number that is in use in this process. Only a user's own `Command` has this limit: it keeps the
    /// parent's numbers.
    FixedFd(i32),
    /// Making the process.
    Clone,
    /// Making the process in its cgroup.
    Cgroup,
    /// Limiting its tree, for which it needs a cgroup and the controllers in it.
    CgroupLimit,
    /// Moving into its working directory.
    CurrentDir(Box<Path>),
    /// Moving its descriptors to their numbers.
    Fds,
    /// Making its process group or session.
    ProcessGroup,
    /// Asking for a signal at the parent's death.
    ParentDeathSignal,
    /// Setting a resource limit.
    Rlimit,
    /// Setting its priority.
    Nice,
    /// Setting its I/O priority.
    IoPriority,
    /// Binding it to processors.
    CpuAffinity,
    /// Finding and running the program; with the search path where it was searched for.
    Exec(Option<Box<str>>),
    /// Running a file whose first line names an interpreter that is not there.
    Interpreter,
    /// Running a file that the kernel does not run: a script without a `#!` line, an empty file, an executable of another machine.
    Format,
    /// Anything that a user's own `Command` does: std does not tell which step failed.
    Command,
}

impl fmt::Display for SpawnStep {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pipes => formatter.write_str("creating its pipes"),
            Self::Control => formatter.write_str("starting the server of its control pipe"),
            Self::Notify => formatter.write_str("creating the socket for its sd_notify"),
            Self::Guard => formatter.write_str("starting the guard of its process tree"),
            Self::Open(path) => write!(formatter, "opening {}", printable_path(path)),
            Self::FixedFd(number) => write!(formatter, "descriptor {number} is in use in this process"),
            Self::Clone => formatter.write_str("clone"),
            Self::Cgroup => formatter.write_str("clone into its cgroup"),
            Self::CgroupLimit => formatter.write_str("limiting its process tree"),
            Self::CurrentDir(path) => write!(formatter, "entering its working directory {}", printable_path(path)),
            Self::Fds => formatter.write_str("moving its descriptors to their numbers"),
            Self::ProcessGroup => formatter.write_str("creating its process group"),
            Self::ParentDeathSignal => formatter.write_str("setting the signal for the death of its parent"),
            Self::Rlimit => formatter.write_str("setting a resource limit"),
            Self::Nice => formatter.write_str("setting its priority"),
            Self::IoPriority => formatter.write_str("setting its I/O priority"),
            Self::CpuAffinity => formatter.write_str("binding it to its processors"),
            Self::Exec(None) => formatter.write_str("execve"),
            Self::Exec(Some(path)) => write!(formatter, "execve (searched in {})", printable(&**path)),
            Self::Interpreter => formatter.write_str("the interpreter that its first line names is missing"),
            Self::Format => formatter.write_str("the file has no `#!` line and is not an executable of this machine"),
            Self::Command => formatter.write_str("its command failed"),
        }
    }
}

impl SpawnError {
    pub(crate) fn failed(program: impl Into<Box<str>>, step: SpawnStep, source: io::Error) -> Self {
        Self::Failed { program: program.into(), step, source }
    }

    /// The kernel's reason, where it was the kernel that refused.
    pub fn io_error(&self) -> Option<&io::Error> {
        match self {
            Self::Failed { source, .. } => Some(source),
            Self::Spec(_) | Self::SupervisorGone => None,
        }
    }

    /// The step that failed, where it was the kernel that refused.
    pub fn step(&self) -> Option<&SpawnStep> {
        match self {
            Self::Failed { step, .. } => Some(step),
            Self::Spec(_) | Self::SupervisorGone => None,
        }
    }

    /// Whether trying again cannot help: the program is not there or cannot be run, the recipe is wrong, or a limit is not to be
    /// had. Running out of processes, memory or descriptors passes; these do not.
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
                // A limit that is not to be had here; a text with a zero byte in it.
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

    /// Whether this process, its user or the machine is short of something that others give back: descriptors, processes or memory
    /// (`EMFILE`, `ENFILE`, `EAGAIN`, `ENOMEM`, `ENOBUFS`). A restart that fails for that reason is tried again after a pause of up
    /// to 5 s, as often as it takes, and counts against no [intensity](crate::RestartIntensity).
    pub fn is_shortage(&self) -> bool {
        self.io_error().and_then(io::Error::raw_os_error).is_some_and(|errno| {
            matches!(errno, libc::EMFILE | libc::ENFILE | libc::EAGAIN | libc::ENOMEM | libc::ENOBUFS)
        })
    }

    /// Of the process that ends all trees when the host is killed.
    pub(crate) fn guard(source: io::Error) -> Self {
        Self::failed("pipewright-guard", SpawnStep::Guard, source)
    }

    /// The same reason, of the guard.
    pub(crate) fn of_guard(self) -> Self {
        match self {
            Self::Failed { source, .. } => Self::guard(source),
            Self::Spec(_) | Self::SupervisorGone => self,
        }
    }

    /// The program's file is open for writing.
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

/// A child's failure in the words of the user's recipe.
pub(super) fn step_of(failure: Failure, directory: Option<&Path>, exec: SpawnStep) -> SpawnStep {
    match failure.step {
        Step::Clone => SpawnStep::Clone,
        Step::Cgroup => SpawnStep::Cgroup,
        Step::Directory => SpawnStep::CurrentDir(directory.unwrap_or(Path::new(".")).into()),
        Step::Descriptors => SpawnStep::Fds,
        Step::Group => SpawnStep::ProcessGroup,
        Step::DeathSignal => SpawnStep::ParentDeathSignal,
        Step::Limit => SpawnStep::Rlimit,
        Step::Nice => SpawnStep::Nice,
        Step::IoPriority => SpawnStep::IoPriority,
        Step::Processors => SpawnStep::CpuAffinity,
        Step::Exec => exec,
    }
}
