//! Decisions: facts and the time come in, actions go out. No I/O, no clock, no thread: what happens between a spawn and an
//! `Exited` can be told, and tested, as a list of inputs with invented times.
//!
//! The contract: the driver calls `handle` with every fact in the order it learned them and carries out every output in
//! order; it calls with `Timeout` when the time of `poll_timeout` has come, and `poll_timeout` may have changed after any
//! call. A timeout that comes too early changes nothing.
#![warn(clippy::wildcard_enum_match_arm)]

pub(crate) mod burst;
pub(crate) mod due;
pub(crate) mod group;
pub(crate) mod incarnation;
pub(crate) mod kinship;
pub(crate) mod members;
mod order;
pub(crate) mod readiness;
pub(crate) mod refusal;
pub(crate) mod restart;
pub(crate) mod stop;
mod strategy;
mod turns;
pub(crate) mod watchdog;
pub(crate) mod window;

#[cfg(test)]
mod group_ends;
#[cfg(test)]
mod group_examples;
#[cfg(test)]
mod group_sim;
#[cfg(test)]
mod group_model;

/// Two settings that cannot work together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Conflict {
    pub(crate) settings: [&'static str; 2],
    pub(crate) reason: Box<str>,
}

impl Conflict {
    pub(crate) fn new(settings: [&'static str; 2], reason: impl Into<Box<str>>) -> Self {
        Self { settings, reason: reason.into() }
    }
}
