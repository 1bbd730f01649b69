//! What a worker has started: found by a token in its environment, named, and killed.
//!
//! A process that leaves its group and its parent still has the environment it was given, unless it has thrown that away; so
//! every incarnation is given a token of its own, and what it starts inherits it.
//!
//! To look through all processes takes milliseconds, and most workers start nothing. But numbers are given in turn: whoever
//! descends from a worker has a number that was given after the worker's own. Where no others were given than to our own
//! workers there is nobody to look for, and where there were few only those are looked at.

use super::WorkerId;
use crate::{
    exit::Survivor,
    sys::{
        pidfd,
        proc::{self, Carrier},
    },
};
use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

/// The variable that carries the tokens: ours behind those of supervisors further up, separated by colons.
pub(super) const VARIABLE: &str = "PIPEWRIGHT_TREE";
/// How many numbers are looked at one by one, before it is quicker to ask which processes there are.
const PROBES: i32 = 256;
/// How many processes a machine can start in a second, generously: so long no number comes twice.
const STARTS_PER_SECOND: i32 = 50_000;

/// What an incarnation is recognised by. Ends with a dot, so that the first worker's is not the beginning of the tenth's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Token(Box<str>);

impl Token {
    /// The guard looks for the run and a dot: it does not find the tree of one that may survive us.
    pub(super) fn new(run: &str, worker: WorkerId, incarnation: u32, survives: bool) -> Self {
        let apart = if survives { "-" } else { "" };
        Self(format!("{run}{apart}.{}.{incarnation}.", worker.0).into())
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whose descendants are looked for.
#[derive(Debug)]
pub(super) struct Ancestor {
    pub(super) pid: i32,
    pub(super) token: Token,
    pub(super) lived: Duration,
    /// How many processes we have started since, this one not counted.
    pub(super) started_since: u64,
}

/// Looks for descendants, and does so no more often than is good for the loop.
#[derive(Debug)]
pub(super) struct Search {
    /// So long no number comes twice.
    first_wrap: Duration,
    /// When all processes may be looked at again.
    next: Option<Instant>,
}

/// What a search has come to.
#[derive(Debug)]
pub(super) enum Found {
    These(Vec<Carrier>),
    /// All processes have to be looked at, and were a moment ago.
    NotBefore(Instant),
}

impl Search {
    pub(super) fn new() -> Self {
        let seconds = f64::from(proc::highest_number()) / f64::from(STARTS_PER_SECOND);
        Self { first_wrap: Duration::from_secs_f64(seconds), next: None }
    }

    /// The living descendants of one that has ended, or is about to be killed. `own` are processes that cannot be any.
    pub(super) fn descendants(&mut self, of: &Ancestor, own: &HashSet<i32>, now: impl Fn() -> Instant) -> Found {
        let token = of.token.as_str().as_bytes();
        if let (Ok(last), true) = (proc::last_number(), of.lived < self.first_wrap) {
            let given = i64::from(last) - i64::from(of.pid);
            if (0..=i64::try_from(of.started_since).unwrap_or(i64::MAX)).contains(&given) {
                return Found::These(Vec::new());
            }
            if (0..=i64::from(PROBES)).contains(&given) {
                return Found::These(carriers(of.pid.saturating_add(1)..=last, token, own));
            }
        }
        let began = now();
        if let Some(next) = self.next.filter(|next| began < *next) {
            return Found::NotBefore(next);
        }
        let all = proc::all().unwrap_or_default();
        let found = carriers(all, token, own);
        // At most a quarter of the loop's time.
        let ended = now();
        self.next = ended.checked_add((ended - began) * 3);
        Found::These(found)
    }
}

fn carriers(pids: impl IntoIterator<Item = i32>, token: &[u8], own: &HashSet<i32>) -> Vec<Carrier> {
    let ours = pidfd::own_pid();
    let strangers = pids.into_iter().filter(|pid| *pid != ours && !own.contains(pid));
    strangers.filter_map(|pid| proc::carrier(pid, token)).collect()
}

/// What is told of a descendant that has outlived its worker. `pipes` are ours, by their inodes.
pub(super) fn survivor(carrier: &Carrier, pipes: &[(u64, &'static str)]) -> Survivor {
    let held = proc::held_inodes(carrier.pid);
    let mut holds: Vec<Box<str>> =
        pipes.iter().filter(|(inode, _)| held.contains(inode)).map(|(_, name)| Box::from(*name)).collect();
    holds.dedup();
    Survivor { pid: carrier.pid.unsigned_abs(), command: proc::command_line(carrier.pid).into(), holds }
}
