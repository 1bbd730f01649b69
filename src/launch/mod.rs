//! A recipe becomes a process, in one of two ways: straight through clone(2), or through a user's own `Command`.

mod command;
mod direct;
mod error;
mod environment;
mod limits;
mod pass;
mod plan;
mod process;
mod search;
mod tunnel;

use crate::pipe::anonymous::{PipeReader, PipeWriter};
use std::{
    ffi::OsString,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd},
    thread,
    time::Duration,
};

pub use error::{SpawnError, SpawnStep, SpecError};
pub use limits::{IoPriority, Limit, TreeLimit};
pub use pass::Pass;
pub(crate) use plan::{Argument, EnvironmentChange, GrantSource, Plan, Program};
pub use plan::{Group, Input, Output};
pub use process::Process;
pub(crate) use process::{Child, Rest, exit_status, is_own_child, usage};
pub use tunnel::{Tunnel, TunnelBuilder, TunnelError};

/// The name under which the pipe of the messages is granted.
pub(crate) const MESSAGES: &str = "messages";

/// How long a start may wait for what is not ours: to open a FIFO waits for its other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// Its caller waits, and nobody else.
    ForOpens,
    /// Others would wait too.
    None,
}

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
struct ChildEnds {
    standard: [Standard; 3],
    /// In the order of the plan's grants.
    grants: Vec<OwnedFd>,
}

/// What a child has as one of its standard streams.
#[derive(Debug)]
enum Standard {
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

/// A process and our ends of its pipes.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) child: Child,
    pub(crate) ends: Ends,
    /// It was born in the cgroup that was wanted.
    pub(crate) in_cgroup: bool,
}

/// What differs from one start of a plan to the next.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Moment<'a> {
    /// What the child gets when the calling thread ends.
    pub(crate) death_signal: Option<i32>,
    /// The path of the control pipe, for the arguments; empty where there is none.
    pub(crate) control_path: &'a str,
    /// Its path with the worker's key, for the environment.
    pub(crate) control: &'a str,
    /// To set beside the plan's variables, whatever those say.
    pub(crate) variables: &'a [(&'static str, OsString)],
    pub(crate) birthplace: Birthplace<'a>,
}

/// The cgroup that a process is born in, by its directory; only the fast way can do that.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) enum Birthplace<'a> {
    /// Ours.
    #[default]
    Here,
    /// This one, or ours where that fails.
    Rather(BorrowedFd<'a>),
    /// This one, which has limits, or none. `SpawnStep::Cgroup` tells when it fails.
    Only(BorrowedFd<'a>),
}

impl<'a> Birthplace<'a> {
    fn directory(self) -> Option<BorrowedFd<'a>> {
        match self {
            Self::Here => None,
            Self::Rather(directory) | Self::Only(directory) => Some(directory),
        }
    }
}

/// Everything that a child is to hold, before there is a child.
#[derive(Debug)]
pub(crate) struct Prepared {
    ends: Ends,
    child_ends: ChildEnds,
}

/// Makes the pipes and opens the files. To open a FIFO can block: where there is patience for that it is done by whoever wants the
/// worker, and not by a thread that others wait for.
pub(crate) fn prepare(plan: &Plan, patience: Patience) -> Result<Prepared, SpawnError> {
    let (ends, child_ends) = direct::make_ends(plan, patience)?;
    Ok(Prepared { ends, child_ends })
}

/// Starts one process of a plan that was checked. On an error there is no process and no descriptor left. Waits while the program's
/// file is busy, up to the sum of [`busy_pause`].
pub(crate) fn launch(plan: &Plan, prepared: Prepared, moment: &Moment<'_>) -> Result<Launched, SpawnError> {
    let mut prepared = Some(prepared);
    for attempt in 0.. {
        match launch_once(plan, &mut prepared, moment) {
            Err(error)
                if error.is_busy()
                    && let Some(pause) = busy_pause(attempt) =>
            {
                pause_for(pause);
            }
            done => return done,
        }
    }
    Err(SpawnError::SupervisorGone)
}

/// As [`launch`], without waiting. Where the program is busy, what was prepared stays for the next attempt.
pub(crate) fn launch_once(
    plan: &Plan,
    prepared: &mut Option<Prepared>,
    moment: &Moment<'_>,
) -> Result<Launched, SpawnError> {
    let Some(Prepared { ends, child_ends }) = prepared.take() else { return Err(SpawnError::SupervisorGone) };
    let start = |moment: &Moment<'_>| match &plan.program {
        Program::Named(name) => direct::start(plan, name, &child_ends, moment),
        Program::Command(make) => command::start(plan, make, &child_ends, moment),
    };
    let mut in_cgroup = moment.birthplace.directory().is_some() && matches!(plan.program, Program::Named(_));
    let mut started = start(moment);
    // A kernel or a sandbox that does not know how, or a cgroup that was removed: then without.
    if matches!(started, Err(SpawnError::Failed { step: SpawnStep::Cgroup, .. }))
        && matches!(moment.birthplace, Birthplace::Rather(_))
    {
        in_cgroup = false;
        started = start(&Moment { birthplace: Birthplace::Here, ..*moment });
    }
    match started {
        Ok(child) => Ok(Launched { child, ends, in_cgroup }),
        Err(error) => {
            if error.is_busy() {
                *prepared = Some(Prepared { ends, child_ends });
            }
            Err(error)
        }
    }
}

/// How long to wait before another attempt, after so many attempts that found the program's file open for writing (ETXTBSY). That
/// happens when another thread forks while the host writes a program and then runs it: the fork holds the host's descriptor until
/// its exec. Half a second in all, then the error is final.
pub(crate) fn busy_pause(attempts: u32) -> Option<Duration> {
    const FIRST_PAUSE: Duration = Duration::from_millis(1);
    const PAUSES: u32 = 9; // 1 + 2 + 4 + ... + 256 ms = 511 ms
    (attempts < PAUSES).then(|| FIRST_PAUSE * 2_u32.pow(attempts))
}

#[expect(clippy::disallowed_methods, reason = "nothing tells when the last writer of a file has closed it")]
pub(crate) fn pause_for(duration: Duration) {
    thread::sleep(duration);
}
