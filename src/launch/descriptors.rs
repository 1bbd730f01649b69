//! The descriptors of a child: its ends and ours.

use super::{
    context::Patience,
    error::{SpawnError, SpawnStep},
    plan::{GrantSource, Plan},
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
pub(crate) enum ParentEnd {
    Reader(PipeReader),
    Writer(PipeWriter),
}

/// Our ends of everything that a child was given.
#[derive(Debug, Default)]
pub(crate) struct Ends {
    pub(crate) stdin: Option<PipeWriter>,
    pub(crate) stdout: Option<PipeReader>,
    pub(crate) stderr: Option<PipeReader>,
    pub(crate) pipes: Vec<(Box<str>, ParentEnd)>,
}

impl Ends {
    /// Whether there is one in which we write.
    pub(crate) fn reach_child(&self) -> bool {
        self.stdin.is_some() || self.pipes.iter().any(|(_, end)| matches!(end, ParentEnd::Writer(_)))
    }

    /// What the child has said stays to be read.
    pub(crate) fn close_writers(&mut self) {
        self.stdin = None;
        self.pipes.retain(|(_, end)| matches!(end, ParentEnd::Reader(_)));
    }

    pub(crate) fn take_reader(&mut self, wanted: &str) -> Option<PipeReader> {
        let at = self.pipes.iter().position(|(name, end)| &**name == wanted && matches!(end, ParentEnd::Reader(_)))?;
        match self.pipes.swap_remove(at).1 {
            ParentEnd::Reader(reader) => Some(reader),
            ParentEnd::Writer(_) => None,
        }
    }

    pub(crate) fn take_writer(&mut self, wanted: &str) -> Option<PipeWriter> {
        let at = self.pipes.iter().position(|(name, end)| &**name == wanted && matches!(end, ParentEnd::Writer(_)))?;
        match self.pipes.swap_remove(at).1 {
            ParentEnd::Reader(_) => None,
            ParentEnd::Writer(writer) => Some(writer),
        }
    }
}

/// The child's ends, closed on our side when this is dropped, which every launch does before it returns.
#[derive(Debug)]
pub(super) struct ChildEnds {
    pub(super) standard: [Standard; 3],
    /// In the order of the plan's grants.
    pub(super) grants: Vec<OwnedFd>,
}

/// What a child has as one of its standard streams.
#[derive(Debug)]
pub(super) enum Standard {
    /// Made or copied for it.
    Own(OwnedFd),
    /// Our own stream of the same number.
    Inherited(RawFd),
}

impl AsRawFd for Standard {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Own(descriptor) => descriptor.as_raw_fd(),
            Self::Inherited(number) => *number,
        }
    }
}

pub(super) fn make_ends(plan: &Plan, patience: Patience) -> Result<(Ends, ChildEnds), SpawnError> {
    let pipes = |source| SpawnError::failed(plan.program_name(), SpawnStep::Pipes, source);
    let mut ends = Ends::default();
    let stdin = match &plan.stdin {
        StdinMode::Null => Standard::Own(null(plan)?),
        StdinMode::Inherit => ours(0, plan)?,
        StdinMode::Pipe => {
            let (writer, end) = anonymous::to_child().map_err(pipes)?;
            ends.stdin = Some(writer);
            Standard::Own(end.into())
        }
        StdinMode::File(path) => Standard::Own(open(plan, path, OpenOptions::new().read(true), patience)?),
        StdinMode::Fd(descriptor) => Standard::Own(copy(descriptor.as_fd(), plan)?),
    };
    let stdout = output(plan, &plan.stdout, 1, &mut ends.stdout, patience)?;
    let stderr = output(plan, &plan.stderr, 2, &mut ends.stderr, patience)?;
    let mut grants = Vec::with_capacity(plan.grants.len());
    for grant in &plan.grants {
        grants.push(match &grant.source {
            GrantSource::FromChild => {
                let (reader, end) = anonymous::from_child().map_err(pipes)?;
                ends.pipes.push((grant.name.clone(), ParentEnd::Reader(reader)));
                OwnedFd::from(end)
            }
            GrantSource::ToChild => {
                let (writer, end) = anonymous::to_child().map_err(pipes)?;
                ends.pipes.push((grant.name.clone(), ParentEnd::Writer(writer)));
                OwnedFd::from(end)
            }
            GrantSource::Given(descriptor) => copy(descriptor.as_fd(), plan)?,
        });
    }
    Ok((ends, ChildEnds { standard: [stdin, stdout, stderr], grants }))
}

fn output(
    plan: &Plan,
    output: &OutputMode,
    number: RawFd,
    end: &mut Option<PipeReader>,
    patience: Patience,
) -> Result<Standard, SpawnError> {
    let own = match output {
        OutputMode::Inherit => return ours(number, plan),
        OutputMode::Null => null(plan),
        OutputMode::Lines => {
            let (reader, child_end) = anonymous::from_child()
                .map_err(|source| SpawnError::failed(plan.program_name(), SpawnStep::Pipes, source))?;
            *end = Some(reader);
            Ok(OwnedFd::from(child_end))
        }
        OutputMode::File(path) => open(plan, path, OpenOptions::new().create(true).append(true), patience),
        OutputMode::Fd(descriptor) => copy(descriptor.as_fd(), plan),
    };
    own.map(Standard::Own)
}

fn null(plan: &Plan) -> Result<OwnedFd, SpawnError> {
    open(plan, Path::new("/dev/null"), OpenOptions::new().read(true).write(true), Patience::None)
}

fn open(plan: &Plan, path: &Path, options: &mut OpenOptions, patience: Patience) -> Result<OwnedFd, SpawnError> {
    let refused = |source| SpawnError::failed(plan.program_name(), SpawnStep::Open(path.into()), source);
    let opened = match patience {
        Patience::ForOpens => options.open(path),
        Patience::None => options.custom_flags(libc::O_NONBLOCK).open(path).and_then(|file| {
            fd::set_blocking(file.as_fd())?;
            Ok(file)
        }),
    };
    let file: File = opened.map_err(refused)?;
    // A file opened by a host that has closed its 0, 1 or 2 gets that number; the child's streams would overwrite it.
    fd::lift(OwnedFd::from(file), 3).map_err(refused)
}

/// One of our own standard streams, or the null device where the host has closed it.
fn ours(number: RawFd, plan: &Plan) -> Result<Standard, SpawnError> {
    if fd::is_open(number) { Ok(Standard::Inherited(number)) } else { null(plan).map(Standard::Own) }
}

/// A copy that we own, above the standard numbers and close-on-exec, so that every end can be treated alike.
fn copy(descriptor: BorrowedFd<'_>, plan: &Plan) -> Result<OwnedFd, SpawnError> {
    fd::duplicate(descriptor.as_raw_fd(), 3)
        .map_err(|source| SpawnError::failed(plan.program_name(), SpawnStep::Fds, source))
}
