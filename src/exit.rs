//! How a process ended.

use crate::text::printable;
use std::{borrow::Cow, fmt, time::Duration};

/// The most characters of standard error in the text of an error.
const LAST_WORDS_MAX: usize = 200;
/// In the line of standard error by which V8 says that it is out of memory.
const HEAP_EXHAUSTED: &str = "heap out of memory";

/// How a process ended, and what is known about it.
///
/// `Display` writes the status as a phrase: `exit code 3`, `killed by signal 9 (SIGKILL)`. A cause that was not requested follows:
/// `killed by signal 15 (SIGTERM), stopped at its time limit`. So does the memory limit of its tree, if the kernel has killed a process
/// there: [`oom_killed`](Self::oom_killed).
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Exit {
    /// The exit status.
    pub status: ExitStatus,
    /// What ended the process.
    pub cause: ExitCause,
    /// With [`ExitCause::Readiness`]: why it was not ready, the text of the [`ReadinessError`](crate::events::ReadinessError).
    pub not_ready: Option<Box<str>>,
    /// Resource usage; `None` if other code reaped the process, which loses it.
    pub usage: Option<Usage>,
    /// Time from the return of spawn to the reaping. For a short-lived process it can be shorter than its CPU time.
    pub duration: Duration,
    /// The beginning and the end of standard error, if a supervisor captures it, with a line such as `[52311 bytes omitted]` between them.
    /// All of it if it is no longer than [`stderr_tail`](crate::WorkerSpec::stderr_tail) allows. Empty otherwise, and for a process
    /// spawned without a supervisor.
    pub stderr_tail: Box<[u8]>,
    /// Streams that another process still held open after the process had exited and the drain timeout had passed.
    pub leaked_streams: Vec<LeakedStream>,
    /// Whether the kernel killed a process of the tree at the tree's [memory limit](crate::limits::CgroupLimit).
    pub oom_killed: bool,
    /// Descendants that outlived the process: killed (the default) or only reported, as
    /// [`WorkerSpec::survivors`](crate::WorkerSpec::survivors) specifies. [`Survivor::alive`] tells whether one was still running when
    /// the exit was reported.
    pub survivors: Vec<Survivor>,
    /// The number of processes that could not be attributed: they have the worker's real uid, did not start before it, belong to no
    /// other known worker, and neither their environment nor their file descriptors could be read. Each may be a survivor that was not
    /// found, but most belong to other programs of the user, such as key agents, so `Display` omits them. `Some(0)`: every
    /// candidate was inspected.
    ///
    /// `None`: unknown. `/proc` is missing or mounted with `hidepid`, the inspection timed out, or there was none: with
    /// [`SurvivorPolicy::Ignore`](crate::SurvivorPolicy::Ignore), for a process spawned without a supervisor, and for one that did not
    /// end.
    pub uninspected: Option<u32>,
}

impl fmt::Debug for Exit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            status,
            cause,
            not_ready,
            usage,
            duration,
            stderr_tail: _,
            leaked_streams,
            oom_killed,
            survivors,
            uninspected,
        } = self;
        formatter
            .debug_struct("Exit")
            .field("status", status)
            .field("cause", cause)
            .field("not_ready", not_ready)
            .field("usage", usage)
            .field("duration", duration)
            .field("stderr_tail", &String::from_utf8_lossy(&self.stderr_tail))
            .field("leaked_streams", leaked_streams)
            .field("oom_killed", oom_killed)
            .field("survivors", survivors)
            .field("uninspected", uninspected)
            .finish()
    }
}

/// What ended a process: the first decision to stop or kill it, if one was made before it exited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ExitCause {
    /// It exited by itself, or a signal ended it that the supervisor has not sent: of the kernel, of another process, or of
    /// [`Worker::signal`](crate::Worker::signal). Also for a worker that was never started, and for a process without a supervisor.
    Itself,
    /// A stop was requested: of the worker by [`stop`](crate::Worker::stop) or [`stop_timeout`](crate::Worker::stop_timeout), of its group
    /// ([`stop`](crate::WorkerGroup::stop), [`remove`](crate::WorkerGroup::remove)), or of all workers
    /// ([`stop_all`](crate::Supervisor::stop_all)).
    Stop,
    /// A restart was requested, of the worker or of its group.
    Restart,
    /// It was killed by [`Worker::kill`](crate::Worker::kill), or because its file descriptors could not be watched, which a
    /// [`Warning`](crate::events::Warning) reports.
    Kill,
    /// Its [`runtime_max`](crate::WorkerSpec::runtime_max).
    TimeLimit,
    /// It was not [ready](crate::WorkerSpec::ready) in time, or could not become ready.
    Readiness,
    /// Its [watchdog](crate::WorkerSpec::watchdog).
    Watchdog,
    /// Its group stopped it: a sibling has failed or ended, or the group gave up.
    Group,
    /// The [deadline](crate::pool::JobSpec::deadline) of its job.
    Deadline,
    /// Its queue stopped it: another job has failed ([`OnFailure::StopRunning`](crate::pool::OnFailure::StopRunning)).
    FailFast,
    /// The supervisor ended: by [`shutdown`](crate::Supervisor::shutdown), by a signal that it
    /// [handles](crate::Supervisor::handle_signals), or because it was dropped.
    SupervisorEnd,
}

impl ExitCause {
    /// The phrase for a cause that the user has not requested.
    fn phrase(self) -> Option<&'static str> {
        match self {
            Self::TimeLimit => Some("stopped at its time limit"),
            Self::Readiness => Some("stopped because it was not ready"),
            Self::Watchdog => Some("stopped by its watchdog"),
            Self::Group => Some("stopped with its group"),
            Self::Deadline => Some("stopped at its deadline"),
            Self::FailFast => Some("stopped since another job had failed"),
            Self::Itself | Self::Stop | Self::Restart | Self::Kill | Self::SupervisorEnd => None,
        }
    }
}

/// Exit status of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExitStatus {
    /// Returned from `main` or called `exit`; the kernel keeps the lowest 8 bits.
    Code(i32),
    /// Terminated by a signal.
    Signal {
        /// The signal number.
        signal: i32,
        /// Whether the kernel wrote a core dump.
        core_dumped: bool,
    },
    /// Did not end within 5 s of SIGKILL, most likely because it is in an uninterruptible sleep in the kernel. It is no longer waited
    /// for; what it holds stays in use.
    Unkillable,
    /// Did not end: the kernel refused SIGKILL with `EPERM`, since the process now runs as another user (setuid program, sudo). It is
    /// no longer waited for after 5 s, and is reaped when it ends.
    KillRefused,
    /// Never started: a member of a group that was stopped, or whose dependency has failed; or no process was
    /// [attached](crate::Supervisor::attach).
    NeverStarted,
    /// Ended, but other code in this process took the status (`waitpid(-1)`, or `SIGCHLD` is ignored). For an
    /// [attached](crate::Supervisor::attach) process its own parent takes it; since Linux 6.15 it is known all the same.
    Unknown,
    /// Did not end: an [attached](crate::Supervisor::attach) process was to stop, has not done so in time, and is not killed. Its control
    /// connection is closed.
    Detached,
}

/// Resource usage of a process and of the descendants that it waited for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// CPU time in user mode.
    pub user: Duration,
    /// CPU time in kernel mode.
    pub system: Duration,
    /// Maximum resident set size in bytes. The kernel counts from before the exec: it is never less than what this process held when it
    /// spawned the child.
    pub max_rss_bytes: u64,
    /// Page faults without I/O.
    pub minor_faults: u64,
    /// Page faults that waited for I/O.
    pub major_faults: u64,
    /// Voluntary context switches.
    pub voluntary_switches: u64,
    /// Involuntary context switches.
    pub involuntary_switches: u64,
}

/// A stream of an exited process that another process still holds open, mostly a descendant left in the background.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeakedStream {
    /// The stream: `messages`, `stdout` or `stderr`.
    pub stream: Box<str>,
}

/// A descendant of a worker that outlived it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Survivor {
    /// The PID.
    pub pid: u32,
    /// The command line, with spaces between the arguments, at most 256 bytes, made [`printable`].
    pub command: Box<str>,
    /// The worker's streams that it still held open: `messages`, `stdout`, `stderr`.
    pub holds: Vec<Box<str>>,
    /// Whether it was still running when the exit was reported: it was not to be killed, or SIGKILL was refused (`EPERM`) or did not
    /// end it within 5 s.
    pub alive: bool,
}

impl Exit {
    /// With this status, and nothing else known.
    pub(crate) fn of(status: ExitStatus) -> Self {
        Self {
            status,
            cause: ExitCause::Itself,
            not_ready: None,
            usage: None,
            duration: Duration::ZERO,
            stderr_tail: Box::default(),
            leaked_streams: Vec::new(),
            oom_killed: false,
            survivors: Vec::new(),
            uninspected: None,
        }
    }

    /// Whether the process exited with code 0.
    pub fn success(&self) -> bool {
        self.status == ExitStatus::Code(0)
    }

    /// The exit code, if the process exited by itself.
    pub fn code(&self) -> Option<i32> {
        match self.status {
            ExitStatus::Code(code) => Some(code),
            ExitStatus::Signal { .. }
            | ExitStatus::Unkillable
            | ExitStatus::KillRefused
            | ExitStatus::NeverStarted
            | ExitStatus::Unknown
            | ExitStatus::Detached => None,
        }
    }

    /// The number of the signal that terminated the process, if one did.
    pub fn signal(&self) -> Option<i32> {
        match self.status {
            ExitStatus::Signal { signal, .. } => Some(signal),
            ExitStatus::Code(_)
            | ExitStatus::Unkillable
            | ExitStatus::KillRefused
            | ExitStatus::NeverStarted
            | ExitStatus::Unknown
            | ExitStatus::Detached => None,
        }
    }

    /// The exit and, unless it was requested, the last line of standard error: in an error, the only lines that its reader sees.
    pub(crate) fn with_last_words(&self) -> impl fmt::Display {
        let is_requested = self.cause != ExitCause::Itself && self.cause.phrase().is_none();
        let text = if is_requested { Cow::Borrowed("") } else { self.stderr_text() };
        let mut lines = text.lines().rev().map(str::trim);
        let last = lines.clone().find(|line| !line.is_empty());
        // Node prints its own stack after the reason.
        match lines.find(|line| line.contains(HEAP_EXHAUSTED)).or(last) {
            None => self.to_string(),
            Some(line) => {
                let place = if Some(line) == last { "its last line on stderr" } else { "on stderr" };
                let shown: String = line.chars().take(LAST_WORDS_MAX).collect();
                let omitted = if shown.len() < line.len() { "..." } else { "" };
                format!("{self}; {place}: {shown}{omitted}")
            }
        }
    }

    /// [`stderr_tail`](Self::stderr_tail) as text, made [`printable`] by line. Line feeds and tabs stay; other control characters,
    /// terminal colours included, are escaped, and invalid UTF-8 is replaced by `�`.
    pub fn stderr_text(&self) -> Cow<'_, str> {
        printable(&self.stderr_tail).lines().to_string().into()
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.status.fmt(f)?;
        if self.oom_killed {
            f.write_str(", out of memory: its tree reached its memory limit")?;
        }
        // Not the uninspected processes: most of them belong to other programs of the user.
        match (self.cause.phrase(), &self.not_ready) {
            (Some(_), Some(reason)) => write!(f, ", stopped: {reason}"),
            (Some(phrase), None) => write!(f, ", {phrase}"),
            (None, _) => Ok(()),
        }
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal { signal, core_dumped } => {
                write!(f, "killed by signal {signal}")?;
                if let Some(name) = signal_name(signal) {
                    write!(f, " ({name})")?;
                }
                if core_dumped {
                    f.write_str(", core dumped")?;
                }
                Ok(())
            }
            Self::Unkillable => f.write_str("still there after SIGKILL"),
            Self::KillRefused => f.write_str("still there: SIGKILL was refused (EPERM)"),
            Self::NeverStarted => f.write_str("never started"),
            Self::Unknown => f.write_str("ended, but its exit status was taken by others"),
            Self::Detached => f.write_str("still there: detached"),
        }
    }
}

impl fmt::Display for Survivor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({}) was left running", self.pid, printable(&*self.command))?;
        if !self.holds.is_empty() {
            write!(f, ", with {} open", self.holds.join(" and "))?;
        }
        f.write_str(if self.alive { "" } else { "; it was killed" })
    }
}

impl fmt::Display for LeakedStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is still held open by another process", self.stream)
    }
}

/// Numbered as on Linux on x86-64 and `AArch64`. Real-time signals have no names.
const SIGNALS: [&str; 31] = [
    "SIGHUP",
    "SIGINT",
    "SIGQUIT",
    "SIGILL",
    "SIGTRAP",
    "SIGABRT",
    "SIGBUS",
    "SIGFPE",
    "SIGKILL",
    "SIGUSR1",
    "SIGSEGV",
    "SIGUSR2",
    "SIGPIPE",
    "SIGALRM",
    "SIGTERM",
    "SIGSTKFLT",
    "SIGCHLD",
    "SIGCONT",
    "SIGSTOP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGXCPU",
    "SIGXFSZ",
    "SIGVTALRM",
    "SIGPROF",
    "SIGWINCH",
    "SIGIO",
    "SIGPWR",
    "SIGSYS",
];

fn signal_name(signal: i32) -> Option<&'static str> {
    let index = usize::try_from(signal).ok()?.checked_sub(1)?;
    SIGNALS.get(index).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(status: ExitStatus) -> Exit {
        Exit { duration: Duration::from_millis(5), stderr_tail: Box::from(*b"bad: \xff"), ..Exit::of(status) }
    }

    #[test]
    fn display_describes_the_exit() {
        let killed = |signal, core_dumped| exit(ExitStatus::Signal { signal, core_dumped }).to_string();
        assert_eq!(exit(ExitStatus::Code(3)).to_string(), "exit code 3");
        assert_eq!(killed(11, true), "killed by signal 11 (SIGSEGV), core dumped");
        assert_eq!(killed(9, false), "killed by signal 9 (SIGKILL)");
        assert_eq!(killed(31, false), "killed by signal 31 (SIGSYS)");
        assert_eq!(killed(40, false), "killed by signal 40");
        assert_eq!(killed(0, false), "killed by signal 0");
        assert_eq!(killed(i32::MIN, false), format!("killed by signal {}", i32::MIN));
        assert_eq!(exit(ExitStatus::KillRefused).to_string(), "still there: SIGKILL was refused (EPERM)");
        assert_eq!(Exit { uninspected: Some(2), ..exit(ExitStatus::Code(0)) }.to_string(), "exit code 0");
        assert_eq!(exit(ExitStatus::Unknown).to_string(), "ended, but its exit status was taken by others");
        let oom = Exit { oom_killed: true, ..exit(ExitStatus::Signal { signal: 9, core_dumped: false }) };
        assert_eq!(oom.to_string(), "killed by signal 9 (SIGKILL), out of memory: its tree reached its memory limit");
        let limited =
            Exit { cause: ExitCause::TimeLimit, ..exit(ExitStatus::Signal { signal: 15, core_dumped: false }) };
        assert_eq!(limited.to_string(), "killed by signal 15 (SIGTERM), stopped at its time limit");
        assert_eq!(Exit { cause: ExitCause::Stop, ..exit(ExitStatus::Code(0)) }.to_string(), "exit code 0");
        let hostile = Survivor { pid: 7, command: "\x1b[2J\nroot# ".into(), holds: Vec::new(), alive: false };
        assert_eq!(hostile.to_string(), "process 7 (\\u{1b}[2J\\nroot# ) was left running; it was killed");
        let survivor =
            Survivor { pid: 7, command: "sleep 9".into(), holds: vec!["stdout".into(), "stderr".into()], alive: true };
        assert_eq!(survivor.to_string(), "process 7 (sleep 9) was left running, with stdout and stderr open");
        assert_eq!(
            LeakedStream { stream: "stdout".into() }.to_string(),
            "stdout is still held open by another process"
        );
    }

    #[test]
    fn only_exit_code_zero_is_success() {
        let signal = ExitStatus::Signal { signal: 15, core_dumped: false };
        let facts = |status| (exit(status).success(), exit(status).code(), exit(status).signal());
        assert_eq!(facts(ExitStatus::Code(0)), (true, Some(0), None));
        assert_eq!(facts(ExitStatus::Code(1)), (false, Some(1), None));
        assert_eq!(facts(signal), (false, None, Some(15)));
        assert_eq!(facts(ExitStatus::Unknown), (false, None, None));
        assert_eq!(exit(signal).stderr_text(), "bad: \u{fffd}");
    }
}
