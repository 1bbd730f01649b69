//! A process without a supervisor.

use super::{
    child::{ChildProcess, exit_status, usage},
    descriptors::ParentFds,
    output::{MAX_OUTPUT, OutputCollector, OutputError, ProcessOutput},
    plan::{LaunchPlan, MESSAGES},
    spawn::LaunchedChild,
    stdio::TerminalSize,
};
use crate::{
    deadline::Deadline,
    exit::{Exit, ExitStatus},
    pipe::anonymous::ends::{PipeReader, PipeWriter},
    sys::this_process::own_pid,
};
use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

/// A process without a supervisor: the caller reads its pipes and waits for its exit.
///
/// Returned by [`WorkerSpec::spawn_unsupervised`](crate::WorkerSpec::spawn_unsupervised). Dropping it kills the process, together
/// with its process group if that is its own, and reaps it. In a forked child of the host, dropping it only closes its pipes there.
pub struct Process {
    child: ChildProcess,
    ends: ParentFds,
    started: Instant,
    exit: Option<Exit>,
    /// The pid of the process that started it; a forked child must not kill it.
    owner: i32,
    /// The program as the spec names it.
    program: Box<str>,
    /// How long `wait_with_output` waits for the ends of the streams after the exit.
    drain_timeout: Duration,
    /// In bytes for each stream.
    max_output: usize,
}

/// Longest time from SIGKILL to the exit; a process in uninterruptible sleep takes longer and is abandoned.
const EXIT_TIMEOUT: Duration = Duration::from_secs(5);

impl_debug!(Process, |process| { pid: process.pid(), exit: process.exit });

impl Process {
    pub(crate) fn new(plan: &LaunchPlan, launched: LaunchedChild) -> Self {
        Self {
            child: launched.child,
            ends: launched.ends,
            started: now(),
            exit: None,
            owner: own_pid(),
            program: plan.program_name(),
            drain_timeout: Duration::ZERO,
            max_output: MAX_OUTPUT,
        }
    }

    pub(crate) fn drain_timeout(mut self, drain_timeout: Duration) -> Self {
        self.drain_timeout = drain_timeout;
        self
    }

    /// Returns the process id. It is not reused before [`wait`](Self::wait) has returned.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Takes our end of the message pipe; `None` if already taken.
    pub fn take_messages(&mut self) -> Option<PipeReader> {
        self.ends.take_reader(MESSAGES)
    }

    /// Changes the size of the process's [pseudo-terminal](crate::OutputMode::Pty); its foreground process group receives SIGWINCH.
    ///
    /// # Errors
    ///
    /// `ENOTTY` without a pseudo-terminal.
    pub fn resize(&self, size: TerminalSize) -> io::Result<()> {
        let terminal = self.ends.terminal.as_ref().ok_or_else(|| io::Error::from_raw_os_error(libc::ENOTTY))?;
        terminal.resize(size)
    }

    /// Takes our end of standard input, with [`StdinMode::Pipe`](crate::StdinMode::Pipe) or [`Pty`](crate::StdinMode::Pty); `None` if
    /// already taken.
    pub fn take_stdin(&mut self) -> Option<PipeWriter> {
        self.ends.take_stdin()
    }

    /// Takes our end of standard output, if it is captured in any [mode](crate::OutputMode); `None` if already taken.
    pub fn take_stdout(&mut self) -> Option<PipeReader> {
        self.ends.stdout.take()
    }

    /// Takes our end of standard error, if it is captured in any [mode](crate::OutputMode); `None` if already taken.
    pub fn take_stderr(&mut self) -> Option<PipeReader> {
        self.ends.stderr.take()
    }

    /// Takes our end of the pipe that [`output_pipe`](crate::WorkerSpec::output_pipe) named; `None` if already taken.
    pub fn take_reader(&mut self, name: &str) -> Option<PipeReader> {
        self.ends.take_reader(name)
    }

    /// Takes our end of the pipe that [`input_pipe`](crate::WorkerSpec::input_pipe) named; `None` if already taken.
    pub fn take_writer(&mut self, name: &str) -> Option<PipeWriter> {
        self.ends.take_writer(name)
    }

    /// Sends a signal to the process, through its pidfd: never to another process that reuses the pid.
    ///
    /// # Errors
    ///
    /// `ESRCH` once it is reaped, `EINVAL` for an invalid signal number, `EPERM` if it has changed its user.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        self.child.signal(signal)
    }

    /// Sends SIGKILL to the process, and to its process group if that is its own.
    ///
    /// # Errors
    ///
    /// As [`signal`](Self::signal).
    pub fn kill(&self) -> io::Result<()> {
        self.child.signal_group(libc::SIGKILL)
    }

    /// Waits for the exit without a timeout. Pipes that are not taken are not read: a process that fills one blocks forever.
    ///
    /// # Errors
    ///
    /// Errors of poll(2) and waitid(2), neither of which is expected.
    pub fn wait(&mut self) -> io::Result<&Exit> {
        self.wait_timeout(Duration::MAX)?;
        self.exit.as_ref().ok_or_else(|| io::Error::from_raw_os_error(libc::ECHILD))
    }

    /// Waits up to `timeout` for the exit; `None` if the process still runs.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait).
    pub fn wait_timeout(&mut self, timeout: Duration) -> io::Result<Option<&Exit>> {
        if self.exit.is_none()
            && let Some(reaped) = self.child.reap_until(Deadline::after_now(timeout))?
        {
            self.exit = Some(Exit {
                usage: reaped.usage.map(usage),
                duration: now().saturating_duration_since(self.started),
                ..Exit::of(exit_status(reaped.ending))
            });
        }
        Ok(self.exit.as_ref())
    }

    /// Sets how many bytes of each stream [`wait_with_output`](Self::wait_with_output) keeps; by default 64 MiB. Up to twice as many are in
    /// memory while the process runs.
    #[must_use]
    pub fn max_output(mut self, bytes: usize) -> Self {
        self.max_output = bytes;
        self
    }

    /// Reads standard output and standard error, both at once, until the process exits, for up to `timeout`. A process that does not exit
    /// in time is killed, as when it is dropped.
    ///
    /// Streams that are not captured, or were [taken](Self::take_stdout), are empty in the result. Of longer output than
    /// [`max_output`](Self::max_output) the beginning and the end are kept: the process never waits for a reader. Pipes to the process that
    /// were not taken are closed first, so that it does not wait for input. Other pipes from it are not read: a process that fills one
    /// reaches the timeout.
    ///
    /// A descendant that holds a stream open after the exit delays the result by the [drain
    /// timeout](crate::WorkerSpec::drain_timeout) at most, and is reported in [`Exit::leaked_streams`].
    ///
    /// ```
    /// use pipewright::{OutputMode, WorkerSpec};
    /// use std::time::Duration;
    ///
    /// let spec = WorkerSpec::new("sh").args(["-c", "echo out; echo err >&2; exit 3"]);
    /// let spec = spec.stdout(OutputMode::Bytes).stderr(OutputMode::Bytes);
    /// let output = spec.spawn_unsupervised()?.wait_with_output(Duration::from_secs(10))?;
    /// assert_eq!(output.exit.code(), Some(3));
    /// assert_eq!((&*output.stdout, &*output.stderr), (b"out\n".as_slice(), b"err\n".as_slice()));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`OutputError::TimedOut`] with what was read until then; [`OutputError::Failed`] if poll(2) or waitid(2) fails, which is not
    /// expected.
    #[doc(alias = "communicate")]
    #[doc(alias = "output")]
    pub fn wait_with_output(mut self, timeout: Duration) -> Result<ProcessOutput, OutputError> {
        let program = std::mem::take(&mut self.program);
        match self.collect_output(timeout) {
            Ok((output, true)) => Ok(output),
            Ok((output, false)) => Err(OutputError::TimedOut { program, timeout, output: Box::new(output) }),
            Err(source) => Err(OutputError::Failed { program, source }),
        }
    }

    /// Also returns whether the process exited in time.
    fn collect_output(&mut self, timeout: Duration) -> io::Result<(ProcessOutput, bool)> {
        let deadline = Deadline::after_now(timeout);
        self.ends.close_writers();
        let mut output = OutputCollector::new(self.take_stdout(), self.take_stderr(), self.max_output)?;
        let mut in_time = true;
        if self.exit.is_none() {
            let exit_fd = self.exit_fd()?;
            in_time = output.read_until_exit(exit_fd.as_fd(), deadline)?;
            if !in_time {
                self.kill_and_read(&mut output, exit_fd.as_fd())?;
            }
        }
        output.read_rest(self.drain_timeout)?;
        let exit = self.wait_timeout(EXIT_TIMEOUT)?.cloned().unwrap_or_else(|| Exit::of(ExitStatus::Unknown));
        // It may have exited by itself just before it was killed.
        in_time |= exit.code().is_some();
        Ok((output.finish(exit), in_time))
    }

    /// Kills the process, and reads its output until it exits, or is abandoned as in `drop`.
    fn kill_and_read(&mut self, output: &mut OutputCollector, exit_fd: BorrowedFd<'_>) -> io::Result<()> {
        // ESRCH: it has just exited.
        let killed = self.kill();
        if !output.read_until_exit(exit_fd, Deadline::after_now(EXIT_TIMEOUT))? {
            let is_refused = killed.is_err_and(|error| error.raw_os_error() == Some(libc::EPERM));
            self.exit = Some(Exit::of(if is_refused { ExitStatus::KillRefused } else { ExitStatus::Unkillable }));
        }
        Ok(())
    }

    /// Returns an fd that is readable once the process has exited.
    pub(crate) fn exit_fd(&self) -> io::Result<OwnedFd> {
        self.child.with_pidfd(|pidfd| pidfd.as_fd().try_clone_to_owned())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.exit.is_none() && self.owner == own_pid() {
            // ESRCH: it has already exited; only the zombie is left to reap.
            drop(self.kill());
            drop(self.wait_timeout(EXIT_TIMEOUT));
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a blocking call: the duration of an unsupervised process")]
fn now() -> Instant {
    Instant::now()
}
