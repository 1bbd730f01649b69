//! The process of a worker: signalled through its pidfd, so never by a reused pid, and reaped once.

use super::retry::pause_for;
use crate::{
    deadline::Deadline,
    exit::{ExitStatus, Usage},
    sys::{
        pidfd::{PidFd, RawUsage, Reaped, WaitStatus},
        poll::{self, Interest, PollOutcome},
        socket,
        this_process::own_pid,
    },
};
use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

/// Pause between attempts to reap while a tracer holds the status.
const TRACER_PAUSE: Duration = Duration::from_millis(5);

/// How often the status of an attached process is looked for until its parent has reaped it: with the pauses of the lifecycle, 255 ms in
/// total.
const STATUS_CHECKS: u32 = 8;

/// What to do with the other members of the child's own process group when the child is reaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GroupCleanup {
    Kill,
    Leave,
}

/// Pids of the children that the library has started and not reaped. Other children of this process are adopted orphans, or were
/// started by other parts of the host.
static CHILDREN: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// Whether the library has started this child of this process.
pub(crate) fn is_own_child(pid: i32) -> bool {
    CHILDREN.lock().unwrap_or_else(PoisonError::into_inner).contains(&pid)
}

/// A child process, from its start until it is reaped; or a process that was started elsewhere and has connected to this one.
#[derive(Debug)]
pub(crate) struct ChildProcess {
    pid: i32,
    leads_group: bool,
    origin: ProcessOrigin,
    /// `None` once the child is reaped, so that handles of exited workers hold no fds.
    ///
    /// The process group is signalled only through the pidfd. Its number could already belong to another group if another part of
    /// the host has reaped the leader (`waitpid(-1)`, an ignored SIGCHLD).
    pidfd: Mutex<Option<PidFd>>,
}

/// Who has started a process.
#[derive(Debug)]
enum ProcessOrigin {
    /// The library: a child of this process.
    Library,
    /// Another program. Its parent reaps it, also where this is other code of the host.
    Elsewhere {
        /// Whether the pidfd is certainly that of the process that has connected.
        is_certain: bool,
        /// How often its status was looked for since its exit.
        status_checks: AtomicU32,
    },
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        // The child did not exit in time and is abandoned.
        if self.is_child() && self.lock().is_some() {
            CHILDREN.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.pid);
        }
    }
}

impl ChildProcess {
    pub(super) fn new(pid: i32, pidfd: PidFd, leads_group: bool) -> Self {
        CHILDREN.lock().unwrap_or_else(PoisonError::into_inner).insert(pid);
        Self { pid, leads_group, origin: ProcessOrigin::Library, pidfd: Mutex::new(Some(pidfd)) }
    }

    /// The process that has opened this connection.
    ///
    /// Before Linux 6.5 the kernel has no pidfd for a connection. The pid could then have been reused, if the peer had exited and left the
    /// socket to a child: such a process is watched, but not signalled.
    ///
    /// # Errors
    ///
    /// If the process has exited, or is in another PID namespace.
    pub(crate) fn of_peer(socket: BorrowedFd<'_>) -> io::Result<Self> {
        let gone = || io::Error::from_raw_os_error(libc::ESRCH);
        let pid = socket::peer_credentials(socket)?.pid;
        if pid <= 0 {
            return Err(gone());
        }
        let pinned = socket::peer_pidfd(socket)?.map(PidFd::from);
        // This process never signals itself.
        let is_certain = pinned.is_some() && pid != own_pid();
        let pidfd = if let Some(pidfd) = pinned {
            pidfd
        } else {
            let opened = PidFd::open(pid)?;
            if socket::is_hung_up(socket)? {
                return Err(gone());
            }
            opened
        };
        let origin = ProcessOrigin::Elsewhere { is_certain, status_checks: AtomicU32::new(0) };
        Ok(Self { pid, leads_group: false, origin, pidfd: Mutex::new(Some(pidfd)) })
    }

    /// Whether the library has started it.
    fn is_child(&self) -> bool {
        matches!(self.origin, ProcessOrigin::Library)
    }

    fn check_identity(&self) -> io::Result<()> {
        match self.origin {
            ProcessOrigin::Elsewhere { is_certain: false, .. } => Err(io::Error::from_raw_os_error(libc::EPERM)),
            ProcessOrigin::Elsewhere { is_certain: true, .. } | ProcessOrigin::Library => Ok(()),
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid.unsigned_abs()
    }

    /// Whether the process group is the child's own.
    pub(crate) fn leads_group(&self) -> bool {
        self.leads_group
    }

    /// Whether the pid is still the child's: no part of this program has reaped it.
    pub(crate) fn is_unreaped(&self) -> bool {
        self.with_pidfd(|pidfd| Ok(pidfd.is_unreaped())).unwrap_or(false)
    }

    /// Signals the process alone.
    pub(crate) fn signal(&self, signal: i32) -> io::Result<()> {
        self.check_identity()?;
        self.with_pidfd(|pidfd| pidfd.signal_child(self.pid, signal))
    }

    /// Signals the process group if it is the child's own, otherwise the process alone.
    pub(crate) fn signal_group(&self, signal: i32) -> io::Result<()> {
        self.check_identity()?;
        self.with_pidfd(|pidfd| {
            if !self.leads_group {
                return pidfd.signal_child(self.pid, signal);
            }
            let sent = pidfd.signal_group(self.pid, signal);
            // The leader itself may have moved to another group. A second SIGKILL is harmless.
            if sent.is_err() || signal == libc::SIGKILL { pidfd.signal_child(self.pid, signal) } else { sent }
        })
    }

    /// Calls `run` with the pidfd; `ESRCH` once the child is reaped.
    pub(crate) fn with_pidfd<T>(&self, run: impl FnOnce(&PidFd) -> io::Result<T>) -> io::Result<T> {
        self.lock().as_ref().map_or_else(|| Err(io::Error::from_raw_os_error(libc::ESRCH)), run)
    }

    /// Whether the process has not exited; false if that cannot be determined.
    pub(crate) fn is_running(&self) -> bool {
        self.with_pidfd(|pidfd| poll::is_readable(pidfd.as_fd())).is_ok_and(|has_exited| !has_exited)
    }

    /// Reaps the process; `None` while it runs or a tracer holds its status.
    pub(crate) fn reap(&self, cleanup: GroupCleanup) -> io::Result<Option<Reaped>> {
        let mut slot = self.lock();
        let Some(pidfd) = slot.as_ref() else { return Err(io::Error::from_raw_os_error(libc::ESRCH)) };
        if let ProcessOrigin::Elsewhere { status_checks, .. } = &self.origin {
            let found = status_elsewhere(pidfd, status_checks)?;
            if found.is_some() {
                *slot = None;
            }
            return Ok(found);
        }
        if cleanup == GroupCleanup::Kill && self.leads_group && poll::is_readable(pidfd.as_fd())? {
            // ESRCH: no other process is in the group.
            drop(pidfd.signal_group(self.pid, libc::SIGKILL));
        }
        let found = pidfd.reap()?;
        if found.is_some() {
            *slot = None;
            CHILDREN.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.pid);
        }
        Ok(found)
    }

    /// Waits for the exit and reaps the process; `None` at the deadline.
    pub(crate) fn reap_until(&self, deadline: Deadline) -> io::Result<Option<Reaped>> {
        while self.with_pidfd(|pidfd| wait_exit(pidfd, deadline))? {
            if let Some(reaped) = self.reap(GroupCleanup::Kill)? {
                return Ok(Some(reaped));
            }
            // A tracer (a debugger, strace) gets the status first, and the kernel does not report when it has done so.
            if deadline.has_passed() {
                break;
            }
            pause_for(TRACER_PAUSE);
        }
        Ok(None)
    }

    fn lock(&self) -> MutexGuard<'_, Option<PidFd>> {
        self.pidfd.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a process ended that is no child; `None` while it runs, and while its parent may still reap it: the kernel records the status then.
fn status_elsewhere(pidfd: &PidFd, checks: &AtomicU32) -> io::Result<Option<Reaped>> {
    if !poll::is_readable(pidfd.as_fd())? {
        return Ok(None);
    }
    let ending = pidfd.recorded_status();
    let is_over = ending != WaitStatus::Unknown || checks.fetch_add(1, Ordering::Relaxed) >= STATUS_CHECKS;
    Ok(is_over.then_some(Reaped { ending, usage: None }))
}

/// Waits for the exit until the deadline; returns whether the process has exited.
fn wait_exit(pidfd: &PidFd, deadline: Deadline) -> io::Result<bool> {
    Ok(poll::wait(pidfd.as_fd(), Interest::Readable, deadline)? == PollOutcome::Ready)
}

pub(crate) fn exit_status(ending: WaitStatus) -> ExitStatus {
    match ending {
        WaitStatus::Code(code) => ExitStatus::Code(code),
        WaitStatus::Signal { signal, core_dumped } => ExitStatus::Signal { signal, core_dumped },
        WaitStatus::Unknown => ExitStatus::Unknown,
    }
}

pub(crate) fn usage(raw: RawUsage) -> Usage {
    Usage {
        user: raw.user,
        system: raw.system,
        max_rss_bytes: raw.max_rss_bytes,
        minor_faults: raw.minor_faults,
        major_faults: raw.major_faults,
        voluntary_switches: raw.voluntary_switches,
        involuntary_switches: raw.involuntary_switches,
    }
}
