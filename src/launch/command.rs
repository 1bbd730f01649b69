//! The other way: a user's own `std::process::Command`, with hooks nobody can look into, spawned by std; `command-fds` has
//! it keep the descriptors.
//!
//! Only `preserved_fds` is used, never `fd_mappings`: std talks with its child over a socket whose number nobody knows, and
//! a mapping onto that number overwrites it (docs/gotchas.md, "std's private socket"). So the child's numbers are ours.

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
    clone::Texts,
    deferred_close,
    exec_format::ExecAttempt,
    fd,
    pidfd::{self, Handover, PidFd},
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

/// Above the numbers that shells and old programs use for themselves.
const LEAST_NUMBER: RawFd = 10;

pub(super) fn start(
    plan: &LaunchPlan,
    make: &CommandFactory,
    ends: &ChildFds,
    context: &SpawnContext<'_>,
) -> Result<ChildProcess, SpawnError> {
    // The user's closure may panic; and so does std, when the program is missing and the host ignores SIGCHLD. Neither may
    // take the thread that spawns with it.
    catch_unwind(AssertUnwindSafe(|| run(plan, make(), ends, context))).unwrap_or_else(|payload| {
        // It can be anything, also something that panics or blocks when it is dropped.
        deferred_close::drop_in_background(payload);
        Err(SpawnError::failed("the user's Command", SpawnStep::Command, io::Error::other("it panicked")))
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
    let mut kept = Vec::with_capacity(ends.grants.len());
    for (grant, end) in plan.extra_fds.iter().zip(&ends.grants) {
        kept.push(numbered(grant, end, &program)?);
    }
    let numbers: Vec<RawFd> = kept.iter().map(AsRawFd::as_raw_fd).collect();
    command.args(plan.arguments(&numbers, context.control_path));
    let is_cleared = inherit_environment(&mut command) || plan.clears_environment();
    change_environment(&mut command, plan, &numbers, context.control);
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
    let handover = Handover::new().map_err(failed)?;
    attributes(plan, context.death_signal).add_to(&mut command, &handover);
    command.preserved_fds(kept);
    let search = search_first(&mut command, is_cleared);
    let child = spawn(&mut command).map_err(|source| explained(source, &search, &command, &program))?;
    // The command owns the child's ends: while it lives, no reader would see their end.
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

/// In a host that has closed its 0, 1 or 2, the sockets in which std's child and ours report would get these numbers, and the
/// child's streams would overwrite them: the reports would go into its standard output.
fn occupy_standard_numbers() -> io::Result<Vec<File>> {
    let mut occupied = Vec::new();
    while (0..=2).any(|number| !fd::is_open(number)) {
        occupied.push(File::open("/dev/null")?);
    }
    Ok(occupied)
}

/// A copy of the end at the number that the child will see.
fn numbered(grant: &ExtraFd, end: &OwnedFd, program: &str) -> Result<OwnedFd, SpawnError> {
    let least = grant.number.unwrap_or(LEAST_NUMBER);
    let copy =
        fd::duplicate(end.as_fd(), least).map_err(|source| SpawnError::failed(program, SpawnStep::Fds, source))?;
    match grant.number {
        Some(number) if copy.as_raw_fd() != number => {
            let taken = io::Error::from_raw_os_error(libc::EBUSY);
            Err(SpawnError::failed(program, SpawnStep::FixedFd(number), taken))
        }
        _ => Ok(copy),
    }
}

/// Has the child try the program as the fast way does, before std has it tried by execvp(3).
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
        // std refuses such a text, in its own words.
        return search;
    }
    let mut texts_of_arguments = Texts::default();
    for argument in &arguments {
        texts_of_arguments.push(&[argument.as_bytes()]);
    }
    let environment: Vec<_> = environment.into_iter().collect();
    ExecAttempt::new(search.candidates.clone(), texts_of_arguments, texts(&environment)).add_to(command);
    search
}

/// std does not tell which step failed; some errors can only come from running the program.
fn explained(source: io::Error, search: &ProgramSearch, command: &Command, program: &str) -> SpawnError {
    let errno = source.raw_os_error().unwrap_or(0);
    match search.diagnose(errno, command.get_current_dir()) {
        (step @ SpawnStep::Format, _) => SpawnError::failed(program, step, source),
        (step, errno) if Some(errno) != source.raw_os_error() => {
            SpawnError::failed(program, step, io::Error::from_raw_os_error(errno))
        }
        _ => SpawnError::failed(program, SpawnStep::Command, source),
    }
}

/// Removes what is not inherited, as far as the user has not set it by intent. True where the user has cleared the environment.
fn inherit_environment(command: &mut Command) -> bool {
    let is_set = |command: &Command, name: &OsStr| command.get_envs().any(|(set, _)| set == name);
    let handles = env::var_os(environment::HANDLES);
    // A `Command` does not tell whether its environment was cleared; but only where it was not, it notes what is to be removed.
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

fn change_environment(command: &mut Command, plan: &LaunchPlan, numbers: &[RawFd], control: &str) {
    for change in &plan.environment {
        match change {
            EnvironmentChange::Clear => command.env_clear(),
            EnvironmentChange::Set(name, value) => command.env(name, value),
            EnvironmentChange::Remove(name) => command.env_remove(name),
            EnvironmentChange::Handle { name, grant, template } => {
                command.env(name, template.fill(child_fd(numbers, *grant)))
            }
            EnvironmentChange::Control { name, template } => command.env(name, template.fill_text(control)),
        };
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the place that spawns")]
fn spawn(command: &mut Command) -> io::Result<std::process::Child> {
    command.spawn()
}

/// Holds the new process by a pidfd: the one it has sent, or where it could not, one opened now.
fn adopt(mut child: std::process::Child, handover: &Handover, plan: &LaunchPlan) -> io::Result<ChildProcess> {
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    match handover.receive().map_or_else(|| PidFd::open(pid), Ok) {
        Ok(pidfd) => Ok(ChildProcess::new(pid, pidfd, plan.group != ProcessGroup::Inherit)),
        Err(error) => {
            // Not half made: without a pidfd we could not look after it. Its end is awaited, so no zombie stays.
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
