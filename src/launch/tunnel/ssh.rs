//! The ssh process of a tunnel, started and monitored by its own thread.

use super::{
    deadline::TunnelDeadline,
    error::TunnelError,
    mux::{self, MissingSocket},
};
use crate::{
    deadline::Deadline,
    exit::{Exit, ExitStatus},
    launch::{
        context::{OpenMode, SpawnContext},
        error::SpawnError,
        plan::LaunchPlan,
        process::Process,
        spawn::{launch, prepare},
        stdio::OutputMode,
    },
    pipe::{
        anonymous::ends::PipeReader,
        named::{message_stream::MessageStream, name::PipeName, transport::Transport},
        timeout::{CancelToken, Cancelled, StartedTimeout},
    },
    sys::{
        eventfd::Flag,
        poll::{self, Interest},
        this_process::own_pid,
    },
    text::printable,
};
use std::{
    io, mem,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

/// How much of ssh's standard error is kept.
const STDERR_TAIL_BYTES: usize = 8 << 10;

/// Time between SIGTERM and SIGKILL.
const GRACE_PERIOD: Duration = Duration::from_secs(2);

/// Longest time from SIGKILL to the exit; a process in uninterruptible sleep takes longer and is abandoned.
const EXIT_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest time that a working ssh takes to send its hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(2);

/// The running ssh, terminated on drop.
#[derive(Debug)]
pub(super) struct SshProcess {
    pub(super) shared: Arc<SshState>,
    thread: Option<JoinHandle<()>>,
    /// The pid of the process that started it; a forked child must not terminate it.
    owner: i32,
}

/// State shared with the tunnel's streams, which may outlive the tunnel.
#[derive(Debug)]
pub(super) struct SshState {
    pid: u32,
    pub(super) control: PipeName,
    /// Cancelled when ssh has exited.
    pub(super) ended: CancelToken,
    stop: Flag,
    stderr: Mutex<StderrTail>,
    exit: Mutex<Option<Arc<Exit>>>,
}

#[derive(Debug)]
struct StderrTail {
    /// `None` after the end of the stream.
    pipe: Option<PipeReader>,
    last: Vec<u8>,
}

impl SshProcess {
    pub(super) fn start(mut plan: LaunchPlan, control: PipeName) -> Result<Self, TunnelError> {
        plan.stderr = OutputMode::Lines;
        plan.validate().map_err(SpawnError::from)?;
        let (started, start) = crossbeam_channel::bounded(1);
        // The kernel sends the parent-death signal when the spawning thread exits; this thread outlives ssh.
        let thread =
            thread::Builder::new().name("pipewright-ssh".into()).spawn(move || match spawn_ssh(&plan, control) {
                Ok((process, end, shared)) => {
                    drop(started.send(Ok(Arc::clone(&shared))));
                    shared.run(process, &end);
                }
                Err(error) => drop(started.send(Err(error))),
            })?;
        let shared = start.recv().map_err(|_| io::Error::other("the thread that starts ssh has exited"))??;
        Ok(Self { shared, thread: Some(thread), owner: own_pid() })
    }
}

fn spawn_ssh(plan: &LaunchPlan, control: PipeName) -> Result<(Process, OwnedFd, Arc<SshState>), TunnelError> {
    let context = SpawnContext { death_signal: Some(libc::SIGTERM), ..SpawnContext::default() };
    let (ended, stop) = (CancelToken::new()?, Flag::new()?);
    let mut process = Process::new(plan, launch(plan, prepare(plan, OpenMode::Nonblocking)?, &context)?);
    let end = process.exit_fd()?;
    let stderr = Mutex::new(StderrTail { pipe: process.take_stderr(), last: Vec::new() });
    let shared = SshState { pid: process.pid(), control, ended, stop, stderr, exit: Mutex::default() };
    Ok((process, end, Arc::new(shared)))
}

impl Drop for SshProcess {
    fn drop(&mut self) {
        // A forked child of the host has no such thread, and ssh belongs to the parent.
        if self.owner != own_pid() {
            return;
        }
        self.shared.stop.raise();
        if let Some(thread) = self.thread.take() {
            // An error would mean a panic; the thread has none.
            drop(thread.join());
        }
    }
}

impl SshState {
    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Reads ssh's standard error until ssh exits or `stop` is raised, then terminates and reaps it.
    fn run(&self, mut process: Process, end: &OwnedFd) {
        // A duplicate: this thread waits without holding the lock, so that `stderr_tail` does not block.
        let mut stderr = self.stderr().pipe.as_ref().and_then(|pipe| pipe.try_clone().ok());
        loop {
            let mut watched = vec![(self.stop.as_fd(), Interest::Readable), (end.as_fd(), Interest::Readable)];
            watched.extend(stderr.as_ref().map(|pipe| (pipe.as_fd(), Interest::Readable)));
            match poll::wait_any(&watched, Deadline::after_now(Duration::MAX)) {
                Ok(Some(0)) => {
                    // Fails if ssh has already exited.
                    drop(process.signal(libc::SIGTERM));
                    drop(process.wait_timeout(GRACE_PERIOD));
                    break;
                }
                Ok(Some(2)) => {
                    if !self.read_stderr() {
                        stderr = None;
                    }
                }
                _ => break,
            }
        }
        drop(process.kill());
        let exit = process.wait_timeout(EXIT_TIMEOUT).ok().flatten().cloned();
        self.read_stderr();
        let mut exit = exit.unwrap_or_else(|| Exit::of(ExitStatus::Unknown));
        exit.stderr_tail = mem::take(&mut self.stderr().last).into();
        *self.lock_exit() = Some(Arc::new(exit));
        self.ended.cancel();
    }

    fn stderr(&self) -> MutexGuard<'_, StderrTail> {
        self.stderr.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_exit(&self) -> MutexGuard<'_, Option<Arc<Exit>>> {
        self.exit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what is available of standard error; false after the end of the stream.
    fn read_stderr(&self) -> bool {
        let mut stderr = self.stderr();
        let mut part = [0; 1024];
        while let Some(pipe) = &stderr.pipe {
            match pipe.read_timeout(&mut part, Duration::ZERO) {
                Ok(0) => stderr.pipe = None,
                Ok(bytes) => {
                    stderr.last.extend_from_slice(part.get(..bytes).unwrap_or_default());
                    let surplus = stderr.last.len().saturating_sub(STDERR_TAIL_BYTES);
                    stderr.last.drain(..surplus);
                }
                Err(_) => break,
            }
        }
        stderr.pipe.is_some()
    }

    /// The last 8 KiB of ssh's standard error, printable.
    pub(super) fn stderr_tail(&self) -> Box<str> {
        if let Some(exit) = self.exit() {
            return exit.stderr_text().into();
        }
        self.read_stderr();
        printable(&self.stderr().last).lines().to_string().into()
    }

    pub(super) fn exit(&self) -> Option<Arc<Exit>> {
        self.lock_exit().clone()
    }

    /// The exit of ssh, if it has exited or is about to. Waits up to the deadline of `begun` to find out.
    pub(super) fn exit_if_ending(&self, begun: &StartedTimeout<'_>) -> io::Result<Option<Arc<Exit>>> {
        self.check_liveness(&mut None, begun)
    }

    /// Runs a check that an earlier call may have begun. If the timeout expires first, the check stays in `check`.
    fn check_liveness(
        &self,
        check: &mut Option<LivenessCheck>,
        begun: &StartedTimeout<'_>,
    ) -> io::Result<Option<Arc<Exit>>> {
        loop {
            if let Some(exit) = self.exit() {
                return Ok(Some(exit));
            }
            match check {
                None => *check = Some(LivenessCheck::Hello { hello: None, until: Deadline::after_now(HELLO_TIMEOUT) }),
                Some(LivenessCheck::Hello { hello, until }) => {
                    let wait = begun.no_later_than(*until).rest();
                    let progress = match hello {
                        Some(hello) => mux::receive_hello(hello, wait).map(|()| true),
                        None => mux::connect(&self.control, MissingSocket::Fail, wait)
                            .map(|new| hello.insert(new))
                            .map(|_| false),
                    };
                    match progress {
                        Ok(true) => return Ok(None),
                        Ok(false) => {}
                        // A stopped ssh cannot be distinguished from a busy one.
                        Err(error) if error.kind() == io::ErrorKind::TimedOut && until.has_passed() => return Ok(None),
                        Err(error) if is_timeout_or_cancelled(&error) => return Err(error),
                        Err(_) => *check = Some(LivenessCheck::Exiting(Deadline::after_now(EXIT_TIMEOUT))),
                    }
                }
                Some(LivenessCheck::Exiting(until)) => {
                    if !self.ended.wait(&begun.no_later_than(*until))? {
                        return if until.has_passed() { Ok(None) } else { Err(io::ErrorKind::TimedOut.into()) };
                    }
                }
            }
        }
    }

    pub(super) fn until(&self, timeout: Duration) -> TunnelDeadline<'_> {
        TunnelDeadline { deadline: Deadline::after_now(timeout), ended: &self.ended }
    }

    /// The error of a call to ssh, with the exit of ssh as its cause if ssh has exited.
    pub(super) fn explain(&self, error: io::Error, until: &TunnelDeadline<'_>) -> TunnelError {
        if error.kind() == io::ErrorKind::TimedOut {
            return TunnelError::TimedOut { stderr: self.stderr_tail() };
        }
        match self.exit_if_ending(&until.begun()) {
            Ok(Some(exit)) => TunnelError::Ended { exit },
            Ok(None) => TunnelError::Os(error),
            Err(_) => TunnelError::TimedOut { stderr: self.stderr_tail() },
        }
    }
}

/// Finds out whether ssh is exiting after one of its connections has ended. A connection ends shortly before the process exits,
/// so ssh is contacted: if it still answers, only that connection was closed.
#[derive(Debug)]
enum LivenessCheck {
    /// Waits for a hello; a working ssh has sent it by the deadline.
    Hello { hello: Option<MessageStream>, until: Deadline },
    /// ssh no longer answers and exits by the deadline.
    Exiting(Deadline),
}

/// Whether the caller's timeout expired or the call was cancelled, which says nothing about ssh.
fn is_timeout_or_cancelled(error: &io::Error) -> bool {
    let is_cancelled = error.get_ref().is_some_and(|inner| inner.downcast_ref::<Cancelled>().is_some());
    is_cancelled || error.kind() == io::ErrorKind::TimedOut
}

/// Connects one stream to the state of the ssh that carries it.
#[derive(Debug)]
pub(super) struct SshConnection {
    shared: Arc<SshState>,
    /// A check that a call began and its timeout interrupted.
    check: Mutex<Option<LivenessCheck>>,
}

impl SshConnection {
    pub(super) fn new(shared: &Arc<SshState>) -> Self {
        Self { shared: Arc::clone(shared), check: Mutex::default() }
    }

    fn check(&self) -> MutexGuard<'_, Option<LivenessCheck>> {
        self.check.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Transport for SshConnection {
    fn ended(&self, begun: &StartedTimeout<'_>) -> io::Result<Option<io::Error>> {
        // Taken out, so that the lock is not held while waiting for ssh.
        let mut check = self.check().take();
        let answer = self.shared.check_liveness(&mut check, begun);
        if answer.is_err() {
            *self.check() = check;
        }
        Ok(answer?.map(|exit| TunnelError::Ended { exit }.into()))
    }
}
