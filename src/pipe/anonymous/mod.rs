//! Anonymous pipes: one way, local, and given to a child as an inherited descriptor.
//!
//! A pipe has two ends. [`to_child`] and [`from_child`] make a pair of which one end stays here and the other, the
//! [`ChildEnd`], goes to a child process. It goes there under its number: the child is told "your pipe is descriptor 17" on its
//! command line, and makes an end of that [`Handle`] by [`PipeReader::inherit`] or [`PipeWriter::inherit`].
//!
//! # A first pipe
//!
//! Both ends may also stay in one process, for two threads:
//!
//! ```
//! use pipewright::pipe::anonymous;
//! use std::io::{Read, Write};
//!
//! let (mut reader, child_end) = anonymous::from_child()?;
//! let mut writer = child_end.into_writer()?;
//! let thread = std::thread::spawn(move || writer.write_all(b"hello")); // the writer is dropped at its end ...
//! let mut text = String::new();
//! reader.read_to_string(&mut text)?;                                   // ... so this comes to an end
//! assert_eq!(text, "hello");
//! # thread.join().unwrap()?;
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! # To another process, the short way
//!
//! A [`WorkerSpec`](crate::WorkerSpec) makes the pipe, passes its end on, and writes the number on the command line; the child holds
//! this end and nothing else. [`spawn_unsupervised`](crate::WorkerSpec::spawn_unsupervised) starts one process; a [`Supervisor`](crate::Supervisor) any number.
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
//! # To a child of your own `Command`
//!
//! [`ChildEnd::pass_to`] lets a [`Command`] carry the end, and tells the number to write on its command line. Any program that
//! takes a descriptor number will do; this one is a shell.
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
//! drop(command); // it holds the child's end: without this line the next one waits for ever
//!
//! let mut text = String::new();
//! reader.read_to_string(&mut text)?;
//! assert_eq!(text, "hello\n");
//! assert!(child.wait()?.success());
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! A child written in Rust says, with the handle's text from its arguments:
//!
//! ```no_run
//! # use pipewright::pipe::anonymous::PipeWriter;
//! # let argument = "17";
//! let writer = PipeWriter::inherit(argument.parse()?)?;
//! # Ok::<(), pipewright::pipe::anonymous::HandleError>(())
//! ```
//!
//! and one in C#, since the handle's text is what .NET expects:
//!
//! ```csharp
//! using var pipe = new AnonymousPipeClientStream(PipeDirection.Out, args[0]);
//! using var writer = new StreamWriter(pipe);
//! writer.WriteLine("hello");
//! ```
//!
//! # What ends, and when
//!
//! A reader comes to the end of the file when *every* copy of the writing end is closed, in every process; a writer gets
//! [`BrokenPipe`](io::ErrorKind::BrokenPipe) when every copy of the reading end is. So both ends are close-on-exec from the
//! first moment and stay so: no child gets one that was not given to it, however many threads spawn at once.
//!
//! # What blocks
//!
//! Reading blocks while the pipe is empty, writing while it is full (64 KiB unless
//! [`set_capacity`](PipeWriter::set_capacity) was called). [`PipeReader::read_timeout`] and
//! [`PipeWriter::write_all_timeout`] give up after a [`Duration`](std::time::Duration), or when another thread turns on a
//! [`CancelToken`](crate::pipe::CancelToken). None of them sets `O_NONBLOCK`: that flag is shared with everyone who holds a copy of the end, also
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

/// Ends that a `Command` passes on stand here or higher, out of the way of the small numbers that programs and shell scripts
/// like to fix by hand (`3>log`).
const FIRST_PASSED_NUMBER: RawFd = 10;

/// A pipe that we write to and the child reads from.
///
/// # Errors
///
/// When the process or the machine is out of descriptors.
#[doc(alias = "AnonymousPipeServerStream")]
pub fn to_child() -> io::Result<(PipeWriter, ChildEnd)> {
    let (reader, writer) = pair()?;
    Ok((os_pipe::PipeWriter::from(writer).into(), ChildEnd::new(reader, Direction::In)))
}

/// A pipe that the child writes to and we read from.
///
/// # Errors
///
/// When the process or the machine is out of descriptors.
#[doc(alias = "AnonymousPipeServerStream")]
pub fn from_child() -> io::Result<(PipeReader, ChildEnd)> {
    let (reader, writer) = pair()?;
    Ok((os_pipe::PipeReader::from(reader).into(), ChildEnd::new(writer, Direction::Out)))
}

/// In a host that runs with 0, 1 or 2 closed, the kernel gives those numbers to the next pipe, and the first `println!` would
/// go into it. So ends that land there move up.
fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = os_pipe::pipe()?;
    Ok((fd::dup_above(reader.into(), FIRST_PRIVATE_NUMBER)?, fd::dup_above(writer.into(), FIRST_PRIVATE_NUMBER)?))
}

/// The end of a pipe that is meant for a child. Dropping it closes it.
#[doc(alias = "ClientSafePipeHandle")]
#[must_use = "dropping it closes the child's end"]
pub struct ChildEnd {
    fd: OwnedFd,
    claim: Claim,
    direction: Direction,
}

shown_as!(ChildEnd, |end| { number: end.handle().number(), direction: end.direction });

impl ChildEnd {
    fn new(fd: OwnedFd, direction: Direction) -> Self {
        let claim = Claim::of(&fd);
        Self { fd, claim, direction }
    }

    /// The number of this end *in this process*. The end remains owned by `self`, so nobody here can claim the number.
    pub fn handle(&self) -> Handle {
        Handle::of(&self.fd)
    }

    /// What the child does with it: [`Direction::In`] for [`to_child`], [`Direction::Out`] for [`from_child`].
    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// Lets the children of `command` inherit this end, and only this end; returns its number in them.
    ///
    /// The number is 10 or higher. Every child that `command` spawns gets the end.
    ///
    /// **Drop the `Command` after spawning.** It owns the end from now on. As long as it lives, a reader here never comes to the
    /// end of the file, and a writer here never learns that the child is gone.
    ///
    /// The child clears close-on-exec itself, after the fork; in this process the flag is never cleared. std can then no longer
    /// use its cheapest way to spawn, so this costs more the more memory this process has.
    ///
    /// # Errors
    ///
    /// When the process is out of descriptors. The end is closed then.
    #[doc(alias = "GetClientHandleAsString")]
    pub fn pass_to(self, command: &mut Command) -> io::Result<Handle> {
        // The entry of the old number goes with `self.claim`. The new number needs none: nobody here can reach the descriptor
        // inside the `Command`, and being close-on-exec it is never taken for an inherited one.
        let fd = fd::dup_above(self.fd, FIRST_PASSED_NUMBER)?;
        let handle = Handle::of(&fd);
        // Never `fd_mappings`: a number asked for there can be the one on which std's child reports that exec failed, which
        // then lands in the pipe while `spawn` says that all went well.
        command.preserved_fds(vec![fd]);
        Ok(handle)
    }

    /// Uses the end in this process, to read.
    ///
    /// # Errors
    ///
    /// [`HandleError::WrongDirection`] for an end of [`from_child`], which is closed then.
    pub fn into_reader(self) -> Result<PipeReader, HandleError> {
        self.expect_direction(Direction::In)?;
        Ok(PipeReader::new(self.fd, self.claim))
    }

    /// Uses the end in this process, to write.
    ///
    /// # Errors
    ///
    /// [`HandleError::WrongDirection`] for an end of [`to_child`], which is closed then.
    pub fn into_writer(self) -> Result<PipeWriter, HandleError> {
        self.expect_direction(Direction::Out)?;
        Ok(PipeWriter::new(self.fd, self.claim))
    }

    /// Gives up the end for whoever claims its number in this process, by [`PipeReader::inherit`] or [`PipeWriter::inherit`].
    ///
    /// If nobody does, it stays open until the process ends. It stays close-on-exec: children do not get it.
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
    /// Its number can never be claimed as a handle in this process again: this library no longer sees when it is closed, and two
    /// owners of one number would be unsound.
    fn from(end: ChildEnd) -> Self {
        end.claim.keep();
        end.fd
    }
}
