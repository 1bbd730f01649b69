//! The descriptors of a child: its ends and ours.

use super::{
    context::OpenMode,
    error::{SpawnError, SpawnStep},
    plan::{FdSource, LaunchPlan},
    stdio::{OutputMode, StdinMode},
};
use crate::{
    pipe::anonymous::{
        self,
        ends::{PipeReader, PipeWriter},
    },
    sys::fd,
};
use std::{
    fs::{File, OpenOptions},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
        unix::fs::OpenOptionsExt,
    },
    path::Path,
};

/// Our end of a pipe whose other end a child holds.
#[derive(Debug)]
pub(crate) enum ParentPipe {
    Reader(PipeReader),
    Writer(PipeWriter),
}

/// Our ends of everything that a child was given.
#[derive(Debug, Default)]
pub(crate) struct ParentFds {
    pub(crate) stdin: Option<PipeWriter>,
    pub(crate) stdout: Option<PipeReader>,
    pub(crate) stderr: Option<PipeReader>,
    pub(crate) pipes: Vec<(Box<str>, ParentPipe)>,
}

impl ParentFds {
    /// Whether there is one in which we write.
    pub(crate) fn reach_child(&self) -> bool {
        self.stdin.is_some() || self.pipes.iter().any(|(_, end)| matches!(end, ParentPipe::Writer(_)))
    }

    /// What the child has said stays to be read.
    pub(crate) fn close_writers(&mut self) {
        self.stdin = None;
        self.pipes.retain(|(_, end)| matches!(end, ParentPipe::Reader(_)));
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

/// The child's ends, closed on our side when this is dropped, which every launch does before it returns.
#[derive(Debug)]
pub(super) struct ChildFds {
    pub(super) standard: [ChildStdio; 3],
    /// In the order of the plan's grants.
    pub(super) grants: Vec<OwnedFd>,
}

/// What a child has as one of its standard streams.
#[derive(Debug)]
pub(super) enum ChildStdio {
    /// Made or copied for it.
    Own(OwnedFd),
    /// Our own stream of the same number.
    Inherited(RawFd),
}

impl AsRawFd for ChildStdio {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Own(descriptor) => descriptor.as_raw_fd(),
            Self::Inherited(number) => *number,
        }
    }
}

pub(super) fn make_ends(plan: &LaunchPlan, open_mode: OpenMode) -> Result<(ParentFds, ChildFds), SpawnError> {
    let pipes = |source| SpawnError::failed(plan.program_name(), SpawnStep::Pipes, source);
    let mut ends = ParentFds::default();
    let stdin = match &plan.stdin {
        StdinMode::Null => ChildStdio::Own(null(plan)?),
        StdinMode::Inherit => ours(0, plan)?,
        StdinMode::Pipe => {
            let (writer, end) = anonymous::to_child().map_err(pipes)?;
            ends.stdin = Some(writer);
            ChildStdio::Own(end.into())
        }
        StdinMode::File(path) => ChildStdio::Own(open(plan, path, OpenOptions::new().read(true), open_mode)?),
        StdinMode::Fd(descriptor) => ChildStdio::Own(copy(descriptor.as_fd(), plan)?),
    };
    let stdout = output(plan, &plan.stdout, 1, &mut ends.stdout, open_mode)?;
    let stderr = output(plan, &plan.stderr, 2, &mut ends.stderr, open_mode)?;
    let mut grants = Vec::with_capacity(plan.extra_fds.len());
    for grant in &plan.extra_fds {
        grants.push(match &grant.source {
            FdSource::OutputPipe => {
                let (reader, end) = anonymous::from_child().map_err(pipes)?;
                ends.pipes.push((grant.name.clone(), ParentPipe::Reader(reader)));
                OwnedFd::from(end)
            }
            FdSource::InputPipe => {
                let (writer, end) = anonymous::to_child().map_err(pipes)?;
                ends.pipes.push((grant.name.clone(), ParentPipe::Writer(writer)));
                OwnedFd::from(end)
            }
            FdSource::Inherited(descriptor) => copy(descriptor.as_fd(), plan)?,
        });
    }
    Ok((ends, ChildFds { standard: [stdin, stdout, stderr], grants }))
}

fn output(
    plan: &LaunchPlan,
    output: &OutputMode,
    number: RawFd,
    end: &mut Option<PipeReader>,
    open_mode: OpenMode,
) -> Result<ChildStdio, SpawnError> {
    let own = match output {
        OutputMode::Inherit => return ours(number, plan),
        OutputMode::Null => null(plan),
        OutputMode::Lines => {
            let (reader, child_end) = anonymous::from_child()
                .map_err(|source| SpawnError::failed(plan.program_name(), SpawnStep::Pipes, source))?;
            *end = Some(reader);
            Ok(OwnedFd::from(child_end))
        }
        OutputMode::File(path) => open(plan, path, OpenOptions::new().create(true).append(true), open_mode),
        OutputMode::Fd(descriptor) => copy(descriptor.as_fd(), plan),
    };
    own.map(ChildStdio::Own)
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
    // A file opened by a host that has closed its 0, 1 or 2 gets that number; the child's streams would overwrite it.
    fd::dup_above(OwnedFd::from(file), 3).map_err(refused)
}

/// One of our own standard streams, or the null device where the host has closed it.
fn ours(number: RawFd, plan: &LaunchPlan) -> Result<ChildStdio, SpawnError> {
    if fd::is_open(number) { Ok(ChildStdio::Inherited(number)) } else { null(plan).map(ChildStdio::Own) }
}

/// A copy that we own, above the standard numbers and close-on-exec, so that every end can be treated alike.
fn copy(descriptor: BorrowedFd<'_>, plan: &LaunchPlan) -> Result<OwnedFd, SpawnError> {
    fd::duplicate(descriptor, 3).map_err(|source| SpawnError::failed(plan.program_name(), SpawnStep::Fds, source))
}
