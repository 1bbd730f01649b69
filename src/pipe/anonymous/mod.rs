//! Anonymous pipes between a process and its child, for one direction.
//!
//! [`to_child`] and [`from_child`] create a pipe. One end stays in this process; the other, a [`ChildEnd`], is inherited by a
//! child. The child gets the number of the file descriptor as an argument, its [`Handle`], and opens its end with
//! [`PipeReader::inherit`] or [`PipeWriter::inherit`].
//!
//! # Within one process
//!
//! Both ends may also stay in one process, for two threads:
//!
//! ```
//! use pipewright::pipe::anonymous;
//! use std::io::{Read, Write};
//!
//! let (mut reader, child_end) = anonymous::from_child()?;
//! let mut writer = child_end.into_writer()?;
//! let thread = std::thread::spawn(move || writer.write_all(b"hello")); // drops the writer at its end,
//! let mut text = String::new();
//! reader.read_to_string(&mut text)?;                                   // which ends the file here
//! assert_eq!(text, "hello");
//! # thread.join().unwrap()?;
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! # To a child, with a `WorkerSpec`
//!
//! A [`WorkerSpec`](crate::WorkerSpec) creates the pipe, lets the child inherit its end and no other descriptor, and puts the
//! number into the arguments. [`spawn_unsupervised`](crate::WorkerSpec::spawn_unsupervised) starts one process; a
//! [`Supervisor`](crate::Supervisor) starts any number.
//!
//! ```
//! use pipewright::{Pass, WorkerSpec};
//! use std::io::Read;
//!
//! let spec = WorkerSpec::new("bash").args(["-c", "echo hello >&$1", "bash"]).output_pipe("results", Pass::arg("{}"));
//! let mut process = spec.spawn_unsupervised()?;
//! let mut text = String::new();
//! process.take_reader("results").expect("it is in the spec").read_to_string(&mut text)?;
//! assert_eq!(text, "hello\n");
//! assert!(process.wait()?.success());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # To a child, with `Command`
//!
//! [`ChildEnd::pass_to`] adds the end to a [`Command`] and returns the handle for its arguments. The child can be any program that
//! accepts a file descriptor number, such as a shell:
//!
//! ```
//! use pipewright::pipe::anonymous;
//! use std::{io::Read, process::Command};
//!
//! let (mut reader, child_end) = anonymous::from_child()?;
//! let mut command = Command::new("bash");
//! let handle = child_end.pass_to(&mut command)?;
//! command.arg("-c").arg(format!("echo hello >&{handle}"));
//! let mut child = command.spawn()?;
//! drop(command); // it owns the end of the child: without this line `read_to_string` never returns
//!
//! let mut text = String::new();
//! reader.read_to_string(&mut text)?;
//! assert_eq!(text, "hello\n");
//! assert!(child.wait()?.success());
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! A child written in Rust opens the end with the handle from its arguments:
//!
//! ```no_run
//! # use pipewright::pipe::anonymous::PipeWriter;
//! # let argument = "17";
//! let writer = PipeWriter::inherit(argument.parse()?)?;
//! # Ok::<(), pipewright::pipe::anonymous::HandleError>(())
//! ```
//!
//! .NET accepts the same text. In C#:
//!
//! ```csharp
//! using var pipe = new AnonymousPipeClientStream(PipeDirection.Out, args[0]);
//! using var writer = new StreamWriter(pipe);
//! writer.WriteLine("hello");
//! ```
//!
//! # End of file
//!
//! A reader gets the end of file when *all* copies of the writing end are closed, in all processes. A writer gets
//! [`BrokenPipe`](io::ErrorKind::BrokenPipe) when all copies of the reading end are closed. Both ends are created close-on-exec,
//! so a child inherits only ends that were passed to it, even if threads spawn concurrently.
//!
//! # Blocking
//!
//! Reading blocks while the pipe is empty, writing while it is full (64 KiB unless
//! [`set_capacity`](PipeWriter::set_capacity) was called). [`PipeReader::read_timeout`] and
//! [`PipeWriter::write_all_timeout`] return an error after a [`Duration`](std::time::Duration), or when another thread cancels a
//! [`CancelToken`](crate::pipe::CancelToken). None of them sets `O_NONBLOCK`, since all copies of an end share that flag, also
//! in other processes.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd},
    process::Command,
};

use command_fds::CommandFdExt;

use self::handle::{Claim, FIRST_PRIVATE_NUMBER};
pub use self::{
    ends::{PipeReader, PipeWriter},
    handle::{Handle, HandleError},
};
use super::mode::Direction;
pub use super::write_error::WriteError;
use crate::sys::fd;

pub(crate) mod ends;
pub(crate) mod handle;

/// Lowest number of an end passed by a `Command`: small numbers are often used explicitly by programs and shell scripts (`3>log`).
const FIRST_PASSED_NUMBER: RawFd = 10;

/// Creates a pipe from this process to a child.
///
/// # Errors
///
/// If the process or the machine is out of file descriptors.
#[doc(alias = "AnonymousPipeServerStream")]
pub fn to_child() -> io::Result<(PipeWriter, ChildEnd)> {
    let (reader, writer) = pair()?;
    Ok((os_pipe::PipeWriter::from(writer).into(), ChildEnd::new(reader, Direction::In)))
}

/// Creates a pipe from a child to this process.
///
/// # Errors
///
/// If the process or the machine is out of file descriptors.
#[doc(alias = "AnonymousPipeServerStream")]
pub fn from_child() -> io::Result<(PipeReader, ChildEnd)> {
    let (reader, writer) = pair()?;
    Ok((os_pipe::PipeReader::from(reader).into(), ChildEnd::new(writer, Direction::Out)))
}

/// Creates both ends with numbers above 2. In a process that runs with 0, 1 or 2 closed, the kernel would assign those numbers, and
/// `println!` would write into the pipe.
fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = os_pipe::pipe()?;
    Ok((fd::dup_above(reader.into(), FIRST_PRIVATE_NUMBER)?, fd::dup_above(writer.into(), FIRST_PRIVATE_NUMBER)?))
}

/// End of a pipe for a child. Closed on drop.
#[doc(alias = "ClientSafePipeHandle")]
#[must_use = "dropping it closes the end of the child"]
pub struct ChildEnd {
    fd: OwnedFd,
    claim: Claim,
    direction: Direction,
}

impl_debug!(ChildEnd, |end| { number: end.handle().number(), direction: end.direction });

impl ChildEnd {
    fn new(fd: OwnedFd, direction: Direction) -> Self {
        let claim = Claim::of(&fd);
        Self { fd, claim, direction }
    }

    /// Number of this end *in this process*. `self` still owns the end, so the handle cannot be claimed in this process.
    pub fn handle(&self) -> Handle {
        Handle::of(&self.fd)
    }

    /// Direction of the child: [`Direction::In`] for [`to_child`], [`Direction::Out`] for [`from_child`].
    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// Lets every child of `command` inherit this end, and no other end of this library. Returns its handle in the child, a number
    /// from 10 on.
    ///
    /// **Drop the `Command` after spawning.** It owns the end. While it exists, a reader in this process gets no end of file, and a
    /// writer does not detect that the child has exited.
    ///
    /// The child clears the close-on-exec flag after the fork; it is never cleared in this process. Therefore std cannot use
    /// `posix_spawn`, and spawning takes longer the more memory this process uses.
    ///
    /// # Errors
    ///
    /// If the process is out of file descriptors. The end is closed.
    #[doc(alias = "GetClientHandleAsString")]
    pub fn pass_to(self, command: &mut Command) -> io::Result<Handle> {
        // Dropping `self.claim` removes the entry of the old number. The new number needs none: the descriptor inside the `Command`
        // is not reachable, and being close-on-exec it is never taken for an inherited one.
        let fd = fd::dup_above(self.fd, FIRST_PASSED_NUMBER)?;
        let handle = Handle::of(&fd);
        // `fd_mappings` must not be used: its target can be the descriptor on which std's child reports a failed exec. The report
        // would go into the pipe, and `spawn` would return success.
        command.preserved_fds(vec![fd]);
        Ok(handle)
    }

    /// Converts the end into a reader in this process.
    ///
    /// # Errors
    ///
    /// [`HandleError::WrongDirection`] for an end of [`from_child`], which is closed.
    pub fn into_reader(self) -> Result<PipeReader, HandleError> {
        self.expect_direction(Direction::In)?;
        Ok(PipeReader::new(self.fd, self.claim))
    }

    /// Converts the end into a writer in this process.
    ///
    /// # Errors
    ///
    /// [`HandleError::WrongDirection`] for an end of [`to_child`], which is closed.
    pub fn into_writer(self) -> Result<PipeWriter, HandleError> {
        self.expect_direction(Direction::Out)?;
        Ok(PipeWriter::new(self.fd, self.claim))
    }

    /// Releases the end, to be claimed in this process with [`PipeReader::inherit`] or [`PipeWriter::inherit`].
    ///
    /// Unless it is claimed, it stays open until the process exits. It stays close-on-exec, so children do not inherit it.
    #[must_use = "the number is the only way back to the end, which stays open"]
    pub fn into_handle(self) -> Handle {
        self.claim.release(self.fd)
    }

    fn expect_direction(&self, wanted: Direction) -> Result<(), HandleError> {
        if self.direction == wanted {
            return Ok(());
        }
        Err(HandleError::WrongDirection { number: self.handle().number(), wanted, found: self.direction })
    }
}

impl AsFd for ChildEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<ChildEnd> for OwnedFd {
    /// Its number can never again be claimed as a handle in this process: this library no longer knows when it is closed, and two
    /// owners of one number would be unsound.
    fn from(end: ChildEnd) -> Self {
        end.claim.keep();
        end.fd
    }
}
