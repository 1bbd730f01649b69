//! A stream for those who only know `Read` and `Write`, and cut in two.

use std::{
    io::{self, Read, Write},
    net::Shutdown,
    os::fd::{AsFd, BorrowedFd},
};

use super::stream::Stream;
use crate::pipe::{
    mode::{Direction, PipeMode},
    timeout::{StartedTimeout, Timeout},
};
use crate::sys::{poll::Interest, socket, this_process::own_pid};

/// The reading half of a [`Stream`]. Dropping it makes the other side's writes fail.
#[derive(Debug)]
pub struct ReadHalf(Stream, OwnerProcess);

/// The writing half of a [`Stream`]. Dropping it tells the other side that no more will come.
#[derive(Debug)]
pub struct WriteHalf(Stream, OwnerProcess);

/// The process that has split the stream. Its forks have copies of the half, whose drop must not end the connection for it.
#[derive(Debug)]
struct OwnerProcess(i32);

impl OwnerProcess {
    fn is_current(&self) -> bool {
        self.0 == own_pid()
    }
}

impl Stream {
    /// One half reads and one writes. Dropping the writing half tells the other side that no more will come; dropping the
    /// reading half makes its writes fail. Clones made before are not touched by the split, and feel those ends.
    pub fn split(self) -> (ReadHalf, WriteHalf) {
        (ReadHalf::new(self.clone()), WriteHalf::new(self))
    }
}

impl ReadHalf {
    fn new(stream: Stream) -> Self {
        Self(stream, OwnerProcess(own_pid()))
    }

    /// The whole stream, for what is not reading.
    pub const fn as_stream(&self) -> &Stream {
        &self.0
    }
}

impl WriteHalf {
    fn new(stream: Stream) -> Self {
        Self(stream, OwnerProcess(own_pid()))
    }

    /// The whole stream, for what is not writing.
    pub const fn as_stream(&self) -> &Stream {
        &self.0
    }
}

impl Drop for ReadHalf {
    fn drop(&mut self) {
        if self.1.is_current() {
            // Fails only when the other side is gone already.
            drop(socket::shutdown(self.0.socket(), Shutdown::Read));
        }
    }
}

impl Drop for WriteHalf {
    fn drop(&mut self) {
        if self.1.is_current() {
            // Fails only when the other side is gone already.
            drop(socket::shutdown(self.0.socket(), Shutdown::Write));
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket()
    }
}

impl Stream {
    /// Waits until there is something to read, the end included.
    pub(crate) fn wait_readable(&self) -> io::Result<()> {
        StartedTimeout::now(Timeout::never()).wait(&[(self.socket(), Interest::Readable)]).map(drop)
    }

    /// As `read_timeout` for ever, and in one system call where there is nothing yet: bytes only, and not on a socket that its
    /// owner has made non-blocking.
    fn read_patiently(&self, buf: &mut [u8]) -> io::Result<usize> {
        if self.mode() == PipeMode::Byte && !buf.is_empty() {
            self.check(Direction::reads)?;
            match self.at_reset(socket::receive_waiting(self.socket(), buf), 0) {
                Ok(bytes @ 1..) => return Ok(bytes),
                Err(error) if !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                    return Err(error);
                }
                Ok(_) | Err(_) => {}
            }
        }
        self.read_timeout(buf, Timeout::never())
    }
}

macro_rules! read {
    ($($reader:ty),*) => {$(
        impl Read for $reader {
            fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
                self.as_stream().read_patiently(buf)
            }
        }
    )*};
}

macro_rules! write {
    ($($writer:ty),*) => {$(
        impl Write for $writer {
            fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
                self.as_stream().write_timeout(buf, Timeout::never())
            }

            /// Nothing is kept back here, and nothing is waited for. Fails with
            /// [`BrokenPipe`](io::ErrorKind::BrokenPipe) after a write that did. That the other side has closed is no
            /// failure as long as nothing more is written: it may have read everything.
            fn flush(&mut self) -> io::Result<()> {
                let stream = self.as_stream();
                stream.check(Direction::writes)?;
                if stream.has_failed() { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(()) }
            }
        }
    )*};
}

read!(Stream, &Stream, ReadHalf, &ReadHalf);
write!(Stream, &Stream, WriteHalf, &WriteHalf);
