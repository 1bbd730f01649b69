//! How many streams of a listener live.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use crate::sys::{eventfd::Semaphore, this_process::own_pid};

#[derive(Debug)]
pub(super) struct Instances {
    free: Option<Semaphore>,
    live: AtomicUsize,
}

impl Instances {
    pub(super) fn new(free: Option<Semaphore>) -> Arc<Self> {
        Arc::new(Self { free, live: AtomicUsize::new(0) })
    }

    pub(super) fn live(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }

    pub(super) fn free(&self) -> Option<&Semaphore> {
        self.free.as_ref()
    }
}

/// One of the free of a listener. Dropping it makes room for the next client.
#[derive(Debug)]
pub(super) struct Instance {
    all: Arc<Instances>,
    /// The process that has accepted the client. A fork of it shares the count of free free.
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
        if let Some(free) = self.all.free.as_ref().filter(|_| self.owner == own_pid()) {
            free.free();
        }
    }
}
