//! Counts the bytes that are out, and wakes the loop when enough have come back to one who waits.

use crate::{
    policy::backpressure::{Window, WindowState},
    sys::eventfd::Waker,
    wire::credit::{Permit, ReturnCredit},
};
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
};

/// The bytes of one worker, or of a whole supervisor, that are in the channel or in the consumer's hands.
#[derive(Debug)]
pub(crate) struct FlowControl {
    window: Window,
    out: AtomicUsize,
    /// Somebody is paused and wants to know when there is room again.
    waiting: AtomicBool,
    waker: Arc<Waker>,
    /// The supervisor's meter, in a worker's.
    whole: Option<Arc<Self>>,
    /// What others cannot take away.
    share: usize,
}

/// A worker's window, for all its incarnations.
#[derive(Debug)]
pub(crate) struct WorkerWindow {
    pub(crate) flow: Arc<FlowControl>,
    /// The number of the last event that counts against it; only the loop looks.
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

    /// So many bytes it may have out whatever others have out.
    pub(crate) fn with_share(self, share: usize) -> Self {
        Self { share, ..self }
    }

    /// Bytes go out.
    pub(crate) fn take(&self, bytes: usize) {
        self.out.fetch_add(bytes, Ordering::SeqCst);
        if let Some(whole) = &self.whole {
            whole.take(bytes);
        }
    }

    /// Bytes go out, and come back when this is dropped.
    pub(crate) fn permit(self: &Arc<Self>, bytes: usize) -> Permit {
        self.take(bytes);
        Permit::new(bytes, Arc::clone(self) as Arc<dyn ReturnCredit>)
    }

    /// How many bytes are out.
    pub(crate) fn used(&self) -> usize {
        self.out.load(Ordering::Relaxed)
    }

    /// Asks for a wake-up. Whoever calls looks at the levels once more afterwards: the bytes may have come back in between.
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
