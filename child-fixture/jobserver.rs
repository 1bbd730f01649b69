//! Clients of a jobserver.

use crate::{Options, Outcome, host};
use pipewright::{
    Event, EventKind, SpawnError, StdinMode, Supervisor, Worker, WorkerSpec,
    jobserver::{JobserverClient, JobserverToken},
    pipe::Timeout,
    pool::Jobs,
};
use std::{error::Error, io, thread};

/// `[--guard shell|own|none] [--late]`: obeys the words on its standard input, and prints a line for each: `try` and `acquire` take a token,
/// `release` returns the last one; `spawn` starts a worker that runs until its standard input ends, `--late` one before the client is opened, `drop` ends it with its supervisor; `churn` takes
/// and returns tokens on three threads until it is killed.
pub(crate) fn obey(options: &Options) -> Outcome {
    let early = options.has("late").then(|| start(options)).transpose()?;
    let Some(client) = JobserverClient::from_env().map_err(|error| error.to_string())? else {
        return host::say("no jobserver");
    };
    host::say("jobserver")?;
    let mut tokens = Vec::new();
    let mut supervisor = early;
    for word in io::stdin().lines() {
        let answer = match word?.as_str() {
            "try" => kept(client.try_acquire()?, &mut tokens),
            "acquire" => kept(Some(client.acquire_timeout(Timeout::never())?), &mut tokens),
            "release" => tokens.pop().map_or("none", |_| "returned"),
            "spawn" => {
                match &supervisor {
                    Some(supervisor) => drop(spawn(supervisor)?),
                    None => supervisor = Some(start(options)?),
                }
                "spawned"
            }
            "churn" => {
                for _ in 0..3 {
                    let client = client.clone();
                    thread::Builder::new().spawn(move || {
                        while let Ok(token) = client.try_acquire() {
                            drop(token);
                        }
                    })?;
                }
                "churning"
            }
            "drop" => supervisor.take().map_or("none", |_| "dropped"),
            _ => "unknown",
        };
        host::say(answer)?;
    }
    Ok(())
}

/// Starts a supervisor with a worker.
fn start(options: &Options) -> Result<Supervisor, Box<dyn Error>> {
    let supervisor = Supervisor::builder().guard(host::guard(options)?).build()?;
    spawn(&supervisor)?;
    Ok(supervisor)
}

fn spawn(supervisor: &Supervisor) -> Result<Worker, SpawnError> {
    supervisor.spawn(WorkerSpec::new("cat").stdin(StdinMode::Pipe))
}

fn kept(token: Option<JobserverToken>, tokens: &mut Vec<JobserverToken>) -> &'static str {
    let Some(token) = token else { return "none" };
    let answer = if token.is_implicit() { "implicit" } else { "token" };
    tokens.push(token);
    answer
}

/// `--jobs N --program PATH`: runs the program N times, each under a token, up to eight at a time.
pub(crate) fn build(options: &Options) -> Outcome {
    let client = JobserverClient::from_env()?.ok_or("no jobserver")?;
    let program = options.get("program").ok_or("no program")?;
    let supervisor = Supervisor::new()?;
    let jobs = Jobs::new(&supervisor, 8).jobserver(&client);
    for _ in 0..options.number("jobs")? {
        jobs.submit(WorkerSpec::new(program))?;
    }
    supervisor.close();
    let failed = |event: &Event| matches!(&event.kind, EventKind::Exited { exit, .. } if !exit.success());
    match supervisor.events().iter().filter(failed).count() {
        0 => Ok(()),
        failures => Err(format!("{failures} jobs have failed").into()),
    }
}
