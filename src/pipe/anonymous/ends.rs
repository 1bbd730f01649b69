//! The two ends, as the program that holds one uses it.
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

/// How long [`PipeWriter::wait_drained`] waits before it asks again, at first and at most: the kernel tells nobody when a pipe
/// runs empty.
const DRAIN_PAUSE_MIN: Duration = Duration::from_millis(1);
const DRAIN_PAUSE_MAX: Duration = Duration::from_millis(20);

/// The reading end of a pipe. Dropping it closes it.
///
/// [`Read`] is there for `&PipeReader` too: one read is one call of the kernel, and threads may share the end.
pub struct PipeReader {
    end: os_pipe::PipeReader,
    claim: Claim,
}

shown_as!(PipeReader, |reader| { number: reader.end.as_raw_fd() });

impl PipeReader {
    /// Takes over the reading end that the parent passed on under this number.
    ///
    /// It becomes close-on-exec at once, so that no grandchild holds the pipe open. A socket will do, and a pipe opened for
    /// reading *and* writing too; such a pipe never ends as long as this end itself is open.
    ///
    /// # Errors
    ///
    /// Says what was found instead; the descriptor is left as it was. A number can be claimed once, and again only after this
    /// end is dropped and somebody gave the number away anew.
    #[doc(alias = "AnonymousPipeClientStream")]
    pub fn inherit(handle: Handle) -> Result<Self, HandleError> {
        claim(handle, Direction::In, StandardStreams::Refused).map(|(fd, claim)| Self::new(fd, claim))
    }

    /// As [`inherit`](Self::inherit), and takes 0, 1 and 2 as well.
    ///
    /// A pipe that is a standard stream moves to another number, and `/dev/null` takes its place: `std::io::stdin` is at its end
    /// from then on (after what it has buffered), and children inherit that instead of the pipe.
    ///
    /// # Errors
    ///
    /// As for `inherit`.
    pub fn inherit_standard(handle: Handle) -> Result<Self, HandleError> {
        claim(handle, Direction::In, StandardStreams::Allowed).map(|(fd, claim)| Self::new(fd, claim))
    }

    /// One more descriptor of the same end, close-on-exec. The end is closed when all of them are.
    ///
    /// # Errors
    ///
    /// When the process is out of descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.end.try_clone().map(Self::from)
    }

    /// Reads at most `buf.len()` bytes and waits for the first one as `wait` says: a [`Duration`], a
    /// [`CancelToken`](crate::pipe::CancelToken), or both. 0 is the end of the file.
    ///
    /// No byte is lost when the time is up or the call is cancelled. Only one of those who share the end may read at a time: if another one takes the
    /// bytes between the wait and the read, this call blocks until more come.
    ///
    /// # Errors
    ///
    /// [`TimedOut`](io::ErrorKind::TimedOut); [`Cancelled`] inside an error of the kind `Other`; what `read` fails with.
    pub fn read_timeout<'a>(&self, buf: &mut [u8], timeout: impl Into<Timeout<'a>>) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        let timeout = StartedTimeout::now(timeout.into());
        loop {
            match timeout.wait_for(self.as_fd(), Interest::Readable)? {
                WakeReason::Ready(_) => match retry(|| self.read_once(buf)) {
                    // `O_NONBLOCK` is set, and another reader took the bytes.
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    done => return done,
                },
                WakeReason::TimedOut => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "nothing to read within the timeout"));
                }
                WakeReason::Cancelled => return Err(Cancelled.into()),
            }
        }
    }

    /// Reads once. [`WouldBlock`](io::ErrorKind::WouldBlock) where `O_NONBLOCK` is set and there is nothing.
    pub(crate) fn read_once(&self, buf: &mut [u8]) -> io::Result<usize> {
        (&self.end).read(buf)
    }

    /// Bytes that were written and not yet read.
    ///
    /// # Errors
    ///
    /// None is known for a pipe or a socket.
    pub fn bytes_available(&self) -> io::Result<usize> {
        fifo::unread(self.as_fd())
    }

    /// How many bytes the pipe holds at most. The same at both ends.
    ///
    /// # Errors
    ///
    /// When the end is a socket.
    #[doc(alias = "InBufferSize")]
    pub fn capacity(&self) -> io::Result<usize> {
        fifo::capacity(self.as_fd())
    }

    /// Makes the pipe hold at least `bytes`, and returns how many it holds now: the kernel rounds up to pages and powers of two.
    ///
    /// # Errors
    ///
    /// [`PermissionDenied`](io::ErrorKind::PermissionDenied) above `/proc/sys/fs/pipe-max-size` (1 MiB as a rule) without
    /// `CAP_SYS_RESOURCE`; [`ResourceBusy`](io::ErrorKind::ResourceBusy) when more than `bytes` are unread; when the end is a
    /// socket.
    pub fn set_capacity(&self, bytes: usize) -> io::Result<usize> {
        fifo::set_capacity(self.as_fd(), bytes)
    }
}

/// The writing end of a pipe. Dropping it closes it, and what was written can still be read.
///
/// [`Write`] is there for `&PipeWriter` too. Writes of at most 4096 bytes arrive in one piece, also when threads or processes
/// share the end; longer ones may be mixed with others'. Nothing is buffered here: `flush` has nothing to do.
pub struct PipeWriter {
    end: os_pipe::PipeWriter,
    claim: Claim,
}

shown_as!(PipeWriter, |writer| { number: writer.end.as_raw_fd() });

impl PipeWriter {
    /// Takes over the writing end that the parent passed on under this number.
    ///
    /// It becomes close-on-exec at once, so that no grandchild holds the pipe open. A socket will do, and a pipe opened for
    /// reading *and* writing too; such a pipe never breaks as long as this end itself is open.
    ///
    /// # Errors
    ///
    /// Says what was found instead; the descriptor is left as it was. A number can be claimed once, and again only after this
    /// end is dropped and somebody gave the number away anew.
    #[doc(alias = "AnonymousPipeClientStream")]
    pub fn inherit(handle: Handle) -> Result<Self, HandleError> {
        claim(handle, Direction::Out, StandardStreams::Refused).map(|(fd, claim)| Self::new(fd, claim))
    }

    /// As [`inherit`](Self::inherit), and takes 0, 1 and 2 as well.
    ///
    /// A pipe that is a standard stream moves to another number, and `/dev/null` takes its place: what is printed there from
    /// then on is lost instead of standing between the bytes of the pipe, and children inherit `/dev/null` instead of the pipe.
    /// Flush what was printed before.
    ///
    /// # Errors
    ///
    /// As for `inherit`.
    pub fn inherit_standard(handle: Handle) -> Result<Self, HandleError> {
        claim(handle, Direction::Out, StandardStreams::Allowed).map(|(fd, claim)| Self::new(fd, claim))
    }

    /// One more descriptor of the same end, close-on-exec. The end is closed when all of them are.
    ///
    /// # Errors
    ///
    /// When the process is out of descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.end.try_clone().map(Self::from)
    }

    /// Writes all of `buf`, in pieces of at most 4096 bytes, and gives up when `wait` ends: a [`Duration`] for all of it, a
    /// [`CancelToken`](crate::pipe::CancelToken), or both.
    ///
    /// It keeps to its time as long as nobody else writes to the same pipe: another writer can fill the room that was there a
    /// moment ago, and this call then waits until somebody reads.
    ///
    /// # Errors
    ///
    /// [`WriteError`] says how many bytes are on their way. It turns into an [`io::Error`] of the kind
    /// [`TimedOut`](io::ErrorKind::TimedOut) or whatever `write` failed with.
    pub fn write_all_timeout<'a>(&self, buf: &[u8], timeout: impl Into<Timeout<'a>>) -> Result<(), WriteError> {
        let timeout = StartedTimeout::now(timeout.into());
        write_all(buf, |rest| {
            let piece = rest.get(..fifo::ATOMIC_WRITE_BYTES).unwrap_or(rest);
            loop {
                timeout.wait_for(self.as_fd(), Interest::Writable)?.into_io()?;
                match retry(|| write::write(self.as_fd(), piece)) {
                    // `O_NONBLOCK` is set, and another writer took the room.
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    done => return done,
                }
            }
        })
    }

    /// Bytes that were written and not yet read. 0 says that the other side has read all, not that it has dealt with it.
    ///
    /// For a socket it is kernel memory instead of bytes, so that only 0 has a meaning.
    ///
    /// # Errors
    ///
    /// None is known for a pipe or a socket.
    pub fn bytes_unread(&self) -> io::Result<usize> {
        match fd::file_kind(self.end.as_raw_fd())? {
            FileKind::Socket => fifo::unread_by_peer(self.as_fd()),
            _ => fifo::unread(self.as_fd()),
        }
    }

    /// Waits until the other side has read everything.
    ///
    /// # Errors
    ///
    /// [`BrokenPipe`](io::ErrorKind::BrokenPipe) at once when the reader goes and leaves bytes behind;
    /// [`TimedOut`](io::ErrorKind::TimedOut); [`Cancelled`] inside an error of the kind `Other`. (A socket forgets unread bytes
    /// with its reader, so there it counts as drained.)
    #[doc(alias = "WaitForPipeDrain")]
    pub fn wait_drained<'a>(&self, timeout: impl Into<Timeout<'a>>) -> io::Result<()> {
        let timeout = StartedTimeout::now(timeout.into());
        let mut pause = DRAIN_PAUSE_MIN;
        loop {
            if timeout.is_cancelled()? {
                return Err(Cancelled.into());
            }
            let reader_gone = self.is_broken();
            // Asked second: a reader that took the last byte and closed in between has drained the pipe.
            let unread = self.bytes_unread()?;
            if unread == 0 {
                return Ok(());
            }
            if reader_gone {
                let text = format!("the reader went and left {unread} bytes unread");
                return Err(io::Error::new(io::ErrorKind::BrokenPipe, text));
            }
            if timeout.has_passed() {
                return Err(io::Error::new(io::ErrorKind::TimedOut, format!("{unread} bytes are still unread")));
            }
            timeout.wait_at_most(&[(self.as_fd(), Interest::Hangup)], pause)?;
            pause = (pause * 2).min(DRAIN_PAUSE_MAX);
        }
    }

    /// Whether every reader is gone, so that a write can only fail. Never blocks.
    #[doc(alias = "IsConnected")]
    pub fn is_broken(&self) -> bool {
        // The kernel cannot fail here except for want of memory, which says nothing about the reader.
        self.wait_broken(Duration::ZERO).unwrap_or(false)
    }

    /// Waits until every reader is gone, and returns true; false when the timeout has passed first.
    ///
    /// # Errors
    ///
    /// [`Cancelled`] inside an error of the kind `Other`; when the kernel is out of memory.
    pub fn wait_broken<'a>(&self, timeout: impl Into<Timeout<'a>>) -> io::Result<bool> {
        match StartedTimeout::now(timeout.into()).wait_for(self.as_fd(), Interest::Hangup)? {
            WakeReason::Ready(_) => Ok(true),
            WakeReason::TimedOut => Ok(false),
            WakeReason::Cancelled => Err(Cancelled.into()),
        }
    }

    /// How many bytes the pipe holds at most. The same at both ends.
    ///
    /// # Errors
    ///
    /// When the end is a socket.
    #[doc(alias = "OutBufferSize")]
    pub fn capacity(&self) -> io::Result<usize> {
        fifo::capacity(self.as_fd())
    }

    /// Makes the pipe hold at least `bytes`, and returns how many it holds now: the kernel rounds up to pages and powers of two.
    ///
    /// # Errors
    ///
    /// As for [`PipeReader::set_capacity`].
    pub fn set_capacity(&self, bytes: usize) -> io::Result<usize> {
        fifo::set_capacity(self.as_fd(), bytes)
    }
}

/// What both ends are, seen from the standard library.
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

            /// Takes a pipe or a socket that is open for this direction; anything else is closed. Whether children inherit it stays
            /// as it is.
            fn try_from(descriptor: OwnedFd) -> Result<Self, HandleError> {
                inspect(descriptor.as_raw_fd(), $direction)?;
                let claim = Claim::of(&descriptor);
                Ok(Self::new(descriptor, claim))
            }
        }

        impl TryFrom<File> for $end {
            type Error = HandleError;

            /// As for an `OwnedFd`: an opened FIFO will do, a regular file will not.
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
            /// The number of an inherited end can never be claimed again: see [`ChildEnd`](super::ChildEnd)'s conversion.
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

/// Repeats a call on an end that another process has set to `O_NONBLOCK`, which all that share the pipe then have: these faces
/// wait all the same.
fn waiting<T>(end: BorrowedFd<'_>, interest: Interest, mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                StartedTimeout::now(Timeout::never()).wait_for(end, interest)?;
            }
            done => return done,
        }
    }
}

/// A read waits also where `O_NONBLOCK` is set: another process that shares the pipe can have set it.
impl Read for PipeReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        (&*self).read(buf)
    }
}

impl Read for &PipeReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        waiting(self.as_fd(), Interest::Readable, || self.read_once(buf))
    }
}

/// A write whose readers are all gone fails with [`BrokenPipe`](io::ErrorKind::BrokenPipe). No SIGPIPE is raised, also in a
/// program that has that signal at its default. It waits also where `O_NONBLOCK` is set: another process that shares the pipe
/// can have set it.
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
        waiting(self.as_fd(), Interest::Writable, || write::write(self.as_fd(), buf))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
