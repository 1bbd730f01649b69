//! The parent's handle of a worker.

use super::link::{Call, Link};
use crate::{
    exit::Exit,
    launch::{Child, Ends, Launched},
    pipe::anonymous::{PipeReader, PipeWriter},
    wire::calls::CallError,
};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fmt, io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// The name of a worker in events: unique within its supervisor, never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerId(pub(super) u64);

impl fmt::Display for WorkerId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "#{}", self.0)
    }
}

/// A worker, as its parent holds it: cheap to clone, and good on any thread. Dropping it changes nothing.
#[derive(Debug, Clone)]
pub struct Worker {
    pub(super) shared: Arc<WorkerShared>,
}

/// What the handles and the loop know together.
#[derive(Debug)]
pub(super) struct WorkerShared {
    id: WorkerId,
    name: Box<str>,
    child: Child,
    ends: Mutex<Ends>,
    exit: Mutex<Option<Arc<Exit>>>,
    exited: Condvar,
    /// Where the spec gives it a control pipe.
    link: Option<Arc<Link>>,
}

impl WorkerShared {
    pub(super) fn new(
        id: WorkerId,
        name: Box<str>,
        Launched { child, ends }: Launched,
        link: Option<Arc<Link>>,
    ) -> Self {
        Self { id, name, child, ends: Mutex::new(ends), exit: Mutex::new(None), exited: Condvar::new(), link }
    }

    pub(super) fn link(&self) -> Option<&Arc<Link>> {
        self.link.as_ref()
    }

    pub(super) fn awaits_control(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.is_awaited())
    }

    /// Sends what waits on control. True if something still waits.
    pub(super) fn flush_link(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.flush())
    }

    /// Ends all calls. True if the link was not closed before.
    pub(super) fn close_link(&self, exit: Option<&Arc<Exit>>) -> bool {
        self.link.as_ref().is_some_and(|link| link.close(exit))
    }

    pub(super) fn id(&self) -> WorkerId {
        self.id
    }

    pub(super) fn child(&self) -> &Child {
        &self.child
    }

    pub(super) fn set_exit(&self, exit: Arc<Exit>) {
        *lock(&self.exit) = Some(exit);
        self.exited.notify_all();
    }

    /// Closes the pipes to the child that nobody has taken: the polite way to say that there is no more work.
    pub(super) fn close_pipes(&self) {
        *lock(&self.ends) = Ends::default();
    }
}

impl Worker {
    /// Its name in events.
    pub fn id(&self) -> WorkerId {
        self.shared.id
    }

    /// What people call it: the spec's name, or its program's.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Its process id. Good for showing; to signal it use [`signal`](Self::signal), which never hits another process that
    /// has got the number since.
    pub fn pid(&self) -> u32 {
        self.shared.child.pid()
    }

    /// Sends a signal to its process, by the number that `libc` or `kill -l` give.
    ///
    /// # Errors
    ///
    /// `ESRCH` once it has ended and is reaped, `EINVAL` for a number that is no signal, `EPERM` when it changed its user.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        self.shared.child.signal(signal)
    }

    /// Sends a signal to its process and everything in its group, where that is its own.
    ///
    /// # Errors
    ///
    /// As [`signal`](Self::signal).
    pub fn signal_group(&self, signal: i32) -> io::Result<()> {
        self.shared.child.signal_group(signal)
    }

    /// Kills its process, and everything in its group where that is its own, with SIGKILL. That it has ended is told by
    /// [`Exited`](crate::EventKind::Exited). One that has ended already is no error.
    ///
    /// # Errors
    ///
    /// `EPERM` when it changed its user.
    pub fn kill(&self) -> io::Result<()> {
        match self.shared.child.signal_group(libc::SIGKILL) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            done => done,
        }
    }

    /// Waits until it has ended and its last event is in the channel.
    ///
    /// A worker whose window is used up cannot end while it has more to say: wait on another thread than the one that
    /// receives, or receive until [`Exited`](crate::EventKind::Exited) instead.
    pub fn wait(&self) -> Arc<Exit> {
        let mut exit = lock(&self.shared.exit);
        loop {
            if let Some(exit) = &*exit {
                return Arc::clone(exit);
            }
            exit = self.shared.exited.wait(exit).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// As [`wait`](Self::wait), at most so long; `None` if it still runs.
    pub fn wait_timeout(&self, timeout: Duration) -> Option<Arc<Exit>> {
        let deadline = now().checked_add(timeout);
        let mut exit = lock(&self.shared.exit);
        while exit.is_none() {
            // A timeout beyond the end of time is for ever.
            let left = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(now()));
            if left.is_zero() {
                break;
            }
            exit = self.shared.exited.wait_timeout(exit, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        exit.clone()
    }

    /// Asks it over control and waits for its answer, at most so long. Any number of threads can ask at once, and the answers
    /// may come in any order. Before the worker has connected the question waits for it.
    ///
    /// # Errors
    ///
    /// [`CallError`]: the worker's own error, or why there is no answer: [`WorkerGone`](CallError::WorkerGone) with its exit
    /// when it ends first.
    pub fn call<P, R>(&self, method: &str, params: &P, timeout: Duration) -> Result<R, CallError>
    where
        P: Serialize + ?Sized,
        R: DeserializeOwned,
    {
        self.start_call(method, params)?.wait(timeout)
    }

    /// Asks it over control; the answer is waited for later, or the call is cancelled.
    ///
    /// # Errors
    ///
    /// When the question cannot be sent: never waits for a worker that does not read, but is [`Full`](CallError::Full) when a
    /// mebibyte waits already.
    pub fn start_call<P: Serialize + ?Sized>(&self, method: &str, params: &P) -> Result<Call, CallError> {
        self.shared.link.as_ref().ok_or(CallError::NoControl)?.call(method, params)
    }

    /// Tells it something over control.
    ///
    /// # Errors
    ///
    /// As [`start_call`](Self::start_call). That it has read it is not said.
    pub fn notify<P: Serialize + ?Sized>(&self, method: &str, params: &P) -> Result<(), CallError> {
        self.shared.link.as_ref().ok_or(CallError::NoControl)?.notify(method, params)
    }

    /// Our end of its standard input, where the spec says [`Input::Pipe`](crate::Input::Pipe); once.
    pub fn take_stdin(&self) -> Option<PipeWriter> {
        lock(&self.shared.ends).stdin.take()
    }

    /// Our end of the pipe that [`pipe_to`](crate::WorkerSpec::pipe_to) named; once.
    pub fn take_writer(&self, name: &str) -> Option<PipeWriter> {
        lock(&self.shared.ends).take_writer(name)
    }

    /// Our end of the pipe that [`pipe_from`](crate::WorkerSpec::pipe_from) named; once. The supervisor does not read it.
    pub fn take_reader(&self, name: &str) -> Option<PipeReader> {
        lock(&self.shared.ends).take_reader(name)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[expect(clippy::disallowed_methods, reason = "a blocking face with a deadline")]
fn now() -> Instant {
    Instant::now()
}
