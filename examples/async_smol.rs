//! Events and a call in a program of smol. The worker is this program again.
#![expect(clippy::print_stdout, reason = "it shows what happens")]

use pipewright::{CallError, EventKind, Parent, Pass, RpcError, Supervisor, Worker, WorkerSpec};
use smol::{Timer, future};
use std::{env, error::Error, time::Duration};

type Outcome = Result<(), Box<dyn Error + Send + Sync>>;

fn main() -> Outcome {
    if env::args().nth(1).as_deref() == Some("worker") { worker() } else { smol::block_on(host()) }
}

async fn host() -> Outcome {
    let supervisor = Supervisor::new()?;
    let spec = WorkerSpec::new(env::current_exe()?).arg("worker").control(Pass::env("PIPEWRIGHT_CONTROL"));
    let worker = supervisor.spawn(spec)?;
    supervisor.close(); // no more workers: the stream ends with this one
    let mut events = supervisor.event_stream();
    let log = smol::spawn(async move {
        while let Some(event) = events.next().await {
            if let EventKind::Notification(notification) = event.kind {
                println!("{}: {}", event.worker, notification.method());
            }
        }
    });
    println!("{}", greet(&worker).await?);
    worker.stop();
    println!("{}", worker.exited().await);
    log.await;
    Ok(())
}

/// The timer drops the call, which cancels it in the worker.
async fn greet(worker: &Worker) -> Result<String, CallError> {
    let call = worker.call_async("greet", &["smol"]);
    let timer = async {
        Timer::after(Duration::from_secs(10)).await;
        Err(CallError::TimedOut)
    };
    future::or(call, timer).await
}

fn worker() -> Outcome {
    let parent = Parent::from_args()?;
    parent.serve(1, |request| match request.method() {
        "greet" => {
            parent.notify("greeting", &())?;
            Ok(format!("Hello, {}.", request.params::<[String; 1]>()?.concat()))
        }
        other => Err(RpcError::method_not_found(other)),
    });
    Ok(())
}
