//! A build tool: runs the commands of a compilation database in parallel, and only those whose inputs have changed.
//!
//! ```text
//! cargo run --release --example fanout -- --help
//! ```
//!
//! Without a database it builds the C project in `examples/c-project`. Each command is a worker, whose output and exit arrive in one
//! channel of events.

mod build; // runs the steps
mod build_log; // what is known from the last run
mod command; // command lines: words or shell, output options
mod database; // reads compile_commands.json
mod depfile; // parses dependency files
mod diagnostics; // recognizes warnings
mod job_log; // --joblog
mod options; // the command line
mod output; // writes lines to stdout and stderr
mod plan; // what has to run, in which order
mod records; // --joblog and --trace together
mod report; // progress, output of the steps, summary
mod rule; // commands after the database
mod trace; // --trace
#[path = "../shared/explain.rs"]
mod explain; // texts of errors
#[path = "../shared/signal_channel.rs"]
mod signal_channel; // Ctrl-C

use build::Outcome;
use build_log::BuildLog;
use database::Database;
use options::{HELP, Options};
use plan::{Choice, Plan};
use records::Records;
use report::{Counts, Report};
use rule::Rule;
use std::{error::Error, path::Path, process::ExitCode};

fn main() -> ExitCode {
    // If this program is killed, a second process of it kills the compilers.
    pipewright::guard::init();
    let options = match Options::parse(std::env::args_os().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            output::print_line(HELP);
            return ExitCode::SUCCESS;
        }
        Err(error) => return invalid(&error),
    };
    let Prepared { plan, mut log, report, records } = match prepare(&options) {
        Ok(Some(prepared)) => prepared,
        // The errors of all entries are printed.
        Ok(None) => return ExitCode::from(2),
        Err(error) => return invalid(&error),
    };
    if !plan.steps.iter().any(|step| step.is_needed) {
        return if report.close() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    match build::run(&plan, (&mut log, records), report, &options) {
        Ok(Outcome::Built) => ExitCode::SUCCESS,
        Ok(Outcome::Failed) => ExitCode::FAILURE,
        // As a shell reports it: 130 for SIGINT, 143 for SIGTERM.
        Ok(Outcome::Interrupted(signal)) => ExitCode::from(u8::try_from(128 + signal).unwrap_or(u8::MAX)),
        Err(error) => {
            output::print_error(&error);
            ExitCode::FAILURE
        }
    }
}

fn invalid(error: &dyn std::fmt::Display) -> ExitCode {
    output::print_error(error);
    ExitCode::from(2)
}

struct Prepared {
    plan: Plan,
    log: BuildLog,
    report: Report,
    records: Records,
}

/// Reads the database and the build log. `None` if no entry is valid.
fn prepare(options: &Options) -> Result<Option<Prepared>, Box<dyn Error>> {
    let mut database = Database::load(options.database.as_deref(), options.out.as_deref())?;
    let here = std::env::current_dir()?;
    let name =
        options.database.as_deref().map_or_else(|| "the example's project".into(), |path| path.to_string_lossy());
    for entry in &database.invalid {
        output::print_error(&format_args!("{name}: {entry}"));
    }
    if database.entries.is_empty() {
        return Ok(None);
    }
    for entry in &mut database.entries {
        if let Ok(below) = Path::new(&entry.file).strip_prefix(&here) {
            entry.file = below.as_os_str().to_owned();
        }
    }
    let objects: Vec<_> = database.entries.iter().filter_map(|entry| entry.output.clone()).collect();
    let rules = options.rules.iter().map(|rule| Rule::parse(rule, &here, &objects)).collect::<Result<_, _>>()?;
    let mut log = BuildLog::open(&database.directory)?;
    let mut plan = Plan::new(database.entries, rules, !options.no_depfiles);
    let (records, succeeded) = Records::open(options)?;
    plan.compare_with(&mut log, &Choice { always: options.always, succeeded });
    let needed = plan.steps.iter().filter(|step| step.is_needed).count();
    let counts =
        Counts { needed, up_to_date: plan.steps.len() - needed, invalid: database.invalid.len(), ..Counts::default() };
    let report = Report::new(counts, options.verbose);
    if !log.is_writable() && needed > 0 {
        report.warn(&format!("{}: not writable, so the next run builds everything again", log.path().display()));
    }
    Ok(Some(Prepared { plan, log, report, records }))
}
