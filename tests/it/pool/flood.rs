//! Many small tasks while workers die.

use super::{builder, square, until};
use pipewright::Supervisor;
use serde_json::Value;
use std::{sync::mpsc, thread, time::Duration};

/// Runs so many tasks over `workers` workers, while one of these is killed after each `pause`. Returns the number of exits.
fn flood(tasks: u64, workers: usize, in_flight: usize, pause: Duration) -> u64 {
    let supervisor = Supervisor::new().unwrap();
    let pool = builder(&supervisor).workers(workers).in_flight(in_flight).retries(1000).build().unwrap();
    thread::scope(|scope| {
        let (end, ended) = mpsc::channel::<()>();
        let (supervisor, pool) = (&supervisor, &pool);
        scope.spawn(move || {
            for turn in 0.. {
                if ended.recv_timeout(pause) != Err(mpsc::RecvTimeoutError::Timeout) {
                    return;
                }
                let pids: Vec<_> = supervisor.status().workers.iter().filter_map(|worker| worker.pid).collect();
                if let Some(pid) = pids.get(turn % pids.len().max(1)) {
                    // It may have exited already.
                    drop(std::process::Command::new("kill").args(["-9", &pid.to_string()]).output());
                }
            }
        });
        let mut expected = 0;
        for square in pool.map((0..tasks).map(square)) {
            let square = square.unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(square.as_u64(), Some(expected * expected));
            expected += 1;
        }
        assert_eq!(expected, tasks);
        drop(end);
    });
    let status = until(|| pool.status(), |status| status.ready == workers);
    assert_eq!((status.succeeded, status.failed, status.waiting, status.running), (tasks, 0, 0, 0));
    let last = pool.submit(("echo", Value::Null)).unwrap();
    assert_eq!(last.wait().unwrap(), Value::Null);
    status.exits
}

#[test]
fn p15_all_tasks_are_right_while_workers_are_killed() {
    let exits = flood(10_000, 4, 2, Duration::from_millis(50));
    assert!(exits > 0, "a worker was killed");
}

#[test]
#[ignore = "takes half a minute: run by .ci/run with the long tests"]
fn p15_all_of_200_000_tasks_are_right_while_a_worker_is_killed_every_second() {
    for in_flight in [1, 8] {
        let exits = flood(200_000, 8, in_flight, Duration::from_secs(1));
        assert!(exits > 0, "a worker was killed");
    }
}
