//! What running jobs take: slots and named resources.

use crate::supervisor::worker::budget::SharedBudget;
use std::sync::Arc;

/// Slots and named resources that jobs take while they run. Cheap to clone: clones are the same budget, which any number of queues share, also
/// of several supervisors.
///
/// Queues share it fairly: a free slot goes to the queue that has the fewest slots at that moment.
///
/// ```
/// use pipewright::{Supervisor, WorkerSpec, pool::{Budget, Jobs, JobSpec}};
///
/// let supervisor = Supervisor::new()?;
/// let budget = Budget::new(8).resource("link", 1); // eight at a time, one of them may link
/// let (compilers, tests) = (Jobs::with_budget(&supervisor, &budget), Jobs::with_budget(&supervisor, &budget));
/// let linked = compilers.submit(JobSpec::new(WorkerSpec::new("true")).needs([("link", 1)]))?;
/// tests.submit(JobSpec::new(WorkerSpec::new("true")).after(&linked).weight(2))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Budget {
    pub(crate) shared: Arc<SharedBudget>,
}

impl_debug!(Budget, |_budget| {});

impl Budget {
    /// Creates a budget of `slots`, each for one job of [weight](crate::pool::JobSpec::weight) 1.
    pub fn new(slots: usize) -> Self {
        Self { shared: Arc::new(SharedBudget::new(slots as u64)) }
    }

    /// Adds a resource, or changes its amount: for [`JobSpec::needs`](crate::pool::JobSpec::needs).
    #[must_use]
    pub fn resource(self, name: &str, amount: u64) -> Self {
        self.set_resource(name, amount);
        self
    }

    /// As [`resource`](Self::resource), while jobs run. They keep what they have taken. With 0, no job starts that needs it.
    pub fn set_resource(&self, name: &str, amount: u64) {
        self.shared.change(|schedule| schedule.set_resource(name, amount));
    }

    /// Returns the number of slots.
    pub fn limit(&self) -> usize {
        let limit = self.shared.change(|schedule| schedule.limit());
        usize::try_from(limit).unwrap_or(usize::MAX)
    }

    /// Changes the number of slots. Jobs that run keep theirs, so a lower limit is reached as they end. With 0, no job starts.
    pub fn set_limit(&self, slots: usize) {
        self.shared.change(|schedule| schedule.set_limit(slots as u64));
    }
}
