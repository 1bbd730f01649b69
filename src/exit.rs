//! How a process ended: facts that every floor speaks of.

use crate::text::printable;
use std::{borrow::Cow, fmt, time::Duration};

/// All that is known of a process that has ended.
///
/// Its `Display` says how it ended, as a sentence wants it: `exit code 3`, `killed by signal 9 (SIGKILL)`.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Exit {
    /// How the process ended.
    pub status: ExitStatus,
    /// What the process used; `None` when somebody else reaped it, and its use of the machine is lost.
    pub usage: Option<Usage>,
    /// Time from the return of the spawn until the process was reaped: a short life can be shorter here than its processor time.
    pub duration: Duration,
    /// The first and the last bytes of its standard error, when a supervisor captures it, and between them a line such as
    /// `[52311 bytes omitted]`; all of it where it is no longer than [`stderr_tail`](crate::WorkerSpec::stderr_tail) allows. Empty
    /// otherwise, and for a process started by hand.
    pub stderr_tail: Box<[u8]>,
    /// Streams that somebody else still held open after the process had ended and the drain time was over.
    pub leaked_streams: Vec<LeakedStream>,
    /// The kernel has killed one of its tree since the tree's [memory limit](crate::limits::CgroupLimit) was reached.
    pub oom_killed: bool,
    /// Processes of its tree that outlived it, as [`WorkerSpec::survivors`](crate::WorkerSpec::survivors) says: killed (the default)
    /// or only reported. [`Survivor::alive`] tells which of them were still running when the exit was reported.
    pub survivors: Vec<Survivor>,
    /// How many processes could not be attributed: they have the worker's real uid, started no earlier than it, belong to no other
    /// known worker, and neither their environment nor their descriptors could be read. Each of them may be a survivor that was
    /// not found. `Some(0)`: every candidate was inspected.
    ///
    /// `None`: unknown. `/proc` is missing or mounted with `hidepid`, the inspection did not end in time, or none was made:
    /// [`SurvivorPolicy::Ignore`](crate::SurvivorPolicy::Ignore), a process started by hand, and one that did not end.
    pub uninspected: Option<u32>,
}

impl fmt::Debug for Exit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { status, usage, duration, stderr_tail: _, leaked_streams, oom_killed, survivors, uninspected } = self;
        formatter
            .debug_struct("Exit")
            .field("status", status)
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

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExitStatus {
    /// It returned from `main` or called `exit`; the kernel keeps the lowest 8 bits.
    Code(i32),
    /// A signal ended it.
    Signal {
        /// The number of the signal.
        signal: i32,
        /// Whether the kernel also wrote a core dump.
        core_dumped: bool,
    },
    /// It did not end: SIGKILL was sent, and after 5 s it was still there, most likely in an uninterruptible sleep in the
    /// kernel. It is given up; what it held is its own.
    Unkillable,
    /// It did not end: the kernel refused SIGKILL with `EPERM`, since the process runs as another user by now (a setuid program,
    /// sudo). It is given up after 5 s, and is reaped when it ends.
    KillRefused,
    /// It was never started: a member of a group that was stopped, or of which what it waits for has failed.
    NeverStarted,
    /// It ended, but somebody else in this program waited for it and took the status away (`waitpid(-1)`, or an ignored
    /// `SIGCHLD`).
    Unknown,
}

/// What a process and the descendants it waited for used of the machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// Time on a processor in its own code.
    pub user: Duration,
    /// Time on a processor in the kernel, on its behalf.
    pub system: Duration,
    /// The most memory it held at one time, in bytes. The kernel counts from before its exec: never less than what *we* held when
    /// it was started, however it was.
    pub max_rss_bytes: u64,
    /// Page faults that needed no disk.
    pub minor_faults: u64,
    /// Page faults that had to wait for a disk.
    pub major_faults: u64,
    /// How often it gave up the processor to wait for something.
    pub voluntary_switches: u64,
    /// How often the processor was taken from it.
    pub involuntary_switches: u64,
}

/// A stream of an ended process that somebody else still holds open: mostly a grandchild left in the background.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeakedStream {
    /// Which stream: `messages`, `stdout`, `stderr`.
    pub stream: Box<str>,
}

/// A process that a worker had started, directly or not, and that outlived it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Survivor {
    /// Its process id.
    pub pid: u32,
    /// Its command line, words separated by spaces, at most 256 bytes of it, [`printable`].
    pub command: Box<str>,
    /// Which of the worker's streams it still held open: `messages`, `stdout`, `stderr`.
    pub holds: Vec<Box<str>>,
    /// Whether it was running when the exit was reported: its spec leaves it alive, or SIGKILL was refused (`EPERM`) or has not
    /// ended it within 5 s.
    pub alive: bool,
}

impl Exit {
    /// Of one of which nothing else is known.
    pub(crate) fn of(status: ExitStatus) -> Self {
        Self {
            status,
            usage: None,
            duration: Duration::ZERO,
            stderr_tail: Box::default(),
            leaked_streams: Vec::new(),
            oom_killed: false,
            survivors: Vec::new(),
            uninspected: None,
        }
    }

    /// Whether the process ended by itself with code 0.
    pub fn success(&self) -> bool {
        self.status == ExitStatus::Code(0)
    }

    /// The exit code, if it ended by itself.
    pub fn code(&self) -> Option<i32> {
        match self.status {
            ExitStatus::Code(code) => Some(code),
            ExitStatus::Signal { .. }
            | ExitStatus::Unkillable
            | ExitStatus::KillRefused
            | ExitStatus::NeverStarted
            | ExitStatus::Unknown => None,
        }
    }

    /// The number of the signal that ended it, if one did.
    pub fn signal(&self) -> Option<i32> {
        match self.status {
            ExitStatus::Signal { signal, .. } => Some(signal),
            ExitStatus::Code(_)
            | ExitStatus::Unkillable
            | ExitStatus::KillRefused
            | ExitStatus::NeverStarted
            | ExitStatus::Unknown => None,
        }
    }

    /// What is kept of its standard error as [`printable`] lines. Line feeds and tabs stay; other control
    /// characters, colours too, are escaped, and what is not UTF-8 is replaced by `�`.
    /// [`stderr_tail`](Self::stderr_tail) has the bytes as they were written.
    pub fn stderr_text(&self) -> Cow<'_, str> {
        printable(&self.stderr_tail).lines().to_string().into()
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.status.fmt(f)?;
        match self.uninspected {
            None | Some(0) => Ok(()),
            Some(1) => f.write_str(", 1 process could not be inspected"),
            Some(count) => write!(f, ", {count} processes could not be inspected"),
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
            Self::Unknown => f.write_str("ended, but somebody else took its exit status"),
        }
    }
}

impl fmt::Display for Survivor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({}) was left running", self.pid, printable(&*self.command))?;
        if !self.holds.is_empty() {
            write!(f, ", with {} open", self.holds.join(" and "))?;
        }
        Ok(())
    }
}

impl fmt::Display for LeakedStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is still held open by another process", self.stream)
    }
}

/// Linux on x86-64 and `AArch64` numbers them so. Real-time signals have no names of their own.
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
    fn texts_say_how_it_ended() {
        let killed = |signal, core_dumped| exit(ExitStatus::Signal { signal, core_dumped }).to_string();
        assert_eq!(exit(ExitStatus::Code(3)).to_string(), "exit code 3");
        assert_eq!(killed(11, true), "killed by signal 11 (SIGSEGV), core dumped");
        assert_eq!(killed(9, false), "killed by signal 9 (SIGKILL)");
        assert_eq!(killed(31, false), "killed by signal 31 (SIGSYS)");
        assert_eq!(killed(40, false), "killed by signal 40");
        assert_eq!(killed(0, false), "killed by signal 0");
        assert_eq!(killed(i32::MIN, false), format!("killed by signal {}", i32::MIN));
        assert_eq!(exit(ExitStatus::KillRefused).to_string(), "still there: SIGKILL was refused (EPERM)");
        let uninspected = |count| Exit { uninspected: count, ..exit(ExitStatus::Code(0)) }.to_string();
        assert_eq!(uninspected(None), "exit code 0");
        assert_eq!(uninspected(Some(0)), "exit code 0");
        assert_eq!(uninspected(Some(1)), "exit code 0, 1 process could not be inspected");
        assert_eq!(uninspected(Some(2)), "exit code 0, 2 processes could not be inspected");
        assert_eq!(exit(ExitStatus::Unknown).to_string(), "ended, but somebody else took its exit status");
        let hostile = Survivor { pid: 7, command: "\x1b[2J\nroot# ".into(), holds: Vec::new(), alive: false };
        assert_eq!(hostile.to_string(), "process 7 (\\u{1b}[2J\\nroot# ) was left running");
        let survivor =
            Survivor { pid: 7, command: "sleep 9".into(), holds: vec!["stdout".into(), "stderr".into()], alive: false };
        assert_eq!(survivor.to_string(), "process 7 (sleep 9) was left running, with stdout and stderr open");
        assert_eq!(
            LeakedStream { stream: "stdout".into() }.to_string(),
            "stdout is still held open by another process"
        );
    }

    #[test]
    fn only_code_zero_is_success() {
        let signal = ExitStatus::Signal { signal: 15, core_dumped: false };
        let facts = |status| (exit(status).success(), exit(status).code(), exit(status).signal());
        assert_eq!(facts(ExitStatus::Code(0)), (true, Some(0), None));
        assert_eq!(facts(ExitStatus::Code(1)), (false, Some(1), None));
        assert_eq!(facts(signal), (false, None, Some(15)));
        assert_eq!(facts(ExitStatus::Unknown), (false, None, None));
        assert_eq!(exit(signal).stderr_text(), "bad: \u{fffd}");
    }
}
