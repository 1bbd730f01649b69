//! The parent of a worker's process, and its death.

/// What starts the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StartedBy {
    Supervisor,
    /// The process connects.
    Others,
}

/// Which signal a worker gets when its parent dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeathSignal {
    /// SIGKILL from a supervisor; none where a process is started by hand, since the signal comes when the *thread* ends.
    Unset,
    Never,
    Signal(i32),
}
