//! The end of a pool.

use super::{builder, result, square, until};
use crate::support::DEADLINE;
use pipewright::{
    Supervisor,
    pool::{SubmitError, TaskErrorKind},
};
use serde_json::{Value, json};
use std::time::Duration;

#[test]
fn p08_shutdown_finishes_the_tasks_and_stops_the_workers() {
    let supervisor = Supervisor::new().unwrap();
    let pool = builder(&supervisor).workers(2).build().unwrap();
    let tasks: Vec<_> = (0..200).map(|n| pool.submit(square(n)).unwrap()).collect();
    let report = pool.shutdown(DEADLINE);
    assert_eq!((report.aborted, report.workers_left), (0, 0));
    for (n, task) in tasks.into_iter().enumerate() {
        assert_eq!(result(task).unwrap(), json!(n * n));
    }
    assert!(matches!(pool.submit(square(1)), Err(SubmitError::ShutDown)));
    assert!(supervisor.status().workers.is_empty());
}

#[test]
fn p08_shutdown_aborts_what_does_not_end_in_time() {
    let supervisor = Supervisor::new().unwrap();
    let pool = builder(&supervisor).build().unwrap();
    let tasks = [("hang", json!(0)), square(1)].map(|request| pool.submit(request).unwrap());
    until(|| pool.status(), |status| status.running == 1);
    let report = pool.shutdown(Duration::from_millis(50));
    assert_eq!((report.aborted, report.workers_left), (2, 0));
    for task in tasks {
        let error = result(task).unwrap_err();
        assert!(matches!(error.kind, TaskErrorKind::ShutDown), "{error:?}");
    }
    assert!(supervisor.status().workers.is_empty());
}

#[test]
fn p09_dropped_pool_ends_its_tasks_and_workers() {
    let supervisor = Supervisor::new().unwrap();
    let pool = builder(&supervisor).workers(2).build().unwrap();
    let tasks = [0; 3].map(|_| pool.submit(("until cancelled", Value::Null)).unwrap());
    until(|| pool.status(), |status| status.running == 2);
    drop(pool);
    for task in tasks {
        let error = result(task).unwrap_err();
        assert!(matches!(error.kind, TaskErrorKind::ShutDown), "{error:?}");
    }
    until(|| supervisor.status().workers.len(), |workers| *workers == 0);
}

#[test]
fn p15_tasks_end_when_the_supervisor_is_dropped() {
    let supervisor = Supervisor::builder().grace_period(Duration::ZERO).build().unwrap();
    let pool = builder(&supervisor).retries(5).build().unwrap();
    let tasks = [0; 3].map(|_| pool.submit(("hang", Value::Null)).unwrap());
    until(|| pool.status(), |status| status.running == 1);
    drop(supervisor);
    for task in tasks {
        let error = result(task).unwrap_err();
        assert!(matches!(error.kind, TaskErrorKind::NoWorkers(_)), "{error:?}");
    }
    assert!(matches!(pool.submit(square(1)), Err(SubmitError::NoWorkers(_))));
    assert_eq!(pool.shutdown(DEADLINE).workers_left, 0);
}
