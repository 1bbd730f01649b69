//! What the event loop and the handles of a worker share.

use crate::{
    exit::Exit,
    ids::WorkerId,
    launch::child::ChildProcess,
    supervisor::{
        clock::now, control::connection::RpcConnection, flow_control::WorkerWindow, sync::lock,
        worker::process::WorkerProcess,
    },
    wire::jsonrpc::error::CallError,
};
use std::{
    io,
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};
pub(crate) mod process;
pub(crate) mod group;
pub(crate) mod notify_socket;
pub(crate) mod registry;
pub(crate) mod sockets;
pub(crate) mod status;

/// What the handles and the loop know together of a worker.
#[derive(Debug)]
pub(crate) struct SharedWorker {
    pub(crate) id: WorkerId,
    pub(crate) name: Box<str>,
    current: Mutex<CurrentProcess>,
    changed: Condvar,
    pub(crate) window: WorkerWindow,
}

#[derive(Debug)]
pub(crate) struct CurrentProcess {
    /// The present incarnation, or the last one; none where it has not been started yet, as a member of a group.
    process: Option<Arc<WorkerProcess>>,
    /// How the last incarnation ended, and when, once there will be no other.
    ended: Option<(Arc<Exit>, Instant)>,
}

impl SharedWorker {
    pub(crate) fn new(
        (id, name): (WorkerId, Box<str>),
        process: Option<Arc<WorkerProcess>>,
        window: WorkerWindow,
    ) -> Self {
        let current = Mutex::new(CurrentProcess { process, ended: None });
        Self { id, name, current, changed: Condvar::new(), window }
    }

    pub(crate) fn id(&self) -> WorkerId {
        self.id
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn process(&self) -> Option<Arc<WorkerProcess>> {
        lock(&self.current).process.clone()
    }

    /// The number of the present incarnation, or of the last; 0 before the first.
    pub(crate) fn incarnation(&self) -> u32 {
        lock(&self.current).process.as_ref().map_or(0, |process| process.number)
    }

    pub(crate) fn child<T>(&self, run: impl FnOnce(&ChildProcess) -> io::Result<T>) -> io::Result<T> {
        let process = self.process().ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?;
        run(process.child())
    }

    /// The control link of the present incarnation.
    pub(crate) fn connection(&self) -> Result<Arc<RpcConnection>, CallError> {
        let process = self.process().ok_or(CallError::WorkerExited(None))?;
        process.connection.clone().ok_or(CallError::NotConnected)
    }

    /// The next incarnation has started.
    pub(crate) fn set_process(&self, process: &Arc<WorkerProcess>) {
        let mut current = lock(&self.current);
        current.process = Some(Arc::clone(process));
        current.ended = None;
        drop(current);
        self.changed.notify_all();
    }

    /// Something of it is different: whoever waits for that looks again.
    pub(crate) fn notify_waiters(&self) {
        drop(lock(&self.current));
        self.changed.notify_all();
    }

    /// A member of a group that has ended is to run again.
    pub(crate) fn clear_end(&self) {
        lock(&self.current).ended = None;
    }

    /// There will be no other incarnation.
    pub(crate) fn set_ended(&self, last: (Arc<Exit>, Instant)) {
        lock(&self.current).ended = Some(last);
        self.changed.notify_all();
    }

    /// Waits until its present incarnation, or a later one, is as wanted. False at the deadline, or when it has ended for good.
    pub(crate) fn wait_for(&self, deadline: Option<Instant>, is_it: impl Fn(&WorkerProcess) -> bool) -> bool {
        matches!(self.wait_until(deadline, is_it), WaitOutcome::Met)
    }

    /// How it ended for good, and when; waits for that until then.
    pub(crate) fn wait_ended(&self, deadline: Option<Instant>) -> Option<(Arc<Exit>, Instant)> {
        self.wait_until(deadline, |_| false);
        lock(&self.current).ended.clone()
    }

    /// Waits until it has ended for good, or `is_over` says so; `None` at the deadline.
    pub(crate) fn wait_until(
        &self,
        deadline: Option<Instant>,
        is_over: impl Fn(&WorkerProcess) -> bool,
    ) -> WaitOutcome {
        let mut current = lock(&self.current);
        loop {
            if let Some((exit, _)) = &current.ended {
                return WaitOutcome::Ended(Arc::clone(exit));
            }
            if current.process.as_deref().is_some_and(&is_over) {
                return WaitOutcome::Met;
            }
            // A timeout beyond the end of time is for ever.
            let left = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(now()));
            if left.is_zero() {
                return WaitOutcome::TimedOut;
            }
            current = self.changed.wait_timeout(current, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// What a wait for a worker has come to.
pub(crate) enum WaitOutcome {
    Ended(Arc<Exit>),
    Met,
    TimedOut,
}
