//! A process without a supervisor.

use super::{
    child::{ChildProcess, exit_status, usage},
    descriptors::ParentFds,
    plan::MESSAGES,
    spawn::LaunchedChild,
};
use crate::{
    deadline::Deadline,
    exit::Exit,
    pipe::anonymous::ends::{PipeReader, PipeWriter},
    sys::this_process::own_pid,
};
use std::{
    io,
    os::fd::{AsFd, OwnedFd},
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
}

impl_debug!(Process, |process| { pid: process.pid(), exit: process.exit });

impl Process {
    pub(crate) fn new(launched: LaunchedChild) -> Self {
        Self { child: launched.child, ends: launched.ends, started: now(), exit: None, owner: own_pid() }
    }

    /// Returns the process id. It is not reused before [`wait`](Self::wait) has returned.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Takes our end of the message pipe; `None` if already taken.
    pub fn take_messages(&mut self) -> Option<PipeReader> {
        self.ends.take_reader(MESSAGES)
    }

    /// Takes our end of standard input, with [`StdinMode::Pipe`](crate::StdinMode::Pipe); `None` if already taken.
    pub fn take_stdin(&mut self) -> Option<PipeWriter> {
        self.ends.stdin.take()
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

    /// Returns an fd that is readable once the process has exited.
    pub(crate) fn exit_fd(&self) -> io::Result<OwnedFd> {
        self.child.with_pidfd(|pidfd| pidfd.as_fd().try_clone_to_owned())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        /// Longest time from SIGKILL to the exit; a process in uninterruptible sleep takes longer and is abandoned.
        const EXIT_TIMEOUT: Duration = Duration::from_secs(5);
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
