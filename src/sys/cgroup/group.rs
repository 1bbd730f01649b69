//! One cgroup: its processes, state and limits.

use super::{
    error::{CgroupError, CgroupOperation, Controller, ControllerUnavailable},
    files::{open_directory, pass_down, subtree, value_of, write},
};
use crate::sys::proc::pinned;
use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

/// The period of `cpu.max`; the kernel's own default.
const CPU_PERIOD_US: u64 = 100_000;

/// Shows whether processes are in a cgroup.
const EVENTS: &str = "cgroup.events";

/// A cgroup that this process has made. Dropping the value does not remove the cgroup, since processes in it may have to outlive the
/// value: see `remove`.
#[derive(Debug, Clone)]
pub(crate) struct Cgroup {
    /// The directory from which controllers are enabled: see `DelegatedSubtree`.
    site: PathBuf,
    path: PathBuf,
}

impl Cgroup {
    pub(super) fn make(site: &Path, parent: &Path, name: &str) -> Result<Self, CgroupError> {
        if name.is_empty() || name.starts_with('.') || name.contains(['/', '\n', '\0']) || name.len() > 255 {
            return Err(CgroupError::BadName { name: name.into() });
        }
        let path = parent.join(name);
        fs::create_dir(&path).map_err(|source| CgroupError::refused(CgroupOperation::Make, &path, source))?;
        Ok(Self { site: site.to_owned(), path })
    }

    /// Makes a child cgroup. A supervisor has one cgroup without processes and in it one for each incarnation, so that killing the
    /// supervisor's kills all.
    pub(crate) fn create(&self, name: &str) -> Result<Self, CgroupError> {
        Self::make(&self.site, &self.path, name)
    }

    /// The directory to clone a process into: see `ExecImage::cgroup`.
    pub(crate) fn open(&self) -> Result<OwnedFd, CgroupError> {
        open_directory(&self.path).map_err(|source| CgroupError::refused(CgroupOperation::Open, &self.path, source))
    }

    /// Sends SIGKILL to every process in the cgroup and below it, atomically with respect to fork. Before Linux 5.14 the processes
    /// are killed one by one: a process forked meanwhile can be missed, so call this again while the cgroup is populated.
    pub(crate) fn kill(&self) -> Result<(), CgroupError> {
        match write(&self.path.join("cgroup.kill"), "1") {
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.path.exists() => self.kill_each(),
            done => done.map_err(|source| CgroupError::refused(CgroupOperation::Kill, &self.path, source)),
        }
    }

    fn kill_each(&self) -> Result<(), CgroupError> {
        const ROUNDS_MAX: u32 = 16;
        const PINNED_MAX: usize = 64;
        for _ in 0..ROUNDS_MAX {
            if self.processes()?.is_empty() {
                break;
            }
            // Limits the number of pidfds that are open at the same time.
            for some in self.processes()?.chunks(PINNED_MAX) {
                let still = |pid: &i32| self.processes().unwrap_or_default().contains(pid);
                let pinned = pinned::pin(|| some.iter().copied().filter(&still).collect());
                for process in pinned {
                    drop(process.signal(libc::SIGKILL));
                }
            }
        }
        Ok(())
    }

    /// Whether a process that has not ended is in the cgroup or below it. False for a removed cgroup.
    pub(crate) fn is_populated(&self) -> Result<bool, CgroupError> {
        match self.read_populated() {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOENT)) => Ok(false),
            read => read.map_err(|source| CgroupError::refused(CgroupOperation::Read, &self.path.join(EVENTS), source)),
        }
    }

    /// Whether the cgroup exists and is not populated.
    pub(crate) fn is_unpopulated(&self) -> bool {
        self.read_populated().is_ok_and(|is_populated| !is_populated)
    }

    fn read_populated(&self) -> io::Result<bool> {
        let text = fs::read_to_string(self.path.join(EVENTS))?;
        value_of(&text, "populated").map(|value| value != 0).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Freezes or thaws every process in the cgroup. Takes effect asynchronously.
    pub(crate) fn freeze(&self, frozen: Frozen) -> Result<(), CgroupError> {
        let text = match frozen {
            Frozen::Yes => "1",
            Frozen::No => "0",
        };
        write(&self.path.join("cgroup.freeze"), text)
            .map_err(|source| CgroupError::refused(CgroupOperation::Freeze, &self.path, source))
    }

    /// The PIDs of all processes in the cgroup and below it.
    pub(crate) fn processes(&self) -> Result<Vec<libc::pid_t>, CgroupError> {
        let mut found = Vec::new();
        for path in subtree(&self.path) {
            match fs::read_to_string(path.join("cgroup.procs")) {
                Ok(text) => found.extend(text.lines().filter_map(|line| line.parse::<libc::pid_t>().ok())),
                // Removed meanwhile, or threaded: then the domain cgroup above lists its processes.
                Err(_) if path != self.path => {}
                Err(source) => return Err(CgroupError::refused(CgroupOperation::Read, &self.path, source)),
            }
        }
        Ok(found)
    }

    /// Limits the memory that all processes together use; beyond that the kernel kills one of them. Swap is disabled: the cgroup would
    /// first use as much swap again, slowly.
    pub(crate) fn set_memory_max(&self, bytes: u64) -> Result<(), CgroupError> {
        self.set_limit(Controller::Memory, "memory.max", &bytes.to_string())?;
        let path = self.path.join("memory.swap.max");
        match write(&path, "0") {
            // The kernel has no swap accounting.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done.map_err(|source| CgroupError::refused(CgroupOperation::SetLimit, &path, source)),
        }
    }

    /// Limits CPU time, in thousandths of one core; at least 10.
    pub(crate) fn set_cpu_max(&self, millicores: u32) -> Result<(), CgroupError> {
        let quota_us = u64::from(millicores) * CPU_PERIOD_US / 1000;
        self.set_limit(Controller::Cpu, "cpu.max", &format!("{quota_us} {CPU_PERIOD_US}"))
    }

    /// Limits the number of processes and threads.
    pub(crate) fn set_pids_max(&self, count: u32) -> Result<(), CgroupError> {
        self.set_limit(Controller::Pids, "pids.max", &count.to_string())
    }

    fn set_limit(&self, controller: Controller, file: &str, value: &str) -> Result<(), CgroupError> {
        let path = self.path.join(file);
        if !path.exists() {
            self.enable(controller)?;
        }
        write(&path, value).map_err(|source| CgroupError::refused(CgroupOperation::SetLimit, &path, source))
    }

    /// Enables a controller on the path from the delegated directory to this cgroup's parent.
    fn enable(&self, controller: Controller) -> Result<(), CgroupError> {
        let way: Vec<&Path> = self.path.ancestors().skip(1).take_while(|path| path.starts_with(&self.site)).collect();
        let passed = way.into_iter().rev().try_for_each(|parent| pass_down(parent, controller));
        passed.map_err(|reason| CgroupError::Controller { controller, reason })
    }

    /// How many processes the kernel has killed at the memory limit of this cgroup or an ancestor.
    pub(crate) fn oom_kills(&self) -> Result<u64, CgroupError> {
        self.keyed(Controller::Memory, "memory.events", "oom_kill")
    }

    fn keyed(&self, controller: Controller, file: &str, key: &str) -> Result<u64, CgroupError> {
        let path = self.path.join(file);
        let text = fs::read_to_string(&path).map_err(|source| self.no_statistic(controller, source))?;
        value_of(&text, key)
            .ok_or_else(|| CgroupError::refused(CgroupOperation::Read, &path, io::ErrorKind::InvalidData.into()))
    }

    fn no_statistic(&self, controller: Controller, source: io::Error) -> CgroupError {
        if source.kind() == io::ErrorKind::NotFound && self.path.exists() {
            return CgroupError::Controller { controller, reason: ControllerUnavailable::NotDelegated };
        }
        CgroupError::refused(CgroupOperation::Read, &self.path, source)
    }

    /// Removes the cgroup and the empty cgroups in it. `EBUSY` while it is populated; succeeds if it is already removed.
    pub(crate) fn remove(&self) -> Result<(), CgroupError> {
        // Deepest first.
        for path in subtree(&self.path).iter().rev() {
            match fs::remove_dir(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound && *path == self.path => {
                    return Err(CgroupError::refused(CgroupOperation::Remove, path, error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Frozen {
    Yes,
    No,
}
