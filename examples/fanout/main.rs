//! A small build tool: compiles the entries of a compilation database in parallel.
//!
//! ```text
//! cargo run --release --example fanout -- [compile_commands.json] [--jobs N] [--keep-going] [--out DIR]
//! ```
//!
//! Without a database it builds the C project in `examples/c-project`. Each compilation is a worker: this program with `--worker`,
//! its entry on standard input and the number of its message pipe on the command line. The worker runs the compiler and sends the
//! results as messages; the parent receives the messages of all workers in one channel.
//!
//! The exit code is 0 if every entry was compiled, 1 if a compilation failed, 2 if the command line or the database is invalid, 130
//! after Ctrl-C and 143 after SIGTERM. An interrupt leaves no compiler running.

mod command; // command lines: words or shell, output options
mod compile; // the worker's side: runs one compiler
mod database; // reads compile_commands.json
mod diagnostics; // parses the output of compilers
mod output; // writes lines to stdout and stderr
mod report; // progress, diagnostics and summary

use compile::{Finished, WorkerMessage, explain};
use crossbeam_channel::Receiver;
use database::{Database, Entry};
use pipewright::{EventKind, OutputMode, Pass, StdinMode, Supervisor, SurvivorPolicy, Worker, WorkerId, WorkerSpec};
use report::Report;
use std::{
    collections::HashMap,
    error::Error,
    ffi::{OsStr, OsString},
    io,
    os::unix::ffi::OsStrExt,
    path::PathBuf,
    process::ExitCode,
    thread,
    time::Duration,
};

const USAGE: &str = "usage: fanout [compile_commands.json] [--jobs N] [--keep-going] [--out DIR]";
const WORKER: &str = "--worker";

/// Timeout for writing an entry to a worker, which reads it before anything else.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|first| first == WORKER) {
        return compile::main();
    }
    let options = match Options::parse(std::env::args_os().skip(1)) {
        Ok(Options { help: true, .. }) => {
            output::print_line(USAGE);
            return ExitCode::SUCCESS;
        }
        options => options,
    };
    let build =
        options.and_then(|options| Ok((Database::load(options.database.as_deref(), options.out.as_deref())?, options)));
    let (database, options) = match build {
        Ok(build) => build,
        Err(error) => {
            output::print_error(&error);
            return ExitCode::from(2);
        }
    };
    let name =
        options.database.as_deref().map_or_else(|| "the example's project".into(), |path| path.to_string_lossy());
    for entry in &database.invalid {
        output::print_error(&format_args!("{name}: {entry}"));
    }
    if database.entries.is_empty() {
        return ExitCode::from(2);
    }
    match run(database, &options) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            output::print_error(&error);
            ExitCode::FAILURE
        }
    }
}

struct Options {
    database: Option<PathBuf>,
    jobs: usize,
    keep_going: bool,
    out: Option<PathBuf>,
    help: bool,
}

fn jobs_of(text: &OsStr) -> Result<usize, Box<dyn Error>> {
    let jobs = text.to_str().and_then(|text| text.parse().ok()).filter(|&jobs: &usize| jobs > 0);
    jobs.ok_or_else(|| format!("invalid --jobs {}: not a positive number", text.display()).into())
}

impl Options {
    fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Self, Box<dyn Error>> {
        let mut arguments = arguments;
        let jobs = thread::available_parallelism().map_or(1, usize::from);
        let mut options = Self { database: None, jobs, keep_going: false, out: None, help: false };
        while let Some(argument) = arguments.next() {
            let shown = argument.display();
            let mut value = || arguments.next().ok_or_else(|| format!("{shown} needs a value; {USAGE}"));
            match argument.as_bytes() {
                b"--jobs" | b"-j" => options.jobs = jobs_of(&value()?)?,
                // `-jN`, as in make.
                [b'-', b'j', jobs @ ..] if !jobs.is_empty() => options.jobs = jobs_of(OsStr::from_bytes(jobs))?,
                b"--keep-going" | b"-k" => options.keep_going = true,
                b"--out" => options.out = Some(value()?.into()),
                b"--help" | b"-h" => options.help = true,
                [b'-', _, ..] => return Err(format!("unknown option {shown}; {USAGE}").into()),
                _ if options.database.is_some() => return Err(format!("more than one database; {USAGE}").into()),
                _ => options.database = Some(argument.into()),
            }
        }
        Ok(options)
    }
}

/// A running compilation.
struct Job {
    entry: Entry,
    finished: Option<Finished>,
    _worker: Worker,
}

/// State of the build.
struct Build<'a> {
    supervisor: &'a Supervisor,
    /// In the order of the database.
    waiting: Vec<Entry>,
    jobs: usize,
    running: HashMap<WorkerId, Job>,
    report: Report,
    keep_going: bool,
}

fn run(database: Database, options: &Options) -> Result<u8, Box<dyn Error>> {
    let interrupts = interrupts()?;
    let supervisor = Supervisor::builder().grace_period(Duration::from_millis(500)).build()?;
    let mut build = Build {
        supervisor: &supervisor,
        report: Report::new(database.entries.len(), database.invalid.len()),
        waiting: database.entries,
        jobs: options.jobs,
        running: HashMap::new(),
        keep_going: options.keep_going,
    };
    build.start_more();
    while !build.running.is_empty() {
        crossbeam_channel::select! {
            recv(supervisor.events()) -> event => build.handle(event?),
            recv(interrupts) -> signal => {
                // Every compiler is in the process group of its worker, and the supervisor kills whole groups.
                let report = build.report;
                drop(supervisor);
                report.close();
                output::print_error(&"interrupted; no compiler is left running");
                // As a shell reports it: 130 for SIGINT, 143 for SIGTERM.
                return Ok(u8::try_from(128 + signal?)?);
            }
        }
    }
    Ok(u8::from(!build.report.close()))
}

impl Build<'_> {
    /// Starts entries up to the limit of parallel jobs, unless a failure has stopped the build.
    fn start_more(&mut self) {
        while self.running.len() < self.jobs && (self.keep_going || !self.report.has_failures()) {
            let Some(entry) = self.next() else { return };
            match self.start(&entry) {
                Ok(worker) => {
                    self.running.insert(worker.id(), Job { entry, finished: None, _worker: worker });
                }
                Err(error) => self.report.not_started(&entry, &explain(&*error)),
            }
        }
    }

    /// Removes the first entry that does not wait for an earlier, unfinished entry.
    fn next(&mut self) -> Option<Entry> {
        let is_free = |index: &usize| {
            let (earlier, rest) = self.waiting.split_at(*index);
            let mut unfinished = earlier.iter().chain(self.running.values().map(|job| &job.entry));
            rest.first().is_some_and(|entry| unfinished.all(|other| !entry.waits_for(other)))
        };
        let index = (0..self.waiting.len()).find(is_free)?;
        Some(self.waiting.remove(index))
    }

    fn start(&self, entry: &Entry) -> Result<Worker, Box<dyn Error>> {
        let spec = WorkerSpec::new(std::env::current_exe()?)
            .arg(WORKER)
            .messages(Pass::arg("--messages={}"))
            .name(entry.file.to_string_lossy())
            .stdin(StdinMode::Pipe)
            .stderr(OutputMode::Lines)
            // A server that a compiler wrapper starts, such as sccache's, serves the next compilations, too.
            .survivors(SurvivorPolicy::Report);
        let text = serde_json::to_vec(entry)?;
        let worker = self.supervisor.spawn(spec)?;
        // The entry is written to standard input: it can be too long for a command line. Its index in the database would not
        // do, since the file may change during the build.
        let handed_over = worker.take_stdin().map(|stdin| stdin.write_all_timeout(&text, HANDOVER_TIMEOUT));
        if handed_over.is_some_and(|written| written.is_err_and(|error| error.kind() == io::ErrorKind::TimedOut)) {
            worker.kill()?;
        }
        // Any other error means that the worker has exited, which its `Exited` event reports.
        Ok(worker)
    }

    fn handle(&mut self, event: pipewright::Event) {
        let Some(job) = self.running.get_mut(&event.worker) else { return };
        match event.kind {
            EventKind::Message(message) => match message.json() {
                Ok(WorkerMessage::Started) => self.report.started(&job.entry),
                Ok(WorkerMessage::Diagnostic(diagnostic)) => self.report.diagnostic(event.worker, &diagnostic),
                Ok(WorkerMessage::Text(text)) => self.report.note(event.worker, text),
                Ok(WorkerMessage::Finished(finished)) => job.finished = Some(finished),
                Err(error) => self.report.note(event.worker, format!("{}: {error}", job.entry.file.display())),
            },
            EventKind::Line { line, .. } => self.report.note(event.worker, line.text().into_owned()),
            EventKind::InvalidFrame(fault) => {
                self.report.note(event.worker, format!("{}: {}", job.entry.file.display(), **fault));
            }
            EventKind::Exited { exit, .. } => {
                if let Some(Job { entry, finished, .. }) = self.running.remove(&event.worker) {
                    match finished {
                        Some(finished) => self.report.finished(event.worker, &entry, finished),
                        None => self.report.lost(event.worker, &entry, &exit),
                    }
                }
                self.start_more();
            }
            _ => {}
        }
    }
}

/// SIGINT and SIGTERM as a channel.
fn interrupts() -> Result<Receiver<i32>, Box<dyn Error>> {
    let mut signals = signal_hook::iterator::Signals::new([libc::SIGINT, libc::SIGTERM])?;
    let (sender, interrupts) = crossbeam_channel::bounded(1);
    thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            if sender.send(signal).is_err() {
                return;
            }
        }
    })?;
    Ok(interrupts)
}
