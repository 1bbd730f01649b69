//! Standard streams and process group of a worker.

use std::{fs::File, os::fd::OwnedFd, path::PathBuf, sync::Arc};

/// Source of a worker's standard input, for [`WorkerSpec::stdin`](crate::WorkerSpec::stdin).
#[doc(alias = "Stdio")]
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub enum StdinMode {
    /// `/dev/null`: reads return the end of the file at once.
    #[default]
    Null,
    /// Inherits our standard input, or `/dev/null` if it is closed. A worker in its own process group (the default) that reads from
    /// a terminal is stopped by SIGTTIN, without an event: use [`ProcessGroup::Inherit`] or [`ProcessGroup::NewSession`] for it
    /// ([gotchas](crate::docs::gotchas), "The terminal is for one process group").
    Inherit,
    /// A pipe; `take_stdin` returns our end.
    Pipe,
    /// A file, opened for reading by every incarnation. Opening a FIFO waits for a writer in `spawn`; a restart or a start in a
    /// group does not wait, and reads the end of the file if there is no writer.
    File(PathBuf),
    /// A file descriptor of the host, shared by all incarnations.
    Fd(Arc<OwnedFd>),
    /// The worker's pseudo-terminal: see [`OutputMode::Pty`], which one of the outputs must be, too. `take_stdin` returns a writer
    /// whose bytes are what a person types: the program reads them by line, `\x03` (Ctrl-C) is SIGINT, and `\x04` (Ctrl-D) at the start
    /// of a line is the end of the input, as dropping the writer is not. The kernel cuts a line at 4095 bytes. If the writer was not
    /// taken, [`StopStep::CloseStdin`](crate::StopStep::CloseStdin) and `ClosePipes` send Ctrl-D.
    Pty,
}

/// Destination of a worker's standard output or standard error, for [`WorkerSpec::stdout`](crate::WorkerSpec::stdout) and
/// [`WorkerSpec::stderr`](crate::WorkerSpec::stderr).
#[doc(alias = "Stdio")]
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub enum OutputMode {
    /// Inherits our stream, or `/dev/null` if it is closed. On a terminal with `stty tostop`, a worker in its own process group (the
    /// default) that writes is stopped by SIGTTOU, as a reader is with [`StdinMode::Inherit`].
    #[default]
    Inherit,
    /// `/dev/null`.
    Null,
    /// A pipe, read line by line into [`EventKind::Line`](crate::EventKind::Line) events. A line longer than 64 KiB is split into
    /// pieces of that length; with [`Line::ending`](crate::Line::ending) the original bytes can be restored. The beginning and the
    /// end of standard error are kept for [`Exit::stderr_tail`](crate::Exit::stderr_tail).
    Lines,
    /// A pipe, whose bytes arrive in [`EventKind::Output`](crate::EventKind::Output) events as soon as the worker has written them, and
    /// unchanged: for progress bars, prompts and binary output. The division into events says nothing about the worker's writes. The
    /// beginning and the end of standard error are kept as with [`Lines`](Self::Lines).
    Bytes,
    /// A file, created if it does not exist and opened for appending. Opening a FIFO waits for a reader in `spawn`; a restart or
    /// a start in a group does not wait, and fails with `ENXIO` if there is no reader.
    File(PathBuf),
    /// A file descriptor of the host, shared by all incarnations.
    Fd(Arc<OwnedFd>),
    /// A pseudo-terminal, whose bytes arrive as with [`Bytes`](Self::Bytes): for programs that behave differently without a terminal. All
    /// streams of a worker with this mode are the same terminal; what arrives of it is standard output if that is one of them.
    ///
    /// * It is the controlling terminal of the worker, which leads a new session whatever
    ///   [`process_group`](crate::WorkerSpec::process_group) says. Each incarnation has a new one.
    /// * Output arrives as the program writes it, without carriage returns before line feeds, and input is not echoed. A program may
    ///   change that: `sh -c 'stty echo opost; exec PROGRAM'` makes the terminal one for a person.
    /// * Its [size](crate::WorkerSpec::terminal_size) is 24 rows and 80 columns by default. `TERM` is `xterm` if neither the host's
    ///   environment nor the spec says anything else.
    /// * The end of the stream is when no process has the terminal open. When the worker has exited, the kernel sends SIGHUP to the
    ///   terminal's foreground process group. After the [drain timeout](crate::WorkerSpec::drain_timeout) our side is closed: SIGHUP and
    ///   the end of the file for what still uses it.
    #[doc(alias = "terminal")]
    #[doc(alias = "tty")]
    Pty,
    /// As [`Pty`](Self::Pty), read line by line as with [`Lines`](Self::Lines): for programs that delay their output unless it goes to a
    /// terminal.
    PtyLines,
    /// The same pipe or file as standard output, whatever its mode is: for standard error only, as `2>&1` in a shell. What the worker
    /// writes to both arrives in the order in which it was written, as standard output. [`Exit::stderr_tail`](crate::Exit::stderr_tail)
    /// is then the beginning and the end of both.
    #[doc(alias = "STDOUT")]
    #[doc(alias = "stderr_to_stdout")]
    ToStdout,
}

impl OutputMode {
    pub(crate) fn is_terminal(&self) -> bool {
        matches!(self, Self::Pty | Self::PtyLines)
    }

    /// Whether the supervisor reads it line by line.
    pub(crate) fn is_in_lines(&self) -> bool {
        matches!(self, Self::Lines | Self::PtyLines)
    }
}

/// The size of a worker's pseudo-terminal, for [`WorkerSpec::terminal_size`](crate::WorkerSpec::terminal_size) and
/// [`Worker::resize`](crate::Worker::resize); by default 24 rows and 80 columns.
#[doc(alias = "winsize")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(clippy::exhaustive_structs, reason = "a size has two numbers")]
pub struct TerminalSize {
    /// The number of rows.
    pub rows: u16,
    /// The number of columns.
    pub columns: u16,
}

impl Default for TerminalSize {
    fn default() -> Self {
        Self { rows: 24, columns: 80 }
    }
}

/// All incarnations share the file's position.
impl From<File> for StdinMode {
    fn from(file: File) -> Self {
        OwnedFd::from(file).into()
    }
}

impl From<OwnedFd> for StdinMode {
    fn from(fd: OwnedFd) -> Self {
        Self::Fd(Arc::new(fd))
    }
}

/// All incarnations share the file's position; open a file that others write, too, for appending.
impl From<File> for OutputMode {
    fn from(file: File) -> Self {
        OwnedFd::from(file).into()
    }
}

impl From<OwnedFd> for OutputMode {
    fn from(fd: OwnedFd) -> Self {
        Self::Fd(Arc::new(fd))
    }
}

/// Process group and session of a worker, for [`WorkerSpec::process_group`](crate::WorkerSpec::process_group).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProcessGroup {
    /// A new process group (setpgid(2)), so that the worker can be killed together with its descendants. Ctrl-C in the terminal does
    /// not reach it, and reading from the terminal stops it: see [`StdinMode::Inherit`].
    #[default]
    New,
    /// A new session (setsid(2)) without a controlling terminal, and thus a new process group. The worker can read and write an
    /// inherited terminal without being stopped, concurrently with us; it cannot open `/dev/tty`.
    #[doc(alias = "detached")]
    NewSession,
    /// Our process group: signals from the terminal reach the worker, and it may use the terminal while we are in the foreground.
    /// Signals for its group go to the process alone.
    Inherit,
}
