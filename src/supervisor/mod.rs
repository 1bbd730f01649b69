//! The parent's side: starts workers, hears them all in one channel, ends them.

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
pub(crate) mod worker;

use crate::{
    guard::program::Guard,
    ids::WorkerId,
    launch::{context::OpenMode, error::SpawnError, spawn::prepare},
    supervisor::{
        clock::now,
        commands::{AskError, Command, CommandSender, StopAll},
        event_loop::{Driver, Parts},
        events::event::Event,
        flow_control::FlowControl,
        handles::{
            group::WorkerGroup,
            signals::SignalGuard,
            stop::{StopHandle, StopReport},
            worker::Worker,
        },
        spawner::Spawner,
        spec::{
            WorkerSpec,
            group::{GroupError, GroupPolicy},
        },
        worker::{registry::WorkerRegistry, status::SupervisorStatus},
    },
    sys::{deferred_close::DropInBackground, eventfd::Waker, this_process},
};
use crossbeam_channel::{Receiver, RecvTimeoutError};
use std::{
    io, mem,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

/// How many bytes of all workers' messages may be waiting, by default.
const WINDOW: usize = 32 << 20;
/// How much longer than it was given a shutdown waits: for the deaths of those that were killed, and for being told.
const LAST_WAIT: Duration = Duration::from_secs(6);
/// How long a start that is under way when everything else has ended is waited for, before it is left to undo itself.
const LAST_START: Duration = Duration::from_millis(500);
/// How long workers have to end by themselves when their supervisor is dropped, by default.
const GRACE_PERIOD: Duration = Duration::from_secs(2);

/// Starts workers and tells what happens to them, in one channel.
///
/// It runs two threads, for any number of workers: one that spawns, and one that does all the reading and waiting. While a start hangs
/// there is one more ([`SupervisorStatus::spawner_threads`]). None of them takes a signal, and nothing of the host is changed: no handler, no
/// `waitpid(-1)`, no environment. With the first worker its [guard](crate::guard) is started, one small process which ends all trees
/// if this process is killed.
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
///         EventKind::Exited(exit) => println!("{}: {exit}", event.worker),
///         _ => {}
///     }
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Dropping
///
/// Dropping it ends every worker for good, each by its [stop ladder](WorkerSpec::stop), and after the grace period by SIGKILL, with all
/// it has started; and the threads are joined. It takes the grace period and six seconds at the most: a start that hangs longer is left
/// to a thread that undoes it. On a thread of the supervisor itself, as in a closure of a spec, it does the same without waiting.
/// Receivers cloned from [`events`](Self::events) still give what was told until then. In a forked child of the host,
/// dropping it does nothing: the workers are the parent's.
pub struct Supervisor {
    events: Receiver<Event>,
    commands: CommandSender,
    /// `None` in a fork of the host, once dropped.
    spawner: Option<Arc<Spawner>>,
    registry: Arc<WorkerRegistry>,
    /// `None` in a fork of the host, and once dropped.
    driver: Option<Loop>,
    /// How long workers have in all when it is dropped.
    grace_period: Duration,
    owner: i32,
}

impl_debug!(Supervisor, |supervisor| { unreceived: supervisor.events.len() });

/// The thread of the event loop.
#[derive(Debug)]
struct Loop {
    thread: JoinHandle<()>,
    /// Disconnected when it has ended.
    ended: Receiver<()>,
}

impl Supervisor {
    /// A supervisor with the default settings.
    ///
    /// # Errors
    ///
    /// When no descriptor, memory or thread can be had.
    pub fn new() -> io::Result<Self> {
        Self::builder().build()
    }

    /// A supervisor with other settings.
    pub fn builder() -> SupervisorBuilder {
        SupervisorBuilder { window: WINDOW, grace_period: GRACE_PERIOD, guard: Guard::default(), subreaper: false }
    }

    /// Starts a worker and returns when its program runs. Good from any number of threads at once.
    ///
    /// The main thread starts it itself; other threads hand it to the supervisor's spawning thread, since a worker dies with
    /// the thread that started it ([`WorkerSpec::parent_death_signal`]). A host whose main thread ends before its process does, by
    /// `pthread_exit`, should spawn from another thread.
    ///
    /// # Errors
    ///
    /// [`SpawnError`]: a mistake in the spec, or the step that the kernel refused and why. Nothing is left of the attempt: no
    /// process, no descriptor, no event. Each worker costs one descriptor and one for each pipe: with the usual limit of 1024 some
    /// 300 workers fit.
    pub fn spawn(&self, spec: WorkerSpec) -> Result<Worker, SpawnError> {
        spec.validate()?;
        let id = WorkerId(self.registry.next_id());
        let spawner = self.spawner.as_ref().ok_or(SpawnError::SupervisorGone)?;
        // Held until the loop has the worker: until then the loop goes on.
        let permit = spawner.starts().permit().ok_or(SpawnError::SupervisorGone)?;
        let prepared = prepare(&spec.plan, OpenMode::Blocking)?;
        let may_start_here = Spawner::may_start_here(&spec);
        let spec = Arc::new(DropInBackground::new(spec));
        if may_start_here {
            let started = spawner.start_here(id, spec, prepared);
            drop(permit);
            return started.map(|shared| Worker::new(shared, &self.commands));
        }
        let started = Spawner::start_elsewhere(spawner, id, spec, (prepared, permit))?;
        Ok(Worker::new(started, &self.commands))
    }

    /// Everything that happens, in one crossbeam channel: good in `select!`, and to be cloned for several consumers, each of
    /// which gets a part of the events.
    ///
    /// It stays open as long as workers may still come: `for event in supervisor.events()` ends only after
    /// [`close`](Self::close).
    pub fn events(&self) -> &Receiver<Event> {
        &self.events
    }

    /// The worker of an event. It is found as long as it may say or do anything, and then as long as somebody holds it, or an event
    /// of it that is no message and no line: so for whoever looks it up at its last event, also where `spawn` has not returned yet
    /// on another thread.
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

    /// Takes no more workers. When the last one has ended the event channel ends too.
    #[doc(alias = "shutdown_input")]
    pub fn close(&self) {
        if let Some(spawner) = &self.spawner {
            spawner.starts().close();
        }
    }

    /// A group of workers that start after one another, stop in reverse, and are restarted together as a
    /// [`Strategy`](crate::Strategy) or a whole [`GroupPolicy`] says.
    ///
    /// # Errors
    ///
    /// [`GroupError::Rejected`] where it is significant, or to be restarted: there is no group around it.
    /// [`GroupError::SupervisorGone`].
    pub fn group(&self, policy: impl Into<GroupPolicy>) -> Result<WorkerGroup, GroupError> {
        WorkerGroup::add_to(None, policy.into(), &self.commands, &self.registry)
    }

    /// How everybody is. Asks the loop, which answers between two looks at the kernel. Waits 5 s for that at most, and then gives a
    /// status that is [not complete](SupervisorStatus::is_complete).
    #[doc(alias = "which_children")]
    pub fn status(&self) -> SupervisorStatus {
        self.commands.ask(Command::Snapshot).unwrap_or_else(|why| SupervisorStatus {
            workers: Vec::new(),
            // A loop that has ended may have sent what is not received yet.
            events_waiting: self.events.len(),
            spawner_threads: self.spawner.as_ref().map_or(0, |spawner| spawner.starts().threads()),
            is_complete: why == AskError::LoopGone,
        })
    }

    /// Ends every worker that is there now for good, each by its own [stop ladder](WorkerSpec::stop), and returns at once, with
    /// what can be waited for. Called again, it goes to the next rung of each ladder. Workers that are started later live.
    pub fn stop_all(&self) -> StopHandle {
        self.stop_everybody(StopAll::Present)
    }

    fn stop_everybody(&self, wanted: StopAll) -> StopHandle {
        let began = now();
        let stopping = self.commands.ask(|answer| Command::StopAll(wanted, answer)).unwrap_or_else(|why| match why {
            AskError::LoopGone => Vec::new(),
            // It will read that later: the workers that are known end then.
            AskError::TimedOut => self.registry.all(),
        });
        StopHandle::new(stopping, began)
    }

    /// Takes no more workers, ends all, and waits for that: each by its stop ladder, but killed after `timeout` in any case. What
    /// survives even that is not waited for longer than five seconds more.
    ///
    /// The events go on being told: a worker whose window is used up is killed rather than heard, unless somebody receives.
    pub fn shutdown(&self, timeout: Duration) -> StopReport {
        self.close();
        let (began, last_wait) = (now(), timeout.saturating_add(LAST_WAIT));
        let stopping = self.stop_everybody(StopAll::Within(timeout));
        stopping.wait(last_wait.saturating_sub(now().saturating_duration_since(began)))
    }

    /// Has Ctrl-C and Ctrl-Z do what people expect, for as long as the value lives that this gives. The handlers of SIGINT, SIGTERM
    /// and SIGTSTP are the process's own affair, so nothing is done unless this is called.
    ///
    /// * SIGINT or SIGTERM: no more workers are taken, as after [`close`](Self::close), and all are stopped, each by its ladder; the
    ///   events end with the last one. The second one kills them at once, unless it follows within 50 ms: what passes a Ctrl-C on, or
    ///   signals a whole group, often sends the first one twice.
    /// * SIGTSTP: the workers are stopped with all they have started, then this process; when it goes on they do, and no deadline of
    ///   theirs has come nearer meanwhile. Those of your own calls have. Of those who have left a worker's group some go on all the
    ///   time: whoever has thrown away its environment or is in the middle of an exec, and without a [cgroup](crate::status::Containment) whoever
    ///   has lost its parent. Where there is no shell above this process that could have it go on, as for the first program of a
    ///   container's terminal, nobody is stopped for longer than a moment: the kernel spares such a program.
    ///
    /// SIGHUP, when the terminal's window is closed, does what it did: by default it ends this process at once, and with it all trees.
    ///
    /// Any number of supervisors can ask for it.
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
            // A fork of the host: the threads are not here, and a lock they held at that moment is held for ever.
            self.forget();
            return;
        }
        self.close();
        self.commands.send(Command::Terminate);
        let (Some(driver), Some(spawner)) = (self.driver.take(), self.spawner.take()) else { return };
        let here = thread::current().id();
        if driver.thread.thread().id() == here || spawner.starts().is_thread(here) {
            // Dropped by the host's own code on a thread of this supervisor, which cannot wait for itself: all ends without a wait.
            return;
        }
        let timeout = self.grace_period.saturating_add(LAST_WAIT);
        if driver.ended.recv_timeout(timeout) == Err(RecvTimeoutError::Disconnected) {
            // A panic of ours has been printed by then; the host need not suffer a second one.
            drop(driver.thread.join());
            spawner.starts().wait_end(LAST_START);
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
        mem::forget(self.driver.take());
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
    /// How many bytes of all workers' messages together may be waiting for you before workers are made to wait; by default
    /// 32 MiB. Each message counts 64 bytes more than it is long.
    pub fn window(mut self, bytes: usize) -> Self {
        self.window = bytes;
        self
    }

    /// How long workers have in all when the supervisor is dropped, from the first rung of their stop ladders to SIGKILL; by
    /// default 2 s, which cuts the default ladder of 6 s short.
    pub fn grace_period(mut self, period: Duration) -> Self {
        self.grace_period = period;
        self
    }

    /// The program of the guard, the process that ends all trees when this process is killed; by default [`Guard::Auto`].
    pub fn guard(mut self, guard: Guard) -> Self {
        self.guard = guard;
        self
    }

    /// Has orphans of the workers come back to this process, so that also those are found that show no other sign of their worker:
    /// no environment, no session, group or pipe. By default they go to process 1. Without cgroups it closes the last gap.
    ///
    /// It changes the host: the process becomes a *subreaper* (`PR_SET_CHILD_SUBREAPER`), for as long as it runs. Every child that
    /// the library has not started is then taken for an orphan of a worker. One that may belong to several workers is left until
    /// the last of these ends, and is then killed with it; one that has ended is reaped, within a second. So this is for programs that
    /// own their process and start others by this library only: with [`std::process::Command`] or a C library that starts
    /// processes, their children would be killed, and their exit statuses taken.
    ///
    /// As process 1 of a container the same holds without being asked for: orphans come to process 1. A program that is process 1
    /// should set this, so that orphans are reaped; other programs run best below an init (`docker run --init`).
    #[doc(alias = "PR_SET_CHILD_SUBREAPER")]
    #[doc(alias = "init")]
    pub fn subreaper(mut self, is_subreaper: bool) -> Self {
        self.subreaper = is_subreaper;
        self
    }

    /// Starts the two threads.
    ///
    /// # Errors
    ///
    /// A window of 0 bytes is `InvalidInput`; otherwise when no descriptor, memory or thread can be had. The text names the step, and
    /// the kernel's error is the one inside ([`io::Error::get_ref`]).
    pub fn build(self) -> io::Result<Supervisor> {
        if self.window == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a window cannot be 0 bytes"));
        }
        if self.subreaper {
            this_process::become_subreaper().map_err(|error| not_built("becoming a subreaper", error))?;
        }
        let waker = Arc::new(Waker::new().map_err(|error| not_built("creating an eventfd", error))?);
        let (commands, inbox) = crossbeam_channel::unbounded();
        let (told, events) = crossbeam_channel::unbounded();
        let (running, ended) = crossbeam_channel::bounded(0);
        let commands = CommandSender { commands, waker: Arc::clone(&waker) };
        let window = Arc::new(FlowControl::of_supervisor(self.window, Arc::clone(&waker)));
        let registry = Arc::new(WorkerRegistry::new(Arc::clone(&window)));
        let spawner = Arc::new(
            Spawner::new(commands.clone(), Arc::clone(&registry), self.guard)
                .map_err(|error| not_built("setting up the guard", error))?,
        );
        let driver = Driver::new(Parts {
            inbox,
            events: told,
            commands: commands.clone(),
            window,
            grace_period: self.grace_period,
            adopts: self.subreaper,
            spawner: Arc::clone(&spawner),
        })
        .map_err(|error| not_built("setting up epoll", error))?;
        // First the thread that starts workers: if the second one cannot be had, dropping `driver` ends the first.
        spawner
            .starts()
            .begin(|number| spawner::thread(&spawner, number))
            .map_err(|error| not_built("creating the thread that starts workers", error))?;
        let thread =
            driver.start(running).map_err(|error| not_built("creating the thread of the event loop", error))?;
        Ok(Supervisor {
            events,
            commands,
            spawner: Some(spawner),
            registry,
            driver: Some(Loop { thread, ended }),
            grace_period: self.grace_period,
            owner: this_process::own_pid(),
        })
    }
}

/// Why there is no supervisor: the step, and the kernel's reason.
#[derive(Debug, thiserror::Error)]
#[error("failed to set up a supervisor: {step}: {source}")]
struct NotBuilt {
    step: &'static str,
    source: io::Error,
}

fn not_built(step: &'static str, source: io::Error) -> io::Error {
    io::Error::new(source.kind(), NotBuilt { step, source })
}
