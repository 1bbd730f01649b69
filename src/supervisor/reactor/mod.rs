//! What the event loop waits for.

pub(crate) mod arena;
pub(crate) mod timers;
pub(crate) mod token;
