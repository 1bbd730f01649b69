//! Which worker of a pool gets which task, and how many workers there are: [`Dispatch`](dispatcher::Dispatch). Pure: each input yields
//! decisions, which the pool carries out.

pub(crate) mod call;
pub(crate) mod deadlines;
pub(crate) mod dispatcher;
pub(crate) mod grant_counts;
pub(crate) mod grants;
pub(crate) mod ids;
pub(crate) mod limit;
pub(crate) mod member;
pub(crate) mod settings;
pub(crate) mod size;
pub(crate) mod starts;
pub(crate) mod task;
pub(crate) mod timers;
pub(crate) mod waiting;

#[cfg(test)]
mod examples;
#[cfg(test)]
mod simulation;
