//! Decisions without effects: facts and the time come in, actions go out. No I/O, no clock, no thread, so that everything between a
//! spawn and its `Exited` event can be tested as a list of inputs with invented times.
//!
//! Contract: the event loop calls `handle` with every fact in the order in which it learned them, and carries out all outputs in
//! order. When the time of `poll_timeout` has come it calls `handle` with `Timeout`, or `timeout`. `poll_timeout` may change with
//! every call. A timeout that comes too early changes nothing.
#![warn(clippy::wildcard_enum_match_arm)]

pub(crate) mod backpressure;
pub(crate) mod call_burst;
pub(crate) mod conflict;
pub(crate) mod descendants;
pub(crate) mod dispatch;
pub(crate) mod group;
pub(crate) mod lifecycle;
pub(crate) mod readiness;
pub(crate) mod readiness_call;
pub(crate) mod receipts;
pub(crate) mod restart;
pub(crate) mod restart_history;
pub(crate) mod schedule;
pub(crate) mod stop;
pub(crate) mod survivors;
pub(crate) mod token_shares;
pub(crate) mod watchdog;
