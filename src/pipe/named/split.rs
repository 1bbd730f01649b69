//! `Read` and `Write` for streams, and the two halves of a split stream.

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

/// Reading half of a [`Stream`]. Dropping it makes writes of the peer fail.
#[derive(Debug)]
pub struct ReadHalf(Stream, OwnerProcess);

/// Writing half of a [`Stream`]. Dropping it ends the stream for the reading peer.
#[derive(Debug)]
pub struct WriteHalf(Stream, OwnerProcess);

/// The process that split the stream. A forked child has copies of the halves; dropping those must not end the connection.
#[derive(Debug)]
struct OwnerProcess(i32);

impl OwnerProcess {
    fn is_current(&self) -> bool {
        self.0 == own_pid()
    }
}

impl Stream {
    /// Splits the stream into a reading and a writing half. Dropping the writing half ends the stream for the reading peer;
    /// dropping the reading half makes writes of the peer fail. Clones made before the split share the connection, so a
    /// dropped half ends that direction for them too.
    pub fn split(self) -> (ReadHalf, WriteHalf) {
        (ReadHalf::new(self.clone()), WriteHalf::new(self))
    }
}

impl ReadHalf {
    fn new(stream: Stream) -> Self {
        Self(stream, OwnerProcess(own_pid()))
    }

    /// The whole stream, for everything but reading.
    pub const fn as_stream(&self) -> &Stream {
        &self.0
    }
}

impl WriteHalf {
    fn new(stream: Stream) -> Self {
        Self(stream, OwnerProcess(own_pid()))
    }

    /// The whole stream, for everything but writing.
    pub const fn as_stream(&self) -> &Stream {
        &self.0
    }
}

impl Drop for ReadHalf {
    fn drop(&mut self) {
        if self.1.is_current() {
            // Fails only if the peer has closed already.
            drop(socket::shutdown(self.0.socket(), Shutdown::Read));
        }
    }
}

impl Drop for WriteHalf {
    fn drop(&mut self) {
        if self.1.is_current() {
            // Fails only if the peer has closed already.
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
    /// Waits until a read would not block, including at the end of the stream.
    pub(crate) fn wait_readable(&self) -> io::Result<()> {
        StartedTimeout::now(Timeout::never()).wait(&[(self.socket(), Interest::Readable)]).map(drop)
    }

    /// Like `read_timeout` without a timeout, but needs only one system call when no data is available. That works for byte
    /// pipes on a blocking socket; other streams fall back to `read_timeout`.
    fn read_blocking(&self, buf: &mut [u8]) -> io::Result<usize> {
        if self.mode() == PipeMode::Byte && !buf.is_empty() {
            self.check(Direction::reads)?;
            match self.or_end_at_reset(socket::receive_waiting(self.socket(), buf), 0) {
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
                self.as_stream().read_blocking(buf)
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

            /// Does nothing, since writes are not buffered in this process. Returns
            /// [`BrokenPipe`](io::ErrorKind::BrokenPipe) if an earlier write failed with it. A closed peer alone is no error:
            /// it may have read everything.
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
