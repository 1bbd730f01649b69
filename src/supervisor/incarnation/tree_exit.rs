//! The end of a process tree: finds, reports, kills and awaits processes that have outlived a worker, and then reaps the worker.
//!
//! The inspector scans on its own thread. All waits for its results and for exits are bounded: a worker is reaped at the latest
//! `KILL_TIMEOUT` after its streams have ended.

use crate::{
    exit::Survivor,
    policy::{lifecycle::LifecycleInput, survivors::SurvivorPolicy},
    supervisor::{
        containment::{
            cgroup_pool::WorkerCgroup,
            inspector::{
                STALL,
                request::{ScanRequest, ScanResult, ScanTask},
            },
            teardown::KILL_TIMEOUT,
        },
        incarnation::{Incarnation, context::IncarnationContext},
        reactor::{timers::Timer, token::Token},
    },
    sys::{proc::pinned::PinnedProcess, this_process},
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// The most scans that find new descendants; then the remaining ones are reported as survivors.
const MAX_SCANS: u32 = 100;
/// The interval and the most repetitions of a scan that found a process in the middle of an exec: an exec that takes longer than a second
/// waits for a disk that hangs.
const EXEC_RESCAN_INTERVAL: Duration = Duration::from_millis(1);
const MAX_EXEC_RESCANS: u32 = 1000;
/// The time after which a scan is retried that lacked a file descriptor, memory or a thread.
const SCAN_RETRY_TIME: Duration = Duration::from_millis(10);
/// The number of checks after which a cgroup is killed again.
const CHECKS_PER_CGROUP_KILL: u32 = 16;
/// The longest interval between two checks of a killed cgroup.
const LONGEST_CGROUP_CHECK_INTERVAL: Duration = Duration::from_millis(64);
/// The time for the inspector to kill a tree; then the process group is killed without it.
const INSPECTOR_KILL_TIMEOUT: Duration = Duration::from_millis(100);

impl Incarnation {
    /// Ends the tree after the worker has exited and its streams have ended, and reaps the worker.
    pub(crate) fn terminate_tree(&mut self, cx: &mut IncarnationContext<'_>) {
        let now = cx.reactor.clock.now();
        let survivors = self.spec.survivors;
        if survivors == SurvivorPolicy::Ignore {
            return self.reap(cx);
        }
        if self.tree.termination.is_none() {
            let is_stopped = self.stop_cause.is_some() || self.process.is_killed();
            let grace_period = if is_stopped { Duration::ZERO } else { self.spec.survivor_grace_period };
            let timeout = KILL_TIMEOUT.saturating_add(grace_period);
            let termination = self.tree.termination.get_or_insert_default();
            termination.deadline = now.checked_add(timeout);
            termination.grace_until = now.checked_add(grace_period);
            cx.reactor.set_timer_after(timeout, Timer::TreeTimeout(self.key));
        }
        if let Some(is_populated) = self.process.tree().with_cgroup(WorkerCgroup::is_populated) {
            if is_populated {
                if !self.wait_for_grace(cx) {
                    self.wait_for_cgroup(cx);
                }
                return;
            }
            self.tree.scan.uninspected = Some(0);
            return if this_process::is_reaper() { self.inspect(ScanTask::ReapKilled, cx) } else { self.reap_last(cx) };
        }
        if !cx.trees.inspector.adopts && self.shows_no_descendant(cx) {
            self.tree.scan.uninspected = Some(0);
            return self.reap_last(cx);
        }
        // A scan that does not kill, unless the grace period is over.
        let is_grace = self.remaining_grace(now).is_some();
        self.inspect(ScanTask::Survivors(if is_grace { SurvivorPolicy::Report } else { survivors }), cx);
    }

    /// The rest of the time in which descendants may exit by themselves.
    fn remaining_grace(&self, now: Instant) -> Option<Duration> {
        let until = self.tree.termination.as_ref()?.grace_until?;
        Some(until.saturating_duration_since(now)).filter(|rest| !rest.is_zero())
    }

    /// Schedules the next look at descendants that may exit by themselves. False if their time is over.
    fn wait_for_grace(&mut self, cx: &mut IncarnationContext<'_>) -> bool {
        let Some(rest) = self.remaining_grace(cx.reactor.clock.now()) else { return false };
        let termination = self.tree.termination.get_or_insert_default();
        termination.grace_scans += 1;
        let interval = check_interval(termination.grace_scans).min(rest);
        cx.reactor.set_timer_after(interval, Timer::TreeRescan(self.key));
        true
    }

    /// Whether the pids that were assigned since the start show that the worker has no descendant.
    fn shows_no_descendant(&self, cx: &IncarnationContext<'_>) -> bool {
        let age = cx.reactor.clock.now().saturating_duration_since(self.started);
        let started_since = cx.spawner.started().saturating_sub(self.tree.starts_before);
        cx.trees.numbers.shows_no_descendant(self.process.child().pid().cast_signed(), age, started_since)
    }

    /// Waits until the killed cgroup is empty. Before Linux 5.14 a process that is forked during the kill escapes it, so the kill is
    /// repeated.
    fn wait_for_cgroup(&mut self, cx: &mut IncarnationContext<'_>) {
        let termination = self.tree.termination.get_or_insert_default();
        if termination.scans.is_multiple_of(CHECKS_PER_CGROUP_KILL) && !std::mem::take(&mut termination.is_killed) {
            return self.inspect(ScanTask::KillInhabitants, cx);
        }
        termination.scans += 1;
        cx.reactor.set_timer_after(check_interval(termination.scans), Timer::TreeRescan(self.key));
    }

    /// Requests a scan from the inspector. A stalled inspector is replaced and gets the request again; see `check_inspector`.
    pub(crate) fn inspect(&mut self, task: ScanTask, cx: &mut IncarnationContext<'_>) {
        let number = self.ask_inspector(task, cx);
        self.tree.scan.request = number;
        if number.is_none() {
            self.inspect_failed(task, cx);
        }
    }

    /// Returns the number of the request; `None` if no thread is available.
    pub(crate) fn ask_inspector(&mut self, task: ScanTask, cx: &mut IncarnationContext<'_>) -> Option<u64> {
        let now = cx.reactor.clock.now();
        cx.trees.requests += 1;
        let request = ScanRequest {
            number: cx.trees.requests,
            task,
            tree: Arc::clone(self.process.tree()),
            pipes: self.pipes(),
            has_wrapped: cx.trees.numbers.may_wrap_in(now.saturating_duration_since(self.started)),
            sessions: self.tree.scan.sessions.clone(),
            others: Arc::new(cx.trees.worker_pids.clone()),
            adopts: cx.trees.inspector.adopts,
        };
        if !cx.trees.inspector.ask(request) {
            return None;
        }
        if cx.trees.unanswered.is_empty() {
            cx.reactor.set_timer_after(STALL, Timer::Inspector);
        }
        cx.trees.unanswered.insert(cx.trees.requests, (self.key, task));
        Some(cx.trees.requests)
    }

    /// Continues without a scan that could not be requested.
    fn inspect_failed(&mut self, task: ScanTask, cx: &mut IncarnationContext<'_>) {
        match task {
            ScanTask::KillTree => self.kill_group(),
            ScanTask::Group => self.input(LifecycleInput::ProcessGroupEnded, cx),
            ScanTask::ReapKilled => self.reap_last(cx),
            // Not requested by `inspect`.
            ScanTask::StopTree => {}
            // Retried until the timeout of the tree.
            ScanTask::KillInhabitants | ScanTask::Survivors(_) => {
                cx.reactor.set_timer_after(SCAN_RETRY_TIME, Timer::TreeRescan(self.key));
            }
        }
    }

    /// Handles the result of a scan of this tree.
    pub(crate) fn inspected(&mut self, task: ScanTask, result: ScanResult, cx: &mut IncarnationContext<'_>) {
        if self.tree.scan.request.take_if(|request| *request == result.number).is_none() {
            return;
        }
        self.tree.scan.kill_refused |= result.refused && task == ScanTask::KillTree;
        self.tree.scan.sessions.extend(&result.sessions);
        match task {
            ScanTask::KillTree | ScanTask::StopTree => {}
            ScanTask::Group => self.group_scanned(result, cx),
            ScanTask::KillInhabitants => {
                self.tree.scan.uninspected = result.uninspected;
                self.add_survivors(result.survivors);
                self.tree.termination.get_or_insert_default().is_killed = true;
                self.wait_for_cgroup(cx);
            }
            ScanTask::ReapKilled if self.rescan_soon(result.needs_rescan, cx) => {}
            ScanTask::ReapKilled => self.reap_last(cx),
            ScanTask::Survivors(survivors) => self.tree_scanned(survivors, result, cx),
        }
    }

    fn tree_scanned(&mut self, survivors: SurvivorPolicy, result: ScanResult, cx: &mut IncarnationContext<'_>) {
        if result.count > 0 && survivors == SurvivorPolicy::Report && self.wait_for_grace(cx) {
            return;
        }
        if survivors != self.spec.survivors && result.count > 0 {
            // The grace period has ended during the scan.
            return self.inspect(ScanTask::Survivors(self.spec.survivors), cx);
        }
        self.tree.scan.uninspected = result.uninspected;
        self.add_survivors(result.survivors);
        let termination = self.tree.termination.get_or_insert_default();
        if result.count > 0 && survivors == SurvivorPolicy::Kill {
            termination.scans += 1;
            drop(self.process.child().signal_group(libc::SIGKILL));
            return self.wait_for_exits(result.held, cx);
        }
        if self.rescan_soon(result.needs_rescan, cx) {
            return;
        }
        if self.spec.survivors == SurvivorPolicy::Kill { self.reap_last(cx) } else { self.reap(cx) }
    }

    /// Schedules another scan, if it is needed and the limit is not reached. False if not.
    fn rescan_soon(&mut self, is_needed: bool, cx: &mut IncarnationContext<'_>) -> bool {
        let termination = self.tree.termination.get_or_insert_default();
        let rescans = is_needed && termination.exec_rescans < MAX_EXEC_RESCANS;
        if rescans {
            termination.exec_rescans += 1;
            cx.reactor.set_timer_after(EXEC_RESCAN_INTERVAL, Timer::TreeRescan(self.key));
        }
        rescans
    }

    /// Waits for the exits of processes. If none can be watched, the tree is scanned again by timer, until its timeout.
    fn wait_for_exits(&mut self, processes: Vec<PinnedProcess>, cx: &mut IncarnationContext<'_>) {
        let termination = self.tree.termination.get_or_insert_default();
        for process in processes {
            let watched = process.pidfd().map(|pidfd| cx.reactor.poller.add(pidfd, Token::Orphan(self.key).as_u64()));
            if watched.is_some_and(|watched| watched.is_ok()) {
                termination.waited_for.push(process);
            }
        }
        if termination.waited_for.is_empty() {
            cx.reactor.set_timer_after(SCAN_RETRY_TIME, Timer::TreeRescan(self.key));
        }
    }

    /// Waits for the process group of a worker that has exited during its stop, within the remaining time of the stop policy.
    pub(crate) fn wait_for_group(&mut self, cx: &mut IncarnationContext<'_>) {
        let is_alone = !self.process.child().leads_group()
            || self.process.tree().with_cgroup(WorkerCgroup::is_populated) == Some(false)
            || self.shows_no_descendant(cx);
        if is_alone {
            self.input(LifecycleInput::ProcessGroupEnded, cx);
        } else {
            self.inspect(ScanTask::Group, cx);
        }
    }

    /// Handles a scan of the process group of a worker that has exited during its stop.
    fn group_scanned(&mut self, result: ScanResult, cx: &mut IncarnationContext<'_>) {
        if result.count == 0 && !result.needs_rescan {
            self.input(LifecycleInput::ProcessGroupEnded, cx);
        } else {
            self.wait_for_exits(result.held, cx);
        }
    }

    /// Reaps a worker whose tree has ended.
    fn reap_last(&mut self, cx: &mut IncarnationContext<'_>) {
        for survivor in &mut self.tree.survivors {
            survivor.alive = false;
        }
        self.reap(cx);
    }

    /// Handles the exit of a survivor. When all have exited, the tree is scanned again.
    pub(crate) fn orphan_exited(&mut self, cx: &mut IncarnationContext<'_>) {
        let is_group = self.lifecycle.waits_for_group();
        let Some(termination) = &mut self.tree.termination else { return };
        let (gone, left): (Vec<PinnedProcess>, Vec<PinnedProcess>) =
            termination.waited_for.drain(..).partition(PinnedProcess::has_ended);
        termination.waited_for = left;
        let is_over = termination.waited_for.is_empty();
        let may_rescan = termination.scans < MAX_SCANS;
        for process in gone {
            if let Some(pidfd) = process.pidfd() {
                drop(cx.reactor.poller.remove(pidfd));
                // As process 1 or as a subreaper (prctl(2)) the host is the parent of orphans. ECHILD: it is not.
                drop(pidfd.reap());
            }
            for survivor in self.tree.survivors.iter_mut().filter(|survivor| survivor.pid == process.pid.unsigned_abs())
            {
                survivor.alive = false;
            }
        }
        match (is_over, is_group) {
            (true, true) => self.inspect(ScanTask::Group, cx),
            (true, false) if may_rescan => self.terminate_tree(cx),
            (true, false) => self.reap(cx),
            (false, _) => {}
        }
    }

    /// Handles the timers of the tree: scans again, or reaps the worker after the timeout.
    pub(crate) fn tree_timeout(&mut self, cx: &mut IncarnationContext<'_>) {
        let now = cx.reactor.clock.now();
        if self.lifecycle.waits_for_group() {
            if self.tree.scan.request.is_none() {
                self.inspect(ScanTask::Group, cx);
            }
            return;
        }
        match &mut self.tree.termination {
            None => self.terminate_tree(cx),
            Some(termination) if termination.deadline.is_some_and(|deadline| deadline <= now) => {
                for process in termination.waited_for.drain(..) {
                    if let Some(pidfd) = process.pidfd() {
                        drop(cx.reactor.poller.remove(pidfd));
                    }
                }
                // The result of a pending request comes too late.
                if self.tree.scan.request.take().is_some() {
                    self.tree.scan.uninspected = None;
                }
                self.reap(cx);
            }
            Some(termination) if termination.waited_for.is_empty() && self.tree.scan.request.is_none() => {
                self.terminate_tree(cx);
            }
            Some(_) => {}
        }
    }

    /// Sends SIGKILL to the worker and its tree.
    pub(crate) fn kill_tree(&mut self, cx: &mut IncarnationContext<'_>) {
        if self.spec.survivors != SurvivorPolicy::Kill {
            return self.kill_group();
        }
        cx.reactor.set_timer_after(INSPECTOR_KILL_TIMEOUT, Timer::GroupKill(self.key));
        self.inspect(ScanTask::KillTree, cx);
    }

    /// Sends SIGKILL to the worker and its process group.
    pub(crate) fn kill_group(&mut self) {
        let killed = self.process.child().signal_group(libc::SIGKILL);
        self.tree.scan.kill_refused |= killed.is_err_and(|error| error.raw_os_error() == Some(libc::EPERM));
    }

    fn add_survivors(&mut self, survivors: Vec<Survivor>) {
        for survivor in survivors {
            if !self.tree.survivors.iter().any(|known| known.pid == survivor.pid) {
                self.tree.survivors.push(survivor);
            }
        }
    }
}

/// The time until the next check of a tree, after so many of them.
fn check_interval(checks: u32) -> Duration {
    (EXEC_RESCAN_INTERVAL * 2_u32.saturating_pow(checks.min(16))).min(LONGEST_CGROUP_CHECK_INTERVAL)
}
