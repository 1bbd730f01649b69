//! Calls over the standard input and output of workers that do not know the library.

use crate::support::{DEADLINE, Story, Way, alone, becomes_true, both_ways};
use pipewright::{
    CallError, Event, EventKind, Framing, OutputMode, Pass, Readiness, ReadinessAnswer, Restart, SpawnError, SpecError,
    StdinMode, StdioProtocol, StopPolicy, StopStep, Watchdog, Worker, WorkerSpec,
    events::{DisconnectReason, FrameErrorKind, ReadinessError},
};
use serde_json::{Value, json};
use std::{
    fs,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

const FRAMINGS: [(&str, Framing); 4] = [
    ("lines", Framing::Lines),
    ("nul", Framing::Nul),
    ("length-prefixed", Framing::LengthPrefixed),
    ("content-length", Framing::ContentLength),
];

fn serving(way: Way, (name, framing): (&str, Framing)) -> WorkerSpec {
    way.plain("stdio-server")
        .args(["--framing", name])
        .control_on_stdio(StdioProtocol::new(framing))
        .stderr(OutputMode::Lines)
}

fn started(way: Way) -> (Story, Worker) {
    let story = Story::new();
    let worker = story.supervisor.spawn(serving(way, FRAMINGS[0])).unwrap();
    (story, worker)
}

fn line(event: &Event) -> Option<String> {
    match &event.kind {
        EventKind::Line { line, .. } => Some(String::from_utf8_lossy(line.as_bytes()).into_owned()),
        _ => None,
    }
}

/// The methods of all messages that the worker has received.
fn seen(worker: &Worker) -> Vec<Value> {
    worker.call("seen", &(), DEADLINE).unwrap()
}

both_ways! {
    fn p15_worker_is_called_over_stdio_in_each_framing(way: Way) {
        for framing in FRAMINGS {
            let mut story = Story::new();
            let worker = story.supervisor.spawn(serving(way, framing)).unwrap();
            let params = json!({"text": "a\nb\u{0}é", "n": [1, null]});
            assert_eq!(worker.call::<_, Value>("echo", &params, DEADLINE).unwrap(), params, "{framing:?}");
            // Larger than the buffers of the sockets.
            let long = ["x".repeat(3 << 20)];
            assert!(worker.call::<_, [String; 1]>("echo", &long, DEADLINE).unwrap() == long);
            match worker.call::<_, Value>("no such method", &(), DEADLINE).unwrap_err() {
                CallError::Rpc(error) => assert_eq!(error.code, -32601),
                error => panic!("{error:?}"),
            }
            worker.notify("tick", &[1]).unwrap();
            let asking = worker.start_call("ask", &()).unwrap();
            let method = |event: Event| match event.kind {
                EventKind::Notification(notification) => Some(notification.method().to_owned()),
                _ => None,
            };
            assert_eq!(story.find(method), "asking");
            let question = story.find(|event| match event.kind {
                EventKind::Request(request) => Some(request),
                _ => None,
            });
            assert_eq!((question.method(), question.params::<[u8; 1]>().unwrap()), ("question", [6]));
            question.reply(&7).unwrap();
            assert_eq!(asking.wait::<u8>(DEADLINE).unwrap(), 7, "{framing:?}");
            assert!(!story.told.iter().any(|event| event.contains("ControlConnected")), "{:?}", story.told);
        }
    }

    fn p02_concurrent_calls_over_stdio_get_their_own_answers(way: Way) {
        let (_story, worker) = started(way);
        thread::scope(|scope| {
            for thread in 0..20 {
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

    fn p15_abandoned_call_over_stdio_is_cancelled_and_nothing_else_is_sent(way: Way) {
        let (mut story, worker) = started(way);
        assert!(matches!(worker.call::<_, ()>("held", &(), Duration::from_millis(50)), Err(CallError::TimedOut)));
        let methods: Vec<Value> = seen(&worker).iter().map(|message| message["method"].clone()).collect();
        assert_eq!(methods, ["held", "$/cancelRequest", "seen"]);
        let began = Instant::now();
        worker.stop();
        story.find(|event| line(&event).filter(|line| line == "end of input"));
        assert!(story.exit().success());
        assert!(began.elapsed() < DEADLINE / 2, "the end of its input suffices");
    }

    fn p08_worker_that_ignores_the_end_of_its_input_is_terminated(way: Way) {
        let mut story = Story::new();
        let stop = StopPolicy::kill()
            .step([StopStep::ClosePipes], Duration::from_millis(100))
            .step([StopStep::Signal(libc::SIGTERM)], DEADLINE);
        let worker = story.supervisor.spawn(serving(way, FRAMINGS[3]).arg("--linger").stop(stop)).unwrap();
        worker.call::<_, Value>("echo", &(), DEADLINE).unwrap();
        worker.stop();
        assert_eq!(story.exit().signal(), Some(libc::SIGTERM));
        let later = worker.call::<_, ()>("echo", &(), DEADLINE);
        assert!(matches!(later, Err(CallError::WorkerExited { .. })), "{later:?}");
    }

    fn p08_what_was_sent_before_a_stop_is_read_before_the_end_of_input(way: Way) {
        let (mut story, worker) = started(way);
        let long = "x".repeat(700_000);
        worker.notify("$/logged", &[&long]).unwrap();
        worker.notify("$/logged", &["last"]).unwrap();
        worker.stop();
        let lines: Vec<String> = story.rest().iter().filter_map(line).collect();
        let bytes: usize = lines.iter().map(String::len).sum();
        assert!(bytes > long.len(), "{bytes}");
        assert_eq!(lines.last().map(String::as_str), Some("end of input"));
    }

    fn p08_stop_goes_on_with_the_answer_of_its_call(way: Way) {
        let mut story = Story::new();
        let spec = way.plain("stdio-server").args(["--framing", "content-length"]).control_on_stdio(StdioProtocol::lsp());
        let worker = story.supervisor.spawn(spec.stderr(OutputMode::Lines)).unwrap();
        worker.call::<_, Value>("echo", &(), DEADLINE).unwrap();
        let began = Instant::now();
        worker.stop();
        // It exits with 1 if `exit` comes without `shutdown`, and says so at the end of its input.
        let exit = story.exit();
        assert!(exit.success() && exit.stderr_tail.is_empty(), "{exit:?}");
        assert!(began.elapsed() < Duration::from_secs(2), "the grace period of `shutdown`");
    }

    fn p08_stop_goes_on_without_the_answer_of_its_call(way: Way) {
        let mut story = Story::new();
        let (grace, endless) = (Duration::from_millis(100), Duration::from_secs(3600));
        let stop = StopPolicy::kill()
            .step([StopStep::Call("held".into())], grace)
            .step([StopStep::Call("no such method".into())], endless)
            .step([StopStep::CloseStdin], endless);
        let worker = story.supervisor.spawn(serving(way, FRAMINGS[0]).stop(stop)).unwrap();
        worker.call::<_, Value>("echo", &(), DEADLINE).unwrap();
        let began = Instant::now();
        worker.stop();
        assert!(story.exit().success());
        assert!(began.elapsed() >= grace);
        story.told.iter().find(|event| event.contains("end of input")).expect("the end of its input");
    }

    fn p08_stop_closes_standard_input_or_waits(way: Way) {
        let mut story = Story::new();
        let (grace, endless) = (Duration::from_millis(200), Duration::from_secs(3600));
        let nothing = [StopStep::Call("m".into()), StopStep::Notify("m".into()), StopStep::CloseStdin];
        let stop = StopPolicy::kill().step([StopStep::CloseStdin], endless);
        let cat = || way.program("cat").stdin(StdinMode::Pipe).stdout(OutputMode::Null);
        story.supervisor.spawn(cat().stop(stop)).unwrap().stop();
        assert!(story.exit().success());
        let stop = StopPolicy::kill().step(nothing, endless).step([StopStep::Wait], grace);
        let worker = story.supervisor.spawn(cat().stop(stop)).unwrap();
        let _stdin = worker.take_stdin().unwrap();
        let began = Instant::now();
        worker.stop();
        assert_eq!(story.exit().signal(), Some(libc::SIGKILL));
        assert!((grace..DEADLINE).contains(&began.elapsed()), "{:?}", began.elapsed());
    }

    fn p08_stop_calls_over_the_control_pipe(way: Way) {
        let mut story = Story::new();
        let endless = Duration::from_secs(3600);
        let stop = StopPolicy::kill()
            .step([StopStep::Call("echo".into())], endless)
            .step([StopStep::Signal(libc::SIGTERM)], endless);
        let spec = way.plain("serve").control(Pass::arg("--control={}")).stop(stop);
        let worker = story.supervisor.spawn(spec).unwrap();
        worker.call::<_, Value>("echo", &(), DEADLINE).unwrap();
        worker.stop();
        assert_eq!(story.exit().signal(), Some(libc::SIGTERM));
    }

    fn p15_call_ends_with_the_exit_of_a_worker_that_is_killed_in_the_middle(way: Way) {
        let (mut story, worker) = started(way);
        let open = worker.start_call("held", &()).unwrap();
        match worker.call::<_, ()>("die", &(), DEADLINE).unwrap_err() {
            CallError::WorkerExited { exit: Some(exit), .. } => assert_eq!(exit.signal(), Some(libc::SIGKILL)),
            error => panic!("{error:?}"),
        }
        assert!(matches!(open.wait::<()>(DEADLINE), Err(CallError::WorkerExited { .. })));
        story.exit();
    }

    fn p01_notifications_precede_exited(way: Way) {
        let (mut story, worker) = started(way);
        worker.notify("tick", &()).unwrap();
        let burst = worker.start_call("burst", &[20_000]).unwrap();
        let end = worker.start_call("die", &()).unwrap();
        let mut numbers = 0..20_000;
        let exit = story.find(|event| match event.kind {
            EventKind::Notification(notification) => {
                assert_eq!(notification.params::<[u64; 1]>().unwrap()[0], numbers.next().unwrap());
                None
            }
            EventKind::Exited { exit, .. } => Some(exit),
            _ => None,
        });
        assert_eq!((numbers.next(), exit.signal()), (None, Some(libc::SIGKILL)));
        burst.wait::<()>(DEADLINE).unwrap();
        assert!(matches!(end.wait::<()>(DEADLINE), Err(CallError::WorkerExited { .. })));
    }

    fn p02_stray_output_is_reported_and_calls_go_on(way: Way) {
        let (mut story, worker) = started(way);
        worker.call::<_, ()>("stray", &(), DEADLINE).unwrap();
        let fault = story.find(|event| match event.kind {
            EventKind::InvalidFrame(frame) => Some((frame.kind, frame.excerpt.clone())),
            _ => None,
        });
        assert_eq!((fault.0, &*fault.1), (FrameErrorKind::NotRpc, b"a print that was left in".as_slice()));
        worker.call::<_, Value>("echo", &(), DEADLINE).unwrap();
    }

    fn p15_call_fails_when_the_worker_has_closed_its_input(way: Way) {
        let (_story, worker) = started(way);
        let open = worker.start_call("held", &()).unwrap();
        worker.call::<_, ()>("close input", &(), DEADLINE).unwrap();
        let refused = |result: Result<(), CallError>| match result {
            Err(CallError::Io(error)) => assert_eq!(error.to_string(), "standard input of the worker is closed"),
            other => panic!("{other:?}"),
        };
        refused(worker.call("echo", &(), DEADLINE));
        refused(open.wait(DEADLINE));
        let began = Instant::now();
        refused(worker.call("echo", &(), DEADLINE));
        refused(worker.notify("tick", &()));
        assert!(began.elapsed() < Duration::from_secs(1));
    }

    fn p15_closed_output_is_reported_and_ends_calls(way: Way) {
        let mut story = Story::new();
        let worker = story.supervisor.spawn(serving(way, FRAMINGS[0]).arg("--linger")).unwrap();
        let open = worker.start_call("held", &()).unwrap();
        worker.call::<_, ()>("close output", &(), DEADLINE).unwrap();
        story.find(|event| matches!(event.kind, EventKind::ControlDisconnected(DisconnectReason::Closed)).then_some(()));
        assert!(matches!(open.wait::<()>(DEADLINE), Err(CallError::WorkerExited { .. })));
        assert!(matches!(worker.call::<_, ()>("echo", &(), DEADLINE), Err(CallError::WorkerExited { .. })));
    }

    fn p06_worker_that_does_not_read_its_input_delays_no_caller(way: Way) {
        let story = Story::new();
        let spec = way.program("sleep").arg("1000").control_on_stdio(StdioProtocol::new(Framing::ContentLength));
        let worker = story.supervisor.spawn(spec).unwrap();
        let text = "x".repeat(300_000);
        let refused = (0..20).find_map(|_| worker.notify("tick", &[&text]).err()).unwrap();
        assert!(matches!(refused, CallError::QueueFull { .. }), "{refused:?}");
    }

    fn p15_unsent_calls_move_to_the_next_incarnation(way: Way) {
        for framing in FRAMINGS {
            let story = Story::new();
            let worker = story.supervisor.spawn(serving(way, framing).restart(Restart::Always)).unwrap();
            worker.call::<_, Value>("echo", &(), DEADLINE).unwrap();
            worker.freeze().unwrap();
            let text = "x".repeat(10_000);
            while story.supervisor.status().workers[0].control_queue == 0 {
                worker.notify("tick", &[&text]).unwrap();
            }
            let calls = [1, 2].map(|n: u8| worker.start_call("echo", &[n]).unwrap());
            worker.kill().unwrap();
            let [first, second] = calls.map(|call| call.wait::<[u8; 1]>(DEADLINE).unwrap());
            assert_eq!([first, second], [[1], [2]]);
            assert_eq!(worker.incarnation(), 2);
        }
    }

    fn p15_call_after_the_end_of_input_waits_for_the_next_incarnation(way: Way) {
        let mut story = Story::new();
        let stop = StopPolicy::kill().step([StopStep::ClosePipes], DEADLINE);
        let spec = serving(way, FRAMINGS[0]).arg("--linger").restart(Restart::Always).stop(stop);
        let worker = story.supervisor.spawn(spec).unwrap();
        let open = worker.start_call("held", &()).unwrap();
        worker.call::<_, Value>("echo", &(), DEADLINE).unwrap();
        worker.restart();
        story.find(|event| line(&event).filter(|line| line == "end of input"));
        let waiting = worker.start_call("echo", &[1]).unwrap();
        worker.kill().unwrap();
        assert_eq!(waiting.wait::<[u8; 1]>(DEADLINE).unwrap(), [1]);
        assert!(matches!(open.wait::<()>(DEADLINE), Err(CallError::WorkerExited { exit: Some(_), restarts_in: Some(_) })));
    }

    fn p15_each_incarnation_has_streams_of_its_own(way: Way) {
        let mut story = Story::new();
        let worker = story.supervisor.spawn(serving(way, FRAMINGS[3]).restart(Restart::Always)).unwrap();
        for number in 1..4_u8 {
            assert!(worker.wait_incarnation(number.into(), DEADLINE).is_ok());
            assert_eq!(worker.call::<_, [u8; 1]>("echo", &[number], DEADLINE).unwrap(), [number]);
            assert!(matches!(worker.call::<_, ()>("die", &(), DEADLINE), Err(CallError::WorkerExited { .. })));
            story.exit();
        }
    }
}

/// asyncio registers both ends with its loop, and takes a standard output that becomes readable for closed.
#[test]
fn p15_asyncio_worker_answers_over_stdio() {
    const PROGRAM: &str = r#"
import asyncio, json, sys
async def main():
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, sys.stdout)
    writer = asyncio.StreamWriter(transport, protocol, reader, loop)
    while line := await reader.readline():
        request = json.loads(line)
        answer = {"jsonrpc": "2.0", "id": request["id"], "result": request.get("params")}
        writer.write(json.dumps(answer).encode() + b"\n")
        await writer.drain()
asyncio.run(main())
"#;
    let mut story = Story::new();
    let protocol = StdioProtocol::new(Framing::Lines);
    let spec = WorkerSpec::new("python3").args(["-c", PROGRAM]).control_on_stdio(protocol).stderr(OutputMode::Lines);
    let worker = story.supervisor.spawn(spec).unwrap();
    for number in 0..100 {
        assert_eq!(worker.call::<_, [u32; 1]>("echo", &[number], DEADLINE).unwrap(), [number]);
    }
    worker.stop();
    assert!(story.exit().success(), "{:?}", story.told);
}

#[test]
fn p15_each_incarnation_of_a_server_is_initialized_before_other_calls() {
    let client = json!({"name": "pipewright", "version": env!("CARGO_PKG_VERSION")});
    let (mcp, lsp) = (StdioProtocol::mcp(), StdioProtocol::lsp());
    let other = json!({"capabilities": {"roots": {}}});
    for (protocol, framing, params, initialized) in [
        (
            mcp.clone(),
            "lines",
            json!({"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": client}),
            Some("notifications/initialized"),
        ),
        (
            lsp.clone(),
            "content-length",
            json!({"processId": std::process::id(), "clientInfo": client, "rootUri": null, "capabilities": {}}),
            Some("initialized"),
        ),
        (mcp.initialize(&other), "lines", other.clone(), Some("notifications/initialized")),
        (StdioProtocol::new(Framing::Nul).initialize(&other), "nul", other.clone(), None),
    ] {
        let mut story = Story::new();
        let spec = Way::Direct.plain("stdio-server").args(["--framing", framing]).restart(Restart::Always);
        let worker = story.supervisor.spawn(spec.control_on_stdio(protocol)).unwrap();
        for incarnation in 1..3 {
            worker.notify("early", &()).unwrap();
            let methods: Vec<Value> = seen(&worker).iter().map(|message| message["method"].clone()).collect();
            let expected = [Some("initialize"), initialized, Some("early"), Some("seen")];
            assert_eq!(methods, expected.into_iter().flatten().collect::<Vec<_>>(), "{framing}");
            let answer = worker.handshake::<Value>().unwrap().unwrap();
            assert_eq!((&answer["params"], worker.incarnation()), (&params, incarnation));
            story.find(|event| matches!(event.kind, EventKind::Ready { .. }).then_some(()));
            assert!(worker.call::<_, ()>("die", &(), DEADLINE).is_err());
            story.exit();
        }
    }
}

/// The protocols forbid to cancel `initialize` and `shutdown`.
#[test]
fn p15_calls_of_the_life_cycle_that_time_out_are_not_cancelled() {
    for (protocol, stop, last) in [
        (StdioProtocol::mcp(), StopPolicy::kill().step([StopStep::CloseStdin], DEADLINE), &[][..]),
        (
            StdioProtocol::lsp(),
            StopPolicy::kill()
                .step([StopStep::Call("shutdown".into())], Duration::from_millis(10))
                .step([StopStep::Notify("exit".into()), StopStep::CloseStdin], DEADLINE),
            &["shutdown", "exit"],
        ),
    ] {
        let (mut story, directory) = (Story::new(), tempfile::tempdir().unwrap());
        let wire = directory.path().join("wire");
        let ready = Readiness::call("initialize", &(), |_: Value| ReadinessAnswer::Ready);
        let spec = WorkerSpec::new("sh")
            // The connection stays open in both directions.
            .args(["-c", "exec cat 3>&1 > \"$0\""])
            .arg(&wire)
            .control_on_stdio(protocol)
            .ready(ready.timeout(Duration::from_millis(200)))
            .stop(stop);
        let _worker = story.supervisor.spawn(spec).unwrap();
        let reason = story.find(|event| match event.kind {
            EventKind::NotReady { reason, .. } => Some(reason),
            _ => None,
        });
        assert!(matches!(reason, ReadinessError::TimedOut { .. }), "{reason:?}");
        assert!(story.exit().success(), "{:?}", story.told);
        let sent = fs::read_to_string(&wire).unwrap();
        // One message a line, or bodies without a line feed between headers.
        let bodies = sent.split(['\r', '\n']).filter_map(|line| line.get(line.find('{')?..=line.rfind('}')?));
        let methods: Vec<Value> =
            bodies.map(|body| serde_json::from_str::<Value>(body).unwrap()["method"].clone()).collect();
        assert_eq!(methods, [&["initialize"], last].concat(), "{sent}");
    }
}

#[test]
fn p16_settings_that_conflict_with_control_on_stdio_are_refused() {
    let spec = || WorkerSpec::new("true").control_on_stdio(StdioProtocol::new(Framing::Lines));
    let conflict = |spec: WorkerSpec| match spec.validate().unwrap_err() {
        SpecError::Conflict { settings, .. } => settings,
        error => panic!("{error:?}"),
    };
    let lines = OutputMode::Lines;
    assert_eq!(spec().stderr(lines.clone()).messages(Pass::fd(3)).validate(), Ok(()));
    assert_eq!(conflict(spec().stdin(StdinMode::Pipe)), ["control_on_stdio", "stdin"]);
    assert_eq!(conflict(spec().stdout(lines)), ["control_on_stdio", "stdout"]);
    assert_eq!(conflict(spec().messages_on_stdout()), ["control_on_stdio", "messages_on_stdout"]);
    assert_eq!(conflict(spec().control(Pass::arg("{}"))), ["control_on_stdio", "control"]);
    let twice = spec().control_on_stdio(StdioProtocol::new(Framing::ContentLength));
    assert_eq!(twice.validate(), Err(SpecError::DuplicateControl));
    assert_eq!(conflict(spec().ready(Readiness::control())), ["ready", "control"]);
    let unwritable = std::collections::BTreeMap::from([((1, 2), 3)]);
    let refused = StdioProtocol::mcp().initialize(&unwritable);
    assert_eq!(conflict(WorkerSpec::new("true").control_on_stdio(refused)), ["control_on_stdio", "initialize"]);
    let scalar = StdioProtocol::mcp().initialize(&5);
    assert_eq!(conflict(WorkerSpec::new("true").control_on_stdio(scalar)), ["ready", "call"]);
    assert_eq!(conflict(spec().watchdog(Watchdog::ping(Duration::from_secs(1)))), ["watchdog", "control"]);
    let refused = spec().spawn_unsupervised().unwrap_err();
    assert!(matches!(refused, SpawnError::Spec(SpecError::ControlUnsupported)), "{refused:?}");
}

#[test]
fn p14_worker_that_has_closed_its_output_and_reads_nothing_costs_nothing() {
    if !alone("stdio::p14_worker_that_has_closed_its_output_and_reads_nothing_costs_nothing", |spec| spec) {
        return;
    }
    let story = Story::new();
    // Not all of its notifications can be read, since none is received.
    let worker = story.supervisor.spawn(serving(Way::Direct, FRAMINGS[0]).control_window(1 << 14)).unwrap();
    let _open = worker.start_call("burst and leave", &[250]).unwrap();
    let text = "x".repeat(900_000);
    worker.notify("tick", &[&text]).unwrap();
    let is_paused = || story.supervisor.status().workers.iter().any(|worker| worker.is_paused);
    assert!(becomes_true(is_paused));
    let before = loop_time();
    assert_eq!(worker.wait_timeout(Duration::from_secs(1)), None);
    let spent = loop_time().saturating_sub(before);
    assert!(spent < Duration::from_millis(100), "{spent:?} of processor time in a second");
}

/// The processor time of the only event loop of this process.
fn loop_time() -> Duration {
    let tasks = fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
    let read = |path: PathBuf| fs::read_to_string(path).unwrap_or_default();
    let of_loop = tasks.filter(|task| read(task.join("comm")).trim_end() == "pipewright-loop");
    let times = of_loop.map(|task| read(task.join("schedstat")).split(' ').next().unwrap().parse::<u64>().unwrap());
    Duration::from_nanos(times.sum())
}
