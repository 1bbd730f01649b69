//! Pipes between processes, useful without the rest of the library.
//!
//! * [`anonymous`]: one way, local, cheap. One end stays here, the other reaches a child as an inherited descriptor whose
//!   number stands on the child's command line.
//! * [`named`]: both ways, many clients under one [name](named::PipeName), bytes or messages. The server knows who its client
//!   is, and can act with that client's rights.

pub mod anonymous;
pub mod named;

pub(crate) mod mode;
pub(crate) mod timeout;
mod write_error;

pub use self::{
    mode::{Direction, PipeMode},
    timeout::{CancelToken, Cancelled, Timeout},
};
