//! Starts a process, either directly through clone(2) or through a user's own `Command`.

use super::{
    child::ChildProcess,
    command,
    context::{CgroupPlacement, OpenMode, SpawnContext},
    descriptors::{self, ChildFds, ParentFds},
    direct,
    error::{SpawnError, SpawnStep},
    plan::{LaunchPlan, Program},
    retry::{busy_pause, pause_for},
    stdio::TerminalSize,
};
use std::io;

/// A new process and our ends of its pipes.
#[derive(Debug)]
pub(crate) struct LaunchedChild {
    pub(crate) child: ChildProcess,
    pub(crate) ends: ParentFds,
    /// Whether it was created in the requested cgroup.
    pub(crate) in_cgroup: bool,
}

/// The fds of a child that has not been created yet.
#[derive(Debug)]
pub(crate) struct PreparedFds {
    ends: ParentFds,
    child_ends: ChildFds,
}

impl PreparedFds {
    /// Sets the size of the terminal, if there is one.
    pub(crate) fn resize_terminal(&self, size: TerminalSize) -> io::Result<()> {
        self.ends.terminal.as_ref().map_or(Ok(()), |terminal| terminal.resize(size))
    }
}

/// Creates the pipes and opens the files. With [`OpenMode::Blocking`] this can block on a FIFO, so that mode is for the caller's
/// thread, not for a thread that serves several workers.
pub(crate) fn prepare(plan: &LaunchPlan, open_mode: OpenMode) -> Result<PreparedFds, SpawnError> {
    let (ends, child_ends) = descriptors::create(plan, open_mode)?;
    Ok(PreparedFds { ends, child_ends })
}

/// Starts one process of a validated plan. An error leaves no process and no fd. Retries while the program's file is busy, for
/// half a second in all ([`busy_pause`]).
pub(crate) fn launch(
    plan: &LaunchPlan,
    prepared: PreparedFds,
    context: &SpawnContext<'_>,
) -> Result<LaunchedChild, SpawnError> {
    let mut prepared = Some(prepared);
    for attempt in 0.. {
        let launched = launch_once(plan, &mut prepared, context);
        match busy_pause(&launched, attempt) {
            Some(pause) => pause_for(pause),
            None => return launched,
        }
    }
    Err(SpawnError::SupervisorGone)
}

/// As [`launch`], with a single attempt. If the program is busy, `prepared` keeps its value for the next attempt.
pub(crate) fn launch_once(
    plan: &LaunchPlan,
    prepared: &mut Option<PreparedFds>,
    context: &SpawnContext<'_>,
) -> Result<LaunchedChild, SpawnError> {
    let Some(PreparedFds { ends, child_ends }) = prepared.take() else { return Err(SpawnError::SupervisorGone) };
    let start = |context: &SpawnContext<'_>| match &plan.program {
        Program::Named(name) => direct::start(plan, name, &child_ends, context),
        Program::Command(make) => command::start(plan, make, &child_ends, context),
    };
    let mut in_cgroup = context.cgroup.directory().is_some() && matches!(plan.program, Program::Named(_));
    let mut started = start(context);
    // The kernel or a sandbox has no clone3, or the cgroup was removed.
    if matches!(started, Err(SpawnError::Failed { step: SpawnStep::Cgroup, .. }))
        && matches!(context.cgroup, CgroupPlacement::Preferred(_))
    {
        in_cgroup = false;
        started = start(&SpawnContext { cgroup: CgroupPlacement::Inherit, ..*context });
    }
    match started {
        Ok(child) => Ok(LaunchedChild { child, ends, in_cgroup }),
        Err(error) => {
            if error.is_busy() {
                *prepared = Some(PreparedFds { ends, child_ends });
            }
            Err(error)
        }
    }
}
