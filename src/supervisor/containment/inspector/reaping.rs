//! Reaping what the host is the parent of by adoption, as process 1 or as a subreaper.

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

/// A process that was killed here.
#[derive(Debug, Clone, Copy)]
struct Killed {
    start: u64,
    /// The process of the worker in whose tree it was.
    worker: i32,
}

/// Reaps orphans, where the host adopts them.
#[derive(Debug)]
pub(crate) struct Reaper {
    /// What was killed in a host that is the parent of orphans, until it is reaped or gone.
    killed: HashMap<i32, Killed>,
    /// The host is a subreaper, or process 1.
    pub(crate) adopts: bool,
}

impl Reaper {
    pub(crate) fn new(adopts: bool) -> Self {
        Self { killed: HashMap::new(), adopts }
    }

    /// Reaps those that were killed and have become children of the host, as process 1 or as a subreaper. True if some of this tree
    /// will in a moment: they have not ended, or their parents, which were killed too, have not.
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

    /// Reaps a zombie that was killed here, or adopted, where it is the host's.
    pub(crate) fn reap(&mut self, stat: &Stat) -> bool {
        let is_orphan = stat.is_zombie && stat.parent == this_process::own_pid() && !is_own_child(stat.pid);
        let was_killed = self.killed.get(&stat.pid).is_some_and(|killed| killed.start == stat.start);
        // A child that another part of the host has started is that part's to reap.
        is_orphan && (was_killed || self.adopts) && pidfd::reap_zombie(stat.pid).is_ok()
    }

    /// Reaps adopted orphans that have ended by themselves.
    pub(crate) fn reap_orphans(&mut self) {
        for pid in list::children(this_process::own_pid()) {
            if let Ok(stat) = Stat::of(pid) {
                self.reap(&stat);
            }
        }
    }
}
