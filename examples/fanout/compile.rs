//! The worker: runs one compiler and sends the results to its parent as messages.

use crate::{
    command::{add_options, dependency_files, is_gcc},
    database::Entry,
    diagnostics::{self, Diagnostic, OutputItem, Severity},
    output,
};
use pipewright::{Exit, OutputMode, Parent, ProcessGroup, WorkerSpec};
use serde::{Deserialize, Serialize};
use std::{
    error::Error,
    fs,
    io::{self, Read},
    path::Path,
    process::ExitCode,
    time::Duration,
};

/// A message from a worker to its parent.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum WorkerMessage {
    Started,
    Diagnostic(Diagnostic),
    /// Other output of the compiler.
    Text(String),
    Finished(Finished),
}

/// Result of a compilation.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Finished {
    pub(crate) compiled: bool,
    pub(crate) wall: Duration,
    pub(crate) cpu: Duration,
    pub(crate) peak_bytes: u64,
}

impl Finished {
    /// The usage includes the compiler's own children: GCC's `cc` runs `cc1` and `as`.
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
            output::write_line(io::stderr(), &format!("fanout worker: {}", explain(&*error)));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let parent = Parent::from_args()?;
    let mut text = String::new();
    io::stdin().read_to_string(&mut text)?;
    let entry: Entry = serde_json::from_str(&text)?;
    parent.send(&WorkerMessage::Started)?;
    let (messages, finished) = match compile(&entry) {
        Ok(run) => (run.messages(&entry), Finished::of(&run.exit)),
        Err(error) => {
            let error = Diagnostic::error_in(Path::new(&entry.file), &explain(&*error));
            (vec![WorkerMessage::Diagnostic(error)], Finished::default())
        }
    };
    for message in messages {
        parent.send(&message)?;
    }
    parent.send(&WorkerMessage::Finished(finished))?;
    Ok(())
}

/// A compiler that has exited.
struct Run {
    stdout: String,
    stderr: String,
    exit: Exit,
}

impl Run {
    /// The output of the compiler as messages. Adds an error if the compiler failed without a known diagnostic: it crashed, was
    /// killed, or has an unknown error format.
    fn messages(&self, entry: &Entry) -> Vec<WorkerMessage> {
        let printed = diagnostics::parse(&self.stderr);
        let is_error = |item: &OutputItem| matches!(item, OutputItem::Diagnostic(it) if it.severity == Severity::Error);
        let has_error = printed.iter().any(is_error);
        let mut messages = Vec::new();
        let stdout = self.stdout.trim_end_matches('\n');
        if !stdout.is_empty() {
            messages.push(WorkerMessage::Text(stdout.to_owned()));
        }
        let has_reason = self.exit.success() || has_error;
        if has_reason {
            messages.extend(printed.into_iter().map(|item| match item {
                OutputItem::Diagnostic(diagnostic) => WorkerMessage::Diagnostic(diagnostic),
                OutputItem::Text(text) => WorkerMessage::Text(text),
            }));
        } else {
            let compiler = entry.arguments.first().map_or("the compiler".into(), |compiler| compiler.to_string_lossy());
            let mut text = format!("{compiler}: {}", self.exit);
            for line in printed.iter().map(ToString::to_string).filter(|line| !line.trim().is_empty()) {
                text.push_str("\n  ");
                text.push_str(&line);
            }
            messages.push(WorkerMessage::Diagnostic(Diagnostic::error_in(Path::new(&entry.file), &text)));
        }
        messages
    }

    /// Whether the JSON option may be the cause of the failure: a compiler that supports it prints JSON.
    fn may_have_refused(&self) -> bool {
        !self.exit.success() && !diagnostics::has_json(&self.stderr)
    }
}

/// Runs a GCC compiler with JSON diagnostics. If it fails without printing JSON, runs it again without the option: it may be another
/// compiler with the name of GCC's.
fn compile(entry: &Entry) -> Result<Run, Box<dyn Error>> {
    let directory = Path::new(&entry.directory);
    let named = dependency_files(&entry.arguments).into_iter().map(|file| directory.join(file));
    for file in entry.output.as_ref().map(|output| directory.join(output)).into_iter().chain(named) {
        if let Some(directory) = file.parent() {
            fs::create_dir_all(directory).map_err(|error| format!("cannot create {}: {error}", directory.display()))?;
        }
    }
    if is_gcc(&entry.arguments) {
        let run = run_compiler(entry, Some("-fdiagnostics-format=json"))?;
        if !run.may_have_refused() {
            return Ok(run);
        }
    }
    run_compiler(entry, None)
}

fn run_compiler(entry: &Entry, option: Option<&str>) -> Result<Run, Box<dyn Error>> {
    let mut command = entry.arguments.clone();
    add_options(&mut command, option.map(Into::into));
    let (compiler, arguments) = command.split_first().ok_or("the command is empty")?;
    // Without a timeout: the worker that runs this is killed when it takes too long.
    let output = WorkerSpec::new(compiler)
        .args(arguments)
        .current_dir(&entry.directory)
        // In the worker's process group, so that it is killed together with the worker.
        .process_group(ProcessGroup::Inherit)
        .stdout(OutputMode::Bytes)
        .stderr(OutputMode::Bytes)
        .drain_timeout(DRAIN_TIMEOUT)
        .spawn_unsupervised()?
        .wait_with_output(Duration::MAX)?;
    let [stdout, stderr] = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    Ok(Run { stdout, stderr, exit: output.exit })
}

/// How long to read a stream after the compiler has exited. A background server of a compiler wrapper holds the stream open for
/// hours.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(500);

/// Formats an error and its sources in one line.
pub(crate) fn explain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let reason = error.to_string();
        if !text.contains(&reason) {
            text.push_str(": ");
            text.push_str(&reason);
        }
        cause = error.source();
    }
    text
}
