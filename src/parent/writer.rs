//! Whole lines to the parent, from many threads, each with its own timeout.

use super::transport::ControlOutput;
use crate::{
    pipe::timeout::{StartedTimeout, Timeout},
    wire::send_queue::SendQueue,
};
use std::{
    io, mem,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// The most bytes that are queued for the thread that writes. A parent that reads never lets so much pile up.
const QUEUED_BYTES_MAX: usize = 64 << 10;

/// The writing side of the control connection.
#[derive(Debug)]
pub(super) struct LineWriter {
    state: Mutex<WriterState>,
    is_free: Condvar,
}

#[derive(Debug)]
struct WriterState {
    /// `None` while a thread writes.
    end: Option<WriteEnd>,
    waiting_threads: usize,
    /// Whole lines that the writing thread writes after its own.
    queued: Vec<u8>,
}

#[derive(Debug)]
struct WriteEnd {
    output: ControlOutput,
    /// The rest of a line whose writer timed out. It precedes the next line.
    unfinished: SendQueue,
}

impl LineWriter {
    pub(super) fn new(output: ControlOutput) -> Self {
        let end = Some(WriteEnd { output, unfinished: SendQueue::default() });
        let state = WriterState { end, waiting_threads: 0, queued: Vec::new() };
        Self { state: Mutex::new(state), is_free: Condvar::new() }
    }

    /// Writes a line. After [`TimedOut`](io::ErrorKind::TimedOut) the parent will receive all of it or nothing.
    pub(super) fn write(&self, line: &[u8], timeout: &StartedTimeout<'_>) -> io::Result<()> {
        let mut end = self.take(timeout)?;
        let written = end.write(line, timeout);
        self.put(end);
        written
    }

    /// Writes a line if the parent reads within `patience`; otherwise the line is dropped. While another thread writes, it is
    /// queued for that thread, which need not be blocked: the parent may have read its line, and answered, before the thread
    /// returns from write(2).
    pub(super) fn try_write(&self, line: &[u8], patience: Duration) {
        let mut state = self.lock();
        match state.end.take() {
            Some(mut end) => {
                drop(state);
                end.try_write(line, patience);
                self.put(end);
            }
            None if state.queued.len() < QUEUED_BYTES_MAX => state.queued.extend_from_slice(line),
            None => {}
        }
    }

    fn put(&self, mut end: WriteEnd) {
        let mut state = self.lock();
        while !state.queued.is_empty() {
            let queued = mem::take(&mut state.queued);
            drop(state);
            end.try_write(&queued, Duration::ZERO);
            state = self.lock();
        }
        state.end = Some(end);
        let has_waiting = state.waiting_threads > 0;
        drop(state);
        if has_waiting {
            self.is_free.notify_one();
        }
    }

    fn take(&self, timeout: &StartedTimeout<'_>) -> io::Result<WriteEnd> {
        let mut state = self.lock();
        loop {
            if let Some(end) = state.end.take() {
                return Ok(end);
            }
            let remaining = timeout.remaining();
            if remaining.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            state.waiting_threads += 1;
            state = self.is_free.wait_timeout(state, remaining).unwrap_or_else(PoisonError::into_inner).0;
            state.waiting_threads -= 1;
        }
    }

    fn lock(&self) -> MutexGuard<'_, WriterState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WriteEnd {
    fn try_write(&mut self, lines: &[u8], patience: Duration) {
        // A parent that does not read misses them.
        drop(self.write(lines, &StartedTimeout::now(Timeout::after(patience))));
    }

    fn write(&mut self, line: &[u8], timeout: &StartedTimeout<'_>) -> io::Result<()> {
        let (written, outcome) = self.write_some(self.unfinished.rest(), timeout);
        self.unfinished.advance(written);
        outcome?;
        let (written, outcome) = self.write_some(line, timeout);
        if written > 0 {
            self.unfinished.push(line.get(written..).unwrap_or_default());
        }
        outcome
    }

    /// Returns how many bytes were written, and the error if those were not all.
    fn write_some(&self, bytes: &[u8], timeout: &StartedTimeout<'_>) -> (usize, io::Result<()>) {
        let mut written = 0;
        while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
            match self.output.write(rest, timeout) {
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
    use crate::pipe::named::{connect::ConnectOptions, listener::Listener, name::PipeName, stream::Stream};
    use std::thread;

    const DEADLINE: Duration = Duration::from_secs(30);

    /// A writer, and the parent's end of its connection.
    fn connected() -> (LineWriter, Stream) {
        let directory = tempfile::tempdir().unwrap();
        let name = PipeName::new(directory.path().join("writer")).unwrap();
        let listener = Listener::bind(&name).unwrap();
        let client = ConnectOptions::new().connect(&name, DEADLINE).unwrap();
        (LineWriter::new(ControlOutput::Socket(client.split().1)), listener.accept().unwrap())
    }

    fn read(server: &Stream, bytes: usize) -> String {
        let mut said = Vec::new();
        while said.len() < bytes {
            let mut part = [0; 4096];
            let bytes = server.read_timeout(&mut part, DEADLINE).unwrap();
            assert_ne!(bytes, 0, "the end after {} bytes", said.len());
            said.extend_from_slice(&part[..bytes]);
        }
        String::from_utf8(said).unwrap()
    }

    #[test]
    fn queued_line_is_written_after_the_line_in_progress() {
        let (writer, server) = connected();
        let mut end = writer.take(&StartedTimeout::now(Timeout::never())).unwrap();
        end.write(b"answer\n", &StartedTimeout::now(Timeout::never())).unwrap();
        writer.try_write(b"pong\n", Duration::ZERO);
        writer.put(end);
        writer.try_write(b"more\n", Duration::ZERO);
        let expected = "answer\npong\nmore\n";
        assert_eq!(read(&server, expected.len()), expected);
    }

    #[test]
    fn p15_answers_wait_for_a_parent_that_reads_soon() {
        // More than the socket takes.
        const LINES: usize = 10_000;
        let (writer, server) = connected();
        let (end, ended) = crossbeam_channel::bounded::<()>(0);
        let (writing, reading) = thread::scope(|scope| {
            let writing = scope.spawn(|| {
                (0..LINES).for_each(|_| writer.try_write(b"pong\n", DEADLINE));
                drop(end);
            });
            // Without patience all lines are written or dropped at once.
            assert!(ended.recv_timeout(Duration::from_millis(50)).is_err(), "a time-out or the end");
            let reading = read(&server, LINES * b"pong\n".len());
            (writing.join(), reading)
        });
        assert!(writing.is_ok() && reading == "pong\n".repeat(LINES));
    }
}
