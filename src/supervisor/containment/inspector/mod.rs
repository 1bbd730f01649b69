//! Finds and kills the processes of trees by `/proc`, on a thread of its own.
//!
//! Reading the environment or command line of another process blocks while that process handles a page fault, and a scan of all processes
//! takes milliseconds. The event loop does neither: it sends [`ScanRequest`]s, and receives [`ScanResult`]s as commands. One scan serves
//! all requests that wait for one.
//!
//! While a result is due, the loop checks every [`STALL`] that the thread makes progress. A thread that does not is abandoned with the
//! process at which it blocks, and a new thread takes over. That one skips the process, which counts as uninspected.

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

/// How long the thread may take for one process before it counts as blocked.
pub(crate) const STALL: Duration = Duration::from_secs(1);
/// The number of threads that may be blocked at once. Beyond it nothing is inspected.
const STUCK_MAX: usize = 8;

/// The event loop's side of the inspector.
#[derive(Debug)]
pub(crate) struct Inspector {
    /// Whether orphans become children of the host, as a subreaper or process 1.
    pub(crate) adopts: bool,
    reports: Arc<dyn Report<ScanResult>>,
    thread: Option<Running>,
    /// Process ids at which a thread is blocked.
    stuck: Arc<Mutex<HashSet<i32>>>,
    reserve: Arc<Mutex<Vec<OwnedFd>>>,
}

#[derive(Debug)]
struct Running {
    requests: Sender<ScanRequest>,
    progress: Arc<ScanProgress>,
    seen: u64,
    /// Disconnected when the thread has finished.
    working: Receiver<()>,
    thread: JoinHandle<()>,
}

impl Inspector {
    pub(crate) fn new(reports: Arc<dyn Report<ScanResult>>, adopts: bool) -> Self {
        let mut inspector = Self { adopts, reports, thread: None, stuck: Arc::default(), reserve: Arc::default() };
        refill(&inspector.reserve);
        if adopts {
            // The thread reaps adopted orphans also without requests. If it cannot be started now, the first request starts it.
            inspector.thread = inspector.start().ok();
        }
        inspector
    }

    /// Sends a request. Returns false if no thread can be started for it.
    pub(crate) fn ask(&mut self, request: ScanRequest) -> bool {
        self.running().is_some_and(|running| running.requests.send(request).is_ok())
    }

    fn running(&mut self) -> Option<&Running> {
        if self.thread.is_none() && lock(&self.stuck).len() < STUCK_MAX {
            self.thread = self.start().ok();
        }
        self.thread.as_ref()
    }

    /// Returns true if the thread has made no progress since the last call. The thread is then abandoned, and its requests are to be sent
    /// again.
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
        // The thread checks whether it was abandoned after it has counted a step, under the same lock.
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
        // A blocked thread would delay the end of the supervisor, so it is not joined.
        if working.recv_timeout(STALL) == Err(RecvTimeoutError::Disconnected) {
            // The thread does not panic; if it did, nothing could be done about it here.
            drop(thread.join());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A process at which a thread is blocked.
    const STUCK: i32 = 4711;

    #[derive(Debug)]
    struct Ignored;

    impl Report<ScanResult> for Ignored {
        fn report(&self, _: ScanResult) {}
    }

    impl Inspector {
        /// Adds a thread that does nothing; the test does its work.
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
        // The first thread continues after all.
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
