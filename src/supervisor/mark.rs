//! What a supervisor holds of one incarnation beside its process and its pipes.

use super::{pen::Cell, starts::Tie, survivors::Survivors, tree::Token};
use std::sync::Mutex;

/// By what the tree of an incarnation is recognised, and what is given back when it is reaped.
#[derive(Debug)]
pub(super) struct Mark {
    pub(super) token: Token,
    /// Its process group, where that is in the list of the guard.
    pub(super) guarded: Mutex<Option<u32>>,
    /// The cgroup it lives in.
    pub(super) cell: Mutex<Option<Cell>>,
    /// Why it has none.
    pub(super) no_cgroup: Option<Box<str>>,
    /// In which tick of the boot clock it was started, or an earlier one.
    pub(super) born: u64,
    /// Whether descendants that have left its group are killed with it.
    pub(super) survivors: Survivors,
    /// Where it gets a signal when the thread that started it ends, and that is not the main thread.
    pub(super) tie: Mutex<Option<Tie>>,
}
