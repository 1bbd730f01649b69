//! The place of a pool among the queues of a budget: for each call it holds a ticket, a task of the budget's schedule.

use crate::{
    policy::{
        dispatch::ids::DemandClass,
        schedule::task::{Demand, DemandError, NewTask, QueueId, TaskId, TaskOutput, TaskResult},
    },
    supervisor::{reactor::report::Report, sync::lock, worker::budget::SharedBudget},
};
use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, Weak},
};

/// The queue of a pool in its budget.
#[derive(Debug)]
pub(crate) struct BudgetQueue {
    budget: Arc<SharedBudget>,
    queue: QueueId,
    state: Mutex<Tickets>,
}

#[derive(Debug, Default)]
struct Tickets {
    /// What the tasks of each class take.
    demands: Vec<Demand>,
    /// Requested from the budget, and not granted yet.
    requested: HashMap<TaskId, DemandClass>,
    /// Granted, by class.
    held: Vec<Vec<TaskId>>,
}

/// Passes grants on, without keeping the pool.
#[derive(Debug)]
struct GrantReceiver<P>(Weak<P>);

impl<P: Report<TaskOutput> + fmt::Debug> Report<TaskOutput> for GrantReceiver<P> {
    fn report(&self, output: TaskOutput) {
        if let Some(pool) = self.0.upgrade() {
            pool.report(output);
        }
    }
}

impl BudgetQueue {
    /// Adds a queue, whose grants are reported to `pool`.
    pub(crate) fn new<P: Report<TaskOutput> + 'static>(budget: Arc<SharedBudget>, pool: Weak<P>) -> Self {
        let queue = budget.add_queue(Arc::new(GrantReceiver(pool)));
        Self { budget, queue, state: Mutex::default() }
    }

    /// The class of tasks that take this.
    pub(crate) fn class(&self, slots: u64, needs: &[(Box<str>, u64)]) -> Result<DemandClass, DemandError> {
        let demand = self.budget.change(|schedule| schedule.demand(slots, needs))?;
        let mut state = lock(&self.state);
        if let Some(class) = state.demands.iter().position(|known| *known == demand) {
            return Ok(DemandClass(class));
        }
        state.demands.push(demand);
        state.held.push(Vec::new());
        Ok(DemandClass(state.demands.len() - 1))
    }

    /// Requests a grant with a new ticket.
    pub(crate) fn request(&self, ticket: TaskId, class: DemandClass) {
        let mut state = lock(&self.state);
        let Some(demand) = state.demands.get(class.0).cloned() else { return };
        state.requested.insert(ticket, class);
        drop(state);
        // It may be granted before this returns.
        let new = NewTask { id: ticket, demand, priority: 0, after: Vec::new() };
        self.budget.change(|schedule| schedule.submit(self.queue, new, None));
    }

    /// A request was granted. Returns its class.
    pub(crate) fn granted(&self, ticket: TaskId) -> Option<DemandClass> {
        let mut state = lock(&self.state);
        let class = state.requested.remove(&ticket)?;
        state.held.get_mut(class.0)?.push(ticket);
        Some(class)
    }

    /// Returns a grant.
    pub(crate) fn give_back(&self, class: DemandClass) {
        let ticket = lock(&self.state).held.get_mut(class.0).and_then(Vec::pop);
        if let Some(ticket) = ticket {
            self.budget.change(|schedule| schedule.finish(ticket, TaskResult::Success));
        }
    }

    /// Returns all grants and withdraws all requests: the pool has ended.
    pub(crate) fn end(&self) {
        let mut state = lock(&self.state);
        let requested = std::mem::take(&mut state.requested).into_keys();
        let tickets: Vec<_> = requested.chain(state.held.iter_mut().flat_map(std::mem::take)).collect();
        drop(state);
        for ticket in tickets {
            self.budget.change(|schedule| schedule.finish(ticket, TaskResult::Success));
        }
        self.budget.remove_queue(self.queue);
    }
}

impl Drop for BudgetQueue {
    fn drop(&mut self) {
        self.end();
    }
}
