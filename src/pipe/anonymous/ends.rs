//! The reading and the writing end of an anonymous pipe.
#![expect(single_use_lifetimes, reason = "`impl Into<Timeout<'_>>` is not stable Rust yet")]

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    process::Stdio,
    time::Duration,
};

use super::handle::{Claim, Handle, HandleError, StandardStreams, claim, inspect};
use crate::pipe::{
    mode::Direction,
    timeout::{Cancelled, StartedTimeout, Timeout, WakeReason},
    write_error::{WriteError, write_all},
};
use crate::sys::{
    fd::{self, FileKind},
    fifo,
    poll::Interest,
    retry, write,
};

/// First and longest pause between two checks of [`PipeWriter::wait_drained`]: the kernel sends no notification when a pipe is
/// empty.
const DRAIN_PAUSE_MIN: Duration = Duration::from_millis(1);
const DRAIN_PAUSE_MAX: Duration = Duration::from_millis(20);

/// Reading end of a pipe. Closed on drop.
///
/// [`Read`] is also implemented for `&PipeReader`: one read is one system call, so threads can share the end.
pub struct PipeReader {
    end: os_pipe::PipeReader,
    claim: Claim,
}

impl_debug!(PipeReader, |reader| { number: reader.end.as_raw_fd() });

impl PipeReader {
    /// Takes ownership of a reading end inherited from the parent process.
    ///
    /// The end becomes close-on-exec, so that no child of this process holds the pipe open. A socket and a pipe opened for both
    /// reading and writing are accepted too; the latter has no end of file while this end is open.
    ///
    /// # Errors
    ///
    /// [`HandleError`]; the descriptor was not changed. A handle can be claimed once. After this end was dropped, its number can
    /// be claimed again only if [`ChildEnd::into_handle`](super::ChildEnd::into_handle) released a new end under it.
    #[doc(alias = "AnonymousPipeClientStream")]
    pub fn inherit(handle: Handle) -> Result<Self, HandleError> {
        claim(handle, Direction::In, StandardStreams::Refused).map(|(fd, claim)| Self::new(fd, claim))
    }

    /// Like [`inherit`](Self::inherit), but also accepts the numbers 0, 1 and 2.
    ///
    /// A standard stream is moved to another number and replaced by `/dev/null`. `std::io::stdin` then returns what it has buffered
    /// and the end of file, and children inherit `/dev/null` instead of the pipe.
    ///
    /// # Errors
    ///
    /// Same as `inherit`.
    pub fn inherit_standard(handle: Handle) -> Result<Self, HandleError> {
        claim(handle, Direction::In, StandardStreams::Allowed).map(|(fd, claim)| Self::new(fd, claim))
    }

    /// Duplicates the file descriptor, close-on-exec. The end is closed with its last duplicate.
    ///
    /// # Errors
    ///
    /// If the process is out of file descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.end.try_clone().map(Self::from)
    }

    /// Reads at most `buf.len()` bytes. Blocks until there is at least one byte, for at most `timeout`: a [`Duration`], a
    /// [`CancelToken`](crate::pipe::CancelToken), or both. Returns 0 at the end of file.
    ///
    /// No data is lost when the timeout expires or the call is cancelled. Threads or processes that share the end must not read
    /// at the same time: if another reader takes the data between the wait and the read, this call blocks beyond its timeout.
    ///
    /// # Errors
    ///
    /// [`TimedOut`](io::ErrorKind::TimedOut); [`Cancelled`] inside an error of kind `Other`; errors of read(2).
    pub fn read_timeout<'a>(&self, buf: &mut [u8], timeout: impl Into<Timeout<'a>>) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        let timeout = StartedTimeout::now(timeout.into());
        loop {
            match timeout.wait_for(self.as_fd(), Interest::Readable)? {
                WakeReason::Ready(_) => match retry(|| self.read_once(buf)) {
                    // `O_NONBLOCK` is set and another reader took the data.
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    done => return done,
                },
                WakeReason::TimedOut => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "timed out: no data to read"));
                }
                WakeReason::Cancelled => return Err(Cancelled.into()),
            }
        }
    }

    /// Calls read(2) once. Returns [`WouldBlock`](io::ErrorKind::WouldBlock) if `O_NONBLOCK` is set and there is no data.
    pub(crate) fn read_once(&self, buf: &mut [u8]) -> io::Result<usize> {
        match (&self.end).read(buf) {
            // Our side of a pseudo-terminal that no process has open. Pipes and sockets do not return this error.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(0),
            read => read,
        }
    }

    /// Number of bytes that can be read without blocking.
    ///
    /// # Errors
    ///
    /// None known for a pipe or a socket.
    pub fn bytes_available(&self) -> io::Result<usize> {
        fifo::unread(self.as_fd())
    }

    /// Capacity of the pipe in bytes, the same at both ends.
    ///
    /// # Errors
    ///
    /// If the end is a socket.
    #[doc(alias = "InBufferSize")]
    pub fn capacity(&self) -> io::Result<usize> {
        fifo::capacity(self.as_fd())
    }

    /// Requests a capacity of `bytes`, and returns the actual one: the kernel rounds up to a power of two of pages.
    ///
    /// # Errors
    ///
    /// [`PermissionDenied`](io::ErrorKind::PermissionDenied) above `/proc/sys/fs/pipe-max-size` (usually 1 MiB) without
    /// `CAP_SYS_RESOURCE`; [`ResourceBusy`](io::ErrorKind::ResourceBusy) if more than `bytes` are unread; an error if the end is a
    /// socket.
    pub fn set_capacity(&self, bytes: usize) -> io::Result<usize> {
        fifo::set_capacity(self.as_fd(), bytes)
    }
}

/// Writing end of a pipe. Closed on drop; data written before can still be read.
///
/// [`Write`] is also implemented for `&PipeWriter`. Writes of at most 4096 bytes are atomic, also among threads and processes that
/// share the end; longer ones may interleave. Writes are not buffered in this process, so `flush` does nothing.
pub struct PipeWriter {
    end: os_pipe::PipeWriter,
    claim: Claim,
}

impl_debug!(PipeWriter, |writer| { number: writer.end.as_raw_fd() });

impl PipeWriter {
    /// Takes ownership of a writing end inherited from the parent process.
    ///
    /// The end becomes close-on-exec, so that no child of this process holds the pipe open. A socket and a pipe opened for both
    /// reading and writing are accepted too; writes to the latter never fail with `BrokenPipe` while this end is open.
    ///
    /// # Errors
    ///
    /// [`HandleError`]; the descriptor was not changed. A handle can be claimed once. After this end was dropped, its number can
    /// be claimed again only if [`ChildEnd::into_handle`](super::ChildEnd::into_handle) released a new end under it.
    #[doc(alias = "AnonymousPipeClientStream")]
    pub fn inherit(handle: Handle) -> Result<Self, HandleError> {
        claim(handle, Direction::Out, StandardStreams::Refused).map(|(fd, claim)| Self::new(fd, claim))
    }

    /// Like [`inherit`](Self::inherit), but also accepts the numbers 0, 1 and 2.
    ///
    /// A standard stream is moved to another number and replaced by `/dev/null`. Later prints are discarded instead of mixing with
    /// the data of the pipe, and children inherit `/dev/null` instead of the pipe. Flush earlier prints first.
    ///
    /// # Errors
    ///
    /// Same as `inherit`.
    pub fn inherit_standard(handle: Handle) -> Result<Self, HandleError> {
        claim(handle, Direction::Out, StandardStreams::Allowed).map(|(fd, claim)| Self::new(fd, claim))
    }

    /// Duplicates the file descriptor, close-on-exec. The end is closed with its last duplicate.
    ///
    /// # Errors
    ///
    /// If the process is out of file descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.end.try_clone().map(Self::from)
    }

    /// Writes all of `buf`, in pieces of at most 4096 bytes. `timeout` bounds the whole call: a [`Duration`], a
    /// [`CancelToken`](crate::pipe::CancelToken), or both.
    ///
    /// With other writers on the same pipe the call can exceed its timeout: if another writer takes the free space between the
    /// wait and the write, the write blocks until the reader reads.
    ///
    /// # Errors
    ///
    /// [`WriteError`] has the number of bytes written. It converts into an [`io::Error`] of kind
    /// [`TimedOut`](io::ErrorKind::TimedOut) or the kind of the failed write(2).
    pub fn write_all_timeout<'a>(&self, buf: &[u8], timeout: impl Into<Timeout<'a>>) -> Result<(), WriteError> {
        let timeout = StartedTimeout::now(timeout.into());
        write_all(buf, |rest| {
            let piece = rest.get(..fifo::ATOMIC_WRITE_BYTES).unwrap_or(rest);
            loop {
                timeout.wait_for(self.as_fd(), Interest::Writable)?.into_io()?;
                match retry(|| write::write(self.as_fd(), piece)) {
                    // `O_NONBLOCK` is set and another writer took the space.
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    done => return done,
                }
            }
        })
    }

    /// Number of bytes written and not yet read. 0 means that the reader has read everything, not that it has processed it.
    ///
    /// For a socket the number counts kernel memory, so only 0 is meaningful.
    ///
    /// # Errors
    ///
    /// None known for a pipe or a socket.
    pub fn bytes_unread(&self) -> io::Result<usize> {
        match fd::file_kind(self.end.as_raw_fd())? {
            FileKind::Socket => fifo::unread_by_peer(self.as_fd()),
            _ => fifo::unread(self.as_fd()),
        }
    }

    /// Waits until the reader has read everything.
    ///
    /// # Errors
    ///
    /// [`BrokenPipe`](io::ErrorKind::BrokenPipe) at once if the reader closes its end and leaves data unread;
    /// [`TimedOut`](io::ErrorKind::TimedOut); [`Cancelled`] inside an error of kind `Other`. A socket discards unread data when its
    /// reader closes, so it counts as drained then.
    #[doc(alias = "WaitForPipeDrain")]
    pub fn wait_drained<'a>(&self, timeout: impl Into<Timeout<'a>>) -> io::Result<()> {
        let timeout = StartedTimeout::now(timeout.into());
        let mut pause = DRAIN_PAUSE_MIN;
        loop {
            if timeout.is_cancelled()? {
                return Err(Cancelled.into());
            }
            let is_reader_gone = self.is_broken();
            // Must come second: a reader that reads the last byte and closes in between has drained the pipe.
            let unread = self.bytes_unread()?;
            if unread == 0 {
                return Ok(());
            }
            if is_reader_gone {
                let text = format!("reader closed with {unread} bytes unread");
                return Err(io::Error::new(io::ErrorKind::BrokenPipe, text));
            }
            if timeout.has_passed() {
                return Err(io::Error::new(io::ErrorKind::TimedOut, format!("timed out: {unread} bytes unread")));
            }
            timeout.wait_at_most(&[(self.as_fd(), Interest::Hangup)], pause)?;
            pause = (pause * 2).min(DRAIN_PAUSE_MAX);
        }
    }

    /// Returns whether all readers have closed, so that a write would fail. Never blocks.
    #[doc(alias = "IsConnected")]
    pub fn is_broken(&self) -> bool {
        // Fails only for lack of memory, which says nothing about the reader.
        self.wait_broken(Duration::ZERO).unwrap_or(false)
    }

    /// Waits until all readers have closed. Returns false if the timeout expires first.
    ///
    /// # Errors
    ///
    /// [`Cancelled`] inside an error of kind `Other`; an error if the kernel is out of memory.
    pub fn wait_broken<'a>(&self, timeout: impl Into<Timeout<'a>>) -> io::Result<bool> {
        StartedTimeout::now(timeout.into()).wait_hangup(self.as_fd())
    }

    /// Capacity of the pipe in bytes, the same at both ends.
    ///
    /// # Errors
    ///
    /// If the end is a socket.
    #[doc(alias = "OutBufferSize")]
    pub fn capacity(&self) -> io::Result<usize> {
        fifo::capacity(self.as_fd())
    }

    /// Requests a capacity of `bytes`, and returns the actual one: the kernel rounds up to a power of two of pages.
    ///
    /// # Errors
    ///
    /// Same as [`PipeReader::set_capacity`].
    pub fn set_capacity(&self, bytes: usize) -> io::Result<usize> {
        fifo::set_capacity(self.as_fd(), bytes)
    }
}

/// Conversions from and to types of the standard library, for both ends.
macro_rules! descriptor {
    ($end:ident, $direction:expr) => {
        impl $end {
            pub(super) fn new(fd: OwnedFd, claim: Claim) -> Self {
                Self { end: fd.into(), claim }
            }
        }

        impl AsFd for $end {
            fn as_fd(&self) -> BorrowedFd<'_> {
                self.end.as_fd()
            }
        }

        impl From<os_pipe::$end> for $end {
            fn from(end: os_pipe::$end) -> Self {
                Self { end, claim: Claim::none() }
            }
        }

        impl From<std::io::$end> for $end {
            fn from(end: std::io::$end) -> Self {
                Self::new(end.into(), Claim::none())
            }
        }

        impl TryFrom<OwnedFd> for $end {
            type Error = HandleError;

            /// Accepts a pipe or a socket open for this direction; other descriptors are closed. The close-on-exec flag is not
            /// changed.
            fn try_from(descriptor: OwnedFd) -> Result<Self, HandleError> {
                inspect(descriptor.as_raw_fd(), $direction)?;
                let claim = Claim::of(&descriptor);
                Ok(Self::new(descriptor, claim))
            }
        }

        impl TryFrom<File> for $end {
            type Error = HandleError;

            /// Same as for an `OwnedFd`: accepts an open FIFO, but no regular file.
            fn try_from(file: File) -> Result<Self, HandleError> {
                OwnedFd::from(file).try_into()
            }
        }

        impl From<$end> for std::io::$end {
            fn from(end: $end) -> Self {
                OwnedFd::from(end).into()
            }
        }

        impl From<$end> for File {
            fn from(end: $end) -> Self {
                OwnedFd::from(end).into()
            }
        }

        impl From<$end> for OwnedFd {
            /// The number of an inherited end can never be claimed again, as with the conversion of [`ChildEnd`](super::ChildEnd).
            fn from(end: $end) -> Self {
                end.claim.keep();
                end.end.into()
            }
        }

        impl From<$end> for Stdio {
            fn from(end: $end) -> Self {
                Self::from(OwnedFd::from(end))
            }
        }
    };
}

descriptor!(PipeReader, Direction::In);
descriptor!(PipeWriter, Direction::Out);

/// Repeats a call until it does not return `WouldBlock`. Another process that shares the end may have set `O_NONBLOCK`, which
/// applies to all of them.
fn retry_until_ready<T>(
    end: BorrowedFd<'_>,
    interest: Interest,
    mut call: impl FnMut() -> io::Result<T>,
) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                StartedTimeout::now(Timeout::never()).wait_for(end, interest)?;
            }
            done => return done,
        }
    }
}

/// A read also blocks if another process that shares the end has set `O_NONBLOCK`.
impl Read for PipeReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        (&*self).read(buf)
    }
}

impl Read for &PipeReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        retry_until_ready(self.as_fd(), Interest::Readable, || self.read_once(buf))
    }
}

/// A write without readers fails with [`BrokenPipe`](io::ErrorKind::BrokenPipe). SIGPIPE is not raised, even if the signal has
/// its default action. A write also blocks if another process that shares the end has set `O_NONBLOCK`.
impl Write for PipeWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        (&*self).write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Write for &PipeWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        retry_until_ready(self.as_fd(), Interest::Writable, || write::write(self.as_fd(), buf))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
