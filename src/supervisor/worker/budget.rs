//! The schedule of a budget, shared by queues and pools of any supervisors.

use crate::{
    policy::schedule::{
        task::{QueueId, TaskOutput},
        tasks::Schedule,
    },
    supervisor::{reactor::report::Report, sync::lock},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

/// A schedule, and where the decisions about the tasks of each queue are sent. The lock is held for single steps of the schedule only.
#[derive(Debug)]
pub(crate) struct SharedBudget {
    state: Mutex<BudgetState>,
}

#[derive(Debug)]
struct BudgetState {
    schedule: Schedule,
    queues: BTreeMap<QueueId, Arc<dyn Report<TaskOutput>>>,
}

impl SharedBudget {
    pub(crate) fn new(slots: u64) -> Self {
        Self { state: Mutex::new(BudgetState { schedule: Schedule::new(slots), queues: BTreeMap::new() }) }
    }

    /// Adds a queue, whose decisions are sent to `owner`.
    pub(crate) fn add_queue(&self, owner: Arc<dyn Report<TaskOutput>>) -> QueueId {
        let mut state = lock(&self.state);
        let queue = state.schedule.add_queue();
        state.queues.insert(queue, owner);
        queue
    }

    /// Removes a queue, all tasks of which have ended.
    pub(crate) fn remove_queue(&self, queue: QueueId) {
        let mut state = lock(&self.state);
        state.schedule.remove_queue(queue);
        let owner = state.queues.remove(&queue);
        drop(state);
        drop(owner);
    }

    /// Calls `change` with the schedule, and sends the decisions that follow.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Schedule) -> T) -> T {
        let mut state = lock(&self.state);
        let result = change(&mut state.schedule);
        let outputs = state.schedule.take_outputs();
        let addressed: Vec<_> = outputs
            .into_iter()
            .filter_map(|(queue, output)| Some((Arc::clone(state.queues.get(&queue)?), output)))
            .collect();
        drop(state);
        for (owner, output) in addressed {
            owner.report(output);
        }
        result
    }
}
