//! The worker: runs one compiler and tells its parent, as messages, what came of it.

use crate::{
    command::{add_options, dependency_files, is_gcc},
    database::Entry,
    diagnostics::{self, Diagnostic, Severity, Told as Printed},
    output,
};
use crossbeam_channel::Receiver;
use pipewright::{Exit, OutputMode, Parent, ProcessGroup, WorkerSpec, pipe::anonymous::PipeReader};
use serde::{Deserialize, Serialize};
use std::{
    error::Error,
    fs,
    io::{self, Read},
    path::Path,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

/// What a worker tells.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Told {
    Started,
    Diagnostic(Diagnostic),
    /// Anything else that the compiler printed.
    Text(String),
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
    parent.send(&Told::Started)?;
    let (told, finished) = match compile(&entry) {
        Ok(run) => (run.told(&entry), Finished::of(&run.exit)),
        Err(error) => {
            let error = Diagnostic::error_in(Path::new(&entry.file), &explain(&*error));
            (vec![Told::Diagnostic(error)], Finished::default())
        }
    };
    for told in told {
        parent.send(&told)?;
    }
    parent.send(&Told::Finished(finished))?;
    Ok(())
}

/// A compiler that has ended.
struct Run {
    stdout: String,
    stderr: String,
    exit: Exit,
}

impl Run {
    /// All that the compiler printed. With an error for a compiler that failed without one: it crashed, was killed, or words its
    /// errors in a way that is not known here.
    fn told(&self, entry: &Entry) -> Vec<Told> {
        let printed = diagnostics::parse(&self.stderr);
        let is_error = |told: &Printed| matches!(told, Printed::Diagnostic(told) if told.severity == Severity::Error);
        let has_error = printed.iter().any(is_error);
        let mut told = Vec::new();
        let stdout = self.stdout.trim_end_matches('\n');
        if !stdout.is_empty() {
            told.push(Told::Text(stdout.to_owned()));
        }
        let is_explained = self.exit.success() || has_error;
        if is_explained {
            told.extend(printed.into_iter().map(|printed| match printed {
                Printed::Diagnostic(diagnostic) => Told::Diagnostic(diagnostic),
                Printed::Text(text) => Told::Text(text),
            }));
        } else {
            let compiler = entry.arguments.first().map_or("the compiler".into(), |compiler| compiler.to_string_lossy());
            let mut text = format!("{compiler}: {}", self.exit);
            for line in printed.iter().map(ToString::to_string).filter(|line| !line.trim().is_empty()) {
                text.push_str("\n  ");
                text.push_str(&line);
            }
            told.push(Told::Diagnostic(Diagnostic::error_in(Path::new(&entry.file), &text)));
        }
        told
    }

    /// Whether the option that asks for JSON may be why it failed. A compiler that knows it says so in JSON.
    fn may_have_refused(&self) -> bool {
        !self.exit.success() && !diagnostics::has_json(&self.stderr)
    }
}

/// Runs a compiler of GCC so that it tells its diagnostics as JSON. One that fails and shows no JSON is run once more, as the
/// database has it: it may only be called like one.
fn compile(entry: &Entry) -> Result<Run, Box<dyn Error>> {
    let directory = Path::new(&entry.directory);
    let named = dependency_files(&entry.arguments).into_iter().map(|file| directory.join(file));
    for file in entry.output.as_ref().map(|output| directory.join(output)).into_iter().chain(named) {
        if let Some(directory) = file.parent() {
            fs::create_dir_all(directory).map_err(|error| format!("cannot make {}: {error}", directory.display()))?;
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
    let mut process = WorkerSpec::new(compiler)
        .args(arguments)
        .current_dir(&entry.directory)
        // In our own group, so that what ends this worker ends the compiler too.
        .process_group(ProcessGroup::Inherit)
        .stdout(OutputMode::Lines)
        .stderr(OutputMode::Lines)
        .spawn_unsupervised()?;
    let stdout = Capture::start(process.take_stdout())?;
    let stderr = Capture::start(process.take_stderr())?;
    let exit = process.wait()?.clone();
    let until = now() + DRAIN_TIME;
    Ok(Run { stdout: stdout.finish(until), stderr: stderr.finish(until), exit })
}

/// How long a stream of a compiler that has ended is read while another process holds it open: as long as a supervisor would.
/// A wrapper's server in the background keeps it for hours.
const DRAIN_TIME: Duration = Duration::from_millis(500);

/// A stream that is read on a thread of its own, so that neither of two fills up while the other is waited for.
struct Capture(Receiver<Vec<u8>>);

impl Capture {
    fn start(pipe: Option<PipeReader>) -> io::Result<Self> {
        let (sender, pieces) = crossbeam_channel::unbounded();
        if let Some(mut pipe) = pipe {
            thread::Builder::new().name("capture".into()).spawn(move || {
                let mut piece = vec![0; 64 << 10];
                while let Ok(count @ 1..) = pipe.read(&mut piece) {
                    if sender.send(piece.get(..count).unwrap_or_default().to_vec()).is_err() {
                        return;
                    }
                }
            })?;
        }
        Ok(Self(pieces))
    }

    /// All that comes until the end of the stream, or until then.
    fn finish(self, until: Instant) -> String {
        let mut bytes = Vec::new();
        while let Ok(piece) = self.0.recv_deadline(until) {
            bytes.extend(piece);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

#[expect(clippy::disallowed_methods, reason = "the drain time counts from the compiler's end")]
fn now() -> Instant {
    Instant::now()
}

/// An error with its causes, in one line.
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
