//! A host that keeps the default action of SIGPIPE, as programs in C do, and writes where there is no reader.

use crate::{Outcome, kernel};
use pipewright::{
    OutputMode, Parent, Pass, SendError, StdinMode, Supervisor, WorkerSpec,
    pipe::{
        Timeout,
        anonymous::{self, PipeWriter},
        named::{self, Listener, PipeName},
    },
};
use std::{
    error::Error,
    io::{ErrorKind, Read, Write},
    time::Duration,
};

const PATIENCE: Duration = Duration::from_secs(30);

/// Prints a line for each way to write.
pub(crate) fn run() -> Outcome {
    kernel::default(libc::SIGPIPE);
    let mut stdin = stdin_without_reader()?;
    report("write", &stdin.write(b"x").map_err(|error| error.kind()));
    report("write_all_timeout", &stdin.write_all_timeout(b"x", PATIENCE).map_err(|error| error.kind()));
    report("send", &send_without_parent()?);
    report("stream", &write_to_stream()?);
    report("call", &call_without_reader()?);
    Ok(())
}

fn report<T: std::fmt::Debug>(what: &str, outcome: &Result<T, ErrorKind>) {
    println!("{what}: {outcome:?}");
}

/// To a worker that runs on after it has closed its standard input.
fn stdin_without_reader() -> Result<PipeWriter, Box<dyn Error>> {
    let spec = WorkerSpec::new("sh").args(["-c", "exec 0<&-; echo closed; exec >&-; exec sleep 1000"]);
    let mut process = spec.stdin(StdinMode::Pipe).stdout(OutputMode::Lines).spawn_unsupervised()?;
    let stdin = process.take_stdin().ok_or("there is no stdin")?;
    process.take_stdout().ok_or("there is no stdout")?.read_to_end(&mut Vec::new())?;
    Ok(stdin)
}

fn send_without_parent() -> Result<Result<(), ErrorKind>, Box<dyn Error>> {
    let (reader, end) = anonymous::from_child()?;
    let parent = Parent::from_handle(end.into_handle())?;
    drop(reader);
    Ok(match parent.send(&1) {
        Err(SendError::ParentGone) => Err(ErrorKind::BrokenPipe),
        other => other.map_err(|_| ErrorKind::Other),
    })
}

fn write_to_stream() -> Result<Result<usize, ErrorKind>, Box<dyn Error>> {
    let name = PipeName::new(std::env::temp_dir().join(format!("broken-{}", std::process::id())))?;
    let listener = Listener::bind(&name)?;
    let client = named::connect(&name, PATIENCE)?;
    drop(listener.accept()?);
    Ok(client.write_timeout(b"x", Timeout::after(PATIENCE)).map_err(|error| error.kind()))
}

/// To a worker that no longer reads its control connection: any error is acceptable, as long as this process survives.
fn call_without_reader() -> Result<Result<i32, ErrorKind>, Box<dyn Error>> {
    let supervisor = Supervisor::new()?;
    let fixture = std::env::current_exe()?;
    let worker = supervisor.spawn(WorkerSpec::new(fixture).args(["hang-up"]).control(Pass::arg("--control={}")))?;
    let answer: Result<i32, _> = worker.call("add", &[1], PATIENCE);
    Ok(answer.map_err(|_| ErrorKind::BrokenPipe))
}
