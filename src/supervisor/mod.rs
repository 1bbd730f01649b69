//! The parent's side: starts workers, hears them all in one channel, ends them.

mod control;
mod driver;
mod event;
mod link;
mod live;
mod meter;
mod session;
mod spawner;
mod spec;
mod worker;

use crate::{
    launch::{self, SpawnError},
    sys::{pidfd, wake::Waker},
};
use crossbeam_channel::{Receiver, Sender};
use driver::{Command, Driver, Mailbox, Parts};
use spawner::{Job, Starter};
use std::{
    io, mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

pub use event::{Disconnected, Event, EventKind, FaultEvent, Stream};
pub use link::{Call, CancelCall};
pub use spec::WorkerSpec;
pub use worker::{Worker, WorkerId};

/// How many bytes of all workers' messages may be waiting, by default.
const WINDOW: usize = 32 << 20;
/// How long workers have to end by themselves when their supervisor is dropped, by default.
const GRACE_PERIOD: Duration = Duration::from_secs(2);

/// Starts workers and tells what happens to them, in one channel.
///
/// It runs two threads, for any number of workers: one that spawns, and one that does all the reading and waiting. Neither
/// takes a signal, and nothing of the host is changed: no handler, no `waitpid(-1)`, no environment.
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
/// Dropping it ends every worker: their pipes are closed and they get SIGTERM, after the grace period SIGKILL, each with its
/// whole group where that is its own; and the threads are joined. It takes the grace period and five seconds at the most.
/// Receivers cloned from [`events`](Self::events) still give what was told until then. In a forked child of the host,
/// dropping it does nothing: the workers are the parent's.
#[derive(Debug)]
pub struct Supervisor {
    events: Receiver<Event>,
    /// `None` once closed.
    jobs: Mutex<Option<Sender<Job>>>,
    mailbox: Mailbox,
    starter: Arc<Starter>,
    last_id: AtomicU64,
    threads: Vec<JoinHandle<()>>,
    owner: i32,
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
    pub fn builder() -> Builder {
        Builder { window: WINDOW, grace_period: GRACE_PERIOD }
    }

    /// Starts a worker and returns when its program runs. Good from any number of threads at once.
    ///
    /// The main thread starts it itself; other threads hand it to the supervisor's spawning thread, since a worker dies with
    /// the thread that started it ([`WorkerSpec::death_signal`]). A host whose main thread ends before its process does, by
    /// `pthread_exit`, should spawn from another thread.
    ///
    /// # Errors
    ///
    /// [`SpawnError`]: a mistake in the spec, or the step that the kernel refused and why. Nothing is left of the attempt: no
    /// process, no descriptor, no event.
    pub fn spawn(&self, spec: WorkerSpec) -> Result<Worker, SpawnError> {
        spec.check()?;
        let id = WorkerId(self.last_id.fetch_add(1, Ordering::Relaxed) + 1);
        // Held until the worker is with the loop: the spawner, and then the loop, take this for one that may still come.
        let jobs = self.jobs().clone().ok_or(SpawnError::SupervisorGone)?;
        let prepared = launch::prepare(&spec.plan)?;
        if Starter::may_start_here(&spec) {
            return self.starter.start_here(id, spec, prepared);
        }
        let (answer, answered) = crossbeam_channel::bounded(1);
        jobs.send(Job { id, spec, prepared, answer }).map_err(|_| SpawnError::SupervisorGone)?;
        drop(jobs);
        answered.recv().map_err(|_| SpawnError::SupervisorGone)?
    }

    /// Everything that happens, in one crossbeam channel: good in `select!`, and to be cloned for several consumers, each of
    /// which gets a part of the events.
    ///
    /// It stays open as long as workers may still come: `for event in supervisor.events()` ends only after
    /// [`close`](Self::close).
    pub fn events(&self) -> &Receiver<Event> {
        &self.events
    }

    /// Takes no more workers. When the last one has ended the event channel ends too.
    pub fn close(&self) {
        self.jobs().take();
    }

    fn jobs(&self) -> MutexGuard<'_, Option<Sender<Job>>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        if pidfd::own_pid() != self.owner {
            // A fork of the host: the threads are not here, and a lock they held at that moment is held for ever.
            self.forget();
            return;
        }
        self.close();
        self.mailbox.send(Command::Stop);
        for thread in self.threads.drain(..) {
            // A panic of ours has been printed by then; the host need not suffer a second one.
            drop(thread.join());
        }
    }
}

impl Supervisor {
    #[expect(clippy::mem_forget, reason = "dropping a channel takes locks that a fork may have copied locked")]
    fn forget(&mut self) {
        let (commands, _) = crossbeam_channel::bounded(0);
        let waker = Arc::clone(&self.mailbox.waker);
        let mailbox = Mailbox { commands, waker };
        mem::forget(mem::replace(&mut self.starter, Arc::new(Starter::new(mailbox.clone()))));
        mem::forget(mem::replace(&mut self.mailbox, mailbox));
        mem::forget(mem::replace(&mut self.events, crossbeam_channel::never()));
        mem::forget(mem::replace(&mut self.jobs, Mutex::new(None)));
        mem::forget(mem::take(&mut self.threads));
    }
}

/// The settings of a [`Supervisor`].
#[derive(Debug, Clone)]
#[must_use = "nothing runs before build()"]
pub struct Builder {
    window: usize,
    grace_period: Duration,
}

impl Builder {
    /// How many bytes of all workers' messages together may be waiting for you before workers are made to wait; by default
    /// 32 MiB. Each message counts 64 bytes more than it is long.
    pub fn window(mut self, bytes: usize) -> Self {
        self.window = bytes;
        self
    }

    /// How long workers have to end by themselves, after SIGTERM, when the supervisor is dropped; by default 2 s.
    pub fn grace_period(mut self, period: Duration) -> Self {
        self.grace_period = period;
        self
    }

    /// Starts the two threads.
    ///
    /// # Errors
    ///
    /// A window of 0 bytes is `InvalidInput`; otherwise when no descriptor, memory or thread can be had.
    pub fn build(self) -> io::Result<Supervisor> {
        if self.window == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a window cannot be 0 bytes"));
        }
        let waker = Arc::new(Waker::new()?);
        let (commands, inbox) = crossbeam_channel::unbounded();
        let (told, events) = crossbeam_channel::unbounded();
        let (jobs, jobs_taken) = crossbeam_channel::unbounded();
        let (done, all_done) = crossbeam_channel::bounded(0);
        let mailbox = Mailbox { commands, waker: Arc::clone(&waker) };
        let parts =
            Parts { commands: inbox, events: told, waker, window: self.window, grace_period: self.grace_period };
        let driver = Driver::new(parts)?;
        // The spawner first: if the second thread cannot be had, dropping `done` and `jobs` ends the first.
        let starter = Arc::new(Starter::new(mailbox.clone()));
        let spawner = spawner::start(jobs_taken, Arc::clone(&starter), all_done)?;
        let driver = driver.start(done)?;
        Ok(Supervisor {
            events,
            jobs: Mutex::new(Some(jobs)),
            mailbox,
            starter,
            last_id: AtomicU64::new(0),
            threads: vec![driver, spawner],
            owner: pidfd::own_pid(),
        })
    }
}
