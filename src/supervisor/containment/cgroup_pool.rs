//! The cgroups of workers, where this process may create cgroups. A process does not leave the cgroup in which it was started.

use crate::{
    launch::limits::CgroupLimit,
    supervisor::sync::lock,
    sys::{
        cgroup::{
            error::CgroupError,
            group::{Cgroup, Frozen},
            subtree::DelegatedSubtree,
        },
        poll::ShortageBackoff,
        random,
    },
};
use std::{
    fs,
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::PathBuf,
    process,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

/// The number of empty cgroups that are kept for later workers. Creating and removing a cgroup costs more than the rest of a start.
const SPARE_MAX: usize = 64;

/// The cgroup of one supervisor, and the cgroups of its workers below it.
#[derive(Debug, Default)]
pub(crate) struct CgroupPool {
    /// Where the supervisor's cgroup is to be, once that is known.
    location: OnceLock<Location>,
    /// The supervisor's cgroup, created for the first worker.
    root: Mutex<Option<Cgroup>>,
    /// Why no cgroup can be created. Transient errors are not kept: the next start tries again.
    refusal: Mutex<Option<Box<str>>>,
    spare: Mutex<Vec<Cgroup>>,
    /// Cgroups whose removal failed, for want of memory or while their last process exits.
    unremoved: Mutex<Vec<Cgroup>>,
    made: AtomicU32,
}

/// The place of a cgroup that may not exist yet.
#[derive(Debug)]
struct Location {
    subtree: DelegatedSubtree,
    /// Unique, also among processes with the same pid in other namespaces: the guard kills what is there.
    name: String,
}

/// The cgroup of one incarnation. Dropping it returns it to its pool.
#[derive(Debug)]
pub(crate) struct WorkerCgroup {
    cgroup: Cgroup,
    pool: Arc<CgroupPool>,
    /// Limits were set, so it is not used for another worker.
    is_limited: bool,
    /// It was killed or frozen, or is in an unknown state, so it is not used for another worker. A process that is started in a cgroup that was
    /// killed is killed at once, however long ago that was: the kernel (6.18) takes the start for a fork that was under way
    /// (docs/gotchas.md, "A cgroup that was killed"). A process that is started in a frozen cgroup stops before its first instruction, and
    /// its parent waits for it.
    is_tainted: AtomicBool,
}

impl WorkerCgroup {
    /// Opens the directory, to start a process in the cgroup.
    pub(crate) fn open(&self) -> Result<OwnedFd, CgroupError> {
        self.cgroup.open()
    }

    /// The ids of the processes in the cgroup; none where they cannot be read.
    pub(crate) fn processes(&self) -> Vec<i32> {
        self.cgroup.processes().unwrap_or_default()
    }

    /// Sends SIGKILL to all processes in the cgroup.
    pub(crate) fn kill(&self) {
        self.is_tainted.store(true, Ordering::Relaxed);
        // Fails where the cgroup has been removed, which needs it to be empty.
        drop(self.cgroup.kill());
    }

    /// Stops or continues all processes in the cgroup.
    pub(crate) fn freeze(&self, frozen: Frozen) -> Result<(), CgroupError> {
        self.is_tainted.store(true, Ordering::Relaxed);
        self.cgroup.freeze(frozen)
    }

    /// Whether the kernel has killed a process in the cgroup for want of memory. Read only where a limit was set: the counter of a reused
    /// cgroup may be from an earlier worker.
    pub(crate) fn oom_killed(&self) -> bool {
        self.is_limited && self.cgroup.oom_kills().is_ok_and(|kills| kills > 0)
    }

    pub(crate) fn is_populated(&self) -> bool {
        self.cgroup.is_populated().unwrap_or(true)
    }

    /// Removes the cgroup instead of keeping it for another worker.
    pub(crate) fn discard(self) {
        self.is_tainted.store(true, Ordering::Relaxed);
    }
}

impl Drop for WorkerCgroup {
    fn drop(&mut self) {
        let is_reusable = !self.is_limited && !self.is_tainted.load(Ordering::Relaxed) && self.cgroup.is_unpopulated();
        self.pool.release(self.cgroup.clone(), is_reusable);
    }
}

impl CgroupPool {
    fn location(&self) -> Result<&Location, CgroupError> {
        if let Some(location) = self.location.get() {
            return Ok(location);
        }
        let subtree = DelegatedSubtree::find()?;
        let random = u64::from_ne_bytes(random::bytes().map_err(CgroupError::NoName)?);
        let name = format!("pipewright-{}-{:x}-{random:016x}", process::id(), namespace());
        Ok(self.location.get_or_init(|| Location { subtree, name }))
    }

    fn root(&self) -> Result<Cgroup, CgroupError> {
        let mut root = lock(&self.root);
        if let Some(root) = &*root {
            return Ok(root.clone());
        }
        let Location { subtree, name } = self.location()?;
        // Left by hosts that were killed together with their guards.
        subtree.clean(is_left_over);
        Ok(root.insert(subtree.create(name)?).clone())
    }

    /// The path of the supervisor's cgroup, for the guard. The cgroup is created later, so that the guard that removes it runs before it
    /// exists.
    pub(crate) fn path(&self) -> Option<PathBuf> {
        // The guard is started once, and lives as long as the supervisor.
        let mut backoff = ShortageBackoff::default();
        loop {
            match self.location() {
                Ok(Location { subtree, name }) => return Some(subtree.path_of(name)),
                Err(error) if !error.is_permanent() && backoff.wait() => {}
                Err(_) => return None,
            }
        }
    }

    /// Returns an empty cgroup, or the reason why there is none.
    pub(crate) fn take(self: &Arc<Self>) -> Result<WorkerCgroup, Box<str>> {
        if let Some(spare) = lock(&self.spare).pop() {
            return Ok(self.lease(spare, false));
        }
        if let Some(refusal) = &*lock(&self.refusal) {
            return Err(refusal.clone());
        }
        let made = self.create();
        made.map(|cgroup| self.lease(cgroup, false)).map_err(|error| {
            let reason: Box<str> = error.to_string().into();
            if error.is_permanent() {
                *lock(&self.refusal) = Some(reason.clone());
            }
            reason
        })
    }

    /// Returns a new cgroup with these limits.
    pub(crate) fn take_limited(self: &Arc<Self>, limits: &[CgroupLimit]) -> Result<WorkerCgroup, CgroupError> {
        let leased = self.lease(self.create()?, true);
        for limit in limits {
            match *limit {
                CgroupLimit::MemoryMax(bytes) => leased.cgroup.set_memory_max(bytes)?,
                CgroupLimit::CpuMax(millicores) => leased.cgroup.set_cpu_max(millicores)?,
                CgroupLimit::PidsMax(count) => leased.cgroup.set_pids_max(count)?,
            }
        }
        Ok(leased)
    }

    fn create(&self) -> Result<Cgroup, CgroupError> {
        self.root()?.create(&self.made.fetch_add(1, Ordering::Relaxed).to_string())
    }

    fn lease(self: &Arc<Self>, cgroup: Cgroup, is_limited: bool) -> WorkerCgroup {
        WorkerCgroup { cgroup, pool: Arc::clone(self), is_limited, is_tainted: AtomicBool::new(false) }
    }

    fn release(&self, cgroup: Cgroup, is_reusable: bool) {
        let mut spare = lock(&self.spare);
        if is_reusable && spare.len() < SPARE_MAX {
            spare.push(cgroup);
        } else {
            drop(spare);
            self.remove(cgroup);
        }
    }

    /// Removes `cgroup`, and retries the removals that failed before. A cgroup whose process does not exit is tried again each time, and
    /// last with the supervisor's own.
    fn remove(&self, cgroup: Cgroup) {
        let mut unremoved = lock(&self.unremoved);
        unremoved.push(cgroup);
        unremoved.retain(|cgroup| cgroup.remove().is_err());
    }
}

impl Drop for CgroupPool {
    fn drop(&mut self) {
        for cgroup in lock(&self.spare).drain(..) {
            drop(cgroup.remove());
        }
        if let Some(root) = lock(&self.root).take() {
            // Processes are left only where they could not be reached before.
            drop(root.kill());
            let mut backoff = ShortageBackoff::default();
            while root.remove().is_err_and(|error| !error.is_permanent()) && backoff.wait() {}
        }
    }
}

/// Whether a cgroup's name is that of a supervisor whose process is gone. That is unknown for a process of another pid namespace.
fn is_left_over(name: &str) -> bool {
    let Some(rest) = name.strip_prefix("pipewright-") else { return false };
    let mut parts = rest.split('-');
    let (owner, whose) = (parts.next().and_then(|pid| pid.parse::<u32>().ok()), parts.next());
    let is_ours = whose.and_then(|whose| u64::from_str_radix(whose, 16).ok()) == Some(namespace());
    is_ours && owner.is_some_and(|pid| !fs::exists(format!("/proc/{pid}")).unwrap_or(true))
}

/// The pid namespace of this process: `pid_namespaces(7)`.
fn namespace() -> u64 {
    fs::metadata("/proc/self/ns/pid").map_or(0, |namespace| namespace.ino())
}
