//! Starts a named program through `sys::clone`.

use super::{
    child::ChildProcess,
    context::SpawnContext,
    descriptors::ChildFds,
    environment::{self, EnvDisposition},
    error::{SpawnError, SpawnStep, step_of},
    limits::IoPriority,
    plan::{EnvironmentChange, LaunchPlan, child_fd},
    search::ProgramSearch,
    stdio::ProcessGroup,
};
use crate::sys::{
    child_setup::{GroupChange, ProcessAttributes, Rlimit, SetupStep},
    clone::{self, CStringArray, ExecImage, FdMapping},
    this_process,
};
use std::{
    env,
    ffi::{CString, OsStr, OsString},
    io,
    os::{
        fd::{AsRawFd, RawFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
};

pub(super) fn start(
    plan: &LaunchPlan,
    program: &OsStr,
    ends: &ChildFds,
    context: &SpawnContext<'_>,
) -> Result<ChildProcess, SpawnError> {
    let numbers = plan.child_fds();
    let environment = environment(plan, &numbers, context);
    let search = ProgramSearch::new(program, value_of(&environment, OsStr::new("PATH")));
    let image = ExecImage {
        candidates: search.candidates.clone(),
        arguments: arguments(plan, program, &numbers, context.control_path),
        environment: texts(&environment),
        directory: plan.directory.as_ref().map(|path| c_string(path.clone().into_os_string())),
        descriptors: descriptors(ends, &numbers),
        attributes: attributes(plan, context.death_signal),
        cgroup: context.cgroup.directory().map(|directory| directory.as_raw_fd()),
    };
    let cloned = clone::spawn(&image).map_err(|failure| {
        let directory = plan.directory.as_deref();
        let (exec, errno) = match failure.step {
            SetupStep::Exec => search.diagnose(failure.errno, directory),
            _ => (SpawnStep::Exec(None), failure.errno),
        };
        let step = step_of(failure, directory, exec);
        SpawnError::failed(plan.program_name(), step, io::Error::from_raw_os_error(errno))
    })?;
    Ok(ChildProcess::new(cloned.pid, cloned.pidfd, plan.group != ProcessGroup::Inherit))
}

/// The inherited environment with the plan's changes in order. Most plans have few changes, so a linear search is enough.
fn environment(plan: &LaunchPlan, numbers: &[RawFd], context: &SpawnContext<'_>) -> Vec<(OsString, OsString)> {
    let handles = env::var_os(environment::HANDLES);
    let inherited =
        env::vars_os().filter_map(|(name, value)| match environment::disposition(&name, &value, handles.as_deref()) {
            EnvDisposition::Keep => Some((name, value)),
            EnvDisposition::Replace(value) => Some((name, value)),
            EnvDisposition::Remove => None,
        });
    let mut variables: Vec<(OsString, OsString)> = inherited.collect();
    for change in &plan.environment {
        match change {
            EnvironmentChange::Clear => variables.clear(),
            EnvironmentChange::Set(name, value) => set(&mut variables, name, value.clone()),
            EnvironmentChange::Remove(name) => variables.retain(|(other, _)| other != name),
            EnvironmentChange::Handle { name, fd_index, template } => {
                set(&mut variables, name, template.fill(child_fd(numbers, *fd_index)));
            }
            EnvironmentChange::Control { name, template } => {
                set(&mut variables, name, template.fill_text(context.control));
            }
            EnvironmentChange::Jobserver(passed) => {
                for (name, value) in passed.variables(numbers, |name| value_of(&variables, name)) {
                    set(&mut variables, name, value);
                }
            }
        }
    }
    if let Some((name, value)) = plan.terminal_variable()
        && !variables.iter().any(|(other, _)| other == name)
    {
        variables.push((name.into(), value.into()));
    }
    for (name, value) in plan.handle_variables().into_iter().chain(context.variables.iter().cloned()) {
        set(&mut variables, OsStr::new(name), value);
    }
    variables
}

/// Removes every occurrence first: the host's environment can contain a variable more than once.
fn set(variables: &mut Vec<(OsString, OsString)>, name: &OsStr, value: OsString) {
    variables.retain(|(other, _)| other != name);
    variables.push((name.to_owned(), value));
}

fn value_of(environment: &[(OsString, OsString)], name: &OsStr) -> Option<OsString> {
    environment.iter().find(|(other, _)| other == name).map(|(_, value)| value.clone())
}

fn descriptors(ends: &ChildFds, numbers: &[RawFd]) -> Vec<FdMapping> {
    let standard = ends.standard.iter().map(AsRawFd::as_raw_fd).zip(0..);
    let extra = ends.extra.iter().map(AsRawFd::as_raw_fd).zip(numbers.iter().copied());
    standard.chain(extra).map(|(source, target)| FdMapping { source, target }).collect()
}

pub(super) fn attributes(plan: &LaunchPlan, death_signal: Option<i32>) -> ProcessAttributes {
    ProcessAttributes {
        group: match (plan.controlling_stream(), plan.group) {
            (Some(stream), _) => GroupChange::OwnTerminal(stream),
            (None, ProcessGroup::New) => GroupChange::OwnGroup,
            (None, ProcessGroup::NewSession) => GroupChange::OwnSession,
            (None, ProcessGroup::Inherit) => GroupChange::None,
        },
        death_signal: death_signal.map(|signal| (signal, this_process::own_pid())),
        limits: plan
            .limits
            .iter()
            .map(|&(limit, value)| Rlimit { resource: limit.resource(), soft: value, hard: value })
            .collect(),
        nice: plan.nice,
        io_priority: plan.io_priority.map(IoPriority::number),
        processors: plan.processors.clone(),
        umask: plan.umask,
    }
}

/// `LaunchPlan::validate` has rejected texts with NUL bytes.
fn c_string(text: OsString) -> CString {
    let text = CString::new(text.into_vec());
    debug_assert!(text.is_ok(), "LaunchPlan::validate rejects NUL bytes");
    text.unwrap_or_default()
}

fn arguments(plan: &LaunchPlan, program: &OsStr, numbers: &[RawFd], control_path: &str) -> CStringArray {
    let mut texts = CStringArray::default();
    texts.push(&[plan.title.as_deref().unwrap_or(program).as_bytes()]);
    for argument in plan.arguments(numbers, control_path) {
        texts.push(&[argument.as_bytes()]);
    }
    texts
}

pub(super) fn texts(environment: &[(OsString, OsString)]) -> CStringArray {
    let mut texts = CStringArray::default();
    for (name, value) in environment {
        texts.push(&[name.as_bytes(), b"=", value.as_bytes()]);
    }
    texts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_replaces_every_occurrence_of_variable() {
        let pair = |(name, value): (&str, &str)| (OsString::from(name), OsString::from(value));
        let mut variables: Vec<_> = [("DUP", "1"), ("A", "1"), ("DUP", "2")].map(pair).into();
        set(&mut variables, OsStr::new("DUP"), "3".into());
        assert_eq!(variables, [("A", "1"), ("DUP", "3")].map(pair));
    }
}
