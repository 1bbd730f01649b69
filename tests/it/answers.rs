//! Calls under adverse conditions: a consumer that receives nothing, a worker that sends too much. The test plays the worker's side of
//! the control connection.

use crate::support::{DEADLINE, FIXTURE, Story, Way, alone, becomes_true, switches};
use pipewright::{
    CallError, EventKind, OutputMode, Pass, Readiness, StdinMode, Supervisor, Watchdog, Worker, WorkerSpec,
    events::FrameErrorKind,
};
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    sync::mpsc,
    thread,
    time::Duration,
};

/// The control window of a passive worker, in bytes.
const WINDOW: usize = 1 << 20;
/// More bytes than its control connection may have in the event channel.
const TOO_MUCH: usize = 2 * WINDOW;

/// A worker that passes its control address to the test and waits for the end of its standard input.
pub(crate) fn passive() -> WorkerSpec {
    Way::Direct
        .fixture("control-address")
        .control(Pass::arg("--control={}"))
        .control_window(WINDOW)
        .stdin(StdinMode::Pipe)
}

/// Returns the worker and its control address.
pub(crate) fn spawn(story: &mut Story, spec: WorkerSpec) -> (Worker, String) {
    let worker = story.supervisor.spawn(spec).unwrap();
    let address = story.json().as_str().unwrap().to_owned();
    (worker, address)
}

fn hello(address: &str) -> (UnixStream, String) {
    let (path, key) = address.rsplit_once('?').unwrap();
    let socket = UnixStream::connect(path).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket.set_write_timeout(Some(DEADLINE)).unwrap();
    (socket, format!("{}\n", json!({"jsonrpc": "2.0", "method": "hello", "params": {"key": key}})))
}

pub(crate) fn connected(story: &mut Story, spec: WorkerSpec) -> (Worker, UnixStream) {
    let (worker, address) = spawn(story, spec);
    let (mut socket, hello) = hello(&address);
    socket.write_all(hello.as_bytes()).unwrap();
    story.find(|event| matches!(event.kind, EventKind::ControlConnected).then_some(()));
    (worker, socket)
}

fn note(text: &str) -> String {
    format!("{}\n", json!({"jsonrpc": "2.0", "method": "note", "params": text}))
}

/// Answers every request with its parameters until the connection ends.
fn echo(socket: &UnixStream) {
    let mut writer = socket.try_clone().unwrap();
    for line in BufReader::new(socket).lines() {
        let Ok(line) = line else { return };
        let request: Value = serde_json::from_str(&line).unwrap();
        if let Some(id) = request.get("id") {
            let answer = json!({"jsonrpc": "2.0", "id": id, "result": request["params"]});
            if writeln!(writer, "{answer}").is_err() {
                return;
            }
        }
    }
}

/// Waits until the supervisor stops reading from this worker.
#[track_caller]
fn wait_until_paused(supervisor: &Supervisor, worker: &Worker) {
    let is_paused = || {
        let workers = supervisor.status().workers;
        workers.iter().any(|status| status.worker == worker.id() && status.is_paused)
    };
    assert!(becomes_true(is_paused), "not paused: {:#?}", supervisor.status());
}

#[test]
fn p06_answers_do_not_wait_for_the_consumer_of_others() {
    let mut story = Story::of(Supervisor::builder().window(256 << 10).build().unwrap());
    let (worker, mut socket) = connected(&mut story, passive());
    let flood = WorkerSpec::new(FIXTURE)
        .args(["flood", "--count", "1000", "--size", "1000"])
        .messages(Pass::arg("--messages={}"));
    let flooding = story.supervisor.spawn(flood).unwrap();
    wait_until_paused(&story.supervisor, &flooding);
    // No event is received any more, and the window of the supervisor is exhausted.
    socket.write_all(note("in the channel").as_bytes()).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| echo(&socket));
        for n in 0..100 {
            assert_eq!(worker.call::<_, [u32; 1]>("echo", &[n], DEADLINE).unwrap(), [n]);
        }
        drop(worker.kill());
        socket.shutdown(std::net::Shutdown::Both).unwrap();
    });
    let notes = story.rest().into_iter().filter(|event| matches!(event.kind, EventKind::Notification(_)));
    assert_eq!(notes.count(), 1);
}

#[test]
fn p06_watchdog_spares_a_worker_whose_messages_are_not_consumed() {
    let mut story = Story::new();
    let watched = passive().watchdog(Watchdog::ping(Duration::from_millis(100)));
    let (worker, socket) = connected(&mut story, watched);
    let text = note(&"x".repeat(10_000));
    thread::scope(|scope| {
        scope.spawn(|| echo(&socket));
        let flooder = scope.spawn(|| {
            for _ in 0..TOO_MUCH / text.len() {
                (&socket).write_all(text.as_bytes()).unwrap();
            }
        });
        wait_until_paused(&story.supervisor, &worker);
        assert_eq!(worker.wait_timeout(Duration::from_secs(1)), None, "ten periods without a read of its answers");
        for _ in 0..TOO_MUCH / text.len() {
            let is_notification = story.find(|event| match event.kind {
                EventKind::WatchdogTimeout | EventKind::WatchdogWarning { .. } => Some(false),
                EventKind::Notification(_) => Some(true),
                _ => None,
            });
            assert!(is_notification, "{:?}", story.told);
        }
        flooder.join().unwrap();
        assert!(worker.call::<_, [bool; 1]>("echo", &[true], DEADLINE).unwrap()[0]);
        socket.shutdown(std::net::Shutdown::Both).unwrap();
    });
}

#[test]
fn p06_notifications_reach_a_worker_whose_messages_are_not_consumed() {
    const LINES: usize = 60;
    let mut story = Story::new();
    let (worker, socket) = connected(&mut story, passive());
    let text = note(&"x".repeat(10_000));
    thread::scope(|scope| {
        scope.spawn(|| {
            // Fails once the test shuts the socket down.
            while (&socket).write_all(text.as_bytes()).is_ok() {}
        });
        wait_until_paused(&story.supervisor, &worker);
        // More than the socket buffer holds.
        let text = "y".repeat(10_000);
        for _ in 0..LINES {
            worker.notify("listen", &[&text]).unwrap();
        }
        let lines = BufReader::new(&socket).lines();
        assert_eq!(lines.take(LINES).filter(|line| line.as_ref().unwrap().contains("listen")).count(), LINES);
        socket.shutdown(std::net::Shutdown::Both).unwrap();
    });
}

#[test]
fn p15_call_times_out_despite_other_messages() {
    let mut story = Story::new();
    let (worker, mut socket) = connected(&mut story, passive());
    assert!(matches!(worker.call::<_, Value>("first", &(), Duration::from_millis(10)), Err(CallError::TimedOut)));
    thread::scope(|scope| {
        let (stop, stopped) = mpsc::channel::<()>();
        scope.spawn(move || {
            // The late answer to the first call, repeatedly: it is ignored and produces no event.
            let late = format!("{}\n", json!({"jsonrpc": "2.0", "id": 1, "result": null}));
            while stopped.recv_timeout(Duration::from_millis(5)) == Err(mpsc::RecvTimeoutError::Timeout) {
                socket.write_all(late.as_bytes()).unwrap();
            }
        });
        let (ended, end) = mpsc::channel();
        let worker = &worker;
        scope.spawn(move || ended.send(worker.call::<_, Value>("second", &(), Duration::from_millis(100))).unwrap());
        let outcome = end.recv_timeout(DEADLINE);
        drop(stop);
        assert!(matches!(outcome, Ok(Err(CallError::TimedOut))), "{outcome:?}");
    });
}

#[test]
fn p15_call_of_a_worker_times_out_if_its_messages_are_not_consumed() {
    let story = Story::new();
    let worker = story.supervisor.spawn(Way::Direct.plain("ask-in-flood").control(Pass::arg("--control={}"))).unwrap();
    // The events of the worker are not received.
    assert!(worker.wait_timeout(DEADLINE).expect("its exit").success());
}

#[test]
fn bytes_after_the_key_are_delivered_during_a_call() {
    let mut story = Story::new();
    for _ in 0..30 {
        let (worker, address) = spawn(&mut story, passive());
        let (mut socket, hello) = hello(&address);
        thread::scope(|scope| {
            scope.spawn(|| {
                let call = || worker.call::<_, Value>("x", &(), Duration::from_micros(1));
                while matches!(call(), Err(CallError::TimedOut)) {}
            });
            socket.write_all((hello + &note("after the key")).as_bytes()).unwrap();
            let text = story.find(|event| match event.kind {
                EventKind::Notification(notification) => Some(notification.params::<String>().unwrap()),
                _ => None,
            });
            assert_eq!(text, "after the key");
            scope.spawn(|| echo(&socket));
            worker.call::<_, Value>("x", &(), DEADLINE).unwrap();
            worker.kill().unwrap();
            socket.shutdown(std::net::Shutdown::Both).unwrap();
        });
    }
}

#[test]
fn readiness_by_connection_uses_the_readiness_timeout() {
    let mut story = Story::new();
    let spec =
        passive().control_connect_timeout(Duration::from_millis(20)).ready(Readiness::control().timeout(DEADLINE));
    let (worker, address) = spawn(&mut story, spec);
    assert!(worker.wait_ready(Duration::from_millis(100)).is_err());
    let (mut socket, hello) = hello(&address);
    socket.write_all(hello.as_bytes()).unwrap();
    story.find(|event| match event.kind {
        EventKind::ControlDisconnected(why) => panic!("{why:?}"),
        EventKind::Ready { .. } => Some(()),
        _ => None,
    });
}

#[test]
fn p16_invalid_answer_is_reported() {
    let mut story = Story::new();
    let (worker, mut socket) = connected(&mut story, passive());
    thread::scope(|scope| {
        let call = scope.spawn(|| worker.call::<_, Value>("x", &(), DEADLINE));
        let mut line = String::new();
        BufReader::new(socket.try_clone().unwrap()).read_line(&mut line).unwrap();
        let id = &serde_json::from_str::<Value>(&line).unwrap()["id"];
        socket.write_all(format!("{}\n", json!({"jsonrpc": "2.0", "id": id, "error": "no"})).as_bytes()).unwrap();
        let error = call.join().unwrap().unwrap_err();
        assert!(matches!(&error, CallError::InvalidResult(why) if why.excerpt().contains("no")), "{error:?}");
    });
    for answer in [r#"{"jsonrpc":"2.0","id":99,"result":1}"#, r#"{"jsonrpc":"2.0","id":"mine","result":1}"#] {
        socket.write_all(format!("{answer}\n").as_bytes()).unwrap();
        let fault = story.find(|event| match event.kind {
            EventKind::InvalidFrame(fault) => Some(fault),
            _ => None,
        });
        assert_eq!((fault.kind, &*fault.excerpt), (FrameErrorKind::UnexpectedAnswer, answer.as_bytes()));
    }
}

#[test]
fn p15_answers_in_other_notations_end_their_calls() {
    let mut story = Story::new();
    let (worker, socket) = connected(&mut story, passive());
    let mut lines = BufReader::new(socket.try_clone().unwrap()).lines();
    let mut call_with = |answer: fn(&Value) -> String| {
        thread::scope(|scope| {
            let call = scope.spawn(|| worker.call::<_, Value>("x", &[1], DEADLINE));
            let request: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
            (&socket).write_all(answer(&request["id"]).as_bytes()).unwrap();
            call.join().unwrap()
        })
    };
    let forms: [fn(&Value) -> String; 3] = [
        |id| format!("{{\"jsonrpc\":\"2.0\",\"id\":{id}.0,\"result\":1}}\n"),
        |id| format!("{{\"jsonrpc\":\"2.0\",\"id\":{id}e0,\"result\":1}}\n"),
        |id| format!("{{\"jsonrpc\":\"2.0\",\"id\":\"{id}\",\"result\":1}}\n"),
    ];
    for form in forms {
        assert_eq!(call_with(form).unwrap(), json!(1));
    }
    let without_id = |_: &Value| {
        "{\"jsonrpc\":\"2.0\",\"id\":null,\"error\":{\"code\":-32700,\"message\":\"Parse error\"}}\n".to_owned()
    };
    let error = call_with(without_id).unwrap_err();
    assert!(matches!(&error, CallError::Rpc(error) if error.code == -32700), "{error:?}");
    let without_version = |id: &Value| format!("{{\"id\":{id},\"result\":1}}\n");
    assert_eq!(call_with(without_version).unwrap(), json!(1));
    let batch = |id: &Value| {
        format!("[{{\"jsonrpc\":\"2.0\",\"method\":\"m\"}},{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":1}}]\n")
    };
    assert_eq!(call_with(batch).unwrap(), json!(1));
    // The first of two answers counts; the second is a frame error.
    let twice = |id: &Value| {
        let answer = |result| format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":\"{result}\"}}\n");
        answer("first") + &answer("second")
    };
    assert_eq!(call_with(twice).unwrap(), json!("first"));
    let fault = story.find(|event| match event.kind {
        EventKind::InvalidFrame(fault) => Some(fault),
        _ => None,
    });
    assert_eq!(fault.kind, FrameErrorKind::UnexpectedAnswer);
    assert!(String::from_utf8_lossy(&fault.excerpt).contains("second"), "{fault}");
}

#[test]
fn p15_answer_beyond_the_queue_becomes_an_error() {
    let mut story = Story::new();
    let (worker, mut socket) = connected(&mut story, passive());
    socket.write_all(b"{\"jsonrpc\":\"2.0\",\"id\":\"big\",\"method\":\"m\"}\n").unwrap();
    let request = story.find(|event| match event.kind {
        EventKind::Request(request) => Some(request),
        _ => None,
    });
    let text = "x".repeat(10_000);
    let full = (0..10_000).find_map(|_| worker.notify("unread", &[&text]).err()).expect("a limit");
    assert!(matches!(full, CallError::QueueFull { .. }), "{full:?}");
    let error = request.reply(&text).unwrap_err();
    assert!(matches!(error, CallError::QueueFull { .. }), "{error:?}");
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let answer = BufReader::new(socket).lines().map(Result::unwrap).find(|line| line.contains("big")).unwrap();
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!((&answer["id"], &answer["error"]["code"]), (&json!("big"), &json!(-32603)), "{answer}");
    drop(worker);
}

#[test]
fn p02_byte_order_mark_before_the_hello_is_skipped() {
    let mut story = Story::new();
    let (worker, address) = spawn(&mut story, passive());
    let (mut socket, hello) = hello(&address);
    socket.write_all(format!("\u{feff}{hello}").as_bytes()).unwrap();
    story.find(|event| matches!(event.kind, EventKind::ControlConnected).then_some(()));
    drop(worker);
}

#[test]
fn p15_line_beyond_the_limit_ends_its_call() {
    let mut story = Story::new();
    let (worker, mut socket) = connected(&mut story, passive().max_message_size(1000));
    let long = "x".repeat(2000);
    let request = json!({"jsonrpc": "2.0", "id": 5, "method": "long", "params": long});
    socket.write_all(format!("{request}\n").as_bytes()).unwrap();
    let mut answer = String::new();
    BufReader::new(&socket).read_line(&mut answer).unwrap();
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!((&answer["id"], &answer["error"]["code"]), (&json!(5), &json!(-32600)), "{answer}");
    thread::scope(|scope| {
        scope.spawn(|| echo(&socket));
        let error = worker.call::<_, Value>("echo", &[&long], DEADLINE).unwrap_err();
        assert!(matches!(error, CallError::InvalidResult(_)), "{error:?}");
        assert_eq!(worker.call::<_, [u32; 1]>("echo", &[1], DEADLINE).unwrap(), [1], "later messages are not affected");
        socket.shutdown(std::net::Shutdown::Both).unwrap();
    });
    for _ in 0..2 {
        let fault = |event: pipewright::Event| match event.kind {
            EventKind::InvalidFrame(fault) => Some(fault.kind),
            _ => None,
        };
        assert_eq!(story.find(fault), FrameErrorKind::TooLong { limit: 1000 });
    }
}

#[test]
fn p14_waiting_for_a_consumer_costs_few_wakeups() {
    if !alone("answers::p14_waiting_for_a_consumer_costs_few_wakeups", |spec| spec) {
        return;
    }
    let mut story = Story::new();
    let (worker, socket) = connected(&mut story, passive());
    let text = note(&"x".repeat(10_000));
    thread::scope(|scope| {
        scope.spawn(|| while (&socket).write_all(text.as_bytes()).is_ok() {});
        wait_until_paused(&story.supervisor, &worker);
        // The supervisor checks at growing intervals, up to 128 ms.
        let before = switches();
        assert_eq!(worker.wait_timeout(Duration::from_secs(1)), None);
        let wakeups = switches() - before;
        assert!(wakeups < 100, "{wakeups} wake-ups in a second");
        socket.shutdown(std::net::Shutdown::Both).unwrap();
    });
}

#[test]
fn workers_connect_without_a_runtime_directory() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = directory.path().join("runtime");
    let place = runtime.clone();
    let here = move |spec: WorkerSpec| spec.env("XDG_RUNTIME_DIR", &place);
    if !alone("answers::workers_connect_without_a_runtime_directory", here) {
        return;
    }
    let runtime = std::path::PathBuf::from(std::env::var_os("XDG_RUNTIME_DIR").unwrap());
    let story = Story::new();
    let spec = || Way::Direct.plain("serve").control(Pass::arg("--control={}"));
    let answers = |worker: &Worker| assert_eq!(worker.call::<_, [u32; 1]>("echo", &[1], DEADLINE).unwrap(), [1]);
    let first = story.supervisor.spawn(spec()).unwrap();
    answers(&first);
    assert!(!runtime.exists(), "it was never created");
    let supervisor = Supervisor::new().unwrap();
    std::fs::create_dir(&runtime).unwrap();
    let second = supervisor.spawn(spec().ready(Readiness::control())).unwrap();
    answers(&second);
    // As when the user logs out.
    std::fs::remove_dir_all(&runtime).unwrap();
    assert!(second.restart().wait(DEADLINE).is_ok(), "{:#?}", supervisor.status());
    answers(&second);
}

#[test]
fn p09_remains_of_killed_hosts_are_removed() {
    const NAME: &str = "answers::p09_remains_of_killed_hosts_are_removed";
    let directory = tempfile::tempdir().unwrap();
    let runtime = directory.path().to_owned();
    let here = move |spec: WorkerSpec| spec.env("XDG_RUNTIME_DIR", &runtime);
    if !alone(NAME, here) {
        return;
    }
    let runtime = std::path::PathBuf::from(std::env::var_os("XDG_RUNTIME_DIR").unwrap());
    let sockets = || {
        let entries = std::fs::read_dir(&runtime).unwrap().map(|entry| entry.unwrap().path());
        let ours = |path: &std::path::PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with("pipewright-");
        entries.filter(ours).collect::<Vec<_>>()
    };
    let mut story = Story::new();
    let mut serving = || {
        // Without a guard, which would remove the directory.
        let host = WorkerSpec::new(FIXTURE)
            .args(["control-host", "--guard", "none"])
            .stdin(StdinMode::Pipe)
            .stdout(OutputMode::Lines);
        let host = story.supervisor.spawn(host).unwrap();
        story.find(|event| matches!(event.kind, EventKind::Line { .. }).then_some(()));
        let of_host = sockets();
        (host, of_host)
    };
    let (_living, of_living) = serving();
    let (dead, of_both) = serving();
    assert_eq!((of_living.len(), of_both.len()), (1, 2));
    dead.kill().unwrap();
    story.exit();
    assert_eq!(sockets().len(), 2, "SIGKILL leaves the directory");
    let control = story.supervisor.spawn(Way::Direct.plain("serve").control(Pass::arg("--control={}"))).unwrap();
    control.call::<_, ()>("ping", &(), DEADLINE).unwrap();
    let left = sockets();
    assert_eq!(left.iter().filter(|path| of_both.contains(path)).collect::<Vec<_>>(), [&of_living[0]], "{left:?}");
    drop((control, story));
    let left = sockets();
    assert!(left.iter().all(|path| of_living.contains(path)), "{left:?}");
}

#[test]
fn p15_requests_of_a_batch_are_answered_by_one_array() {
    let mut story = Story::new();
    let (_worker, socket) = connected(&mut story, passive());
    let mut lines = BufReader::new(socket.try_clone().unwrap()).lines();
    let request = |id: Value, method: &str| json!({"jsonrpc": "2.0", "id": id, "method": method});
    let note = json!({"jsonrpc": "2.0", "method": "note"});
    let batch = json!([request(json!("a"), "first"), request(json!(7), "ping"), note, 5, request(json!(8), "second")]);
    writeln!(&socket, "{batch}").unwrap();
    let mut requests: Vec<_> = (0..2)
        .map(|_| {
            story.find(|event| match event.kind {
                EventKind::Request(request) => Some(*request),
                _ => None,
            })
        })
        .collect();
    requests.pop().unwrap().reply(&2).unwrap();
    // Dropped, which is an error.
    drop(requests);
    let mut answers: Vec<Value> = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    let failed = answers.pop().unwrap();
    let answer = |id, result| json!({"jsonrpc": "2.0", "id": id, "result": result});
    assert_eq!(answers, [answer(7, Value::Null), answer(8, json!(2))]);
    assert_eq!((&failed["id"], &failed["error"]["code"]), (&json!("a"), &json!(-32603)));
    // Notifications alone are not answered.
    writeln!(&socket, "[{note}]").unwrap();
    writeln!(&socket, "{}", request(json!(9), "ping")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap(), answer(9, Value::Null));
}
