//! Calls and notifications while no incarnation of a worker runs, and while one exits.

use crate::support::{Chance, DEADLINE, Story};
use pipewright::{
    Backoff, CallError, DependencyCondition, EventKind, GroupPolicy, OutputMode, Pass, Readiness, ReadinessAnswer,
    Restart, RestartIntensity, RestartPolicy, StopPolicy, Worker, WorkerSpec,
};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs, thread,
    time::{Duration, Instant},
};

/// Longer than any test takes.
const LONG: Duration = Duration::from_secs(3600);

fn serving() -> WorkerSpec {
    WorkerSpec::new(crate::support::FIXTURE).arg("serve").control(Pass::arg("--control={}")).stderr(OutputMode::Lines)
}

fn restarted(pause: Duration) -> WorkerSpec {
    let policy = RestartPolicy::from(Restart::Always).backoff(Backoff::constant(pause));
    serving().restart(policy.intensity(RestartIntensity::unlimited()))
}

/// A worker that has answered a call.
fn answering(story: &Story, spec: WorkerSpec) -> Worker {
    let worker = story.supervisor.spawn(spec).unwrap();
    assert_eq!(add(&worker).unwrap(), 3);
    worker
}

fn add(worker: &Worker) -> Result<i64, CallError> {
    worker.call("add", &[1, 2], DEADLINE)
}

/// Kills the worker, and waits until it has no incarnation.
#[track_caller]
fn kill(story: &mut Story, worker: &Worker) {
    worker.kill().unwrap();
    assert!(!story.end().1.is_final());
}

#[track_caller]
fn exited(outcome: Result<impl std::fmt::Debug, CallError>) -> (Option<i32>, Option<Duration>) {
    match outcome {
        Err(CallError::WorkerExited { exit, restarts_in }) => (exit.and_then(|exit| exit.signal()), restarts_in),
        other => panic!("{other:?}"),
    }
}

#[test]
fn p15_call_between_incarnations_waits_for_the_next() {
    let mut story = Story::new();
    let worker = answering(&story, restarted(Duration::from_millis(200)));
    kill(&mut story, &worker);
    worker.notify("anything", &()).unwrap();
    let started = worker.start_call("echo", &["started"]).unwrap();
    assert_eq!(worker.call::<_, [String; 1]>("echo", &["called"], DEADLINE).unwrap(), ["called"]);
    assert_eq!(started.wait::<[String; 1]>(DEADLINE).unwrap(), ["started"]);
    assert_eq!(worker.incarnation(), 2);
}

#[test]
fn p15_call_that_was_sent_fails_with_the_exit_and_the_restart() {
    let mut story = Story::new();
    let worker = answering(&story, restarted(LONG).args(["--threads", "2"]));
    let sent = worker.start_call("wait", &["nothing"]).unwrap();
    // Answered after the other was received.
    add(&worker).unwrap();
    kill(&mut story, &worker);
    let (signal, restarts_in) = exited(sent.wait::<Value>(DEADLINE));
    assert_eq!(signal, Some(9));
    assert!(restarts_in.is_some_and(|after| after > LONG / 2), "{restarts_in:?}");
}

#[test]
fn p15_call_fails_if_no_incarnation_runs_at_its_timeout() {
    let mut story = Story::new();
    let worker = answering(&story, restarted(LONG));
    kill(&mut story, &worker);
    let (signal, restarts_in) = exited(worker.call::<_, Value>("add", &[1], Duration::from_millis(20)));
    assert_eq!(signal, Some(9));
    assert!(restarts_in.is_some_and(|after| after > LONG / 2), "{restarts_in:?}");
    let started = worker.start_call("add", &[1]).unwrap();
    assert_eq!(exited(started.wait::<Value>(Duration::ZERO)).0, Some(9));
}

#[test]
fn p15_call_that_was_not_sent_before_its_timeout_says_so() {
    let story = Story::new();
    let never_ready = Readiness::call("add", &[1, 2], |_: Value| ReadinessAnswer::NotYet);
    for spec in [WorkerSpec::new("sleep").arg("1000").control(Pass::env("CONTROL")), serving().ready(never_ready)] {
        let worker = story.supervisor.spawn(spec).unwrap();
        let error = worker.call::<_, Value>("add", &[1, 2], Duration::from_millis(20)).unwrap_err();
        assert!(matches!(error, CallError::NotReady), "{error:?}");
        let error = worker.start_call("add", &[1, 2]).unwrap().wait::<Value>(Duration::from_millis(20)).unwrap_err();
        assert!(matches!(error, CallError::NotReady), "{error:?}");
        assert_eq!(story.supervisor.status().workers.last().unwrap().control_queue, 0, "what was not sent is gone");
    }
}

#[test]
fn p15_fail_fast_call_waits_for_no_other_incarnation() {
    let mut story = Story::new();
    let worker = answering(&story, restarted(LONG));
    let fail_fast = worker.fail_fast();
    assert_eq!(add(&fail_fast).unwrap(), 3);
    kill(&mut story, &worker);
    for outcome in
        [add(&fail_fast).map(drop), fail_fast.start_call("add", &[1]).map(drop), fail_fast.notify("anything", &())]
    {
        let (signal, restarts_in) = exited(outcome);
        assert_eq!(signal, Some(9));
        assert!(restarts_in.is_some_and(|after| after > LONG / 2), "{restarts_in:?}");
    }
    drop(worker.start_call("add", &[1]).expect("other handles still wait"));
}

#[test]
fn p15_calls_fail_at_once_if_the_worker_is_not_restarted() {
    let mut story = Story::new();
    let worker = answering(&story, serving());
    worker.kill().unwrap();
    assert_eq!(story.exit().signal(), Some(9));
    worker.wait_timeout(DEADLINE).expect("it has ended");
    for outcome in [
        add(&worker).map(drop),
        worker.start_call("add", &[1]).map(drop),
        worker.notify("anything", &()),
        add(&worker.fail_fast()).map(drop),
    ] {
        assert_eq!(exited(outcome), (Some(9), None));
    }
}

#[test]
fn p15_calls_that_wait_for_a_restart_fail_when_the_worker_is_stopped() {
    let mut story = Story::new();
    let worker = answering(&story, restarted(LONG));
    kill(&mut story, &worker);
    let waiting = worker.start_call("add", &[1]).unwrap();
    let report = worker.stop().wait(DEADLINE);
    assert!(report.unfinished().next().is_none(), "{report}");
    assert_eq!(exited(waiting.wait::<Value>(DEADLINE)), (Some(9), None));
    assert_eq!(exited(add(&worker)), (Some(9), None));
}

#[test]
fn p15_calls_during_a_stop_fail_with_the_exit() {
    let story = Story::new();
    let worker = answering(&story, restarted(LONG).stop(StopPolicy::kill()));
    let sent = worker.start_call("wait", &["nothing"]).unwrap();
    let stopping = worker.stop();
    // Sent before the exit, or refused after it.
    let late = worker.start_call("wait", &["nothing"]);
    for outcome in [sent.wait::<i64>(DEADLINE), late.and_then(|call| call.wait(DEADLINE)), add(&worker)] {
        assert_eq!(exited(outcome), (Some(9), None));
    }
    stopping.wait(DEADLINE);
}

#[test]
fn p15_unsent_calls_move_to_the_next_incarnation_in_order() {
    let mut story = Story::new();
    let worker = answering(&story, restarted(Duration::ZERO));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("calls").display().to_string();
    worker.freeze().unwrap();
    let filler = "x".repeat(4 << 10);
    let mut unread = 0;
    while story.supervisor.status().workers[0].control_queue == 0 {
        worker.notify("filler", &[&filler]).unwrap();
        unread += 1;
        assert!(unread < 10_000, "the socket takes everything");
    }
    let calls: Vec<_> = (0..10).map(|n: u32| worker.start_call("record", &(&file, n.to_string())).unwrap()).collect();
    let fail_fast = worker.fail_fast().start_call("record", &(&file, "fail fast")).unwrap();
    let cancelled = worker.start_call("record", &(&file, "cancelled")).unwrap();
    drop(cancelled);
    worker.kill().unwrap();
    assert_eq!(story.exit().signal(), Some(9));
    for (n, call) in calls.into_iter().enumerate() {
        assert_eq!(call.wait::<String>(DEADLINE).unwrap(), n.to_string());
    }
    assert_eq!(exited(fail_fast.wait::<Value>(DEADLINE)).0, Some(9));
    let recorded = fs::read_to_string(&file).unwrap();
    assert_eq!(recorded.lines().collect::<Vec<_>>().concat(), "0123456789");
}

#[test]
fn p07_queue_between_incarnations_is_bounded() {
    let mut story = Story::new();
    let worker = answering(&story, restarted(LONG));
    kill(&mut story, &worker);
    let part = "x".repeat(100 << 10);
    let mut accepted = 0;
    let error = loop {
        match worker.notify("part", &[&part]) {
            Ok(()) => accepted += 1,
            Err(error) => break error,
        }
        assert!(accepted < 100);
    };
    assert!(matches!(error, CallError::QueueFull { queued } if queued <= 1 << 20), "{error:?}");
    assert_eq!(accepted, 10);
    assert!(matches!(worker.call::<_, Value>("x", &[&part], DEADLINE), Err(CallError::QueueFull { .. })));
    assert!(story.supervisor.status().workers[0].control_queue > 1_000_000);
}

#[test]
fn p15_member_before_its_first_start_counts_as_going_to_start() {
    let mut story = Story::new();
    let group = story.supervisor.group(GroupPolicy::default()).unwrap();
    let first = WorkerSpec::new("sleep").arg("1000").ready(Readiness::check(|| false));
    let first = group.add(first).unwrap();
    let second = group.add(serving().depends_on(&first, DependencyCondition::Ready)).unwrap();
    let (signal, restarts_in) = exited(second.call::<_, Value>("add", &[1], Duration::from_millis(20)));
    assert_eq!((signal, restarts_in), (None, Some(Duration::ZERO)));
    let waiting = second.start_call("add", &[1, 2]).unwrap();
    assert_eq!(exited(add(&second.fail_fast())).0, None);
    group.stop();
    assert_eq!(exited(waiting.wait::<Value>(DEADLINE)), (None, None));
    story.find(|event| matches!(event.kind, EventKind::GroupEnded(_)).then_some(()));
}

#[test]
fn p02_calls_during_restarts_end_once_and_are_executed_at_most_once() {
    call_during_restarts(restarted(Duration::from_millis(1)));
}

#[test]
fn p02_calls_during_restarts_with_a_handshake_end_once_and_are_executed_at_most_once() {
    let ready = Readiness::call("echo", &["hello"], |_: [String; 1]| ReadinessAnswer::Ready);
    call_during_restarts(restarted(Duration::from_millis(1)).ready(ready));
}

fn call_during_restarts(spec: WorkerSpec) {
    const CALLERS: u32 = 40;
    const CALLS: u32 = 50;
    let story = Story::new();
    let worker = answering(&story, spec.args(["--threads", "2"]));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("calls").display().to_string();
    let outcomes: Vec<(String, Result<String, CallError>)> = thread::scope(|scope| {
        let callers: Vec<_> = (0..CALLERS)
            .map(|caller| {
                let (worker, file) = (&worker, &file);
                scope.spawn(move || {
                    let call = |n| {
                        let name = format!("{caller}-{n}");
                        let outcome = if n % 2 == 0 {
                            worker.call("record", &(file, &name), DEADLINE)
                        } else {
                            worker.start_call("record", &(file, &name)).and_then(|call| call.wait(DEADLINE))
                        };
                        (name, outcome)
                    };
                    (0..CALLS).map(call).collect::<Vec<_>>()
                })
            })
            .collect();
        let mut chance = Chance(7);
        let began = Instant::now();
        while !callers.iter().all(thread::ScopedJoinHandle::is_finished) {
            let until = worker.incarnation() + 1;
            // Answered by some incarnation, so that not all of them are killed at their start.
            for _ in 0..chance.below(5) {
                drop(worker.call::<_, Value>("ping", &(), DEADLINE));
            }
            worker.kill().unwrap();
            worker.wait_incarnation(until, DEADLINE).unwrap();
            assert!(began.elapsed() < 4 * DEADLINE, "the calls take too long");
        }
        callers.into_iter().flat_map(|caller| caller.join().unwrap()).collect()
    });
    let mut executed = BTreeMap::<String, u32>::new();
    for line in fs::read_to_string(&file).unwrap().lines() {
        *executed.entry(line.to_owned()).or_default() += 1;
    }
    assert_eq!(outcomes.len(), (CALLERS * CALLS) as usize);
    for (name, outcome) in outcomes {
        let times = executed.get(&name).copied().unwrap_or_default();
        match outcome {
            Ok(answer) => assert_eq!((answer, times), (name, 1)),
            Err(CallError::WorkerExited { exit: Some(_), restarts_in: Some(_) }) => {
                assert!(times <= 1, "{name}: {times}");
            }
            Err(error) => panic!("{name}: {error:?}"),
        }
    }
    assert!(worker.incarnation() > 2);
}
