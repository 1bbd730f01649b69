//! The README's shortest program: a child's output and exit as events.
#![expect(clippy::print_stdout, reason = "it shows what happens")]

use pipewright::{EventKind, OutputMode, Supervisor, WorkerSpec};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let supervisor = Supervisor::new()?;
    supervisor.spawn(WorkerSpec::new("sh").args(["-c", "echo hello; exit 3"]).stdout(OutputMode::Lines))?;
    supervisor.close(); // no more workers: the channel closes after the last event
    for event in supervisor.events() {
        match event.kind {
            EventKind::Line { line, .. } => println!("{}: {}", event.worker, line.text()),
            EventKind::Exited { exit, .. } => println!("{}: {exit}", event.worker),
            _ => {}
        }
    }
    Ok(())
}
