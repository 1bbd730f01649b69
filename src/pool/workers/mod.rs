//! A pool of persistent workers.
//!
//! `policy::dispatch` decides which worker gets which task. [`core`] carries that out: on the thread that submits a task, on the event
//! loop's thread when a worker has answered, so that its next task is sent at once, and on the pool's own thread ([`thread`]) for starts
//! and timers. What tasks look like on the wire is the business of an [`endpoint`].

pub(crate) mod builder;
pub(crate) mod core;
pub(crate) mod endpoint;
pub(crate) mod error;
pub(crate) mod event;
pub(crate) mod map;
pub(crate) mod observer;
pub(crate) mod pool;
pub(crate) mod shared_task;
pub(crate) mod state;
pub(crate) mod task;
pub(crate) mod task_builder;
pub(crate) mod thread;
pub(crate) mod tickets;
