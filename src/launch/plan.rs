//! The plan of a process: program, arguments, environment and fds, validated as a whole before a start.

use super::{
    environment,
    error::SpecError,
    jobserver::PassedJobserver,
    limits::{IoPriority, ResourceLimit},
    pass::{Pass, PassTarget, Template},
    stdio::{OutputMode, ProcessGroup, StdinMode, TerminalSize},
};
use crate::jobserver::{server::JobserverServer, source::SharedAddress};
use std::{
    ffi::{OsStr, OsString},
    fmt,
    os::{
        fd::{OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

/// The name of the message pipe.
pub(crate) const MESSAGES: &str = "messages";

/// Returns a user's own `Command`; called once for each incarnation.
pub(crate) type CommandFactory = Arc<dyn Fn() -> Command + Send + Sync>;

#[derive(Clone)]
pub(crate) enum Program {
    Named(OsString),
    Command(CommandFactory),
}

impl fmt::Debug for Program {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => name.fmt(formatter),
            Self::Command(_) => formatter.write_str("user's Command"),
        }
    }
}

#[derive(Clone)]
pub(crate) enum Argument {
    Plain(OsString),
    Handle {
        fd_index: usize,
        template: Template,
    },
    /// The path of the control pipe.
    Control {
        template: Template,
    },
}

/// Prints the text, with `{}` for the placeholders.
impl fmt::Debug for Argument {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(text) => text.fmt(formatter),
            Self::Handle { template, .. } | Self::Control { template } => template.fill_text("{}").fmt(formatter),
        }
    }
}

#[derive(Clone)]
pub(crate) enum EnvironmentChange {
    Clear,
    Set(OsString, OsString),
    Remove(OsString),
    Handle {
        name: OsString,
        fd_index: usize,
        template: Template,
    },
    Control {
        name: OsString,
        template: Template,
    },
    /// Names a jobserver in `MAKEFLAGS` and `CARGO_MAKEFLAGS`.
    Jobserver(PassedJobserver),
}

/// An fd that the child gets in addition to 0, 1 and 2.
#[derive(Debug, Clone)]
pub(crate) struct ExtraFd {
    pub(crate) name: Box<str>,
    pub(crate) source: FdSource,
    pub(crate) number: Option<RawFd>,
}

#[derive(Debug, Clone)]
pub(crate) enum FdSource {
    /// A new pipe that the child writes.
    OutputPipe,
    /// A new pipe that the child reads.
    InputPipe,
    /// A socket for both directions.
    Channel,
    Inherited(Arc<OwnedFd>),
    /// The end of a new pipe with tokens from which they are taken. The next fd is the other end.
    TokenReader(JobserverServer),
    TokenWriter,
}

/// Everything needed to start a process, except for the parameters of one start (`SpawnContext`).
#[derive(Clone)]
pub(crate) struct LaunchPlan {
    pub(crate) program: Program,
    /// `argv[0]`, if it differs from the program name.
    pub(crate) title: Option<OsString>,
    pub(crate) arguments: Vec<Argument>,
    pub(crate) environment: Vec<EnvironmentChange>,
    pub(crate) directory: Option<PathBuf>,
    pub(crate) stdin: StdinMode,
    pub(crate) stdout: OutputMode,
    pub(crate) stderr: OutputMode,
    /// Of the pseudo-terminal, if it is set.
    pub(crate) terminal_size: Option<TerminalSize>,
    /// Standard input and output are sockets, whatever `stdin` and `stdout` say.
    pub(crate) stdio_sockets: bool,
    pub(crate) extra_fds: Vec<ExtraFd>,
    pub(crate) group: ProcessGroup,
    pub(crate) limits: Vec<(ResourceLimit, u64)>,
    pub(crate) nice: Option<i32>,
    pub(crate) io_priority: Option<IoPriority>,
    /// CPU set with one bit for each processor; empty for all.
    pub(crate) processors: Vec<libc::c_ulong>,
    pub(crate) umask: Option<u32>,
    /// The first error of a builder method, returned by `validate`.
    pub(crate) first_error: Option<SpecError>,
}

impl LaunchPlan {
    pub(crate) fn new(program: Program) -> Self {
        Self {
            program,
            title: None,
            arguments: Vec::new(),
            environment: Vec::new(),
            directory: None,
            stdin: StdinMode::default(),
            stdout: OutputMode::default(),
            stderr: OutputMode::default(),
            terminal_size: None,
            stdio_sockets: false,
            extra_fds: Vec::new(),
            group: ProcessGroup::default(),
            limits: Vec::new(),
            nice: None,
            io_priority: None,
            processors: Vec::new(),
            umask: None,
            first_error: None,
        }
    }

    /// Whether the plan owns closures or fds of the host.
    pub(crate) fn holds_user_values(&self) -> bool {
        matches!(self.program, Program::Command(_))
            || matches!(self.stdin, StdinMode::Fd(_))
            || matches!(self.stdout, OutputMode::Fd(_))
            || matches!(self.stderr, OutputMode::Fd(_))
            || self.extra_fds.iter().any(|fd| matches!(fd.source, FdSource::Inherited(_)))
    }

    /// Adds a processor to the CPU set.
    pub(crate) fn allow_processor(&mut self, number: usize) {
        const BITS: usize = libc::c_ulong::BITS as usize;
        /// Largest `NR_CPUS` of the kernel.
        const PROCESSORS: usize = 8192;
        if number >= PROCESSORS {
            self.first_error.get_or_insert(SpecError::InvalidProcessor { number });
            return;
        }
        if self.processors.len() <= number / BITS {
            self.processors.resize(number / BITS + 1, 0);
        }
        if let Some(word) = self.processors.get_mut(number / BITS) {
            *word |= 1 << (number % BITS);
        }
    }

    /// Adds an fd and the argument or variable that passes its number.
    pub(crate) fn add_fd(&mut self, name: &str, source: FdSource, pass: Pass) {
        let fd_index = self.extra_fds.len();
        let Pass { target, number } = pass;
        match target {
            PassTarget::Argument(text) => {
                let template = self.template(&text);
                self.arguments.push(Argument::Handle { fd_index, template });
            }
            PassTarget::Environment { name, template } => {
                let template = self.template(&template);
                self.environment.push(EnvironmentChange::Handle { name, fd_index, template });
            }
            PassTarget::None => {}
        }
        self.extra_fds.push(ExtraFd { name: name.into(), source, number });
    }

    /// Passes the jobserver on that the host has inherited.
    pub(crate) fn inherit_jobserver(&mut self, address: SharedAddress) {
        let passed = match address {
            SharedAddress::Fifo(path) => PassedJobserver::Fifo(path),
            SharedAddress::Pipe(ends) => self.add_jobserver_pipe(ends.map(FdSource::Inherited), None),
        };
        self.pass_jobserver(passed);
    }

    fn pass_jobserver(&mut self, passed: PassedJobserver) {
        if self.environment.iter().any(|change| matches!(change, EnvironmentChange::Jobserver(_))) {
            let reason = "a program has one jobserver".into();
            self.first_error
                .get_or_insert(SpecError::Conflict { settings: ["jobserver", "inherit_jobserver"], reason });
        }
        self.environment.push(EnvironmentChange::Jobserver(passed));
    }

    /// Gives each process a pipe of this jobserver.
    pub(crate) fn serve_jobserver(&mut self, server: JobserverServer) {
        let jobs = server.tokens() + 1;
        let passed = self.add_jobserver_pipe([FdSource::TokenReader(server), FdSource::TokenWriter], Some(jobs));
        self.pass_jobserver(passed);
    }

    fn add_jobserver_pipe(&mut self, [reader, writer]: [FdSource; 2], jobs: Option<usize>) -> PassedJobserver {
        let at = self.extra_fds.len();
        self.add_fd("jobserver reader", reader, Pass::unnamed());
        self.add_fd("jobserver writer", writer, Pass::unnamed());
        PassedJobserver::Pipe { reader: at, writer: at + 1, jobs }
    }

    /// Adds the argument or variable that passes the path of the control pipe.
    pub(crate) fn pass_control(&mut self, pass: Pass) {
        if let Some(number) = pass.number {
            self.first_error.get_or_insert(SpecError::ControlFixedFd { number });
        }
        match pass.target {
            PassTarget::Argument(text) => {
                let template = self.template(&text);
                self.arguments.push(Argument::Control { template });
            }
            PassTarget::Environment { name, template } => {
                let template = self.template(&template);
                self.environment.push(EnvironmentChange::Control { name, template });
            }
            PassTarget::None => {}
        }
    }

    /// The variable that passes `address`, if one does.
    pub(crate) fn control_variable(&self, address: &str) -> Option<(OsString, OsString)> {
        self.environment.iter().find_map(|change| match change {
            EnvironmentChange::Control { name, template } => Some((name.clone(), template.fill_text(address))),
            EnvironmentChange::Clear
            | EnvironmentChange::Set(..)
            | EnvironmentChange::Remove(_)
            | EnvironmentChange::Handle { .. }
            | EnvironmentChange::Jobserver(_) => None,
        })
    }

    fn template(&mut self, text: &OsStr) -> Template {
        let template = Template::parse(text);
        if !template.has_placeholder() {
            self.first_error
                .get_or_insert_with(|| SpecError::MissingPlaceholder { text: text.to_string_lossy().into() });
        }
        template
    }

    /// Checks the whole plan before anything is started.
    pub(crate) fn validate(&self) -> Result<(), SpecError> {
        if let Some(error) = &self.first_error {
            return Err(error.clone());
        }
        if let Program::Named(name) = &self.program {
            if name.is_empty() {
                return Err(SpecError::EmptyProgram);
            }
            no_nul("program name", name)?;
        }
        for argument in &self.arguments {
            match argument {
                Argument::Plain(text) => no_nul("argument", text)?,
                Argument::Handle { template, .. } | Argument::Control { template } => {
                    no_nul("argument", &template.fill(0))?;
                }
            }
        }
        if let Some(directory) = &self.directory {
            no_nul("working directory", directory.as_os_str())?;
        }
        if let Some(nice) = self.nice.filter(|nice| !(-20..=19).contains(nice)) {
            return Err(SpecError::InvalidNice { nice });
        }
        if let Some(level) = self.io_priority.map(IoPriority::level).filter(|level| *level > 7) {
            return Err(SpecError::InvalidIoPriority { level });
        }
        self.validate_environment()?;
        self.validate_streams()?;
        self.validate_terminal()?;
        self.validate_fds()
    }

    fn validate_environment(&self) -> Result<(), SpecError> {
        for change in &self.environment {
            let (name, value) = match change {
                EnvironmentChange::Clear | EnvironmentChange::Jobserver(_) => continue,
                EnvironmentChange::Set(name, value) => (name, value.clone()),
                EnvironmentChange::Remove(name) => (name, OsString::new()),
                EnvironmentChange::Handle { name, template, .. } | EnvironmentChange::Control { name, template } => {
                    (name, template.fill(0))
                }
            };
            // As in std, a leading `=` is part of the name; any other would end the name early.
            if name.is_empty() || name.as_bytes().iter().skip(1).any(|&byte| byte == b'=') {
                return Err(SpecError::InvalidVariable { name: name.to_string_lossy().into() });
            }
            no_nul("environment variable name", name)?;
            no_nul("environment variable value", &value)?;
        }
        self.validate_handle_variables()
    }

    /// Rejects a later setting that overwrites a variable with the number of a handle.
    fn validate_handle_variables(&self) -> Result<(), SpecError> {
        let changes = self.environment.iter().enumerate();
        let passed = changes.filter_map(|(at, change)| match change {
            EnvironmentChange::Handle { name, .. } | EnvironmentChange::Control { name, .. } => Some((at, name)),
            EnvironmentChange::Clear
            | EnvironmentChange::Set(..)
            | EnvironmentChange::Remove(_)
            | EnvironmentChange::Jobserver(_) => None,
        });
        for (at, handle) in passed {
            let lost = self.environment.iter().skip(at + 1).find_map(|change| match change {
                EnvironmentChange::Clear => Some("env_clear"),
                EnvironmentChange::Set(name, _) if name == handle => Some("env"),
                EnvironmentChange::Remove(name) if name == handle => Some("env_remove"),
                EnvironmentChange::Handle { name, .. } | EnvironmentChange::Control { name, .. } if name == handle => {
                    Some("Pass::env")
                }
                _ => None,
            });
            if let Some(setting) = lost {
                let reason = format!("`{}` passes a handle and is changed afterwards", handle.display()).into();
                return Err(SpecError::Conflict { settings: ["Pass::env", setting], reason });
            }
        }
        Ok(())
    }

    fn validate_streams(&self) -> Result<(), SpecError> {
        if matches!(self.stdout, OutputMode::ToStdout) {
            let reason = "standard output cannot be redirected to itself: only `stderr` takes it".into();
            return Err(SpecError::Conflict { settings: ["stdout", "OutputMode::ToStdout"], reason });
        }
        Ok(())
    }

    fn validate_fds(&self) -> Result<(), SpecError> {
        for (index, fd) in self.extra_fds.iter().enumerate() {
            if self.extra_fds.iter().take(index).any(|earlier| earlier.name == fd.name) {
                return Err(SpecError::DuplicatePipe { name: fd.name.clone() });
            }
            let Some(number) = fd.number else { continue };
            if number < 3 {
                return Err(SpecError::ReservedFd { number });
            }
            if let Some(earlier) = self.extra_fds.iter().take(index).find(|earlier| earlier.number == Some(number)) {
                let (first, second) = (earlier.name.clone(), fd.name.clone());
                return Err(SpecError::DuplicateFd { number, first, second });
            }
        }
        Ok(())
    }

    /// The program's name for errors.
    pub(crate) fn program_name(&self) -> Box<str> {
        match &self.program {
            Program::Named(name) => name.to_string_lossy().into(),
            // The closure is not called just for the name: it may count its calls.
            Program::Command(_) => "user's Command".into(),
        }
    }

    /// The default name of a worker.
    pub(crate) fn file_name(&self) -> Box<str> {
        let name = match &self.program {
            Program::Named(name) => Path::new(name).file_name(),
            Program::Command(_) => None,
        };
        name.map_or_else(|| self.program_name(), |name| name.to_string_lossy().into())
    }

    /// The fd number of each extra fd in the child: its fixed number, or the lowest free number from 3. Small numbers, since select(2)
    /// is limited to 1023 and a shell's `>&9` to one digit.
    pub(crate) fn child_fds(&self) -> Vec<RawFd> {
        let fixed: Vec<RawFd> = self.extra_fds.iter().filter_map(|fd| fd.number).collect();
        let mut free = (3..).filter(|number| !fixed.contains(number));
        self.extra_fds.iter().filter_map(|fd| fd.number.or_else(|| free.next())).collect()
    }

    /// Every user of the machine can read the arguments, so they contain only the path of the control pipe, not its key.
    pub(crate) fn arguments(&self, numbers: &[RawFd], control_path: &str) -> impl Iterator<Item = OsString> {
        self.arguments.iter().map(move |argument| match argument {
            Argument::Control { template } => template.fill_text(control_path),
            Argument::Plain(text) => text.clone(),
            Argument::Handle { fd_index, template } => template.fill(child_fd(numbers, *fd_index)),
        })
    }
}

/// Variables and arguments that pass handles to the child.
impl LaunchPlan {
    /// Whether the path of the control pipe is passed as an argument, so that its key needs a variable.
    pub(crate) fn has_control_argument(&self) -> bool {
        self.arguments.iter().any(|argument| matches!(argument, Argument::Control { .. }))
    }

    /// Names of the variables that the plan sets or removes. The values may be secrets.
    pub(crate) fn variable_names(&self) -> Vec<&OsStr> {
        let names = self.environment.iter().filter_map(|change| match change {
            EnvironmentChange::Clear | EnvironmentChange::Jobserver(_) => None,
            EnvironmentChange::Set(name, _)
            | EnvironmentChange::Remove(name)
            | EnvironmentChange::Handle { name, .. }
            | EnvironmentChange::Control { name, .. } => Some(name.as_os_str()),
        });
        names.collect()
    }

    pub(super) fn clears_environment(&self) -> bool {
        self.environment.iter().any(|change| matches!(change, EnvironmentChange::Clear))
    }

    pub(super) fn handle_variables(&self) -> Option<(&'static str, OsString)> {
        let names = self.environment.iter().filter_map(|change| match change {
            EnvironmentChange::Handle { name, .. } | EnvironmentChange::Control { name, .. } => Some(name.as_os_str()),
            EnvironmentChange::Clear
            | EnvironmentChange::Set(..)
            | EnvironmentChange::Remove(_)
            | EnvironmentChange::Jobserver(_) => None,
        });
        environment::handles(&names.collect::<Vec<_>>()).map(|names| (environment::HANDLES, names))
    }
}

/// The fd number of an extra fd. An index out of range, which is a bug, gives -1: no program accepts it as an fd.
pub(super) fn child_fd(numbers: &[RawFd], index: usize) -> RawFd {
    let number = numbers.get(index).copied();
    debug_assert!(number.is_some(), "fd {index} of {numbers:?}");
    number.unwrap_or(-1)
}

fn no_nul(what: &'static str, text: &OsStr) -> Result<(), SpecError> {
    if text.as_bytes().contains(&0) { Err(SpecError::NulByte { what }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chosen_fds_are_lowest_beside_fixed_ones() {
        let mut plan = LaunchPlan::new(Program::Named("x".into()));
        plan.add_fd("a", FdSource::OutputPipe, Pass::arg("{}"));
        plan.add_fd("b", FdSource::OutputPipe, Pass::fd(3));
        plan.add_fd("c", FdSource::InputPipe, Pass::env("C"));
        plan.add_fd("d", FdSource::InputPipe, Pass::arg("{}").at_fd(5));
        plan.add_fd("e", FdSource::InputPipe, Pass::arg("{}"));
        assert_eq!(plan.validate(), Ok(()));
        assert_eq!(plan.child_fds(), [4, 3, 6, 5, 7]);
    }

    #[test]
    fn validate_rejects_invalid_fds() {
        let with = |pass: &[Pass]| {
            let mut plan = LaunchPlan::new(Program::Named("x".into()));
            for (index, pass) in pass.iter().enumerate() {
                plan.add_fd(&index.to_string(), FdSource::OutputPipe, pass.clone());
            }
            plan.validate().unwrap_err()
        };
        assert_eq!(with(&[Pass::arg("--fd")]), SpecError::MissingPlaceholder { text: "--fd".into() });
        assert_eq!(with(&[Pass::env_with("X", "{{}}")]), SpecError::MissingPlaceholder { text: "{{}}".into() });
        assert_eq!(
            with(&[Pass::fd(4), Pass::arg("{}").at_fd(4)]),
            SpecError::DuplicateFd { number: 4, first: "0".into(), second: "1".into() }
        );
        assert_eq!(with(&[Pass::fd(2)]), SpecError::ReservedFd { number: 2 });
        assert_eq!(with(&[Pass::fd(-1)]), SpecError::ReservedFd { number: -1 });
        assert_eq!(with(&[Pass::env("A=B")]), SpecError::InvalidVariable { name: "A=B".into() });
        assert_eq!(with(&[Pass::arg("\0{}")]), SpecError::NulByte { what: "argument" });
    }
}
