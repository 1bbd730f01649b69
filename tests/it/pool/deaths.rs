//! Workers that die, hang or do not start.

use super::{builder, result, spec, square, until};
use crate::support::{DEADLINE, FIXTURE};
use pipewright::{
    ExitStatus, Pass, StdinMode, Supervisor, WorkerSpec,
    pool::{Pool, StartFailure, SubmitError, TaskErrorKind},
};
use serde_json::{Value, json};
use std::time::Duration;

#[test]
fn p16_death_of_a_worker_ends_its_task_with_all_that_is_known() {
    let supervisor = Supervisor::new().unwrap();
    let pool = builder(&supervisor).workers(2).build().unwrap();
    let task = pool.task(("die", json!(11))).name("render 7").submit().unwrap();
    let others: Vec<_> = (0..50).map(|n| pool.submit(square(n)).unwrap()).collect();
    let error = result(task).unwrap_err();
    let TaskErrorKind::WorkerDied(exit) = &error.kind else { panic!("{error:?}") };
    assert_eq!((exit.signal(), error.attempts, &*error.request), (Some(11), 1, "render 7"));
    assert!(exit.usage.is_some() && exit.stderr_text().contains("about to die"));
    let text = error.to_string();
    assert!(text.starts_with("render 7: its worker has died: killed by signal 11 (SIGSEGV)"), "{text}");
    assert!(text.ends_with(": about to die"), "{text}");
    for (n, task) in others.into_iter().enumerate() {
        assert_eq!(result(task).unwrap(), json!(n * n));
    }
    until(|| pool.status(), |status| status.ready == 2 && status.exits == 1);
}

#[test]
fn p15_task_with_retries_is_sent_to_another_worker() {
    let supervisor = Supervisor::new().unwrap();
    let pool = builder(&supervisor).retries(3).build().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("go");
    let first = result(pool.submit(("pid", Value::Null)).unwrap()).unwrap();
    let task = pool.submit(("file", json!(path))).unwrap();
    until(|| pool.status(), |status| status.running == 1);
    let pid = first.as_u64().unwrap();
    assert!(std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
    until(|| pool.status(), |status| status.exits == 1);
    std::fs::write(&path, "").unwrap();
    assert_ne!(result(task).unwrap(), first);
}

#[test]
fn p13_task_that_kills_every_worker_is_isolated() {
    let supervisor = Supervisor::new().unwrap();
    let pool = builder(&supervisor).workers(2).in_flight(3).retries(20).build().unwrap();
    let mut tasks = Vec::new();
    for n in 0..60 {
        tasks.push((n, pool.submit(square(n)).unwrap()));
        if n == 30 {
            tasks.push((1000, pool.submit(("die", json!(9))).unwrap()));
        }
    }
    for (n, task) in tasks {
        match result(task) {
            Ok(square) => assert_eq!(square, json!(n * n)),
            Err(error) => {
                assert!(n == 1000 && matches!(error.kind, TaskErrorKind::Poison(_)), "{error:?}");
                assert_eq!(error.attempts, 4, "two deaths, and two alone");
                assert!(error.to_string().starts_with("task 32: every worker that had it has died"), "{error}");
            }
        }
    }
    assert_eq!(pool.status().exits, 4);
}

#[test]
fn p08_worker_that_ignores_a_timeout_is_killed_and_replaced() {
    let supervisor = Supervisor::new().unwrap();
    let grace = Duration::from_secs(1);
    let pool = builder(&supervisor).cancel_grace(grace).timeout(Duration::from_millis(300)).build().unwrap();
    assert_eq!(result(pool.task(square(2)).timeout(DEADLINE).submit().unwrap()).unwrap(), json!(4));
    let error = result(pool.submit(("hang", Value::Null)).unwrap()).unwrap_err();
    assert_eq!(error.to_string(), "task 2: no result within 300ms");
    assert_eq!(result(pool.task(square(3)).timeout(DEADLINE).submit().unwrap()).unwrap(), json!(9));
    until(|| pool.status().exits, |exits| *exits == 1);
    let error = result(pool.submit(("until cancelled", Value::Null)).unwrap()).unwrap_err();
    assert!(matches!(error.kind, TaskErrorKind::TimedOut { .. }), "{error:?}");
    assert_eq!(result(pool.task(square(4)).timeout(DEADLINE).submit().unwrap()).unwrap(), json!(16));
    assert_eq!(pool.status().exits, 1, "one that reacts to the cancellation stays");
}

#[test]
fn p15_task_ends_when_its_worker_closes_its_control_connection() {
    let supervisor = Supervisor::new().unwrap();
    let spec = WorkerSpec::new(FIXTURE).arg("pool-closer").control(Pass::arg("--control={}")).stdin(StdinMode::Pipe);
    let pool = Pool::<u32, u32>::builder(&supervisor, spec).build().unwrap();
    let error = pool.submit(1).unwrap().wait_timeout(DEADLINE).unwrap().unwrap_err();
    assert!(matches!(error.kind, TaskErrorKind::WorkerDied(_) | TaskErrorKind::NoWorkers(_)), "{error:?}");
}

#[test]
fn p16_tasks_end_with_the_reason_when_no_worker_starts() {
    let supervisor = Supervisor::new().unwrap();
    let pool = Pool::<u32, u32>::builder(&supervisor, WorkerSpec::new("/nonexistent/worker")).build().unwrap();
    let error = match pool.submit(1) {
        Ok(task) => task.wait_timeout(DEADLINE).unwrap().unwrap_err().to_string(),
        Err(error) => error.to_string(),
    };
    assert!(error.contains("no worker starts: ") && error.contains("/nonexistent/worker"), "{error}");
    let pool = Pool::<u32, u32>::builder(&supervisor, spec().arg("--exit").arg("3")).workers(3).build().unwrap();
    let error = pool.submit(1).unwrap().wait_timeout(DEADLINE).unwrap().unwrap_err();
    let TaskErrorKind::NoWorkers(StartFailure::Exited(exit)) = &error.kind else { panic!("{error:?}") };
    assert_eq!(exit.status, ExitStatus::Code(3));
    assert_eq!(
        error.to_string(),
        "task 1: no worker starts: exited before it was used: exit code 3; its last line on stderr: cannot start: no licence"
    );
    assert!(matches!(pool.submit(2), Err(SubmitError::NoWorkers(_))));
    let errors: Vec<_> = pool.map(0..3).map(|result| result.unwrap_err().kind).collect();
    assert!(matches!(&errors[..], [TaskErrorKind::NotAccepted(_), _, _]), "{errors:?}");
}
