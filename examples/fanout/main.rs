//! A small real build tool: compiles every entry of a compilation database, several at once.
//!
//! ```text
//! cargo run --release --example fanout -- [compile_commands.json] [--jobs N] [--keep-going] [--out DIR]
//! ```
//!
//! Without a database it builds the small C project beside it. Each compilation is a worker: this same program, started again
//! with `--worker`, its entry on standard input and the number of its message pipe on its command line. The worker runs the
//! compiler and tells what it finds, as messages; the parent here hears all workers in one channel.
//!
//! The exit code is 0 if everything was compiled, 1 if something was not, 2 if the command line or the database is wrong, 130
//! after Ctrl-C and 143 after SIGTERM, which leave no compiler running.
#![expect(clippy::print_stderr, reason = "a command line tool talks")]

mod compile; // the worker's side: runs one compiler
mod database; // reads compile_commands.json
mod diagnostics; // what compilers print, as data
mod report; // what the user sees

use compile::{Finished, Told, explain};
use crossbeam_channel::Receiver;
use database::{Database, Entry};
use pipewright::{EventKind, Input, Output, Pass, Supervisor, Worker, WorkerId, WorkerSpec};
use report::Report;
use std::{
    collections::HashMap, error::Error, ffi::OsString, io, path::PathBuf, process::ExitCode, thread, time::Duration,
};

const USAGE: &str = "usage: fanout [compile_commands.json] [--jobs N] [--keep-going] [--out DIR]";
const WORKER: &str = "--worker";

/// A worker reads its entry before anything else; one that does not take it in this time never will.
const HANDOVER_TIME_MAX: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|first| first == WORKER) {
        return compile::main();
    }
    let build = Options::parse(std::env::args_os().skip(1))
        .and_then(|options| Ok((Database::load(options.database.as_deref(), options.out.as_deref())?, options)));
    let (database, options) = match build {
        Ok(build) => build,
        Err(error) => {
            eprintln!("fanout: {error}");
            return ExitCode::from(2);
        }
    };
    match run(database.entries, &options) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("fanout: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The command line.
struct Options {
    database: Option<PathBuf>,
    jobs: usize,
    keep_going: bool,
    out: Option<PathBuf>,
}

impl Options {
    fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Self, Box<dyn Error>> {
        // All that we are told travels to the workers as JSON, which holds nothing but UTF-8.
        let texts: Result<Vec<String>, OsString> = arguments.map(OsString::into_string).collect();
        let mut arguments = texts.map_err(|argument| format!("{} is not UTF-8", argument.display()))?.into_iter();
        let jobs = thread::available_parallelism().map_or(1, usize::from);
        let mut options = Self { database: None, jobs, keep_going: false, out: None };
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value; {USAGE}"));
            match argument.as_str() {
                "--jobs" | "-j" => {
                    let text = value()?;
                    let jobs = text.parse().ok().filter(|&jobs: &usize| jobs > 0);
                    options.jobs = jobs.ok_or_else(|| format!("--jobs {text:?} is not a number above 0"))?;
                }
                "--keep-going" | "-k" => options.keep_going = true,
                "--out" => options.out = Some(value()?.into()),
                "--help" | "-h" => return Err(USAGE.into()),
                _ if argument.starts_with('-') => return Err(format!("there is no option {argument}; {USAGE}").into()),
                _ if options.database.is_some() => return Err(format!("one database at a time; {USAGE}").into()),
                _ => options.database = Some(argument.into()),
            }
        }
        Ok(options)
    }
}

/// A compilation that is under way.
struct Job {
    entry: Entry,
    finished: Option<Finished>,
    _worker: Worker,
}

/// Everything that is to be done, is being done and was done.
struct Build<'a> {
    supervisor: &'a Supervisor,
    waiting: std::vec::IntoIter<Entry>,
    running: HashMap<WorkerId, Job>,
    report: Report,
    keep_going: bool,
}

fn run(entries: Vec<Entry>, options: &Options) -> Result<u8, Box<dyn Error>> {
    let interrupts = interrupts()?;
    let supervisor = Supervisor::builder().grace_period(Duration::from_millis(500)).build()?;
    let mut build = Build {
        supervisor: &supervisor,
        report: Report::new(entries.len()),
        waiting: entries.into_iter(),
        running: HashMap::new(),
        keep_going: options.keep_going,
    };
    for _ in 0..options.jobs.min(build.waiting.len()) {
        build.start_next();
    }
    while !build.running.is_empty() {
        crossbeam_channel::select! {
            recv(supervisor.events()) -> event => build.hear(event?),
            recv(interrupts) -> signal => {
                // Every worker leads a process group, its compiler is in it, and the supervisor ends whole groups.
                let report = build.report;
                drop(supervisor);
                report.close();
                eprintln!("fanout: interrupted; no compiler is left running");
                // As a shell tells it: 130 for SIGINT, 143 for SIGTERM.
                return Ok(u8::try_from(128 + signal?)?);
            }
        }
    }
    Ok(u8::from(!build.report.close()))
}

impl Build<'_> {
    /// Starts one more, if there is one, and no failure speaks against it.
    fn start_next(&mut self) {
        while self.keep_going || !self.report.has_failures() {
            let Some(entry) = self.waiting.next() else { return };
            match self.start(&entry) {
                Ok(worker) => {
                    self.running.insert(worker.id(), Job { entry, finished: None, _worker: worker });
                    return;
                }
                Err(error) => self.report.not_started(&entry, &explain(&*error)),
            }
        }
    }

    fn start(&self, entry: &Entry) -> Result<Worker, Box<dyn Error>> {
        let spec = WorkerSpec::new(std::env::current_exe()?)
            .arg(WORKER)
            .messages(Pass::arg("--messages={}"))
            .name(entry.file.to_string_lossy())
            .stdin(Input::Pipe)
            .stderr(Output::Lines);
        let text = serde_json::to_vec(entry)?;
        let worker = self.supervisor.spawn(spec)?;
        // Through a pipe, whose end is the end of the entry: with the whole entry on it, a command line can be longer than the
        // kernel allows, and the number of an entry says nothing when the database was made in memory, or is written anew
        // meanwhile.
        let handed_over = worker.take_stdin().map(|stdin| stdin.write_all_deadline(&text, HANDOVER_TIME_MAX));
        if handed_over.is_some_and(|written| written.is_err_and(|error| error.kind() == io::ErrorKind::TimedOut)) {
            worker.kill()?;
        }
        // Any other failure is the worker's death, and its `Exited` says more about it.
        Ok(worker)
    }

    fn hear(&mut self, event: pipewright::Event) {
        let Some(job) = self.running.get_mut(&event.worker) else { return };
        match event.kind {
            EventKind::Message(message) => match message.json() {
                Ok(Told::Started { .. }) => self.report.started(&job.entry),
                Ok(Told::Diagnostic(diagnostic)) => self.report.diagnostic(event.worker, &diagnostic),
                Ok(Told::Finished(finished)) => job.finished = Some(finished),
                Err(error) => self.report.note(event.worker, format!("{}: {error}", job.entry.file.display())),
            },
            EventKind::Line { line, .. } => self.report.note(event.worker, line.text().into_owned()),
            EventKind::Fault(fault) => {
                self.report.note(event.worker, format!("{}: {}", job.entry.file.display(), **fault));
            }
            EventKind::Exited(exit) => {
                if let Some(Job { entry, finished, .. }) = self.running.remove(&event.worker) {
                    match finished {
                        Some(finished) => self.report.finished(event.worker, &entry, finished),
                        None => self.report.lost(event.worker, &entry, &exit),
                    }
                }
                self.start_next();
            }
            _ => {}
        }
    }
}

/// Ctrl-C and a polite kill, as a channel.
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
