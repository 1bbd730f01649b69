//! Counts the bytes that consumers have not returned, and wakes the loop when a paused worker may continue.

use crate::{
    policy::backpressure::{Window, WindowState},
    sys::eventfd::Waker,
    wire::credit::{Permit, ReturnCredit},
};
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
};

/// The bytes of one worker, or of a whole supervisor, that are in the channel or held by the consumer.
#[derive(Debug)]
pub(crate) struct FlowControl {
    window: Window,
    out: AtomicUsize,
    /// A reader is paused, and is to be woken when there is room.
    waiting: AtomicBool,
    waker: Arc<Waker>,
    /// The flow control of the supervisor, where this is a worker's.
    whole: Option<Arc<Self>>,
    /// The bytes that remain available to it whatever others use.
    share: usize,
}

/// A worker's window, for all its incarnations.
#[derive(Debug)]
pub(crate) struct WorkerWindow {
    pub(crate) flow: Arc<FlowControl>,
    /// The number of the last event that counts against the window. Read by the loop only.
    last_sent: AtomicU64,
}

impl WorkerWindow {
    pub(crate) fn new(window: usize, whole: &Arc<FlowControl>) -> Self {
        Self { flow: Arc::new(FlowControl::of_worker(window, whole)), last_sent: AtomicU64::new(0) }
    }

    pub(crate) fn note_sent(&self, number: u64) {
        self.last_sent.store(number, Ordering::Relaxed);
    }

    pub(crate) fn last_sent(&self) -> u64 {
        self.last_sent.load(Ordering::Relaxed)
    }
}

impl FlowControl {
    pub(crate) fn of_supervisor(window: usize, waker: Arc<Waker>) -> Self {
        Self {
            window: Window::new(window),
            out: AtomicUsize::new(0),
            waiting: AtomicBool::new(false),
            waker,
            whole: None,
            share: 0,
        }
    }

    pub(crate) fn of_worker(window: usize, whole: &Arc<Self>) -> Self {
        Self { whole: Some(Arc::clone(whole)), ..Self::of_supervisor(window, Arc::clone(&whole.waker)) }
    }

    /// Reserves `share` bytes for it, whatever others use.
    pub(crate) fn with_share(self, share: usize) -> Self {
        Self { share, ..self }
    }

    /// Adds `bytes`.
    pub(crate) fn take(&self, bytes: usize) {
        self.out.fetch_add(bytes, Ordering::SeqCst);
        if let Some(whole) = &self.whole {
            whole.take(bytes);
        }
    }

    /// Adds `bytes` until the permit is dropped.
    pub(crate) fn permit(self: &Arc<Self>, bytes: usize) -> Permit {
        self.take(bytes);
        Permit::new(bytes, Arc::clone(self) as Arc<dyn ReturnCredit>)
    }

    /// The bytes that are not returned.
    pub(crate) fn used(&self) -> usize {
        self.out.load(Ordering::Relaxed)
    }

    /// Requests a wake-up when there is room. The caller checks the window again afterwards, since bytes may have been returned in between.
    pub(crate) fn wait_for_room(&self) {
        self.waiting.store(true, Ordering::SeqCst);
        if let Some(whole) = &self.whole {
            whole.wait_for_room();
        }
    }

    pub(crate) fn levels(&self, unreceived: bool, any_unreceived: bool) -> WindowState {
        let whole = self.whole.as_deref().unwrap_or(self);
        WindowState {
            worker: self.window,
            worker_in_flight: self.out.load(Ordering::SeqCst),
            supervisor: whole.window,
            supervisor_in_flight: whole.out.load(Ordering::SeqCst),
            share: self.share,
            unreceived,
            any_unreceived,
        }
    }
}

impl ReturnCredit for FlowControl {
    fn returned(&self, bytes: usize) {
        let out = self.out.fetch_sub(bytes, Ordering::SeqCst).saturating_sub(bytes);
        if self.window.has_room(out)
            && self.waiting.load(Ordering::SeqCst)
            && self.waiting.swap(false, Ordering::SeqCst)
        {
            self.waker.wake();
        }
        if let Some(whole) = &self.whole {
            whole.returned(bytes);
        }
    }
}
