//! How many workers a pool has, and what it reports of them.

use super::{Request, builder, result, square, until};
use crate::support::DEADLINE;
use pipewright::{
    Supervisor,
    pool::{Halt, PoolEvent, SubmitError, TaskErrorKind, TimeLimit},
};
use serde_json::{Value, json};
use std::{collections::BTreeSet, time::Duration};

#[test]
fn p14_pool_grows_with_its_tasks_and_shrinks_when_idle() {
    let supervisor = Supervisor::new().unwrap();
    let pool = builder(&supervisor).workers(1..=3).idle_time(Duration::from_millis(50)).build().unwrap();
    until(|| pool.status(), |status| status.ready == 1);
    let endless: Request = ("until cancelled", json!(1));
    let running: Vec<_> = (0..5).map(|_| pool.submit(&endless).unwrap()).collect();
    let full = until(|| pool.status(), |status| status.running == 3);
    assert_eq!((full.workers, full.waiting), (3, 2), "and no more");
    drop(running);
    until(|| pool.status(), |status| (status.workers, status.ready, status.exits) == (1, 1, 2));
    assert_eq!(result(pool.submit(square(3)).unwrap()).unwrap(), json!(9));
    let (min, max) = (2, 1);
    assert!(
        builder(&supervisor).workers(min..=max).build().is_err() && builder(&supervisor).workers(0).build().is_err()
    );
}

#[test]
fn p13_workers_are_recycled_by_tasks_age_and_memory() {
    let supervisor = Supervisor::new().unwrap();
    let pool = builder(&supervisor).workers(2).recycle_after_tasks(10).build().unwrap();
    let pids: Vec<_> = pool.map((0..200).map(|_| ("pid", Value::Null))).map(|pid| pid.unwrap().to_string()).collect();
    let distinct: BTreeSet<_> = pids.iter().collect();
    assert!(distinct.len() >= 20, "{} processes", distinct.len());
    assert!(distinct.iter().all(|pid| pids.iter().filter(|other| other == pid).count() <= 10));

    let pool = builder(&supervisor).recycle_after(Duration::from_millis(30)).build().unwrap();
    until(|| pool.status(), |status| status.exits >= 2);
    assert_eq!(result(pool.submit(square(3)).unwrap()).unwrap(), json!(9));

    let pool = builder(&supervisor).recycle_above(1).build().unwrap();
    until(|| pool.status(), |status| status.exits >= 1);
    assert_eq!(result(pool.submit(square(3)).unwrap()).unwrap(), json!(9));
}

#[test]
fn p16_slow_tasks_and_exits_are_reported() {
    let supervisor = Supervisor::new().unwrap();
    let (sender, events) = crossbeam_channel::unbounded();
    let pool = builder(&supervisor)
        .slow_after(Duration::from_millis(20))
        .on_event(move |event| drop(sender.send(event.clone())))
        .build()
        .unwrap();
    assert!(matches!(events.recv_timeout(DEADLINE).unwrap(), PoolEvent::WorkerReady(_)));
    let task = pool.task(("until cancelled", Value::Null)).name("index").submit().unwrap();
    let event = events.recv_timeout(DEADLINE).unwrap();
    let PoolEvent::Slow { request, after } = &event else { panic!("{event:?}") };
    assert!(&**request == "index" && *after >= Duration::from_millis(20));
    assert!(!task.is_finished());
    task.cancel();
    result(pool.submit(("die", json!(9))).unwrap()).unwrap_err();
    // The task that ends the worker may be slow, too.
    let next = || events.recv_timeout(DEADLINE).unwrap();
    let event = std::iter::repeat_with(next).find(|event| !matches!(event, PoolEvent::Slow { .. })).unwrap();
    assert!(matches!(&event, PoolEvent::WorkerExited { exit, .. } if exit.signal() == Some(9)), "{event:?}");
}

#[test]
fn p15_timeout_is_a_multiple_of_the_median() {
    let supervisor = Supervisor::new().unwrap();
    let limit = TimeLimit::Median { factor: 10.0, min: Duration::from_secs(1) };
    let pool = builder(&supervisor).timeout(limit).build().unwrap();
    for n in 0..10 {
        assert_eq!(result(pool.submit(square(n)).unwrap()).unwrap(), json!(n * n));
    }
    let error = result(pool.submit(("until cancelled", Value::Null)).unwrap()).unwrap_err();
    assert!(matches!(error.kind, TaskErrorKind::TimedOut { limit } if limit >= Duration::from_secs(1)), "{error:?}");
}

#[test]
fn p08_pool_halts_after_failures() {
    let supervisor = Supervisor::new().unwrap();
    let pool = builder(&supervisor).halt(Halt::soon(2)).build().unwrap();
    let tasks: Vec<_> = (0..5).map(|n| pool.submit(("fail", json!(n.to_string()))).unwrap()).collect();
    let errors: Vec<_> = tasks.into_iter().map(|task| result(task).unwrap_err().kind).collect();
    let halted = errors.iter().filter(|kind| matches!(kind, TaskErrorKind::Halted)).count();
    assert_eq!(halted, 3, "{errors:?}");
    assert!(matches!(pool.submit(square(1)), Err(SubmitError::Halted)));
    until(|| pool.status(), |status| status.workers == 0);
}
