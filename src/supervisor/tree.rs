//! What a worker has started: found by a token in its environment, named, and killed.
//!
//! A process that leaves its group and its parent still has the environment it was given, unless it has thrown that away; so
//! every incarnation is given a token of its own, and what it starts inherits it.
//!
//! To look through all processes takes milliseconds, so one look is for all whose descendants are looked for just then; and most
//! workers start nothing. But numbers are given in turn: whoever
//! descends from a worker has a number that was given after the worker's own. Where no others were given than to our own
//! workers there is nobody to look for, and where there were few only those are looked at.

use super::WorkerId;
use crate::{
    exit::Survivor,
    sys::{
        pidfd,
        proc::{self, Environment, Eyes, Held, Sight},
    },
    text::printable,
};
use std::{
    collections::{HashMap, HashSet},
    env,
    ffi::OsString,
    mem,
    time::{Duration, Instant},
};

/// The variable that carries the tokens: ours behind those of supervisors further up, separated by colons.
pub(super) const VARIABLE: &str = "PIPEWRIGHT_TREE";
/// How many numbers are looked at one by one, before it is quicker to ask which processes there are.
const PROBES: i32 = 256;
/// How many processes a machine can start in a second, generously: so long no number comes twice.
const STARTS_PER_SECOND: i32 = 50_000;
/// How often everybody is looked at for one worker, on a machine that starts others faster than they can be looked at.
const ROUNDS: u32 = 4;
/// How often it is looked for those that were forked while others were stopped.
const STOPS: u32 = 16;
/// How soon those are looked at again who were in the middle of an exec, and how often: an exec that takes longer than a second
/// is from a disk that hangs.
const EXEC_TIME: Duration = Duration::from_millis(1);
const WAITS: u32 = 1000;
/// How soon it is tried again to look at everybody, where there was no descriptor for that.
const PAUSE: Duration = Duration::from_millis(10);

/// What an incarnation is recognised by. Ends with a dot, so that the first worker's is not the beginning of the tenth's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Token(Box<str>);

impl Token {
    /// The guard looks for the run and a dot: with `outlives_us` it does not find the processes of this tree.
    pub(super) fn new(run: &str, worker: WorkerId, incarnation: u32, outlives_us: bool) -> Self {
        let apart = if outlives_us { "-" } else { "" };
        Self(format!("{run}{apart}.{}.{incarnation}.", worker.0).into())
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// What all tokens of our supervisor begin with.
    fn run(&self) -> &str {
        self.0.split(['-', '.']).next().unwrap_or_default()
    }

    /// What a process has in its environment: this one behind those that we have ourselves.
    pub(super) fn variable(&self) -> (&'static str, OsString) {
        let mut all = env::var_os(VARIABLE).unwrap_or_default();
        if !all.is_empty() {
            all.push(":");
        }
        all.push(self.as_str());
        (VARIABLE, all)
    }
}

/// Whose descendants are looked for.
#[derive(Debug)]
pub(super) struct Ancestor<'a> {
    pub(super) pid: i32,
    pub(super) token: &'a Token,
    pub(super) lived: Duration,
    /// At most how many processes we have started since.
    pub(super) started_since: u64,
    /// They cannot be any.
    pub(super) others: &'a HashSet<i32>,
}

/// Looks for descendants, and does so no more often than is good for the loop.
#[derive(Debug)]
pub(super) struct Search {
    /// So long no number comes twice.
    first_wrap: Duration,
    /// When all processes may be looked at again.
    next: Option<Instant>,
    last_look: Option<Look>,
    looks: u64,
    eyes: Eyes,
}

/// One look at everybody, for whoever has asked before it began.
#[derive(Debug)]
struct Look {
    number: u64,
    began: Instant,
    /// The number that was given last, before it.
    last: Option<i32>,
    /// Who carries which token. Before anything is done to them they are looked at again.
    carriers: HashMap<Box<[u8]>, Vec<i32>>,
    /// Who could not be seen.
    hidden: Vec<i32>,
}

/// How far the search for one worker's descendants has come.
#[derive(Debug, Default)]
pub(super) struct Sought {
    asked: Option<Instant>,
    /// The last look at everybody that was made use of.
    seen: u64,
    /// Whoever was there when this number was the last one has been looked at.
    up_to: Option<i32>,
    found: Vec<Held>,
    /// In the middle of an exec when they were looked at.
    hidden: Vec<i32>,
    waits: u32,
    /// How often everybody was looked at.
    rounds: u32,
}

impl Sought {
    fn found(&mut self) -> Option<Found> {
        (!self.found.is_empty()).then(|| Found::These(mem::take(&mut self.found)))
    }
}

/// What a search has come to.
#[derive(Debug)]
pub(super) enum Found {
    These(Vec<Held>),
    /// All processes have to be looked at, and were a moment ago; or somebody is in the middle of an exec.
    NotBefore(Instant),
}

impl Found {
    /// What two searches have come to, one after the other.
    pub(super) fn and(self, later: Self) -> Self {
        match (self, later) {
            (Self::These(mut found), Self::These(more)) => {
                found.extend(more);
                Self::These(found)
            }
            (Self::These(found), Self::NotBefore(_)) if !found.is_empty() => Self::These(found),
            (Self::These(_) | Self::NotBefore(_), later) => later,
        }
    }
}

/// Whose turn it is to be looked at.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    Nobody,
    From(i32),
    Everybody,
}

impl Search {
    pub(super) fn new() -> Self {
        let seconds = f64::from(proc::highest_number()) / f64::from(STARTS_PER_SECOND);
        let first_wrap = Duration::from_secs_f64(seconds);
        Self { first_wrap, next: None, last_look: None, looks: 0, eyes: Eyes::new() }
    }

    /// Whether there were too few descriptors to look with. Told once, and then it may be looked again at once.
    pub(super) fn take_shortage(&mut self) -> bool {
        let was_short = mem::take(&mut self.eyes.was_short);
        if was_short {
            self.next = None;
        }
        was_short
    }

    /// The living descendants of one that has ended.
    pub(super) fn descendants(&mut self, of: &Ancestor<'_>, sought: &mut Sought, now: impl Fn() -> Instant) -> Found {
        let hidden = mem::take(&mut sought.hidden);
        self.look(of, hidden, sought);
        let asked = *sought.asked.get_or_insert_with(&now);
        loop {
            // Read before anybody is looked at. Whoever is started meanwhile has a higher one, and the next turn: so nobody
            // escapes whose parent ends before that is looked at.
            let last = proc::last_number().ok();
            match self.turn(of, sought, last) {
                Turn::Nobody => break,
                Turn::From(first) => self.look(of, first..=last.unwrap_or(first), sought),
                Turn::Everybody => {
                    let is_new = |look: &Look| look.began >= asked && look.number > sought.seen;
                    if !self.last_look.as_ref().is_some_and(is_new) {
                        if self.next.is_none_or(|next| next <= now()) {
                            sought.waits += 1;
                            self.look_at_everybody(of.token.run(), &now);
                        }
                        if let (Some(next), false) = (self.next, self.last_look.as_ref().is_some_and(is_new)) {
                            return sought.found().unwrap_or(Found::NotBefore(next));
                        }
                    }
                    self.use_look(of, sought);
                    continue;
                }
            }
            sought.up_to = last;
        }
        if let Some(found) = sought.found() {
            return found;
        }
        let soon = now().checked_add(EXEC_TIME).filter(|_| !sought.hidden.is_empty() && sought.waits < WAITS);
        sought.waits += 1;
        soon.map_or_else(|| Found::These(Vec::new()), Found::NotBefore)
    }

    fn look_at_everybody(&mut self, run: &str, now: impl Fn() -> Instant) {
        let (began, last) = (now(), proc::last_number().ok());
        let Ok(all) = proc::all() else {
            // No descriptor to look with.
            self.eyes.was_short = true;
            self.next = began.checked_add(PAUSE);
            return;
        };
        let (mut carriers, mut hidden) = (HashMap::<Box<[u8]>, Vec<i32>>::new(), Vec::new());
        for pid in all {
            match self.eyes.find(pid, |environment| tokens(environment, run.as_bytes())) {
                Environment::Has(tokens) => {
                    for token in tokens {
                        carriers.entry(token).or_default().push(pid);
                    }
                }
                Environment::Hides => hidden.push(pid),
                Environment::Lacks => {}
            }
        }
        self.looks += 1;
        self.last_look = Some(Look { number: self.looks, began, last, carriers, hidden });
        // At most a quarter of the loop's time.
        let ended = now();
        self.next = ended.checked_add((ended - began) * 3);
    }

    /// Whoever the last look at everybody has found for one.
    fn use_look(&mut self, of: &Ancestor<'_>, sought: &mut Sought) {
        let Some(look) = &self.last_look else { return };
        let carriers = look.carriers.get(of.token.as_str().as_bytes()).into_iter().flatten();
        let pids: Vec<i32> = carriers.chain(&look.hidden).copied().collect();
        (sought.seen, sought.up_to) = (look.number, look.last);
        sought.rounds += 1;
        self.look(of, pids, sought);
    }

    fn look(&mut self, of: &Ancestor<'_>, pids: impl IntoIterator<Item = i32>, sought: &mut Sought) {
        let ours = pidfd::own_pid();
        for pid in pids.into_iter().filter(|pid| *pid != ours && !of.others.contains(pid)) {
            match self.eyes.look(pid, of.token.as_str().as_bytes()) {
                Sight::Carrier(held) => sought.found.push(held),
                Sight::NotYet => sought.hidden.push(pid),
                Sight::Stranger => {}
            }
        }
    }

    /// Stops those of a running worker's tree that are listed, and gives them: they are to go on with it. Whoever does not carry the
    /// token goes on all the time: the guard of a supervisor that the worker is must not stand still when that is killed.
    pub(super) fn stop(&mut self, token: &Token, list: impl Fn() -> Vec<i32>) -> Vec<Held> {
        let mut stopped: Vec<Held> = Vec::new();
        // Whoever is stopped forks no more, so the last look finds nobody new.
        for _ in 0..STOPS {
            let known: HashSet<i32> = stopped.iter().map(|held| held.pid).collect();
            for pid in list().into_iter().filter(|pid| !known.contains(pid)) {
                if let Sight::Carrier(held) = self.eyes.look(pid, token.as_str().as_bytes()) {
                    // ESRCH: it has ended.
                    drop(held.pidfd.signal(libc::SIGSTOP));
                    stopped.push(held);
                }
            }
            if stopped.len() == known.len() {
                break;
            }
        }
        stopped
    }

    /// `last` is the number that was given last.
    fn turn(&self, of: &Ancestor<'_>, sought: &Sought, last: Option<i32>) -> Turn {
        let (after, own) = match sought.up_to {
            Some(up_to) => (up_to, 0),
            None if of.lived < self.first_wrap => (of.pid, i64::try_from(of.started_since).unwrap_or(i64::MAX)),
            None => return Turn::Everybody,
        };
        let given = last.map(|last| i64::from(last) - i64::from(after));
        match given {
            Some(given) if (0..=own).contains(&given) => Turn::Nobody,
            _ if sought.rounds >= ROUNDS || sought.waits >= WAITS => Turn::Nobody,
            Some(given) if (0..=i64::from(PROBES)).contains(&given) => Turn::From(after.saturating_add(1)),
            _ => Turn::Everybody,
        }
    }
}

/// The tokens of a run that are in an environment: each ends where the next variable or the next token begins.
fn tokens(environment: &[u8], run: &[u8]) -> Option<Vec<Box<[u8]>>> {
    let found = memchr::memmem::find_iter(environment, run).map(|at| {
        let rest = environment.get(at..).unwrap_or_default();
        Box::from(rest.split(|byte| matches!(byte, 0 | b':')).next().unwrap_or_default())
    });
    let found: Vec<_> = found.collect();
    (!found.is_empty()).then_some(found)
}

/// What is told of a descendant that has outlived its worker. `pipes` are ours, by their inodes.
pub(super) fn survivor(carrier: &Held, pipes: &[(u64, &'static str)]) -> Survivor {
    let held = proc::held_inodes(carrier.pid);
    let mut holds: Vec<Box<str>> =
        pipes.iter().filter(|(inode, _)| held.contains(inode)).map(|(_, name)| Box::from(*name)).collect();
    holds.dedup();
    let command = printable(&proc::command_line(carrier.pid)).to_string();
    Survivor { pid: carrier.pid.unsigned_abs(), command: command.into(), holds, alive: true }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_told_apart() {
        let ours = [Token::new("abc", WorkerId(1), 2, false), Token::new("abc", WorkerId(12), 3, true)];
        assert!(ours.iter().all(|token| token.run() == "abc"));
        let environment = format!("A=1\0{VARIABLE}=xyz.7.1.:{}\0B={}\0", ours[0].as_str(), ours[1].as_str());
        let found = tokens(environment.as_bytes(), b"abc").unwrap();
        assert_eq!(found, ours.each_ref().map(|token| Box::from(token.as_str().as_bytes())));
        assert_eq!(tokens(b"A=1\0", b"abc"), None);
    }
}
