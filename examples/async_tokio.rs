//! Calls to several workers in a program of tokio. The workers are this program again.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it shows what happens")]

use pipewright::{EventKind, OutputMode, Parent, Pass, RpcError, Supervisor, WorkerSpec};
use std::{env, error::Error, thread, time::Duration};
use tokio::{
    task::{JoinSet, spawn_blocking},
    time::timeout,
};

type Outcome = Result<(), Box<dyn Error + Send + Sync>>;

fn main() -> Outcome {
    if env::args().nth(1).as_deref() == Some("worker") { worker() } else { host() }
}

#[tokio::main]
async fn host() -> Outcome {
    let supervisor = Supervisor::new()?;
    let mut events = supervisor.event_stream();
    let log = tokio::spawn(async move {
        while let Some(event) = events.next().await {
            match event.kind {
                EventKind::Line { line, .. } => eprintln!("{}: {}", event.worker, line.text()),
                EventKind::Exited { .. } => println!("{}: exited", event.worker),
                _ => {}
            }
        }
    });
    let spec = WorkerSpec::new(env::current_exe()?)
        .arg("worker")
        .control(Pass::env("PIPEWRIGHT_CONTROL"))
        .stderr(OutputMode::Lines);
    let workers = (0..4).map(|_| supervisor.spawn(spec.clone())).collect::<Result<Vec<_>, _>>()?;
    supervisor.close(); // no more workers: the stream ends with the last one

    // All calls are open at once.
    let mut calls = JoinSet::new();
    for (n, worker) in (1..=100_u64).zip(workers.iter().cycle()) {
        calls.spawn(timeout(Duration::from_secs(10), worker.call_async::<_, u64>("square", &[n])));
    }
    let mut sum = 0;
    while let Some(square) = calls.join_next().await {
        sum += square???;
    }
    println!("the sum of the squares is {sum}");

    // The timeout drops the call, which cancels it in the worker.
    let slow = workers[0].call_async::<_, ()>("until cancelled", &());
    println!("cancelled: {}", timeout(Duration::from_millis(20), slow).await.is_err());

    for worker in &workers {
        worker.stop();
        worker.exited().await;
    }
    log.await?;
    spawn_blocking(|| drop(supervisor)).await?; // waits for workers, if any are left
    Ok(())
}

fn worker() -> Outcome {
    let parent = Parent::from_args()?;
    parent.serve(2, |request| match request.method() {
        "square" => {
            let [n] = request.params::<[u64; 1]>()?;
            Ok(n * n)
        }
        "until cancelled" => {
            while !request.is_cancelled() {
                thread::park_timeout(Duration::from_millis(1));
            }
            Ok(0)
        }
        other => Err(RpcError::method_not_found(other)),
    });
    Ok(())
}
