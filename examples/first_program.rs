//! The README's build tool: jobs that send messages, one per processor at a time.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it shows what happens")]

use pipewright::{EventKind, OutputMode, Pass, Supervisor, WorkerSpec, pool::Jobs};
use std::thread::available_parallelism;

#[derive(serde::Deserialize)]
struct Progress {
    done: u32,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let supervisor = Supervisor::new()?;
    let jobs = Jobs::new(&supervisor, available_parallelism()?.get()); // one per processor at a time
    let worker = WorkerSpec::new("./compile-worker")
        .messages(Pass::arg("--messages={}")) // {} is replaced by the number of the file descriptor
        .stderr(OutputMode::Lines); // up to 8 KiB of it also come with the exit
    for file in ["a.c", "b.c"] {
        jobs.submit(worker.clone().arg(file))?;
    }
    supervisor.close(); // no more jobs: the channel closes after the last event
    for event in supervisor.events() {
        match event.kind {
            EventKind::Message(message) => match message.json::<Progress>() {
                Ok(Progress { done }) => println!("{}: {done} done", event.worker),
                Err(error) => eprintln!("{}: {error}", event.worker),
            },
            EventKind::Exited { exit, .. } if !exit.success() => {
                eprintln!("{}: {exit}\n{}", event.worker, exit.stderr_text());
            }
            EventKind::SpawnFailed { error, .. } => eprintln!("{}: {error}", event.worker),
            _ => {}
        }
    }
    Ok(())
}
