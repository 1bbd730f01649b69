//! The worker: runs one compiler and tells its parent, as messages, what came of it.

use crate::{
    database::{Entry, add_options},
    diagnostics::{self, Diagnostic, Severity},
};
use pipewright::{Exit, Group, Output, Parent, WorkerSpec};
use serde::{Deserialize, Serialize};
use std::{error::Error, fs, io::Read, path::PathBuf, process::ExitCode, time::Duration};

/// What a worker tells.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Told {
    Started { file: PathBuf },
    Diagnostic(Diagnostic),
    Finished(Finished),
}

/// What came of one compilation.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Finished {
    pub(crate) compiled: bool,
    pub(crate) wall: Duration,
    pub(crate) cpu: Duration,
    pub(crate) peak_bytes: u64,
}

impl Finished {
    /// The usage is the compiler's and that of all it ran itself: GCC's `cc` leaves the work to `cc1` and `as`.
    fn of(exit: &Exit) -> Self {
        let usage = exit.usage.unwrap_or_default();
        Self {
            compiled: exit.success(),
            wall: exit.duration,
            cpu: usage.user + usage.system,
            peak_bytes: usage.max_rss_bytes,
        }
    }
}

pub(crate) fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fanout worker: {}", explain(&*error));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let parent = Parent::from_args()?;
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    let entry: Entry = serde_json::from_str(&text)?;
    parent.send(&Told::Started { file: entry.file.clone() })?;
    let (diagnostics, finished) = match compile(&entry) {
        Ok(run) => (run.diagnostics(&entry), Finished::of(&run.exit)),
        Err(error) => (vec![Diagnostic::error_in(&entry.file, &explain(&*error))], Finished::default()),
    };
    for diagnostic in diagnostics {
        parent.send(&Told::Diagnostic(diagnostic))?;
    }
    parent.send(&Told::Finished(finished))?;
    Ok(())
}

/// A compiler that has ended.
struct Run {
    stderr: String,
    exit: Exit,
}

impl Run {
    /// Never empty for a compiler that failed: one that crashed, was killed or speaks a language of its own says no `error:`,
    /// and then what is known of its end has to do.
    fn diagnostics(&self, entry: &Entry) -> Vec<Diagnostic> {
        let mut found = diagnostics::parse(&self.stderr);
        if !self.exit.success() && !found.iter().any(|told| told.severity == Severity::Error) {
            let compiler = entry.arguments.first().map_or("the compiler", String::as_str);
            let mut text = format!("{compiler}: {}", self.exit);
            for line in diagnostics::last_words(&self.stderr) {
                text.push_str("\n  ");
                text.push_str(line);
            }
            found.push(Diagnostic::error_in(&entry.file, &text));
        }
        found
    }

    /// Whether it did not know the option that asks for JSON.
    fn refused(&self) -> bool {
        let names_the_option = |told: &Diagnostic| told.message.contains("-fdiagnostics-format");
        !self.exit.success()
            && diagnostics::parse(&self.stderr)
                .iter()
                .any(|told| told.severity == Severity::Error && names_the_option(told))
    }
}

/// Runs the compiler so that it tells its diagnostics as JSON; one that does not know how is run once more, as it is.
fn compile(entry: &Entry) -> Result<Run, Box<dyn Error>> {
    if let Some(directory) = entry.output.parent() {
        fs::create_dir_all(directory).map_err(|error| format!("cannot make {}: {error}", directory.display()))?;
    }
    let run = run_compiler(entry, Some("-fdiagnostics-format=json"))?;
    if run.refused() { run_compiler(entry, None) } else { Ok(run) }
}

fn run_compiler(entry: &Entry, option: Option<&str>) -> Result<Run, Box<dyn Error>> {
    let mut command = entry.arguments.clone();
    add_options(&mut command, option.map(str::to_owned));
    let (compiler, arguments) = command.split_first().ok_or("the command is empty")?;
    let mut process = WorkerSpec::new(compiler)
        .args(arguments)
        .current_dir(&entry.directory)
        // In our own group, so that whoever ends us ends the compiler too.
        .group(Group::Inherit)
        .stdout(Output::Null)
        .stderr(Output::Lines)
        .launch()?;
    let mut stderr = Vec::new();
    if let Some(mut pipe) = process.take_stderr() {
        pipe.read_to_end(&mut stderr)?;
    }
    let exit = process.wait()?.clone();
    Ok(Run { stderr: String::from_utf8_lossy(&stderr).into_owned(), exit })
}

/// An error with its causes, in one line.
pub(crate) fn explain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
