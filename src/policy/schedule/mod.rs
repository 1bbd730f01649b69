//! Which tasks run next: a [`Schedule`](tasks::Schedule) holds the tasks of any number of queues, and gives them slots and named resources
//! of one budget. Pure: each input yields the tasks that start now.

pub(crate) mod capacity;
pub(crate) mod ready;
pub(crate) mod slot_numbers;
pub(crate) mod task;
pub(crate) mod tasks;

#[cfg(test)]
mod simulation;
