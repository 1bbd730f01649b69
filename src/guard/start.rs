//! Starts a guard, on the host's side.

use super::{
    groups::GroupList,
    program::{Guard, is_initialized},
    protocol::{
        CONFIG_FD, EXECUTABLE, HELD_TOKENS_FD, JOBSERVER, JOBSERVER_FD, LIST_READER_FD, LIST_WRITER_FD, READY, TESTED,
        TITLE, VARIABLE, WITHOUT,
    },
};
use crate::{
    jobserver::client,
    launch::{
        context::{OpenMode, SpawnContext},
        error::SpawnError,
        pass::Pass,
        plan::{Argument, EnvironmentChange, FdSource, LaunchPlan, Program},
        process::Process,
        spawn::{launch, prepare},
        stdio::{OutputMode, ProcessGroup, StdinMode},
    },
    sys::{fifo, this_process},
};
use std::{
    env,
    ffi::OsString,
    fs::File,
    io::{self, Write},
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::Path,
    sync::Arc,
    time::Duration,
};

const SHELL: &str = "/bin/sh";
const SCRIPT: &str = include_str!("shell.sh");
/// The search path of the shell.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin";
/// The timeout of the self-test, which takes about 7 ms on an idle machine.
const SELF_TEST_TIME: Duration = Duration::from_secs(20);
/// The longest line of a guard, in bytes.
const REPORT_BYTES: usize = 1024;

const REMEDIES: &str = "call `pipewright::guard::init()` first in `main` so that this executable is its own guard, or select \
                        `Guard::Disabled`";

/// The configuration of a guard. It is sent through a pipe: the token is a secret, and an argument list is public.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GuardConfig<'a> {
    /// Contained in the environment of every process to be killed.
    pub(crate) token: &'a str,
    /// Killed as a whole and removed.
    pub(crate) cgroup: Option<&'a Path>,
    pub(crate) groups: &'a GroupList,
}

/// How far a guard must be before its start returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StartStage {
    /// The guard will notice the end of the host, and its tools exist. If its self-test fails later, the guard exits, which is noticed
    /// as for any guard.
    Ready,
    /// The guard has also passed the part of its self-test that starts processes. For the replacement of a guard that has exited, since
    /// a failed self-test may have been the reason.
    Tested,
}

/// A running guard. Dropping it ends the process before it sees the end of its pipe.
#[derive(Debug)]
pub(crate) struct GuardProcess {
    pub(crate) process: Process,
    /// What is missing in its environment; empty if nothing is.
    pub(crate) missing: Box<str>,
    /// Whether it returns the tokens of a jobserver.
    pub(crate) has_tokens: bool,
    /// The guard waits for the end of this pipe.
    pipe: File,
}

impl GuardProcess {
    /// Makes the guard run its cleanup now, and waits up to `within` for its exit.
    pub(crate) fn run_cleanup(self, within: Duration) {
        let Self { mut process, pipe, .. } = self;
        // The guard sees the end of the pipe; if a fork of the host holds the pipe too, the signal has the same effect.
        drop(pipe);
        drop(process.signal(libc::SIGURG));
        drop(process.wait_timeout(within));
    }
}

/// Starts a guard; `None` if it is disabled. Call it on a thread that lives as long as workers may: a shell takes the end of this thread
/// for the end of the host.
pub(crate) fn start(
    guard: Guard,
    config: &GuardConfig<'_>,
    stage: StartStage,
) -> Result<Option<GuardProcess>, SpawnError> {
    let program = match guard {
        Guard::Disabled => return Ok(None),
        Guard::OwnExecutable if !is_initialized() => {
            let missing = "`Guard::OwnExecutable` is selected, but `main` has not called `pipewright::guard::init()`";
            return Err(SpawnError::guard(io::Error::new(io::ErrorKind::Unsupported, missing)));
        }
        Guard::OwnExecutable => GuardProgram::Own,
        Guard::Auto if is_initialized() => GuardProgram::Own,
        Guard::Auto | Guard::Shell => GuardProgram::Shell,
    };
    program.start(SHELL, PATH, config, stage).map(Some)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GuardProgram {
    Own,
    Shell,
}

impl GuardProgram {
    fn name(self, shell: &str) -> &str {
        match self {
            Self::Own => EXECUTABLE,
            Self::Shell => shell,
        }
    }

    pub(super) fn start(
        self,
        shell: &str,
        path: &str,
        config: &GuardConfig<'_>,
        stage: StartStage,
    ) -> Result<GuardProcess, SpawnError> {
        let refused = |kind, text: &str| SpawnError::guard(io::Error::new(kind, format!("{text}; {REMEDIES}")));
        let named = |text: String| format!("{}: {text}", self.name(shell));
        let tokens = client::guarded_ends().map_err(SpawnError::guard)?;
        let has_tokens = tokens.is_some();
        let (pipe, plan) = self.plan((shell, path), config, tokens).map_err(SpawnError::guard)?;
        // The own executable watches the host's process, not the thread. The shell ignores this signal until it has set its trap.
        let death_signal = (self == Self::Shell).then_some(libc::SIGURG);
        let context = SpawnContext { death_signal, ..SpawnContext::default() };
        let launched = prepare(&plan, OpenMode::Nonblocking).and_then(|prepared| launch(&plan, prepared, &context));
        let mut process = match launched {
            Ok(launched) => Process::new(&plan, launched),
            // A temporary error is retried, and so keeps its errno.
            Err(error) if !error.is_permanent() => return Err(error.of_guard()),
            Err(error) => return Err(refused(io::ErrorKind::Unsupported, &error.to_string())),
        };
        let output = process.take_stdout().ok_or_else(|| SpawnError::guard(io::ErrorKind::BrokenPipe.into()))?;
        let mut bytes = Vec::new();
        let mut report = || {
            let read = |buffer: &mut [u8]| output.read_timeout(buffer, SELF_TEST_TIME);
            report(&mut process, &mut bytes, read).map_err(|error| refused(error.kind(), &named(error.to_string())))
        };
        let first = report()?;
        let second = if first.starts_with(READY) && stage == StartStage::Tested { Some(report()?) } else { None };
        let unlike = |report: &String| report != TESTED;
        match (first.strip_prefix(READY), second.filter(unlike)) {
            (Some(rest), None) => {
                let missing = rest.strip_prefix(WITHOUT).unwrap_or(rest).into();
                Ok(GuardProcess { process, missing, has_tokens, pipe })
            }
            (None, _) => Err(refused(io::ErrorKind::Unsupported, &named(first))),
            (Some(_), Some(second)) => Err(refused(io::ErrorKind::Unsupported, &named(second))),
        }
    }

    /// Returns the plan, and the end of the pipe that the guard waits for.
    fn plan(
        self,
        (shell, path): (&str, &str),
        config: &GuardConfig<'_>,
        tokens: Option<[OwnedFd; 2]>,
    ) -> io::Result<(File, LaunchPlan)> {
        // Written while both ends are open in this process: there is a reader, and so no SIGPIPE.
        let (config_pipe, mut pipe) = fifo::pipe()?;
        pipe.write_all(config.token.as_bytes())?;
        pipe.write_all(b"\n")?;
        pipe.write_all(config.cgroup.map(Path::as_os_str).unwrap_or_default().as_bytes())?;
        let jobserver = if tokens.is_some() { JOBSERVER } else { "" };
        pipe.write_all(format!("\n{}\n{jobserver}\n", this_process::own_pid()).as_bytes())?;
        let mut plan = LaunchPlan::new(Program::Named(self.name(shell).into()));
        plan.environment = vec![EnvironmentChange::Clear];
        let set = |name: &str, value: OsString| EnvironmentChange::Set(name.into(), value);
        match self {
            Self::Own => {
                plan.title = Some(TITLE.into());
                plan.environment.push(set(VARIABLE, "1".into()));
                // The linker may find its libraries only through the host's environment.
                let of_linker = env::vars_os().filter(|(name, _)| name.as_bytes().starts_with(b"LD_"));
                plan.environment.extend(of_linker.map(|(name, value)| EnvironmentChange::Set(name, value)));
            }
            Self::Shell => {
                plan.arguments = ["-s", TITLE].map(|word| Argument::Plain(word.into())).into();
                plan.environment.push(set("PATH", path.into()));
                plan.stdin = StdinMode::Fd(Arc::new(script()?.into()));
            }
        }
        plan.directory = Some("/".into());
        plan.stdout = OutputMode::Lines;
        plan.stderr = OutputMode::Null;
        plan.group = ProcessGroup::NewSession;
        let [reader, writer] = config.groups.ends()?;
        let always = [(OwnedFd::from(config_pipe), CONFIG_FD), (reader, LIST_READER_FD), (writer, LIST_WRITER_FD)];
        let tokens = tokens.into_iter().flat_map(|ends| ends.into_iter().zip([HELD_TOKENS_FD, JOBSERVER_FD]));
        for (end, number) in always.into_iter().chain(tokens) {
            plan.add_fd(&number.to_string(), FdSource::Inherited(Arc::new(end)), Pass::fd(number));
        }
        Ok((pipe, plan))
    }
}

/// The script in a pipe, without comments and indentation: for a user whose pipe quota is used up a pipe holds two pages.
fn script() -> io::Result<File> {
    let lines = SCRIPT.lines().map(str::trim_start).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let text = lines.flat_map(|line| [line, "\n"]).collect::<String>();
    let (script, mut writer) = fifo::pipe()?;
    writer.write_all(text.as_bytes())?;
    Ok(script)
}

/// Reads one line of the guard's self-test. `bytes` holds what was read after the line before.
fn report(
    process: &mut Process,
    bytes: &mut Vec<u8>,
    read: impl Fn(&mut [u8]) -> io::Result<usize>,
) -> io::Result<String> {
    loop {
        let end = bytes.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
        if let Some(end) = end.or((bytes.len() >= REPORT_BYTES).then_some(REPORT_BYTES)) {
            let line: Vec<u8> = bytes.drain(..end).collect();
            return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
        }
        let mut buffer = [0; REPORT_BYTES];
        match read(&mut buffer)? {
            0 => {
                let ended = process.wait_timeout(SELF_TEST_TIME)?.map(ToString::to_string).unwrap_or_default();
                let text = format!("self-test did not finish: {ended}");
                return Err(io::Error::new(io::ErrorKind::Unsupported, text));
            }
            count => bytes.extend_from_slice(buffer.get(..count).unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{WorkerSpec, sys::random};
    use std::{os::unix::fs::symlink, path::PathBuf};
    use tempfile::TempDir;

    /// Executes the same program repeatedly.
    const EXECS: &str = "exec sh -c \"$0\" \"$0\"";
    /// One member runs without environment, and so does the leader after its exec.
    const EMPTY_ENVIRONMENTS: &str = "env -i sleep 1000 & echo up; exec env -i sleep 1000";
    /// The time that a killed process may take to end.
    const PATIENCE: Duration = Duration::from_secs(10);
    /// The environment variable of the tokens, as in the supervisor.
    const TREE: &str = "PIPEWRIGHT_TREE";

    /// A shell and the search path of its tools.
    struct Shell {
        program: PathBuf,
        path: PathBuf,
        _tools: TempDir,
    }

    impl Shell {
        /// `None`, with a message, if the shell is not installed.
        fn find(name: &str) -> Option<Self> {
            let directories = PATH.split(':').map(Path::new);
            let Some(found) = directories.map(|directory| directory.join(name)).find(|file| file.exists()) else {
                eprintln!("skipped: {name} is not installed");
                return None;
            };
            let tools = tempfile::tempdir().unwrap();
            // Busybox selects its program by the name it is called with.
            let program = tools.path().join("sh");
            symlink(&found, &program).unwrap();
            if name != "busybox" {
                return Some(Self { program, path: PATH.into(), _tools: tools });
            }
            for tool in ["grep", "head", "rm", "rmdir", "sleep", "tr"] {
                symlink(&found, tools.path().join(tool)).unwrap();
            }
            Some(Self { program, path: tools.path().into(), _tools: tools })
        }

        fn start(&self, token: &str, groups: &GroupList) -> Result<GuardProcess, SpawnError> {
            let (shell, path) = (self.program.to_str().unwrap(), self.path.to_str().unwrap());
            GuardProgram::Shell.start(shell, path, &GuardConfig { token, cgroup: None, groups }, StartStage::Tested)
        }
    }

    fn token() -> String {
        format!("{:016x}", u64::from_ne_bytes(random::bytes().unwrap()))
    }

    fn kills_descendants_during_exec(shell: &str) {
        let Some(shell) = Shell::find(shell) else { return };
        let groups = GroupList::new().unwrap();
        for _ in 0..3 {
            let token = token();
            let execs = WorkerSpec::new("sh").args(["-c", EXECS, EXECS]).env(TREE, format!("{token}.1.1."));
            let mut all: Vec<Process> = (0..10).map(|_| execs.spawn_unsupervised().unwrap()).collect();
            shell.start(&token, &groups).unwrap().run_cleanup(PATIENCE);
            let left =
                all.iter_mut().filter_map(|one| one.wait_timeout(PATIENCE).unwrap().is_none().then(|| one.pid()));
            assert_eq!(left.collect::<Vec<_>>(), [0; 0], "{}", shell.program.display());
        }
    }

    fn kills_groups_without_environment(shell: &str) {
        let Some(shell) = Shell::find(shell) else { return };
        let spec = WorkerSpec::new("sh").args(["-c", EMPTY_ENVIRONMENTS]).stdout(OutputMode::Lines);
        let [mut left, mut right, mut other] = [(); 3].map(|()| spec.spawn_unsupervised().unwrap());
        let streams = [&mut left, &mut right, &mut other].map(|process| process.take_stdout().unwrap());
        for stream in &streams {
            assert_eq!(stream.read_timeout(&mut [0; 8], PATIENCE).unwrap(), 3);
        }
        let groups = GroupList::new().unwrap();
        groups.add(left.pid()).unwrap();
        groups.add(other.pid()).unwrap();
        groups.add(right.pid()).unwrap();
        groups.remove(other.pid());
        shell.start(&token(), &groups).unwrap().run_cleanup(PATIENCE);
        for (stream, leader) in streams.iter().zip([&mut left, &mut right]) {
            // End of file occurs when no process of the group is left.
            assert_eq!(stream.read_timeout(&mut [0; 8], PATIENCE).unwrap(), 0, "{}", shell.program.display());
            assert_eq!(leader.wait().unwrap().signal(), Some(libc::SIGKILL));
        }
        assert_eq!(other.wait_timeout(Duration::ZERO).unwrap(), None, "a group removed from the list is spared");
    }

    fn shows_neither_script_nor_token(shell: &str) {
        let Some(shell) = Shell::find(shell) else { return };
        let (token, groups) = (token(), GroupList::new().unwrap());
        let guard = shell.start(&token, &groups).unwrap();
        let read = |file: &str| {
            let bytes = std::fs::read(format!("/proc/{}/{file}", guard.process.pid())).unwrap();
            String::from_utf8(bytes).unwrap().replace('\0', " ")
        };
        let (words, name, environment) = (read("cmdline"), read("comm"), read("environ"));
        assert_eq!(words, format!("{} -s {TITLE} ", shell.program.display()));
        assert_eq!(name, "pipewright-guar\n");
        assert_eq!(environment, format!("PATH={} ", shell.path.display()));
        assert_eq!(&*guard.missing, "");
    }

    /// One test for each shell that may be `/bin/sh`.
    macro_rules! each_shell {
        ($($name:ident: $check:ident($shell:literal);)*) => {
            $(#[test] fn $name() { $check($shell); })*
        };
    }

    each_shell! {
        p09_dash_kills_descendants_during_exec: kills_descendants_during_exec("dash");
        p09_bash_kills_descendants_during_exec: kills_descendants_during_exec("bash");
        p09_busybox_kills_descendants_during_exec: kills_descendants_during_exec("busybox");
        p09_dash_kills_groups_without_environment: kills_groups_without_environment("dash");
        p09_bash_kills_groups_without_environment: kills_groups_without_environment("bash");
        p09_busybox_kills_groups_without_environment: kills_groups_without_environment("busybox");
        p12_dash_shows_neither_script_nor_token: shows_neither_script_nor_token("dash");
        p12_bash_shows_neither_script_nor_token: shows_neither_script_nor_token("bash");
        p12_busybox_shows_neither_script_nor_token: shows_neither_script_nor_token("busybox");
    }

    #[test]
    fn p16_guard_that_lacks_tools_names_them_and_the_remedies() {
        let tools = tempfile::tempdir().unwrap();
        for tool in ["head", "tr"] {
            symlink("/bin/true", tools.path().join(tool)).unwrap();
        }
        let groups = GroupList::new().unwrap();
        let config = GuardConfig { token: "token", cgroup: None, groups: &groups };
        let path = tools.path().to_str().unwrap();
        let error = GuardProgram::Shell.start(SHELL, path, &config, StartStage::Ready).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "failed to start pipewright-guard: starting process tree guard: \
                 /bin/sh: missing from {path}: grep rm rmdir sleep; {REMEDIES}"
            )
        );
        assert!(error.is_permanent());
        for tool in ["grep", "rm", "rmdir"] {
            symlink("/bin/true", tools.path().join(tool)).unwrap();
        }
        symlink("/bin/sleep", tools.path().join("sleep")).unwrap();
        let error = GuardProgram::Shell.start(SHELL, path, &config, StartStage::Tested).unwrap_err();
        assert!(error.to_string().contains("cannot find and kill a process by its environment"), "{error:?}");
    }

    #[test]
    fn p16_guard_without_a_shell_names_the_remedies() {
        let groups = GroupList::new().unwrap();
        let config = GuardConfig { token: "token", cgroup: None, groups: &groups };
        let error = GuardProgram::Shell.start("/nowhere/sh", PATH, &config, StartStage::Ready).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("/nowhere/sh") && text.contains("No such file") && text.ends_with(REMEDIES), "{text}");
        assert!(error.is_permanent());
        let error = start(Guard::OwnExecutable, &config, StartStage::Ready).unwrap_err();
        assert!(error.to_string().contains("has not called `pipewright::guard::init()`"), "{error:?}");
    }
}
