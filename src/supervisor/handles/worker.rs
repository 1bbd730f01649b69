//! The supervisor's handle of a worker.

use crate::{
    exit::Exit,
    ids::WorkerId,
    launch::stdio::TerminalSize,
    pipe::anonymous::ends::{PipeReader, PipeWriter},
    supervisor::{
        clock::now,
        commands::{Action, Command, CommandSender},
        containment::report::Containment,
        control::{
            call::{Caller, PendingCall, UnsentCall, decode_result},
            call_span::CallSpan,
            connection::{WhenDown, WhenFull},
        },
        handles::{
            serve::ServeGuard,
            stop::{RestartHandle, StopHandle},
        },
        sync::lock,
        worker::{SharedWorker, handlers::HandlerScope, process::WorkerProcess, wait_error::WaitError},
    },
    wire::{
        decode::{DecodeError, decode},
        jsonrpc::{
            completion::Completion,
            error::{CallError, RpcError},
            request::Request,
        },
        node_channel,
    },
};
use serde::{Serialize, de::DeserializeOwned};
use std::{io, sync::Arc, time::Duration};

/// A handle of a worker. Cheap to clone, and usable on any thread. Dropping it changes nothing.
#[derive(Clone)]
pub struct Worker {
    shared: Arc<SharedWorker>,
    commands: CommandSender,
    when_down: WhenDown,
}

impl_debug!(Worker, |worker| { id: worker.id().0, name: worker.name(), pid: worker.pid().unwrap_or_default() });

impl From<&Worker> for WorkerId {
    fn from(worker: &Worker) -> Self {
        worker.id()
    }
}

impl Worker {
    pub(crate) fn new(shared: Arc<SharedWorker>, commands: &CommandSender) -> Self {
        Self { shared, commands: commands.clone(), when_down: WhenDown::Wait }
    }

    pub(crate) fn slot(&self) -> Option<u32> {
        self.shared.slot()
    }

    #[cfg(feature = "async")]
    pub(crate) fn shared(&self) -> Arc<SharedWorker> {
        Arc::clone(&self.shared)
    }

    /// Returns the id that names the worker in events.
    pub fn id(&self) -> WorkerId {
        self.shared.id
    }

    /// Returns the name from the spec, or the file name of the program.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Returns the process id of the current incarnation, or of the last one; `None` before the first start, for example of a group member.
    /// Use it for display only: the kernel may reuse the number. [`signal`](Self::signal) never reaches another process.
    #[doc(alias = "id")]
    pub fn pid(&self) -> Option<u32> {
        self.shared.process().map(|process| process.child().pid())
    }

    /// Sends a signal to the worker's process, by its number in `libc` or `kill -l`.
    ///
    /// # Errors
    ///
    /// `ESRCH` if the process has exited and is reaped, `EINVAL` for a number that is not a signal, `EPERM` if the process runs as another
    /// user.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        self.shared.child(|child| child.signal(signal))
    }

    /// Sends a signal to the worker's process group, or to its process alone if it shares the host's group.
    ///
    /// # Errors
    ///
    /// As [`signal`](Self::signal).
    pub fn signal_group(&self, signal: i32) -> io::Result<()> {
        self.shared.child(|child| child.signal_group(signal))
    }

    /// Stops the worker and its descendants until [`thaw`](Self::thaw): by its cgroup if it has one, otherwise by SIGSTOP to its process
    /// group. The watchdog is suspended meanwhile. [`stop`](Self::stop) continues a stopped worker.
    ///
    /// # Errors
    ///
    /// As [`signal`](Self::signal); of the kind [`Other`](io::ErrorKind::Other) if the cgroup refuses.
    #[doc(alias = "pause")]
    #[doc(alias = "SIGSTOP")]
    pub fn freeze(&self) -> io::Result<()> {
        self.process()?.tree().freeze()
    }

    /// Continues the worker and its descendants.
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

    /// Sends SIGKILL to the worker's process group, or to its process alone if it shares the host's group.
    /// [`Exited`](crate::EventKind::Exited) reports the exit. Returns `Ok` if it has exited already.
    ///
    /// # Errors
    ///
    /// `EPERM` if the process runs as another user.
    pub fn kill(&self) -> io::Result<()> {
        match self.process().and_then(|process| process.kill()) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            done => done,
        }
    }

    /// Waits until the worker has ended for good and its last event is in the channel. A restart does not end the wait.
    ///
    /// A worker whose window is full cannot end before its output is received: wait on another thread than the one that receives events, or
    /// receive until [`Exited`](crate::EventKind::Exited) instead.
    pub fn wait(&self) -> Arc<Exit> {
        loop {
            if let Some((exit, _)) = self.shared.wait_ended(None) {
                return exit;
            }
        }
    }

    /// As [`wait`](Self::wait), up to `timeout`; `None` if the worker still runs, or will run again.
    pub fn wait_timeout(&self, timeout: Duration) -> Option<Arc<Exit>> {
        self.shared.wait_ended(now().checked_add(timeout)).map(|(exit, _)| exit)
    }

    /// Ends the worker for good, by its [stop policy](crate::WorkerSpec::stop). Returns at once, with a handle to wait for the end, which
    /// [`Exited`](crate::EventKind::Exited) reports too. A second call starts the next stage of the policy at once. A worker that waits for
    /// its restart is not started again. Has no effect on a worker that has ended.
    #[doc(alias = "terminate")]
    pub fn stop(&self) -> StopHandle {
        self.end(Action::Stop)
    }

    /// As [`stop`](Self::stop), and kills the worker after `timeout`, whatever its stop policy says.
    #[doc(alias = "TimeoutStopSec")]
    pub fn stop_timeout(&self, timeout: Duration) -> StopHandle {
        self.end(Action::StopWithin(timeout))
    }

    fn end(&self, action: Action) -> StopHandle {
        let began = now();
        self.commands.send(Command::Worker(self.shared.id, action));
        StopHandle::new(vec![Arc::clone(&self.shared)], began)
    }

    /// Restarts the worker: stops the current incarnation by the stop policy, and starts the next one when its process tree has ended,
    /// whatever the [restart policy](crate::WorkerSpec::restart) says. The restart does not count for that policy. A worker that has ended
    /// for good stays ended. Returns at once, with a handle to wait for the restart.
    pub fn restart(&self) -> RestartHandle {
        let restarting = RestartHandle::new([(Arc::clone(&self.shared), self.incarnation())]);
        self.commands.send(Command::Worker(self.shared.id, Action::Restart));
        restarting
    }

    /// Waits up to `timeout` until the current or the next incarnation is ready; without [`ready`](crate::WorkerSpec::ready) in its spec,
    /// it is ready when it runs.
    ///
    /// # Errors
    ///
    /// [`WaitError::TimedOut`], or [`WaitError::Ended`] with the exit if the worker has ended and does not run again by itself.
    pub fn wait_ready(&self, timeout: Duration) -> Result<(), WaitError> {
        self.shared.wait_until(now().checked_add(timeout), WorkerProcess::is_ready)
    }

    /// Returns the result of the [readiness call](crate::Readiness::call) that made the current or last incarnation ready; `None` if it was
    /// not ready, or becomes ready in another way.
    ///
    /// # Errors
    ///
    /// If the result is not an `R`.
    pub fn handshake<R: DeserializeOwned>(&self) -> Result<Option<R>, DecodeError> {
        let process = self.shared.process();
        let result = process.as_ref().and_then(|process| process.handshake());
        result.map(|result| decode(result.get())).transpose()
    }

    /// Returns the number of the current or last incarnation, counted from 1.
    pub fn incarnation(&self) -> u32 {
        self.shared.incarnation()
    }

    /// Waits up to `timeout` until an incarnation of at least this number has started.
    ///
    /// # Errors
    ///
    /// As [`wait_ready`](Self::wait_ready). A worker that has ended succeeds if it had that incarnation.
    pub fn wait_incarnation(&self, number: u32, timeout: Duration) -> Result<(), WaitError> {
        match self.shared.wait_until(now().checked_add(timeout), |process| process.number >= number) {
            Err(WaitError::Ended { .. }) if self.incarnation() >= number => Ok(()),
            result => result,
        }
    }

    /// Calls a method of the worker over its control connection, and waits up to `timeout` for the result. Any number of threads can call
    /// at once, and the results may arrive in any order.
    ///
    /// A call that cannot be sent yet waits in a queue of up to 1 MiB: for a worker that has not connected, with
    /// [`Readiness::call`](crate::Readiness::call) also for its readiness (otherwise calls are sent before it is ready), and between two
    /// incarnations for the next one, if the worker is going to be started. Calls and notifications are sent in their order. A call that was sent, even in
    /// part, is never sent again: if the incarnation exits before it has answered, the call fails, since whether it was executed is not
    /// known.
    ///
    /// # Errors
    ///
    /// [`CallError`]: the error that the worker returns, or why there is no result. [`WorkerExited`](CallError::WorkerExited) if the
    /// incarnation that was called has exited; if the worker has ended, is not restarted, or has closed its control connection; and if no
    /// incarnation runs at the timeout. With [`fail_fast`](Self::fail_fast) also if none runs at the time of the call.
    /// [`NotReady`](CallError::NotReady) if one runs, but was not ready for the call before the timeout. If the answer waits
    /// for events that the program does not receive, [`EventsUnreceived`](CallError::EventsUnreceived).
    pub fn call<P, R>(&self, method: &str, params: &P, timeout: Duration) -> Result<R, CallError>
    where
        P: Serialize + ?Sized,
        R: DeserializeOwned,
    {
        let mut span = CallSpan::begin(self.shared.id, method);
        let answer = self.caller().and_then(|caller| caller.call(method, params, timeout));
        let result = answer.and_then(|answer| decode_result(&answer));
        span.end(result.as_ref().err());
        result
    }

    /// Starts a call, as [`call`](Self::call). The result is waited for later, or the call is cancelled.
    ///
    /// # Errors
    ///
    /// If the call can be neither sent nor queued. Never blocks on a worker that does not read: with 1 MiB queued the error is
    /// [`QueueFull`](CallError::QueueFull).
    pub fn start_call<P: Serialize + ?Sized>(&self, method: &str, params: &P) -> Result<PendingCall, CallError> {
        self.prepare_call(method, params, WhenFull::Fail)?.send(Completion::default())
    }

    pub(crate) fn prepare_call<P: Serialize + ?Sized>(
        &self,
        method: &str,
        params: &P,
        when_full: WhenFull,
    ) -> Result<UnsentCall, CallError> {
        let mut span = CallSpan::begin(self.shared.id, method);
        let call = self.caller().and_then(|caller| Caller { when_full, ..caller }.prepare(method, params));
        let mut call = call.inspect_err(|error| span.end(Some(error)))?;
        call.span = span;
        Ok(call)
    }

    /// Sends a notification over the control connection. It waits for the worker as a [call](Self::call) does.
    ///
    /// # Errors
    ///
    /// As [`start_call`](Self::start_call). Does not report whether the worker has read it.
    pub fn notify<P: Serialize + ?Sized>(&self, method: &str, params: &P) -> Result<(), CallError> {
        self.caller()?.notify(method, params)
    }

    /// Returns a handle whose calls and notifications fail at once while no incarnation runs, with
    /// [`WorkerExited`](CallError::WorkerExited) and the time until the next one starts. They wait while an incarnation runs that has not
    /// connected or is not ready yet, but not for another one.
    #[doc(alias = "wait_for_ready")]
    #[must_use]
    pub fn fail_fast(&self) -> Self {
        Self { when_down: WhenDown::Fail, ..self.clone() }
    }

    pub(crate) fn caller(&self) -> Result<Caller<'_>, CallError> {
        Ok(Caller { router: self.shared.calls()?, when_down: self.when_down, when_full: WhenFull::Fail })
    }

    /// Sends a message to a worker with [`node_channel`](crate::WorkerSpec::node_channel): its `process.on("message")` receives the value.
    ///
    /// # Errors
    ///
    /// [`Unsupported`](CallError::Unsupported) for other workers. [`Encode`](CallError::Encode) if the value cannot be serialized as JSON, or
    /// is an object whose `cmd` begins with `NODE_`, which Node would keep to itself. Otherwise as [`notify`](Self::notify).
    #[doc(alias = "process.send")]
    pub fn send<T: Serialize + ?Sized>(&self, message: &T) -> Result<(), CallError> {
        let channel = Caller { router: self.shared.channel()?, when_down: self.when_down, when_full: WhenFull::Fail };
        channel.send(node_channel::message(message))
    }

    /// Sends bytes to a worker that receives messages. Fails at once while no incarnation runs. The caller frames them, and bounds what is
    /// queued.
    pub(crate) fn send_frames(&self, frames: Vec<u8>) -> Result<(), CallError> {
        let router = self.shared.channel()?;
        Caller { router, when_down: WhenDown::Fail, when_full: WhenFull::Queue }.send(Ok(frames))
    }

    /// As [`Supervisor::serve`](crate::Supervisor::serve), for this worker alone: the requests and notifications of all its incarnations.
    /// It takes precedence over a handler of the supervisor, and has threads of its own.
    ///
    /// What the worker sent before this call is not passed on: to miss nothing of a worker that sends at once, use
    /// [`Supervisor::serve`](crate::Supervisor::serve) before it is spawned.
    ///
    /// # Errors
    ///
    /// If no thread can be created.
    pub fn serve<R: Serialize>(
        &self,
        threads: usize,
        handler: impl Fn(&Request) -> Result<R, RpcError> + Send + Sync + 'static,
    ) -> io::Result<ServeGuard> {
        let scope = HandlerScope::Worker(self.shared.id);
        ServeGuard::start((&self.commands, scope), threads, move |_, request| handler(request))
    }

    /// Changes the size of the worker's [pseudo-terminal](crate::OutputMode::Pty); its foreground process group receives SIGWINCH. Later
    /// incarnations start with this size.
    ///
    /// # Errors
    ///
    /// `ENOTTY` without a pseudo-terminal. `ESRCH` if no process runs; the next incarnation starts with this size all the same.
    pub fn resize(&self, size: TerminalSize) -> io::Result<()> {
        self.shared.resize(size)
    }

    /// Takes our end of standard input, with [`StdinMode::Pipe`](crate::StdinMode::Pipe) or [`Pty`](crate::StdinMode::Pty).
    pub fn take_stdin(&self) -> Option<PipeWriter> {
        lock(&self.shared.process()?.ends).take_stdin()
    }

    /// Takes our end of the pipe that [`input_pipe`](crate::WorkerSpec::input_pipe) named; `None` after the first call.
    pub fn take_writer(&self, name: &str) -> Option<PipeWriter> {
        lock(&self.shared.process()?.ends).take_writer(name)
    }

    /// Takes our end of the pipe that [`output_pipe`](crate::WorkerSpec::output_pipe) named; `None` after the first call. The supervisor
    /// does not read it.
    pub fn take_reader(&self, name: &str) -> Option<PipeReader> {
        lock(&self.shared.process()?.ends).take_reader(name)
    }

    /// Returns how the worker's descendants are held together, and which kernel features are missing for more, as found now; `None` without
    /// a running process.
    pub fn containment(&self) -> Option<Containment> {
        self.shared.process().filter(|process| process.child().is_running()).map(|process| process.tree().containment())
    }
}
