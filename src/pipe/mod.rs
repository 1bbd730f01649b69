//! Pipes between processes. They work without a supervisor.
//!
//! | | [`anonymous`] | [`named`] |
//! |---|---|---|
//! | direction | one way | both ways |
//! | peers | parent and child | one server, many clients |
//! | found by | an inherited file descriptor, whose number is an argument of the child | a [`PipeName`](named::PipeName) |
//! | carries | bytes | bytes or messages |
//! | peer identity | | user, groups, process; the server can act with the rights of the client |
//!
//! Blocking calls take a [`Timeout`]; a [`CancelToken`] ends them from another thread.

pub mod anonymous;
pub mod named;

pub(crate) mod mode;
pub(crate) mod timeout;
mod write_error;

pub use self::{
    mode::{Direction, PipeMode},
    timeout::{CancelToken, Cancelled, Timeout},
};
