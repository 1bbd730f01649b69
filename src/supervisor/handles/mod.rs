//! The handles that users hold.

pub(crate) mod batch;
pub(crate) mod group;
pub(crate) mod signals;
pub(crate) mod stop;
pub(crate) mod worker;
