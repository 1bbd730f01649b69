//! The supervisor: starts workers, reports what happens to them in one channel, and stops them.

pub(crate) mod clock;
pub(crate) mod commands;
pub(crate) mod containment;
pub(crate) mod control;
pub(crate) mod event_loop;
pub(crate) mod events;
pub(crate) mod flow_control;
pub(crate) mod handles;
pub(crate) mod incarnation;
pub(crate) mod panics;
pub(crate) mod process_trees;
pub(crate) mod reactor;
pub(crate) mod spawner;
pub(crate) mod spec;
pub(crate) mod supervision;
pub(crate) mod sync;
#[cfg(feature = "async")]
pub(crate) mod wakers;
pub(crate) mod worker;

#[cfg(feature = "async")]
use crate::supervisor::{handles::event_stream::EventStream, wakers::WakerSet};
use crate::{
    guard::program::Guard,
    ids::WorkerId,
    launch::error::SpawnError,
    supervisor::{
        clock::now,
        commands::{AskError, Command, CommandSender, StopAll},
        event_loop::{EventLoop, EventLoopConfig},
        events::{event::Event, sink::EventSink},
        flow_control::FlowControl,
        handles::{
            attachment::Attachment,
            group::WorkerGroup,
            jobs::JobIntake,
            serve::ServeGuard,
            signals::SignalGuard,
            spawn::WorkerStarter,
            stop::{StopHandle, StopReport},
            worker::Worker,
        },
        spawner::Spawner,
        spec::{
            WorkerSpec,
            group::{GroupError, GroupPolicy},
        },
        worker::{handlers::HandlerScope, registry::WorkerRegistry, status::SupervisorStatus},
    },
    sys::{deferred_close::DropInBackground, eventfd::Waker, this_process},
    wire::jsonrpc::{error::RpcError, request::Request},
};
use crossbeam_channel::{Receiver, RecvTimeoutError};
use serde::Serialize;
use std::{
    io, mem,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

/// The default window of all workers together, in bytes.
const WINDOW: usize = 32 << 20;
/// The time that a shutdown waits beyond its timeout, for the exits of killed processes and their events.
const SHUTDOWN_WAIT_TIME: Duration = Duration::from_secs(6);
/// The time that a start is waited for when everything else has ended. After that it is left to its thread, which undoes it.
const PENDING_START_WAIT_TIME: Duration = Duration::from_millis(500);
/// The default time for workers to end by themselves when their supervisor is dropped.
const GRACE_PERIOD: Duration = Duration::from_secs(2);

/// Starts workers and reports what happens to them in one channel.
///
/// A supervisor runs two threads for any number of workers: one that starts processes, and one event loop. While a start blocks there is
/// one more ([`SupervisorStatus::spawner_threads`](crate::status::SupervisorStatus::spawner_threads)). All signals are blocked in these
/// threads, and the host is not changed: no signal handler, no `waitpid(-1)`, no change of the environment. The first worker also starts
/// the [guard](crate::guard), a small process that kills all process trees if this process is killed.
///
/// ```no_run
/// use pipewright::{EventKind, Pass, Supervisor, WorkerSpec};
///
/// let supervisor = Supervisor::new()?;
/// for file in ["a.c", "b.c"] {
///     supervisor.spawn(WorkerSpec::new("./compile-worker").arg(file).messages(Pass::arg("--messages={}")))?;
/// }
/// supervisor.close(); // no more workers: the events end with the last one
/// for event in supervisor.events() {
///     match event.kind {
///         EventKind::Message(message) => println!("{}: {}", event.worker, message.as_str()?),
///         EventKind::Exited { exit, .. } => println!("{}: {exit}", event.worker),
///         _ => {}
///     }
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Dropping
///
/// Dropping the supervisor ends every worker for good, each by its [stop policy](WorkerSpec::stop), after the grace period by SIGKILL, with
/// all descendants, and joins the threads. This takes at most the grace period and six seconds: a longer start is left to its thread, which
/// undoes it. On a thread of the supervisor itself, for example in a closure of a spec, the drop does not wait. Receivers cloned from
/// [`events`](Self::events) still return the events until then. In a forked child of the host the drop does nothing, since the workers
/// belong to the parent.
pub struct Supervisor {
    events: Receiver<Event>,
    /// The tasks that wait for events.
    #[cfg(feature = "async")]
    event_tasks: Arc<WakerSet>,
    commands: CommandSender,
    /// `None` once dropped in a fork of the host.
    spawner: Option<Arc<Spawner>>,
    registry: Arc<WorkerRegistry>,
    /// `None` once dropped, also in a fork of the host.
    event_loop: Option<Loop>,
    /// The time for workers to end when the supervisor is dropped.
    grace_period: Duration,
    owner: i32,
}

impl_debug!(Supervisor, |supervisor| { unreceived: supervisor.events.len() });

/// The thread of the event loop.
#[derive(Debug)]
struct Loop {
    thread: JoinHandle<()>,
    /// Disconnected when the thread has ended.
    ended: Receiver<()>,
}

impl Supervisor {
    /// Creates a supervisor with the default settings.
    ///
    /// # Errors
    ///
    /// If no file descriptor, memory or thread is available.
    pub fn new() -> io::Result<Self> {
        Self::builder().build()
    }

    /// Returns a builder, for other settings.
    pub fn builder() -> SupervisorBuilder {
        SupervisorBuilder { window: WINDOW, grace_period: GRACE_PERIOD, guard: Guard::default(), subreaper: false }
    }

    /// Starts a worker and returns when its program runs. Can be called on any number of threads at once.
    ///
    /// The main thread starts the worker itself. Other threads pass the start to a thread of the supervisor, since the kernel signals a
    /// worker when the thread that started it ends ([`WorkerSpec::parent_death_signal`]). A host whose main thread ends before the process,
    /// by `pthread_exit`, should spawn from another thread.
    ///
    /// # Errors
    ///
    /// [`SpawnError`]: an error in the spec, or the step that the kernel refused and the reason. A failed start leaves no process, no file
    /// descriptor and no event. Each worker takes one file descriptor, and one for each pipe: the usual limit of 1024 suffices for about
    /// 300 workers.
    pub fn spawn(&self, spec: WorkerSpec) -> Result<Worker, SpawnError> {
        self.starter().ok_or(SpawnError::SupervisorGone)?.spawn(spec)
    }

    /// Returns what starts workers of this supervisor; `None` in a fork of the host.
    pub(crate) fn starter(&self) -> Option<WorkerStarter> {
        let spawner = Arc::clone(self.spawner.as_ref()?);
        Some(WorkerStarter { commands: self.commands.clone(), registry: Arc::clone(&self.registry), spawner })
    }

    /// Creates a worker whose process is started elsewhere, for example in a debugger, and connects: see [`Attachment`].
    ///
    /// # Errors
    ///
    /// As [`spawn`](Self::spawn), and [`SpecError::Conflict`](crate::SpecError::Conflict) for settings that such a process cannot have.
    #[doc(alias = "debug")]
    #[doc(alias = "ReattachConfig")]
    pub fn attach(&self, spec: WorkerSpec) -> Result<Attachment, SpawnError> {
        let spec = Arc::new(DropInBackground::new(spec.into_attached()?));
        let spawner = self.spawner.as_ref().ok_or(SpawnError::SupervisorGone)?;
        let (shared, address) = spawner.attach(&spec)?;
        Ok(Attachment::new(Worker::new(shared, &self.commands), &spec, &address.to_string()))
    }

    /// Returns the crossbeam channel of all events. It works with `select!`, and can be cloned for several consumers, each of which
    /// receives a part of the events.
    ///
    /// The channel is open as long as workers can be added: `for event in supervisor.events()` ends only after [`close`](Self::close).
    pub fn events(&self) -> &Receiver<Event> {
        &self.events
    }

    /// Returns the events as a stream, for asynchronous programs. As [`events`](Self::events), with tasks instead of threads: several
    /// streams receive a part of the events each, and the stream ends after [`close`](Self::close).
    ///
    /// Requires the feature `async`. See [In an async program](crate::docs::async_programs).
    #[cfg(feature = "async")]
    pub fn event_stream(&self) -> EventStream {
        EventStream::new(self.events.clone(), self.event_tasks.slot())
    }

    /// Handles the requests and notifications of all workers, present and future, with a function on `threads` threads, or as many as the
    /// system allows: the counterpart of [`Parent::serve`](crate::Parent::serve). They are no events then, so that calls do not depend on
    /// the consumer of [`events`](Self::events). Returns at once; dropping the returned [`ServeGuard`] ends it.
    ///
    /// The function returns any type that serializes, and `?` converts every error into an [`RpcError`]. A panic is answered with an
    /// error. [`ServeGuard`] describes the order, the backpressure and the precedence of handlers.
    ///
    /// ```no_run
    /// use pipewright::{Pass, RpcError, Supervisor, WorkerSpec};
    /// use serde_json::{Value, json};
    /// use std::time::Duration;
    ///
    /// let supervisor = Supervisor::new()?;
    /// let _serving = supervisor.serve(2, |worker, request| match request.method() {
    ///     "log" => Ok(Value::Null), // a notification: the result is ignored
    ///     "name" => Ok(json!(worker.name())),
    ///     "read" => Ok(json!(std::fs::read_to_string(request.params::<[String; 1]>()?.concat())?)),
    ///     other => Err(RpcError::method_not_found(other)),
    /// })?;
    /// let plugin = supervisor.spawn(WorkerSpec::new("./plugin").control(Pass::env("PIPEWRIGHT_CONTROL")))?;
    /// let formatted: String = plugin.call("format", &["fn main(){}"], Duration::from_secs(5))?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// If no thread can be created.
    #[doc(alias = "onRequest")]
    #[doc(alias = "onNotification")]
    pub fn serve<R: Serialize>(
        &self,
        threads: usize,
        handler: impl Fn(&Worker, &Request) -> Result<R, RpcError> + Send + Sync + 'static,
    ) -> io::Result<ServeGuard> {
        let commands = self.commands.clone();
        let handler = move |worker, request: &Request| handler(&Worker::new(worker, &commands), request);
        ServeGuard::start((&self.commands, HandlerScope::AllWorkers), threads, handler)
    }

    /// Returns the worker of an event. A worker is found until its last event is sent, and then as long as a handle of it or an event other
    /// than a message or a line exists. So it is found for its last event, also if `spawn` has not returned yet on another thread.
    ///
    /// ```no_run
    /// # let supervisor = pipewright::Supervisor::new()?;
    /// for event in supervisor.events() {
    ///     if let Some(worker) = supervisor.worker(event.worker) {
    ///         println!("{}: {:?}", worker.name(), event.kind);
    ///     }
    /// }
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn worker(&self, id: WorkerId) -> Option<Worker> {
        self.registry.find(id).map(|shared| Worker::new(shared, &self.commands))
    }

    /// Refuses new workers. The event channel is closed when the last worker has ended.
    #[doc(alias = "shutdown_input")]
    pub fn close(&self) {
        if let Some(spawner) = &self.spawner {
            spawner.starts().close();
        }
    }

    /// Creates a group: workers that start after one another, stop in reverse order, and are restarted together according to a
    /// [`Strategy`](crate::Strategy) or a [`GroupPolicy`].
    ///
    /// # Errors
    ///
    /// [`GroupError::Rejected`] if the policy makes it significant or restarts it: it has no parent group. [`GroupError::SupervisorGone`].
    pub fn group(&self, policy: impl Into<GroupPolicy>) -> Result<WorkerGroup, GroupError> {
        WorkerGroup::add_to(None, policy.into(), &self.commands, &self.registry)
    }

    /// Returns the status of all workers. If the event loop does not answer within 5 s, the status is [not
    /// complete](SupervisorStatus::is_complete).
    #[doc(alias = "which_children")]
    pub fn status(&self) -> SupervisorStatus {
        self.commands.ask(Command::Snapshot).unwrap_or_else(|why| SupervisorStatus {
            workers: Vec::new(),
            // A loop that has ended may have sent events that are not received yet.
            events_waiting: self.events.len(),
            spawner_threads: self.spawner.as_ref().map_or(0, |spawner| spawner.starts().threads()),
            is_complete: why == AskError::LoopGone,
        })
    }

    /// Ends all current workers for good, each by its [stop policy](WorkerSpec::stop). Returns at once, with a handle to wait for the ends.
    /// A second call starts the next stage of each policy. Workers that are started later are not affected.
    pub fn stop_all(&self) -> StopHandle {
        self.stop_workers(StopAll::Present)
    }

    /// What adds jobs to this supervisor.
    pub(crate) fn intake(&self) -> JobIntake {
        let starts = self.spawner.as_ref().map(|spawner| Arc::clone(spawner.starts()));
        JobIntake::new(self.commands.clone(), Arc::clone(&self.registry), starts)
    }

    fn stop_workers(&self, request: StopAll) -> StopHandle {
        let began = now();
        let stopping = self.commands.ask(|answer| Command::StopAll(request, answer)).unwrap_or_else(|why| match why {
            AskError::LoopGone => Vec::new(),
            // The loop will execute the command later: the workers that are known end then.
            AskError::TimedOut => self.registry.all(),
        });
        StopHandle::new(stopping, began)
    }

    /// Refuses new workers, stops all workers by their stop policies, kills them after `timeout`, and waits for their ends. Processes that
    /// SIGKILL does not end are waited for up to 5 s more.
    ///
    /// Events are still sent: a worker whose window is full is killed at the timeout, unless the events are received.
    pub fn shutdown(&self, timeout: Duration) -> StopReport {
        self.close();
        let (began, wait_time) = (now(), timeout.saturating_add(SHUTDOWN_WAIT_TIME));
        let stopping = self.stop_workers(StopAll::Within(timeout));
        stopping.wait(wait_time.saturating_sub(now().saturating_duration_since(began)))
    }

    /// Handles Ctrl-C and Ctrl-Z for as long as the returned value exists. The handlers of SIGINT, SIGTERM and SIGTSTP belong to the
    /// process, so nothing is done without this call.
    ///
    /// * SIGINT or SIGTERM: new workers are refused, as after [`close`](Self::close), and all are stopped by their stop policies; the
    ///   events end with the last one. The second signal kills them at once, unless it follows within 50 ms: programs that forward
    ///   Ctrl-C, or signal a whole group, often send the first one twice.
    /// * SIGTSTP: stops the workers with their descendants, then this process. When it continues, they do too, and the deadlines of
    ///   workers are moved by that time, but not those of your own calls. Descendants that have left a worker's group are not stopped if
    ///   they have cleared their environment or are in the middle of an exec, and without a [cgroup](crate::status::Containment) if their
    ///   parent has exited. If there is no shell above this process to continue it, as for the first program of a container's terminal,
    ///   the kernel does not stop it, and the workers continue at once.
    ///
    /// SIGHUP, when the terminal is closed, is not changed: by default it ends this process at once, and with it all process trees.
    ///
    /// Any number of supervisors can call it. [`SignalGuard::received`] returns the signal that stopped the workers, for the exit code.
    ///
    /// # Errors
    ///
    /// When no descriptor or thread can be had.
    #[doc(alias = "ctrlc")]
    pub fn handle_signals(&self) -> io::Result<SignalGuard> {
        let starts = self.spawner.as_ref().map(|spawner| Arc::clone(spawner.starts()));
        SignalGuard::listen(self.commands.clone(), starts.ok_or(io::ErrorKind::BrokenPipe)?)
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        if this_process::own_pid() != self.owner {
            // In a fork of the host the threads do not exist, and a lock that they held is never released.
            self.forget();
            return;
        }
        self.close();
        self.commands.send(Command::Terminate);
        let (Some(event_loop), Some(spawner)) = (self.event_loop.take(), self.spawner.take()) else { return };
        let here = thread::current().id();
        if event_loop.thread.thread().id() == here || spawner.starts().is_thread(here) {
            // Dropped by user code on a thread of this supervisor, which cannot wait for itself.
            return;
        }
        let timeout = self.grace_period.saturating_add(SHUTDOWN_WAIT_TIME);
        if event_loop.ended.recv_timeout(timeout) == Err(RecvTimeoutError::Disconnected) {
            // A panic of the loop has been printed already, and is not passed on to the host.
            drop(event_loop.thread.join());
            spawner.starts().wait_end(PENDING_START_WAIT_TIME);
        }
    }
}

impl Supervisor {
    #[expect(clippy::mem_forget, reason = "dropping a channel takes locks that a fork may have copied locked")]
    fn forget(&mut self) {
        let (commands, _) = crossbeam_channel::bounded(0);
        let waker = Arc::clone(&self.commands.waker);
        let commands = CommandSender { commands, waker };
        mem::forget(self.spawner.take());
        mem::forget(mem::replace(&mut self.commands, commands));
        mem::forget(mem::replace(&mut self.events, crossbeam_channel::never()));
        mem::forget(self.event_loop.take());
    }
}

/// The settings of a [`Supervisor`].
#[derive(Debug, Clone)]
#[must_use = "nothing runs before build()"]
pub struct SupervisorBuilder {
    window: usize,
    grace_period: Duration,
    guard: Guard,
    subreaper: bool,
}

impl SupervisorBuilder {
    /// Sets how many bytes of all workers together may wait for the consumer before workers are paused; by default 32 MiB. Each message
    /// counts 64 bytes more than its length.
    pub fn window(mut self, bytes: usize) -> Self {
        self.window = bytes;
        self
    }

    /// Sets the time for workers to end when the supervisor is dropped, from the first stage of their stop policies to SIGKILL; by default
    /// 2 s, which is shorter than the default stop policy of 6 s.
    pub fn grace_period(mut self, period: Duration) -> Self {
        self.grace_period = period;
        self
    }

    /// Sets the program of the guard, the process that kills all trees when this process is killed; by default [`Guard::Auto`].
    pub fn guard(mut self, guard: Guard) -> Self {
        self.guard = guard;
        self
    }

    /// Makes orphans of the workers children of this process, so that also those are found that show no other sign of their worker: no
    /// environment, session, group or pipe. By default they become children of process 1. Without cgroups this closes the last gap.
    ///
    /// This changes the host: the process becomes a *subreaper* (`PR_SET_CHILD_SUBREAPER`) for as long as it runs. Every child that the
    /// library has not started is then taken for an orphan of a worker. A child that may belong to several workers is left until the last
    /// of these ends, and is then killed with it; a child that has exited is reaped within a second. So use it only in programs that start
    /// processes with this library alone: the children of [`std::process::Command`] or of C libraries would be killed, and their exit
    /// statuses taken.
    ///
    /// Process 1 of a container becomes the parent of orphans in any case. A program that is process 1 should set this, so that orphans are
    /// reaped; other programs run best below an init (`docker run --init`).
    #[doc(alias = "PR_SET_CHILD_SUBREAPER")]
    #[doc(alias = "init")]
    pub fn subreaper(mut self, is_subreaper: bool) -> Self {
        self.subreaper = is_subreaper;
        self
    }

    /// Creates the supervisor and starts its two threads.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for a window of 0 bytes; otherwise if no file descriptor, memory or thread is available. The text names the step, and
    /// the kernel's error is the inner one ([`io::Error::get_ref`]).
    pub fn build(self) -> io::Result<Supervisor> {
        if self.window == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a window cannot be 0 bytes"));
        }
        if self.subreaper {
            this_process::become_subreaper().map_err(|error| not_built("becoming a subreaper", error))?;
        }
        let waker = Arc::new(Waker::new().map_err(|error| not_built("creating an eventfd", error))?);
        let (commands, inbox) = crossbeam_channel::unbounded();
        let (event_sender, events) = crossbeam_channel::unbounded();
        let sink = EventSink::new(event_sender);
        #[cfg(feature = "async")]
        let event_tasks = Arc::clone(sink.tasks());
        let (running, ended) = crossbeam_channel::bounded(0);
        let commands = CommandSender { commands, waker: Arc::clone(&waker) };
        let window = Arc::new(FlowControl::of_supervisor(self.window, Arc::clone(&waker)));
        let registry = Arc::new(WorkerRegistry::new(Arc::clone(&window)));
        let spawner = Arc::new(
            Spawner::new(commands.clone(), Arc::clone(&registry), self.guard)
                .map_err(|error| not_built("setting up the guard", error))?,
        );
        let event_loop = EventLoop::new(EventLoopConfig {
            inbox,
            sink,
            commands: commands.clone(),
            window,
            grace_period: self.grace_period,
            adopts: self.subreaper,
            spawner: Arc::clone(&spawner),
        })
        .map_err(|error| not_built("setting up epoll", error))?;
        // First the thread that starts workers: if the second thread cannot be created, dropping `event_loop` ends the first.
        spawner
            .starts()
            .begin(|number| spawner::thread(&spawner, number))
            .map_err(|error| not_built("creating the thread that starts workers", error))?;
        let thread =
            event_loop.start(running).map_err(|error| not_built("creating the thread of the event loop", error))?;
        Ok(Supervisor {
            events,
            #[cfg(feature = "async")]
            event_tasks,
            commands,
            spawner: Some(spawner),
            registry,
            event_loop: Some(Loop { thread, ended }),
            grace_period: self.grace_period,
            owner: this_process::own_pid(),
        })
    }
}

/// A failed setup: the step, and the kernel's error.
#[derive(Debug, thiserror::Error)]
#[error("failed to set up a supervisor: {step}: {source}")]
struct NotBuilt {
    step: &'static str,
    source: io::Error,
}

fn not_built(step: &'static str, source: io::Error) -> io::Error {
    io::Error::new(source.kind(), NotBuilt { step, source })
}
