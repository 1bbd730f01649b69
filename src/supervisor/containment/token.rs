//! The token in the environment of all processes of one incarnation, by which they are recognised.

use crate::ids::WorkerId;
use std::{env, ffi::OsString};

/// The environment variable with the tokens: this supervisor's after those of the supervisors above it, separated by colons.
pub(crate) const VARIABLE: &str = "PIPEWRIGHT_TREE";

/// The token of one incarnation. It ends with a dot, so that the token of worker 1 is not a prefix of that of worker 10.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TreeToken(Box<str>);

impl TreeToken {
    /// The guard searches for the run and a dot, so with `outlives_us` it does not find the processes of this tree.
    pub(crate) fn new(run: &str, worker: WorkerId, incarnation: u32, outlives_us: bool) -> Self {
        let apart = if outlives_us { "-" } else { "" };
        Self(format!("{run}{apart}.{}.{incarnation}.", worker.0).into())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The common prefix of all tokens of this supervisor.
    pub(crate) fn run(&self) -> &str {
        self.0.split(['-', '.']).next().unwrap_or_default()
    }

    /// The variable for a new process: this token after those of the host.
    pub(crate) fn variable(&self) -> (&'static str, OsString) {
        let mut all = env::var_os(VARIABLE).unwrap_or_default();
        if !all.is_empty() {
            all.push(":");
        }
        all.push(self.as_str());
        (VARIABLE, all)
    }
}

/// Returns the tokens of a run in an environment. Each ends before the next variable or token.
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
    use crate::ids::WorkerId;

    #[test]
    fn tokens_are_told_apart() {
        let ours = [TreeToken::new("abc", WorkerId(1), 2, false), TreeToken::new("abc", WorkerId(12), 3, true)];
        assert!(ours.iter().all(|token| token.run() == "abc"));
        let environment = format!("A=1\0{VARIABLE}=xyz.7.1.:{}\0B={}\0", ours[0].as_str(), ours[1].as_str());
        let found = tokens(environment.as_bytes(), b"abc").unwrap();
        assert_eq!(found, ours.each_ref().map(|token| Box::from(token.as_str().as_bytes())));
        assert_eq!(tokens(b"A=1\0", b"abc"), None);
    }
}
