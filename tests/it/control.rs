//! Calls in both directions over the control pipe.

use crate::support::{DEADLINE, Story, Way, alone, both_ways, is_alive};
use pipewright::{
    CallError, Event, EventKind, OutputMode, Pass, Request, StdinMode, StopPolicy, StopStep, Supervisor, Worker,
    WorkerSpec,
    events::{DisconnectReason, FrameErrorKind, HandshakeError, Warning},
};
use serde_json::{Value, json};
use std::{
    fs,
    io::{Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    thread,
    time::{Duration, Instant},
};

fn serving(way: Way) -> WorkerSpec {
    way.plain("serve").control(Pass::arg("--control={}")).stderr(OutputMode::Lines)
}

fn started(way: Way) -> (Story, Worker) {
    let story = Story::new();
    let worker = story.supervisor.spawn(serving(way)).unwrap();
    (story, worker)
}

fn request(event: Event) -> Option<Request> {
    match event.kind {
        EventKind::Request(request) => Some(*request),
        _ => None,
    }
}

#[expect(clippy::needless_pass_by_value, reason = "passed to `find`")]
fn disconnected(event: Event) -> Option<DisconnectReason> {
    match event.kind {
        EventKind::ControlDisconnected(reason) => Some(reason),
        _ => None,
    }
}

both_ways! {
    fn worker_answers_calls(way: Way) {
        let (mut story, worker) = started(way);
        let sum: i64 = worker.call("add", &[1, 2, 3], DEADLINE).unwrap();
        assert_eq!(sum, 6);
        // Answered by the library itself.
        worker.call::<_, ()>("ping", &(), DEADLINE).unwrap();
        let echoed = worker.call::<_, Value>("echo", &json!({"text": "a\nb", "n": [1, null]}), DEADLINE).unwrap();
        assert_eq!(echoed, json!({"text": "a\nb", "n": [1, null]}));
        story.find(|event| matches!(event.kind, EventKind::ControlConnected).then_some(()));
    }

    fn p16_error_of_a_handler_reaches_the_caller_by_question_mark(way: Way) {
        let (_story, worker) = started(way);
        let refused = |params: Value| match worker.call::<_, Value>("read", &params, DEADLINE).unwrap_err() {
            CallError::Rpc(error) => (error.code, error.message),
            error => panic!("{error:?}"),
        };
        let (code, message) = refused(json!(["/nonexistent/file"]));
        assert_eq!((code, message.as_str()), (-32603, "No such file or directory (os error 2)"));
        let (code, message) = refused(json!([5]));
        assert!(code == -32602 && message.contains("expected a string"), "{code} {message}");
    }

    fn p02_handler_of_a_worker_gets_notifications_in_order(way: Way) {
        const COUNT: u32 = 500;
        let (_story, worker) = started(way);
        for n in 0..COUNT {
            worker.notify("note", &[n]).unwrap();
        }
        // Errors and panics of its handler have no answer.
        worker.notify("no such method", &()).unwrap();
        worker.notify("panic", &()).unwrap();
        let notes: Vec<[u32; 1]> = worker.call("notes", &(), DEADLINE).unwrap();
        assert_eq!(notes.concat(), (0..COUNT).collect::<Vec<_>>());
        assert_eq!(worker.call::<_, i64>("add", &[1, 2], DEADLINE).unwrap(), 3);
    }

    fn errors_of_methods_reach_the_caller(way: Way) {
        let (_story, worker) = started(way);
        match worker.call::<_, Value>("fail", &json!({"code": 42}), DEADLINE).unwrap_err() {
            CallError::Rpc(error) => {
                assert_eq!((error.code, error.message.as_str()), (42, "as you wish"));
                assert_eq!(error.data.as_ref().unwrap().get(), r#"{"code":42}"#);
            }
            error => panic!("{error:?}"),
        }
        match worker.call::<_, Value>("no such method", &(), DEADLINE).unwrap_err() {
            CallError::Rpc(error) => assert_eq!(error.code, -32601),
            error => panic!("{error:?}"),
        }
        match worker.call::<_, Value>("drop", &(), DEADLINE).unwrap_err() {
            CallError::Rpc(error) => assert_eq!(error.code, -32603),
            error => panic!("{error:?}"),
        }
        match worker.call::<_, Value>("panic", &(), DEADLINE).unwrap_err() {
            CallError::Rpc(error) => assert_eq!((error.code, &*error.message), (-32603, "the method panicked")),
            error => panic!("{error:?}"),
        }
        match worker.call::<_, u8>("echo", &["text"], DEADLINE).unwrap_err() {
            CallError::InvalidResult(error) => assert!(error.excerpt().contains("text"), "{error}"),
            error => panic!("{error:?}"),
        }
        let unwritable = std::collections::BTreeMap::from([((1, 2), 3)]);
        assert!(matches!(worker.call::<_, Value>("echo", &unwritable, DEADLINE), Err(CallError::Encode(_))));
    }

    fn concurrent_calls_get_their_own_answers(way: Way) {
        let (_story, worker) = started(way);
        thread::scope(|scope| {
            for thread in 0..40 {
                let worker = &worker;
                scope.spawn(move || {
                    for n in 0..25 {
                        let answer: (u32, u32) = worker.call("echo", &(thread, n), DEADLINE).unwrap();
                        assert_eq!(answer, (thread, n));
                    }
                });
            }
        });
    }

    fn answers_arrive_in_any_order(way: Way) {
        let story = Story::new();
        let worker = story.supervisor.spawn(serving(way).args(["--threads", "2"])).unwrap();
        let slow = worker.start_call("wait", &["the line"]).unwrap();
        assert_eq!(worker.call::<_, i64>("add", &[1], DEADLINE).unwrap(), 1, "it overtakes the first");
        worker.call::<_, ()>("release", &["the line"], DEADLINE).unwrap();
        assert_eq!(slow.wait::<String>(DEADLINE).unwrap(), "the line");
    }

    fn p15_open_call_is_polled_without_blocking(way: Way) {
        let story = Story::new();
        let worker = story.supervisor.spawn(serving(way).args(["--threads", "2"])).unwrap();
        let mut slow = worker.start_call("wait", &["the line"]).unwrap();
        worker.call::<_, ()>("ping", &(), DEADLINE).unwrap();
        assert!(slow.try_wait::<String>().is_none(), "the worker has not answered it");
        worker.call::<_, ()>("release", &["the line"], DEADLINE).unwrap();
        let began = Instant::now();
        let answer = loop {
            worker.call::<_, ()>("ping", &(), DEADLINE).unwrap();
            if let Some(answer) = slow.try_wait::<String>() {
                break answer;
            }
            assert!(began.elapsed() < DEADLINE, "the call is still open");
        };
        assert_eq!(answer.unwrap(), "the line");
        assert!(slow.try_wait::<String>().is_none(), "a result is returned once");
        assert!(matches!(slow.wait::<String>(DEADLINE), Err(CallError::TimedOut)));
    }

    fn p15_timed_out_call_is_cancelled_in_the_worker(way: Way) {
        let (_story, worker) = started(way);
        let error = worker.call::<_, Value>("until cancelled", &(), Duration::from_millis(20)).unwrap_err();
        assert!(matches!(error, CallError::TimedOut), "{error:?}");
        // The worker serves one request at a time: this one succeeds only if the first was cancelled.
        assert_eq!(worker.call::<_, i64>("add", &[2], DEADLINE).unwrap(), 2);
    }

    fn call_is_cancelled_from_another_thread(way: Way) {
        let (_story, worker) = started(way);
        let call = worker.start_call("until cancelled", &()).unwrap();
        let cancel = call.cancel_handle();
        let canceller = thread::spawn(move || cancel.cancel());
        assert!(matches!(call.wait::<Value>(DEADLINE), Err(CallError::Cancelled)));
        canceller.join().unwrap();
        assert_eq!(worker.call::<_, i64>("add", &[3], DEADLINE).unwrap(), 3);
        drop(worker.start_call("until cancelled", &()).unwrap());
        assert_eq!(worker.call::<_, i64>("add", &[4], DEADLINE).unwrap(), 4, "dropping cancels as well");
    }

    fn p15_calls_end_with_the_exit_of_the_worker(way: Way) {
        let (mut story, worker) = started(way);
        let calls: Vec<_> = (0..10).map(|_| worker.start_call("until cancelled", &()).unwrap()).collect();
        worker.call::<_, ()>("ping", &(), DEADLINE).unwrap();
        worker.kill().unwrap();
        for call in calls {
            match call.wait::<Value>(DEADLINE).unwrap_err() {
                CallError::WorkerExited { exit: Some(exit), .. } => assert_eq!(exit.signal(), Some(9)),
                error => panic!("{error:?}"),
            }
        }
        assert!(matches!(worker.call::<_, Value>("ping", &(), DEADLINE), Err(CallError::WorkerExited { exit: Some(_), .. })));
        assert!(matches!(worker.notify("x", &()), Err(CallError::WorkerExited { exit: Some(_), .. })));
        assert_eq!(story.exit().signal(), Some(9));
    }

    fn p15_direct_call_ends_with_the_exit_of_the_worker(way: Way) {
        let (mut story, worker) = started(way);
        thread::scope(|scope| {
            let call = scope.spawn(|| worker.call::<_, Value>("until cancelled", &(), DEADLINE));
            // The ping is answered while the caller waits, or before: the result is the same.
            worker.call::<_, ()>("ping", &(), DEADLINE).unwrap();
            worker.kill().unwrap();
            match call.join().unwrap().unwrap_err() {
                CallError::WorkerExited { exit: Some(exit), .. } => assert_eq!(exit.signal(), Some(9)),
                error => panic!("{error:?}"),
            }
        });
        assert_eq!(story.exit().signal(), Some(9));
    }

    fn messages_during_a_call_become_events(way: Way) {
        const CALLS: u32 = 50;
        let (mut story, worker) = started(way);
        thread::scope(|scope| {
            let caller = scope.spawn(|| {
                for n in 0..CALLS {
                    assert_eq!(worker.call::<_, u32>("ask back", &[n], DEADLINE).unwrap(), n + 1);
                }
            });
            for n in 0..CALLS {
                let told = story.find(|event| match event.kind {
                    EventKind::Notification(told) => Some(told.params::<[u32; 1]>().unwrap()),
                    _ => None,
                });
                let request = story.find(request);
                assert_eq!((told, request.params::<[u32; 1]>().unwrap()), ([n], [n]));
                request.reply(&(n + 1)).unwrap();
            }
            caller.join().unwrap();
        });
    }

    fn worker_in_a_long_request_answers_pings(way: Way) {
        let (_story, worker) = started(way);
        let long = worker.start_call("until cancelled", &()).unwrap();
        for _ in 0..20 {
            worker.call::<_, ()>("ping", &(), DEADLINE).unwrap();
        }
        drop(long);
        assert_eq!(worker.call::<_, i64>("add", &[5], DEADLINE).unwrap(), 5);
    }

    fn requests_of_a_worker_are_answered_in_any_order(way: Way) {
        let mut story = Story::new();
        let spec = way.plain("ask").control(Pass::env("PIPEWRIGHT_CONTROL")).stdout(OutputMode::Lines);
        let worker = story.supervisor.spawn(spec.stderr(OutputMode::Lines)).unwrap();
        // It sends requests from three threads at once. They are answered in reverse order; the last one is dropped.
        let mut requests: Vec<Request> = (0..3).map(|_| story.find(request)).collect();
        requests.sort_by_key(|request| request.params::<[u32; 1]>().unwrap());
        assert!(requests.iter().all(|request| request.method() == "may I" && !request.is_cancelled()));
        let first = requests.remove(0);
        drop(requests.pop());
        requests.pop().unwrap().reply_error(&pipewright::RpcError::new(7, "no")).unwrap();
        first.reply(&"yes").unwrap();
        let (mut lines, mut notified) = (Vec::new(), None);
        for event in story.rest() {
            match event.kind {
                EventKind::Line { line, .. } => lines.push(line.text().into_owned()),
                EventKind::Notification(told) => notified = Some(told.params::<[String; 1]>().unwrap()),
                EventKind::Exited { exit, .. } => assert!(exit.success(), "{exit}: {}", exit.stderr_text()),
                _ => {}
            }
        }
        lines.sort();
        assert_eq!(lines, ["0: yes", "1: remote error 7: no", "2: remote error -32603: the request was dropped without an answer"]);
        assert_eq!(notified, Some(["done".to_owned()]));
        drop(worker);
    }

    fn worker_that_never_connects_is_reported(way: Way) {
        let mut story = Story::new();
        let spec = way.plain("hang").control(Pass::env("PIPEWRIGHT_CONTROL")).control_connect_timeout(Duration::from_millis(30));
        let worker = story.supervisor.spawn(spec).unwrap();
        // On a busy machine the connection times out before the call begins.
        let outcome = worker.start_call("ping", &()).and_then(|call| call.wait::<Value>(DEADLINE));
        assert!(matches!(outcome, Err(CallError::WorkerExited { exit: None, .. })), "{outcome:?}");
        assert_eq!(story.find(disconnected), DisconnectReason::ConnectTimeout);
        assert!(is_alive(worker.pid().unwrap()));
    }

    fn worker_that_exits_before_connecting_is_reported(way: Way) {
        let mut story = Story::new();
        let worker = story.supervisor.spawn(way.plain("exit").control(Pass::env("PIPEWRIGHT_CONTROL"))).unwrap();
        let error = worker.call::<_, Value>("ping", &(), DEADLINE).unwrap_err();
        assert!(matches!(error, CallError::WorkerExited { exit: Some(_), .. }), "{error:?}");
        assert_eq!(story.find(disconnected), DisconnectReason::ExitedFirst);
        assert!(story.exit().success());
    }

    fn notifications_before_an_immediate_exit_are_delivered(way: Way) {
        const WORKERS: usize = 100;
        let mut story = Story::new();
        for _ in 0..WORKERS {
            story.supervisor.spawn(way.plain("tell-and-go").control(Pass::arg("--control={}"))).unwrap();
        }
        let (mut connected, mut told) = (0, 0);
        for event in story.rest() {
            match event.kind {
                EventKind::ControlConnected => connected += 1,
                EventKind::Notification(note) => told += note.params::<[usize; 1]>().unwrap()[0],
                EventKind::ControlDisconnected(why) => assert_ne!(why, DisconnectReason::ExitedFirst),
                EventKind::Exited { exit, .. } => assert!(exit.success(), "{exit}"),
                _ => {}
            }
        }
        assert_eq!((connected, told), (WORKERS, WORKERS));
    }

    fn half_closed_connection_is_shut_down_by_the_supervisor(way: Way) {
        let mut story = Story::new();
        let ladder = StopPolicy::kill().step([StopStep::Notify("shutdown".into())], DEADLINE);
        let spec = way.plain("half-close").control(Pass::arg("--control={}")).stop(ladder);
        let worker = story.supervisor.spawn(spec).unwrap();
        story.find(|event| matches!(event.kind, EventKind::ControlConnected).then_some(()));
        let report = worker.stop().wait(DEADLINE);
        assert!(report.workers[0].exit.as_ref().unwrap().success(), "{report}");
        let disconnected: Vec<_> = story.rest().into_iter().filter_map(disconnected).collect();
        assert_eq!(disconnected, [], "its exit precedes the end of the connection");
    }

    fn worker_may_close_its_connection_and_continue(way: Way) {
        let mut story = Story::new();
        let spec = way.plain("hang-up").control(Pass::arg("--control={}")).stdin(StdinMode::Pipe);
        let worker = story.supervisor.spawn(spec).unwrap();
        assert_eq!(story.find(disconnected), DisconnectReason::Closed);
        assert!(matches!(worker.call::<_, Value>("x", &(), DEADLINE), Err(CallError::WorkerExited { exit: None, .. })));
        drop(worker.take_stdin());
        assert!(story.exit().success());
    }

    fn p12_invalid_handshakes_are_rejected(way: Way) {
        let mut story = Story::new();
        let spec = way.fixture("control-address").control(Pass::arg("--control={}")).stdin(StdinMode::Pipe);
        let worker = story.supervisor.spawn(spec).unwrap();
        let address = story.json().as_str().unwrap().to_owned();
        let (path, key) = address.rsplit_once('?').unwrap();
        let hello = |key: &str| format!("{}\n", json!({"jsonrpc": "2.0", "method": "hello", "params": {"key": key}}));
        let mut rejected = |bytes: &[u8], expected: HandshakeError| {
            let mut client = UnixStream::connect(path).unwrap();
            // Shorter than the handshake timeout.
            client.set_read_timeout(Some(DEADLINE)).unwrap();
            // The connection may be closed during the write.
            drop(client.write_all(bytes));
            let mut answer = String::new();
            drop(client.read_to_string(&mut answer));
            let answer: Value = serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{error}: {answer:?}"));
            assert_eq!((&answer["id"], &answer["error"]["code"]), (&Value::Null, &json!(-32600)), "{answer}");
            let warning = story.find(|event| match event.kind {
                EventKind::Warning(warning) => Some(warning),
                _ => None,
            });
            let Warning::HandshakeRejected { fault: why, pid, excerpt, .. } = &*warning else { panic!("{warning}") };
            assert_eq!((*why, *pid), (expected, Some(std::process::id())), "{warning}");
            assert!(!warning.to_string().contains(key), "{warning}");
            excerpt.to_string()
        };
        assert_eq!(rejected(b"GET / HTTP/1.1\n", HandshakeError::NotHello), "GET / HTTP/1.1\\n");
        rejected(&[b'{'; 10_000], HandshakeError::LineTooLong);
        rejected(b"{\"jsonrpc\":\"2.0\",\"method\":\"hello\"}\n", HandshakeError::NotHello);
        rejected(format!("debug{}", hello(key)).as_bytes(), HandshakeError::NotHello);
        rejected(hello("0123456789abcdef").as_bytes(), HandshakeError::UnknownKey);
        // The key is valid once, for any client: workers in Python and Node connect in this way.
        let mut socket = UnixStream::connect(path).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket.write_all(hello(key).as_bytes()).unwrap();
        socket.write_all(b"not json\n{\"jsonrpc\":\"2.0\",\"id\":\"q\",\"method\":\"ping\"}\n").unwrap();
        let mut answer = [0; 64];
        let bytes = socket.read(&mut answer).unwrap();
        assert_eq!(&answer[..bytes], b"{\"jsonrpc\":\"2.0\",\"id\":\"q\",\"result\":null}\n");
        let fault = story.find(|event| match event.kind {
            EventKind::InvalidFrame(fault) => Some(fault.kind),
            _ => None,
        });
        assert_eq!(fault, FrameErrorKind::NotRpc);
        drop(worker.take_stdin());
        assert!(story.exit().success());
    }

    fn p07_queue_for_a_worker_that_does_not_read_is_bounded(way: Way) {
        let mut story = Story::new();
        let spec = way.plain("deaf").control(Pass::arg("--control={}")).stdin(StdinMode::Pipe);
        let worker = story.supervisor.spawn(spec).unwrap();
        story.find(|event| matches!(event.kind, EventKind::ControlConnected).then_some(()));
        let text = "x".repeat(10_000);
        let error = (0..10_000).find_map(|_| worker.notify("unread", &[&text]).err()).expect("a limit");
        assert!(matches!(error, CallError::QueueFull { queued } if queued > 900_000), "{error:?}");
        let other = story.supervisor.spawn(serving(way)).unwrap();
        assert_eq!(other.call::<_, i64>("add", &[1], DEADLINE).unwrap(), 1, "other workers are not delayed");
    }

    fn p07_flood_of_notifications_is_bounded_and_complete(way: Way) {
        const COUNT: u64 = 20_000;
        let mut story = Story::new();
        let spec = way.plain("notify-flood").control(Pass::arg("--control={}")).args(["--count", &COUNT.to_string()]);
        let worker = story.supervisor.spawn(spec.arg("--size").arg("1000")).unwrap();
        let other = story.supervisor.spawn(way.plain("exit")).unwrap();
        other.wait_timeout(DEADLINE).expect("its exit");
        assert_eq!(worker.wait_timeout(Duration::ZERO), None, "no event is received, so the worker cannot have finished");
        assert!(story.supervisor.events().len() < 5000, "{} wait", story.supervisor.events().len());
        let mut next = 0;
        while next < COUNT {
            let n = story.find(|event| match event.kind {
                EventKind::Notification(told) => Some(told.params::<(u64, String)>().unwrap().0),
                _ => None,
            });
            assert_eq!(n, next);
            next += 1;
        }
    }
}

#[test]
fn two_hundred_workers_answer_while_a_fifth_is_killed() {
    workers_answer_while_a_fifth_is_killed(200);
}

#[test]
#[ignore = "takes 10 s"]
fn a_thousand_workers_answer_while_a_fifth_is_killed() {
    workers_answer_while_a_fifth_is_killed(1000);
}

fn workers_answer_while_a_fifth_is_killed(count: usize) {
    let story = Story::new();
    let supervisor = &story.supervisor;
    let workers: Vec<Worker> =
        (0..count).map(|_| supervisor.spawn(serving(Way::Direct).stderr(OutputMode::Null)).unwrap()).collect();
    for (n, worker) in workers.iter().enumerate() {
        assert_eq!(worker.call::<_, usize>("add", &[n, 1], 4 * DEADLINE).unwrap(), n + 1);
    }
    let calls: Vec<_> = workers.iter().map(|worker| worker.start_call("until cancelled", &()).unwrap()).collect();
    for worker in workers.iter().step_by(5) {
        worker.kill().unwrap();
    }
    for (n, call) in calls.into_iter().enumerate() {
        if n % 5 == 0 {
            match call.wait::<Value>(DEADLINE).unwrap_err() {
                CallError::WorkerExited { exit: Some(exit), .. } => assert_eq!(exit.signal(), Some(9)),
                error => panic!("{n}: {error:?}"),
            }
        }
    }
    for (n, worker) in workers.iter().enumerate().filter(|(n, _)| n % 5 != 0) {
        assert_eq!(worker.call::<_, usize>("add", &[n, 2], 4 * DEADLINE).unwrap(), n + 2);
    }
}

/// One call to a worker of each kind.
fn calls_succeed() {
    for way in [Way::Direct, Way::Command] {
        let (story, worker) = started(way);
        assert_eq!(worker.call::<_, i64>("add", &[20, 22], DEADLINE).unwrap(), 42);
        drop(story);
        assert!(worker.wait_timeout(Duration::ZERO).is_some());
    }
}

#[test]
fn p11_calls_succeed_with_a_blank_environment() {
    if alone("control::p11_calls_succeed_with_a_blank_environment", WorkerSpec::env_clear) {
        let names: Vec<_> = std::env::vars_os().map(|(name, _)| name).collect();
        assert_eq!(names.len(), 1, "only the name of the test: {names:?}");
        calls_succeed();
    }
}

#[test]
fn p11_calls_succeed_with_a_long_runtime_directory() {
    // Longer than the address of a socket may be.
    let directory = tempfile::tempdir().unwrap();
    let runtime = directory.path().join("x".repeat(150 - directory.path().as_os_str().len()));
    fs::create_dir(&runtime).unwrap();
    fs::set_permissions(&runtime, fs::Permissions::from_mode(0o700)).unwrap();
    let prepare = |spec: WorkerSpec| spec.env("XDG_RUNTIME_DIR", &runtime);
    if alone("control::p11_calls_succeed_with_a_long_runtime_directory", prepare) {
        assert!(std::env::var("XDG_RUNTIME_DIR").unwrap().len() > 150);
        calls_succeed();
    }
}

#[test]
fn calls_without_a_control_pipe_fail() {
    let supervisor = Supervisor::new().unwrap();
    let worker = supervisor.spawn(Way::Direct.plain("hang")).unwrap();
    assert!(matches!(worker.call::<_, Value>("ping", &(), DEADLINE), Err(CallError::NotConnected)));
    let error = serving(Way::Direct).spawn_unsupervised().unwrap_err();
    assert!(error.to_string().contains("invalid worker spec"), "{error:?}");
}
