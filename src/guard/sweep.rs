//! What the own executable does when the host has ended: kills all that belongs to its trees.

use crate::sys::{
    kin::{self, Kin, State},
    pidfd::{self, PidFd},
    proc::{self, Environment, Eyes, Sight},
};
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fs, mem,
    path::Path,
    thread,
    time::Duration,
};

/// So many looks in turn have to find nothing.
const QUIET_LOOKS: u32 = 4;
/// What can be found is found by then.
const LOOKS: u32 = 1000;
/// A process that stays in an exec, from a disk that hangs, does not keep the guard for ever.
const HIDDEN_LOOKS: u32 = 200;
const PAUSE: Duration = Duration::from_millis(1);
/// How often, and how soon, it is tried again to remove the cgroup while its processes end.
const REMOVALS: u32 = 50;
const REMOVAL_PAUSE: Duration = Duration::from_millis(50);
/// How a guard of another supervisor is named: the kernel keeps 15 bytes of its title.
const GUARD_NAME: &str = "pipewright-guar";

/// Kills everything that carries the token, and what is related to it: the members of the listed groups and of the sessions that
/// their leaders lead, all descendants that still have their parents, and whatever shares a session with one of these, unless it
/// is the host's session.
#[derive(Debug)]
pub(super) struct Sweep<'a> {
    token: &'a [u8],
    groups: BTreeSet<i32>,
    /// As it was when it lived.
    host: Option<Kin>,
    /// The tree's own sessions.
    sessions: HashSet<i32>,
    /// What was found to belong to a tree.
    known: HashSet<(i32, u64)>,
    eyes: Eyes,
}

/// What one look at all processes has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Looked {
    Nothing,
    /// A process is in the middle of an exec.
    Hidden,
    Killed,
}

impl<'a> Sweep<'a> {
    pub(super) fn new(token: &'a [u8], groups: BTreeSet<i32>, host: Option<Kin>) -> Self {
        let sessions = groups.iter().copied().collect();
        Self { token, groups, host, sessions, known: HashSet::new(), eyes: Eyes::new() }
    }

    pub(super) fn run(&mut self, cgroup: Option<&Path>, directory: Option<&Path>) {
        if let Some(cgroup) = cgroup {
            // At once: whatever its members have started is in it too. Refused where none was made.
            drop(fs::write(cgroup.join("cgroup.kill"), "1"));
        }
        // Before the groups are killed, while parents are still there to be descended from.
        let family = self.family();
        // No more than once: from now on the numbers may be given to others.
        for group in mem::take(&mut self.groups) {
            // ESRCH: all its members have ended.
            drop(kin::kill_group(group));
        }
        for kin in family {
            kill(kin);
        }
        self.hunt();
        if let Some(directory) = directory {
            // Refused where it is gone already.
            drop(fs::remove_dir_all(directory));
        }
        if let Some(cgroup) = cgroup {
            remove(cgroup);
        }
    }

    fn hunt(&mut self) {
        let (mut quiet, mut hidden) = (0, 0);
        for _ in 0..LOOKS {
            match self.look() {
                Looked::Killed => quiet = 0,
                Looked::Hidden if hidden < HIDDEN_LOOKS => {
                    hidden += 1;
                    pause(PAUSE);
                }
                Looked::Nothing | Looked::Hidden => quiet += 1,
            }
            if quiet == QUIET_LOOKS {
                return;
            }
        }
    }

    fn look(&mut self) -> Looked {
        let mut looked = Looked::Nothing;
        let own = pidfd::own_pid();
        for pid in proc::all().unwrap_or_default().into_iter().filter(|pid| *pid != own) {
            match self.eyes.look(pid, self.token) {
                Sight::Carrier(held) => {
                    self.know(Kin::of(pid));
                    drop(held.signal(libc::SIGKILL));
                    looked = Looked::Killed;
                }
                Sight::NotYet if looked == Looked::Nothing => looked = Looked::Hidden,
                Sight::NotYet | Sight::Stranger => {}
            }
        }
        for kin in self.family() {
            kill(kin);
            looked = Looked::Killed;
        }
        looked
    }

    fn know(&mut self, kin: Option<Kin>) {
        let Some(kin) = kin else { return };
        self.known.insert((kin.pid, kin.started));
        // A session other than the host's was made by a descendant, and is only inherited.
        if self.host.is_some_and(|host| host.session != kin.session) && kin.session > 1 {
            self.sessions.insert(kin.session);
        }
    }

    /// The living processes that belong to the trees by their group, session or parents.
    fn family(&mut self) -> Vec<Kin> {
        let own = pidfd::own_pid();
        let all: Vec<Kin> = proc::all().unwrap_or_default().into_iter().filter_map(Kin::of).collect();
        let by_pid: HashMap<i32, Kin> = all.iter().map(|kin| (kin.pid, *kin)).collect();
        let mut found = Vec::new();
        loop {
            let before = found.len();
            for &kin in all.iter().filter(|kin| kin.pid > 1 && kin.pid != own) {
                let key = (kin.pid, kin.started);
                let is_known =
                    |pid: i32| by_pid.get(&pid).is_some_and(|kin| self.known.contains(&(kin.pid, kin.started)));
                let belongs = self.groups.contains(&kin.group)
                    || self.sessions.contains(&kin.session)
                    || is_known(kin.parent)
                    || kin.state == State::Leaderless && kin::a_thread_carries(kin.pid, self.token);
                if belongs && !self.known.contains(&key) && !self.may_outlive(kin.pid) {
                    self.know(Some(kin));
                    found.push(kin);
                }
            }
            if found.len() == before {
                break;
            }
        }
        // The number of a session that has ended may be given to another.
        self.sessions.retain(|session| all.iter().any(|kin| kin.session == *session));
        // A supervisor in a tree has a guard of its own, which has its work to do now and ends by itself.
        found.retain(|kin| kin.state != State::Zombie && !is_guard(kin.pid));
        found
    }

    /// Whether it is of a worker that may outlive the host, or whose daemons may: those carry the token with a dash behind it.
    fn may_outlive(&mut self, pid: i32) -> bool {
        let token = [self.token.strip_suffix(b".").unwrap_or(self.token), b"-"].concat();
        matches!(self.eyes.find(pid, |bytes| memchr::memmem::find(bytes, &token)), Environment::Has(_))
    }
}

/// Kills a process that was seen a moment ago.
fn kill(kin: Kin) {
    match PidFd::open(kin.pid) {
        // The number may have been given to another process before it was opened.
        Ok(pidfd) if Kin::of(kin.pid).is_some_and(|now| now.started == kin.started) => {
            if pidfd.signal(libc::SIGKILL).is_err_and(|error| pidfd::is_send_denied(&error)) {
                drop(kin::kill(kin.pid));
            }
        }
        Ok(_) => {}
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
        Err(_) => drop(kin::kill(kin.pid)),
    }
}

fn is_guard(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim_end() == GUARD_NAME)
}

/// Removes a cgroup with those below it, once they are empty.
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
    // Refused while a process is in it.
    drop(fs::remove_dir(directory));
}

#[expect(
    clippy::disallowed_methods,
    reason = "nothing tells when another process has ended its exec, or left its cgroup"
)]
fn pause(time: Duration) {
    thread::sleep(time);
}
