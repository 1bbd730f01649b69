//! The README's plugin host: a plugin that is kept alive.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it shows what happens")]

use pipewright::{EventKind, OutputMode, Pass, Readiness, Restart, Supervisor, Watchdog, WorkerSpec};
use std::time::Duration;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let supervisor = Supervisor::new()?;
    let _signals = supervisor.handle_signals()?; // Ctrl-C stops all workers; a second Ctrl-C kills them
    let spec = WorkerSpec::new("./plugin")
        .control(Pass::env("PIPEWRIGHT_CONTROL"))
        .stderr(OutputMode::Lines)
        .ready(Readiness::control().timeout(Duration::from_secs(5)))
        .watchdog(Watchdog::ping(Duration::from_secs(30)))
        .restart(Restart::OnFailure); // after 100 ms, 200 ms, … 30 s; gives up after 5 restarts in 30 s
    let plugin = supervisor.spawn(spec)?;
    supervisor.close(); // no more workers: the channel closes after the last event
    if let Err(error) = plugin.wait_ready(Duration::from_secs(5)) {
        eprintln!("{error}"); // not ready in time, or it has ended: with its exit
    } else if let Err(error) = plugin.notify("greet", &["hello"]) {
        eprintln!("{}: {error}", plugin.name());
    }
    for event in supervisor.events() {
        if let EventKind::Exited { exit, next } = event.kind {
            eprintln!("{}: {exit}, {next}: {}", event.worker, exit.stderr_text());
        }
    }
    print!("{}", supervisor.stop_all().wait(Duration::from_secs(10))); // how each worker that still ran exited
    Ok(())
}
