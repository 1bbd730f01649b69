//! Converts bytes to values and back. Pure: slices of bytes in, values out.
//!
//! Everything that a child writes passes through here, so no index and no arithmetic in this module may panic.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

pub(crate) mod framing; // splits streams into frames, with limits

pub(crate) mod credit; // bytes of a flow-control window that are in use

pub(crate) mod decode; // parses JSON, with the offset of errors

pub(crate) mod message; // messages and lines: slices of shared chunks

pub(crate) mod node_channel; // the messages of Node's `child_process.fork`
pub(crate) mod send_queue; // bytes that wait to be sent

pub(crate) mod line_queue; // lines that wait to be sent

pub(crate) mod make_flags; // options of `make`, and the jobserver in them

pub(crate) mod sd_notify; // parses sd_notify(3) datagrams

pub(crate) mod jsonrpc; // JSON-RPC 2.0
