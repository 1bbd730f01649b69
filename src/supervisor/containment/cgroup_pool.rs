//! The cgroups that workers live in, where we may make some: what is started there does not get out.

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
    os::unix::fs::MetadataExt,
    path::PathBuf,
    process,
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

/// How many empty ones are kept for the next workers: to make and remove one costs more than the rest of a start.
const SPARE: usize = 64;

/// One supervisor's cgroup, in which its workers' lie.
#[derive(Debug, Default)]
pub(crate) struct Pen {
    /// Where it is to be, once that is known.
    place: OnceLock<Place>,
    /// Made when it is needed first.
    home: Mutex<Option<Cgroup>>,
    /// Why there can be none. A failure that may pass is not kept: the next start tries again.
    refusal: Mutex<Option<Box<str>>>,
    spare: Mutex<Vec<Cell>>,
    /// Those that could not be removed, for want of memory or while the last process is on its way out.
    refused: Mutex<Vec<Cell>>,
    made: AtomicU32,
}

/// A cgroup that may not have been made yet.
#[derive(Debug)]
struct Place {
    site: DelegatedSubtree,
    /// Nobody else's, not even of one that has our number in another namespace: the guard kills what is there.
    name: String,
}

/// The cgroup of one incarnation.
#[derive(Debug)]
pub(crate) struct Cell {
    pub(crate) cgroup: Cgroup,
    /// It has limits of its own, and is nobody else's afterwards.
    is_limited: bool,
    /// It was killed as a whole. Whoever is born into such a cgroup is killed at once, however long ago that was: the kernel
    /// (6.18) takes it for a fork that was under way (docs/gotchas.md, "A cgroup that was killed").
    was_killed: AtomicBool,
    /// Whoever is born into one that still is stands still before its first instruction, and with it whoever started it.
    was_frozen: AtomicBool,
}

impl Cell {
    /// SIGKILL to all who live in it.
    pub(crate) fn kill(&self) {
        self.was_killed.store(true, Ordering::Relaxed);
        // Fails where it has been taken away, and then nobody is in it.
        drop(self.cgroup.kill());
    }

    /// Stops all who live in it, or has them go on.
    pub(crate) fn freeze(&self, frozen: Frozen) -> Result<(), CgroupError> {
        self.was_frozen.store(true, Ordering::Relaxed);
        self.cgroup.freeze(frozen)
    }

    fn may_be_used_again(&self) -> bool {
        let was = |what: &AtomicBool| what.load(Ordering::Relaxed);
        !self.is_limited && !was(&self.was_killed) && !was(&self.was_frozen) && self.cgroup.is_unpopulated()
    }

    /// Whether the kernel has killed one of its inhabitants for want of memory. Asked only where a limit was set: elsewhere the
    /// figure is not this worker's.
    pub(crate) fn oom_killed(&self) -> bool {
        self.is_limited && self.cgroup.oom_kills().is_ok_and(|kills| kills > 0)
    }

    /// Whether somebody lives in it.
    pub(crate) fn is_populated(&self) -> bool {
        self.cgroup.is_populated().unwrap_or(true)
    }
}

impl Pen {
    fn place(&self) -> Result<&Place, CgroupError> {
        if let Some(place) = self.place.get() {
            return Ok(place);
        }
        let site = DelegatedSubtree::find()?;
        let random = u64::from_ne_bytes(random::bytes().map_err(CgroupError::NoName)?);
        let name = format!("pipewright-{}-{:x}-{random:016x}", process::id(), namespace());
        Ok(self.place.get_or_init(|| Place { site, name }))
    }

    fn home(&self) -> Result<Cgroup, CgroupError> {
        let mut home = lock(&self.home);
        if let Some(home) = &*home {
            return Ok(home.clone());
        }
        let Place { site, name } = self.place()?;
        // Of a host that was killed together with its guard.
        site.clean(is_left_over);
        Ok(home.insert(site.create(name)?).clone())
    }

    /// Where it is or will be, to be killed as a whole. It is made later: whoever is to remove it is there before it is.
    pub(crate) fn path(&self) -> Option<PathBuf> {
        // The guard asks once, and lives as long as the supervisor.
        let mut backoff = ShortageBackoff::default();
        loop {
            match self.place() {
                Ok(Place { site, name }) => return Some(site.path_of(name)),
                Err(error) if !error.is_permanent() && backoff.wait() => {}
                Err(_) => return None,
            }
        }
    }

    /// An empty one, or why there is none.
    pub(crate) fn take(&self) -> Result<Cell, Box<str>> {
        if let Some(spare) = lock(&self.spare).pop() {
            return Ok(spare);
        }
        if let Some(refusal) = &*lock(&self.refusal) {
            return Err(refusal.clone());
        }
        self.home().and_then(|home| self.make(&home)).map_err(|error| {
            let reason: Box<str> = error.to_string().into();
            if error.is_permanent() {
                *lock(&self.refusal) = Some(reason.clone());
            }
            reason
        })
    }

    /// One of its own for a worker that is limited.
    pub(crate) fn take_limited(&self, limits: &[CgroupLimit]) -> Result<Cell, CgroupError> {
        let mut cell = self.make(&self.home()?)?;
        cell.is_limited = true;
        let limited = limits.iter().try_for_each(|limit| match *limit {
            CgroupLimit::MemoryMax(bytes) => cell.cgroup.set_memory_max(bytes),
            CgroupLimit::CpuMax(millicores) => cell.cgroup.set_cpu_max(millicores),
            CgroupLimit::PidsMax(count) => cell.cgroup.set_pids_max(count),
        });
        match limited {
            Ok(()) => Ok(cell),
            Err(error) => {
                self.discard(cell);
                Err(error)
            }
        }
    }

    fn make(&self, home: &Cgroup) -> Result<Cell, CgroupError> {
        let cgroup = home.create(&self.made.fetch_add(1, Ordering::Relaxed).to_string())?;
        let (was_killed, was_frozen) = (AtomicBool::new(false), AtomicBool::new(false));
        Ok(Cell { cgroup, is_limited: false, was_killed, was_frozen })
    }

    /// Its worker has ended.
    pub(crate) fn give_back(&self, cell: Cell) {
        let mut spare = lock(&self.spare);
        if spare.len() < SPARE && cell.may_be_used_again() {
            spare.push(cell);
        } else {
            drop(spare);
            self.discard(cell);
        }
    }

    /// Removes one, and those whose removal was refused before. What a process that does not die keeps is tried again each time, at
    /// last with the supervisor's own.
    pub(crate) fn discard(&self, cell: Cell) {
        let mut refused = lock(&self.refused);
        refused.push(cell);
        refused.retain(|cell| cell.cgroup.remove().is_err());
    }
}

impl Drop for Pen {
    fn drop(&mut self) {
        for cell in lock(&self.spare).drain(..) {
            drop(cell.cgroup.remove());
        }
        if let Some(home) = lock(&self.home).take() {
            // Somebody is left there only where he could not be reached before. What is still in it goes with it.
            drop(home.kill());
            let mut backoff = ShortageBackoff::default();
            while home.remove().is_err_and(|error| !error.is_permanent()) && backoff.wait() {}
        }
    }
}

/// Whether a cgroup's name is that of a supervisor whose process is gone. That of a process whose numbers are not ours cannot be
/// told to be.
fn is_left_over(name: &str) -> bool {
    let Some(rest) = name.strip_prefix("pipewright-") else { return false };
    let mut parts = rest.split('-');
    let (owner, whose) = (parts.next().and_then(|pid| pid.parse::<u32>().ok()), parts.next());
    let is_ours = whose.and_then(|whose| u64::from_str_radix(whose, 16).ok()) == Some(namespace());
    is_ours && owner.is_some_and(|pid| !fs::exists(format!("/proc/{pid}")).unwrap_or(true))
}

/// In which namespace our process has its number: `pid_namespaces(7)`.
fn namespace() -> u64 {
    fs::metadata("/proc/self/ns/pid").map_or(0, |namespace| namespace.ino())
}
