//! Ends trees without the event loop: when it has ended, or a start is undone.

use crate::{
    deadline::Deadline,
    supervisor::containment::{guard::TreeGuard, process_tree::ProcessTree},
    sys::pidfd::Reaped,
};
use std::{sync::Arc, time::Duration};

/// From SIGKILL to giving up on a process in uninterruptible sleep.
pub(crate) const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// Kills `trees` as the guard does when the host is killed, and reaps them. `None` for a process that does not exit in time.
pub(crate) fn kill_and_reap(guard: &TreeGuard, trees: &[Arc<ProcessTree>]) -> Vec<Option<Reaped>> {
    for tree in trees {
        tree.kill();
    }
    if !trees.is_empty() {
        // Finds by their token the descendants that have left the group and whose parents have exited.
        guard.run_cleanup(KILL_TIMEOUT);
    }
    let deadline = Deadline::after_now(KILL_TIMEOUT);
    trees.iter().map(|tree| reap_killed(tree, deadline)).collect()
}

/// Waits until a killed process has exited, and releases what its tree holds.
pub(crate) fn reap_killed(tree: &ProcessTree, deadline: Deadline) -> Option<Reaped> {
    // Before the kernel can use the process number again.
    tree.release_guard_entry();
    let reaped = tree.child().reap_until(deadline).ok().flatten();
    tree.release_cgroup();
    tree.release_tokens();
    tree.release_thread();
    reaped
}
