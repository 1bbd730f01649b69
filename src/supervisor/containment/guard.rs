//! One supervisor's guard: started with its first worker, replaced when it ends. What it is and does: `crate::guard`.

use crate::{
    exit::ExitStatus,
    guard::{
        groups::GroupList,
        program::Guard,
        start::{self, GuardConfig, GuardProcess, StartStage},
    },
    launch::error::SpawnError,
    supervisor::{containment::cgroup_pool::Pen, reactor::report::Report, sync::lock},
};
use std::{
    io, mem,
    os::fd::OwnedFd,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

/// Guards one supervisor's trees.
#[derive(Debug)]
pub(crate) struct Sentinel {
    kind: Guard,
    run: Box<str>,
    pen: Arc<Pen>,
    groups: GroupList,
    reports: Arc<dyn Report<GuardReport>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    running: Option<GuardProcess>,
    /// The guard that has ended, until that is reported.
    ended: Option<(u32, ExitStatus)>,
    /// It was reported that there is no guard.
    is_lost: bool,
}

impl State {
    /// What is to be reported of a start.
    fn take_news(&mut self, running: &GuardProcess) -> Option<GuardNotice> {
        let pid = running.process.pid();
        let was_lost = mem::take(&mut self.is_lost);
        let ended =
            self.ended.take().map(|(old, status)| GuardNotice::Exited { pid: old, status, replacement: Ok(pid) });
        let restored = was_lost.then_some(GuardNotice::Restored { pid });
        let limited = || GuardNotice::Degraded { missing: running.missing.clone() };
        ended.or(restored).or_else(|| (!running.missing.is_empty()).then(limited))
    }

    /// The same where it has failed. The start of a first guard that fails is the error of the worker that wants it.
    fn take_failure(&mut self, error: &SpawnError) -> Option<GuardNotice> {
        let (pid, status) = self.ended.take()?;
        self.is_lost = true;
        Some(GuardNotice::Exited { pid, status, replacement: Err(error.to_string().into()) })
    }
}

impl Sentinel {
    pub(crate) fn new(
        kind: Guard,
        run: &str,
        pen: &Arc<Pen>,
        reports: Arc<dyn Report<GuardReport>>,
    ) -> io::Result<Self> {
        let (pen, groups) = (Arc::clone(pen), GroupList::new()?);
        Ok(Self { kind, run: run.into(), pen, groups, reports, state: Mutex::default() })
    }

    /// Starts the guard, unless it runs. To be called on a thread that lives as long as workers may: the end of this thread is
    /// for a shell the end of the host. True if it was started now.
    pub(crate) fn stand(&self) -> Result<bool, SpawnError> {
        if self.kind == Guard::Disabled { Ok(false) } else { self.renew(&mut lock(&self.state)) }
    }

    /// As [`stand`](Self::stand). Gives the pidfd of the guard that runs then.
    pub(crate) fn replace(&self) -> Option<OwnedFd> {
        let mut state = lock(&self.state);
        self.renew(&mut state).ok()?;
        state.running.as_ref()?.process.exit_fd().ok()
    }

    fn renew(&self, state: &mut State) -> Result<bool, SpawnError> {
        if let Some(GuardProcess { process, .. }) = &mut state.running {
            let pid = process.pid();
            let status = match process.wait_timeout(Duration::ZERO) {
                Ok(None) => return Ok(false),
                Ok(Some(exit)) => exit.status,
                Err(_) => ExitStatus::Unknown,
            };
            state.ended = Some((pid, status));
            state.running = None;
        }
        // The start of the first worker does not wait for the whole self-test. A guard that fails it ends, and is replaced.
        let replaces = state.ended.is_some() || state.is_lost;
        let started = self.start(if replaces { StartStage::Tested } else { StartStage::Ready });
        let (end, notice) = match &started {
            Ok(Some(running)) => (running.process.exit_fd().ok(), state.take_news(running)),
            Ok(None) => (None, None),
            Err(error) => (None, state.take_failure(error)),
        };
        // A first guard that cannot be started is nothing that the loop has to do with.
        if end.is_some() || state.is_lost {
            self.reports.report(GuardReport { end, notice });
        }
        state.running = started?;
        Ok(true)
    }

    /// Has a guard do now what it is there for, and waits for that, at most `within`.
    pub(crate) fn sweep(&self, within: Duration) {
        // The last one may have swept before these were started. Refused for want of memory or descriptors.
        drop(self.stand());
        let running = lock(&self.state).running.take();
        if let Some(running) = running {
            running.run_cleanup(within);
        }
    }

    fn start(&self, until: StartStage) -> Result<Option<GuardProcess>, SpawnError> {
        let cgroup = self.pen.path();
        let order = GuardConfig { token: &self.run, cgroup: cgroup.as_deref(), groups: &self.groups };
        start::start(self.kind, &order, until)
    }

    /// The directory of the supervisor's sockets, which is to go with the host.
    pub(crate) fn set_directory(&self, path: &Path) {
        if self.kind != Guard::Disabled {
            self.groups.set_directory(path);
        }
    }

    /// A group is to be killed with the host. Gives its number where it is in the list; elsewhere its members are found by their
    /// token.
    pub(crate) fn enter(&self, group: u32) -> Option<u32> {
        (self.kind != Guard::Disabled && self.groups.add(group).is_ok()).then_some(group)
    }

    /// A group has ended, or is about to be reaped: from then on its number may be given to another process.
    pub(crate) fn leave(&self, group: u32) {
        self.groups.remove(group);
    }
}

/// What a start of the guard reports to the event loop.
#[derive(Debug)]
pub(crate) struct GuardReport {
    /// The pidfd of the guard; `None` where the start failed.
    pub(crate) end: Option<OwnedFd>,
    pub(crate) notice: Option<GuardNotice>,
}

/// A change of the guard that becomes a [`Warning`](crate::Warning), with the same fields.
#[derive(Debug)]
pub(crate) enum GuardNotice {
    Exited { pid: u32, status: ExitStatus, replacement: Result<u32, Box<str>> },
    Restored { pid: u32 },
    Degraded { missing: Box<str> },
}
