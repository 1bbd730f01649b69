//! JSON-RPC 2.0, one object a line. The specification: <https://www.jsonrpc.org/specification>.

pub(crate) mod error; // why a call has no result
pub(crate) mod message; // a line, understood
pub(crate) mod reader; // bytes as messages
pub(crate) mod oversized; // what the begin of a line that is too long tells
pub(crate) mod protocol; // the methods of this library
pub(crate) mod encode; // values as lines
pub(crate) mod address; // where a worker finds its parent
pub(crate) mod pending; // which call waits for which answer
pub(crate) mod endpoint; // what a message means for open calls and requests
pub(crate) mod request; // a request of the other side, to be answered
