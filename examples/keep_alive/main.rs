//! A small foreman: starts the workers that a file lists, keeps them alive, and ends them in order.
//!
//! ```text
//! cargo run --example keep_alive -- FILE.toml
//! ```
//!
//! ```toml
//! [workers.database]
//! command = ["postgres", "-D", "data"]
//! ready = { connect = "127.0.0.1:5432", within = "20s" } # or { line = "listening" }, { notify = true }
//! stop = [{ signal = "INT", wait = "10s" }] # and then SIGKILL
//! limits = { open_files = 1000, nice = 5, run_time = "24h" }
//!
//! [workers.migration]
//! command = ["./migrate"] # once
//! after = ["database"] # when that is ready
//!
//! [workers.web]
//! command = ["./web", "--port", "8080"]
//! after = { database = "ready", migration = "exited" } # or "started"
//! env = { LOG = "debug" }
//! dir = "web"
//! output = "show" # or "inherit", "null", { file = "web.log" }: each line with the time and the name; with `raw = true` as it is
//! restart = "always" # or "on-failure", "never", or all that can be said of it:
//! # [workers.web.restart]
//! # when = "on-failure"
//! # first = "100ms" # the first pause, which doubles up to `cap`
//! # cap = "30s"
//! # restarts = 5 # more than these within `period`, and it gives up
//! # period = "30s"
//! # success_codes = [77]
//! # fatal_codes = [125]
//! ```
//!
//! In a terminal it shows a table of all workers, elsewhere a line for each thing that happens; in a file each line begins with the
//! time. Control characters in what workers write are shown escaped. Ctrl-C stops all of them, each by its own ladder, in the reverse
//! of their order; the second one kills. Ctrl-Z stops them with us. SIGHUP has the file read again and log files opened anew: workers
//! that are gone from it are stopped, then those that are new are started, and those that have changed are restarted, with those that
//! come after them; those that have failed for good are tried again; the others are left alone. While the file is wrong the old one
//! stays. When the terminal is closed, SIGHUP stops all of them as SIGTERM does.
//!
//! A reader of our output that stops reading makes the workers wait, and nothing is lost; while all are being stopped it is given
//! up after two seconds.
//!
//! The exit code is 0 if everybody was stopped or has done its work, 1 if nobody is left to run and somebody has failed, 2 if the
//! command line or the file is wrong. Whoever was not started, was never ready or ran past its time has failed, however it ended,
//! unless it came back and did well.

mod value; // values of the file, and what is wrong with one
mod recipe; // one worker, as the file has it; what the library makes of it
mod file; // reads the file, and says in one line what is wrong with it
mod table; // the table of all workers, as text
mod screen; // writes what the user sees, and log files
mod foreman; // has that run which the file wants

use crossbeam_channel::Receiver;
use file::Plan;
use foreman::Foreman;
use pipewright::Supervisor;
use screen::{Screen, write_line};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::{
    error::Error,
    fs::File,
    io,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, atomic::AtomicBool},
    thread,
    time::{Duration, Instant},
};

const USAGE: &str = "usage: keep_alive FILE.toml";
const HELP: &str = "\
Starts the workers that a file lists, keeps them alive, and ends them in order.

usage: keep_alive FILE.toml

  -h, --help     shows this
  -V, --version  shows the version

signals: INT, TERM stop all, the second one kills; HUP reads the file again

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
    // The guard is this program too, so that none of the system's tools is needed.
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

/// What the command line asks for.
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
        Some(option) if option.starts_with('-') => Err(format!("there is no option {option}; {USAGE}")),
        _ => Ok(Argument::File(argument.into())),
    }
}

/// Until nobody is left to run. True if that is as it should be.
fn run(plan: Plan, path: &Path) -> Result<bool, Box<dyn Error>> {
    let screen = Screen::new()?;
    let had_terminal = has_terminal();
    // This program starts nothing but workers, so orphans may come to it: it also serves as process 1 of a container.
    let supervisor = Supervisor::builder().subreaper(true).build()?;
    // Set by the handler itself, so before anybody can have ended of it.
    let is_stopping = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&is_stopping))?;
    }
    let signals = signals()?;
    let _terminal = supervisor.handle_signals()?;
    let ticks = if screen.is_live() { crossbeam_channel::tick(REFRESH) } else { crossbeam_channel::never::<Instant>() };
    let mut foreman = Foreman::new(&supervisor, plan, screen, is_stopping)?;
    while !foreman.is_done() {
        crossbeam_channel::select! {
            recv(foreman.events()) -> event => match event {
                Ok(event) => foreman.hear(event)?,
                // Everybody was stopped, and has ended.
                Err(_) => break,
            },
            recv(signals) -> signal => match signal? {
                SIGHUP if had_terminal && !has_terminal() => foreman.hang_up(),
                SIGHUP => foreman.reload(path)?,
                _ => foreman.tell_stop(),
            },
            recv(ticks) -> _ => foreman.show(),
            recv(foreman.progress()) -> _ => foreman.advance(),
            recv(foreman.patience()) -> _ => foreman.give_up_screen(),
        }
    }
    Ok(foreman.close())
}

/// Whether there is a controlling terminal; a session whose terminal was closed has none any more (`tty(4)`).
fn has_terminal() -> bool {
    File::open("/dev/tty").is_ok()
}

/// What the user wants, as a channel.
fn signals() -> io::Result<Receiver<i32>> {
    let mut signals = signal_hook::iterator::Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    let (sender, receiver) = crossbeam_channel::unbounded();
    thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            if sender.send(signal).is_err() {
                return;
            }
        }
    })?;
    Ok(receiver)
}

/// An error with its causes, in one line.
fn explain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let reason = error.to_string();
        if !text.contains(&reason) {
            text = format!("{text}: {reason}");
        }
        cause = error.source();
    }
    text
}
