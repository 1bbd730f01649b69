//! The inspector's thread: scans processes, decides which of them belong to a tree, and kills them.

use crate::{
    exit::Survivor,
    launch::child::is_own_child,
    policy::{
        descendants::{Descendants, Ownership, ProcessFacts, TreeRoot, find_descendants},
        survivors::SurvivorPolicy,
    },
    supervisor::{
        clock::now,
        containment::{
            cgroup_pool::WorkerCgroup,
            inspector::{
                reaping::Reaper,
                request::{ScanProgress, ScanRequest, ScanResult, ScanTask, refill},
            },
            scan::PidAllocation,
            token::{TreeToken, tokens},
        },
        reactor::report::Report,
        sync::lock,
    },
    sys::{
        kill,
        proc::{
            environ::{EnvironMatch, EnvironReader, EnvironState},
            list,
            mount::{self, Visibility},
            pinned::PinnedProcess,
            process,
            stat::Stat,
        },
        this_process,
    },
    text::printable,
};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use std::{
    collections::{HashMap, HashSet},
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

/// The most process ids that are probed one by one; for more, all processes are listed.
const PROBES: i32 = 256;
/// How many times one scan follows new process ids.
const ROUNDS: u32 = 4;
/// How many times a scan looks for processes that were forked while others were being stopped.
const STOPS: u32 = 16;
/// The most pidfds of survivors that are held at a time, to wait for their exits.
const HELD_MAX: usize = 64;
/// How often a subreaper looks for orphans that have exited by themselves: the kernel does not report them to a single thread.
const ORPHANS_PERIOD: Duration = Duration::from_secs(1);
/// The most survivors that are listed in an exit, which bounds the host's memory.
const NAMED_MAX: usize = 4096;

/// The state of the thread.
pub(crate) struct ScanThread {
    pub(crate) reports: Arc<dyn Report<ScanResult>>,
    pub(crate) progress: Arc<ScanProgress>,
    pub(crate) stuck: Arc<Mutex<HashSet<i32>>>,
    pub(crate) reserve: Arc<Mutex<Vec<OwnedFd>>>,
    pub(crate) environ: EnvironReader,
    pub(crate) reaper: Reaper,
    pub(crate) _alive: Sender<()>,
}

/// One process of a scan.
struct ProcessSnapshot {
    stat: Stat,
    sight: ProcessMarks,
}

enum ProcessMarks {
    Tokens(Vec<Box<[u8]>>),
    /// No token, and the inodes of the pipes that it writes to.
    Pipes(Vec<u64>),
    NotYet,
    Unreadable,
}

impl ScanThread {
    pub(crate) fn run(mut self, inbox: &Receiver<ScanRequest>) {
        let mut next_reaping = now() + ORPHANS_PERIOD;
        loop {
            let first =
                if self.reaper.adopts { inbox.recv_deadline(next_reaping) } else { inbox.recv().map_err(Into::into) };
            // Also while requests arrive.
            if self.reaper.adopts && now() >= next_reaping {
                self.reaper.reap_orphans();
                next_reaping = now() + ORPHANS_PERIOD;
            }
            let first = match first {
                Ok(first) => first,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let batch: Vec<ScanRequest> = std::iter::once(first).chain(inbox.try_iter()).collect();
            let mut looks = Vec::new();
            for request in batch {
                let findings = match request.task {
                    ScanTask::KillTree => self.kill_tree(&request),
                    ScanTask::KillInhabitants => self.kill_inhabitants(&request),
                    ScanTask::ReapKilled => self.reap_killed(&request),
                    ScanTask::StopTree => self.stop_tree(&request),
                    ScanTask::Survivors(_) | ScanTask::Group => {
                        looks.push(request);
                        continue;
                    }
                };
                self.reports.report(findings);
            }
            if !looks.is_empty() {
                self.look_for(&looks);
            }
            self.at(0);
        }
    }

    /// Records that the thread inspects `pid`. Returns true if the process is to be skipped.
    pub(crate) fn at(&self, pid: i32) -> bool {
        let before = self.progress.at.swap(pid, Ordering::AcqRel);
        self.progress.steps.fetch_add(1, Ordering::AcqRel);
        let mut stuck = lock(&self.stuck);
        if Arc::strong_count(&self.progress) == 1 {
            // Another thread has taken over while this one was blocked there.
            stuck.remove(&before);
        }
        pid != 0 && stuck.contains(&pid)
    }

    fn kill_tree(&mut self, request: &ScanRequest) -> ScanResult {
        let pid = request.tree.pid();
        self.at(pid);
        let inhabitants = request.tree.with_cgroup(WorkerCgroup::processes);
        let has_cgroup = inhabitants.is_some();
        let list = match inhabitants {
            Some(inhabitants) if this_process::is_reaper() => inhabitants,
            Some(_) => Vec::new(),
            None => list::descendants(pid),
        };
        let stats: Vec<Stat> = list.into_iter().filter_map(|pid| Stat::of(pid).ok()).collect();
        for stat in &stats {
            self.reaper.note_killed(stat, &request.tree);
        }
        let mut findings = ScanResult::none(request);
        if has_cgroup {
            request.tree.with_cgroup(WorkerCgroup::kill);
            // As root the worker may have left the cgroup.
            findings.refused = is_refusal(&request.tree.child().signal(libc::SIGKILL));
            return findings;
        }
        let own = this_process::session();
        findings.sessions = stats.iter().map(|stat| stat.session).filter(|it| *it != own && *it != 0).collect();
        // The worker first: with its children gone it might end by itself, and be reported so.
        let killed = request.tree.child().signal_group(libc::SIGKILL);
        findings.refused = is_refusal(&killed);
        for stat in stats {
            self.at(stat.pid);
            drop(PinnedProcess::open(&stat).and_then(|held| held.signal(libc::SIGKILL)));
        }
        findings
    }

    /// Stops the processes of a running worker's tree that have left its group, and returns them, to be continued with the worker.
    /// Processes without the token are not stopped: the guard of a supervisor that runs as a worker must react when that is killed.
    fn stop_tree(&mut self, request: &ScanRequest) -> ScanResult {
        let mut findings = ScanResult::none(request);
        let stopped = &mut findings.held;
        // Stopped processes do not fork, so the last scan finds nothing new.
        for _ in 0..STOPS {
            let known: HashSet<i32> = stopped.iter().map(|held: &PinnedProcess| held.pid).collect();
            for pid in away(request).into_iter().filter(|pid| !known.contains(pid)) {
                if self.at(pid) {
                    continue;
                }
                if let EnvironMatch::Match(mut held) =
                    self.environ.find_token(pid, request.tree.token().as_str().as_bytes())
                {
                    // ESRCH: it has exited.
                    drop(held.signal(libc::SIGSTOP));
                    if stopped.len() >= HELD_MAX {
                        held.close_pidfd();
                    }
                    stopped.push(held);
                }
            }
            if stopped.len() == known.len() {
                break;
            }
        }
        findings
    }

    /// Lists the processes in a cgroup, and kills them.
    fn kill_inhabitants(&mut self, request: &ScanRequest) -> ScanResult {
        let mut findings = ScanResult::none(request);
        let inhabitants = request.tree.with_cgroup(WorkerCgroup::processes);
        for pid in inhabitants.unwrap_or_default() {
            findings.count += 1;
            let is_skipped = self.at(pid);
            // ESRCH: it has exited meanwhile.
            let Ok(stat) = Stat::of(pid) else { continue };
            self.reaper.note_killed(&stat, &request.tree);
            if findings.survivors.len() < NAMED_MAX && !is_skipped {
                findings.survivors.push(survivor(&stat, &request.pipes));
            }
        }
        request.tree.with_cgroup(WorkerCgroup::kill);
        drop(request.tree.child().signal_group(libc::SIGKILL));
        findings.uninspected = Some(0);
        findings
    }

    fn reap_killed(&mut self, request: &ScanRequest) -> ScanResult {
        let needs_rescan = self.reaper.is_reaping(&request.tree);
        ScanResult { uninspected: Some(0), needs_rescan, ..ScanResult::none(request) }
    }

    fn look_for(&mut self, requests: &[ScanRequest]) {
        self.environ.had_shortage = false;
        let mut visibility = mount::visibility();
        let mut seen = self.look(requests, visibility);
        if self.environ.had_shortage {
            self.environ.had_shortage = false;
            lock(&self.reserve).clear();
            visibility = mount::visibility();
            seen = self.look(requests, visibility);
        }
        for request in requests {
            let mut findings = self.judge(request, &seen, visibility);
            findings.needs_rescan |=
                self.environ.had_shortage || findings.count == 0 && self.reaper.is_reaping(&request.tree);
            self.reports.report(findings);
        }
        refill(&self.reserve);
    }

    /// Scans all processes that may belong to these trees.
    fn look(&mut self, requests: &[ScanRequest], visibility: Visibility) -> HashMap<i32, ProcessSnapshot> {
        let mut seen = HashMap::new();
        if visibility == Visibility::Absent {
            // The ids there, if any, are those of another pid namespace.
            return seen;
        }
        let earliest = requests.iter().map(|request| request.tree.started_tick()).min().unwrap_or(0);
        let runs: Vec<&str> = requests.iter().map(|request| request.tree.token().run()).collect();
        let wants_pipes = requests.iter().any(|request| !request.pipes.is_empty());
        let mut from = requests.iter().map(ScanRequest::first).min().flatten();
        for _ in 0..ROUNDS {
            // Read before the scan: processes that start meanwhile have higher ids, and are scanned in the next round.
            let last = list::last_number().ok();
            let assigned = from.zip(last).and_then(|(from, last)| PidAllocation::assigned(from, last));
            let pids = match assigned {
                Some(pids) if pids.is_empty() => break,
                Some(pids) if pids.end() - pids.start() < PROBES => pids.collect(),
                _ => list::all().unwrap_or_else(|error| {
                    self.environ.note_shortage(&error);
                    Vec::new()
                }),
            };
            for pid in pids {
                if let Some(one) = self.look_at(pid, earliest, runs.first().copied().unwrap_or_default(), wants_pipes) {
                    seen.insert(pid, one);
                }
            }
            let Some(last) = last else { break };
            from = last.checked_add(1);
        }
        seen
    }

    fn look_at(&mut self, pid: i32, earliest: u64, run: &str, wants_pipes: bool) -> Option<ProcessSnapshot> {
        if pid == this_process::own_pid() {
            return None;
        }
        let stat = match Stat::of(pid) {
            Ok(stat) => stat,
            Err(error) => {
                self.environ.note_shortage(&error);
                return None;
            }
        };
        if stat.is_zombie {
            self.reaper.reap(&stat);
            return None;
        }
        if stat.start < earliest || process::is_thread(pid) {
            return None;
        }
        let sight = if self.at(pid) { ProcessMarks::Unreadable } else { self.sight(&stat, run, wants_pipes) };
        Some(ProcessSnapshot { stat, sight })
    }

    fn sight(&mut self, stat: &Stat, run: &str, wants_pipes: bool) -> ProcessMarks {
        let places = process::directories(stat);
        let mut unreadable = places.is_empty();
        for place in &places {
            match self.environ.search_in(place, |environment| tokens(environment, run.as_bytes())) {
                EnvironState::Found(tokens) => return ProcessMarks::Tokens(tokens),
                EnvironState::NotYet => return ProcessMarks::NotYet,
                EnvironState::Denied => unreadable = true,
                EnvironState::NotFound => {}
            }
        }
        let pipes = match places.first().filter(|_| wants_pipes || unreadable) {
            None => Ok(Vec::new()),
            Some(place) => process::pipes_written(place),
        };
        match pipes {
            Ok(pipes) => ProcessMarks::Pipes(pipes),
            Err(error) => {
                self.environ.note_shortage(&error);
                if unreadable { ProcessMarks::Unreadable } else { ProcessMarks::Pipes(Vec::new()) }
            }
        }
    }

    /// Finds the tree of one request among the scanned processes, and executes its task.
    fn judge(
        &mut self,
        request: &ScanRequest,
        seen: &HashMap<i32, ProcessSnapshot>,
        visibility: Visibility,
    ) -> ScanResult {
        let mut findings = ScanResult::none(request);
        let born = request.tree.started_tick();
        let facts: Vec<ProcessFacts> =
            seen.values().filter(|one| one.stat.start >= born).map(|one| request.facts(one)).collect();
        if request.task == ScanTask::Group {
            let leader = request.tree.pid();
            let members = facts.iter().filter(|one| one.group == leader && one.pid != leader);
            for pid in members.map(|one| one.pid) {
                findings.count += 1;
                if let Some(one) = seen.get(&pid).filter(|_| findings.held.len() < HELD_MAX) {
                    findings.held.extend(PinnedProcess::open(&one.stat));
                }
            }
            return findings;
        }
        let Descendants { members, pending: not_yet, unreadable } = find_descendants(request.root(), &facts);
        let kills = request.task == ScanTask::Survivors(SurvivorPolicy::Kill);
        let sessions = sessions_of(&facts, &members);
        findings.sessions.extend(sessions);
        for pid in members {
            let Some(one) = seen.get(&pid) else { continue };
            findings.count += 1;
            self.at(pid);
            if findings.survivors.len() < NAMED_MAX {
                findings.survivors.push(survivor(&one.stat, &request.pipes));
            }
            if kills {
                self.reaper.note_killed(&one.stat, &request.tree);
                self.kill(&one.stat, &mut findings);
            }
        }
        findings.needs_rescan = !not_yet.is_empty();
        findings.uninspected = match visibility {
            Visibility::All => {
                let uid = process::real_uid(request.tree.pid());
                let uid = uid.unwrap_or_else(this_process::real_uid);
                let is_alike = |pid: &&i32| process::real_uid(**pid) == Some(uid);
                u32::try_from(unreadable.iter().filter(is_alike).count()).ok()
            }
            Visibility::Hidden | Visibility::Absent => None,
        };
        findings
    }

    fn kill(&mut self, stat: &Stat, findings: &mut ScanResult) {
        let held = match PinnedProcess::open(stat) {
            Ok(held) => held,
            Err(error) => {
                self.environ.note_shortage(&error);
                return;
            }
        };
        let killed = held.signal(libc::SIGKILL);
        findings.refused |= is_refusal(&killed);
        if findings.held.len() < HELD_MAX && held.pidfd().is_some() {
            findings.held.push(held);
        }
    }
}

impl ScanRequest {
    /// The lowest process id that a descendant can have; `None` for any.
    fn first(&self) -> Option<i32> {
        (!self.has_wrapped).then(|| self.tree.pid().saturating_add(1))
    }

    fn facts(&self, seen: &ProcessSnapshot) -> ProcessFacts {
        let Stat { pid, parent, group, session, .. } = seen.stat;
        let own: &TreeToken = self.tree.token();
        let is_own = |token: &[u8]| token == own.as_str().as_bytes();
        let is_piped = |inode: &u64| self.pipes.iter().any(|(own, _)| own == inode);
        let ownership = match &seen.sight {
            _ if self.others.contains_key(&pid) || is_own_child(pid) => Ownership::Other,
            ProcessMarks::Tokens(tokens) if tokens.iter().any(|token| is_own(token)) => Ownership::Own,
            ProcessMarks::Tokens(_) => Ownership::Other,
            ProcessMarks::Pipes(pipes) if pipes.iter().any(is_piped) => Ownership::Own,
            ProcessMarks::Pipes(_) => Ownership::None,
            ProcessMarks::NotYet => Ownership::Pending,
            ProcessMarks::Unreadable => Ownership::Unreadable,
        };
        // Every worker that is older than the orphan may be its origin, so the orphan is left to the last of these workers.
        let own_pid = self.tree.pid();
        let is_candidate = |(other, born): (&i32, &u64)| *other != own_pid && *born <= seen.stat.start;
        let is_adopted = self.adopts && parent == this_process::own_pid() && !self.others.iter().any(is_candidate);
        ProcessFacts { pid, parent, group, session, ownership, is_adopted }
    }

    fn root(&self) -> TreeRoot<'_> {
        let child = self.tree.child();
        TreeRoot {
            pid: child.pid().cast_signed(),
            is_unreaped: child.is_unreaped(),
            leads_group: child.leads_group(),
            initial_session: this_process::session(),
            sessions: &self.sessions,
        }
    }
}

/// The processes of a tree outside the worker's group, which its signals do not reach: those of its cgroup, or without one the descendants
/// whose parents have not exited.
fn away(request: &ScanRequest) -> Vec<i32> {
    let pid = request.tree.pid();
    let inhabitants = request.tree.with_cgroup(WorkerCgroup::processes);
    let mut tree = inhabitants.unwrap_or_else(|| list::descendants(pid));
    tree.retain(|other| !kill::is_in_group(*other, pid));
    tree
}

/// The sessions of the members except the host's.
fn sessions_of(facts: &[ProcessFacts], members: &[i32]) -> HashSet<i32> {
    let own = this_process::session();
    let members: HashSet<i32> = members.iter().copied().collect();
    let of_members = facts.iter().filter(|one| members.contains(&one.pid)).map(|one| one.session);
    of_members.filter(|session| *session != own && *session != 0).collect()
}

fn is_refusal(sent: &io::Result<()>) -> bool {
    sent.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EPERM))
}

/// Describes a process that has outlived its worker.
fn survivor(stat: &Stat, pipes: &[(u64, &'static str)]) -> Survivor {
    let places = process::directories(stat);
    let held = places.first().and_then(|place| process::pipes_written(place).ok()).unwrap_or_default();
    let mut holds: Vec<Box<str>> =
        pipes.iter().filter(|(inode, _)| held.contains(inode)).map(|(_, name)| Box::from(*name)).collect();
    holds.dedup();
    let command = printable(&process::command_line(stat.pid)).to_string();
    Survivor { pid: stat.pid.unsigned_abs(), command: command.into(), holds, alive: true }
}
