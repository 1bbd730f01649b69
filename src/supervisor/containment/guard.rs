//! The guard of one supervisor: started with its first worker, and replaced when it exits. `crate::guard` describes what it does.

use crate::{
    exit::ExitStatus,
    guard::{
        groups::GroupList,
        program::Guard,
        start::{self, GuardConfig, GuardProcess, StartStage},
    },
    jobserver::client,
    launch::error::SpawnError,
    supervisor::{containment::cgroup_pool::CgroupPool, reactor::report::Report, sync::lock},
};
use std::{
    io, mem,
    os::fd::OwnedFd,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

/// Runs the guard process for the trees of one supervisor.
#[derive(Debug)]
pub(crate) struct TreeGuard {
    kind: Guard,
    run: Box<str>,
    pool: Arc<CgroupPool>,
    groups: Arc<GroupList>,
    reports: Arc<dyn Report<GuardReport>>,
    state: Mutex<GuardState>,
}

#[derive(Debug, Default)]
struct GuardState {
    running: Option<GuardProcess>,
    /// The guard that has exited, until that is reported.
    ended: Option<(u32, ExitStatus)>,
    /// Whether it was reported that no guard runs.
    is_lost: bool,
}

impl GuardState {
    /// Returns what is to be reported of a successful start.
    fn take_news(&mut self, running: &GuardProcess) -> Option<GuardNotice> {
        let pid = running.process.pid();
        let was_lost = mem::take(&mut self.is_lost);
        let ended =
            self.ended.take().map(|(old, status)| GuardNotice::Exited { pid: old, status, replacement: Ok(pid) });
        let restored = was_lost.then_some(GuardNotice::Restored { pid });
        let limited = || GuardNotice::Degraded { missing: running.missing.clone() };
        ended.or(restored).or_else(|| (!running.missing.is_empty()).then(limited))
    }

    /// Returns what is to be reported of a failed start. If the first guard fails to start, the spawn of its worker fails with that error
    /// instead.
    fn take_failure(&mut self, error: &SpawnError) -> Option<GuardNotice> {
        let (pid, status) = self.ended.take()?;
        self.is_lost = true;
        Some(GuardNotice::Exited { pid, status, replacement: Err(error.to_string().into()) })
    }
}

impl TreeGuard {
    pub(crate) fn new(
        kind: Guard,
        run: &str,
        pool: &Arc<CgroupPool>,
        reports: Arc<dyn Report<GuardReport>>,
    ) -> io::Result<Self> {
        let (pool, groups) = (Arc::clone(pool), Arc::new(GroupList::new()?));
        Ok(Self { kind, run: run.into(), pool, groups, reports, state: Mutex::default() })
    }

    /// Starts the guard unless it runs. Call it on a thread that lives as long as workers may: a guard that is a shell takes the end of its
    /// parent thread for the end of the host. Returns true if the guard was started.
    pub(crate) fn ensure_running(&self) -> Result<bool, SpawnError> {
        if self.kind == Guard::Disabled { Ok(false) } else { self.renew(&mut lock(&self.state)) }
    }

    /// As [`ensure_running`](Self::ensure_running). Returns the pidfd of the guard.
    pub(crate) fn replace(&self) -> Option<OwnedFd> {
        let mut state = lock(&self.state);
        self.renew(&mut state).ok()?;
        state.running.as_ref()?.process.exit_fd().ok()
    }

    fn renew(&self, state: &mut GuardState) -> Result<bool, SpawnError> {
        if let Some(GuardProcess { process, has_tokens, .. }) = &mut state.running {
            let pid = process.pid();
            let status = match process.wait_timeout(Duration::ZERO) {
                Ok(None) if !*has_tokens && client::is_open() => return Ok(self.replace_without_tokens(state)),
                Ok(None) => return Ok(false),
                Ok(Some(exit)) => exit.status,
                Err(_) => ExitStatus::Unknown,
            };
            state.ended = Some((pid, status));
            state.running = None;
        }
        // The start of the first worker does not wait for the whole self-test. A guard that fails the test exits, and is replaced.
        let replaces = state.ended.is_some() || state.is_lost;
        let started = self.start(if replaces { StartStage::Tested } else { StartStage::Ready });
        let (end, notice) = match &started {
            Ok(Some(running)) => (running.process.exit_fd().ok(), state.take_news(running)),
            Ok(None) => (None, None),
            Err(error) => (None, state.take_failure(error)),
        };
        // The loop is not concerned with a first guard that fails to start.
        if end.is_some() || state.is_lost {
            self.reports.report(GuardReport { end, notice });
        }
        state.running = started?;
        Ok(true)
    }

    /// Replaces a guard that was started before the host has opened its jobserver, and so cannot return tokens. If that fails, it stays until
    /// the next start. Returns whether it was replaced.
    fn replace_without_tokens(&self, state: &mut GuardState) -> bool {
        let Ok(Some(running)) = self.start(StartStage::Ready) else { return false };
        self.reports.report(GuardReport { end: running.process.exit_fd().ok(), notice: None });
        state.running = Some(running);
        true
    }

    /// Lets a guard clean up now, and waits up to `within` for it.
    pub(crate) fn run_cleanup(&self, within: Duration) {
        // An earlier guard may have cleaned up before these trees were started. Fails without memory or file descriptors.
        drop(self.ensure_running());
        let running = lock(&self.state).running.take();
        if let Some(running) = running {
            self.groups.set_alive();
            running.run_cleanup(within);
        }
    }

    fn start(&self, until: StartStage) -> Result<Option<GuardProcess>, SpawnError> {
        let cgroup = self.pool.path();
        let order = GuardConfig { token: &self.run, cgroup: cgroup.as_deref(), groups: &self.groups };
        start::start(self.kind, &order, until)
    }

    /// Sets the directory of the supervisor's sockets, which the guard removes after the host's end.
    pub(crate) fn set_directory(&self, path: &Path) {
        if self.kind != Guard::Disabled {
            self.groups.set_directory(path);
        }
    }

    /// Adds a process group to the list of groups that are killed with the host. `None` where it is not in the list; its members are then
    /// found by their token.
    pub(crate) fn register(&self, group: u32) -> Option<GuardEntry> {
        let is_listed = self.kind != Guard::Disabled && self.groups.add(group).is_ok();
        is_listed.then(|| GuardEntry { groups: Arc::clone(&self.groups), group })
    }
}

/// A process group in the list of the guard, until this is dropped: before its leader is reaped, since its number may be used again after
/// that.
#[derive(Debug)]
pub(crate) struct GuardEntry {
    groups: Arc<GroupList>,
    group: u32,
}

impl Drop for GuardEntry {
    fn drop(&mut self) {
        self.groups.remove(self.group);
    }
}

/// What a start of the guard reports to the event loop.
#[derive(Debug)]
pub(crate) struct GuardReport {
    /// The pidfd of the guard; `None` where the start failed.
    pub(crate) end: Option<OwnedFd>,
    pub(crate) notice: Option<GuardNotice>,
}

/// A change of the guard that becomes a [`Warning`](crate::events::Warning), with the same fields.
#[derive(Debug)]
pub(crate) enum GuardNotice {
    Exited { pid: u32, status: ExitStatus, replacement: Result<u32, Box<str>> },
    Restored { pid: u32 },
    Degraded { missing: Box<str> },
}
