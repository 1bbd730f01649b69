//! What a stream of messages keeps between two calls.

/// What has been read from the socket and not yet by the user.
#[derive(Debug, Default)]
pub(super) struct ReceiveBuffer {
    /// A message that is being read in parts, and how far that has come.
    pub(super) current: Option<(Vec<u8>, usize)>,
    /// A framed message that has not come whole.
    pub(super) frame: Vec<u8>,
    pub(super) ended: bool,
}

/// What is left to be sent of a framed message.
#[derive(Debug, Default)]
pub(super) struct SendBuffer {
    pub(super) rest: Vec<u8>,
    pub(super) sent: usize,
    /// Counts the messages that had to leave a rest here.
    pub(super) number: u64,
}
