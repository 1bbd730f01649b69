//! What a supervisor holds of one incarnation beside its process and its pipes.

pub(crate) mod token;
pub(crate) mod cgroup_pool;
pub(crate) mod guard;
pub(crate) mod inspector;
pub(crate) mod report;
pub(crate) mod scan;
pub(crate) mod teardown;

use crate::policy::survivors::SurvivorPolicy;
use crate::supervisor::{
    containment::{cgroup_pool::Cell, token::Token},
    spawner::queue::Tie,
};
use std::sync::Mutex;

/// By what the tree of an incarnation is recognised, and what is given back when it is reaped.
#[derive(Debug)]
pub(crate) struct Mark {
    pub(crate) token: Token,
    /// Its process group, where that is in the list of the guard.
    pub(crate) guarded: Mutex<Option<u32>>,
    /// The cgroup it lives in.
    pub(crate) cell: Mutex<Option<Cell>>,
    /// Why it has none.
    pub(crate) no_cgroup: Option<Box<str>>,
    /// In which tick of the boot clock it was started, or an earlier one.
    pub(crate) born: u64,
    /// Whether descendants that have left its group are killed with it.
    pub(crate) survivors: SurvivorPolicy,
    /// Where it gets a signal when the thread that started it ends, and that is not the main thread.
    pub(crate) tie: Mutex<Option<Tie>>,
}
