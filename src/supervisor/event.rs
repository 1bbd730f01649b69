//! What a supervisor tells.

use super::WorkerId;
use crate::{
    exit::Exit,
    wire::{
        frame::Fault,
        message::{Charge, Line, Message},
    },
};
use std::{ops::Deref, sync::Arc};

/// Something that happened to a worker, or that it said.
///
/// Of one incarnation, [`Started`](EventKind::Started) is the first event and [`Exited`](EventKind::Exited) the last, and
/// what it wrote comes in the order it was written, stream by stream.
#[derive(Debug)]
#[non_exhaustive]
pub struct Event {
    /// The worker.
    pub worker: WorkerId,
    /// Which of its processes, counted from 1.
    pub incarnation: u32,
    /// What happened.
    pub kind: EventKind,
}

/// What happened.
#[derive(Debug)]
#[non_exhaustive]
pub enum EventKind {
    /// Its process runs its program.
    Started {
        /// The process id.
        pid: u32,
    },
    /// It sent a message.
    Message(Message),
    /// It wrote a line to a standard stream that is captured.
    Line {
        /// To which.
        stream: Stream,
        /// The line, without its end.
        line: Line,
    },
    /// Something came through its message stream that is not a message: cut off by its death, too long, not JSON. The stream
    /// goes on behind it.
    Fault(Box<FaultEvent>),
    /// Its process has ended and is reaped, and everything it wrote has been told.
    Exited(Arc<Exit>),
}

/// A [`Fault`]. It counts against its worker's window until it is dropped, so that a flood of garbage cannot fill the parent.
#[derive(Debug)]
pub struct FaultEvent {
    pub(super) fault: Fault,
    pub(super) _charge: Charge,
}

impl Deref for FaultEvent {
    type Target = Fault;

    fn deref(&self) -> &Fault {
        &self.fault
    }
}

/// A standard stream of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}
