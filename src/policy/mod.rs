//! Decisions: facts and the time come in, actions go out. No I/O, no clock, no thread: what happens between a spawn and an
//! `Exited` can be told, and tested, as a list of inputs with invented times.
//!
//! The contract: the driver calls `handle` with every fact in the order it learned them and carries out every output in
//! order; it calls with `Timeout` when the time of `poll_timeout` has come, and `poll_timeout` may have changed after any
//! call. A timeout that comes too early changes nothing.
#![warn(clippy::wildcard_enum_match_arm)]

pub(crate) mod backpressure;
pub(crate) mod call_burst;
pub(crate) mod conflict;
pub(crate) mod descendants;
pub(crate) mod group;
pub(crate) mod lifecycle;
pub(crate) mod readiness;
pub(crate) mod restart;
pub(crate) mod restart_history;
pub(crate) mod stop;
pub(crate) mod survivors;
pub(crate) mod watchdog;
