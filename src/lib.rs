//! Supervisor of worker processes: pipes, messages, lifecycle.

// The floors, bottom to top: a module imports only from those that stand above it in this list.
mod exit; // how a process ended: facts that every floor speaks of

mod sys; // the kernel, one facility a file; the only unsafe

mod wire; // bytes to values and back; pure

mod policy; // decisions: facts and the time in, actions out; pure

pub mod pipe; // the two kinds of pipes; useful alone

mod parent; // the worker's side; links nothing of what stands below

mod launch; // a recipe becomes a process

mod supervisor; // the parent's side

pub use exit::{Exit, ExitStatus, Leak, Usage};
pub use launch::{Group, Input, Limit, Output, Pass, Process, SpawnError, SpawnStep, SpecError};
pub use parent::{Buffered, Parent, ParentError, SendError};
pub use supervisor::{Builder, Event, EventKind, FaultEvent, Stream, Supervisor, Worker, WorkerId, WorkerSpec};
pub use wire::{
    frame::{Fault, FaultKind, Framing},
    message::{DecodeError, Line, Message},
};
