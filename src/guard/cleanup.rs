//! Cleanup by the host's own executable after the host has ended: kills every process of its trees.

use crate::sys::{
    kill,
    pidfd::{self, PidFd},
    proc::{
        environ::{self, EnvironMatch, EnvironReader, EnvironState},
        list,
        stat::Stat,
    },
    this_process,
};
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fs, mem,
    path::Path,
    thread,
    time::Duration,
};

/// The number of consecutive scans that must find nothing.
const QUIET_SCANS: u32 = 4;
/// The limit of scans.
const SCANS: u32 = 1000;
/// The limit of scans that find a process in exec, which a disk that does not respond can block forever.
const IN_EXEC_SCANS: u32 = 200;
const PAUSE: Duration = Duration::from_millis(1);
/// Attempts to remove the cgroup while its processes end, and the pause between them.
const REMOVALS: u32 = 50;
const REMOVAL_PAUSE: Duration = Duration::from_millis(50);
/// The name of a guard: the kernel keeps 15 bytes of its title.
const GUARD_NAME: &str = "pipewright-guar";

/// Kills every process that carries the token, and related processes: members of the listed groups and of the sessions led by their
/// leaders, descendants whose parents are alive, and processes that share a session with one of these, except the host's session.
#[derive(Debug)]
pub(super) struct Cleanup<'a> {
    token: &'a [u8],
    groups: BTreeSet<i32>,
    /// As of the start of the guard.
    host: Option<Stat>,
    /// Sessions that belong to the trees.
    sessions: HashSet<i32>,
    /// PID and start time of each process found to belong to a tree.
    known: HashSet<(i32, u64)>,
    environ: EnvironReader,
}

/// The result of one scan of all processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ScanOutcome {
    Nothing,
    /// A process is in exec.
    InExec,
    Killed,
}

impl<'a> Cleanup<'a> {
    pub(super) fn new(token: &'a [u8], groups: BTreeSet<i32>, host: Option<Stat>) -> Self {
        let sessions = groups.iter().copied().collect();
        Self { token, groups, host, sessions, known: HashSet::new(), environ: EnvironReader::new() }
    }

    pub(super) fn run(&mut self, cgroup: Option<&Path>, directory: Option<&Path>) {
        if let Some(cgroup) = cgroup {
            // First: it includes everything that the members have started. Fails if no cgroup was made.
            drop(fs::write(cgroup.join("cgroup.kill"), "1"));
        }
        // Before the groups are killed: descendants are found by parents that are alive.
        let related = self.related();
        // Once only: the numbers can be reused afterwards.
        for group in mem::take(&mut self.groups) {
            // ESRCH: all members have ended.
            drop(kill::kill_group(group));
        }
        for stat in related {
            kill(stat);
        }
        self.scan_until_quiet();
        if let Some(directory) = directory {
            // Fails if it is already removed.
            drop(fs::remove_dir_all(directory));
        }
        if let Some(cgroup) = cgroup {
            remove(cgroup);
        }
    }

    fn scan_until_quiet(&mut self) {
        let (mut quiet, mut hidden) = (0, 0);
        for _ in 0..SCANS {
            match self.scan() {
                ScanOutcome::Killed => quiet = 0,
                ScanOutcome::InExec if hidden < IN_EXEC_SCANS => {
                    hidden += 1;
                    pause(PAUSE);
                }
                ScanOutcome::Nothing | ScanOutcome::InExec => quiet += 1,
            }
            if quiet == QUIET_SCANS {
                return;
            }
        }
    }

    fn scan(&mut self) -> ScanOutcome {
        let mut looked = ScanOutcome::Nothing;
        let own = this_process::own_pid();
        for pid in list::all().unwrap_or_default().into_iter().filter(|pid| *pid != own) {
            match self.environ.find_token(pid, self.token) {
                EnvironMatch::Match(held) => {
                    self.record(Stat::of(pid).ok());
                    drop(held.signal(libc::SIGKILL));
                    looked = ScanOutcome::Killed;
                }
                EnvironMatch::NotYet if looked == ScanOutcome::Nothing => looked = ScanOutcome::InExec,
                EnvironMatch::NotYet | EnvironMatch::NoMatch => {}
            }
        }
        for stat in self.related() {
            kill(stat);
            looked = ScanOutcome::Killed;
        }
        looked
    }

    fn record(&mut self, stat: Option<Stat>) {
        let Some(stat) = stat else { return };
        self.known.insert((stat.pid, stat.start));
        // Any session other than the host's was made by a descendant.
        if self.host.is_some_and(|host| host.session != stat.session) && stat.session > 1 {
            self.sessions.insert(stat.session);
        }
    }

    /// The living processes that belong to the trees by group, session or parent.
    fn related(&mut self) -> Vec<Stat> {
        let own = this_process::own_pid();
        let all: Vec<Stat> = list::all().unwrap_or_default().into_iter().filter_map(|pid| Stat::of(pid).ok()).collect();
        let by_pid: HashMap<i32, Stat> = all.iter().map(|stat| (stat.pid, *stat)).collect();
        let mut found = Vec::new();
        loop {
            let before = found.len();
            for &stat in all.iter().filter(|stat| stat.pid > 1 && stat.pid != own) {
                let key = (stat.pid, stat.start);
                let is_known =
                    |pid: i32| by_pid.get(&pid).is_some_and(|stat| self.known.contains(&(stat.pid, stat.start)));
                let belongs = self.groups.contains(&stat.group)
                    || self.sessions.contains(&stat.session)
                    || is_known(stat.parent)
                    || stat.is_leaderless && environ::any_thread_contains(stat.pid, self.token);
                if belongs && !self.known.contains(&key) && !self.may_outlive(stat.pid) {
                    self.record(Some(stat));
                    found.push(stat);
                }
            }
            if found.len() == before {
                break;
            }
        }
        // The number of a session that has ended can be reused.
        self.sessions.retain(|session| all.iter().any(|stat| stat.session == *session));
        // The guard of a supervisor in a tree cleans up that supervisor's trees and ends by itself.
        found.retain(|stat| !stat.is_zombie && !is_guard(stat.pid));
        found
    }

    /// Whether the worker of the process, or its daemons, may outlive the host: its token is followed by a dash.
    fn may_outlive(&mut self, pid: i32) -> bool {
        let token = [self.token.strip_suffix(b".").unwrap_or(self.token), b"-"].concat();
        matches!(self.environ.search(pid, |bytes| memchr::memmem::find(bytes, &token)), EnvironState::Found(_))
    }
}

/// Kills a process that was just seen.
fn kill(stat: Stat) {
    match PidFd::open(stat.pid) {
        // The PID may have been reused before the process was opened.
        Ok(pidfd) if Stat::of(stat.pid).is_ok_and(|now| now.start == stat.start) => {
            if pidfd.signal(libc::SIGKILL).is_err_and(|error| pidfd::is_send_denied(&error)) {
                drop(kill::kill_process(stat.pid));
            }
        }
        Ok(_) => {}
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
        Err(_) => drop(kill::kill_process(stat.pid)),
    }
}

fn is_guard(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim_end() == GUARD_NAME)
}

/// Removes a cgroup and its children once they are empty.
fn remove(cgroup: &Path) {
    for _ in 0..REMOVALS {
        remove_tree(cgroup);
        if !fs::exists(cgroup).unwrap_or(false) {
            return;
        }
        pause(REMOVAL_PAUSE);
    }
}

fn remove_tree(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    // Fails while a process is in it.
    drop(fs::remove_dir(directory));
}

#[expect(
    clippy::disallowed_methods,
    reason = "the end of an exec, or the exit from a cgroup, is not reported by the kernel"
)]
fn pause(time: Duration) {
    thread::sleep(time);
}
