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
//! output = "show" # or "inherit", "null", { file = "web.log" }
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
//! In a terminal it shows a table of all workers, elsewhere a line for each thing that happens. Ctrl-C stops all of them, each by
//! its own ladder, in the reverse of their order; the second one kills. Ctrl-Z stops them with us. SIGHUP has the file read again:
//! workers that are new are started, those that are gone from it are stopped, and those that have changed are restarted, with
//! whoever comes after them; those that have failed for good are tried again, with whoever comes after them; the others are left
//! alone. One that takes long to stop holds up only those who take its place or come after it. While the file is wrong the old one
//! stays.
//!
//! The exit code is 0 if everybody was stopped or has done its work, 1 if nobody is left to run and somebody has failed, 2 if the
//! command line or the file is wrong. Whoever was not started, was never ready or ran past its time has failed, however it ended,
//! unless it came back and did well.
#![expect(clippy::print_stderr, reason = "a command line tool talks")]

mod value; // values of the file, and what is wrong with one
mod recipe; // one worker, as the file has it; what the library makes of it
mod file; // reads the file, and says in one line what is wrong with it
mod table; // what the user sees
mod foreman; // has that run which the file wants

use crossbeam_channel::Receiver;
use file::Plan;
use foreman::Foreman;
use pipewright::Supervisor;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::{
    error::Error,
    io,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, atomic::AtomicBool},
    thread,
};
use table::Table;

const USAGE: &str = "usage: keep_alive FILE.toml";

fn main() -> ExitCode {
    let plan = argument().and_then(|path| Ok((Plan::load(&path)?, path)));
    let (plan, path) = match plan {
        Ok(plan) => plan,
        Err(error) => {
            eprintln!("keep_alive: {error}");
            return ExitCode::from(2);
        }
    };
    match run(plan, &path) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("keep_alive: {}", explain(&*error));
            ExitCode::FAILURE
        }
    }
}

fn argument() -> Result<PathBuf, String> {
    let mut arguments = std::env::args_os().skip(1);
    match (arguments.next(), arguments.next()) {
        (Some(path), None) if !path.to_string_lossy().starts_with('-') => Ok(path.into()),
        _ => Err(USAGE.into()),
    }
}

/// Until nobody is left to run. True if that is as it should be.
fn run(plan: Plan, path: &Path) -> Result<bool, Box<dyn Error>> {
    let table = Table::new();
    let supervisor = Supervisor::new()?;
    // Set by the handler itself, so before anybody can have ended of it.
    let is_stopping = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&is_stopping))?;
    }
    let signals = signals()?;
    let _terminal = supervisor.terminal_signals()?;
    let ticks = table.ticks();
    let mut foreman = Foreman::new(&supervisor, plan, table, is_stopping)?;
    while !foreman.is_done() {
        crossbeam_channel::select! {
            recv(supervisor.events()) -> event => match event {
                Ok(event) => foreman.hear(event)?,
                // Everybody was stopped, and has ended.
                Err(_) => break,
            },
            recv(signals) -> signal => match signal? {
                SIGHUP => foreman.reload(path)?,
                _ => foreman.tell_stop(),
            },
            recv(ticks) -> _ => foreman.show(),
        }
    }
    Ok(foreman.close())
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
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
