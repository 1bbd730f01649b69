//! The file descriptors of a child, and the parent's ends of its pipes.

use super::{
    context::OpenMode,
    error::{SpawnError, SpawnStep},
    plan::{FdSource, LaunchPlan},
    stdio::{OutputMode, StdinMode},
    terminal::{NewTerminal, ParentTerminal},
};
use crate::{
    jobserver::server::TokenPipe,
    pipe::anonymous::{
        self,
        ends::{PipeReader, PipeWriter},
    },
    sys::{fd, socket},
};
use std::{
    fs::{File, OpenOptions},
    io,
    net::Shutdown,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
        unix::fs::OpenOptionsExt,
    },
    path::Path,
};

/// The room for what a child sends over a channel and its parent has not read, in bytes.
const CHANNEL_BYTES: usize = 4 << 20;

/// The parent's end of a pipe from `WorkerSpec::input_pipe` or `output_pipe`.
#[derive(Debug)]
pub(crate) enum ParentPipe {
    Reader(PipeReader),
    Writer(PipeWriter),
}

/// The parent's ends of the child's standard streams, or of Node's channel.
#[derive(Debug)]
pub(crate) struct ParentSockets {
    /// What the child reads is written here.
    pub(crate) input: OwnedFd,
    /// What the child writes is read here.
    pub(crate) output: OwnedFd,
}

/// The parent's ends of a child's pipes.
#[derive(Debug, Default)]
pub(crate) struct ParentFds {
    pub(crate) sockets: Option<ParentSockets>,
    pub(crate) stdin: Option<PipeWriter>,
    pub(crate) stdout: Option<PipeReader>,
    pub(crate) stderr: Option<PipeReader>,
    pub(crate) pipes: Vec<(Box<str>, ParentPipe)>,
    pub(crate) terminal: Option<ParentTerminal>,
    /// Returns the tokens when it is dropped.
    pub(crate) tokens: Option<TokenPipe>,
}

impl ParentFds {
    /// Takes the writer of standard input.
    pub(crate) fn take_stdin(&mut self) -> Option<PipeWriter> {
        self.stdin.take().or_else(|| self.terminal.as_mut()?.input.take())
    }

    /// Ends standard input, unless it was taken. Returns false if there was nothing to end.
    pub(crate) fn close_stdin(&mut self) -> bool {
        self.stdin.take().is_some() || self.terminal.as_mut().is_some_and(ParentTerminal::end_input)
    }

    /// Closes the pipes to the child. Pipes from the child stay open, so that their contents can be read. Returns false if there were none.
    pub(crate) fn close_writers(&mut self) -> bool {
        let before = self.pipes.len();
        self.pipes.retain(|(_, end)| matches!(end, ParentPipe::Reader(_)));
        self.close_stdin() || self.pipes.len() < before
    }

    pub(crate) fn take_reader(&mut self, wanted: &str) -> Option<PipeReader> {
        let at = self.pipes.iter().position(|(name, end)| &**name == wanted && matches!(end, ParentPipe::Reader(_)))?;
        match self.pipes.swap_remove(at).1 {
            ParentPipe::Reader(reader) => Some(reader),
            ParentPipe::Writer(_) => None,
        }
    }

    pub(crate) fn take_writer(&mut self, wanted: &str) -> Option<PipeWriter> {
        let at = self.pipes.iter().position(|(name, end)| &**name == wanted && matches!(end, ParentPipe::Writer(_)))?;
        match self.pipes.swap_remove(at).1 {
            ParentPipe::Reader(_) => None,
            ParentPipe::Writer(writer) => Some(writer),
        }
    }
}

/// The child's fds, owned by the parent until the start has returned.
#[derive(Debug)]
pub(super) struct ChildFds {
    pub(super) standard: [ChildStdio; 3],
    /// In the order of `LaunchPlan::extra_fds`.
    pub(super) extra: Vec<OwnedFd>,
}

/// The source of one of a child's standard streams.
#[derive(Debug)]
pub(super) enum ChildStdio {
    /// An fd created or duplicated for the child.
    Own(OwnedFd),
    /// The parent's stream of the same number.
    Inherited(RawFd),
}

impl AsRawFd for ChildStdio {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Own(fd) => fd.as_raw_fd(),
            Self::Inherited(number) => *number,
        }
    }
}

/// Creates all fds of a child before the child exists, so that an error leaves nothing behind.
pub(super) fn create(plan: &LaunchPlan, open_mode: OpenMode) -> Result<(ParentFds, ChildFds), SpawnError> {
    let pipes = |source| SpawnError::failed(plan.program_name(), SpawnStep::Pipes, source);
    let mut ends = ParentFds::default();
    let mut streams = StandardStreams { plan, open_mode, terminal: NewTerminal::open(plan)? };
    let (stdin, stdout) = if plan.stdio_sockets {
        let (sockets, [stdin, stdout]) = stdio_sockets().map_err(pipes)?;
        ends.sockets = Some(sockets);
        (stdin, stdout)
    } else {
        (streams.stdin(&mut ends.stdin)?, streams.output(&plan.stdout, 1, &mut ends.stdout)?)
    };
    let stderr = match plan.stderr {
        OutputMode::ToStdout => ChildStdio::Own(duplicate_stream(&stdout, plan)?),
        _ => streams.output(&plan.stderr, 2, &mut ends.stderr)?,
    };
    ends.terminal = streams.terminal.map(|terminal| terminal.parent);
    let extra = extra(plan, &mut ends)?;
    Ok((ends, ChildFds { standard: [stdin, stdout, stderr], extra }))
}

/// Standard input and output as sockets, which the parent reads and writes without blocking. As in Node's `child_process`, each is a pair of
/// its own: Python's asyncio takes a standard output that becomes readable for closed.
fn stdio_sockets() -> io::Result<(ParentSockets, [ChildStdio; 2])> {
    let [input, stdin] = socket::pair()?;
    let [output, stdout] = socket::pair()?;
    // Like a pipe, standard input cannot be written, and file descriptors cannot be sent over it.
    socket::shutdown(input.as_fd(), Shutdown::Read)?;
    Ok((ParentSockets { input, output }, [ChildStdio::Own(stdin), ChildStdio::Own(stdout)]))
}

/// The fds in addition to the standard streams.
fn extra(plan: &LaunchPlan, ends: &mut ParentFds) -> Result<Vec<OwnedFd>, SpawnError> {
    let pipes = |source| SpawnError::failed(plan.program_name(), SpawnStep::Pipes, source);
    let mut extra = Vec::with_capacity(plan.extra_fds.len());
    let mut token_writer = None;
    for wanted in &plan.extra_fds {
        extra.push(match &wanted.source {
            FdSource::OutputPipe => {
                let (reader, end) = anonymous::from_child().map_err(pipes)?;
                ends.pipes.push((wanted.name.clone(), ParentPipe::Reader(reader)));
                OwnedFd::from(end)
            }
            FdSource::InputPipe => {
                let (writer, end) = anonymous::to_child().map_err(pipes)?;
                ends.pipes.push((wanted.name.clone(), ParentPipe::Writer(writer)));
                OwnedFd::from(end)
            }
            FdSource::Channel => {
                let [parent, child] = socket::pair().map_err(pipes)?;
                // What the child has sent before it exits arrives, as far as it fits.
                drop(socket::set_send_buffer(child.as_fd(), CHANNEL_BYTES));
                // Both directions are watched, which needs two descriptors.
                let output = duplicate(parent.as_fd(), plan)?;
                ends.sockets = Some(ParentSockets { input: parent, output });
                child
            }
            FdSource::Inherited(fd) => duplicate(fd.as_fd(), plan)?,
            FdSource::TokenReader(server) => {
                let (tokens, [reader, writer]) = server.open_pipe().map_err(pipes)?;
                (ends.tokens, token_writer) = (Some(tokens), Some(writer));
                reader
            }
            // It follows its reader in every plan.
            FdSource::TokenWriter => token_writer.take().ok_or_else(|| pipes(io::ErrorKind::NotFound.into()))?,
        });
    }
    Ok(extra)
}

/// Opens the standard streams of a child.
struct StandardStreams<'a> {
    plan: &'a LaunchPlan,
    open_mode: OpenMode,
    terminal: Option<NewTerminal>,
}

impl StandardStreams<'_> {
    fn stdin(&self, end: &mut Option<PipeWriter>) -> Result<ChildStdio, SpawnError> {
        let plan = self.plan;
        let own = match &plan.stdin {
            StdinMode::Inherit => return inherit(0, plan),
            StdinMode::Null => null(plan),
            StdinMode::Pipe => {
                let (writer, child_end) = anonymous::to_child().map_err(|source| self.pipe_failed(source))?;
                *end = Some(writer);
                Ok(child_end.into())
            }
            StdinMode::Pty => self.slave(),
            StdinMode::File(path) => open(plan, path, OpenOptions::new().read(true), self.open_mode),
            StdinMode::Fd(fd) => duplicate(fd.as_fd(), plan),
        };
        own.map(ChildStdio::Own)
    }

    fn output(
        &mut self,
        output: &OutputMode,
        number: RawFd,
        end: &mut Option<PipeReader>,
    ) -> Result<ChildStdio, SpawnError> {
        let plan = self.plan;
        let own = match output {
            // `LaunchPlan::validate` refuses `ToStdout` for standard output.
            OutputMode::Inherit | OutputMode::ToStdout => return inherit(number, plan),
            OutputMode::Null => null(plan),
            OutputMode::Lines | OutputMode::Bytes => {
                let (reader, child_end) = anonymous::from_child().map_err(|source| self.pipe_failed(source))?;
                *end = Some(reader);
                Ok(OwnedFd::from(child_end))
            }
            OutputMode::Pty | OutputMode::PtyLines => {
                // Both outputs can be the terminal: it is read as the first of them.
                *end = self.terminal.as_mut().and_then(|terminal| terminal.reader.take());
                self.slave()
            }
            OutputMode::File(path) => open(plan, path, OpenOptions::new().create(true).append(true), self.open_mode),
            OutputMode::Fd(fd) => duplicate(fd.as_fd(), plan),
        };
        own.map(ChildStdio::Own)
    }

    fn slave(&self) -> Result<OwnedFd, SpawnError> {
        match &self.terminal {
            Some(terminal) => duplicate(terminal.slave.as_fd(), self.plan),
            // `NewTerminal::open` opens one for every plan with such a stream.
            None => null(self.plan),
        }
    }

    fn pipe_failed(&self, source: io::Error) -> SpawnError {
        SpawnError::failed(self.plan.program_name(), SpawnStep::Pipes, source)
    }
}

fn null(plan: &LaunchPlan) -> Result<OwnedFd, SpawnError> {
    open(plan, Path::new("/dev/null"), OpenOptions::new().read(true).write(true), OpenMode::Nonblocking)
}

fn open(plan: &LaunchPlan, path: &Path, options: &mut OpenOptions, open_mode: OpenMode) -> Result<OwnedFd, SpawnError> {
    let refused = |source| SpawnError::failed(plan.program_name(), SpawnStep::Open(path.into()), source);
    let opened = match open_mode {
        OpenMode::Blocking => options.open(path),
        OpenMode::Nonblocking => options.custom_flags(libc::O_NONBLOCK).open(path).and_then(|file| {
            fd::set_blocking(file.as_fd())?;
            Ok(file)
        }),
    };
    let file: File = opened.map_err(refused)?;
    // If the host has closed fd 0, 1 or 2, the file gets that number, and the child's standard streams would overwrite it.
    fd::dup_above(OwnedFd::from(file), 3).map_err(refused)
}

/// The parent's standard stream, or the null device if the parent has closed it.
fn inherit(number: RawFd, plan: &LaunchPlan) -> Result<ChildStdio, SpawnError> {
    if fd::is_open(number) { Ok(ChildStdio::Inherited(number)) } else { null(plan).map(ChildStdio::Own) }
}

/// As [`duplicate`], of a standard stream of the child.
fn duplicate_stream(stream: &ChildStdio, plan: &LaunchPlan) -> Result<OwnedFd, SpawnError> {
    match stream {
        ChildStdio::Own(fd) => duplicate(fd.as_fd(), plan),
        ChildStdio::Inherited(number) => fd::duplicate_number(*number, 3)
            .map_err(|source| SpawnError::failed(plan.program_name(), SpawnStep::Fds, source)),
    }
}

/// A duplicate that is close-on-exec and above the standard numbers.
fn duplicate(fd: BorrowedFd<'_>, plan: &LaunchPlan) -> Result<OwnedFd, SpawnError> {
    fd::duplicate(fd, 3).map_err(|source| SpawnError::failed(plan.program_name(), SpawnStep::Fds, source))
}
