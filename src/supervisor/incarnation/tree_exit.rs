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
                request::{Findings, Request, Task},
            },
        },
        event_loop::Driver,
        incarnation::{KILL_TIMEOUT, Live},
        reactor::{
            arena::{Place, live_at},
            timers::Timer,
            token::Target,
        },
    },
    sys::{proc::pinned::PinnedProcess, this_process},
};
use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

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

impl Driver {
    /// The worker has ended, and its streams have. Takes its status as soon as nothing of its tree is left.
    pub(crate) fn bury(&mut self, place: Place) {
        let now = self.reactor.clock.now();
        let Some(live) = live_at(&mut self.incarnations.slots, place) else { return };
        let survivors = live.spec.survivors;
        if survivors == SurvivorPolicy::Ignore {
            return self.reap(place);
        }
        if live.burial.is_none() {
            live.burial.get_or_insert_default().until = now.checked_add(KILL_TIMEOUT);
            self.reactor.set_timer_after(KILL_TIMEOUT, Timer::BuryEnd(place));
        }
        let Some(live) = live_at(&mut self.incarnations.slots, place) else { return };
        if let Some(is_populated) = live.present.tree().with_cgroup(WorkerCgroup::is_populated) {
            if is_populated {
                return self.wait_for_cgroup(place);
            }
            live.inspection.uninspected = Some(0);
            return if this_process::is_reaper() {
                self.inspect(place, Task::ReapKilled)
            } else {
                self.reap_alone(place)
            };
        }
        let lived = now.saturating_duration_since(live.started);
        let started_since = self.starter.started().saturating_sub(live.starts_before);
        let pid = live.present.child().pid().cast_signed();
        if !self.trees.inspector.adopts && self.trees.numbers.shows_no_descendant(pid, lived, started_since) {
            live.inspection.uninspected = Some(0);
            return self.reap_alone(place);
        }
        self.inspect(place, Task::Survivors(survivors));
    }

    /// Waits until its cgroup, which was killed as a whole, is empty. Before Linux 5.14 what is forked meanwhile escapes the kill, so
    /// that is repeated now and then.
    fn wait_for_cgroup(&mut self, place: Place) {
        let Some(live) = live_at(&mut self.incarnations.slots, place) else { return };
        let burial = live.burial.get_or_insert_default();
        if burial.rounds % KILL_AGAIN == 0 && !std::mem::take(&mut burial.is_killed) {
            return self.inspect(place, Task::KillInhabitants);
        }
        burial.rounds += 1;
        let pause = (EXEC_TIME * 2_u32.saturating_pow(burial.rounds.min(16))).min(LAST_PAUSE);
        self.reactor.set_timer_after(pause, Timer::Bury(place));
    }

    /// Has the inspector look. It is asked again where it does not get on; see `check_inspector`.
    pub(crate) fn inspect(&mut self, place: Place, task: Task) {
        let number = self.ask_inspector(place, task);
        let Some(live) = live_at(&mut self.incarnations.slots, place) else { return };
        live.inspection.asked = number;
        if number.is_none() {
            self.cannot_inspect(place, task);
        }
    }

    /// The number of the request; `None` where no thread can be had for it.
    pub(crate) fn ask_inspector(&mut self, place: Place, task: Task) -> Option<u64> {
        let now = self.reactor.clock.now();
        let live = live_at(&mut self.incarnations.slots, place)?;
        self.trees.requests += 1;
        let request = Request {
            number: self.trees.requests,
            task,
            tree: Arc::clone(live.present.tree()),
            pipes: live.pipes(),
            has_wrapped: self.trees.numbers.may_wrap_in(now.saturating_duration_since(live.started)),
            sessions: live.inspection.sessions.clone(),
            others: Arc::new(self.trees.own.clone()),
            adopts: self.trees.inspector.adopts,
        };
        if !self.trees.inspector.ask(request) {
            return None;
        }
        if self.trees.asked.is_empty() {
            self.reactor.set_timer_after(STALL, Timer::Inspector);
        }
        self.trees.asked.insert(self.trees.requests, (place, task));
        Some(self.trees.requests)
    }

    fn cannot_inspect(&mut self, place: Place, task: Task) {
        let Some(live) = live_at(&mut self.incarnations.slots, place) else { return };
        match task {
            Task::KillTree => live.kill_group(),
            Task::Group => self.input(place, LifecycleInput::ProcessGroupEnded),
            Task::ReapKilled => self.reap_alone(place),
            // It is not asked for by `inspect`.
            Task::StopTree => {}
            // Until its time is over.
            Task::KillInhabitants | Task::Survivors(_) => self.reactor.set_timer_after(AGAIN, Timer::Bury(place)),
        }
    }

    /// Whether the inspector gets on. Where it does not, another one is asked all that this one has not answered.
    pub(crate) fn check_inspector(&mut self) {
        if self.trees.asked.is_empty() {
            return;
        }
        if self.trees.inspector.has_stalled() {
            let asked: Vec<(Place, Task)> = self.trees.asked.drain().map(|(_, asked)| asked).collect();
            for (place, task) in asked {
                // What it has stopped is continued when it gives its findings, late.
                if task != Task::StopTree {
                    self.inspect(place, task);
                }
            }
            self.end_freezing();
        }
        self.reactor.set_timer_after(STALL, Timer::Inspector);
    }

    pub(crate) fn inspected(&mut self, findings: Findings) {
        let asked = self.trees.asked.remove(&findings.number);
        if findings.task == Task::StopTree {
            // Also from a thread that was stuck, and has stopped processes meanwhile.
            return self.stopped(findings.held);
        }
        let Some((place, task)) = asked else { return };
        let Some(live) = live_at(&mut self.incarnations.slots, place) else { return };
        if live.inspection.asked.take_if(|asked| *asked == findings.number).is_none() {
            return;
        }
        live.inspection.kill_refused |= findings.refused && task == Task::KillTree;
        live.inspection.sessions.extend(&findings.sessions);
        match task {
            Task::KillTree | Task::StopTree => {}
            Task::Group => self.group_found(place, findings),
            Task::KillInhabitants => {
                live.inspection.uninspected = findings.uninspected;
                live.name(findings.survivors);
                live.burial.get_or_insert_default().is_killed = true;
                self.wait_for_cgroup(place);
            }
            Task::ReapKilled if self.looks_again(place, findings.look_again) => {}
            Task::ReapKilled => self.reap_alone(place),
            Task::Survivors(survivors) => self.found(place, survivors, findings),
        }
    }

    fn found(&mut self, place: Place, survivors: SurvivorPolicy, findings: Findings) {
        let Some(live) = live_at(&mut self.incarnations.slots, place) else { return };
        live.inspection.uninspected = findings.uninspected;
        live.name(findings.survivors);
        let burial = live.burial.get_or_insert_default();
        if findings.count > 0 && survivors == SurvivorPolicy::Kill {
            burial.rounds += 1;
            drop(live.present.child().signal_group(libc::SIGKILL));
            return self.wait_for(place, findings.held);
        }
        if self.looks_again(place, findings.look_again) {
            return;
        }
        if survivors == SurvivorPolicy::Kill { self.reap_alone(place) } else { self.reap(place) }
    }

    /// Looks again in a moment, where that is worth while.
    fn looks_again(&mut self, place: Place, is_wanted: bool) -> bool {
        let Some(live) = live_at(&mut self.incarnations.slots, place) else { return false };
        let burial = live.burial.get_or_insert_default();
        let looks_again = is_wanted && burial.waits < WAITS;
        if looks_again {
            burial.waits += 1;
            self.reactor.set_timer_after(EXEC_TIME, Timer::Bury(place));
        }
        looks_again
    }

    /// Waits for the ends of these. Those that cannot be watched are looked for again by timer, until their time is over.
    fn wait_for(&mut self, place: Place, held: Vec<PinnedProcess>) {
        let Some(live) = live_at(&mut self.incarnations.slots, place) else { return };
        let burial = live.burial.get_or_insert_default();
        for held in held {
            let watched = held.pidfd().map(|pidfd| self.reactor.poller.add(pidfd, Target::Survivor(place).token()));
            if watched.is_some_and(|watched| watched.is_ok()) {
                burial.waited_for.push(held);
            }
        }
        if burial.waited_for.is_empty() {
            self.reactor.set_timer_after(AGAIN, Timer::Bury(place));
        }
    }

    /// A worker has ended while it was being stopped: the rest of its group has the rest of the ladder's time.
    pub(crate) fn wait_for_group(&mut self, place: Place) {
        let now = self.reactor.clock.now();
        let Some(live) = live_at(&mut self.incarnations.slots, place) else { return };
        let child = live.present.child();
        let lived = now.saturating_duration_since(live.started);
        let started_since = self.starter.started().saturating_sub(live.starts_before);
        let is_alone = !child.leads_group()
            || live.present.tree().with_cgroup(WorkerCgroup::is_populated) == Some(false)
            || self.trees.numbers.shows_no_descendant(child.pid().cast_signed(), lived, started_since);
        if is_alone {
            self.input(place, LifecycleInput::ProcessGroupEnded);
        } else {
            self.inspect(place, Task::Group);
        }
    }

    /// What is left of the group of a worker that has ended while it was being stopped.
    fn group_found(&mut self, place: Place, findings: Findings) {
        if findings.count == 0 && !findings.look_again {
            self.input(place, LifecycleInput::ProcessGroupEnded);
        } else {
            self.wait_for(place, findings.held);
        }
    }

    /// Takes the status of one of whose tree nothing is left.
    fn reap_alone(&mut self, place: Place) {
        if let Some(live) = live_at(&mut self.incarnations.slots, place) {
            for survivor in &mut live.survivors {
                survivor.alive = false;
            }
        }
        self.reap(place);
    }

    /// A survivor has ended. When all have, it is looked again.
    pub(crate) fn buried(&mut self, place: Place) {
        let Some(live) = live_at(&mut self.incarnations.slots, place) else { return };
        let is_group = live.lifecycle.waits_for_group();
        let Some(burial) = &mut live.burial else { return };
        let (gone, left): (Vec<PinnedProcess>, Vec<PinnedProcess>) =
            burial.waited_for.drain(..).partition(PinnedProcess::has_ended);
        burial.waited_for = left;
        let is_over = burial.waited_for.is_empty();
        let may_go_on = burial.rounds < ROUNDS;
        for held in gone {
            if let Some(pidfd) = held.pidfd() {
                drop(self.reactor.poller.remove(pidfd));
                // As process 1, or as a subreaper (prctl(2)), the host is the parent of those whose own have ended. ECHILD: it is
                // not.
                drop(pidfd.reap());
            }
            for survivor in live.survivors.iter_mut().filter(|survivor| survivor.pid == held.pid.unsigned_abs()) {
                survivor.alive = false;
            }
        }
        match (is_over, is_group) {
            (true, true) => self.inspect(place, Task::Group),
            (true, false) if may_go_on => self.bury(place),
            (true, false) => self.reap(place),
            (false, _) => {}
        }
    }

    /// It is time to look again, or to give up those that do not die.
    pub(crate) fn bury_in_time(&mut self, place: Place) {
        let now = self.reactor.clock.now();
        let Some(live) = live_at(&mut self.incarnations.slots, place) else { return };
        if live.lifecycle.waits_for_group() {
            if live.inspection.asked.is_none() {
                self.inspect(place, Task::Group);
            }
            return;
        }
        match &mut live.burial {
            None => self.bury(place),
            Some(burial) if burial.until.is_some_and(|until| until <= now) => {
                for held in burial.waited_for.drain(..) {
                    if let Some(pidfd) = held.pidfd() {
                        drop(self.reactor.poller.remove(pidfd));
                    }
                }
                // An answer that is still due comes too late: what it would have said is unknown.
                if live.inspection.asked.take().is_some() {
                    live.inspection.uninspected = None;
                }
                self.reap(place);
            }
            Some(burial) if burial.waited_for.is_empty() && live.inspection.asked.is_none() => self.bury(place),
            Some(_) => {}
        }
    }

    /// SIGKILL to the worker and its tree.
    pub(crate) fn kill_tree(&mut self, place: Place) {
        let Some(live) = live_at(&mut self.incarnations.slots, place) else { return };
        if live.spec.survivors != SurvivorPolicy::Kill {
            return live.kill_group();
        }
        self.reactor.set_timer_after(KILL_PATIENCE, Timer::Kill(place));
        self.inspect(place, Task::KillTree);
    }

    /// The inspector may be busy or stuck: the process and its group are killed without it.
    pub(crate) fn kill_without_inspector(&mut self, place: Place) {
        if let Some(live) = live_at(&mut self.incarnations.slots, place) {
            live.kill_group();
        }
    }
}

impl Live {
    /// SIGKILL to the process and its group.
    pub(crate) fn kill_group(&mut self) {
        let killed = self.present.child().signal_group(libc::SIGKILL);
        self.inspection.kill_refused |= killed.is_err_and(|error| error.raw_os_error() == Some(libc::EPERM));
    }

    fn name(&mut self, survivors: Vec<Survivor>) {
        for survivor in survivors {
            if !self.survivors.iter().any(|known| known.pid == survivor.pid) {
                self.survivors.push(survivor);
            }
        }
    }
}

/// What is known of its tree.
#[derive(Debug, Default)]
pub(crate) struct Inspection {
    /// How many processes could not be attributed, once that is known.
    pub(crate) uninspected: Option<u32>,
    /// The number of the request that the inspector has not answered.
    pub(crate) asked: Option<u64>,
    /// Sessions that were seen in it.
    pub(crate) sessions: HashSet<i32>,
    /// SIGKILL was refused, as a process of it runs as another user.
    pub(crate) kill_refused: bool,
}

/// Waiting for the end of those who have outlived a worker.
#[derive(Debug, Default)]
pub(crate) struct Burial {
    pub(crate) waited_for: Vec<PinnedProcess>,
    pub(crate) rounds: u32,
    /// How often those were looked at again that were in the middle of an exec.
    pub(crate) waits: u32,
    /// Its cgroup was killed, and not looked at since.
    pub(crate) is_killed: bool,
    pub(crate) until: Option<Instant>,
}
