//! Starts processes from a plan, either directly through clone(2) or through a user's own `Command`.

mod jobserver;
pub(crate) mod limits;
pub(crate) mod stdio;
pub(crate) mod kept_output;
pub(crate) mod pass;
pub(crate) mod plan;
pub(crate) mod error;

pub(crate) mod spawn;
pub(crate) mod process;
pub(crate) mod output;
pub(crate) mod child;
pub(crate) mod context;
pub(crate) mod descriptors;
pub(crate) mod terminal;
mod direct;
mod command;
mod environment;
mod search;
pub(crate) mod retry;

pub(crate) mod tunnel;
