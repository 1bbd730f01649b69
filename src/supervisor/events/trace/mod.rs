//! What is told to `tracing`, if anything: the rest of the house calls this the same with the feature and without it.
//!
//! A subscriber runs where it is told something: on the loop's thread, and a caller's own for calls. None of our locks may be held
//! there, since a subscriber may ask a worker's handle for its process id. A panic of it goes no further than these faces.

#[cfg(not(feature = "tracing"))]
mod disabled;
#[cfg(feature = "tracing")]
mod spans;

#[cfg(not(feature = "tracing"))]
pub(crate) use crate::supervisor::events::trace::disabled::{Asked, Trace};
#[cfg(feature = "tracing")]
pub(crate) use crate::supervisor::events::trace::spans::{Asked, Trace};
