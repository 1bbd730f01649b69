//! A recipe becomes a process, in one of two ways: straight through clone(2), or through a user's own `Command`.

use super::{
    child::ChildProcess,
    command,
    context::{CgroupPlacement, OpenMode, SpawnContext},
    descriptors::{self, ChildFds, ParentFds},
    direct,
    error::{SpawnError, SpawnStep},
    plan::{LaunchPlan, Program},
    retry::{busy_pause, pause_for},
};

/// A process and our ends of its pipes.
#[derive(Debug)]
pub(crate) struct LaunchedChild {
    pub(crate) child: ChildProcess,
    pub(crate) ends: ParentFds,
    /// It was born in the cgroup that was wanted.
    pub(crate) in_cgroup: bool,
}

/// Everything that a child is to hold, before there is a child.
#[derive(Debug)]
pub(crate) struct PreparedFds {
    ends: ParentFds,
    child_ends: ChildFds,
}

/// Makes the pipes and opens the files. To open a FIFO can block: where there is patience for that it is done by whoever wants the
/// worker, and not by a thread that others wait for.
pub(crate) fn prepare(plan: &LaunchPlan, open_mode: OpenMode) -> Result<PreparedFds, SpawnError> {
    let (ends, child_ends) = descriptors::make_ends(plan, open_mode)?;
    Ok(PreparedFds { ends, child_ends })
}

/// Starts one process of a plan that was checked. On an error there is no process and no descriptor left. Waits while the program's
/// file is busy, up to the sum of [`busy_pause`].
pub(crate) fn launch(
    plan: &LaunchPlan,
    prepared: PreparedFds,
    context: &SpawnContext<'_>,
) -> Result<LaunchedChild, SpawnError> {
    let mut prepared = Some(prepared);
    for attempt in 0.. {
        match launch_once(plan, &mut prepared, context) {
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
    // A kernel or a sandbox that does not know how, or a cgroup that was removed: then without.
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
