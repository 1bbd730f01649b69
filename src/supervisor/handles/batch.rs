//! Several members of a group that are added together, before any of them starts.

use crate::{
    exit::{Exit, ExitStatus},
    ids::WorkerId,
    supervisor::{
        clock::now,
        commands::NewMembers,
        handles::{group::WorkerGroup, stop::RestartHandle, worker::Worker},
        spec::{WorkerSpec, group::GroupError},
    },
    sys::deferred_close::DropInBackground,
};
use std::sync::Arc;

/// Members that are added together, from [`WorkerGroup::batch`]. The group does not know them before [`start`](Self::start). Dropping a
/// batch changes nothing in the group; its workers have then ended without a start.
///
/// ```no_run
/// use pipewright::{Restart, Strategy, Supervisor, DependencyCondition, WorkerSpec};
///
/// let supervisor = Supervisor::new()?;
/// let group = supervisor.group(Strategy::OneForAll)?;
/// let mut batch = group.batch();
/// let database = batch.add(WorkerSpec::new("database").restart(Restart::Always))?;
/// batch.add(WorkerSpec::new("web").restart(Restart::Always).depends_on(&database, DependencyCondition::Ready))?;
/// batch.start()?; // both or none
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use = "nothing is declared before start()"]
pub struct WorkerBatch {
    group: WorkerGroup,
    workers: NewMembers,
}

impl WorkerGroup {
    /// Returns an empty batch, for members that are added together before any of them starts.
    pub fn batch(&self) -> WorkerBatch {
        WorkerBatch { group: self.clone(), workers: Vec::new() }
    }
}

impl WorkerBatch {
    /// Adds a member to the batch. Later members can depend on its worker ([`WorkerSpec::depends_on`]).
    ///
    /// # Errors
    ///
    /// [`GroupError::Spec`]. Errors that concern the group are returned by [`start`](Self::start).
    pub fn add(&mut self, spec: WorkerSpec) -> Result<Worker, GroupError> {
        spec.validate_apart_from_restart()?;
        let registry = &self.group.registry;
        let shared = registry.register(WorkerId(registry.next_id()), &spec, None);
        self.workers.push((Arc::clone(&shared), Arc::new(DropInBackground::new(spec))));
        Ok(Worker::new(shared, &self.group.commands))
    }

    /// Adds all members to the group, and starts them in this order if the group runs. Returns a handle to wait for the starts.
    ///
    /// A start that fails is an [event](crate::EventKind::SpawnFailed), and counts as a failure of a running member, which can make the
    /// group fail.
    ///
    /// # Errors
    ///
    /// As [`WorkerGroup::add`]; none of the workers is then a member.
    pub fn start(mut self) -> Result<RestartHandle, GroupError> {
        let workers = self.workers.clone();
        let restarting = RestartHandle::new(workers.iter().map(|(shared, _)| (Arc::clone(shared), 0)));
        // The result of the first start is an event.
        drop(self.group.declare(workers, false)?);
        self.workers.clear();
        Ok(restarting)
    }
}

impl Drop for WorkerBatch {
    fn drop(&mut self) {
        for (shared, _) in &self.workers {
            shared.set_ended((Arc::new(Exit::of(ExitStatus::NeverStarted)), now()));
        }
    }
}
