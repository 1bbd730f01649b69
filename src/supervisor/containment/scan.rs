//! How the processes of a tree are recognised: by a token in their environment, and by their numbers.
//!
//! Every incarnation is given a token of its own, which what it starts inherits. `policy::descendants` lists the other signs.
//!
//! Process numbers are given in turn, so a descendant has a number that was given after the worker's own. Where no others were given
//! than to workers of this supervisor there is nothing to look for: most workers start nothing.

use crate::supervisor::ids::WorkerId;
use crate::sys::proc::{self, Held};
use std::{
    collections::HashSet,
    env,
    ffi::OsString,
    time::{Duration, Instant},
};

/// The variable that carries the tokens: ours behind those of supervisors further up, separated by colons.
pub(crate) const VARIABLE: &str = "PIPEWRIGHT_TREE";
/// How many processes a machine can start in a second, generously: so long no number comes twice.
const STARTS_PER_SECOND: i32 = 50_000;

/// What an incarnation is recognised by. Ends with a dot, so that the first worker's is not the beginning of the tenth's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Token(Box<str>);

impl Token {
    /// The guard looks for the run and a dot: with `outlives_us` it does not find the processes of this tree.
    pub(crate) fn new(run: &str, worker: WorkerId, incarnation: u32, outlives_us: bool) -> Self {
        let apart = if outlives_us { "-" } else { "" };
        Self(format!("{run}{apart}.{}.{incarnation}.", worker.0).into())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// What all tokens of our supervisor begin with.
    pub(crate) fn run(&self) -> &str {
        self.0.split(['-', '.']).next().unwrap_or_default()
    }

    /// What a process has in its environment: this one behind those that we have ourselves.
    pub(crate) fn variable(&self) -> (&'static str, OsString) {
        let mut all = env::var_os(VARIABLE).unwrap_or_default();
        if !all.is_empty() {
            all.push(":");
        }
        all.push(self.as_str());
        (VARIABLE, all)
    }
}

/// The process numbers that were given since a worker was started.
#[derive(Debug)]
pub(crate) struct Numbers {
    /// So long no number comes twice.
    first_wrap: Duration,
}

impl Numbers {
    pub(crate) fn new() -> Self {
        let seconds = f64::from(proc::highest_number()) / f64::from(STARTS_PER_SECOND);
        Self { first_wrap: Duration::from_secs_f64(seconds) }
    }

    /// Whether a number may have come again in this time.
    pub(crate) fn may_wrap_in(&self, time: Duration) -> bool {
        time >= self.first_wrap
    }

    /// Whether this process cannot have started any other: since its start no more numbers were given than to the `started`
    /// processes of this supervisor. Reads the one file of `/proc` that says so.
    pub(crate) fn shows_no_descendant(&self, pid: i32, lived: Duration, started: u64) -> bool {
        let given = proc::last_number().map(|last| i64::from(last) - i64::from(pid));
        let started = i64::try_from(started).unwrap_or(i64::MAX);
        !self.may_wrap_in(lived) && given.is_ok_and(|given| (0..=started).contains(&given))
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
    pub(crate) waited_for: Vec<Held>,
    pub(crate) rounds: u32,
    /// How often those were looked at again that were in the middle of an exec.
    pub(crate) waits: u32,
    /// Its cgroup was killed, and not looked at since.
    pub(crate) is_killed: bool,
    pub(crate) until: Option<Instant>,
}

/// The tokens of a run that are in an environment: each ends where the next variable or the next token begins.
pub(crate) fn tokens(environment: &[u8], run: &[u8]) -> Option<Vec<Box<[u8]>>> {
    let found = memchr::memmem::find_iter(environment, run).map(|at| {
        let rest = environment.get(at..).unwrap_or_default();
        Box::from(rest.split(|byte| matches!(byte, 0 | b':')).next().unwrap_or_default())
    });
    let found: Vec<_> = found.collect();
    (!found.is_empty()).then_some(found)
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
