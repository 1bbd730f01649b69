//! The pseudo-terminal of a child.

use super::{
    error::{SpawnError, SpawnStep, SpecError},
    plan::{EnvironmentChange, LaunchPlan},
    stdio::{OutputMode, ProcessGroup, StdinMode, TerminalSize},
};
use crate::{
    pipe::anonymous::ends::{PipeReader, PipeWriter},
    sys::{
        fd,
        terminal::{self, END_OF_INPUT, PseudoTerminal, Size},
        write,
    },
};
use std::{
    ffi::OsStr,
    io,
    os::fd::{AsFd, OwnedFd, RawFd},
};

/// The type of the terminal, if the environment names none: what terminals have in common.
const TERM: (&str, &str) = ("TERM", "xterm");

/// The parent's side of a child's pseudo-terminal. The kernel hangs up the terminal when its last duplicate is closed.
#[derive(Debug)]
pub(crate) struct ParentTerminal {
    master: OwnedFd,
    /// `None` if standard input is not the terminal, or was taken.
    pub(super) input: Option<PipeWriter>,
}

impl ParentTerminal {
    pub(crate) fn resize(&self, size: TerminalSize) -> io::Result<()> {
        terminal::set_size(self.master.as_fd(), size.into())
    }

    /// Ends the input by Ctrl-D, if it was not taken. Returns false if it was.
    pub(super) fn end_input(&mut self) -> bool {
        let Some(input) = self.input.take() else { return false };
        // Fails if the process has not read earlier input.
        drop(write::write(input.as_fd(), &[END_OF_INPUT]));
        true
    }
}

/// A new pseudo-terminal.
#[derive(Debug)]
pub(super) struct NewTerminal {
    pub(super) parent: ParentTerminal,
    /// `None` once it was taken.
    pub(super) reader: Option<PipeReader>,
    pub(super) slave: OwnedFd,
}

impl NewTerminal {
    /// Opens the pseudo-terminal of a plan; `None` if it needs none.
    pub(super) fn open(plan: &LaunchPlan) -> Result<Option<Self>, SpawnError> {
        let failed = |source| SpawnError::failed(plan.program_name(), SpawnStep::Terminal, source);
        if plan.uses_terminal() { Self::new(plan).map(Some).map_err(failed) } else { Ok(None) }
    }

    fn new(plan: &LaunchPlan) -> io::Result<Self> {
        let PseudoTerminal { master, slave } = PseudoTerminal::open(plan.terminal_size.unwrap_or_default().into())?;
        let reader = os_pipe::PipeReader::from(fd::duplicate(master.as_fd(), 3)?).into();
        let input = match plan.stdin {
            StdinMode::Pty => Some(os_pipe::PipeWriter::from(fd::duplicate(master.as_fd(), 3)?).into()),
            _ => None,
        };
        Ok(Self { parent: ParentTerminal { master, input }, reader: Some(reader), slave })
    }
}

impl From<TerminalSize> for Size {
    fn from(TerminalSize { rows, columns }: TerminalSize) -> Self {
        Self { rows, columns }
    }
}

impl LaunchPlan {
    fn uses_terminal(&self) -> bool {
        self.controlling_stream().is_some()
    }

    /// The lowest standard stream that is the terminal.
    pub(super) fn controlling_stream(&self) -> Option<RawFd> {
        let streams = [matches!(self.stdin, StdinMode::Pty), self.stdout.is_terminal(), self.stderr.is_terminal()];
        (0..).zip(streams).find(|(_, is_terminal)| *is_terminal).map(|(number, _)| number)
    }

    pub(super) fn validate_terminal(&self) -> Result<(), SpecError> {
        let refused = |settings, reason: &str| Err(SpecError::Conflict { settings, reason: reason.into() });
        if !self.uses_terminal() {
            return match self.terminal_size {
                Some(_) => refused(["terminal_size", "stdout"], "no stream is a terminal: set it to `OutputMode::Pty`"),
                None => Ok(()),
            };
        }
        if self.group == ProcessGroup::Inherit {
            return refused(["process_group", "OutputMode::Pty"], "a terminal of its own needs a session of its own");
        }
        match (&self.stdout, &self.stderr) {
            (OutputMode::Pty, OutputMode::PtyLines) | (OutputMode::PtyLines, OutputMode::Pty) => {
                refused(["stdout", "stderr"], "both are the same terminal, which is read either in lines or not")
            }
            (stdout, stderr) if !stdout.is_terminal() && !stderr.is_terminal() => {
                refused(["stdin", "stdout"], "the output of a terminal must be read: set it to `OutputMode::Pty`, too")
            }
            _ => Ok(()),
        }
    }

    /// The variable that names the type of the terminal, unless the spec sets or removes it. For an environment without it.
    pub(super) fn terminal_variable(&self) -> Option<(&'static str, &'static str)> {
        let names_it = |change: &EnvironmentChange| match change {
            EnvironmentChange::Set(name, _) | EnvironmentChange::Remove(name) => name == OsStr::new(TERM.0),
            EnvironmentChange::Clear
            | EnvironmentChange::Handle { .. }
            | EnvironmentChange::Control { .. }
            | EnvironmentChange::Jobserver(_) => false,
        };
        (self.uses_terminal() && !self.environment.iter().any(names_it)).then_some(TERM)
    }
}
