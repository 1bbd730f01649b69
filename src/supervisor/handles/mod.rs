//! The handles for workers and groups.

pub(crate) mod batch;
pub(crate) mod call_set;
pub(crate) mod group;
pub(crate) mod signals;
pub(crate) mod stop;
pub(crate) mod worker;
