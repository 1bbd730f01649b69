//! Spans and events of `tracing`. Both versions of the module have the same interface; without the feature it does nothing.
//!
//! A subscriber runs on the thread of the event: the event loop, and for calls the caller. No lock of the supervisor may be held there,
//! since a subscriber may ask a worker's handle for its process id. Panics of a subscriber are caught here.

#[cfg_attr(not(feature = "tracing"), path = "disabled.rs")]
pub(crate) mod spans;
