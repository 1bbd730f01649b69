//! The end of a tree: what has outlived a worker is found, named, killed, and waited for; only then the worker is reaped.
//!
//! The looking is done by the inspector, on its own thread. Here its answers become signals and waits, all of them bounded:
//! `KILL_TIMEOUT` after its streams have ended a worker is reaped, whatever is left.

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
        incarnation::{Incarnation, context::Context},
        reactor::{timers::Timer, token::Token},
    },
    sys::{proc::pinned::PinnedProcess, this_process},
};
use std::{sync::Arc, time::Duration};

/// How often descendants are looked for before those that keep coming are left to be reported.
const ROUNDS: u32 = 100;
/// How soon those are looked at again that were in the middle of an exec, and how often: an exec that takes longer than a second is
/// from a disk that hangs.
const EXEC_TIME: Duration = Duration::from_millis(1);
const WAITS: u32 = 1000;
/// How soon it is tried again where no descriptor, memory or thread was to be had.
const AGAIN: Duration = Duration::from_millis(10);
/// After so many looks a cgroup is killed again.
const KILL_AGAIN: u32 = 16;
/// At last, how often a cgroup that was killed is looked at.
const LAST_PAUSE: Duration = Duration::from_millis(64);
/// How long the inspector has to kill a tree before the process group is killed without it.
const KILL_PATIENCE: Duration = Duration::from_millis(100);

impl Incarnation {
    /// The worker has ended, and its streams have. Takes its status as soon as nothing of its tree is left.
    pub(crate) fn terminate_tree(&mut self, cx: &mut Context<'_>) {
        let now = cx.reactor.clock.now();
        let survivors = self.spec.survivors;
        if survivors == SurvivorPolicy::Ignore {
            return self.reap(cx);
        }
        if self.tree.termination.is_none() {
            self.tree.termination.get_or_insert_default().until = now.checked_add(KILL_TIMEOUT);
            cx.reactor.set_timer_after(KILL_TIMEOUT, Timer::TreeTimeout(self.key));
        }
        if let Some(is_populated) = self.process.tree().with_cgroup(WorkerCgroup::is_populated) {
            if is_populated {
                return self.wait_for_cgroup(cx);
            }
            self.tree.scan.uninspected = Some(0);
            return if this_process::is_reaper() { self.inspect(ScanTask::ReapKilled, cx) } else { self.reap_last(cx) };
        }
        let lived = now.saturating_duration_since(self.started);
        let started_since = cx.spawner.started().saturating_sub(self.tree.starts_before);
        let pid = self.process.child().pid().cast_signed();
        if !cx.trees.inspector.adopts && cx.trees.numbers.shows_no_descendant(pid, lived, started_since) {
            self.tree.scan.uninspected = Some(0);
            return self.reap_last(cx);
        }
        self.inspect(ScanTask::Survivors(survivors), cx);
    }

    /// Waits until its cgroup, which was killed as a whole, is empty. Before Linux 5.14 what is forked meanwhile escapes the kill, so
    /// that is repeated now and then.
    fn wait_for_cgroup(&mut self, cx: &mut Context<'_>) {
        let termination = self.tree.termination.get_or_insert_default();
        if termination.rounds.is_multiple_of(KILL_AGAIN) && !std::mem::take(&mut termination.is_killed) {
            return self.inspect(ScanTask::KillInhabitants, cx);
        }
        termination.rounds += 1;
        let pause = (EXEC_TIME * 2_u32.saturating_pow(termination.rounds.min(16))).min(LAST_PAUSE);
        cx.reactor.set_timer_after(pause, Timer::TreeRescan(self.key));
    }

    /// Has the inspector look. It is asked again where it does not get on; see `check_inspector`.
    pub(crate) fn inspect(&mut self, task: ScanTask, cx: &mut Context<'_>) {
        let number = self.ask_inspector(task, cx);
        self.tree.scan.asked = number;
        if number.is_none() {
            self.cannot_inspect(task, cx);
        }
    }

    /// The number of the request; `None` where no thread can be had for it.
    pub(crate) fn ask_inspector(&mut self, task: ScanTask, cx: &mut Context<'_>) -> Option<u64> {
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

    fn cannot_inspect(&mut self, task: ScanTask, cx: &mut Context<'_>) {
        match task {
            ScanTask::KillTree => self.kill_group(),
            ScanTask::Group => self.input(LifecycleInput::ProcessGroupEnded, cx),
            ScanTask::ReapKilled => self.reap_last(cx),
            // It is not asked for by `inspect`.
            ScanTask::StopTree => {}
            // Until its time is over.
            ScanTask::KillInhabitants | ScanTask::Survivors(_) => {
                cx.reactor.set_timer_after(AGAIN, Timer::TreeRescan(self.key));
            }
        }
    }

    /// The inspector has answered a request about this incarnation.
    pub(crate) fn inspected(&mut self, task: ScanTask, findings: ScanResult, cx: &mut Context<'_>) {
        if self.tree.scan.asked.take_if(|asked| *asked == findings.number).is_none() {
            return;
        }
        self.tree.scan.kill_refused |= findings.refused && task == ScanTask::KillTree;
        self.tree.scan.sessions.extend(&findings.sessions);
        match task {
            ScanTask::KillTree | ScanTask::StopTree => {}
            ScanTask::Group => self.group_scanned(findings, cx),
            ScanTask::KillInhabitants => {
                self.tree.scan.uninspected = findings.uninspected;
                self.name(findings.survivors);
                self.tree.termination.get_or_insert_default().is_killed = true;
                self.wait_for_cgroup(cx);
            }
            ScanTask::ReapKilled if self.rescan_soon(findings.look_again, cx) => {}
            ScanTask::ReapKilled => self.reap_last(cx),
            ScanTask::Survivors(survivors) => self.tree_scanned(survivors, findings, cx),
        }
    }

    fn tree_scanned(&mut self, survivors: SurvivorPolicy, findings: ScanResult, cx: &mut Context<'_>) {
        self.tree.scan.uninspected = findings.uninspected;
        self.name(findings.survivors);
        let termination = self.tree.termination.get_or_insert_default();
        if findings.count > 0 && survivors == SurvivorPolicy::Kill {
            termination.rounds += 1;
            drop(self.process.child().signal_group(libc::SIGKILL));
            return self.wait_for(findings.held, cx);
        }
        if self.rescan_soon(findings.look_again, cx) {
            return;
        }
        if survivors == SurvivorPolicy::Kill { self.reap_last(cx) } else { self.reap(cx) }
    }

    /// Looks again in a moment, where that is worth while.
    fn rescan_soon(&mut self, is_wanted: bool, cx: &mut Context<'_>) -> bool {
        let termination = self.tree.termination.get_or_insert_default();
        let rescan_soon = is_wanted && termination.waits < WAITS;
        if rescan_soon {
            termination.waits += 1;
            cx.reactor.set_timer_after(EXEC_TIME, Timer::TreeRescan(self.key));
        }
        rescan_soon
    }

    /// Waits for the ends of these. Those that cannot be watched are looked for again by timer, until their time is over.
    fn wait_for(&mut self, held: Vec<PinnedProcess>, cx: &mut Context<'_>) {
        let termination = self.tree.termination.get_or_insert_default();
        for held in held {
            let watched = held.pidfd().map(|pidfd| cx.reactor.poller.add(pidfd, Token::Orphan(self.key).as_u64()));
            if watched.is_some_and(|watched| watched.is_ok()) {
                termination.waited_for.push(held);
            }
        }
        if termination.waited_for.is_empty() {
            cx.reactor.set_timer_after(AGAIN, Timer::TreeRescan(self.key));
        }
    }

    /// A worker has ended while it was being stopped: the rest of its group has the rest of the ladder's time.
    pub(crate) fn wait_for_group(&mut self, cx: &mut Context<'_>) {
        let now = cx.reactor.clock.now();
        let child = self.process.child();
        let lived = now.saturating_duration_since(self.started);
        let started_since = cx.spawner.started().saturating_sub(self.tree.starts_before);
        let is_alone = !child.leads_group()
            || self.process.tree().with_cgroup(WorkerCgroup::is_populated) == Some(false)
            || cx.trees.numbers.shows_no_descendant(child.pid().cast_signed(), lived, started_since);
        if is_alone {
            self.input(LifecycleInput::ProcessGroupEnded, cx);
        } else {
            self.inspect(ScanTask::Group, cx);
        }
    }

    /// What is left of the group of a worker that has ended while it was being stopped.
    fn group_scanned(&mut self, findings: ScanResult, cx: &mut Context<'_>) {
        if findings.count == 0 && !findings.look_again {
            self.input(LifecycleInput::ProcessGroupEnded, cx);
        } else {
            self.wait_for(findings.held, cx);
        }
    }

    /// Takes the status of one of whose tree nothing is left.
    fn reap_last(&mut self, cx: &mut Context<'_>) {
        for survivor in &mut self.tree.survivors {
            survivor.alive = false;
        }
        self.reap(cx);
    }

    /// A survivor has ended. When all have, it is looked again.
    pub(crate) fn orphan_exited(&mut self, cx: &mut Context<'_>) {
        let is_group = self.lifecycle.waits_for_group();
        let Some(termination) = &mut self.tree.termination else { return };
        let (gone, left): (Vec<PinnedProcess>, Vec<PinnedProcess>) =
            termination.waited_for.drain(..).partition(PinnedProcess::has_ended);
        termination.waited_for = left;
        let is_over = termination.waited_for.is_empty();
        let may_go_on = termination.rounds < ROUNDS;
        for held in gone {
            if let Some(pidfd) = held.pidfd() {
                drop(cx.reactor.poller.remove(pidfd));
                // As process 1, or as a subreaper (prctl(2)), the host is the parent of those whose own have ended. ECHILD: it is
                // not.
                drop(pidfd.reap());
            }
            for survivor in self.tree.survivors.iter_mut().filter(|survivor| survivor.pid == held.pid.unsigned_abs()) {
                survivor.alive = false;
            }
        }
        match (is_over, is_group) {
            (true, true) => self.inspect(ScanTask::Group, cx),
            (true, false) if may_go_on => self.terminate_tree(cx),
            (true, false) => self.reap(cx),
            (false, _) => {}
        }
    }

    /// It is time to look again, or to give up those that do not die.
    pub(crate) fn tree_timeout(&mut self, cx: &mut Context<'_>) {
        let now = cx.reactor.clock.now();
        if self.lifecycle.waits_for_group() {
            if self.tree.scan.asked.is_none() {
                self.inspect(ScanTask::Group, cx);
            }
            return;
        }
        match &mut self.tree.termination {
            None => self.terminate_tree(cx),
            Some(termination) if termination.until.is_some_and(|until| until <= now) => {
                for held in termination.waited_for.drain(..) {
                    if let Some(pidfd) = held.pidfd() {
                        drop(cx.reactor.poller.remove(pidfd));
                    }
                }
                // An answer that is still due comes too late: what it would have said is unknown.
                if self.tree.scan.asked.take().is_some() {
                    self.tree.scan.uninspected = None;
                }
                self.reap(cx);
            }
            Some(termination) if termination.waited_for.is_empty() && self.tree.scan.asked.is_none() => {
                self.terminate_tree(cx);
            }
            Some(_) => {}
        }
    }

    /// SIGKILL to the worker and its tree.
    pub(crate) fn kill_tree(&mut self, cx: &mut Context<'_>) {
        if self.spec.survivors != SurvivorPolicy::Kill {
            return self.kill_group();
        }
        cx.reactor.set_timer_after(KILL_PATIENCE, Timer::GroupKill(self.key));
        self.inspect(ScanTask::KillTree, cx);
    }
}

impl Incarnation {
    /// SIGKILL to the process and its group.
    pub(crate) fn kill_group(&mut self) {
        let killed = self.process.child().signal_group(libc::SIGKILL);
        self.tree.scan.kill_refused |= killed.is_err_and(|error| error.raw_os_error() == Some(libc::EPERM));
    }

    fn name(&mut self, survivors: Vec<Survivor>) {
        for survivor in survivors {
            if !self.tree.survivors.iter().any(|known| known.pid == survivor.pid) {
                self.tree.survivors.push(survivor);
            }
        }
    }
}
