//! Reaps the orphans of which the host is the parent, as process 1 or as a subreaper.

use crate::{
    launch::child::is_own_child,
    supervisor::containment::process_tree::ProcessTree,
    sys::{
        pidfd,
        proc::{list, stat::Stat},
        this_process,
    },
};
use std::collections::HashMap;

/// A process that the inspector has killed.
#[derive(Debug, Clone, Copy)]
struct Killed {
    start: u64,
    /// The process id of the worker in whose tree it was.
    worker: i32,
}

/// Reaps orphans, where the host adopts them.
#[derive(Debug)]
pub(crate) struct Reaper {
    /// By process id; until each is reaped or gone. Empty where the host does not become the parent of orphans.
    killed: HashMap<i32, Killed>,
    /// Whether orphans become children of the host.
    pub(crate) adopts: bool,
}

impl Reaper {
    pub(crate) fn new(adopts: bool) -> Self {
        Self { killed: HashMap::new(), adopts }
    }

    /// Reaps killed processes that have become children of the host. Returns true if processes of this tree are still to be reaped: they
    /// have not exited, or their parents, which were killed too, have not.
    pub(crate) fn is_reaping(&mut self, tree: &ProcessTree) -> bool {
        let worker = tree.pid();
        let mut is_reaping = false;
        for (pid, killed) in self.killed.clone() {
            match Stat::of(pid) {
                Ok(stat) if stat.start == killed.start && pid != worker => {
                    let is_orphaned =
                        !stat.is_zombie || self.killed.contains_key(&stat.parent) || stat.parent == worker;
                    if !self.reap(&stat) && is_orphaned {
                        is_reaping |= killed.worker == worker;
                        continue;
                    }
                }
                Ok(_) | Err(_) => {}
            }
            self.killed.remove(&pid);
        }
        is_reaping
    }

    pub(crate) fn note_killed(&mut self, stat: &Stat, tree: &ProcessTree) {
        if this_process::is_reaper() {
            let worker = tree.pid();
            self.killed.insert(stat.pid, Killed { start: stat.start, worker });
        }
    }

    /// Reaps a zombie that was killed by the inspector, or adopted, if it is a child of the host.
    pub(crate) fn reap(&mut self, stat: &Stat) -> bool {
        let is_orphan = stat.is_zombie && stat.parent == this_process::own_pid() && !is_own_child(stat.pid);
        let was_killed = self.killed.get(&stat.pid).is_some_and(|killed| killed.start == stat.start);
        // Children that other code of the host has started are reaped by that code.
        is_orphan && (was_killed || self.adopts) && pidfd::reap_zombie(stat.pid).is_ok()
    }

    /// Reaps adopted orphans that have exited by themselves.
    pub(crate) fn reap_orphans(&mut self) {
        for pid in list::children(this_process::own_pid()) {
            if let Ok(stat) = Stat::of(pid) {
                self.reap(&stat);
            }
        }
    }
}
