//! A recipe becomes a process, in one of two ways: straight through clone(2), or through a user's own `Command`.

use super::{
    child::Child,
    command,
    context::{Birthplace, Moment, Patience},
    descriptors::{self, ChildEnds, Ends},
    direct,
    error::{SpawnError, SpawnStep},
    plan::{Plan, Program},
    retry::{busy_pause, pause_for},
};

/// A process and our ends of its pipes.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) child: Child,
    pub(crate) ends: Ends,
    /// It was born in the cgroup that was wanted.
    pub(crate) in_cgroup: bool,
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
    let (ends, child_ends) = descriptors::make_ends(plan, patience)?;
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
