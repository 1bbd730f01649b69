//! The processes of one incarnation: the worker's own process, and how its descendants are recognised and held together.

use crate::{
    jobserver::server::TokenPipe,
    launch::child::ChildProcess,
    policy::survivors::SurvivorPolicy,
    supervisor::{
        containment::{cgroup_pool::WorkerCgroup, guard::GuardEntry, token::TreeToken},
        sync::lock,
    },
    sys::{
        cgroup::group::Frozen,
        proc::{list, pinned::PinnedProcess, stat::Stat},
    },
};
use std::{fmt, io, sync::Mutex};

/// Keeps the thread running that started a process: the kernel sends the parent-death signal when that thread ends.
pub(crate) trait ThreadHold: fmt::Debug + Send + Sync {}

/// The process of one incarnation and its descendants.
///
/// The guard entry, the cgroup, the tokens and the thread are released in this order: the entry before the process is reaped, since its number
/// may be used again after that, and the others when the tree has ended. Dropping the value releases what is left.
#[derive(Debug)]
pub(crate) struct ProcessTree {
    /// Where the process group is in the list of the guard.
    pub(crate) guard_entry: Mutex<Option<GuardEntry>>,
    pub(crate) child: ChildProcess,
    pub(crate) token: TreeToken,
    pub(crate) cgroup: Mutex<Option<WorkerCgroup>>,
    /// The tokens of a jobserver that the tree may hold.
    pub(crate) tokens: Mutex<Option<TokenPipe>>,
    /// Why there is no cgroup.
    pub(crate) no_cgroup: Option<Box<str>>,
    /// In ticks of the boot clock, when the process was started or earlier.
    pub(crate) started_tick: u64,
    /// Whether descendants that have left the process group are killed with the worker.
    pub(crate) survivors: SurvivorPolicy,
    /// The thread that started the process, where its end signals the process and it is not the main thread.
    pub(crate) thread: Mutex<Option<Box<dyn ThreadHold>>>,
    /// Whether the user has stopped the tree. Held while the processes are signalled.
    pub(crate) is_frozen: Mutex<bool>,
}

impl ProcessTree {
    pub(crate) fn child(&self) -> &ChildProcess {
        &self.child
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.pid().cast_signed()
    }

    pub(crate) fn token(&self) -> &TreeToken {
        &self.token
    }

    pub(crate) fn no_cgroup(&self) -> Option<&str> {
        self.no_cgroup.as_deref()
    }

    pub(crate) fn started_tick(&self) -> u64 {
        self.started_tick
    }

    /// Calls `run` with the cgroup; `None` where there is none.
    pub(crate) fn with_cgroup<T>(&self, run: impl FnOnce(&WorkerCgroup) -> T) -> Option<T> {
        lock(&self.cgroup).as_ref().map(run)
    }

    /// Removes the process group from the list of the guard.
    pub(crate) fn release_guard_entry(&self) {
        let entry = lock(&self.guard_entry).take();
        drop(entry);
    }

    /// Returns the cgroup to its pool.
    pub(crate) fn release_cgroup(&self) {
        let cgroup = lock(&self.cgroup).take();
        drop(cgroup);
    }

    /// Returns the tokens that the tree has held.
    pub(crate) fn release_tokens(&self) {
        let tokens = lock(&self.tokens).take();
        drop(tokens);
    }

    /// Lets the thread end that started the process, which is reaped.
    pub(crate) fn release_thread(&self) {
        let thread = lock(&self.thread).take();
        drop(thread);
    }

    /// Sends SIGKILL to the whole tree while the worker runs. Descendants that have cleared their environment are found by their parents.
    pub(crate) fn kill(&self) {
        let is_whole = self.survivors == SurvivorPolicy::Kill;
        let descendants = if is_whole { list::descendants(self.pid()) } else { Vec::new() };
        let descendants: Vec<Stat> = descendants.into_iter().filter_map(|pid| Stat::of(pid).ok()).collect();
        // The worker first: without its children it might exit by itself, and be reported so.
        self.with_cgroup(WorkerCgroup::kill);
        drop(self.child.signal_group(libc::SIGKILL));
        for descendant in descendants {
            drop(PinnedProcess::open(&descendant).and_then(|process| process.signal(libc::SIGKILL)));
        }
    }

    /// Whether the user has stopped the tree.
    pub(crate) fn is_frozen(&self) -> bool {
        *lock(&self.is_frozen)
    }

    /// Stops the tree: by its cgroup, or by SIGSTOP to its process group.
    pub(crate) fn freeze(&self) -> io::Result<()> {
        self.set_frozen(Frozen::Yes)
    }

    /// Continues the tree.
    pub(crate) fn thaw(&self) -> io::Result<()> {
        self.set_frozen(Frozen::No)
    }

    /// Continues a stopped tree, so that it receives the signals of its stop.
    pub(crate) fn thaw_for_stop(&self) {
        if self.is_frozen() {
            // Fails where the cgroup has been removed or the process has exited.
            drop(self.thaw());
        }
    }

    fn set_frozen(&self, frozen: Frozen) -> io::Result<()> {
        let mut is_frozen = lock(&self.is_frozen);
        *is_frozen = frozen == Frozen::Yes;
        match self.with_cgroup(|cgroup| cgroup.freeze(frozen)) {
            Some(done) => done.map_err(io::Error::other),
            None => self.child.signal_group(if frozen == Frozen::Yes { libc::SIGSTOP } else { libc::SIGCONT }),
        }
    }
}
