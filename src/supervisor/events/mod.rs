//! The events of a supervisor, and how they are sent.

pub(crate) mod notification_failure;
pub(crate) mod observer;
pub(crate) mod sink;
pub(crate) mod event;
pub(crate) mod trace;
pub(crate) mod warning;
