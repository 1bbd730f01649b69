//! What the event loop and the handles of a worker share.

pub(crate) mod group;
pub(crate) mod notify_socket;
pub(crate) mod registry;
pub(crate) mod sockets;
pub(crate) mod status;
