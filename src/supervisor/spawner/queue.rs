//! The queue of starts, and the threads that serve it.
//!
//! The kernel sends the parent-death signal when the *thread* that started a process ends, so a thread lives at least as long as the
//! workers that it has started. Usually there is one thread. A start can block: in an `execve` from a file system that does not answer, in
//! a FIFO, or in a user's closure. When every thread has been in its start for longer than [`PATIENCE`], another thread takes over the
//! queue. So the number of threads is bounded by the number of starts that block at the same time, and a blocked start does not delay
//! others.

use crate::{
    ids::WorkerId,
    launch::{error::SpawnError, spawn::PreparedFds},
    supervisor::{
        clock::now,
        commands::{Command, CommandSender},
        containment::process_tree::ThreadHold,
        spec::SharedSpec,
        sync::lock,
        worker::SharedWorker,
    },
    sys::deferred_close::drop_in_background,
};
use crossbeam_channel::Sender;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{JoinHandle, ThreadId},
    time::{Duration, Instant},
};

/// The time after which another thread takes over the queue.
pub(crate) const PATIENCE: Duration = Duration::from_millis(50);

/// The time after which a start counts as blocked, and a stop of its worker does not wait for it.
pub(crate) const HANG_TIME: Duration = Duration::from_secs(1);

/// One start of a worker.
#[derive(Debug)]
pub(crate) struct SpawnRequest {
    pub(crate) id: WorkerId,
    pub(crate) spec: SharedSpec,
    pub(crate) purpose: SpawnKind,
    /// Set once the pipes are created and the files are open.
    pub(crate) prepared: Option<PreparedFds>,
    /// How many attempts have failed because the program file was busy.
    pub(crate) attempts: u32,
    /// The earliest time of the next attempt.
    pub(crate) due: Option<Instant>,
}

#[derive(Debug)]
pub(crate) enum SpawnKind {
    /// A new worker, whose caller waits for the result. The permit is held until the loop has received the process.
    New { answer: Sender<Result<Arc<SharedWorker>, SpawnError>>, _permit: SpawnPermit },
    /// The next incarnation of a worker.
    Respawn(Arc<SharedWorker>),
}

/// The starts that wait, and the threads that serve them. The lock is never held during a start.
#[derive(Debug)]
pub(crate) struct SpawnQueue {
    state: Mutex<QueueState>,
    changed: Condvar,
    commands: CommandSender,
}

#[derive(Debug, Default)]
struct QueueState {
    waiting: VecDeque<SpawnRequest>,
    threads: BTreeMap<u64, SpawnerThread>,
    last_thread: u64,
    /// New workers are refused.
    is_closed: bool,
    /// The number of permits for new workers.
    permits: usize,
    /// The loop has ended, so nothing is started any more.
    is_over: bool,
}

#[derive(Debug, Default)]
struct SpawnerThread {
    id: Option<ThreadId>,
    handle: Option<JoinHandle<()>>,
    busy: Option<Busy>,
    /// The number of its processes that would be signalled by its end.
    holds: usize,
}

#[derive(Debug, Clone, Copy)]
struct Busy {
    worker: WorkerId,
    since: Instant,
    /// The worker was stopped meanwhile, so the new process is killed.
    is_cancelled: bool,
}

impl SpawnerThread {
    fn is_idle(&self) -> bool {
        self.busy.is_none()
    }
}

/// Whether the loop has received the result of a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HandOver {
    Accepted,
    /// The worker was stopped during the start.
    Cancelled,
    /// The loop has ended.
    LoopGone,
}

impl SpawnQueue {
    pub(crate) fn new(commands: CommandSender) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), changed: Condvar::new(), commands })
    }

    fn lock(&self) -> MutexGuard<'_, QueueState> {
        lock(&self.state)
    }

    /// Permits one more new worker; `None` once closed.
    pub(crate) fn permit(self: &Arc<Self>) -> Option<SpawnPermit> {
        let mut state = self.lock();
        if state.is_closed || state.is_over {
            return None;
        }
        state.permits += 1;
        Some(SpawnPermit(Arc::clone(self)))
    }

    /// Refuses new workers. The loop is notified when the last permit is dropped.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        let is_last = !state.is_closed && state.permits == 0;
        state.is_closed = true;
        drop(state);
        if is_last {
            self.commands.send(Command::Close);
        }
    }

    /// The loop has ended: ends the threads as soon as they have undone their present starts.
    pub(crate) fn end(&self) {
        let mut state = self.lock();
        state.is_over = true;
        let left = std::mem::take(&mut state.waiting);
        drop(state);
        self.changed.notify_all();
        // Callers that wait for these receive `SupervisorGone`. Closing their files can block.
        drop_in_background(left);
    }

    pub(crate) fn is_over(&self) -> bool {
        self.lock().is_over
    }

    pub(crate) fn push(&self, start: SpawnRequest) {
        let mut state = self.lock();
        if state.is_over {
            drop(state);
            return drop_in_background(start);
        }
        state.waiting.push_back(start);
        drop(state);
        self.changed.notify_all();
    }

    /// Cancels the restart of this worker. Returns true if its process will not reach the loop: the start waits in the queue, or it is
    /// blocked, and its thread kills the process when it continues. Returns false if the process has reached the loop or is about to, since
    /// the output of a running process must be read.
    pub(crate) fn cancel(&self, worker: WorkerId) -> bool {
        let mut state = self.lock();
        if let Some(at) = state.waiting.iter().position(|start| start.id == worker) {
            let start = state.waiting.remove(at);
            drop(state);
            drop_in_background(start);
            return true;
        }
        let busy = state.threads.values_mut().filter_map(|thread| thread.busy.as_mut());
        let hangs = |busy: &Busy| now().saturating_duration_since(busy.since) >= HANG_TIME;
        match busy.into_iter().find(|busy| busy.worker == worker && !busy.is_cancelled && hangs(busy)) {
            Some(busy) => {
                busy.is_cancelled = true;
                true
            }
            None => false,
        }
    }

    /// Sends the result of a start to the loop, unless the loop has ended or the start was cancelled.
    pub(crate) fn hand_over(&self, thread: Option<u64>, command: impl FnOnce() -> Command) -> HandOver {
        let mut state = self.lock();
        if state.is_over {
            return HandOver::LoopGone;
        }
        let busy = thread.and_then(|number| state.threads.get_mut(&number)?.busy.as_mut());
        if let Some(busy) = busy {
            if busy.is_cancelled {
                return HandOver::Cancelled;
            }
            // From here on the start cannot be cancelled.
            busy.worker = WorkerId::SUPERVISOR;
        }
        self.commands.push_no_wake(command());
        HandOver::Accepted
    }

    pub(crate) fn wake_loop(&self) {
        self.commands.waker.wake();
    }

    /// Keeps a thread running until the returned value is dropped.
    pub(crate) fn hold_thread(self: &Arc<Self>, thread: u64) -> Option<SpawnerThreadHold> {
        self.lock().threads.get_mut(&thread)?.holds += 1;
        Some(SpawnerThreadHold { starts: Arc::clone(self), thread })
    }

    /// The number of threads.
    pub(crate) fn threads(&self) -> usize {
        self.lock().threads.len()
    }

    pub(crate) fn is_thread(&self, id: ThreadId) -> bool {
        self.lock().threads.values().any(|thread| thread.id == Some(id))
    }

    /// Whether starts are due that no thread takes, since each has been busy for longer than [`PATIENCE`].
    fn is_blocked(state: &QueueState) -> bool {
        let now = now();
        let is_stuck = |thread: &SpawnerThread| {
            thread.busy.is_some_and(|busy| now.saturating_duration_since(busy.since) >= PATIENCE)
        };
        !state.is_over
            && state.waiting.iter().any(|start| start.due.is_none_or(|due| due <= now))
            && state.threads.values().all(is_stuck)
    }

    /// Starts another thread if that is necessary. Returns true while starts wait: call it again after [`PATIENCE`].
    pub(crate) fn add_thread_if_blocked(
        &self,
        start_thread: impl FnOnce(u64) -> std::io::Result<JoinHandle<()>>,
    ) -> bool {
        let mut state = self.lock();
        if Self::is_blocked(&state) {
            // If no thread can be started, the starts wait for one that continues, or for the next call.
            drop(Self::add_thread(&mut state, start_thread));
        }
        !state.waiting.is_empty()
    }

    /// Starts a thread that serves the queue.
    pub(crate) fn begin(
        &self,
        start_thread: impl FnOnce(u64) -> std::io::Result<JoinHandle<()>>,
    ) -> std::io::Result<()> {
        Self::add_thread(&mut self.lock(), start_thread)
    }

    /// Called under the lock, so that the thread finds its entry.
    fn add_thread(
        state: &mut QueueState,
        start_thread: impl FnOnce(u64) -> std::io::Result<JoinHandle<()>>,
    ) -> std::io::Result<()> {
        let number = state.last_thread + 1;
        let handle = start_thread(number)?;
        state.last_thread = number;
        let id = Some(handle.thread().id());
        state.threads.insert(number, SpawnerThread { id, handle: Some(handle), ..SpawnerThread::default() });
        Ok(())
    }

    /// Waits for the next start of this thread; `None` when the thread is to end.
    pub(crate) fn next(&self, number: u64) -> Option<SpawnRequest> {
        let mut state = self.lock();
        loop {
            if state.is_over {
                return None;
            }
            // The oldest idle thread serves the queue, so that later ones can end.
            let has_elder = state.threads.range(..number).any(|(_, elder)| elder.is_idle());
            let holds = state.threads.get(&number)?.holds;
            if has_elder && holds == 0 {
                return None;
            }
            let now = now();
            let due = |start: &SpawnRequest| start.due.filter(|due| *due > now);
            let ready = state.waiting.iter().position(|start| due(start).is_none());
            if let Some(start) = ready.filter(|_| !has_elder).and_then(|at| state.waiting.remove(at)) {
                let busy = Busy { worker: start.id, since: now, is_cancelled: false };
                state.threads.get_mut(&number)?.busy = Some(busy);
                return Some(start);
            }
            let pause = state.waiting.iter().filter_map(due).min().map(|due| due.saturating_duration_since(now));
            state = match pause {
                Some(pause) if !has_elder => {
                    self.changed.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner).0
                }
                _ => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Records that the start of this thread has finished.
    pub(crate) fn done(&self, number: u64) {
        let mut state = self.lock();
        if let Some(thread) = state.threads.get_mut(&number) {
            thread.busy = None;
        }
        let others = state.threads.len() > 1;
        drop(state);
        if others {
            self.changed.notify_all();
        }
    }

    /// Queues a start again whose program file was busy, unless it was cancelled.
    pub(crate) fn put_back(&self, number: u64, start: SpawnRequest) {
        let is_cancelled = |state: &QueueState| state.threads.get(&number)?.busy.map(|busy| busy.is_cancelled);
        let mut state = self.lock();
        if state.is_over || is_cancelled(&state).unwrap_or(false) {
            drop(state);
            return drop_in_background(start);
        }
        // Under one lock, so that `cancel` finds the start here or there.
        if let Some(thread) = state.threads.get_mut(&number) {
            thread.busy = None;
        }
        state.waiting.push_back(start);
    }

    /// Removes a thread that ends.
    pub(crate) fn leave(&self, number: u64) {
        self.lock().threads.remove(&number);
        self.changed.notify_all();
    }

    /// Waits up to `timeout` until all threads have ended. A thread whose start is blocked is left to itself: it undoes the start when it
    /// continues.
    pub(crate) fn wait_end(&self, timeout: Duration) {
        let deadline = now().checked_add(timeout);
        let mut handles = Vec::new();
        let mut state = self.lock();
        loop {
            handles.extend(state.threads.values_mut().filter_map(|thread| thread.handle.take()));
            let left = deadline.map_or(timeout, |deadline| deadline.saturating_duration_since(now()));
            if state.threads.is_empty() || left.is_zero() {
                break;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let left: Vec<_> = state.threads.values().filter_map(|thread| thread.id).collect();
        drop(state);
        for handle in handles.into_iter().filter(|handle| !left.contains(&handle.thread().id())) {
            // A panic of the thread has been printed already, and is not passed on to the host.
            drop(handle.join());
        }
    }
}

/// Permits one new worker. The loop runs as long as there are permits.
#[derive(Debug)]
pub(crate) struct SpawnPermit(Arc<SpawnQueue>);

impl Drop for SpawnPermit {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.permits -= 1;
        let is_last = state.is_closed && state.permits == 0;
        drop(state);
        if is_last {
            self.0.commands.send(Command::Close);
        }
    }
}

/// Keeps the thread running that started a process. Dropped when the process is reaped.
#[derive(Debug)]
pub(crate) struct SpawnerThreadHold {
    starts: Arc<SpawnQueue>,
    thread: u64,
}

impl ThreadHold for SpawnerThreadHold {}

impl Drop for SpawnerThreadHold {
    fn drop(&mut self) {
        let mut state = self.starts.lock();
        let others = state.threads.len() > 1;
        let Some(thread) = state.threads.get_mut(&self.thread) else { return };
        thread.holds -= 1;
        let may_end = thread.holds == 0 && others;
        drop(state);
        if may_end {
            self.starts.changed.notify_all();
        }
    }
}
