//! The handles for workers and groups.

pub(crate) mod attachment;
pub(crate) mod batch;
pub(crate) mod call_set;
#[cfg(feature = "async")]
pub(crate) mod event_stream;
#[cfg(feature = "async")]
pub(crate) mod futures;
pub(crate) mod group;
pub(crate) mod jobs;
pub(crate) mod serve;
pub(crate) mod signals;
pub(crate) mod spawn;
pub(crate) mod stop;
pub(crate) mod worker;
