//! The README's build tool: workers that send messages.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it shows what happens")]

use pipewright::{EventKind, OutputMode, Pass, Supervisor, WorkerSpec};

#[derive(serde::Deserialize)]
struct Progress {
    done: u32,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let supervisor = Supervisor::new()?;
    let worker = WorkerSpec::new("./compile-worker")
        .messages(Pass::arg("--messages={}")) // {} is replaced by the number of the file descriptor
        .stderr(OutputMode::Lines); // up to 8 KiB of it also come with the exit
    for file in ["a.c", "b.c"] {
        supervisor.spawn(worker.clone().arg(file))?;
    }
    supervisor.close(); // no more workers: the channel closes after the last event
    for event in supervisor.events() {
        match event.kind {
            EventKind::Message(message) => match message.json::<Progress>() {
                Ok(Progress { done }) => println!("{}: {done} done", event.worker),
                Err(error) => eprintln!("{}: {error}", event.worker),
            },
            EventKind::Exited { exit, .. } if !exit.success() => {
                eprintln!("{}: {exit}\n{}", event.worker, exit.stderr_text());
            }
            _ => {}
        }
    }
    Ok(())
}
