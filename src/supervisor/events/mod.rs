//! What a supervisor reports, and how it is sent.

pub(crate) mod sink;
pub(crate) mod event;
pub(crate) mod trace;
pub(crate) mod warning;
