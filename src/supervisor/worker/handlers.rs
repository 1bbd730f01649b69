//! Requests and notifications of workers that wait for a handler.

use crate::{
    ids::WorkerId,
    supervisor::{sync::lock, worker::SharedWorker},
    wire::{
        credit::{Permit, ReturnCredit},
        jsonrpc::request::Request,
    },
};
use std::{
    collections::{HashMap, VecDeque},
    mem,
    sync::{
        Arc, Condvar, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

/// What waits for the threads of one handler.
///
/// The threads serve the workers in turn, so that a worker that sends much does not delay the requests of others. What each worker may
/// have here is limited by its control window.
#[derive(Debug, Default)]
pub(crate) struct HandlerQueue {
    state: Mutex<QueueState>,
    changed: Condvar,
    pub(crate) failures: Arc<FailureReports>,
}

#[derive(Debug, Default)]
struct QueueState {
    /// Each task has a permit of a [`WaitingCount`].
    waiting: HashMap<WorkerId, VecDeque<(HandlerTask, Permit)>>,
    /// The workers in `waiting`, in the order in which they are served.
    turns: VecDeque<WorkerId>,
    is_closed: bool,
}

/// A request or notification that waits.
#[derive(Debug)]
pub(crate) struct HandlerTask {
    pub(crate) worker: Arc<SharedWorker>,
    pub(crate) request: Request,
}

impl HandlerQueue {
    fn is_closed(&self) -> bool {
        lock(&self.state).is_closed
    }

    /// Adds a task. Drops it if the queue is closed.
    pub(crate) fn push(&self, task: HandlerTask, waiting: &Arc<WaitingCount>) {
        let permit = waiting.permit();
        let mut state = lock(&self.state);
        if !state.is_closed {
            let worker = task.worker.id;
            let of_worker = state.waiting.entry(worker).or_default();
            of_worker.push_back((task, permit));
            if of_worker.len() == 1 {
                state.turns.push_back(worker);
            }
            drop(state);
            self.changed.notify_one();
        }
    }

    /// Waits for the next request or notification; `None` once the queue is closed.
    pub(crate) fn take(&self) -> Option<HandlerTask> {
        let mut state = lock(&self.state);
        while !state.is_closed {
            if let Some((task, _)) = state.next() {
                return Some(task);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        None
    }

    /// Ends the threads, and answers the requests that wait with errors.
    pub(crate) fn close(&self) {
        let mut state = lock(&self.state);
        state.is_closed = true;
        state.turns.clear();
        let waiting = mem::take(&mut state.waiting);
        drop(state);
        self.changed.notify_all();
        // A request that is dropped sends an error, for which no lock must be held.
        drop(waiting);
    }
}

impl QueueState {
    fn next(&mut self) -> Option<(HandlerTask, Permit)> {
        let worker = self.turns.pop_front()?;
        let of_worker = self.waiting.get_mut(&worker)?;
        let next = of_worker.pop_front();
        if of_worker.is_empty() {
            self.waiting.remove(&worker);
        } else {
            self.turns.push_back(worker);
        }
        next
    }
}

/// The most failures of a handler that are reported and not received.
const FAILURES_MAX: usize = 8;

/// The failures of a handler that are reported and not received. No worker is paused for them, so their number is limited.
#[derive(Debug, Default)]
pub(crate) struct FailureReports {
    unreceived: AtomicUsize,
    unreported: AtomicU64,
}

impl FailureReports {
    /// Counts a failure. If it is to be reported, returns a permit for the report and the number of earlier failures without one.
    pub(crate) fn begin(self: &Arc<Self>) -> Option<(Permit, u64)> {
        let one_more = |unreceived: usize| (unreceived < FAILURES_MAX).then_some(unreceived + 1);
        if self.unreceived.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_more).is_err() {
            self.unreported.fetch_add(1, Ordering::SeqCst);
            return None;
        }
        let permit = Permit::new(1, Arc::clone(self) as Arc<dyn ReturnCredit>);
        Some((permit, self.unreported.swap(0, Ordering::SeqCst)))
    }
}

impl ReturnCredit for FailureReports {
    fn returned(&self, number: usize) {
        self.unreceived.fetch_sub(number, Ordering::SeqCst);
    }
}

/// How many requests and notifications wait for handlers, of one worker or of all.
#[derive(Debug, Default)]
pub(crate) struct WaitingCount {
    count: AtomicUsize,
    of_all: Option<Arc<Self>>,
}

impl WaitingCount {
    pub(crate) fn of_worker(of_all: &Arc<Self>) -> Self {
        Self { count: AtomicUsize::new(0), of_all: Some(Arc::clone(of_all)) }
    }

    pub(crate) fn get(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    /// Counts one more until the permit is dropped.
    fn permit(self: &Arc<Self>) -> Permit {
        self.add(1);
        Permit::new(1, Arc::clone(self) as Arc<dyn ReturnCredit>)
    }

    fn add(&self, number: usize) {
        self.count.fetch_add(number, Ordering::SeqCst);
        if let Some(of_all) = &self.of_all {
            of_all.add(number);
        }
    }
}

impl ReturnCredit for WaitingCount {
    fn returned(&self, number: usize) {
        self.count.fetch_sub(number, Ordering::SeqCst);
        if let Some(of_all) = &self.of_all {
            of_all.returned(number);
        }
    }
}

/// Which requests and notifications a handler receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HandlerScope {
    AllWorkers,
    /// Takes precedence.
    Worker(WorkerId),
}

/// The handlers of a supervisor. They belong to the guards of their callers; one whose guard is dropped receives nothing more.
#[derive(Debug, Default)]
pub(crate) struct Handlers {
    pub(crate) waiting: Arc<WaitingCount>,
    of_all: Weak<HandlerQueue>,
    of_workers: HashMap<WorkerId, Weak<HandlerQueue>>,
}

impl Handlers {
    /// Registers a handler, in place of the one with the same scope.
    pub(crate) fn register(&mut self, scope: HandlerScope, queue: Weak<HandlerQueue>) {
        match scope {
            HandlerScope::AllWorkers => self.of_all = queue,
            HandlerScope::Worker(worker) => {
                self.of_workers.retain(|_, queue| queue.strong_count() > 0);
                self.of_workers.insert(worker, queue);
            }
        }
    }

    /// Returns the queue for the requests and notifications of a worker, if there is a handler.
    pub(crate) fn queue_of(&self, worker: WorkerId) -> Option<Arc<HandlerQueue>> {
        let of_worker = self.of_workers.get(&worker).into_iter();
        of_worker.chain([&self.of_all]).filter_map(Weak::upgrade).find(|queue| !queue.is_closed())
    }
}

impl Drop for Handlers {
    fn drop(&mut self) {
        // The event loop has ended: nothing more comes.
        let queues = mem::take(&mut self.of_workers).into_values().chain([mem::take(&mut self.of_all)]);
        for queue in queues.filter_map(|queue| queue.upgrade()) {
            queue.close();
        }
    }
}
