//! Whole lines to the parent, from many threads, each of which waits no longer than it wants.

use crate::pipe::{Begun, named::WriteHalf};
use std::{
    io,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

/// The writing side of control.
#[derive(Debug)]
pub(super) struct Writer {
    gate: Mutex<Gate>,
    is_free: Condvar,
}

#[derive(Debug)]
struct Gate {
    /// Nothing while somebody writes.
    pen: Option<Pen>,
    waiting: usize,
}

#[derive(Debug)]
struct Pen {
    half: WriteHalf,
    /// Of a line whose writer had no more time: it goes before the next.
    rest: Vec<u8>,
}

impl Writer {
    pub(super) fn new(half: WriteHalf) -> Self {
        let pen = Some(Pen { half, rest: Vec::new() });
        Self { gate: Mutex::new(Gate { pen, waiting: 0 }), is_free: Condvar::new() }
    }

    /// Writes a line. At [`TimedOut`](io::ErrorKind::TimedOut) the other side will see all of it or nothing.
    pub(super) fn write(&self, line: &[u8], begun: &Begun<'_>) -> io::Result<()> {
        let mut pen = self.take(begun)?;
        let written = pen.write(line, begun);
        let mut gate = self.lock();
        gate.pen = Some(pen);
        let is_wanted = gate.waiting > 0;
        drop(gate);
        if is_wanted {
            self.is_free.notify_one();
        }
        written
    }

    fn take(&self, begun: &Begun<'_>) -> io::Result<Pen> {
        let mut gate = self.lock();
        loop {
            if let Some(pen) = gate.pen.take() {
                return Ok(pen);
            }
            let left = begun.remaining();
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            gate.waiting += 1;
            gate = self.is_free.wait_timeout(gate, left).unwrap_or_else(PoisonError::into_inner).0;
            gate.waiting -= 1;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pen {
    fn write(&mut self, line: &[u8], begun: &Begun<'_>) -> io::Result<()> {
        let (written, outcome) = self.write_some(&self.rest, begun);
        self.rest.drain(..written);
        outcome?;
        let (written, outcome) = self.write_some(line, begun);
        if written > 0 {
            self.rest.extend_from_slice(line.get(written..).unwrap_or_default());
        }
        outcome
    }

    /// How much was written, and whether that was all.
    fn write_some(&self, bytes: &[u8], begun: &Begun<'_>) -> (usize, io::Result<()>) {
        let mut written = 0;
        while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
            match self.half.as_stream().write_deadline(rest, begun.rest()) {
                Ok(bytes) => written += bytes,
                Err(error) => return (written, Err(error)),
            }
        }
        (written, Ok(()))
    }
}
