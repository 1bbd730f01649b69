//! What the event loop and the handles of a worker share.

#[cfg(feature = "async")]
use crate::supervisor::wakers::WakerSet;
use crate::{
    exit::Exit,
    ids::WorkerId,
    launch::{child::ChildProcess, stdio::TerminalSize},
    supervisor::{
        clock::now,
        control::call_router::CallRouter,
        flow_control::WorkerWindow,
        sync::lock,
        worker::{process::WorkerProcess, wait_error::WaitError},
    },
    wire::jsonrpc::{dialect::Dialect, error::CallError, stdio_protocol::RpcProtocol},
};
#[cfg(feature = "async")]
use std::{future::poll_fn, task::Poll};
use std::{
    io,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};
pub(crate) mod process;
pub(crate) mod budget;
pub(crate) mod group;
pub(crate) mod handlers;
pub(crate) mod job;
pub(crate) mod notify_socket;
pub(crate) mod registry;
pub(crate) mod sockets;
pub(crate) mod status;
pub(crate) mod wait_error;

/// The state of a worker that its handles and the event loop share.
#[derive(Debug)]
pub(crate) struct SharedWorker {
    pub(crate) id: WorkerId,
    pub(crate) name: Box<str>,
    current: Mutex<CurrentProcess>,
    changed: Condvar,
    /// The tasks that wait as threads do for `changed`.
    #[cfg(feature = "async")]
    tasks: Arc<WakerSet>,
    pub(crate) window: WorkerWindow,
    /// `None` if the spec has no control.
    calls: Option<Arc<CallRouter>>,
    /// The number of the slot that its job has, or had last; 0 before.
    slot: AtomicU32,
}

#[derive(Debug)]
pub(crate) struct CurrentProcess {
    /// The current incarnation, or the last one; `None` before the first start.
    process: Option<Arc<WorkerProcess>>,
    /// The last exit and its time, once the worker has ended for good.
    ended: Option<(Arc<Exit>, Instant)>,
    /// The size that a handle has set, for the next incarnations.
    terminal_size: Option<TerminalSize>,
}

impl SharedWorker {
    pub(crate) fn new(
        (id, name): (WorkerId, Box<str>),
        process: Option<Arc<WorkerProcess>>,
        window: WorkerWindow,
        control: Option<RpcProtocol>,
    ) -> Self {
        let calls = control.map(|protocol| Arc::new(CallRouter::new(protocol, process.is_some())));
        let current = Mutex::new(CurrentProcess { process, ended: None, terminal_size: None });
        Self {
            id,
            name,
            current,
            changed: Condvar::new(),
            #[cfg(feature = "async")]
            tasks: Arc::default(),
            window,
            calls,
            slot: AtomicU32::new(0),
        }
    }

    pub(crate) fn id(&self) -> WorkerId {
        self.id
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The number of the slot that its job has, or had last.
    pub(crate) fn slot(&self) -> Option<u32> {
        Some(self.slot.load(Ordering::Relaxed)).filter(|slot| *slot > 0)
    }

    pub(crate) fn set_slot(&self, slot: u32) {
        self.slot.store(slot, Ordering::Relaxed);
    }

    pub(crate) fn process(&self) -> Option<Arc<WorkerProcess>> {
        lock(&self.current).process.clone()
    }

    /// The number of the current or last incarnation; 0 before the first start.
    pub(crate) fn incarnation(&self) -> u32 {
        lock(&self.current).process.as_ref().map_or(0, |process| process.number)
    }

    /// The size of the terminal that a handle has set.
    pub(crate) fn terminal_size(&self) -> Option<TerminalSize> {
        lock(&self.current).terminal_size
    }

    /// Changes the size of the terminal of the current incarnation and of those to come.
    pub(crate) fn resize(&self, size: TerminalSize) -> io::Result<()> {
        let mut current = lock(&self.current);
        current.terminal_size = Some(size);
        current.process.as_ref().ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?.resize(size)
    }

    pub(crate) fn child<T>(&self, run: impl FnOnce(&ChildProcess) -> io::Result<T>) -> io::Result<T> {
        let process = self.process().ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?;
        run(process.child())
    }

    /// The route of calls to the worker.
    pub(crate) fn calls(&self) -> Result<&Arc<CallRouter>, CallError> {
        let calls = self.calls.as_ref().ok_or(CallError::NotConnected)?;
        let reason = "Node's channel carries messages only: use `Worker::send`";
        if calls.protocol().dialect == Dialect::Messages {
            return Err(CallError::Unsupported { operation: "call", reason });
        }
        Ok(calls)
    }

    /// The route of messages on Node's channel.
    pub(crate) fn channel(&self) -> Result<&Arc<CallRouter>, CallError> {
        let channel = self.calls.as_ref().filter(|calls| calls.protocol().dialect == Dialect::Messages);
        let reason = "the spec does not set `node_channel`";
        channel.ok_or(CallError::Unsupported { operation: "send", reason })
    }

    /// Calls `change` with the route of calls, if there is one.
    pub(crate) fn route_calls(&self, change: impl FnOnce(&CallRouter)) {
        if let Some(calls) = &self.calls {
            change(calls);
        }
    }

    /// Sets the process of the next incarnation.
    pub(crate) fn set_process(&self, process: &Arc<WorkerProcess>) {
        self.route_calls(CallRouter::started);
        let mut current = lock(&self.current);
        current.process = Some(Arc::clone(process));
        current.ended = None;
        if let Some(size) = current.terminal_size {
            // It may have been set while the process was started. Otherwise the process has it already.
            drop(process.resize(size));
        }
        drop(current);
        self.wake();
    }

    /// Wakes the waiters, which check their conditions again.
    pub(crate) fn notify_waiters(&self) {
        drop(lock(&self.current));
        self.wake();
    }

    fn wake(&self) {
        self.changed.notify_all();
        #[cfg(feature = "async")]
        self.tasks.wake_all();
    }

    /// Clears the end of a group member that is to run again.
    pub(crate) fn clear_end(&self) {
        lock(&self.current).ended = None;
        self.route_calls(|calls| calls.schedule_start(Duration::ZERO));
    }

    /// Ends the calls that were sent to the incarnation that has exited. Whether another one follows was decided before.
    pub(crate) fn incarnation_exited(&self, exit: &Arc<Exit>) {
        let process = self.process();
        self.route_calls(|calls| calls.exited(process.as_ref().and_then(|process| process.connection()), exit));
    }

    /// Sets the end of the worker, and wakes the waiters.
    pub(crate) fn set_ended(&self, last: (Arc<Exit>, Instant)) {
        self.end_with(last, || ());
    }

    /// As [`set_ended`](Self::set_ended), and sends the final event at the same moment: a caller that has received the event finds the
    /// end, and one that has waited for the end finds the event in the channel.
    pub(crate) fn end_with(&self, last: (Arc<Exit>, Instant), send: impl FnOnce()) {
        self.route_calls(|calls| calls.ended(&last.0));
        let mut current = lock(&self.current);
        current.ended = Some(last);
        send();
        drop(current);
        self.wake();
    }

    /// Waits until the worker has ended for good; `None` at the deadline.
    pub(crate) fn wait_ended(&self, deadline: Option<Instant>) -> Option<(Arc<Exit>, Instant)> {
        drop(self.wait_until(deadline, |_| false));
        lock(&self.current).ended.clone()
    }

    /// Waits until the current or a later incarnation meets `condition`.
    pub(crate) fn wait_until(
        &self,
        deadline: Option<Instant>,
        condition: impl Fn(&WorkerProcess) -> bool,
    ) -> Result<(), WaitError> {
        let mut current = lock(&self.current);
        loop {
            if let Some(outcome) = current.outcome(self.id, &condition) {
                return outcome;
            }
            // A deadline beyond the range of the clock is never reached.
            let left = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(now()));
            if left.is_zero() {
                return Err(WaitError::TimedOut { worker: self.id });
            }
            current = self.changed.wait_timeout(current, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(feature = "async")]
impl SharedWorker {
    /// As [`wait_until`](Self::wait_until), for a task.
    pub(crate) async fn until(self: Arc<Self>, condition: impl Fn(&WorkerProcess) -> bool) -> Result<(), WaitError> {
        let slot = self.tasks.slot();
        poll_fn(|context| {
            slot.register(context.waker());
            lock(&self.current).outcome(self.id, &condition).map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}

impl CurrentProcess {
    /// The result of a wait for this worker, if the wait is over.
    fn outcome(&self, worker: WorkerId, condition: impl Fn(&WorkerProcess) -> bool) -> Option<Result<(), WaitError>> {
        if let Some((exit, _)) = &self.ended {
            return Some(Err(WaitError::Ended { worker, exit: Arc::clone(exit) }));
        }
        self.process.as_deref().is_some_and(condition).then_some(Ok(()))
    }
}
