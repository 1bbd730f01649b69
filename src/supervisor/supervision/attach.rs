//! Workers whose process is started elsewhere.

use crate::{
    ids::WorkerId,
    launch::error::{SpawnError, SpawnStep},
    supervisor::{
        spec::SharedSpec,
        supervision::{
            Supervision, SupervisionContext,
            restart::{IncarnationEnd, next_seed},
            worker::{WorkerPhase, WorkerRecord},
        },
        worker::SharedWorker,
    },
};
use std::{collections::hash_map::Entry, io, sync::Arc};

impl Supervision {
    /// Adds a worker that waits for its process.
    pub(crate) fn add_attached(&mut self, shared: &Arc<SharedWorker>, spec: &SharedSpec) {
        let seed = next_seed(&mut self.seed, shared.id());
        if let Entry::Vacant(vacant) = self.workers.entry(shared.id()) {
            vacant.insert(WorkerRecord::new(shared, spec, WorkerPhase::Attaching, seed));
        }
    }

    /// No process has connected in time.
    pub(crate) fn attach_timed_out(&mut self, worker: WorkerId, cx: &mut SupervisionContext<'_>) {
        let Some(record) = self.workers.get(&worker) else { return };
        if record.phase != WorkerPhase::Attaching {
            return;
        }
        let limit = record.spec.control_connect_timeout.unwrap_or_default();
        let reason = format!("no process has connected within {limit:?}");
        let program = record.spec.plan.program_name();
        let error = SpawnError::failed(program, SpawnStep::Attach, io::Error::new(io::ErrorKind::TimedOut, reason));
        self.on_incarnation_end(worker, IncarnationEnd::SpawnFailed(error), cx);
    }
}
