//! What the control connection runs over: a socket, or standard input and output in a worker that is tried by hand.

use crate::pipe::{
    named::split::{ReadHalf, WriteHalf},
    timeout::{StartedTimeout, Timeout},
};
use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::fd::AsFd as _,
    sync::Arc,
    time::Duration,
};

/// The reading side.
#[derive(Debug)]
pub(super) enum ControlInput {
    Socket(ReadHalf),
    /// A duplicate of standard input, without the buffer of [`io::Stdin`], which would hide data from poll(2).
    Standard(Arc<File>),
}

/// The writing side.
#[derive(Debug)]
pub(super) enum ControlOutput {
    Socket(WriteHalf),
    Standard,
}

impl ControlInput {
    pub(super) fn standard() -> io::Result<Self> {
        Ok(Self::Standard(Arc::new(io::stdin().as_fd().try_clone_to_owned()?.into())))
    }

    pub(super) fn read(&mut self, buffer: &mut [u8], timeout: Timeout<'_>) -> io::Result<usize> {
        match self {
            Self::Socket(half) if timeout.is_never() => half.read(buffer),
            Self::Socket(half) => half.as_stream().read_timeout(buffer, timeout),
            Self::Standard(file) => loop {
                StartedTimeout::now(timeout).wait_readable(file.as_fd())?;
                match file.read(buffer) {
                    // Another process that shares the terminal or pipe was faster.
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    read => return read,
                }
            },
        }
    }

    /// What completes the line that the input ended in. A typed line, or the last one of a file, may lack its line feed; a parent that
    /// exits within a line did not send all of it.
    pub(super) fn end_of_line(&self) -> &'static [u8] {
        match self {
            Self::Socket(_) => b"",
            Self::Standard(_) => b"\n",
        }
    }

    /// Returns a function for another thread that waits until a read would not block.
    pub(super) fn watch(&self) -> Box<dyn Fn() -> io::Result<()> + Send> {
        match self {
            Self::Socket(half) => {
                let stream = half.as_stream().clone();
                Box::new(move || stream.wait_readable())
            }
            Self::Standard(file) => {
                let file = Arc::clone(file);
                Box::new(move || StartedTimeout::now(Timeout::never()).wait_readable(file.as_fd()))
            }
        }
    }
}

impl ControlOutput {
    /// Writes a part of `bytes`, which are whole lines or the rest of one. Standard output takes all of it, and blocks for as long as
    /// prints of the program would.
    pub(super) fn write(&self, bytes: &[u8], timeout: &StartedTimeout<'_>) -> io::Result<usize> {
        match self {
            Self::Socket(half) => half.as_stream().write_timeout(bytes, timeout.rest()),
            Self::Standard => write_to_standard_output(bytes).map(|()| bytes.len()),
        }
    }
}

/// Writes whole lines through the lock and the buffer of [`io::Stdout`], so that they and the program's own prints do not mix.
pub(super) fn write_to_standard_output(lines: &[u8]) -> io::Result<()> {
    let mut output = io::stdout().lock();
    output.write_all(lines)?;
    output.flush()
}

/// Waits until nothing reads standard output any more. Returns false if `timeout` passes first.
pub(super) fn wait_output_closed(timeout: Duration) -> io::Result<bool> {
    StartedTimeout::now(timeout.into()).wait_hangup(io::stdout().as_fd())
}
