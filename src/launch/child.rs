//! One process: signalled without ever hitting another, reaped once.

use super::retry::pause_for;
use crate::{
    exit::{ExitStatus, Usage},
    sys::{
        pidfd::{Ending, PidFd, RawUsage, Reaped},
        poll::{self, Deadline, Interest, Waited},
    },
};
use std::{
    collections::BTreeSet,
    io,
    os::fd::AsFd,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// How long the status is left to a tracer before it is asked for again.
const TRACER_PAUSE: Duration = Duration::from_millis(5);

/// What becomes of the other members of a child's own group when the child is reaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GroupCleanup {
    Kill,
    Leave,
}

/// The children of this process that the library has started and not reaped. What else is a child of it was adopted, or started by
/// other parts of the host.
static CHILDREN: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// Whether the library has started this child of ours.
pub(crate) fn is_own_child(pid: i32) -> bool {
    CHILDREN.lock().unwrap_or_else(PoisonError::into_inner).contains(&pid)
}

/// A child, from its start until it is reaped.
#[derive(Debug)]
pub(crate) struct ChildProcess {
    pid: i32,
    leads_group: bool,
    /// Closed when the child is reaped: whoever keeps the handles of a thousand ended workers keeps no descriptors.
    ///
    /// A group is signalled through this descriptor only: by its number, it could be another one when a part of the host has
    /// reaped the leader (`waitpid(-1)`, an ignored SIGCHLD).
    pidfd: Mutex<Option<PidFd>>,
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        // One that did not end in time, and is not waited for any longer.
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

    /// Whether its group is its own.
    pub(crate) fn leads_group(&self) -> bool {
        self.leads_group
    }

    /// Whether it has its number still: no part of this program has reaped it.
    pub(crate) fn is_unreaped(&self) -> bool {
        self.with_pidfd(|pidfd| Ok(pidfd.is_unreaped())).unwrap_or(false)
    }

    /// Signals the process alone.
    pub(crate) fn signal(&self, signal: i32) -> io::Result<()> {
        self.with_pidfd(|pidfd| pidfd.signal_child(self.pid, signal))
    }

    /// Signals the process and everything in its group, or the process alone where the group is not its own.
    pub(crate) fn signal_group(&self, signal: i32) -> io::Result<()> {
        self.with_pidfd(|pidfd| {
            if !self.leads_group {
                return pidfd.signal_child(self.pid, signal);
            }
            let sent = pidfd.signal_group(self.pid, signal);
            // The leader itself may have moved to another group. To be killed twice does no harm.
            if sent.is_err() || signal == libc::SIGKILL { pidfd.signal_child(self.pid, signal) } else { sent }
        })
    }

    /// Does something with the descriptor of the process; ESRCH once it is reaped.
    pub(crate) fn with_pidfd<T>(&self, run: impl FnOnce(&PidFd) -> io::Result<T>) -> io::Result<T> {
        self.lock().as_ref().map_or_else(|| Err(io::Error::from_raw_os_error(libc::ESRCH)), run)
    }

    /// Whether it has not ended, as far as can be known.
    pub(crate) fn is_running(&self) -> bool {
        self.with_pidfd(|pidfd| poll::is_readable(pidfd.as_fd())).is_ok_and(|has_ended| !has_ended)
    }

    /// Takes the status of the ended process, once; `None` while it runs, or while a tracer holds the status back.
    pub(crate) fn reap(&self, cleanup: GroupCleanup) -> io::Result<Option<Reaped>> {
        let mut slot = self.lock();
        let Some(pidfd) = slot.as_ref() else { return Err(io::Error::from_raw_os_error(libc::ESRCH)) };
        if cleanup == GroupCleanup::Kill && self.leads_group && poll::is_readable(pidfd.as_fd())? {
            // ESRCH: nothing is left of it.
            drop(pidfd.signal_group(self.pid, libc::SIGKILL));
        }
        let found = pidfd.reap()?;
        if found.is_some() {
            *slot = None;
            CHILDREN.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.pid);
        }
        Ok(found)
    }

    /// Waits for the end and takes the status, once; `None` at the deadline.
    pub(crate) fn reap_until(&self, deadline: Deadline) -> io::Result<Option<Reaped>> {
        while self.with_pidfd(|pidfd| has_ended(pidfd, deadline))? {
            if let Some(reaped) = self.reap(GroupCleanup::Kill)? {
                return Ok(Some(reaped));
            }
            // Whoever traces it (a debugger, strace) comes first, and the kernel does not tell when it lets go.
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

/// Whether it has ended, after waiting for that until the deadline.
fn has_ended(pidfd: &PidFd, deadline: Deadline) -> io::Result<bool> {
    Ok(poll::wait(pidfd.as_fd(), Interest::Readable, deadline)? == Waited::Ready)
}

pub(crate) fn exit_status(ending: Ending) -> ExitStatus {
    match ending {
        Ending::Code(code) => ExitStatus::Code(code),
        Ending::Signal { signal, core_dumped } => ExitStatus::Signal { signal, core_dumped },
        Ending::Unknown => ExitStatus::Unknown,
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
