//! Several members of a group that are declared before any of them starts.

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

/// Members to be declared together: from [`WorkerGroup::batch`]. Nothing of it exists for the group before
/// [`start`](Self::start); a batch that is dropped before has changed nothing, and its workers have ended without a start.
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
    /// Members to be declared together, before any of them starts.
    pub fn batch(&self) -> WorkerBatch {
        WorkerBatch { group: self.clone(), workers: Vec::new() }
    }
}

impl WorkerBatch {
    /// One more member. Its worker can be named by later ones ([`WorkerSpec::depends_on`]).
    ///
    /// # Errors
    ///
    /// [`GroupError::Spec`]. What concerns the group is said by [`start`](Self::start).
    pub fn add(&mut self, spec: WorkerSpec) -> Result<Worker, GroupError> {
        spec.validate_apart_from_restart()?;
        let registry = &self.group.registry;
        let shared = registry.enter(WorkerId(registry.next_id()), &spec, None);
        self.workers.push((Arc::clone(&shared), Arc::new(DropInBackground::new(spec))));
        Ok(Worker::new(shared, &self.group.commands))
    }

    /// Declares all of them, and starts them in this order if their group runs. Gives what can be waited for.
    ///
    /// Does not wait for the starts. One that cannot be started is an [event](crate::EventKind::SpawnFailed) and fails as a
    /// member that runs does, which can be the failure of its group.
    ///
    /// # Errors
    ///
    /// As [`WorkerGroup::add`]; then none of them is a member.
    pub fn start(mut self) -> Result<RestartHandle, GroupError> {
        let workers = self.workers.clone();
        let restarting = RestartHandle::new(workers.iter().map(|(shared, _)| (Arc::clone(shared), 0)));
        // What the first start comes to is an event.
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
