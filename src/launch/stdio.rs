//! Standard streams and the process group of a worker.

use std::{fs::File, os::fd::OwnedFd, path::PathBuf, sync::Arc};

/// What a worker has as its standard input.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub enum StdinMode {
    /// `/dev/null`: a worker that reads finds the end at once.
    #[default]
    Null,
    /// Ours; `/dev/null` where we have none. Where that is a terminal, a worker that reads it in a process group of its own, the
    /// default, is stopped by SIGTTIN, and nobody is told: give it [`ProcessGroup::Inherit`] or [`ProcessGroup::NewSession`]
    /// ([gotchas](crate::_documentation::gotchas), "The terminal is for one group").
    Inherit,
    /// A pipe whose other end is `take_stdin` of the worker.
    Pipe,
    /// A file, opened for reading anew for each incarnation. Where it is a FIFO, `spawn` waits for somebody who writes into it; a
    /// restart and a member of a group do not wait, and see its end at once where nobody does.
    File(PathBuf),
    /// A descriptor of yours. All incarnations share it.
    Fd(Arc<OwnedFd>),
}

/// Where a worker's standard output or standard error goes.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub enum OutputMode {
    /// Where ours goes; `/dev/null` where we have none. A terminal with `stty tostop` stops a worker that writes to it in a process
    /// group of its own, the default, as [`StdinMode::Inherit`] does one that reads.
    #[default]
    Inherit,
    /// `/dev/null`.
    Null,
    /// To us, line by line, as [`EventKind::Line`](crate::EventKind::Line); a line longer than 64 KiB comes in pieces of that
    /// length. With [`Line::ending`](crate::Line::ending) it is what was written, byte for byte. Of standard error the first and last bytes are kept for [`Exit::stderr_tail`](crate::Exit::stderr_tail).
    Lines,
    /// Appended to a file, which is made where it does not exist. Where it is a FIFO, `spawn` waits for somebody who reads it; a
    /// restart and a member of a group do not wait, and fail (`ENXIO`) where nobody does.
    File(PathBuf),
    /// A descriptor of yours. All incarnations share it.
    Fd(Arc<OwnedFd>),
}

/// An open file; all incarnations share its position.
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

/// An open file; all incarnations share its position, so a file that several processes write should be opened for appending.
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

/// Whose process group and session a worker belongs to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProcessGroup {
    /// A process group of its own, so that it can be killed with what it started. Ctrl-C in the terminal does not reach it, and
    /// when it reads the terminal it is stopped: see [`StdinMode::Inherit`].
    #[default]
    New,
    /// A session of its own, without a controlling terminal, and so a group of its own too. A terminal that it inherits it reads
    /// and writes unhindered, beside us; it cannot open `/dev/tty`.
    NewSession,
    /// Ours: it has the terminal when we have it, the terminal's signals reach it, and only the process itself can be killed.
    Inherit,
}
