//! The jobserver of GNU make: one limit of concurrent jobs for a whole tree of programs.
//!
//! `make -j3` puts two tokens into a pipe or a FIFO that its descendants find through `MAKEFLAGS`. Each program may run one job of its own
//! without a token, the *implicit* one, and takes a token for every further job; when the job has ended, it returns the token. cargo, ninja,
//! gcc's `-flto=jobserver` and LLVM take part. The protocol is in the manual of make, "Sharing Job Slots with GNU make".
//!
//! [`JobserverClient`] takes tokens from the jobserver that this process was started with. [`JobserverServer`] is the jobserver of workers.
//!
//! The tokens that a process holds are missing for all others if it is killed. Held tokens are therefore in a pipe that the
//! [guard](crate::guard) inherits: when the process has ended, and then the processes of its trees, the guard returns them. A token that
//! was just being returned may be lost; none is created.
//!
//! The crate `jobserver` is compatible with this module, in the same tree of programs. It is not used here, since it has no descriptor to
//! wait for and does not show the tokens that it holds.

pub(crate) mod client;
pub(crate) mod error;
mod held;
pub(crate) mod server;
pub(crate) mod source;

pub use self::{
    client::{JobserverClient, JobserverToken},
    error::JobserverError,
    server::JobserverServer,
};
