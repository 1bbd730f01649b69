//! The ssh process that carries a tunnel: started by a thread of its own, and heard until its end.

use super::{
    deadline::Until,
    error::TunnelError,
    mux::{self, Absent},
};
use crate::{
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
        named::{message_stream::MessageStream, name::PipeName, transport::Carrier},
        timeout::{Begun, Cancel, Cancelled},
    },
    sys::{
        pidfd::own_pid,
        poll::{self, Deadline, Interest},
        wake::Flag,
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

/// How much of what ssh says is kept: its last words are a few lines.
const WORDS_BYTES: usize = 8 << 10;

/// How long ssh has to end after it was asked to.
const GRACE_PERIOD: Duration = Duration::from_secs(2);

/// How long a process takes to die at most that can die at all.
const LONGEST_DEATH: Duration = Duration::from_secs(5);

/// How long an ssh that works takes at most to say hello.
const HELLO_TIME: Duration = Duration::from_secs(2);

/// The running ssh. Dropping this ends it.
#[derive(Debug)]
pub(super) struct Ssh {
    pub(super) shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    owner: i32,
}

/// What streams know of it, also when the tunnel is gone.
#[derive(Debug)]
pub(super) struct Shared {
    pid: u32,
    pub(super) control: PipeName,
    /// Ends whatever waits for ssh when ssh has ended.
    pub(super) ended: Cancel,
    stop: Flag,
    stderr: Mutex<Heard>,
    exit: Mutex<Option<Arc<Exit>>>,
}

#[derive(Debug)]
struct Heard {
    /// `None` after its end.
    pipe: Option<PipeReader>,
    last: Vec<u8>,
}

impl Ssh {
    pub(super) fn start(mut plan: LaunchPlan, control: PipeName) -> Result<Self, TunnelError> {
        plan.stderr = OutputMode::Lines;
        plan.validate().map_err(SpawnError::from)?;
        let (started, start) = crossbeam_channel::bounded(1);
        // The signal at the parent's death comes when the thread ends that has spawned: this one outlives ssh.
        let thread =
            thread::Builder::new().name("pipewright-ssh".into()).spawn(move || match begin(&plan, control) {
                Ok((process, end, shared)) => {
                    drop(started.send(Ok(Arc::clone(&shared))));
                    shared.live(process, &end);
                }
                Err(error) => drop(started.send(Err(error))),
            })?;
        let shared = start.recv().map_err(|_| io::Error::other("the thread that starts ssh has ended"))??;
        Ok(Self { shared, thread: Some(thread), owner: own_pid() })
    }
}

fn begin(plan: &LaunchPlan, control: PipeName) -> Result<(Process, OwnedFd, Arc<Shared>), TunnelError> {
    let context = SpawnContext { death_signal: Some(libc::SIGTERM), ..SpawnContext::default() };
    let (ended, stop) = (Cancel::new()?, Flag::new()?);
    let mut process = Process::new(launch(plan, prepare(plan, OpenMode::Nonblocking)?, &context)?);
    let end = process.end()?;
    let stderr = Mutex::new(Heard { pipe: process.take_stderr(), last: Vec::new() });
    let shared = Shared { pid: process.pid(), control, ended, stop, stderr, exit: Mutex::default() };
    Ok((process, end, Arc::new(shared)))
}

impl Drop for Ssh {
    fn drop(&mut self) {
        // In a forked child of the host there is no such thread, and ssh is the parent's.
        if self.owner != own_pid() {
            return;
        }
        self.shared.stop.raise();
        if let Some(thread) = self.thread.take() {
            // It does not panic.
            drop(thread.join());
        }
    }
}

impl Shared {
    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Hears ssh until it ends or shall end, and sees to it that it has.
    fn live(&self, mut process: Process, end: &OwnedFd) {
        // A copy, so that nobody who wants to hear ssh's words waits for this thread.
        let mut stderr = self.heard().pipe.as_ref().and_then(|pipe| pipe.try_clone().ok());
        loop {
            let mut watched = vec![(self.stop.as_fd(), Interest::Readable), (end.as_fd(), Interest::Readable)];
            watched.extend(stderr.as_ref().map(|pipe| (pipe.as_fd(), Interest::Readable)));
            match poll::wait_any(&watched, Deadline::after(Duration::MAX)) {
                Ok(Some(0)) => {
                    // Fails when it has ended already.
                    drop(process.signal(libc::SIGTERM));
                    drop(process.wait_timeout(GRACE_PERIOD));
                    break;
                }
                Ok(Some(2)) => {
                    if !self.hear() {
                        stderr = None;
                    }
                }
                _ => break,
            }
        }
        drop(process.kill());
        let exit = process.wait_timeout(LONGEST_DEATH).ok().flatten().cloned();
        self.hear();
        let mut exit = exit.unwrap_or_else(|| Exit::of(ExitStatus::Unknown));
        exit.stderr_tail = mem::take(&mut self.heard().last).into();
        *self.lock_exit() = Some(Arc::new(exit));
        self.ended.cancel();
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.stderr.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_exit(&self) -> MutexGuard<'_, Option<Arc<Exit>>> {
        self.exit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what ssh has said up to now; false after the end.
    fn hear(&self) -> bool {
        let mut heard = self.heard();
        let mut part = [0; 1024];
        while let Some(pipe) = &heard.pipe {
            match pipe.read_deadline(&mut part, Duration::ZERO) {
                Ok(0) => heard.pipe = None,
                Ok(bytes) => {
                    heard.last.extend_from_slice(part.get(..bytes).unwrap_or_default());
                    let surplus = heard.last.len().saturating_sub(WORDS_BYTES);
                    heard.last.drain(..surplus);
                }
                Err(_) => break,
            }
        }
        heard.pipe.is_some()
    }

    /// The last of what ssh has said.
    pub(super) fn stderr_tail(&self) -> Box<str> {
        if let Some(exit) = self.exit() {
            return exit.stderr_text().into();
        }
        self.hear();
        printable(&self.heard().last).lines().to_string().into()
    }

    pub(super) fn exit(&self) -> Option<Arc<Exit>> {
        self.lock_exit().clone()
    }

    /// Whether ssh has ended or is about to, as far as `begun` has the time to find out.
    pub(super) fn exit_if_ending(&self, begun: &Begun<'_>) -> io::Result<Option<Arc<Exit>>> {
        self.answer(&mut None, begun)
    }

    /// The answer to a question that may have been begun by an earlier call. When the time is up first, the question stays.
    fn answer(&self, asked: &mut Option<Question>, begun: &Begun<'_>) -> io::Result<Option<Arc<Exit>>> {
        loop {
            if let Some(exit) = self.exit() {
                return Ok(Some(exit));
            }
            match asked {
                None => *asked = Some(Question::Greeting { hello: None, until: Deadline::after(HELLO_TIME) }),
                Some(Question::Greeting { hello, until }) => {
                    let wait = begun.no_later_than(*until).rest();
                    let heard = match hello {
                        Some(hello) => mux::hear_hello(hello, wait).map(|()| true),
                        None => {
                            mux::knock(&self.control, Absent::Fail, wait).map(|new| hello.insert(new)).map(|_| false)
                        }
                    };
                    match heard {
                        Ok(true) => return Ok(None),
                        Ok(false) => {}
                        // One that is stopped cannot be told from one that is busy.
                        Err(error) if error.kind() == io::ErrorKind::TimedOut && until.has_passed() => return Ok(None),
                        Err(error) if is_up_to_the_caller(&error) => return Err(error),
                        Err(_) => *asked = Some(Question::Ending(Deadline::after(LONGEST_DEATH))),
                    }
                }
                Some(Question::Ending(until)) => {
                    if !self.ended.wait(&begun.no_later_than(*until))? {
                        return if until.has_passed() { Ok(None) } else { Err(io::ErrorKind::TimedOut.into()) };
                    }
                }
            }
        }
    }

    pub(super) fn until(&self, timeout: Duration) -> Until<'_> {
        Until { deadline: Deadline::after(timeout), ended: &self.ended }
    }

    /// An error of a call that goes to ssh, and its reason where ssh is at its end.
    pub(super) fn explain(&self, error: io::Error, until: &Until<'_>) -> TunnelError {
        if error.kind() == io::ErrorKind::TimedOut {
            return TunnelError::TimedOut { said: self.stderr_tail() };
        }
        match self.exit_if_ending(&until.begun()) {
            Ok(Some(exit)) => TunnelError::Ended { exit },
            Ok(None) => TunnelError::Os(error),
            Err(_) => TunnelError::TimedOut { said: self.stderr_tail() },
        }
    }
}

/// What is asked about an ssh when something that it carries has ended. A connection ends a moment before its process does,
/// so the process is spoken to: one that still answers has not closed everything.
#[derive(Debug)]
enum Question {
    /// It has to say hello, and one that works has done so by then.
    Greeting { hello: Option<MessageStream>, until: Deadline },
    /// It does not answer any more; by then it is dead.
    Ending(Deadline),
}

/// The call's time is up, or it was cancelled: that says nothing about ssh.
fn is_up_to_the_caller(error: &io::Error) -> bool {
    let is_cancelled = error.get_ref().is_some_and(|inner| inner.downcast_ref::<Cancelled>().is_some());
    is_cancelled || error.kind() == io::ErrorKind::TimedOut
}

/// One stream's view of the ssh that carries it.
#[derive(Debug)]
pub(super) struct Carried {
    shared: Arc<Shared>,
    asked: Mutex<Option<Question>>,
}

impl Carried {
    pub(super) fn by(shared: &Arc<Shared>) -> Self {
        Self { shared: Arc::clone(shared), asked: Mutex::default() }
    }

    fn asked(&self) -> MutexGuard<'_, Option<Question>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Carrier for Carried {
    fn ended(&self, begun: &Begun<'_>) -> io::Result<Option<io::Error>> {
        // Taken out, so that nobody waits for the lock while this one waits for ssh.
        let mut asked = self.asked().take();
        let answer = self.shared.answer(&mut asked, begun);
        if answer.is_err() {
            *self.asked() = asked;
        }
        Ok(answer?.map(|exit| TunnelError::Ended { exit }.into()))
    }
}
