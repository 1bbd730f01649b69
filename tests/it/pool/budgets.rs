//! What tasks take of a budget.

use super::{Request, builder, result, square, until};
use crate::support::DEADLINE;
use pipewright::{
    Supervisor, WorkerSpec,
    pool::{Budget, Jobs, SubmitError},
};
use serde_json::{Value, json};

fn endless() -> Request {
    ("until cancelled", json!(1))
}

#[test]
fn p07_pools_and_jobs_share_the_slots_of_a_budget() {
    let supervisor = Supervisor::new().unwrap();
    let budget = Budget::new(3);
    let pools = [0; 2].map(|_| builder(&supervisor).workers(3).budget(&budget).build().unwrap());
    let running = || pools.each_ref().map(|pool| pool.status().running);
    let mut tasks: Vec<_> = (0..4).map(|n| pools[n % 2].submit(endless()).unwrap()).collect();
    until(running, |[first, second]| first + second == 3);
    let jobs = Jobs::with_budget(&supervisor, &budget);
    let job = jobs.submit(WorkerSpec::new("true")).unwrap();
    // Each end lets another one start, and no more.
    tasks.pop();
    let mut results = Vec::new();
    while let Some(task) = tasks.pop() {
        let [first, second] = running();
        assert!(first + second <= 3);
        task.cancel();
        results.push(result(task));
    }
    assert!(results.iter().all(Result::is_err));
    assert!(job.wait_timeout(DEADLINE).expect("a slot").success());
    for pool in &pools {
        let squares = pool.map((0..200).map(square)).map(|square| square.unwrap().as_u64().unwrap());
        assert!(squares.eq((0..200).map(|n| n * n)));
    }
    // A pool that has ended holds nothing.
    let [first, second] = pools;
    let held: Vec<_> = (0..3).map(|_| first.submit(endless()).unwrap()).collect();
    until(|| first.status(), |status| status.running == 3);
    let waiting = second.submit(square(3)).unwrap();
    assert!(!waiting.is_finished());
    drop(first);
    assert_eq!(result(waiting).unwrap(), json!(9));
    drop(held);
}

#[test]
fn p07_tasks_wait_for_named_resources_and_others_pass_them() {
    let supervisor = Supervisor::new().unwrap();
    let budget = Budget::new(10).resource("gpu", 1);
    let pool = builder(&supervisor).workers(3).in_flight(2).budget(&budget).build().unwrap();
    // Otherwise tasks are sent to the worker that is busy with the first one.
    until(|| pool.status(), |status| status.ready == 3);
    let gpu = |request: Request| pool.task(request).needs([("gpu", 1)]);
    let first = gpu(endless()).submit().unwrap();
    until(|| first.progress::<Value>().unwrap(), Option::is_some);
    let second = gpu(square(2)).priority(5).submit().unwrap();
    for n in 0..20 {
        assert_eq!(result(pool.submit(square(n)).unwrap()).unwrap(), json!(n * n), "passes the one that waits");
    }
    assert!(!second.is_finished());
    first.cancel();
    assert_eq!(result(second).unwrap(), json!(4));
    assert_eq!(result(pool.task(square(5)).weight(10).submit().unwrap()).unwrap(), json!(25));
    let refused = pool.task(square(1)).weight(11).submit().unwrap_err();
    assert_eq!(refused.to_string(), "the task takes 11 slots, and there are 10");
    let refused = pool.task(square(1)).needs([("tape", 1)]).submit().unwrap_err();
    assert_eq!(refused.to_string(), "the task needs `tape`, which is no resource of its budget");
    let plain = builder(&supervisor).build().unwrap();
    let refused = plain.task(square(1)).needs([("gpu", 1)]).submit();
    assert!(matches!(refused, Err(SubmitError::NoBudget)), "{refused:?}");
}
