//! The tasks of all queues that share a budget.

use super::{
    capacity::Capacity,
    ready::ReadyTasks,
    slot_numbers::SlotNumbers,
    task::{Demand, DemandError, NewTask, QueueId, Rank, TaskId, TaskOutput, TaskResult},
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    mem,
};

/// Gives slots and resources to tasks. A task is in it from [`submit`](Self::submit) to [`finish`](Self::finish), and runs any number of times.
///
/// * A task starts as soon as its dependencies have succeeded and what it takes is free: no slot is idle while a task fits, so a task that
///   takes much can be passed by others that take less.
/// * Of the queues with a task that fits, the one with the fewest slots is served, and of equal ones that whose last turn is longest ago.
/// * Within a queue tasks with a higher priority start first, and of equal ones that which was submitted first.
///
/// A decision takes logarithmic time in the number of tasks. It is linear in the number of queues and of different demands.
#[derive(Debug)]
pub(crate) struct Schedule {
    capacity: Capacity,
    numbers: SlotNumbers,
    queues: BTreeMap<QueueId, Queue>,
    tasks: HashMap<TaskId, Task>,
    outputs: Vec<(QueueId, TaskOutput)>,
    /// The number of queues, tasks and turns so far, for their order.
    last_queue: u64,
    last_task: u64,
    last_turn: u64,
}

#[derive(Debug, Default)]
struct Queue {
    ready: ReadyTasks,
    /// The slots that its running tasks take.
    slots: u64,
    last_turn: u64,
}

#[derive(Debug)]
struct Task {
    queue: QueueId,
    rank: Rank,
    demand: Demand,
    state: TaskState,
    after: Box<[TaskId]>,
    /// Tasks that wait for this one.
    dependents: BTreeSet<TaskId>,
}

#[derive(Debug)]
enum TaskState {
    /// So many of its dependencies have not ended.
    Blocked {
        open: usize,
    },
    /// It waits for a slot.
    Ready,
    Running {
        taken: Demand,
        slot: u32,
    },
    /// Between two runs.
    Paused,
    /// A dependency has failed. Its owner has the output, and ends it.
    Doomed,
}

impl Schedule {
    pub(crate) fn new(slots: u64) -> Self {
        Self {
            capacity: Capacity::new(slots),
            numbers: SlotNumbers::default(),
            queues: BTreeMap::new(),
            tasks: HashMap::new(),
            outputs: Vec::new(),
            last_queue: 0,
            last_task: 0,
            last_turn: 0,
        }
    }

    pub(crate) fn add_queue(&mut self) -> QueueId {
        self.last_queue += 1;
        let id = QueueId(self.last_queue);
        self.queues.insert(id, Queue::default());
        id
    }

    /// Removes a queue, all tasks of which have ended.
    pub(crate) fn remove_queue(&mut self, queue: QueueId) {
        self.queues.remove(&queue);
    }

    pub(crate) fn limit(&self) -> u64 {
        self.capacity.limit()
    }

    /// Changes the number of slots. Tasks that run keep theirs.
    pub(crate) fn set_limit(&mut self, limit: u64) {
        self.capacity.set_limit(limit);
        self.fill();
    }

    /// Adds a resource, or changes its amount.
    pub(crate) fn set_resource(&mut self, name: &str, amount: u64) {
        self.capacity.set_resource(name, amount);
        self.fill();
    }

    /// The demand of a new task.
    pub(crate) fn demand(&self, slots: u64, needs: &[(Box<str>, u64)]) -> Result<Demand, DemandError> {
        self.capacity.demand(slots, needs)
    }

    #[cfg(test)]
    pub(crate) fn dependents(&self, task: TaskId) -> usize {
        self.tasks.get(&task).map_or(0, |task| task.dependents.len())
    }

    /// Whether the task has not ended.
    pub(crate) fn contains(&self, task: TaskId) -> bool {
        self.tasks.contains_key(&task)
    }

    /// Adds a task, which starts when the tasks in `after` have succeeded. The caller has checked that those that it does not
    /// [contain](Self::contains) have succeeded, or passes one that has failed.
    pub(crate) fn submit(&mut self, queue: QueueId, new: NewTask, failed: Option<TaskId>) {
        let NewTask { id, demand, priority, mut after } = new;
        after.sort_unstable();
        after.dedup();
        after.retain(|on| match self.tasks.get_mut(on) {
            Some(dependency) if failed.is_none() => dependency.dependents.insert(id),
            Some(_) | None => false,
        });
        self.last_task += 1;
        let rank = Rank::new(priority, self.last_task, id);
        let state = match failed {
            Some(_) => TaskState::Doomed,
            None => TaskState::Blocked { open: after.len() },
        };
        if let Some(on) = failed {
            self.outputs.push((queue, TaskOutput::DependencyFailed { task: id, on }));
        }
        let task = Task { queue, rank, demand, state, after: after.into(), dependents: BTreeSet::new() };
        self.tasks.insert(id, task);
        self.make_ready_if_unblocked(id);
        self.fill();
    }

    /// A run of the task is over, and another one follows later.
    pub(crate) fn pause(&mut self, task: TaskId) {
        self.give_back(task, TaskState::Paused);
        self.fill();
    }

    /// The task waits for a slot again.
    pub(crate) fn resume(&mut self, id: TaskId) {
        if let Some(task) = self.tasks.get_mut(&id).filter(|task| matches!(task.state, TaskState::Paused)) {
            task.state = TaskState::Blocked { open: 0 };
            self.make_ready_if_unblocked(id);
            self.fill();
        }
    }

    /// The task has ended, in whatever state it was.
    pub(crate) fn finish(&mut self, id: TaskId, result: TaskResult) {
        self.give_back(id, TaskState::Doomed);
        let Some(task) = self.tasks.remove(&id) else { return };
        if let (TaskState::Ready, Some(queue)) = (&task.state, self.queues.get_mut(&task.queue)) {
            queue.ready.remove(&task.demand, task.rank);
        }
        for on in &task.after {
            if let Some(dependency) = self.tasks.get_mut(on) {
                dependency.dependents.remove(&id);
            }
        }
        for dependent in task.dependents {
            self.dependency_ended(dependent, id, result);
        }
        self.fill();
    }

    fn dependency_ended(&mut self, id: TaskId, on: TaskId, result: TaskResult) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let TaskState::Blocked { open } = &mut task.state else { return };
        match result {
            TaskResult::Success => {
                *open = open.saturating_sub(1);
                self.make_ready_if_unblocked(id);
            }
            TaskResult::Failure => {
                task.state = TaskState::Doomed;
                self.outputs.push((task.queue, TaskOutput::DependencyFailed { task: id, on }));
            }
        }
    }

    fn make_ready_if_unblocked(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        if let (TaskState::Blocked { open: 0 }, Some(queue)) = (&task.state, self.queues.get_mut(&task.queue)) {
            task.state = TaskState::Ready;
            queue.ready.insert(&task.demand, task.rank);
        }
    }

    /// Returns what the task takes, if it runs, and sets its next state then.
    fn give_back(&mut self, id: TaskId, next: TaskState) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let TaskState::Running { taken, slot } = &task.state else { return };
        self.capacity.give_back(taken);
        self.numbers.give_back(*slot);
        if let Some(queue) = self.queues.get_mut(&task.queue) {
            queue.slots = queue.slots.saturating_sub(taken.slots);
        }
        task.state = next;
    }

    /// Starts tasks until none fits.
    fn fill(&mut self) {
        while self.capacity.has_free_slot()
            && let Some((queue, rank)) = self.next()
        {
            self.start(queue, rank);
        }
    }

    fn next(&self) -> Option<(QueueId, Rank)> {
        let fitting = self.queues.iter().filter_map(|(id, queue)| {
            queue.ready.first_fitting(&self.capacity).map(|rank| ((queue.slots, queue.last_turn), (*id, rank)))
        });
        fitting.min().map(|(_, next)| next)
    }

    fn start(&mut self, queue_id: QueueId, rank: Rank) {
        let (Some(queue), Some(task)) = (self.queues.get_mut(&queue_id), self.tasks.get_mut(&rank.task)) else {
            return;
        };
        queue.ready.remove(&task.demand, rank);
        let taken = self.capacity.take(&task.demand);
        let slot = self.numbers.take();
        queue.slots = queue.slots.saturating_add(taken.slots);
        self.last_turn += 1;
        queue.last_turn = self.last_turn;
        task.state = TaskState::Running { taken, slot };
        self.outputs.push((queue_id, TaskOutput::Start { task: rank.task, slot }));
    }

    /// Returns the decisions since the last call.
    pub(crate) fn take_outputs(&mut self) -> Vec<(QueueId, TaskOutput)> {
        mem::take(&mut self.outputs)
    }
}
