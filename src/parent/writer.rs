//! Whole lines to the parent, from many threads, each of which waits no longer than it wants.

use crate::{
    pipe::{
        named::split::WriteHalf,
        timeout::{StartedTimeout, Timeout},
    },
    wire::send_queue::SendQueue,
};
use std::{
    io, mem,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// How much is left for whoever writes; more than that waits for no parent that reads.
const LEFT_BYTES: usize = 64 << 10;

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
    /// Whole lines for whoever writes now, to be written when he is done.
    left: Vec<u8>,
}

#[derive(Debug)]
struct Pen {
    half: WriteHalf,
    /// Of a line whose writer had no more time: it goes before the next.
    rest: SendQueue,
}

impl Writer {
    pub(super) fn new(half: WriteHalf) -> Self {
        let pen = Some(Pen { half, rest: SendQueue::default() });
        Self { gate: Mutex::new(Gate { pen, waiting: 0, left: Vec::new() }), is_free: Condvar::new() }
    }

    /// Writes a line. At [`TimedOut`](io::ErrorKind::TimedOut) the other side will see all of it or nothing.
    pub(super) fn write(&self, line: &[u8], begun: &StartedTimeout<'_>) -> io::Result<()> {
        let mut pen = self.take(begun)?;
        let written = pen.write(line, begun);
        self.put(pen);
        written
    }

    /// Writes a line if that goes without waiting. Somebody who writes just now need not be stuck: the parent may have his line
    /// already, and answers it, before he has laid down the pen. So the line is left for him.
    pub(super) fn write_at_once(&self, line: &[u8]) {
        let mut gate = self.lock();
        match gate.pen.take() {
            Some(mut pen) => {
                drop(gate);
                pen.write_at_once(line);
                self.put(pen);
            }
            None if gate.left.len() < LEFT_BYTES => gate.left.extend_from_slice(line),
            None => {}
        }
    }

    fn put(&self, mut pen: Pen) {
        let mut gate = self.lock();
        while !gate.left.is_empty() {
            let left = mem::take(&mut gate.left);
            drop(gate);
            pen.write_at_once(&left);
            gate = self.lock();
        }
        gate.pen = Some(pen);
        let is_wanted = gate.waiting > 0;
        drop(gate);
        if is_wanted {
            self.is_free.notify_one();
        }
    }

    fn take(&self, begun: &StartedTimeout<'_>) -> io::Result<Pen> {
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
    fn write_at_once(&mut self, lines: &[u8]) {
        // A parent that does not read has to do without.
        drop(self.write(lines, &StartedTimeout::now(Timeout::after(Duration::ZERO))));
    }

    fn write(&mut self, line: &[u8], begun: &StartedTimeout<'_>) -> io::Result<()> {
        let (written, outcome) = self.write_some(self.rest.rest(), begun);
        self.rest.advance(written);
        outcome?;
        let (written, outcome) = self.write_some(line, begun);
        if written > 0 {
            self.rest.push(line.get(written..).unwrap_or_default());
        }
        outcome
    }

    /// How much was written, and whether that was all.
    fn write_some(&self, bytes: &[u8], begun: &StartedTimeout<'_>) -> (usize, io::Result<()>) {
        let mut written = 0;
        while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
            match self.half.as_stream().write_timeout(rest, begun.rest()) {
                Ok(bytes) => written += bytes,
                Err(error) => return (written, Err(error)),
            }
        }
        (written, Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipe::named::{connect::ConnectOptions, listener::Listener, name::PipeName};

    const DEADLINE: Duration = Duration::from_secs(30);

    #[test]
    fn what_comes_while_somebody_writes_is_written_when_he_is_done() {
        let directory = tempfile::tempdir().unwrap();
        let name = PipeName::new(directory.path().join("writer")).unwrap();
        let listener = Listener::bind(&name).unwrap();
        let client = ConnectOptions::new().connect(&name, DEADLINE).unwrap();
        let (_reader, half) = client.split();
        let server = listener.accept().unwrap();
        let writer = Writer::new(half);
        let mut pen = writer.take(&StartedTimeout::now(Timeout::never())).unwrap();
        pen.write(b"answer\n", &StartedTimeout::now(Timeout::never())).unwrap();
        writer.write_at_once(b"pong\n");
        writer.put(pen);
        writer.write_at_once(b"more\n");
        let mut said = Vec::new();
        while said.len() < b"answer\npong\nmore\n".len() {
            let mut part = [0; 64];
            let bytes = server.read_timeout(&mut part, DEADLINE).unwrap();
            said.extend_from_slice(&part[..bytes]);
        }
        assert_eq!(String::from_utf8(said).unwrap(), "answer\npong\nmore\n");
    }
}
