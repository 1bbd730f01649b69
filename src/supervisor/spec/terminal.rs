//! The pseudo-terminal of a worker.

use crate::{
    launch::stdio::{OutputMode, TerminalSize},
    policy::lifecycle::StreamId,
    supervisor::spec::WorkerSpec,
};

impl WorkerSpec {
    /// Sets the size of the worker's [pseudo-terminal](OutputMode::Pty); by default 24 rows and 80 columns.
    /// [`Worker::resize`](crate::Worker::resize) changes it later.
    pub fn terminal_size(mut self, size: TerminalSize) -> Self {
        self.plan.terminal_size = Some(size);
        self
    }

    /// The stream on which standard error arrives.
    pub(crate) fn stderr_stream(&self) -> StreamId {
        let is_stdout = match self.plan.stderr {
            OutputMode::ToStdout => true,
            OutputMode::Pty | OutputMode::PtyLines => self.plan.stdout.is_terminal(),
            _ => false,
        };
        if is_stdout { StreamId::Stdout } else { StreamId::Stderr }
    }
}
