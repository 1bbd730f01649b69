//! Submitting tasks, and their results.

use super::{Request, builder, result, square, until};
use crate::support::DEADLINE;
use pipewright::{
    Supervisor,
    pool::{SubmitError, TaskErrorKind},
};
use serde_json::{Value, json};
use std::{collections::BTreeSet, time::Duration};

#[test]
fn p02_map_returns_results_in_the_order_of_the_requests() {
    let supervisor = Supervisor::new().unwrap();
    for in_flight in [1, 3] {
        let pool = builder(&supervisor).workers(3).in_flight(in_flight).queue_limit(20).build().unwrap();
        let squares = pool.map((0..2000).map(square)).map(|square| square.unwrap().as_u64().unwrap());
        assert!(squares.eq((0..2000).map(|n| n * n)));
        let mut seen = BTreeSet::new();
        for (index, square) in pool.map_unordered((0..500).map(square)) {
            assert_eq!(square.unwrap(), json!(index * index));
            assert!(seen.insert(index), "{index} once");
        }
        assert_eq!(seen.len(), 500);
        let status = pool.status();
        assert_eq!((status.waiting, status.running, status.succeeded, status.exits), (0, 0, 2500, 0));
        assert_eq!(pool.shutdown(DEADLINE).workers_left, 0);
    }
    assert!(supervisor.events().is_empty(), "events of the workers go to the pool");
}

#[test]
fn p15_task_is_waited_for_detached_or_cancelled() {
    let supervisor = Supervisor::new().unwrap();
    let pool = builder(&supervisor).build().unwrap();
    assert_eq!(result(pool.submit(square(4)).unwrap()).unwrap(), json!(16));
    let endless: Request = ("until cancelled", json!({"done": 0.5}));
    let task = pool.submit(&endless).unwrap();
    let progress = until(|| task.progress::<Value>().unwrap(), Option::is_some);
    assert_eq!(progress, Some(json!({"done": 0.5})));
    assert_eq!(task.progress::<Value>().unwrap(), None, "each report is returned once");
    let task = task.wait_timeout(Duration::from_millis(1)).expect_err("it runs");
    let waiting = pool.submit(square(5)).unwrap();
    let cancelled = pool.submit(square(6)).unwrap();
    cancelled.cancel();
    let error = result(cancelled).unwrap_err();
    assert!(matches!(error.kind, TaskErrorKind::Cancelled) && error.attempts == 0, "{error:?}");
    task.cancel();
    assert_eq!(result(task).unwrap_err().to_string(), "task 2: cancelled");
    assert_eq!(result(waiting).unwrap(), json!(25), "the worker goes on");
    // Dropping a task cancels it, too.
    drop(pool.submit(&endless).unwrap());
    let number = pool.task(square(7)).name("seven").submit().unwrap().detach();
    let finished = pool.finished().recv_timeout(DEADLINE).unwrap();
    assert_eq!((finished.number(), &*finished.name()), (number, "seven"));
    assert_eq!(finished.into_result().unwrap(), json!(49));
    assert_eq!(pool.status().exits, 0);
}

#[test]
fn p16_failures_of_the_function_are_errors_of_its_task_only() {
    let supervisor = Supervisor::new().unwrap();
    let pool = builder(&supervisor).retries(3).build().unwrap();
    let task = pool.task(("fail", json!("no such file"))).name("lint a.rs").submit().unwrap();
    let error = result(task).unwrap_err();
    assert!(matches!(&error.kind, TaskErrorKind::Failed(error) if error.code == 7), "{error:?}");
    assert_eq!(error.to_string(), "lint a.rs: failed: no such file");
    let error = result(pool.submit(("panic", Value::Null)).unwrap()).unwrap_err();
    assert_eq!((error.to_string().contains("panicked"), error.attempts), (true, 1), "{error}");
    assert_eq!(result(pool.submit(square(3)).unwrap()).unwrap(), json!(9));
    assert_eq!(pool.status().exits, 0);
    let typed = pipewright::pool::Pool::<Request, String>::builder(&supervisor, super::spec()).build().unwrap();
    let error = typed.submit(square(3)).unwrap().wait().unwrap_err();
    assert!(matches!(error.kind, TaskErrorKind::InvalidResult(_)), "{error:?}");
}

#[test]
fn p07_submit_fails_or_waits_when_the_queue_is_full() {
    let supervisor = Supervisor::new().unwrap();
    let pool = builder(&supervisor).queue_limit(2).build().unwrap();
    let endless: Request = ("until cancelled", json!(1));
    let running = pool.submit(&endless).unwrap();
    until(|| running.progress::<Value>().unwrap(), Option::is_some);
    let waiting = [1, 2].map(|n| pool.task(square(n)).try_submit().unwrap());
    let refused = pool.task(square(3)).try_submit();
    assert!(matches!(refused, Err(SubmitError::Full { waiting: 2 })), "{refused:?}");
    let refused = pool.task(square(3)).submit_timeout(Duration::from_millis(20));
    assert_eq!(refused.unwrap_err().to_string(), "queue of the pool is full: 2 tasks wait");
    std::thread::scope(|scope| {
        let blocked = scope.spawn(|| result(pool.submit(square(3)).unwrap()));
        running.cancel();
        assert_eq!(blocked.join().unwrap().unwrap(), json!(9));
    });
    assert_eq!(waiting.map(|task| result(task).unwrap()), [json!(1), json!(4)]);
}

#[test]
fn p02_priorities_and_keys_select_the_task_and_the_worker() {
    let supervisor = Supervisor::new().unwrap();
    let pool = builder(&supervisor).build().unwrap();
    let running = pool.submit(("until cancelled", json!(1))).unwrap();
    until(|| running.progress::<Value>().unwrap(), Option::is_some);
    for priority in [0, 2, 1, 2] {
        pool.task(square(1)).priority(priority).submit().unwrap().detach();
    }
    running.cancel();
    let order: Vec<_> = (0..4).map(|_| pool.finished().recv_timeout(DEADLINE).unwrap().number()).collect();
    assert_eq!(order, [3, 5, 4, 2]);

    let pool = builder(&supervisor).workers(3).build().unwrap();
    until(|| pool.status(), |status| status.ready == 3);
    let mut pids = BTreeSet::new();
    for key in 0..10 {
        let tasks: Vec<_> = (0..5).map(|_| pool.task(("pid", Value::Null)).key(key).submit().unwrap()).collect();
        let of_key: BTreeSet<_> = tasks.into_iter().map(|task| result(task).unwrap().as_u64().unwrap()).collect();
        assert_eq!(of_key.len(), 1, "one worker for a key");
        pids.extend(of_key);
    }
    assert!(pids.len() > 1, "several workers for ten keys");
}

#[test]
fn p02_worker_with_threads_runs_tasks_side_by_side() {
    let supervisor = Supervisor::new().unwrap();
    let spec = super::spec().arg("--threads").arg("2");
    let pool = pipewright::pool::Pool::<Request, Value>::builder(&supervisor, spec).in_flight(2).build().unwrap();
    let file = tempfile::tempdir().unwrap();
    let path = file.path().join("go");
    let first = pool.submit(("file", json!(path))).unwrap();
    assert_eq!(result(pool.submit(square(2)).unwrap()).unwrap(), json!(4), "while the first one waits");
    std::fs::write(&path, "").unwrap();
    assert!(result(first).is_ok());
}
