//! Who is who: gives workers and groups their numbers, and finds a worker by its own.

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

/// Below this many it is not looked for those that are gone.
const FEW: usize = 64;

/// One sequence for all supervisors of the process: a worker of another supervisor is never taken for one's own.
static LAST_ID: AtomicU64 = AtomicU64::new(0);

#[derive(Debug)]
pub(crate) struct WorkerRegistry {
    /// The window of all workers together.
    window: Arc<FlowControl>,
    workers: Mutex<RegistryEntries>,
}

/// Nobody is kept by standing here: the loop keeps who may run again, handles and events whom they are about.
#[derive(Debug, Default)]
struct RegistryEntries {
    entries: HashMap<WorkerId, Weak<SharedWorker>>,
    /// How many there were when it was last looked for those that are gone.
    were_there: usize,
}

impl WorkerRegistry {
    pub(crate) fn new(window: Arc<FlowControl>) -> Self {
        Self { window, workers: Mutex::default() }
    }

    /// A number for a worker or a group, which no other gets.
    #[expect(clippy::unused_self, reason = "numbers are the roster's to give")]
    pub(crate) fn next_id(&self) -> u64 {
        LAST_ID.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Before anything is told of it.
    pub(crate) fn enter(
        &self,
        id: WorkerId,
        spec: &WorkerSpec,
        process: Option<Arc<WorkerProcess>>,
    ) -> Arc<SharedWorker> {
        let name = spec.name.clone().unwrap_or_else(|| spec.plan.file_name());
        let window = WorkerWindow::new(spec.window, &self.window);
        let shared = Arc::new(SharedWorker::new((id, name), process, window));
        let mut workers = lock(&self.workers);
        workers.entries.insert(id, Arc::downgrade(&shared));
        workers.forget_the_gone();
        shared
    }

    /// All that may still do anything.
    pub(crate) fn all(&self) -> Vec<Arc<SharedWorker>> {
        lock(&self.workers).entries.values().filter_map(Weak::upgrade).collect()
    }

    pub(crate) fn find(&self, id: WorkerId) -> Option<Arc<SharedWorker>> {
        lock(&self.workers).entries.get(&id)?.upgrade()
    }
}

impl RegistryEntries {
    /// Each time there are twice as many as after the last time: a few steps for each that comes, and never more than half for
    /// nothing.
    fn forget_the_gone(&mut self) {
        if self.entries.len() > FEW.max(2 * self.were_there) {
            self.entries.retain(|_, shared| shared.strong_count() > 0);
            self.were_there = self.entries.len();
        }
    }
}
