//! The parent's handle of a worker.

use crate::{
    exit::Exit,
    ids::WorkerId,
    pipe::anonymous::ends::{PipeReader, PipeWriter},
    supervisor::{
        clock::now,
        commands::{Action, Command, CommandSender},
        containment::report::Containment,
        control::{
            call::{PendingCall, decode_result},
            call_span::CallSpan,
        },
        handles::stop::{RestartHandle, StopHandle},
        sync::lock,
        worker::{SharedWorker, WaitOutcome, process::WorkerProcess},
    },
    wire::jsonrpc::error::CallError,
};
use serde::{Serialize, de::DeserializeOwned};
use std::{io, sync::Arc, time::Duration};

/// A worker, as its parent holds it: cheap to clone, and good on any thread. Dropping it changes nothing.
#[derive(Clone)]
pub struct Worker {
    shared: Arc<SharedWorker>,
    commands: CommandSender,
}

impl_debug!(Worker, |worker| { id: worker.id().0, name: worker.name(), pid: worker.pid().unwrap_or_default() });

impl From<&Worker> for WorkerId {
    fn from(worker: &Worker) -> Self {
        worker.id()
    }
}

impl Worker {
    pub(crate) fn new(shared: Arc<SharedWorker>, commands: &CommandSender) -> Self {
        Self { shared, commands: commands.clone() }
    }

    /// Its name in events.
    pub fn id(&self) -> WorkerId {
        self.shared.id
    }

    /// What people call it: the spec's name, or its program's.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// The process id of its present incarnation, or of the last one; `None` before the first, as for a member of a group that has not
    /// started. Use it for display only: the kernel may reuse the number. [`signal`](Self::signal) never reaches another process.
    #[doc(alias = "id")]
    pub fn pid(&self) -> Option<u32> {
        self.shared.process().map(|process| process.child().pid())
    }

    /// Sends a signal to its process, by the number that `libc` or `kill -l` give.
    ///
    /// # Errors
    ///
    /// `ESRCH` once it has ended and is reaped, `EINVAL` for a number that is no signal, `EPERM` when it changed its user.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        self.shared.child(|child| child.signal(signal))
    }

    /// Sends a signal to its process and everything in its group, where that is its own.
    ///
    /// # Errors
    ///
    /// As [`signal`](Self::signal).
    pub fn signal_group(&self, signal: i32) -> io::Result<()> {
        self.shared.child(|child| child.signal_group(signal))
    }

    /// Stops it and all it has started, until [`thaw`](Self::thaw): by its cgroup where it has one, else by SIGSTOP to its group.
    /// A watchdog does not take that for silence; a stop goes on all the same, and has it go on.
    ///
    /// # Errors
    ///
    /// As [`signal`](Self::signal); of the kind [`Other`](io::ErrorKind::Other) where its cgroup refuses.
    #[doc(alias = "pause")]
    #[doc(alias = "SIGSTOP")]
    pub fn freeze(&self) -> io::Result<()> {
        self.process()?.tree().freeze()
    }

    /// Has it go on.
    ///
    /// # Errors
    ///
    /// As [`freeze`](Self::freeze).
    #[doc(alias = "resume")]
    #[doc(alias = "SIGCONT")]
    pub fn thaw(&self) -> io::Result<()> {
        self.process()?.tree().thaw()
    }

    fn process(&self) -> io::Result<Arc<WorkerProcess>> {
        self.shared.process().ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))
    }

    /// Kills its process, and everything in its group where that is its own, with SIGKILL. That it has ended is told by
    /// [`Exited`](crate::EventKind::Exited). One that has ended already is no error.
    ///
    /// # Errors
    ///
    /// `EPERM` when it changed its user.
    pub fn kill(&self) -> io::Result<()> {
        match self.shared.child(|child| child.signal_group(libc::SIGKILL)) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            done => done,
        }
    }

    /// Waits until it has ended for good and its last event is in the channel; a restart is no end.
    ///
    /// A worker whose window is used up cannot end while it has more to say: wait on another thread than the one that
    /// receives, or receive until [`Exited`](crate::EventKind::Exited) instead.
    pub fn wait(&self) -> Arc<Exit> {
        loop {
            if let WaitOutcome::Ended(exit) = self.shared.wait_until(None, |_| false) {
                return exit;
            }
        }
    }

    /// As [`wait`](Self::wait), at most so long; `None` if it still runs, or will run again.
    pub fn wait_timeout(&self, timeout: Duration) -> Option<Arc<Exit>> {
        match self.shared.wait_until(now().checked_add(timeout), |_| false) {
            WaitOutcome::Ended(exit) => Some(exit),
            WaitOutcome::Met | WaitOutcome::TimedOut => None,
        }
    }

    /// Ends it for good, by its [stop ladder](crate::WorkerSpec::stop). Returns at once, with what can be waited for;
    /// [`Exited`](crate::EventKind::Exited) tells too when it is over. Called again it goes to the next rung of the ladder at once.
    /// One that has ended is no error; one that waits for its restart is not started again.
    #[doc(alias = "terminate")]
    pub fn stop(&self) -> StopHandle {
        self.end(Action::Stop)
    }

    /// As [`stop`](Self::stop), and it is killed after so long, whatever its ladder says.
    #[doc(alias = "TimeoutStopSec")]
    pub fn stop_timeout(&self, timeout: Duration) -> StopHandle {
        self.end(Action::StopWithin(timeout))
    }

    fn end(&self, action: Action) -> StopHandle {
        let began = now();
        self.commands.send(Command::Worker(self.shared.id, action));
        StopHandle::new(vec![Arc::clone(&self.shared)], began)
    }

    /// Has it begin anew: ends the present incarnation by the stop ladder, and starts the next one when that one's tree is gone,
    /// whatever its [restart policy](crate::WorkerSpec::restart) says and without counting as one of its restarts. A worker that
    /// has ended for good stays ended. Returns at once, with what can be waited for.
    pub fn restart(&self) -> RestartHandle {
        let restarting = RestartHandle::new([(Arc::clone(&self.shared), self.incarnation())]);
        self.commands.send(Command::Worker(self.shared.id, Action::Restart));
        restarting
    }

    /// Waits until its present incarnation is ready, or the next one: at once where its spec does not say what it takes. False
    /// when the time is over before, or when it has ended for good.
    pub fn wait_ready(&self, timeout: Duration) -> bool {
        self.shared.wait_for(now().checked_add(timeout), WorkerProcess::is_ready)
    }

    /// Which of its processes runs, or ran last, counted from 1.
    pub fn incarnation(&self) -> u32 {
        self.shared.incarnation()
    }

    /// Waits until an incarnation of at least this number has started. False when the time is over before, or when it has ended
    /// for good.
    pub fn wait_incarnation(&self, number: u32, timeout: Duration) -> bool {
        match self.shared.wait_until(now().checked_add(timeout), |process| process.number >= number) {
            WaitOutcome::Ended(_) => self.incarnation() >= number,
            WaitOutcome::Met => true,
            WaitOutcome::TimedOut => false,
        }
    }

    /// Asks it over control and waits for its answer, at most so long. Any number of threads can ask at once, and the answers
    /// may come in any order. Before the worker has connected the question waits for it.
    ///
    /// # Errors
    ///
    /// [`CallError`]: the worker's own error, or why there is no answer: [`WorkerExited`](CallError::WorkerExited) with its exit
    /// when it ends first.
    pub fn call<P, R>(&self, method: &str, params: &P, timeout: Duration) -> Result<R, CallError>
    where
        P: Serialize + ?Sized,
        R: DeserializeOwned,
    {
        let mut span = CallSpan::begin(self.shared.id, method);
        let answer = self.shared.connection().and_then(|connection| connection.ask(method, params, timeout));
        let result = answer.and_then(|answer| decode_result(&answer));
        span.end(result.as_ref().err());
        result
    }

    /// Asks it over control; the answer is waited for later, or the call is cancelled.
    ///
    /// # Errors
    ///
    /// When the question cannot be sent: never waits for a worker that does not read, but is [`QueueFull`](CallError::QueueFull) when a
    /// mebibyte waits already.
    pub fn start_call<P: Serialize + ?Sized>(&self, method: &str, params: &P) -> Result<PendingCall, CallError> {
        let mut span = CallSpan::begin(self.shared.id, method);
        let call = self.shared.connection().and_then(|connection| connection.call(method, params));
        let mut call = call.inspect_err(|error| span.end(Some(error)))?;
        call.span = span;
        Ok(call)
    }

    /// Tells it something over control.
    ///
    /// # Errors
    ///
    /// As [`start_call`](Self::start_call). That it has read it is not said.
    pub fn notify<P: Serialize + ?Sized>(&self, method: &str, params: &P) -> Result<(), CallError> {
        self.shared.connection()?.notify(method, params)
    }

    /// Takes our end of standard input, with [`StdinMode::Pipe`](crate::StdinMode::Pipe).
    pub fn take_stdin(&self) -> Option<PipeWriter> {
        lock(&self.shared.process()?.ends).stdin.take()
    }

    /// Our end of the pipe that [`input_pipe`](crate::WorkerSpec::input_pipe) named; once.
    pub fn take_writer(&self, name: &str) -> Option<PipeWriter> {
        lock(&self.shared.process()?.ends).take_writer(name)
    }

    /// Our end of the pipe that [`output_pipe`](crate::WorkerSpec::output_pipe) named; once. The supervisor does not read it.
    pub fn take_reader(&self, name: &str) -> Option<PipeReader> {
        lock(&self.shared.process()?.ends).take_reader(name)
    }

    /// How strongly what it starts is held together with it, and which means are missing, as found now; `None` while it has no
    /// process.
    pub fn containment(&self) -> Option<Containment> {
        self.shared.process().filter(|process| process.child().is_running()).map(|process| process.tree().containment())
    }
}
