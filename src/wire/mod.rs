//! Bytes to values and back. Pure: bytes come in as slices, and what they mean goes out as values.
//!
//! Whatever a child writes passes through here, so nothing on this floor may index past an end or overflow.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod fault; // damage in a stream, as a value

pub(crate) mod frame; // where one frame ends; caps

mod delimited; // frames that end with a byte: lines, NUL
mod text; // captured output, of which nothing may be lost

mod prefixed; // frames that begin with their size
mod content_length; // headers `Content-Length: N`
mod length32; // headers of four bytes

pub(crate) mod message; // what a consumer holds: a slice of a shared chunk

#[cfg(test)]
#[expect(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "a test may panic")]
mod tests;

pub(crate) mod outgoing; // bytes that wait to be sent

pub(crate) mod notify; // sd_notify: what a daemon tells of itself

pub(crate) mod rpc; // JSON-RPC 2.0 values

pub(crate) mod calls; // which call waits for which answer; CallError

pub(crate) mod request; // a request of the other side, to be answered
