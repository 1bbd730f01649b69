//! The control channel: JSON-RPC 2.0 over a named pipe.

pub(crate) mod call;
pub(crate) mod call_router;
pub(crate) mod call_span;
pub(crate) mod connection;
pub(crate) mod direct_call;
pub(crate) mod hello;
pub(crate) mod internal_call;
pub(crate) mod send_line;
pub(crate) mod held_up;
pub(crate) mod unreceived;
pub(crate) mod reader;
pub(crate) mod rpc_socket;
pub(crate) mod server;
