//! Starts a user's own `std::process::Command` through std; `command-fds` preserves the fds of the plan.
//!
//! Uses only `preserved_fds`, never `fd_mappings`: std communicates with its child over a socket of unknown number, and a mapping
//! onto that number would overwrite it (docs/gotchas.md, "std's private socket"). So fds have the parent's numbers in the child.

use super::{
    child::ChildProcess,
    context::SpawnContext,
    descriptors::{ChildFds, ChildStdio},
    direct::{attributes, texts},
    environment::{self, EnvDisposition},
    error::{SpawnError, SpawnStep},
    plan::{CommandFactory, EnvironmentChange, ExtraFd, LaunchPlan, child_fd},
    search::ProgramSearch,
    stdio::ProcessGroup,
};
use crate::sys::{
    clone::CStringArray,
    deferred_close,
    exec_format::ExecAttempt,
    fd,
    pidfd::{self, PidFd, PidfdHandover},
};
use command_fds::CommandFdExt;
use std::{
    collections::BTreeMap,
    env,
    ffi::{OsStr, OsString},
    fs::File,
    io, iter,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    panic::{AssertUnwindSafe, catch_unwind},
    process::{Command, Stdio},
};

/// Lowest fd number that is chosen freely; shells and old programs use smaller ones themselves.
const MIN_CHOSEN_FD: RawFd = 10;

pub(super) fn start(
    plan: &LaunchPlan,
    make: &CommandFactory,
    ends: &ChildFds,
    context: &SpawnContext<'_>,
) -> Result<ChildProcess, SpawnError> {
    // The user's closure may panic, and std panics if the program is missing and the host ignores SIGCHLD. Neither may
    // unwind the spawning thread.
    catch_unwind(AssertUnwindSafe(|| run(plan, make(), ends, context))).unwrap_or_else(|payload| {
        // The drop of the payload may panic or block.
        deferred_close::drop_in_background(payload);
        Err(SpawnError::failed("user's Command", SpawnStep::Command, io::Error::other("the closure or std panicked")))
    })
}

fn run(
    plan: &LaunchPlan,
    mut command: Command,
    ends: &ChildFds,
    context: &SpawnContext<'_>,
) -> Result<ChildProcess, SpawnError> {
    let program: Box<str> = command.get_program().to_string_lossy().into();
    let failed = |source| SpawnError::failed(program.clone(), SpawnStep::Command, source);
    let mut kept = Vec::with_capacity(ends.extra.len());
    for (wanted, end) in plan.extra_fds.iter().zip(&ends.extra) {
        kept.push(duplicate_at(wanted, end, &program)?);
    }
    let numbers: Vec<RawFd> = kept.iter().map(AsRawFd::as_raw_fd).collect();
    command.args(plan.arguments(&numbers, context.control_path));
    let is_cleared = inherit_environment(&mut command) || plan.clears_environment();
    change_environment(&mut command, plan, (&numbers, context.control), is_cleared);
    if let Some((name, value)) = plan.terminal_variable()
        && !command.get_envs().any(|(set, _)| set == name)
        && (is_cleared || env::var_os(name).is_none())
    {
        command.env(name, value);
    }
    command.envs(plan.handle_variables());
    command.envs(context.variables.iter().map(|(name, value)| (*name, value)));
    if let Some(directory) = &plan.directory {
        command.current_dir(directory);
    }
    let [stdin, stdout, stderr] = &ends.standard;
    command.stdin(standard(stdin).map_err(failed)?);
    command.stdout(standard(stdout).map_err(failed)?);
    command.stderr(standard(stderr).map_err(failed)?);
    let occupied = occupy_standard_numbers().map_err(failed)?;
    let handover = PidfdHandover::new().map_err(failed)?;
    attributes(plan, context.death_signal).add_to(&mut command, &handover);
    command.preserved_fds(kept);
    let search = search_first(&mut command, is_cleared);
    let child = spawn(&mut command).map_err(|source| diagnosed(source, &search, &command, &program))?;
    // The command owns the child's ends of the pipes; while they are open, readers do not see the end of the stream.
    drop(command);
    drop(occupied);
    adopt(child, &handover, plan).map_err(failed)
}

fn standard(stream: &ChildStdio) -> io::Result<Stdio> {
    match stream {
        ChildStdio::Own(descriptor) => descriptor.try_clone().map(Stdio::from),
        ChildStdio::Inherited(_) => Ok(Stdio::inherit()),
    }
}

/// Occupies closed standard fds. Otherwise the sockets over which std's child and ours report to the parent could get these numbers,
/// and the child's standard streams would overwrite them.
fn occupy_standard_numbers() -> io::Result<Vec<File>> {
    let mut occupied = Vec::new();
    while (0..=2).any(|number| !fd::is_open(number)) {
        occupied.push(File::open("/dev/null")?);
    }
    Ok(occupied)
}

/// A duplicate at the fd number that the child will see.
fn duplicate_at(wanted: &ExtraFd, end: &OwnedFd, program: &str) -> Result<OwnedFd, SpawnError> {
    let least = wanted.number.unwrap_or(MIN_CHOSEN_FD);
    let copy =
        fd::duplicate(end.as_fd(), least).map_err(|source| SpawnError::failed(program, SpawnStep::Fds, source))?;
    match wanted.number {
        Some(number) if copy.as_raw_fd() != number => {
            let taken = io::Error::from_raw_os_error(libc::EBUSY);
            Err(SpawnError::failed(program, SpawnStep::FixedFd(number), taken))
        }
        _ => Ok(copy),
    }
}

/// Makes the child try the program as `direct` does, before std calls execvp(3).
fn search_first(command: &mut Command, is_cleared: bool) -> ProgramSearch {
    let mut environment: BTreeMap<OsString, OsString> =
        if is_cleared { BTreeMap::new() } else { env::vars_os().collect() };
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => drop(environment.insert(name.into(), value.into())),
            None => drop(environment.remove(name)),
        }
    }
    let search = ProgramSearch::new(command.get_program(), environment.get(OsStr::new("PATH")).cloned());
    let arguments: Vec<&OsStr> = iter::once(command.get_program()).chain(command.get_args()).collect();
    let variables = environment.iter().flat_map(|(name, value)| [name.as_os_str(), value]);
    if arguments.iter().copied().chain(variables).any(|text| text.as_bytes().contains(&0)) {
        // std returns an error for a NUL byte.
        return search;
    }
    let mut texts_of_arguments = CStringArray::default();
    for argument in &arguments {
        texts_of_arguments.push(&[argument.as_bytes()]);
    }
    let environment: Vec<_> = environment.into_iter().collect();
    ExecAttempt::new(search.candidates.clone(), texts_of_arguments, texts(&environment)).add_to(command);
    search
}

/// std does not report which step failed; some errors can only come from exec.
fn diagnosed(source: io::Error, search: &ProgramSearch, command: &Command, program: &str) -> SpawnError {
    let errno = source.raw_os_error().unwrap_or(0);
    match search.diagnose(errno, command.get_current_dir()) {
        (step @ SpawnStep::Format, _) => SpawnError::failed(program, step, source),
        (step, errno) if Some(errno) != source.raw_os_error() => {
            SpawnError::failed(program, step, io::Error::from_raw_os_error(errno))
        }
        _ => SpawnError::failed(program, SpawnStep::Command, source),
    }
}

/// Removes variables that must not be inherited, unless the user has set them. Returns whether the user has cleared the environment.
fn inherit_environment(command: &mut Command) -> bool {
    let is_set = |command: &Command, name: &OsStr| command.get_envs().any(|(set, _)| set == name);
    let handles = env::var_os(environment::HANDLES);
    // `Command` does not expose whether its environment was cleared, but it records a removal only if it was not.
    command.env_remove(environment::HANDLES);
    let is_cleared = !is_set(command, OsStr::new(environment::HANDLES));
    if is_cleared {
        return true;
    }
    for (name, value) in env::vars_os() {
        match environment::disposition(&name, &value, handles.as_deref()) {
            EnvDisposition::Keep => {}
            _ if is_set(command, &name) => {}
            EnvDisposition::Replace(value) => drop(command.env(name, value)),
            EnvDisposition::Remove => drop(command.env_remove(name)),
        }
    }
    false
}

fn change_environment(
    command: &mut Command,
    plan: &LaunchPlan,
    (numbers, control): (&[RawFd], &str),
    is_cleared: bool,
) {
    for change in &plan.environment {
        match change {
            EnvironmentChange::Clear => command.env_clear(),
            EnvironmentChange::Set(name, value) => command.env(name, value),
            EnvironmentChange::Remove(name) => command.env_remove(name),
            EnvironmentChange::Handle { name, fd_index, template } => {
                command.env(name, template.fill(child_fd(numbers, *fd_index)))
            }
            EnvironmentChange::Control { name, template } => command.env(name, template.fill_text(control)),
            EnvironmentChange::Jobserver(passed) => {
                // Where the host has such a variable, `inherit_environment` has set it without its jobserver.
                let current = |name: &OsStr| {
                    let set = command.get_envs().find(|(other, _)| *other == name);
                    set.map_or_else(
                        || env::var_os(name).filter(|_| !is_cleared),
                        |(_, value)| value.map(OsStr::to_owned),
                    )
                };
                let variables = passed.variables(numbers, current);
                command.envs(variables)
            }
        };
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the place that spawns")]
fn spawn(command: &mut Command) -> io::Result<std::process::Child> {
    command.spawn()
}

/// Takes over the new process with the pidfd that it has sent, or opens one if it could not send one.
fn adopt(mut child: std::process::Child, handover: &PidfdHandover, plan: &LaunchPlan) -> io::Result<ChildProcess> {
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    match handover.receive().map_or_else(|| PidFd::open(pid), Ok) {
        Ok(pidfd) => Ok(ChildProcess::new(pid, pidfd, plan.group != ProcessGroup::Inherit)),
        Err(error) => {
            // Without a pidfd the process cannot be supervised: kill and reap it.
            drop(child.kill());
            drop(child.wait());
            Err(if pidfd::is_open_denied(&error) { without_pidfd(&error) } else { error })
        }
    }
}

fn without_pidfd(denial: &io::Error) -> io::Error {
    let text = format!("pidfd_open: {denial}; WorkerSpec::new starts programs without that call");
    io::Error::new(denial.kind(), text)
}
