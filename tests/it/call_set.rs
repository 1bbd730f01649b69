//! Open calls whose results arrive in one channel.

use crate::support::{DEADLINE, FIXTURE, Story};
use crossbeam_channel::{TryRecvError, select};
use pipewright::{CallError, CallSet, EventKind, FinishedCall, Pass, StdinMode, Worker, WorkerSpec};
use serde_json::Value;
use std::collections::BTreeSet;

fn spawn(story: &Story, subcommand: &str) -> Worker {
    let spec = WorkerSpec::new(FIXTURE).arg(subcommand).control(Pass::arg("--control={}")).stdin(StdinMode::Pipe);
    story.supervisor.spawn(spec).unwrap()
}

#[track_caller]
fn next<T>(calls: &CallSet<T>) -> FinishedCall<T> {
    let open = calls.len();
    calls.finished().recv_timeout(DEADLINE).unwrap_or_else(|error| panic!("{error}, {open} calls left"))
}

#[test]
fn p02_results_of_a_call_set_carry_their_tags() {
    const CALLS: u32 = 300;
    let story = Story::new();
    let workers: Vec<_> = (0..3).map(|_| spawn(&story, "serve")).collect();
    let calls = CallSet::new();
    assert!(calls.is_empty());
    for n in 0..CALLS {
        let worker = &workers[n as usize % workers.len()];
        calls.start(worker, (n, worker.id()), "add", &[n, 1]).unwrap();
    }
    let mut tags = BTreeSet::new();
    while !calls.is_empty() {
        let call = next(&calls);
        assert_eq!(call.worker, call.tag.1);
        let ((n, _), sum) = call.into_result::<u32>();
        assert_eq!(sum.unwrap(), n + 1);
        assert!(tags.insert(n), "{n} ends once");
    }
    assert_eq!((tags.len(), calls.len()), (CALLS as usize, 0));
    calls.start(&workers[0], (0, workers[0].id()), "fail", &[()]).unwrap();
    assert!(matches!(next(&calls).into_result::<()>().1, Err(CallError::Rpc(_))));
}

#[test]
fn p15_calls_of_a_set_end_with_cancellation_and_exit() {
    let story = Story::new();
    let worker = spawn(&story, "serve");
    let calls = CallSet::new();
    let canceller = calls.start(&worker, "first", "until cancelled", &()).unwrap();
    canceller.cancel();
    canceller.cancel();
    assert!(matches!(next(&calls).into_result::<Value>(), ("first", Err(CallError::Cancelled))));
    // The worker serves one request at a time: this one succeeds only if the first was cancelled.
    assert_eq!(worker.call::<_, i64>("add", &[2], DEADLINE).unwrap(), 2);
    for tag in ["second", "third"] {
        calls.start(&worker, tag, "until cancelled", &()).unwrap();
    }
    worker.kill().unwrap();
    for _ in 0..2 {
        let (tag, result) = next(&calls).into_result::<Value>();
        let Err(CallError::WorkerExited { exit: Some(exit), .. }) = result else { panic!("{tag}: {result:?}") };
        assert_eq!(exit.signal(), Some(9));
    }
    assert!(calls.is_empty());
    worker.wait_timeout(DEADLINE).expect("exits");
    let refused = calls.start(&worker, "fourth", "add", &[1]);
    assert!(matches!(refused, Err(CallError::WorkerExited { .. })), "{refused:?}");
    assert!(calls.is_empty(), "a call that was not started has no result");
}

#[test]
fn p15_dropped_call_set_cancels_its_calls() {
    let story = Story::new();
    let worker = spawn(&story, "serve");
    let calls = CallSet::new();
    let receiver = calls.finished().clone();
    let cancellers: Vec<_> = (0..10).map(|tag| calls.start(&worker, tag, "until cancelled", &()).unwrap()).collect();
    drop(calls);
    assert!(matches!(receiver.try_recv(), Err(TryRecvError::Disconnected)), "no call keeps the channel open");
    assert_eq!(worker.call::<_, i64>("add", &[4], DEADLINE).unwrap(), 4);
    drop(cancellers);
}

#[test]
fn p06_call_that_does_not_fit_is_not_in_the_set() {
    let story = Story::new();
    let worker = spawn(&story, "deaf");
    let calls = CallSet::new();
    let text = "x".repeat(100_000);
    let error = loop {
        match calls.start(&worker, (), "listen", &[&text]) {
            Ok(_) => assert!(calls.len() < 100, "the queue has no limit"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, CallError::QueueFull { .. }), "{error:?}");
    let (open, mut started) = (calls.len(), 0);
    drop(worker.take_stdin());
    while !calls.is_empty() {
        assert!(matches!(next(&calls).into_result::<()>().1, Err(CallError::WorkerExited { .. })));
        started += 1;
    }
    assert_eq!(started, open);
}

#[test]
fn call_set_and_events_are_selected_together() {
    let story = Story::new();
    let worker = spawn(&story, "serve");
    let calls = CallSet::new();
    calls.start(&worker, 'a', "ask back", &[7]).unwrap();
    let answer = loop {
        select! {
            recv(calls.finished()) -> call => break call.unwrap().into_result::<u32>(),
            recv(story.supervisor.events()) -> event => if let EventKind::Request(request) = event.unwrap().kind {
                request.reply(&8).unwrap();
            },
            default(DEADLINE) => panic!("neither an event nor a result"),
        }
    };
    assert!(matches!(answer, ('a', Ok(8))), "{answer:?}");
}
