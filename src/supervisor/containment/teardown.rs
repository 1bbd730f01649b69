//! Whom nobody looks after any more: the loop has ended, for whatever reason, and with it end the trees of all its workers.

use crate::{
    deadline::Deadline,
    exit::{Exit, ExitStatus},
    launch::child::exit_status,
    policy::survivors::SurvivorPolicy,
    supervisor::{
        clock::now,
        containment::cgroup_pool::Cell,
        incarnation::KILL_TIMEOUT,
        spawner::Starter,
        worker::{WorkerShared, process::Present},
    },
    sys::{
        pidfd::Reaped,
        proc::{list, pinned::PinnedProcess, stat::Stat},
    },
};
use std::sync::Arc;

impl Present {
    /// SIGKILL to the whole tree, while the worker lives: what has thrown away its environment is found by its parents.
    pub(crate) fn kill_tree(&self) {
        let pid = self.child().pid().cast_signed();
        let is_whole = self.survivors() == SurvivorPolicy::Kill;
        let descendants = if is_whole { list::descendants(pid) } else { Vec::new() };
        let descendants: Vec<Stat> = descendants.into_iter().filter_map(|pid| Stat::of(pid).ok()).collect();
        // The worker first: with its children gone it might end by itself, and be told so.
        self.with_cell(Cell::kill);
        drop(self.child().signal_group(libc::SIGKILL));
        for descendant in descendants {
            drop(PinnedProcess::open(&descendant).and_then(|held| held.signal(libc::SIGKILL)));
        }
    }
}

impl Starter {
    /// Ends these with all they have started, as the guard does when we are killed, and gives what the kernel tells of the end
    /// of each; nothing of one that does not die in time.
    pub(crate) fn end_orphans(&self, orphans: &[Arc<Present>]) -> Vec<Option<Reaped>> {
        for present in orphans {
            present.kill_tree();
        }
        if !orphans.is_empty() {
            // Whoever has left its family is found by its token.
            self.sentinel().sweep(KILL_TIMEOUT);
        }
        self.reap_killed(orphans)
    }

    fn reap_killed(&self, orphans: &[Arc<Present>]) -> Vec<Option<Reaped>> {
        let deadline = Deadline::after_now(KILL_TIMEOUT);
        let reap = |present: &Arc<Present>| {
            // Before the kernel gives its number to somebody else.
            present.leave_guard(self);
            let reaped = present.child().reap_until(deadline).ok().flatten();
            present.leave_cell(self);
            present.untie();
            present.close_pipes();
            reaped
        };
        orphans.iter().map(reap).collect()
    }

    /// Ends a new process whose worker was stopped while it was started. It has just reached its program.
    pub(crate) fn undo(&self, present: &Arc<Present>) {
        present.kill_tree();
        self.reap_killed(std::slice::from_ref(present));
        present.close_link(None);
    }

    /// The same of one that the loop has never seen; whoever holds its handle is told.
    pub(crate) fn end_newcomer(&self, shared: &WorkerShared, present: &Arc<Present>) {
        let reaped = self.end_orphans(std::slice::from_ref(present)).pop().flatten();
        let status = reaped.map_or(ExitStatus::Unkillable, |reaped| exit_status(reaped.ending));
        let exit = Arc::new(Exit::of(status));
        present.close_link(Some(&exit));
        shared.end((exit, now()));
    }
}
