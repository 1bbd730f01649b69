//! What is told to `tracing`, if anything: the rest of the house calls this the same with the feature and without it.
//!
//! A subscriber runs where it is told something: on the loop's thread, and a caller's own for calls. None of our locks may be held
//! there, since a subscriber may ask a worker's handle for its process id. A panic of it goes no further than these faces.

#[cfg(not(feature = "tracing"))]
mod nothing;
#[cfg(feature = "tracing")]
mod record;

#[cfg(not(feature = "tracing"))]
pub(super) use nothing::{Asked, Trace};
#[cfg(feature = "tracing")]
pub(super) use record::{Asked, Trace};
