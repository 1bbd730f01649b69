//! Hosts that are themselves workers, or children of `make` or Node.

use crate::{Options, Outcome};
use pipewright::{EventKind, Parent, Pass, Supervisor, WorkerSpec};
use serde_json::{Value, json};
use std::{
    env,
    error::Error,
    io::{self, Write},
    process::Command,
};

/// `--depth N`: sends its depth with the names of its environment variables, then starts a worker of its own that does the same, down to
/// depth 0, and forwards that worker's messages. Its pipe is named by the variable `LEVEL_N`.
pub(crate) fn level(options: &Options) -> Outcome {
    let depth: u32 = options.number("depth")?;
    let parent = Parent::from_env(&format!("LEVEL_{depth}"))?;
    let names: Vec<String> = env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned()).collect();
    parent.send(&json!({"depth": depth, "names": names}))?;
    let Some(below) = depth.checked_sub(1) else { return Ok(()) };
    let supervisor = Supervisor::new()?;
    let fixture = env::current_exe()?;
    let spec = match options.get("way") {
        Some("command") => WorkerSpec::from_command(move || Command::new(&fixture)).args(["level", "--way", "command"]),
        _ => WorkerSpec::new(fixture).arg("level"),
    };
    let spec = spec.args(["--depth", &below.to_string()]).messages(Pass::env(format!("LEVEL_{below}")));
    supervisor.spawn(spec)?;
    for message in messages(supervisor) {
        parent.send(&message?)?;
    }
    Ok(())
}

/// `[--input TEXT] -- PROGRAM ARGUMENT...`: a worker that reads from fd 3 and sends messages to fd 4, which are printed.
pub(crate) fn run_worker(options: &Options) -> Outcome {
    let supervisor = Supervisor::new()?;
    let mut words = options.0.iter().skip_while(|word| *word != "--").skip(1);
    let program = words.next().ok_or("there is no program")?;
    let spec = WorkerSpec::new(program).args(words).input_pipe("input", Pass::fd(3)).messages(Pass::fd(4));
    let worker = supervisor.spawn(spec)?;
    let mut input = worker.take_writer("input").ok_or("there is no input")?;
    input.write_all(options.get("input").unwrap_or_default().as_bytes())?;
    drop(input);
    for message in messages(supervisor) {
        println!("{}", message?);
    }
    println!("{}", worker.wait());
    Ok(io::stdout().flush()?)
}

/// All messages of its workers; an invalid frame is an error.
fn messages(supervisor: Supervisor) -> impl Iterator<Item = Result<Value, Box<dyn Error>>> {
    supervisor.close();
    let events = supervisor.events().clone();
    events.into_iter().filter_map(move |event| {
        let _held = &supervisor;
        match event.kind {
            EventKind::Message(message) => Some(message.json().map_err(Box::from)),
            EventKind::InvalidFrame(fault) => Some(Err(format!("{fault:?}").into())),
            _ => None,
        }
    })
}
