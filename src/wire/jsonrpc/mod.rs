//! JSON-RPC 2.0, one object a line. The specification: <https://www.jsonrpc.org/specification>.

pub(crate) mod error; // errors of calls
pub(crate) mod message; // one line, parsed
pub(crate) mod reader; // bytes in, messages out
pub(crate) mod oversized; // the id of a line beyond the limit
pub(crate) mod protocol; // the methods of this library
pub(crate) mod encode; // values to lines
pub(crate) mod hello; // the first line of a worker and its answer
pub(crate) mod address; // the address of a control pipe
pub(crate) mod dialect; // cancellation and pings of other protocols
pub(crate) mod stdio_protocol; // JSON-RPC on standard streams
pub(crate) mod batch_reply; // the answers to a batch
pub(crate) mod pending; // open calls and requests
pub(crate) mod completion; // the outcome of one call
#[cfg(all(test, feature = "async"))]
pub(crate) mod test_wakers; // tasks that count their wake-ups
pub(crate) mod endpoint; // the state machine of one side of a connection
#[cfg(test)]
mod simulation; // two endpoints under any interleaving
pub(crate) mod request; // requests of the peer
