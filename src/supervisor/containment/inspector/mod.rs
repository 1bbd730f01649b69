//! Looks for the processes of ended trees in `/proc`, on a thread of its own.
//!
//! Reading another process's environment or command line can block for as long as a page fault of that process does, and a look
//! through all processes takes milliseconds: neither is for the event loop. The loop sends [`ScanRequest`]s, and the answers come back
//! through its mailbox. One look serves all requests that wait for one.
//!
//! While an answer is due the loop checks every [`STALL`] that the thread still gets on. One that does not is left behind, with the
//! process it is stuck at, and a new one takes over: it skips that process, which then counts as uninspected.

pub(crate) mod reaping;
pub(crate) mod request;
pub(crate) mod work;

use crate::{
    supervisor::{
        containment::inspector::{
            reaping::Reaper,
            request::{ScanProgress, ScanRequest, ScanResult, refill},
            work::ScanThread,
        },
        reactor::report::Report,
        sync::lock,
    },
    sys::{proc::environ::EnvironReader, signals},
};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use std::{
    collections::HashSet,
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, atomic::Ordering},
    thread::{self, JoinHandle},
    time::Duration,
};

/// How long the thread may be at one process before it counts as stuck there.
pub(crate) const STALL: Duration = Duration::from_secs(1);
/// How many threads may be stuck at once. With more, nothing is inspected.
const STUCK_MAX: usize = 8;

/// The loop's side.
#[derive(Debug)]
pub(crate) struct Inspector {
    /// The host is a subreaper, or process 1: orphans become its children.
    pub(crate) adopts: bool,
    reports: Arc<dyn Report<ScanResult>>,
    thread: Option<Running>,
    /// Processes at which a thread is stuck.
    stuck: Arc<Mutex<HashSet<i32>>>,
    reserve: Arc<Mutex<Vec<OwnedFd>>>,
}

#[derive(Debug)]
struct Running {
    requests: Sender<ScanRequest>,
    progress: Arc<ScanProgress>,
    seen: u64,
    /// Disconnected when the thread has done its work.
    working: Receiver<()>,
    thread: JoinHandle<()>,
}

impl Inspector {
    pub(crate) fn new(reports: Arc<dyn Report<ScanResult>>, adopts: bool) -> Self {
        let mut inspector = Self { adopts, reports, thread: None, stuck: Arc::default(), reserve: Arc::default() };
        refill(&inspector.reserve);
        if adopts {
            // It reaps adopted orphans also while nothing is asked. Where no thread can be had now, the first request starts it.
            inspector.thread = inspector.start().ok();
        }
        inspector
    }

    /// Sends a request. False where no thread can be had for it, now or at all.
    pub(crate) fn ask(&mut self, request: ScanRequest) -> bool {
        self.running().is_some_and(|running| running.requests.send(request).is_ok())
    }

    fn running(&mut self) -> Option<&Running> {
        if self.thread.is_none() && lock(&self.stuck).len() < STUCK_MAX {
            self.thread = self.start().ok();
        }
        self.thread.as_ref()
    }

    /// Whether the thread has not moved since this was last asked. Then it is left behind, and what it was asked is to be asked again.
    pub(crate) fn has_stalled(&mut self) -> bool {
        let Some(running) = &mut self.thread else { return false };
        let steps = running.progress.steps.load(Ordering::Acquire);
        if steps != std::mem::replace(&mut running.seen, steps) {
            return false;
        }
        let at = running.progress.at.load(Ordering::Acquire);
        if at == 0 {
            return false;
        }
        // The thread looks whether it was left behind after it has counted a step, under the same lock.
        let mut stuck = lock(&self.stuck);
        let progress = Arc::clone(&running.progress);
        self.thread = None;
        if progress.steps.load(Ordering::Acquire) == steps {
            stuck.insert(at);
        }
        true
    }

    fn start(&self) -> io::Result<Running> {
        let (requests, inbox) = crossbeam_channel::unbounded();
        let (alive, working) = crossbeam_channel::bounded(0);
        let work = self.work(alive);
        let progress = Arc::clone(&work.progress);
        let thread = thread::Builder::new().name("pipewright-inspect".into()).spawn(move || {
            signals::block_all();
            work.run(&inbox);
        })?;
        Ok(Running { requests, progress, seen: u64::MAX, working, thread })
    }

    fn work(&self, alive: Sender<()>) -> ScanThread {
        ScanThread {
            reports: Arc::clone(&self.reports),
            progress: Arc::default(),
            stuck: Arc::clone(&self.stuck),
            reserve: Arc::clone(&self.reserve),
            environ: EnvironReader::new(),
            reaper: Reaper::new(self.adopts),
            _alive: alive,
        }
    }
}

impl Drop for Inspector {
    fn drop(&mut self) {
        let Some(Running { requests, working, thread, .. }) = self.thread.take() else { return };
        drop(requests);
        // A thread that is stuck would hold up the end of the supervisor: that one is not joined.
        if working.recv_timeout(STALL) == Err(RecvTimeoutError::Disconnected) {
            // Its work cannot panic; if it did, there is nothing to do about it here.
            drop(thread.join());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A process that a thread is stuck at.
    const STUCK: i32 = 4711;

    #[derive(Debug)]
    struct Ignored;

    impl Report<ScanResult> for Ignored {
        fn report(&self, _: ScanResult) {}
    }

    impl Inspector {
        /// A thread whose work is done by the test.
        fn starts_by_hand(&mut self) -> ScanThread {
            let (requests, _) = crossbeam_channel::unbounded();
            let (alive, working) = crossbeam_channel::bounded(0);
            let work = self.work(alive);
            let progress = Arc::clone(&work.progress);
            let thread = thread::Builder::new().spawn(|| {}).unwrap();
            self.thread = Some(Running { requests, progress, seen: u64::MAX, working, thread });
            work
        }
    }

    fn inspector() -> Inspector {
        Inspector::new(Arc::new(Ignored), false)
    }

    #[test]
    fn p06_a_thread_that_is_stuck_at_a_process_is_replaced_and_that_process_is_skipped() {
        let mut inspector = inspector();
        let first = inspector.starts_by_hand();
        assert!(!first.at(STUCK));
        assert!(!inspector.has_stalled(), "it is seen there for the first time");
        assert!(inspector.has_stalled());
        let second = inspector.starts_by_hand();
        assert!(second.at(STUCK), "skipped");
        assert!(!second.at(STUCK + 1) && !second.at(0));
        // The first one gets on after all.
        assert!(!first.at(STUCK + 1));
        assert!(!second.at(STUCK), "looked at again");
    }

    #[test]
    fn p06_a_thread_that_gets_on_or_waits_is_not_replaced() {
        let mut inspector = inspector();
        let work = inspector.starts_by_hand();
        for pid in 1..10 {
            work.at(pid);
            assert!(!inspector.has_stalled());
        }
        work.at(0);
        assert!(!inspector.has_stalled() && !inspector.has_stalled(), "it waits for requests");
    }

    #[test]
    fn p14_no_more_threads_are_started_than_may_be_stuck() {
        let mut inspector = inspector();
        let stuck: Vec<ScanThread> = (1..=STUCK_MAX)
            .map(|pid| {
                let work = inspector.starts_by_hand();
                work.at(i32::try_from(pid).unwrap());
                assert!(!inspector.has_stalled() && inspector.has_stalled());
                work
            })
            .collect();
        assert_eq!(lock(&inspector.stuck).len(), stuck.len());
        assert!(inspector.running().is_none());
    }
}
