//! Counts the accepted streams of a listener.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use crate::sys::{eventfd::Semaphore, this_process::own_pid};

#[derive(Debug)]
pub(super) struct Instances {
    /// Free instances; `None` without a limit.
    semaphore: Option<Semaphore>,
    live: AtomicUsize,
}

impl Instances {
    pub(super) fn new(semaphore: Option<Semaphore>) -> Arc<Self> {
        Arc::new(Self { semaphore, live: AtomicUsize::new(0) })
    }

    pub(super) fn live(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }

    pub(super) fn semaphore(&self) -> Option<&Semaphore> {
        self.semaphore.as_ref()
    }
}

/// One accepted stream of a listener. Dropping it admits the next client.
#[derive(Debug)]
pub(super) struct Instance {
    all: Arc<Instances>,
    /// The process that accepted the client. A forked child shares the semaphore and must not release it.
    owner: i32,
}

impl Instance {
    pub(super) fn new(instances: &Arc<Instances>) -> Self {
        instances.live.fetch_add(1, Ordering::Relaxed);
        Self { all: Arc::clone(instances), owner: own_pid() }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.all.live.fetch_sub(1, Ordering::Relaxed);
        if let Some(semaphore) = self.all.semaphore.as_ref().filter(|_| self.owner == own_pid()) {
            semaphore.free();
        }
    }
}
