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

mod command; // a command line: words or shell, and what its options say
mod compile; // the worker's side: runs one compiler
mod database; // reads compile_commands.json
mod diagnostics; // what compilers print, as data
mod output; // writes lines to our own stdout and stderr
mod report; // what the user sees

use compile::{Finished, Told, explain};
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

/// A worker reads its entry before anything else; one that does not take it in this time never will.
const HANDOVER_TIME_MAX: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|first| first == WORKER) {
        return compile::main();
    }
    let options = match Options::parse(std::env::args_os().skip(1)) {
        Ok(Options { help: true, .. }) => {
            output::say(USAGE);
            return ExitCode::SUCCESS;
        }
        options => options,
    };
    let build =
        options.and_then(|options| Ok((Database::load(options.database.as_deref(), options.out.as_deref())?, options)));
    let (database, options) = match build {
        Ok(build) => build,
        Err(error) => {
            output::complain(&error);
            return ExitCode::from(2);
        }
    };
    let name =
        options.database.as_deref().map_or_else(|| "the example's project".into(), |path| path.to_string_lossy());
    for bad in &database.bad {
        output::complain(&format_args!("{name}: {bad}"));
    }
    if database.entries.is_empty() {
        return ExitCode::from(2);
    }
    match run(database, &options) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            output::complain(&error);
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
    help: bool,
}

fn jobs_of(text: &OsStr) -> Result<usize, Box<dyn Error>> {
    let jobs = text.to_str().and_then(|text| text.parse().ok()).filter(|&jobs: &usize| jobs > 0);
    jobs.ok_or_else(|| format!("--jobs {} is not a number above 0", text.display()).into())
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
                // As make takes it.
                [b'-', b'j', jobs @ ..] if !jobs.is_empty() => options.jobs = jobs_of(OsStr::from_bytes(jobs))?,
                b"--keep-going" | b"-k" => options.keep_going = true,
                b"--out" => options.out = Some(value()?.into()),
                b"--help" | b"-h" => options.help = true,
                [b'-', _, ..] => return Err(format!("there is no option {shown}; {USAGE}").into()),
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
        report: Report::new(database.entries.len(), database.bad.len()),
        waiting: database.entries,
        jobs: options.jobs,
        running: HashMap::new(),
        keep_going: options.keep_going,
    };
    build.start_more();
    while !build.running.is_empty() {
        crossbeam_channel::select! {
            recv(supervisor.events()) -> event => build.hear(event?),
            recv(interrupts) -> signal => {
                // Every worker leads a process group, its compiler is in it, and the supervisor ends whole groups.
                let report = build.report;
                drop(supervisor);
                report.close();
                output::complain(&"interrupted; no compiler is left running");
                // As a shell tells it: 130 for SIGINT, 143 for SIGTERM.
                return Ok(u8::try_from(128 + signal?)?);
            }
        }
    }
    Ok(u8::from(!build.report.close()))
}

impl Build<'_> {
    /// Starts as many as may run at once, until a failure stops the build.
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

    /// The first entry that waits for none of those before it.
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
            // What a compiler leaves running on purpose, as sccache's server, is for the next compilation.
            .survivors(SurvivorPolicy::Report);
        let text = serde_json::to_vec(entry)?;
        let worker = self.supervisor.spawn(spec)?;
        // Through a pipe, whose end is the end of the entry: with the whole entry on it, a command line can be longer than the
        // kernel allows, and the number of an entry says nothing when the database was made in memory, or is written anew
        // meanwhile.
        let handed_over = worker.take_stdin().map(|stdin| stdin.write_all_timeout(&text, HANDOVER_TIME_MAX));
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
                Ok(Told::Started) => self.report.started(&job.entry),
                Ok(Told::Diagnostic(diagnostic)) => self.report.diagnostic(event.worker, &diagnostic),
                Ok(Told::Text(text)) => self.report.note(event.worker, text),
                Ok(Told::Finished(finished)) => job.finished = Some(finished),
                Err(error) => self.report.note(event.worker, format!("{}: {error}", job.entry.file.display())),
            },
            EventKind::Line { line, .. } => self.report.note(event.worker, line.text().into_owned()),
            EventKind::InvalidFrame(fault) => {
                self.report.note(event.worker, format!("{}: {}", job.entry.file.display(), **fault));
            }
            EventKind::Exited(exit) => {
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
