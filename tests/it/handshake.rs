//! The call that makes a worker ready.

use crate::support::{DEADLINE, FIXTURE, Story};
use pipewright::{
    Backoff, CallError, DependencyCondition, EventKind, Framing, GroupPolicy, OutputMode, Pass, Readiness,
    ReadinessAnswer, Restart, RestartPolicy, SpecError, StdinMode, StdioProtocol, WorkerSpec,
    events::{AfterExit, GiveUpReason, ReadinessError, ReadinessSource},
};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tempfile::TempDir;

#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Hello {
    state: String,
    run: u32,
}

#[expect(clippy::needless_pass_by_value, reason = "passed to `Readiness::call`")]
fn judge(hello: Hello) -> ReadinessAnswer {
    match &*hello.state {
        "ready" => ReadinessAnswer::Ready,
        "panic" => std::panic::resume_unwind(Box::new("as asked")),
        "not yet" => ReadinessAnswer::NotYet,
        _ => ReadinessAnswer::Fatal(format!("it says {:?}", hello.state)),
    }
}

fn initialize() -> Readiness {
    Readiness::call("initialize", &json!({"client": "test"}), judge).then_notify("initialized", &())
}

/// A worker with these answers, see the fixture, that is restarted at once.
fn answering(directory: &TempDir, answers: &str) -> WorkerSpec {
    let policy = RestartPolicy::from(Restart::Always).backoff(Backoff::constant(Duration::ZERO));
    WorkerSpec::new(FIXTURE)
        .args(["handshake", "--answers", answers, "--runs"])
        .arg(directory.path().join("runs"))
        .control(Pass::arg("--control={}"))
        .stderr(OutputMode::Lines)
        .restart(policy)
        .ready(initialize())
}

fn directory() -> TempDir {
    tempfile::tempdir().unwrap()
}

#[track_caller]
fn not_ready(story: &mut Story) -> ReadinessError {
    story.find(|event| match event.kind {
        EventKind::NotReady { reason, .. } => Some(reason),
        EventKind::Ready { .. } => panic!("ready"),
        _ => None,
    })
}

#[track_caller]
fn gave_up(story: &mut Story) -> GiveUpReason {
    story.find(|event| match event.kind {
        EventKind::Exited { next, .. } => match next {
            AfterExit::GaveUp(reason) => Some(reason),
            _ => panic!("{next:?}"),
        },
        _ => None,
    })
}

#[test]
fn p15_calls_before_readiness_follow_the_handshake_in_order() {
    let (mut story, directory) = (Story::new(), directory());
    let worker = story.supervisor.spawn(answering(&directory, "not yet,ready")).unwrap();
    let first = worker.start_call("first", &()).unwrap();
    worker.notify("second", &()).unwrap();
    let third = worker.start_call("third", &()).unwrap();
    let seen: Vec<String> = worker.call("seen", &(), DEADLINE).unwrap();
    assert_eq!(seen, ["initialize", "initialize", "initialized", "first", "second", "third", "seen"]);
    assert_eq!([first, third].map(|call| call.wait::<u32>(DEADLINE).unwrap()), [1, 1]);
    story.find(|event| matches!(event.kind, EventKind::Ready { .. }).then_some(()));
    assert_eq!(worker.handshake().unwrap(), Some(Hello { state: "ready".into(), run: 1 }));
    let error = worker.handshake::<Vec<u8>>().unwrap_err();
    assert!(error.to_string().contains("ready"), "{error}");
}

#[test]
fn p15_handshake_is_repeated_until_the_worker_is_ready() {
    let (mut story, directory) = (Story::new(), directory());
    let judged = Arc::new(AtomicU32::new(0));
    let counted = {
        let judged = Arc::clone(&judged);
        move |hello: Hello| {
            judged.fetch_add(1, Ordering::SeqCst);
            judge(hello)
        }
    };
    let spec = answering(&directory, "not yet,panic,ready").ready(Readiness::call("initialize", &(), counted));
    let worker = story.supervisor.spawn(spec).unwrap();
    worker.wait_ready(DEADLINE).unwrap();
    assert_eq!(judged.load(Ordering::SeqCst), 3, "a panic is a `NotYet`");
    story.find(|event| matches!(event.kind, EventKind::Ready { .. }).then_some(()));
}

#[test]
fn p13_fatal_answer_is_not_restarted() {
    for (answers, text) in [
        ("not yet,old", "it says \"old\""),
        ("old and exit", "it says \"old\""),
        ("error -32601", "remote error -32601: as you wish"),
        ("error -32602", "remote error -32602: as you wish"),
    ] {
        let (mut story, directory) = (Story::new(), directory());
        let worker = story.supervisor.spawn(answering(&directory, answers)).unwrap();
        // Refused if the worker has ended already.
        let waiting = worker.start_call("anything", &());
        match not_ready(&mut story) {
            ReadinessError::Fatal { reason } => assert_eq!(&*reason, text),
            error => panic!("{answers}: {error:?}"),
        }
        assert_eq!(gave_up(&mut story), GiveUpReason::FatalAnswer);
        match waiting.and_then(|call| call.wait::<Value>(DEADLINE)) {
            Err(CallError::WorkerExited { exit: Some(_), restarts_in: None }) => {}
            other => panic!("{other:?}"),
        }
        assert!(worker.wait_ready(DEADLINE).is_err());
        assert_eq!(worker.handshake::<Hello>().unwrap(), None);
        assert_eq!(worker.incarnation(), 1);
    }
}

#[test]
fn p13_result_of_another_type_is_fatal() {
    let (mut story, directory) = (Story::new(), directory());
    let ready = Readiness::call("initialize", &(), |_: Vec<u8>| ReadinessAnswer::Ready);
    drop(story.supervisor.spawn(answering(&directory, "ready").ready(ready)).unwrap());
    match not_ready(&mut story) {
        ReadinessError::Fatal { reason } => assert!(reason.starts_with("invalid result: "), "{reason}"),
        error => panic!("{error:?}"),
    }
    assert_eq!(gave_up(&mut story), GiveUpReason::FatalAnswer);
}

#[test]
fn p15_calls_survive_handshakes_that_fail() {
    for (answers, expected) in [
        ("error 7;ready", ReadinessError::CallFailed { error: "remote error 7: as you wish".into() }),
        ("exit;not yet,ready", ReadinessError::Exited { after: Duration::ZERO }),
        ("silent;ready", ReadinessError::TimedOut { waited: Duration::ZERO, source: ReadinessSource::Call }),
    ] {
        let (mut story, directory) = (Story::new(), directory());
        let mut spec = answering(&directory, answers);
        if answers.starts_with("silent") {
            // The second incarnation must start within the same time.
            spec = spec.ready(initialize().timeout(Duration::from_secs(2)));
        }
        let worker = story.supervisor.spawn(spec).unwrap();
        assert_eq!(worker.call::<_, u32>("anything", &(), DEADLINE).unwrap(), 2, "{answers}: {:?}", story.told);
        assert_eq!(worker.handshake().unwrap(), Some(Hello { state: "ready".into(), run: 2 }));
        let reason = not_ready(&mut story);
        match (&reason, &expected) {
            (ReadinessError::Exited { .. }, ReadinessError::Exited { .. })
            | (ReadinessError::TimedOut { .. }, ReadinessError::TimedOut { .. }) => {}
            _ => assert_eq!(reason, expected),
        }
    }
}

#[test]
fn p15_each_incarnation_has_its_handshake() {
    let (story, directory) = (Story::new(), directory());
    let worker = story.supervisor.spawn(answering(&directory, "ready")).unwrap();
    for run in 1..4 {
        assert_eq!(worker.call::<_, u32>("anything", &(), DEADLINE).unwrap(), run);
        assert_eq!(worker.handshake().unwrap(), Some(Hello { state: "ready".into(), run }));
        let seen: Vec<String> = worker.call("seen", &(), DEADLINE).unwrap();
        assert_eq!(seen, ["initialize", "initialized", "anything", "seen"]);
        worker.restart().wait(DEADLINE).unwrap();
    }
}

#[test]
fn p15_worker_that_closes_its_connection_is_not_ready() {
    let mut story = Story::new();
    let spec = WorkerSpec::new(FIXTURE).arg("hang-up").control(Pass::arg("--control={}")).stdin(StdinMode::Pipe);
    let worker = story.supervisor.spawn(spec.ready(initialize())).unwrap();
    // Its call may have reached the worker, which then answers with an error.
    let reason = not_ready(&mut story);
    assert!(matches!(reason, ReadinessError::CallFailed { .. }), "{reason:?}");
    drop(worker);
    story.exit();
}

#[test]
fn p15_handshake_over_stdio_precedes_calls() {
    for (name, framing) in [("lines", Framing::Lines), ("content-length", Framing::ContentLength)] {
        let mut story = Story::new();
        let spec = WorkerSpec::new(FIXTURE)
            .args(["stdio-server", "--framing", name])
            .control_on_stdio(StdioProtocol::new(framing))
            .restart(Restart::Always);
        let ready = Readiness::call("echo", &[7], |[number]: [u8; 1]| match number {
            7 => ReadinessAnswer::Ready,
            _ => ReadinessAnswer::NotYet,
        });
        let worker = story.supervisor.spawn(spec.ready(ready.then_notify("initialized", &()))).unwrap();
        for _ in 0..2 {
            let seen: Vec<Value> = worker.call("seen", &(), DEADLINE).unwrap();
            let methods: Vec<&Value> = seen.iter().map(|message| &message["method"]).collect();
            assert_eq!(methods, ["echo", "initialized", "seen"]);
            assert_eq!(worker.handshake::<[u8; 1]>().unwrap(), Some([7]));
            worker.kill().unwrap();
            story.exit();
        }
    }
}

#[test]
fn p06_closure_that_blocks_delays_only_its_worker() {
    let (story, first, second) = (Story::new(), directory(), directory());
    let (release, released) = crossbeam_channel::bounded::<()>(0);
    let blocking = Readiness::call("initialize", &(), move |_: Value| {
        _ = released.recv_timeout(DEADLINE);
        ReadinessAnswer::Ready
    });
    let blocked = story.supervisor.spawn(answering(&first, "ready").ready(blocking)).unwrap();
    let waiting = blocked.start_call("anything", &()).unwrap();
    let other = story.supervisor.spawn(answering(&second, "ready")).unwrap();
    assert_eq!(other.call::<_, u32>("anything", &(), DEADLINE).unwrap(), 1);
    assert!(matches!(blocked.call::<_, Value>("anything", &(), Duration::from_millis(20)), Err(CallError::NotReady)));
    assert_eq!(blocked.handshake::<Value>().unwrap(), None);
    drop(release);
    assert_eq!(waiting.wait::<u32>(DEADLINE).unwrap(), 1);
}

#[test]
fn p01_dependents_start_after_the_handshake() {
    let (mut story, directory) = (Story::new(), directory());
    let group = story.supervisor.group(GroupPolicy::default()).unwrap();
    let server = group.add(answering(&directory, "not yet,not yet,ready")).unwrap();
    let dependent = WorkerSpec::new("sleep").arg("1000").depends_on(&server, DependencyCondition::Ready);
    let dependent = group.add(dependent).unwrap();
    let mut is_ready = false;
    story.find(|event| match event.kind {
        EventKind::Ready { .. } => {
            is_ready = true;
            None
        }
        EventKind::Started { .. } if event.worker == dependent.id() => Some(()),
        _ => None,
    });
    assert!(is_ready);
}

#[test]
fn p16_handshakes_that_cannot_be_sent_are_refused() {
    let settings = |spec: WorkerSpec| match spec.validate() {
        Err(SpecError::Conflict { settings, reason }) => (settings, reason),
        other => panic!("{other:?}"),
    };
    let (without, _) = settings(WorkerSpec::new("worker").ready(initialize()));
    assert_eq!(without, ["ready", "control"]);
    let number = Readiness::call("initialize", &5, |_: Value| ReadinessAnswer::Ready);
    let (invalid, reason) = settings(WorkerSpec::new("worker").control(Pass::env("CONTROL")).ready(number));
    assert_eq!(invalid, ["ready", "call"]);
    assert!(reason.contains("cannot serialize parameters"), "{reason}");
}
