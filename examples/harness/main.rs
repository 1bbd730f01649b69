//! A test harness: runs each test in a process of its own, as cargo-nextest does.
//!
//! ```text
//! cargo run --release --example harness -- [OPTIONS] [-- ARGUMENTS OF cargo test]
//! cargo run --release --example harness -- [OPTIONS] PROGRAM...
//! cargo run --release --example harness -- [OPTIONS] --tap PROGRAM...
//! ```
//!
//! Without programs it builds the tests of the package with `cargo test --no-run`. A program lists its tests by libtest's `--list
//! --format terse`; a TAP program is one test. Documentation tests are not run, since they are not programs.
//!
//! A test that hangs is stopped after its timeout, with everything it has started. A process or an open output that a test leaves
//! behind is named, and the process is killed; other than nextest, also if it has closed the output. Ctrl-C stops the tests that run
//! and reports them as interrupted, not as failed; a second one kills them. Ctrl-Z stops them with the harness.
//!
//! Exit codes are those of nextest (see [`Failure`] and `--help`), but an interrupt is 130 or 143, as in a shell.

mod options; // the command line
mod select; // filters and partitions
mod tap; // the Test Anything Protocol
mod output; // what tests have written; writes to stderr
mod program; // test programs and their tests
mod list; // asks programs for their tests
mod cargo_build; // builds test programs
mod verdict; // how a test ended
mod runner; // runs the tests
mod counts; // how many ended in which way
mod status_line; // a line about a test
mod report; // progress and summary
mod junit; // results as XML
#[path = "../shared/signal_channel.rs"]
mod signal_channel; // Ctrl-C

use cargo_build::BuildError;
use counts::Counts;
use crossbeam_channel::Receiver;
use options::{HELP, Options, Request, USAGE};
use pipewright::{SignalGuard, Supervisor, pool::Jobs};
use program::{ProgramKind, TestProgram};
use report::Report;
use runner::Runner;
use signal_channel::signal_channel;
use signal_hook::consts::{SIGINT, SIGTERM};
use std::{collections::BTreeSet, io, process::ExitCode, sync::Arc};

/// Why there is no result of the tests.
enum Failure {
    /// The supervisor or a thread could not be started.
    Setup(io::Error),
    NoTests,
    Usage(String),
    Tests,
    Build(BuildError),
    List(String),
    Write(String),
    Interrupted(i32),
}

impl Failure {
    fn code(&self) -> u8 {
        match self {
            Self::Setup(_) => 1,
            Self::NoTests => 4,
            Self::Usage(_) => 96,
            Self::Tests => 100,
            Self::Build(BuildError::Failed(_)) => 101,
            Self::Build(BuildError::Metadata(_)) => 102,
            Self::List(_) => 104,
            Self::Write(_) => 110,
            // As a shell reports it: 130 for SIGINT, 143 for SIGTERM.
            Self::Interrupted(signal) => u8::try_from(128 + signal).unwrap_or(u8::MAX),
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Setup(error) => format!("failed to start: {error}"),
            Self::NoTests => "no tests to run".into(),
            Self::Usage(error) => format!("{error}\n{USAGE}"),
            Self::Tests => "test run failed".into(),
            Self::Build(BuildError::Failed(error)) => format!("cargo test --no-run failed: {error}"),
            Self::Build(BuildError::Metadata(error)) => format!("cargo metadata failed: {error}"),
            Self::List(error) => format!("creating the test list failed: {error}"),
            Self::Write(error) => error.clone(),
            Self::Interrupted(signal) => {
                format!("interrupted by {}", signal_hook::low_level::signal_name(*signal).unwrap_or("a signal"))
            }
        }
    }
}

fn main() -> ExitCode {
    // The guard process runs this program too, so no other program has to be installed.
    pipewright::guard::init();
    let result = match Request::parse(std::env::args_os().skip(1)) {
        Ok(Request::Help) => {
            output::write(io::stdout(), &format!("{USAGE}\n\n{HELP}\n"));
            return ExitCode::SUCCESS;
        }
        Ok(Request::Version) => {
            output::write(io::stdout(), concat!("harness ", env!("CARGO_PKG_VERSION"), "\n"));
            return ExitCode::SUCCESS;
        }
        Ok(Request::Run(options)) => run(&options),
        Err(error) => Err(Failure::Usage(error)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::print_error(&failure.text());
            ExitCode::from(failure.code())
        }
    }
}

fn run(options: &Options) -> Result<(), Failure> {
    // For the report; the supervisor handles them.
    let interrupts = signal_channel([SIGINT, SIGTERM]).map_err(Failure::Setup)?;
    let supervisor = Supervisor::new().map_err(Failure::Setup)?;
    let signals = supervisor.handle_signals().map_err(Failure::Setup)?;
    let result = run_under((&supervisor, &signals), &interrupts, options);
    // What an interrupted build or list says about its end is no error.
    signals.received().map_or(result, |signal| Err(Failure::Interrupted(signal)))
}

fn run_under(
    (supervisor, signals): (&Supervisor, &SignalGuard),
    interrupts: &Receiver<i32>,
    options: &Options,
) -> Result<(), Failure> {
    let programs = programs(supervisor, options)?;
    let jobs = Jobs::new(supervisor, options.run.at_a_time);
    let all = list::tests(supervisor, &jobs, &programs).map_err(Failure::List)?;
    let total = all.len();
    let tests = options.selection.select(all);
    if options.list {
        let names: Vec<String> = tests.iter().map(|test| test.full_name() + "\n").collect();
        output::write(io::stdout(), &names.concat());
        return Ok(());
    }
    let skipped = total - tests.len();
    let mut report = Report::new(tests.len(), skipped, options.run.retries, &options.output);
    report.begin(programs.len());
    let runner = Runner::new((supervisor, &jobs, signals), (&options.run, &options.output), &mut report);
    let results = runner.run(tests, interrupts);
    let counts = Counts::of(&results);
    report.end(&results, &counts);
    if let Some(path) = &options.output.junit {
        let written = junit::write(path, &results, report.elapsed());
        written.map_err(|error| Failure::Write(format!("failed to write {}: {error}", path.display())))?;
    }
    outcome(&counts, options.passes_without_tests)
}

fn outcome(counts: &Counts, passes_without_tests: bool) -> Result<(), Failure> {
    if counts.has_failures() {
        return Err(Failure::Tests);
    }
    let is_empty = counts.run + counts.skipped + counts.not_run == 0;
    if is_empty && !passes_without_tests { Err(Failure::NoTests) } else { Ok(()) }
}

fn programs(supervisor: &Supervisor, options: &Options) -> Result<Vec<Arc<TestProgram>>, Failure> {
    let mut programs = if options.uses_cargo() {
        cargo_build::build(supervisor, &options.cargo_arguments).map_err(Failure::Build)?
    } else {
        let libtest = options.programs.iter().map(|path| TestProgram::named(path, ProgramKind::Libtest));
        let tap = options.tap_programs.iter().map(|path| TestProgram::named(path, ProgramKind::Tap));
        libtest.chain(tap).collect()
    };
    let mut seen = BTreeSet::new();
    for program in &mut programs {
        if !seen.insert(program.id.clone()) {
            program.id = program.path.display().to_string();
        }
    }
    Ok(programs.into_iter().map(Arc::new).collect())
}
