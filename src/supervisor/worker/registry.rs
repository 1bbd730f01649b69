//! The registry of workers: assigns ids, and finds a worker by its id.

use crate::{
    ids::WorkerId,
    supervisor::{
        flow_control::{FlowControl, WorkerWindow},
        spec::WorkerSpec,
        sync::lock,
        worker::{SharedWorker, process::WorkerProcess},
    },
};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

/// The number of entries below which dropped workers are not removed.
const MIN_ENTRIES: usize = 64;

/// Shared by all supervisors of the process, so that an id never names workers of two supervisors.
static LAST_ID: AtomicU64 = AtomicU64::new(0);

#[derive(Debug)]
pub(crate) struct WorkerRegistry {
    /// The flow control of all workers together.
    window: Arc<FlowControl>,
    workers: Mutex<RegistryEntries>,
}

/// The entries are weak: workers are kept alive by the loop while they may run again, by their handles and by their events.
#[derive(Debug, Default)]
struct RegistryEntries {
    entries: HashMap<WorkerId, Weak<SharedWorker>>,
    /// The number of entries after the last removal of dropped workers.
    len_after_removal: usize,
}

impl WorkerRegistry {
    pub(crate) fn new(window: Arc<FlowControl>) -> Self {
        Self { window, workers: Mutex::default() }
    }

    /// Returns a new id for a worker or a group.
    #[expect(clippy::unused_self, reason = "numbers are the roster's to give")]
    pub(crate) fn next_id(&self) -> u64 {
        LAST_ID.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Registers a new worker, before its first event.
    pub(crate) fn register(
        &self,
        id: WorkerId,
        spec: &WorkerSpec,
        process: Option<Arc<WorkerProcess>>,
    ) -> Arc<SharedWorker> {
        let name = spec.name.clone().unwrap_or_else(|| spec.plan.file_name());
        let window = WorkerWindow::new(spec.window, &self.window);
        let shared = Arc::new(SharedWorker::new((id, name), process, window, spec.control.protocol()));
        let mut workers = lock(&self.workers);
        workers.entries.insert(id, Arc::downgrade(&shared));
        workers.remove_dropped();
        shared
    }

    /// Returns all workers that exist.
    pub(crate) fn all(&self) -> Vec<Arc<SharedWorker>> {
        lock(&self.workers).entries.values().filter_map(Weak::upgrade).collect()
    }

    pub(crate) fn find(&self, id: WorkerId) -> Option<Arc<SharedWorker>> {
        lock(&self.workers).entries.get(&id)?.upgrade()
    }
}

impl RegistryEntries {
    /// Removes dropped workers when the number of entries has doubled since the last removal, which takes amortized constant time.
    fn remove_dropped(&mut self) {
        if self.entries.len() > MIN_ENTRIES.max(2 * self.len_after_removal) {
            self.entries.retain(|_, shared| shared.strong_count() > 0);
            self.len_after_removal = self.entries.len();
        }
    }
}
