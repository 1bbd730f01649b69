//! All benches, each in a process of its own, one after the other. Their lines are written to standard output, and to a file if wanted.

use crate::{Done, Options};
use pipewright::{EventKind, OutputMode, StdinMode, Supervisor, WorkerSpec};
use serde_json::json;
use std::{
    env,
    fs::File,
    io::{self, Write},
};

/// In the order in which they run.
pub(crate) const BENCHES: [&str; 8] = ["spawn", "throughput", "pipes", "call", "churn", "fanout", "pool", "build"];

/// A bench that fails is a line of the output, and the error at the end; the others run.
pub(crate) fn run(options: &Options) -> Done {
    let mut file = options.json.as_ref().map(File::create).transpose()?;
    let mut failed = Vec::new();
    for bench in BENCHES {
        let mut spec = WorkerSpec::new(env::current_exe()?).arg(bench).stdin(StdinMode::Null).name(bench);
        if options.quick {
            spec = spec.arg("--quick");
        }
        let supervisor = Supervisor::new()?;
        supervisor.spawn(spec.stdout(OutputMode::Lines))?;
        supervisor.close();
        for event in supervisor.events() {
            match event.kind {
                EventKind::Line { line, .. } => write(&mut file, &line.text())?,
                EventKind::Exited { exit, .. } if !exit.success() => {
                    write(&mut file, &json!({ "bench": bench, "failed": exit.to_string() }).to_string())?;
                    failed.push(bench);
                }
                _ => {}
            }
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(format!("failed: {}", failed.join(", ")).into()) }
}

fn write(file: &mut Option<File>, line: &str) -> io::Result<()> {
    writeln!(io::stdout(), "{line}")?;
    file.as_mut().map_or(Ok(()), |file| writeln!(file, "{line}"))
}
