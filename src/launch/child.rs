//! A child process: signalled through its pidfd, so never by a reused pid, and reaped once.

use super::retry::pause_for;
use crate::{
    deadline::Deadline,
    exit::{ExitStatus, Usage},
    sys::{
        pidfd::{PidFd, RawUsage, Reaped, WaitStatus},
        poll::{self, Interest, PollOutcome},
    },
};
use std::{
    collections::BTreeSet,
    io,
    os::fd::AsFd,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Pause between attempts to reap while a tracer holds the status.
const TRACER_PAUSE: Duration = Duration::from_millis(5);

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

/// A child process, from its start until it is reaped.
#[derive(Debug)]
pub(crate) struct ChildProcess {
    pid: i32,
    leads_group: bool,
    /// `None` once the child is reaped, so that handles of exited workers hold no fds.
    ///
    /// The process group is signalled only through the pidfd. Its number could already belong to another group if another part of
    /// the host has reaped the leader (`waitpid(-1)`, an ignored SIGCHLD).
    pidfd: Mutex<Option<PidFd>>,
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        // The child did not exit in time and is abandoned.
        if self.lock().is_some() {
            CHILDREN.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.pid);
        }
    }
}

impl ChildProcess {
    pub(super) fn new(pid: i32, pidfd: PidFd, leads_group: bool) -> Self {
        CHILDREN.lock().unwrap_or_else(PoisonError::into_inner).insert(pid);
        Self { pid, leads_group, pidfd: Mutex::new(Some(pidfd)) }
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
        self.with_pidfd(|pidfd| pidfd.signal_child(self.pid, signal))
    }

    /// Signals the process group if it is the child's own, otherwise the process alone.
    pub(crate) fn signal_group(&self, signal: i32) -> io::Result<()> {
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
