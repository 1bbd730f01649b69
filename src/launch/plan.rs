//! What to run and what it is given: a recipe, checked as a whole before anything is started.

use super::{
    environment,
    error::SpecError,
    limits::{IoPriority, ResourceLimit},
    pass::{Pass, PassTarget, Template},
    stdio::{OutputMode, ProcessGroup, StdinMode},
};
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

/// The name under which the pipe of the messages is granted.
pub(crate) const MESSAGES: &str = "messages";

/// Makes a user's own `Command`, anew for each incarnation.
pub(crate) type CommandFactory = Arc<dyn Fn() -> Command + Send + Sync>;

/// What is started.
#[derive(Clone)]
pub(crate) enum Program {
    Named(OsString),
    Command(CommandFactory),
}

impl fmt::Debug for Program {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => name.fmt(formatter),
            Self::Command(_) => formatter.write_str("a user's Command"),
        }
    }
}

#[derive(Clone)]
pub(crate) enum Argument {
    Plain(OsString),
    Handle {
        grant: usize,
        template: Template,
    },
    /// The address of the control pipe.
    Control {
        template: Template,
    },
}

/// As its text, with `{}` where something is filled in.
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
    Handle { name: OsString, grant: usize, template: Template },
    Control { name: OsString, template: Template },
}

/// A descriptor that the child gets beside 0, 1 and 2.
#[derive(Debug, Clone)]
pub(crate) struct ExtraFd {
    pub(crate) name: Box<str>,
    pub(crate) source: FdSource,
    pub(crate) number: Option<RawFd>,
}

#[derive(Debug, Clone)]
pub(crate) enum FdSource {
    /// A pipe in which the child writes.
    OutputPipe,
    /// A pipe in which we write.
    InputPipe,
    Inherited(Arc<OwnedFd>),
}

/// The recipe of one process.
#[derive(Clone)]
pub(crate) struct LaunchPlan {
    pub(crate) program: Program,
    /// The first word of the argument list, where that is not the program's name.
    pub(crate) title: Option<OsString>,
    pub(crate) arguments: Vec<Argument>,
    pub(crate) environment: Vec<EnvironmentChange>,
    pub(crate) directory: Option<PathBuf>,
    pub(crate) stdin: StdinMode,
    pub(crate) stdout: OutputMode,
    pub(crate) stderr: OutputMode,
    pub(crate) extra_fds: Vec<ExtraFd>,
    pub(crate) group: ProcessGroup,
    pub(crate) limits: Vec<(ResourceLimit, u64)>,
    pub(crate) nice: Option<i32>,
    pub(crate) io_priority: Option<IoPriority>,
    /// A bit for each processor; empty for all.
    pub(crate) processors: Vec<libc::c_ulong>,
    pub(crate) umask: Option<u32>,
    /// The first mistake made while building, told by `validate`.
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

    /// Whether closures or descriptors of the host's are in it.
    pub(crate) fn holds_user_values(&self) -> bool {
        matches!(self.program, Program::Command(_))
            || matches!(self.stdin, StdinMode::Fd(_))
            || matches!(self.stdout, OutputMode::Fd(_))
            || matches!(self.stderr, OutputMode::Fd(_))
            || self.extra_fds.iter().any(|grant| matches!(grant.source, FdSource::Inherited(_)))
    }

    /// Allows a processor, by its number from 0.
    pub(crate) fn allow_processor(&mut self, number: usize) {
        const BITS: usize = libc::c_ulong::BITS as usize;
        /// What the kernel can be built for at most (`NR_CPUS`).
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

    /// Grants a descriptor and writes down where its number is told.
    pub(crate) fn add_fd(&mut self, name: &str, source: FdSource, pass: Pass) {
        let grant = self.extra_fds.len();
        let Pass { target, number } = pass;
        match target {
            PassTarget::Argument(text) => {
                let template = self.template(&text);
                self.arguments.push(Argument::Handle { grant, template });
            }
            PassTarget::Environment { name, template } => {
                let template = self.template(&template);
                self.environment.push(EnvironmentChange::Handle { name, grant, template });
            }
            PassTarget::None => {}
        }
        self.extra_fds.push(ExtraFd { name: name.into(), source, number });
    }

    /// Writes down where the address of the control pipe is told.
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

    fn template(&mut self, text: &OsStr) -> Template {
        let template = Template::parse(text);
        if !template.has_placeholder() {
            self.first_error
                .get_or_insert_with(|| SpecError::MissingPlaceholder { text: text.to_string_lossy().into() });
        }
        template
    }

    /// The whole recipe, looked at before anything is started.
    pub(crate) fn validate(&self) -> Result<(), SpecError> {
        if let Some(mistake) = &self.first_error {
            return Err(mistake.clone());
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
        self.validate_grants()
    }

    fn validate_environment(&self) -> Result<(), SpecError> {
        for change in &self.environment {
            let (name, value) = match change {
                EnvironmentChange::Clear => continue,
                EnvironmentChange::Set(name, value) => (name, value.clone()),
                EnvironmentChange::Remove(name) => (name, OsString::new()),
                EnvironmentChange::Handle { name, template, .. } | EnvironmentChange::Control { name, template } => {
                    (name, template.fill(0))
                }
            };
            // A name may begin with `=`, as std allows; one inside would move the border between name and value.
            if name.is_empty() || name.as_bytes().iter().skip(1).any(|&byte| byte == b'=') {
                return Err(SpecError::InvalidVariable { name: name.to_string_lossy().into() });
            }
            no_nul("environment variable name", name)?;
            no_nul("environment variable value", &value)?;
        }
        self.validate_lost_variables()
    }

    /// A variable that says where a handle is must still say so when the process starts.
    fn validate_lost_variables(&self) -> Result<(), SpecError> {
        let changes = self.environment.iter().enumerate();
        let told = changes.filter_map(|(at, change)| match change {
            EnvironmentChange::Handle { name, .. } | EnvironmentChange::Control { name, .. } => Some((at, name)),
            EnvironmentChange::Clear | EnvironmentChange::Set(..) | EnvironmentChange::Remove(_) => None,
        });
        for (at, told) in told {
            let lost = self.environment.iter().skip(at + 1).find_map(|change| match change {
                EnvironmentChange::Clear => Some("env_clear"),
                EnvironmentChange::Set(name, _) if name == told => Some("env"),
                EnvironmentChange::Remove(name) if name == told => Some("env_remove"),
                EnvironmentChange::Handle { name, .. } | EnvironmentChange::Control { name, .. } if name == told => {
                    Some("Pass::env")
                }
                _ => None,
            });
            if let Some(setting) = lost {
                let reason = format!("{} says where a handle is, and is changed after that", told.display()).into();
                return Err(SpecError::Conflict { settings: ["Pass::env", setting], reason });
            }
        }
        Ok(())
    }

    fn validate_grants(&self) -> Result<(), SpecError> {
        for (index, grant) in self.extra_fds.iter().enumerate() {
            if self.extra_fds.iter().take(index).any(|earlier| earlier.name == grant.name) {
                return Err(SpecError::DuplicatePipe { name: grant.name.clone() });
            }
            let Some(number) = grant.number else { continue };
            if number < 3 {
                return Err(SpecError::ReservedFd { number });
            }
            if let Some(earlier) = self.extra_fds.iter().take(index).find(|earlier| earlier.number == Some(number)) {
                let (first, second) = (earlier.name.clone(), grant.name.clone());
                return Err(SpecError::DuplicateFd { number, first, second });
            }
        }
        Ok(())
    }

    /// What an error calls the program.
    pub(crate) fn program_name(&self) -> Box<str> {
        match &self.program {
            Program::Named(name) => name.to_string_lossy().into(),
            // Its name is known only once it is made, and the maker may count its calls.
            Program::Command(_) => "a user's Command".into(),
        }
    }

    /// What a worker of this plan is called by default.
    pub(crate) fn file_name(&self) -> Box<str> {
        let name = match &self.program {
            Program::Named(name) => Path::new(name).file_name(),
            Program::Command(_) => None,
        };
        name.map_or_else(|| self.program_name(), |name| name.to_string_lossy().into())
    }

    /// The number of each grant in the child: the fixed ones, and for the others the lowest free ones from 3. Small
    /// numbers, since `select(2)` ends at 1023 and a shell's `>&9` at one digit.
    pub(crate) fn child_fds(&self) -> Vec<RawFd> {
        let fixed: Vec<RawFd> = self.extra_fds.iter().filter_map(|grant| grant.number).collect();
        let mut free = (3..).filter(|number| !fixed.contains(number));
        self.extra_fds.iter().filter_map(|grant| grant.number.or_else(|| free.next())).collect()
    }

    /// An argument list can be read by every user of the machine, so that of the control pipe only the path is in it.
    pub(crate) fn arguments(&self, numbers: &[RawFd], control_path: &str) -> impl Iterator<Item = OsString> {
        self.arguments.iter().map(move |argument| match argument {
            Argument::Control { template } => template.fill_text(control_path),
            Argument::Plain(text) => text.clone(),
            Argument::Handle { grant, template } => template.fill(child_fd(numbers, *grant)),
        })
    }
}

/// What tells the child, and a supervisor in it, where its handles are.
impl LaunchPlan {
    /// Whether the path of the control pipe is an argument, so that its key has to be told elsewhere.
    pub(crate) fn has_control_argument(&self) -> bool {
        self.arguments.iter().any(|argument| matches!(argument, Argument::Control { .. }))
    }

    /// Of those that the plan sets or removes; the values may be secrets.
    pub(crate) fn variable_names(&self) -> Vec<&OsStr> {
        let names = self.environment.iter().filter_map(|change| match change {
            EnvironmentChange::Clear => None,
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
            EnvironmentChange::Clear | EnvironmentChange::Set(..) | EnvironmentChange::Remove(_) => None,
        });
        environment::handles(&names.collect::<Vec<_>>()).map(|names| (environment::HANDLES, names))
    }
}

/// The number of a grant; -1, which no program takes for a descriptor, could only come from a hole in this file.
pub(super) fn child_fd(numbers: &[RawFd], grant: usize) -> RawFd {
    let number = numbers.get(grant).copied();
    debug_assert!(number.is_some(), "grant {grant} of {numbers:?}");
    number.unwrap_or(-1)
}

fn no_nul(what: &'static str, text: &OsStr) -> Result<(), SpecError> {
    if text.as_bytes().contains(&0) { Err(SpecError::NulByte { what }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_numbers_are_the_lowest_beside_the_fixed_ones() {
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
    fn mistakes_are_found_before_anything_starts() {
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
