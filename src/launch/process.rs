//! A process without a supervisor.

use super::{
    child::{ChildProcess, exit_status, usage},
    descriptors::ParentFds,
    plan::MESSAGES,
    spawn::LaunchedChild,
};
use crate::{
    exit::Exit,
    pipe::anonymous::ends::{PipeReader, PipeWriter},
    sys::{pidfd::own_pid, poll::Deadline},
};
use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

/// One process started by hand, with no supervisor: you read its pipes, and you wait for it.
///
/// Made by [`WorkerSpec::spawn_unsupervised`](crate::WorkerSpec::spawn_unsupervised). Dropping it kills the process, with its group where that is its
/// own, and reaps it: nothing is left behind. In a forked child of the host, dropping it only closes its pipes there.
pub struct Process {
    child: ChildProcess,
    ends: ParentFds,
    started: Instant,
    exit: Option<Exit>,
    owner: i32,
}

shown_as!(Process, |process| { pid: process.pid(), exit: process.exit });

impl Process {
    pub(crate) fn new(launched: LaunchedChild) -> Self {
        Self { child: launched.child, ends: launched.ends, started: now(), exit: None, owner: own_pid() }
    }

    /// The process id. It stays this process's own until [`wait`](Self::wait) has returned.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Our end of the message pipe, once.
    pub fn take_messages(&mut self) -> Option<PipeReader> {
        self.ends.take_reader(MESSAGES)
    }

    /// Our end of its standard input, where the spec says `StdinMode::Pipe`; once.
    pub fn take_stdin(&mut self) -> Option<PipeWriter> {
        self.ends.stdin.take()
    }

    /// Our end of its standard output, where the spec says `OutputMode::Lines`; once.
    pub fn take_stdout(&mut self) -> Option<PipeReader> {
        self.ends.stdout.take()
    }

    /// Our end of its standard error, where the spec says `OutputMode::Lines`; once.
    pub fn take_stderr(&mut self) -> Option<PipeReader> {
        self.ends.stderr.take()
    }

    /// Our end of the pipe that `output_pipe` named; once.
    pub fn take_reader(&mut self, name: &str) -> Option<PipeReader> {
        self.ends.take_reader(name)
    }

    /// Our end of the pipe that `input_pipe` named; once.
    pub fn take_writer(&mut self, name: &str) -> Option<PipeWriter> {
        self.ends.take_writer(name)
    }

    /// Sends a signal to the process, and never to another that has got its number.
    ///
    /// # Errors
    ///
    /// `ESRCH` once it is reaped, `EINVAL` for a number that is no signal, `EPERM` when it has changed its user.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        self.child.signal(signal)
    }

    /// Sends SIGKILL to the process and what is in its own group.
    ///
    /// # Errors
    ///
    /// As [`signal`](Self::signal).
    pub fn kill(&self) -> io::Result<()> {
        self.child.signal_group(libc::SIGKILL)
    }

    /// Waits for the end, however long. Pipes that are not taken are not read: a process that fills one waits for ever.
    ///
    /// # Errors
    ///
    /// What poll(2) or waitid(2) say, which is nothing while this value lives.
    pub fn wait(&mut self) -> io::Result<&Exit> {
        self.wait_timeout(Duration::MAX)?;
        self.exit.as_ref().ok_or_else(|| io::Error::from_raw_os_error(libc::ECHILD))
    }

    /// Waits for the end, at most so long; `None` if it still runs.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait).
    pub fn wait_timeout(&mut self, timeout: Duration) -> io::Result<Option<&Exit>> {
        if self.exit.is_none()
            && let Some(reaped) = self.child.reap_until(Deadline::after(timeout))?
        {
            self.exit = Some(Exit {
                usage: reaped.usage.map(usage),
                duration: now().saturating_duration_since(self.started),
                ..Exit::of(exit_status(reaped.ending))
            });
        }
        Ok(self.exit.as_ref())
    }

    /// A descriptor that is readable once the process has ended: to wait for that and for other things too.
    pub(crate) fn end(&self) -> io::Result<OwnedFd> {
        self.child.with_pidfd(|pidfd| pidfd.as_fd().try_clone_to_owned())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        /// Longer than any process takes to die that can die at all; one in uninterruptible sleep is not waited for.
        const LONGEST_DEATH: Duration = Duration::from_secs(5);
        if self.exit.is_none() && self.owner == own_pid() {
            // ESRCH: it has ended already; then there is only the zombie to reap.
            drop(self.kill());
            drop(self.wait_timeout(LONGEST_DEATH));
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a blocking face: the duration of a process started by hand")]
fn now() -> Instant {
    Instant::now()
}
