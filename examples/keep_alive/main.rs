//! A small process supervisor: starts the workers of a configuration file, restarts them, and stops them in order.
//!
//! ```text
//! cargo run --example keep_alive -- FILE.toml
//! ```
//!
//! ```toml
//! [workers.database]
//! command = ["postgres", "-D", "data"]
//! ready = { connect = "127.0.0.1:5432", within = "20s" } # or { line = "listening" }, { notify = true }
//! stop = [{ signal = "INT", wait = "10s" }] # then SIGKILL
//! limits = { open_files = 1000, nice = 5, run_time = "24h" }
//!
//! [workers.migration]
//! command = ["./migrate"] # runs once
//! after = ["database"] # once it is ready
//!
//! [workers.web]
//! command = ["./web", "--port", "8080"]
//! after = { database = "ready", migration = "exited" } # or "started"
//! env = { LOG = "debug" }
//! dir = "web"
//! output = "show" # or "inherit", "null", { file = "web.log" }: each line with time and name; `raw = true` writes directly
//! restart = "always" # or "on-failure", "never", or a table:
//! # [workers.web.restart]
//! # when = "on-failure"
//! # first = "100ms" # the first delay, which doubles up to `cap`
//! # cap = "30s"
//! # restarts = 5 # gives up after more restarts within `period`
//! # period = "30s"
//! # success_codes = [77]
//! # fatal_codes = [125]
//! ```
//!
//! In a terminal it shows a table of all workers, elsewhere a line for each event; in a file each line begins with the time. Control
//! characters in the output of workers are escaped. Ctrl-C stops all workers, each by its own stop policy, in reverse order; a second
//! Ctrl-C kills them. Ctrl-Z suspends the workers with the program.
//!
//! SIGHUP reloads the file and reopens log files. Workers that were removed from the file are stopped, then new ones are started, and
//! changed ones are restarted together with their dependents. Workers that have failed for good are started again. All others keep
//! running. If the file is invalid, the old one stays in use. When the terminal is closed, SIGHUP stops all workers, as SIGTERM does.
//!
//! If the reader of the output stops reading, the workers are paused and no output is lost; during the shutdown, unread output is
//! dropped after two seconds.
//!
//! The exit code is 0 if all workers were stopped or succeeded, 1 if no worker is left to run and one has failed, 2 if the command line
//! or the file is invalid. A worker that could not be started, was not ready in time or exceeded its run time has failed, whatever its
//! exit code is, unless a restart succeeded.

mod value; // values of the file, and errors about them
mod recipe; // the configuration of one worker
mod file; // reads the file
mod table; // the table of all workers, as text
mod screen; // writes to the terminal and to log files
mod foreman; // runs the workers of the file
#[path = "../shared/explain.rs"]
mod explain; // texts of errors
#[path = "../shared/signal_channel.rs"]
mod signal_channel; // Ctrl-C and SIGHUP

use explain::explain;
use file::Plan;
use foreman::Foreman;
use pipewright::Supervisor;
use screen::{Screen, write_line};
use signal_channel::signal_channel;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::{
    error::Error,
    fs::File,
    io,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

const USAGE: &str = "usage: keep_alive FILE.toml";
const HELP: &str = "\
Starts the workers of a file, restarts them, and stops them in order.

usage: keep_alive FILE.toml

  -h, --help     print this help
  -V, --version  print the version

signals: INT, TERM stop all workers, a second one kills; HUP reloads the file

[workers.web]
command = [\"./web\", \"--port\", \"8080\"]
restart = \"always\"             # \"never\", \"on-failure\", a table
after = [\"database\"]            # or { database = \"started\" }, \"ready\", \"exited\"
ready = { line = \"listening\" }  # or notify, connect; within = \"20s\"
stop = [{ signal = \"TERM\", wait = \"5s\" }]
output = { file = \"web.log\" }   # or \"show\", \"inherit\", \"null\"
env = { LOG = \"debug\" }
dir = \"web\"
limits = { open_files = 1000, run_time = \"24h\" }";
/// How often the table is drawn.
const REFRESH: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    // The guard process runs this program too, so no other program has to be installed.
    pipewright::guard::init();
    let path = match argument() {
        Ok(Argument::File(path)) => path,
        Ok(Argument::Show(text)) => {
            write_line(io::stdout(), &text);
            return ExitCode::SUCCESS;
        }
        Err(error) => return fail(&error, 2),
    };
    let plan = match Plan::load(&path) {
        Ok(plan) => plan,
        Err(error) => return fail(&error, 2),
    };
    match run(plan, &path) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => fail(&explain(&*error), 1),
    }
}

fn fail(error: &str, code: u8) -> ExitCode {
    write_line(io::stderr(), &format!("keep_alive: {error}"));
    ExitCode::from(code)
}

enum Argument {
    File(PathBuf),
    Show(String),
}

fn argument() -> Result<Argument, String> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(argument), None) = (arguments.next(), arguments.next()) else { return Err(USAGE.into()) };
    match argument.to_str() {
        Some("-h" | "--help") => Ok(Argument::Show(HELP.into())),
        Some("-V" | "--version") => Ok(Argument::Show(format!("keep_alive {}", env!("CARGO_PKG_VERSION")))),
        Some(option) if option.starts_with('-') => Err(format!("unknown option {option}; {USAGE}")),
        _ => Ok(Argument::File(argument.into())),
    }
}

/// Runs until no worker is left. Returns whether all of them were stopped or have succeeded.
fn run(plan: Plan, path: &Path) -> Result<bool, Box<dyn Error>> {
    let screen = Screen::new()?;
    let had_terminal = has_terminal();
    // This program starts only workers, so it can adopt orphans, and also run as process 1 of a container.
    let supervisor = Supervisor::builder().subreaper(true).build()?;
    // Set by the signal handler itself, so before any worker can exit because of the signal.
    let is_stopping = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&is_stopping))?;
    }
    let signals = signal_channel([SIGHUP, SIGINT, SIGTERM])?;
    let _terminal = supervisor.handle_signals()?;
    let ticks = if screen.is_live() { crossbeam_channel::tick(REFRESH) } else { crossbeam_channel::never::<Instant>() };
    let mut foreman = Foreman::new(&supervisor, plan, screen, is_stopping)?;
    while !foreman.is_done() {
        crossbeam_channel::select! {
            recv(foreman.events()) -> event => match event {
                Ok(event) => foreman.handle(event)?,
                // All workers were stopped and have ended.
                Err(_) => break,
            },
            recv(signals) -> signal => match signal? {
                SIGHUP if had_terminal && !has_terminal() => foreman.hang_up(),
                SIGHUP => foreman.reload(path)?,
                _ => foreman.report_stop(),
            },
            recv(ticks) -> _ => foreman.show(),
            recv(foreman.progress()) -> _ => foreman.advance(),
            recv(foreman.output_stuck()) -> _ => foreman.drop_output(),
        }
    }
    Ok(foreman.close())
}

/// Whether there is a controlling terminal. A session loses it when the terminal is closed (tty(4)).
fn has_terminal() -> bool {
    File::open("/dev/tty").is_ok()
}
