//! Clients of a jobserver.

use crate::{Options, Outcome, host};
use pipewright::{
    EventKind, StdinMode, Supervisor, WorkerSpec,
    jobserver::{JobserverClient, JobserverToken},
    pipe::Timeout,
};
use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

/// `[--guard shell|own|none]`: obeys the words on its standard input, and prints a line for each: `try` and `acquire` take a token,
/// `release` returns the last one; `spawn` starts a worker that runs until its standard input ends, `drop` ends it with its supervisor.
pub(crate) fn obey(options: &Options) -> Outcome {
    let Some(client) = JobserverClient::from_env().map_err(|error| error.to_string())? else {
        return host::say("no jobserver");
    };
    host::say("jobserver")?;
    let mut tokens = Vec::new();
    let mut supervisor = None;
    for word in io::stdin().lines() {
        let answer = match word?.as_str() {
            "try" => kept(client.try_acquire()?, &mut tokens),
            "acquire" => kept(Some(client.acquire_timeout(Timeout::never())?), &mut tokens),
            "release" => tokens.pop().map_or("none", |_| "returned"),
            "spawn" => {
                let held = Supervisor::builder().guard(host::guard(options)?).build()?;
                held.spawn(WorkerSpec::new("cat").stdin(StdinMode::Pipe))?;
                supervisor = Some(held);
                "spawned"
            }
            "drop" => supervisor.take().map_or("none", |_| "dropped"),
            _ => "unknown",
        };
        host::say(answer)?;
    }
    Ok(())
}

fn kept(token: Option<JobserverToken>, tokens: &mut Vec<JobserverToken>) -> &'static str {
    let Some(token) = token else { return "none" };
    let answer = if token.is_implicit() { "implicit" } else { "token" };
    tokens.push(token);
    answer
}

/// `--jobs N --program PATH`: runs the program N times, each under a token, as workers of one supervisor.
pub(crate) fn build(options: &Options) -> Outcome {
    let client = JobserverClient::from_env()?.ok_or("no jobserver")?;
    let program = options.get("program").ok_or("no program")?.to_owned();
    let supervisor = Supervisor::new()?;
    let running = Arc::new(Mutex::new(HashMap::new()));
    let events = supervisor.events().clone();
    let ended = Arc::clone(&running);
    let count = options.number("jobs")?;
    let collector = thread::Builder::new().spawn(move || {
        let exits = events.iter().filter(|event| matches!(event.kind, EventKind::Exited { .. }));
        for event in exits.take(count) {
            let token = ended.lock().unwrap_or_else(PoisonError::into_inner).remove(&event.worker);
            drop(token);
        }
    })?;
    for _ in 0..count {
        let token = client.acquire_timeout(Timeout::never())?;
        // Held during the spawn: the exit may come first.
        let mut running = running.lock().unwrap_or_else(PoisonError::into_inner);
        let worker = supervisor.spawn(WorkerSpec::new(&program))?;
        running.insert(worker.id(), token);
    }
    collector.join().map_err(|_| "the collector panicked")?;
    Ok(())
}
