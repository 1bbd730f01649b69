//! Bytes to values and back. Pure: bytes come in as slices, and what they mean goes out as values.
//!
//! Whatever a child writes passes through here, so nothing on this floor may index past an end or overflow.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

pub(crate) mod framing; // where one frame ends; caps

pub(crate) mod credit; // bytes of a window that are out

pub(crate) mod decode; // parsing JSON, with the place of what is wrong

pub(crate) mod message; // what a consumer holds: a slice of a shared chunk

pub(crate) mod send_queue; // bytes that wait to be sent

pub(crate) mod sd_notify; // sd_notify: what a daemon tells of itself

pub(crate) mod jsonrpc; // JSON-RPC 2.0
