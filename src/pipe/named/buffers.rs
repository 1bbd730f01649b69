//! State that a message stream keeps between calls.

/// Data read from the socket and not yet returned to the caller.
#[derive(Debug, Default)]
pub(super) struct ReceiveBuffer {
    /// A message that is read in parts, and the number of bytes returned so far.
    pub(super) current: Option<(Vec<u8>, usize)>,
    /// The beginning of an incomplete framed message, with its length prefix.
    pub(super) frame: Vec<u8>,
    pub(super) ended: bool,
}

/// The unsent rest of a framed message.
#[derive(Debug, Default)]
pub(super) struct SendBuffer {
    pub(super) rest: Vec<u8>,
    pub(super) sent: usize,
    /// Number of messages that left a rest here. Identifies the current one.
    pub(super) number: u64,
}
