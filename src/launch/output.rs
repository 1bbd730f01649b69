//! The whole output of a process without a supervisor.

use super::kept_output::KeptOutput;
use crate::{
    deadline::Deadline,
    exit::{Exit, LeakedStream},
    pipe::anonymous::ends::PipeReader,
    sys::{
        fd, is_transient,
        poll::{self, Interest},
        terminal,
    },
    text::printable,
};
use std::{
    fmt, io,
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

/// The default of [`Process::max_output`](crate::Process::max_output), in bytes for each stream.
pub(super) const MAX_OUTPUT: usize = 64 << 20;

/// How many bytes are read at once.
const READ_BYTES: usize = 64 << 10;

/// The longest part of the output that an error shows, in bytes.
const EXCERPT_BYTES_MAX: usize = 200;

/// What a process wrote, and how it ended. Returned by [`Process::wait_with_output`](crate::Process::wait_with_output).
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProcessOutput {
    /// How the process ended. Its [`leaked_streams`](Exit::leaked_streams) are streams that a descendant held open.
    pub exit: Exit,
    /// What it wrote to standard output; empty if that was not captured. Beyond [`max_output`](crate::Process::max_output) the first KiB
    /// and the last bytes, with a line such as `[52311 bytes omitted]` between them.
    pub stdout: Vec<u8>,
    /// As [`stdout`](Self::stdout), for standard error.
    pub stderr: Vec<u8>,
    /// The number of bytes that are missing in [`stdout`](Self::stdout); 0 if it is complete.
    pub stdout_omitted: u64,
    /// The number of bytes that are missing in [`stderr`](Self::stderr); 0 if it is complete.
    pub stderr_omitted: u64,
}

impl fmt::Debug for ProcessOutput {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { exit, stdout, stderr, stdout_omitted, stderr_omitted } = self;
        formatter
            .debug_struct("ProcessOutput")
            .field("exit", exit)
            .field("stdout", &String::from_utf8_lossy(stdout))
            .field("stderr", &String::from_utf8_lossy(stderr))
            .field("stdout_omitted", stdout_omitted)
            .field("stderr_omitted", stderr_omitted)
            .finish()
    }
}

/// Why there is no output of a process that has ended by itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutputError {
    /// The process did not exit in time, and was killed.
    #[error("{} did not exit within {timeout:?} and was killed{}", printable(&**program), last_words(output))]
    TimedOut {
        /// The program as the spec names it.
        program: Box<str>,
        /// The timeout.
        timeout: Duration,
        /// What it had written until then.
        output: Box<ProcessOutput>,
    },
    /// A system call failed. The process was killed.
    #[error("failed to read the output of {}: {source}", printable(&**program))]
    Failed {
        /// The program as the spec names it.
        program: Box<str>,
        /// The kernel's reason.
        source: io::Error,
    },
}

impl From<OutputError> for io::Error {
    fn from(error: OutputError) -> Self {
        let kind = match &error {
            OutputError::TimedOut { .. } => io::ErrorKind::TimedOut,
            OutputError::Failed { source, .. } => source.kind(),
        };
        Self::new(kind, error)
    }
}

/// The last line on standard error, or on standard output.
fn last_words(output: &ProcessOutput) -> String {
    let last_line = |bytes: &[u8]| {
        let line = bytes.trim_ascii().rsplit(|byte| matches!(byte, b'\n' | b'\r')).next()?;
        let from = line.len().saturating_sub(EXCERPT_BYTES_MAX);
        let line = line.get(from..).filter(|line| !line.is_empty())?;
        Some(format!("; its last line: {}", printable(line)))
    };
    last_line(&output.stderr).or_else(|| last_line(&output.stdout)).unwrap_or_else(|| "; it wrote nothing".into())
}

/// The two streams of a process, and what was read of them.
pub(super) struct OutputCollector {
    streams: [OutputPipe; 2],
    scratch: Vec<u8>,
}

struct OutputPipe {
    name: &'static str,
    /// `None` at the end of the stream, or if it is not captured.
    pipe: Option<PipeReader>,
    kept: KeptOutput,
}

impl OutputPipe {
    fn new(name: &'static str, pipe: Option<PipeReader>, limit: usize) -> io::Result<Self> {
        if let Some(pipe) = &pipe {
            // One stream must not be waited for while the other one is full.
            fd::set_nonblocking(pipe.as_fd())?;
        }
        Ok(Self { name, pipe, kept: KeptOutput::of(limit) })
    }

    /// Reads once, if bytes are available; returns their number.
    fn read(&mut self, scratch: &mut [u8]) -> usize {
        let Some(pipe) = &self.pipe else { return 0 };
        let read = match pipe.read_once(scratch) {
            Err(error) if is_transient(&error) => return 0,
            // A pipe has no other errors; any would be handled as its end.
            read => read.unwrap_or(0),
        };
        self.kept.push(scratch.get(..read).unwrap_or_default());
        if read == 0 {
            self.pipe = None;
        }
        read
    }

    /// Reads what the process has left in the pipe or terminal, and little more, since a descendant may continue to write.
    fn drain(&mut self, scratch: &mut [u8]) {
        let Some(pipe) = &self.pipe else { return };
        let mut left = pipe.bytes_available().unwrap_or(0).max(terminal::BUFFERED_BYTES_MAX);
        while left > 0 {
            let most = left.min(scratch.len());
            let read = scratch.get_mut(..most).map_or(0, |scratch| self.read(scratch));
            if read == 0 {
                return;
            }
            left = left.saturating_sub(read);
        }
    }
}

impl OutputCollector {
    pub(super) fn new(stdout: Option<PipeReader>, stderr: Option<PipeReader>, limit: usize) -> io::Result<Self> {
        let streams = [OutputPipe::new("stdout", stdout, limit)?, OutputPipe::new("stderr", stderr, limit)?];
        Ok(Self { streams, scratch: vec![0; READ_BYTES] })
    }

    /// Reads both streams until the process exits; false if the deadline comes first. `exit_fd` becomes readable at the exit.
    pub(super) fn read_until_exit(&mut self, exit_fd: BorrowedFd<'_>, deadline: Deadline) -> io::Result<bool> {
        loop {
            let exit = (exit_fd, Interest::Readable);
            let watched: Vec<_> = std::iter::once(exit).chain(self.open()).collect();
            match poll::wait_any(&watched, deadline)? {
                Some(0) => return Ok(true),
                None => return Ok(false),
                // A process that never stops writing reaches its deadline, too.
                Some(_) if deadline.has_passed() => return Ok(false),
                Some(_) => self.read_each(),
            }
        }
    }

    /// Reads what is left after the exit, and waits for the ends of the streams until the deadline.
    pub(super) fn read_rest(&mut self, drain_timeout: Duration) -> io::Result<()> {
        for stream in &mut self.streams {
            stream.drain(&mut self.scratch);
        }
        let deadline = Deadline::after_now(drain_timeout);
        loop {
            let watched: Vec<_> = self.open().collect();
            if watched.is_empty() || poll::wait_any(&watched, deadline)?.is_none() {
                return Ok(());
            }
            self.read_each();
            if deadline.has_passed() {
                return Ok(());
            }
        }
    }

    fn open(&self) -> impl Iterator<Item = (BorrowedFd<'_>, Interest)> {
        self.streams.iter().filter_map(|stream| Some((stream.pipe.as_ref()?.as_fd(), Interest::Readable)))
    }

    fn read_each(&mut self) {
        for stream in &mut self.streams {
            stream.read(&mut self.scratch);
        }
    }

    /// The result of a process that ended like this.
    pub(super) fn finish(mut self, mut exit: Exit) -> ProcessOutput {
        let leaked = self.streams.iter().filter(|stream| stream.pipe.is_some());
        exit.leaked_streams = leaked.map(|stream| LeakedStream { stream: stream.name.into() }).collect();
        let [(stdout, stdout_omitted), (stderr, stderr_omitted)] =
            self.streams.each_mut().map(|stream| stream.kept.take_counted());
        ProcessOutput { exit, stdout: stdout.into_vec(), stderr: stderr.into_vec(), stdout_omitted, stderr_omitted }
    }
}
