//! What a supervisor tells.

use super::WorkerId;
use crate::{
    exit::Exit,
    wire::{
        frame::Fault,
        message::{Charge, Line, Message},
        request::{Notification, Request},
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
    /// It has connected to its control pipe. What was sent to it before goes out now.
    Connected,
    /// Its control connection is missing, or has ended, while nobody asked for that.
    Disconnected(Disconnected),
    /// It asks something over control, and waits for the answer.
    Request(Request),
    /// It tells something over control.
    Notification(Notification),
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

/// Why a worker has no control connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Disconnected {
    /// It has not connected in the time that its spec gives it.
    NeverConnected,
    /// Its process has ended before it had connected; its exit is about to be told.
    DiedFirst,
    /// It has closed the connection, and lives on.
    Closed,
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
