//! What is told to `tracing`, if anything: the rest of the house calls this the same with the feature and without it.
//!
//! A subscriber runs where it is told something: on the loop's thread, and a caller's own for calls. None of our locks may be held
//! there, since a subscriber may ask a worker's handle for its process id. A panic of it goes no further than these faces.

#[cfg_attr(not(feature = "tracing"), path = "disabled.rs")]
pub(crate) mod spans;
