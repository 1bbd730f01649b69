//! cgroup v2: a set of processes that nobody leaves by forking, changing its session or losing its parent. See cgroups(7)
//! and the kernel's cgroup-v2 document.
mod site;

use std::{
    ffi::OsStr,
    fs::{self, OpenOptions},
    io::{self, Write},
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::{fd, proc::pinned};
pub(crate) use site::Site;

/// How deep cgroups that a worker has made in its own are followed.
const DEEPEST: u32 = 16;

/// The period over which `cpu.max` counts; the kernel's own default.
const CPU_PERIOD_US: u64 = 100_000;

/// Where the kernel says whether anybody lives in a cgroup.
const EVENTS: &str = "cgroup.events";

/// Why there is no cgroup.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CgroupError {
    #[error("there are no cgroups for us: {0}")]
    Absent(Absence),
    /// The name cannot be a directory's.
    #[error("{name:?} cannot be the name of a cgroup")]
    BadName { name: Box<str> },
    /// There was no random number for its name.
    #[error("no name for a cgroup: {0}")]
    NoName(#[source] io::Error),
    /// The kernel refused. `EACCES` and `EROFS`: the subtree is not delegated to us. `EBUSY`: processes are in it.
    #[error("cgroup {path}: {act} failed: {source}")]
    Refused {
        act: Act,
        path: Box<str>,
        #[source]
        source: io::Error,
    },
    /// A limit or a figure needs this controller, and it is not to be had here.
    #[error("the cgroup controller {controller} is not to be had: {reason}")]
    Controller { controller: Controller, reason: NoController },
}

impl CgroupError {
    /// Whether trying again later gives the same answer: what is missing or not permitted stays so, a shortage passes.
    pub(crate) fn lasts(&self) -> bool {
        match self {
            Self::Absent(_) | Self::BadName { .. } | Self::Controller { .. } => true,
            Self::NoName(_) => false,
            Self::Refused { source, .. } => {
                matches!(source.raw_os_error(), Some(libc::EACCES | libc::EPERM | libc::EROFS))
            }
        }
    }

    /// `Unsupported` is what trying again does not change.
    pub(crate) fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Absent(_) | Self::Controller { .. } => io::ErrorKind::Unsupported,
            Self::BadName { .. } => io::ErrorKind::InvalidInput,
            Self::NoName(source) | Self::Refused { source, .. } => source.kind(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Absence {
    #[error("/proc is not mounted")]
    NoProc,
    #[error("cgroup v2 is not mounted")]
    NotMounted,
    #[error("our own cgroup is not below any mount that we see")]
    OutOfSight,
}

/// What was being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    Make,
    Open,
    Kill,
    Freeze,
    Read,
    Remove,
    SetLimit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Controller {
    Memory,
    Cpu,
    Pids,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoController {
    #[error("it is not delegated to our cgroup, or cgroup v1 has it")]
    NotDelegated,
    /// The rule of "no internal processes": who gives a controller to its children must not have processes itself.
    #[error(
        "our own cgroup has processes in it, this one first: start it in a cgroup below the one that is delegated to it \
         (systemd: Delegate=yes, DelegateSubgroup=main)"
    )]
    Occupied,
    #[error("we may not pass it on to our children")]
    NotPermitted,
}

impl std::fmt::Display for Act {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Make => "making it",
            Self::Open => "opening it",
            Self::Kill => "killing it",
            Self::Freeze => "freezing or thawing it",
            Self::Read => "reading its state",
            Self::Remove => "removing it",
            Self::SetLimit => "setting a limit",
        })
    }
}

impl Controller {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Pids => "pids",
        }
    }
}

impl std::fmt::Display for Controller {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.name())
    }
}

/// A cgroup that we have made. Dropping it leaves it there, since the processes in it may have to outlive this value: see
/// `remove`.
#[derive(Debug, Clone)]
pub(crate) struct Cgroup {
    /// From where controllers are passed down: see `Site`.
    site: PathBuf,
    path: PathBuf,
}

impl Cgroup {
    fn make(site: &Path, parent: &Path, name: &str) -> Result<Self, CgroupError> {
        if name.is_empty() || name.starts_with('.') || name.contains(['/', '\n', '\0']) || name.len() > 255 {
            return Err(CgroupError::BadName { name: name.into() });
        }
        let path = parent.join(name);
        fs::create_dir(&path).map_err(|source| refused(Act::Make, &path, source))?;
        Ok(Self { site: site.to_owned(), path })
    }

    /// Makes a cgroup in this one. The usual form is one for a supervisor, empty itself, with one for each incarnation in
    /// it: then killing the supervisor's kills them all.
    pub(crate) fn create(&self, name: &str) -> Result<Self, CgroupError> {
        Self::make(&self.site, &self.path, name)
    }

    /// What a process is born into: see `Image::cgroup`.
    pub(crate) fn open(&self) -> Result<OwnedFd, CgroupError> {
        open_directory(&self.path).map_err(|source| refused(Act::Open, &self.path, source))
    }

    /// SIGKILL to everything in it and below it, at once and without a gap for forks. Before Linux 5.14 one by one: then
    /// whoever forks in that moment is left, and this has to be called again as long as it is populated.
    pub(crate) fn kill(&self) -> Result<(), CgroupError> {
        match write(&self.path.join("cgroup.kill"), "1") {
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.path.exists() => self.kill_each(),
            done => done.map_err(|source| refused(Act::Kill, &self.path, source)),
        }
    }

    fn kill_each(&self) -> Result<(), CgroupError> {
        const ROUNDS_MAX: u32 = 16;
        const HELD_MAX: usize = 64;
        for _ in 0..ROUNDS_MAX {
            if self.processes()?.is_empty() {
                break;
            }
            // A bounded number of descriptors at a time.
            for some in self.processes()?.chunks(HELD_MAX) {
                let still = |pid: &i32| self.processes().unwrap_or_default().contains(pid);
                let held = pinned::pin(|| some.iter().copied().filter(&still).collect());
                for process in held {
                    drop(process.signal(libc::SIGKILL));
                }
            }
        }
        Ok(())
    }

    /// Whether a process that has not ended is in it or below it. One that is removed has nobody in it.
    pub(crate) fn is_populated(&self) -> Result<bool, CgroupError> {
        match self.read_populated() {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOENT)) => Ok(false),
            read => read.map_err(|source| refused(Act::Read, &self.path.join(EVENTS), source)),
        }
    }

    /// Whether it is there, and nobody lives in it.
    pub(crate) fn is_deserted(&self) -> bool {
        self.read_populated().is_ok_and(|is_populated| !is_populated)
    }

    fn read_populated(&self) -> io::Result<bool> {
        let text = fs::read_to_string(self.path.join(EVENTS))?;
        value_of(&text, "populated").map(|value| value != 0).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Stops or continues everything in it. Comes into effect a moment later.
    pub(crate) fn freeze(&self, frozen: Frozen) -> Result<(), CgroupError> {
        let text = match frozen {
            Frozen::Yes => "1",
            Frozen::No => "0",
        };
        write(&self.path.join("cgroup.freeze"), text).map_err(|source| refused(Act::Freeze, &self.path, source))
    }

    /// Everybody in it and below it.
    pub(crate) fn processes(&self) -> Result<Vec<libc::pid_t>, CgroupError> {
        let mut found = Vec::new();
        for path in subtree(&self.path) {
            match fs::read_to_string(path.join("cgroup.procs")) {
                Ok(text) => found.extend(text.lines().filter_map(|line| line.parse::<libc::pid_t>().ok())),
                // Removed meanwhile, or threaded: then the one above lists them.
                Err(_) if path != self.path => {}
                Err(source) => return Err(refused(Act::Read, &self.path, source)),
            }
        }
        Ok(found)
    }

    /// The most memory that all of it together may use; beyond that the kernel kills one of them. Nothing of it is swapped out:
    /// it would use as much again of the swap before that, slowly.
    pub(crate) fn set_memory_max(&self, bytes: u64) -> Result<(), CgroupError> {
        self.set_limit(Controller::Memory, "memory.max", &bytes.to_string())?;
        let path = self.path.join("memory.swap.max");
        match write(&path, "0") {
            // A kernel that cannot swap, or does not count what it swaps.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done.map_err(|source| refused(Act::SetLimit, &path, source)),
        }
    }

    /// The most CPU time, in thousandths of one core; at least 10.
    pub(crate) fn set_cpu_max(&self, millicores: u32) -> Result<(), CgroupError> {
        let quota_us = u64::from(millicores) * CPU_PERIOD_US / 1000;
        self.set_limit(Controller::Cpu, "cpu.max", &format!("{quota_us} {CPU_PERIOD_US}"))
    }

    /// The most processes and threads.
    pub(crate) fn set_pids_max(&self, count: u32) -> Result<(), CgroupError> {
        self.set_limit(Controller::Pids, "pids.max", &count.to_string())
    }

    fn set_limit(&self, controller: Controller, file: &str, value: &str) -> Result<(), CgroupError> {
        let path = self.path.join(file);
        if !path.exists() {
            self.enable(controller)?;
        }
        write(&path, value).map_err(|source| refused(Act::SetLimit, &path, source))
    }

    /// Passes a controller down, from where our cgroups lie to this one's parent.
    fn enable(&self, controller: Controller) -> Result<(), CgroupError> {
        let way: Vec<&Path> = self.path.ancestors().skip(1).take_while(|path| path.starts_with(&self.site)).collect();
        let passed = way.into_iter().rev().try_for_each(|parent| pass_down(parent, controller));
        passed.map_err(|reason| CgroupError::Controller { controller, reason })
    }

    /// How often the kernel has killed one of them because the memory limit, its own or one above, was reached.
    pub(crate) fn oom_kills(&self) -> Result<u64, CgroupError> {
        self.keyed(Controller::Memory, "memory.events", "oom_kill")
    }

    fn keyed(&self, controller: Controller, file: &str, key: &str) -> Result<u64, CgroupError> {
        let path = self.path.join(file);
        let text = fs::read_to_string(&path).map_err(|source| self.no_figure(controller, source))?;
        value_of(&text, key).ok_or_else(|| refused(Act::Read, &path, io::ErrorKind::InvalidData.into()))
    }

    fn no_figure(&self, controller: Controller, source: io::Error) -> CgroupError {
        if source.kind() == io::ErrorKind::NotFound && self.path.exists() {
            return CgroupError::Controller { controller, reason: NoController::NotDelegated };
        }
        refused(Act::Read, &self.path, source)
    }

    /// Removes it, with the empty ones that were made in it. `EBUSY` while it is populated; one that is gone is removed.
    pub(crate) fn remove(&self) -> Result<(), CgroupError> {
        // The deepest last in the walk, so the first to go.
        for path in subtree(&self.path).iter().rev() {
            match fs::remove_dir(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound && *path == self.path => {
                    return Err(refused(Act::Remove, path, error));
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

/// The number behind a key in one of the files that have a key and a number on each line.
fn value_of(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Gives a controller to a cgroup's children.
fn pass_down(parent: &Path, controller: Controller) -> Result<(), NoController> {
    let control = parent.join("cgroup.subtree_control");
    let names = |path: &Path| {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.split_whitespace().any(|name| name == controller.name())
    };
    if !names(&parent.join("cgroup.controllers")) {
        return Err(NoController::NotDelegated);
    }
    // The kernel would give some controllers to the children of one that has processes, but as threads of it: nobody could be born
    // in any of them any more.
    if !is_whole(parent) && has_processes(parent) {
        return Err(NoController::Occupied);
    }
    if names(&control) {
        return Ok(());
    }
    write(&control, &format!("+{}", controller.name())).map_err(|error| match error.raw_os_error() {
        Some(libc::EBUSY) => NoController::Occupied,
        Some(libc::EACCES | libc::EPERM | libc::EROFS) => NoController::NotPermitted,
        _ => NoController::NotDelegated,
    })
}

/// Whether it is the root of the whole hierarchy, which may have processes and pass controllers on all the same.
fn is_whole(path: &Path) -> bool {
    !path.join("cgroup.type").exists()
}

/// Whether somebody is in it, apart from those who are below it.
fn has_processes(path: &Path) -> bool {
    fs::read_to_string(path.join("cgroup.procs")).is_ok_and(|text| !text.is_empty())
}

/// A directory and all directories in it, each before those that are in it.
fn subtree(path: &Path) -> Vec<PathBuf> {
    let mut all = vec![path.to_owned()];
    let mut level = all.clone();
    for _ in 0..DEEPEST {
        let inside = level.iter().flat_map(|path| fs::read_dir(path).into_iter().flatten().flatten());
        level = inside
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| entry.path())
            .collect();
        if level.is_empty() {
            break;
        }
        all.extend(level.iter().cloned());
    }
    all
}

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(path)?;
    // In a host that has closed them, 0, 1 and 2 are free, and the child's own streams come there.
    fd::dup_above(file.into(), fd::MIN_FD)
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
}

fn refused(act: Act, path: &Path, source: io::Error) -> CgroupError {
    CgroupError::Refused { act, path: OsStr::to_string_lossy(path.as_os_str()).into(), source }
}
