//! Readiness and watchdogs.

use crate::{
    kernel,
    support::{DEADLINE, FIXTURE, Story, Way, alone, becomes_true, both_ways, is_alive, stop_loop},
};
use crossbeam_channel::{Receiver, Sender};
use pipewright::{
    Backoff, EventKind, Message, OutputMode, Pass, Readiness, Restart, RestartPolicy, SpawnError, SpecError, StdinMode,
    StopPolicy, StopStep, Supervisor, Watchdog, WorkerSpec,
    events::{ReadinessError, Warning},
    status::WorkerState,
};
use serde_json::json;
use std::{
    error::Error,
    io::Write,
    net::TcpListener,
    os::unix::net::UnixListener,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

fn shell(way: Way, script: &str) -> WorkerSpec {
    // Not every `sh` accepts file descriptors of two digits.
    way.program("bash").args(["-c", script]).stdin(StdinMode::Pipe)
}

/// Starts the worker, waits until it is ready, closes its input and waits for its exit.
#[track_caller]
fn becomes_ready(spec: WorkerSpec) {
    let mut story = Story::new();
    let worker = story.supervisor.spawn(spec).unwrap();
    assert!(worker.wait_ready(DEADLINE).is_ok(), "{:?}", story.rest());
    story.find(|event| match event.kind {
        EventKind::Ready { .. } => Some(()),
        EventKind::Exited { exit, .. } => panic!("{exit}"),
        _ => None,
    });
    drop(worker.take_stdin());
    assert!(story.exit().success());
}

#[track_caller]
fn never_ready(spec: WorkerSpec) -> (ReadinessError, Box<str>, Story) {
    let mut story = Story::new();
    let worker = story.supervisor.spawn(spec).unwrap();
    let why = story.find(|event| match event.kind {
        EventKind::NotReady { reason: why, recent_output: last_words } => Some((why, last_words)),
        EventKind::Ready { .. } => panic!("unexpected Ready"),
        _ => None,
    });
    assert!(worker.wait_ready(DEADLINE).is_err());
    (why.0, why.1, story)
}

/// A check that succeeds once the flag is set.
fn flag() -> (Arc<AtomicBool>, impl Fn() -> bool + Send + Sync + 'static) {
    let flag = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&flag);
    (flag, move || asked.load(Ordering::Relaxed))
}

/// SIGTERM, with a practically endless grace period.
fn endless_stop() -> StopPolicy {
    StopPolicy::kill().step([StopStep::Signal(libc::SIGTERM)], Duration::from_secs(3600))
}

both_ways! {
    fn matching_line_makes_ready(way: Way) {
        let spec = shell(way, "echo starting; echo listening on port 80; cat").stdout(OutputMode::Lines);
        becomes_ready(spec.ready(Readiness::log_line("^listening on port [0-9]+$")));
    }

    fn matching_line_on_stderr_makes_ready(way: Way) {
        let spec = shell(way, "echo up >&2; cat").stdout(OutputMode::Lines).stderr(OutputMode::Lines);
        becomes_ready(spec.ready(Readiness::log_line("^up$")));
    }

    fn start_makes_ready(way: Way) {
        becomes_ready(shell(way, "cat").ready(Readiness::started()));
    }

    fn message_makes_ready(way: Way) {
        let spec = shell(way, r#"echo '{"n":1}' >&$1; echo '{"n":2}' >&$1; cat"#).arg("sh").messages(Pass::arg("{}"));
        becomes_ready(spec.ready(Readiness::message(|message| message.as_str().is_ok_and(|text| text.contains('2')))));
    }

    fn newline_on_notify_fd_makes_ready(way: Way) {
        // It writes other bytes before, and closes the descriptor after.
        let spec = shell(way, "printf well >&$1; echo >&$1; eval \"exec $1>&-\"; cat").arg("sh");
        becomes_ready(spec.ready(Readiness::notify_fd(Pass::arg("{}"))));
    }

    fn notify_fd_closed_without_newline_is_never_ready(way: Way) {
        let spec = shell(way, "printf well >&$1; eval \"exec $1>&-\"; cat").arg("sh");
        let (why, _, mut story) = never_ready(spec.ready(Readiness::notify_fd(Pass::arg("{}"))));
        assert!(matches!(why, ReadinessError::PipeClosed { .. }), "{why:?}");
        // The first stage of the stop policy closes its input.
        assert!(story.exit().success());
    }

    fn control_connection_makes_ready(way: Way) {
        let spec = way.plain("serve").control(Pass::arg("--control={}"));
        let mut story = Story::new();
        let worker = story.supervisor.spawn(spec.ready(Readiness::control())).unwrap();
        assert!(worker.wait_ready(DEADLINE).is_ok(), "{:?}", story.told);
        story.find(|event| matches!(event.kind, EventKind::Ready { .. }).then_some(()));
    }

    fn sd_notify_makes_ready(way: Way) {
        let spec = way.plain("notify").args(["--say", "X_UNKNOWN=1,STATUS=warming up,READY=1"]).stdin(StdinMode::Pipe);
        becomes_ready(spec.ready(Readiness::sd_notify()));
    }

    fn p07_flood_of_statuses_is_bounded_and_keeps_the_last(way: Way) {
        let mut story = Story::new();
        let spec = way.plain("notify").args(["--say", "STATUS=busy,READY=1,STATUS=idle", "--times", "20000"]);
        let worker = story.supervisor.spawn(spec.stdin(StdinMode::Pipe).ready(Readiness::sd_notify())).unwrap();
        assert!(worker.wait_ready(DEADLINE).is_ok(), "{:?}", story.told);
        let status = story.supervisor.status();
        assert!(matches!(status.workers[0].status.as_deref(), Some("idle" | "busy")), "{status:?}");
        drop(worker.take_stdin());
        worker.wait_timeout(DEADLINE).expect("an exit");
        assert!(story.supervisor.events().len() < 20, "{} events are queued", story.supervisor.events().len());
        let told = story.find(|event| match event.kind {
            EventKind::StatusText(text) => Some(text),
            _ => None,
        });
        assert_eq!(&*told, "busy");
    }

    fn watchdog_trigger_stops_the_worker(way: Way) {
        let mut story = Story::new();
        let spec = way.plain("notify").args(["--say", "WATCHDOG=1,WATCHDOG=trigger"]).stdin(StdinMode::Pipe);
        story.supervisor.spawn(spec.watchdog(Watchdog::notify(DEADLINE))).unwrap();
        story.find(|event| matches!(event.kind, EventKind::WatchdogTimeout).then_some(()));
        story.exit();
    }

    fn listening_socket_makes_ready(way: Way) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let mut story = Story::new();
        let worker = story.supervisor.spawn(shell(way, "cat").ready(Readiness::connect_unix(&path))).unwrap();
        assert!(worker.wait_ready(Duration::ZERO).is_err());
        let listener = UnixListener::bind(&path).unwrap();
        assert!(worker.wait_ready(DEADLINE).is_ok(), "{:?}", story.told);
        drop(listener);
        story.find(|event| matches!(event.kind, EventKind::Ready { .. }).then_some(()));
    }

    fn listening_port_makes_ready(way: Way) {
        let listener = TcpListener::bind("localhost:0").unwrap();
        let address = format!("localhost:{}", listener.local_addr().unwrap().port());
        becomes_ready(shell(way, "cat").ready(Readiness::connect_tcp(address)));
        listener.accept().expect("a connection of the probe");
    }

    fn check_makes_ready_and_may_panic(way: Way) {
        let is_ready = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&is_ready);
        let check = Readiness::check(move || if asked.load(Ordering::Relaxed) { true } else { panic!("not yet") });
        let mut story = Story::new();
        let worker = story.supervisor.spawn(shell(way, "cat").ready(check)).unwrap();
        assert!(worker.wait_ready(Duration::from_millis(30)).is_err());
        is_ready.store(true, Ordering::Relaxed);
        assert!(worker.wait_ready(DEADLINE).is_ok(), "{:?}", story.told);
        story.find(|event| matches!(event.kind, EventKind::Ready { .. }).then_some(()));
    }

    fn readiness_timeout_stops_and_restarts(way: Way) {
        let mut story = Story::new();
        let policy = RestartPolicy::from(Restart::OnFailure).backoff(Backoff::constant(Duration::from_millis(1)));
        let ready = Readiness::log_line("never").timeout(Duration::from_millis(400));
        let spec = shell(way, "echo one; printf two >&2; cat").stdout(OutputMode::Lines).stderr(OutputMode::Lines);
        story.supervisor.spawn(spec.ready(ready).restart(policy)).unwrap();
        for incarnation in 1..=2 {
            let slow_after = story.find(|event| match event.kind {
                EventKind::ReadinessDelayed { waited } if event.incarnation == incarnation => Some(waited),
                EventKind::NotReady { .. } => panic!("no warning came first"),
                _ => None,
            });
            assert!(slow_after >= Duration::from_millis(300), "{slow_after:?}");
            let (why, last_words) = story.find(|event| match event.kind {
                EventKind::NotReady { reason: why, recent_output: last_words } if event.incarnation == incarnation => Some((why, last_words)),
                _ => None,
            });
            assert!(matches!(why, ReadinessError::TimedOut { waited, .. } if waited >= Duration::from_millis(400)), "{why:?}");
            assert!(["one\ntwo", "twoone\n"].contains(&&*last_words), "{last_words:?}");
            // Not being ready is a failure, whatever the exit status is.
            let (exit, next) = story.end();
            assert!(exit.success() && !next.is_final(), "{exit}, {next}");
        }
    }

    fn exit_before_readiness_is_reported(way: Way) {
        let spec = shell(way, "echo no such port >&2; exit 3").stderr(OutputMode::Lines).ready(Readiness::log_line("listening"));
        let (why, last_words, mut story) = never_ready(spec);
        assert!(matches!(why, ReadinessError::Exited { .. }), "{why:?}");
        assert_eq!(&*last_words, "no such port\n");
        let exit = story.exit();
        assert_eq!((exit.code(), &*exit.stderr_text()), (Some(3), "no such port\n"));
    }

    fn runtime_max_stops_and_restarts(way: Way) {
        let mut story = Story::new();
        let policy = RestartPolicy::from(Restart::OnFailure).backoff(Backoff::constant(Duration::from_millis(1)));
        let limit = Duration::from_millis(50);
        story.supervisor.spawn(shell(way, "cat").runtime_max(limit).restart(policy)).unwrap();
        for incarnation in 1..=2 {
            let after = story.find(|event| match event.kind {
                EventKind::RuntimeExceeded { after } if event.incarnation == incarnation => Some(after),
                EventKind::Exited { exit, .. } => panic!("{exit} before the limit"),
                _ => None,
            });
            assert!(after >= limit, "{after:?}");
            assert!(story.exit().success(), "by the first stage of its stop policy");
        }
    }

    fn exit_before_runtime_max_is_not_reported_as_exceeded(way: Way) {
        let mut story = Story::new();
        story.supervisor.spawn(shell(way, "exit 0").runtime_max(DEADLINE)).unwrap();
        let events = story.rest();
        assert!(!events.iter().any(|event| matches!(event.kind, EventKind::RuntimeExceeded { .. })), "{events:?}");
    }

    fn unanswered_ping_warns_aborts_and_stops(way: Way) {
        let mut story = Story::new();
        let watchdog = Watchdog::ping(Duration::from_millis(60)).abort_signal(libc::SIGABRT);
        let spec = way.plain("deaf").control(Pass::arg("--control={}")).stdin(StdinMode::Pipe).watchdog(watchdog);
        story.supervisor.spawn(spec).unwrap();
        let silent_for = story.find(|event| match event.kind {
            EventKind::WatchdogWarning { silent_for } => Some(silent_for),
            EventKind::WatchdogTimeout => panic!("no warning came first"),
            _ => None,
        });
        assert!(silent_for >= Duration::from_millis(30), "{silent_for:?}");
        assert_eq!(story.exit().signal(), Some(libc::SIGABRT));
    }

    fn worker_that_answers_pings_keeps_running(way: Way) {
        let mut story = Story::new();
        let spec = way.plain("serve").control(Pass::arg("--control={}"));
        let worker = story.supervisor.spawn(spec.watchdog(Watchdog::ping(Duration::from_millis(400)))).unwrap();
        assert_eq!(worker.wait_timeout(Duration::from_millis(1200)), None);
        worker.stop();
        for event in story.rest() {
            assert!(!matches!(event.kind, EventKind::WatchdogTimeout), "{:?}", story.told);
        }
    }

    fn worker_without_messages_is_stopped(way: Way) {
        let mut story = Story::new();
        let spec = way.fixture("echo").stdin(StdinMode::Pipe).watchdog(Watchdog::messages(Duration::from_millis(60)));
        story.supervisor.spawn(spec).unwrap();
        story.find(|event| matches!(event.kind, EventKind::WatchdogTimeout).then_some(()));
        story.exit();
    }

    fn suspended_worker_is_not_silent(way: Way) {
        let mut story = Story::new();
        let spec = way.plain("deaf").control(Pass::arg("--control={}")).stdin(StdinMode::Pipe);
        let worker = story.supervisor.spawn(spec.watchdog(Watchdog::ping(Duration::from_millis(60)))).unwrap();
        worker.signal(libc::SIGSTOP).unwrap();
        assert_eq!(worker.wait_timeout(Duration::from_millis(300)), None, "the period starts again");
        while let Ok(event) = story.supervisor.events().try_recv() {
            assert!(!matches!(event.kind, EventKind::WatchdogWarning { .. } | EventKind::WatchdogTimeout), "{event:?}");
        }
        worker.signal(libc::SIGCONT).unwrap();
        story.find(|event| matches!(event.kind, EventKind::WatchdogTimeout).then_some(()));
    }

    fn worker_is_not_pinged_before_it_has_connected(way: Way) {
        let mut story = Story::new();
        let script = "read; exec \"$@\"";
        let spec = shell(way, script).args(["bash", FIXTURE, "serve"]).control(Pass::arg("--control={}"));
        let worker = story.supervisor.spawn(spec.watchdog(Watchdog::ping(Duration::from_millis(400)))).unwrap();
        let mut stdin = worker.take_stdin().unwrap();
        assert_eq!(worker.wait_timeout(Duration::from_millis(1200)), None, "three periods");
        stdin.write_all(b"\n").unwrap();
        assert_eq!(worker.call::<_, [u32; 1]>("echo", &[1], DEADLINE).unwrap(), [1]);
        story.find(|event| matches!(event.kind, EventKind::ControlConnected).then_some(()));
        assert!(!story.told.iter().any(|told| told.contains("Silent")), "{:?}", story.told);
        let never = shell(way, "read").control(Pass::arg("--control={}")).control_connect_timeout(Duration::from_millis(100));
        let never = story.supervisor.spawn(never.watchdog(Watchdog::ping(Duration::from_millis(100)))).unwrap();
        assert!(never.wait_timeout(DEADLINE).is_some(), "the connect timeout has passed: {:?}", story.told);
    }

    fn watchdog_does_not_shorten_the_grace_period(way: Way) {
        let mut story = Story::new();
        let (ready, is_ready) = flag();
        let spec = way.fixture("ignore-term").stop(endless_stop()).ready(Readiness::check(is_ready));
        let worker = story.supervisor.spawn(spec.watchdog(Watchdog::messages(Duration::from_millis(200)))).unwrap();
        story.message();
        // A frozen worker is not silent, so the stop comes first, however late the loop is.
        worker.freeze().unwrap();
        ready.store(true, Ordering::Relaxed);
        assert!(worker.wait_ready(DEADLINE).is_ok(), "{:?}", story.told);
        let report = worker.stop().wait(Duration::from_millis(600));
        assert_eq!(report.unfinished().count(), 1, "{report}");
        worker.kill().unwrap();
        let events = story.rest();
        assert!(!events.iter().any(|event| matches!(event.kind, EventKind::WatchdogTimeout)), "{events:?}");
    }

    fn readiness_timeout_does_not_shorten_the_grace_period(way: Way) {
        let mut within = Duration::from_millis(300);
        loop {
            let mut story = Story::new();
            let spec = way.fixture("ignore-term").stop(endless_stop()).ready(Readiness::sd_notify().timeout(within));
            let worker = story.supervisor.spawn(spec).unwrap();
            story.message();
            let stopping = worker.stop();
            let state = story.supervisor.status().workers[0].state;
            let was_late = story.supervisor.events().try_iter().any(|event| matches!(event.kind, EventKind::NotReady { .. }));
            if was_late {
                // The timeout came before the stop: repeat with a longer one.
                within *= 2;
                continue;
            }
            assert_eq!(state, WorkerState::Stopping);
            let report = stopping.wait(2 * within);
            assert_eq!(report.unfinished().count(), 1, "{report}");
            worker.kill().unwrap();
            let events = story.rest();
            let why = events.iter().find_map(|event| match &event.kind {
                EventKind::NotReady { reason: why, .. } => Some(why),
                _ => None,
            });
            assert!(matches!(why, Some(ReadinessError::Exited { .. })), "{events:?}");
            return;
        }
    }

    fn exited_worker_is_not_silent_while_its_pipe_is_drained(way: Way) {
        let mut story = Story::new();
        // It exits right after it became ready, and its child holds its pipe for longer than the period.
        let script = "sleep 1000 & echo 1 >/proc/self/fd/$1; exit 0";
        let spec = shell(way, script).arg("sh").messages(Pass::arg("{}")).drain_timeout(Duration::from_millis(1200));
        let spec = spec.ready(Readiness::message(|_| true)).watchdog(Watchdog::messages(Duration::from_millis(500)));
        let policy = RestartPolicy::from(Restart::OnFailure).backoff(Backoff::constant(Duration::from_millis(1)));
        let worker = story.supervisor.spawn(spec.restart(policy)).unwrap();
        let exit = worker.wait_timeout(DEADLINE).expect("an exit");
        assert!(exit.success() && exit.leaked_streams.len() == 1, "{exit:?}");
        assert_eq!(worker.incarnation(), 1);
        let events = story.rest();
        let is_blamed = |kind: &EventKind| matches!(kind, EventKind::WatchdogWarning { .. } | EventKind::WatchdogTimeout);
        assert!(!events.iter().any(|event| is_blamed(&event.kind)), "{events:?}");
    }

    fn newline_just_before_exit_makes_ready(way: Way) {
        const WORKERS: usize = 40;
        let mut story = Story::new();
        for _ in 0..WORKERS {
            let spec = way.program("/bin/sh").args(["-c", "echo >/proc/self/fd/$1", "sh"]);
            story.supervisor.spawn(spec.ready(Readiness::notify_fd(Pass::arg("{}")))).unwrap();
        }
        let (mut ready, mut not) = (0, 0);
        for event in story.rest() {
            match event.kind {
                EventKind::Ready { .. } => ready += 1,
                EventKind::NotReady { .. } => not += 1,
                _ => {}
            }
        }
        assert_eq!((ready, not), (WORKERS, 0));
    }

    fn p06_leaked_readiness_pipe_delays_no_other_worker(way: Way) {
        let mut story = Story::new();
        // No newline; the daemon holds both pipes after its parent exited.
        let script = "printf well >/proc/self/fd/$2; setsid sh -c 'echo $$ >/proc/self/fd/$1; exec sleep 1000' sh $1 & exit 0";
        let spec = shell(way, script).arg("sh").messages(Pass::arg("{}")).ready(Readiness::notify_fd(Pass::arg("{}")));
        let worker = story.supervisor.spawn(spec.drain_timeout(DEADLINE)).unwrap();
        let (mut daemon, mut why) = (None, None);
        while daemon.is_none() || why.is_none() {
            match story.next().kind {
                EventKind::Message(pid) => daemon = Some(pid.json().unwrap()),
                EventKind::NotReady { reason, .. } => why = Some(reason),
                _ => {}
            }
        }
        assert!(matches!(why, Some(ReadinessError::Exited { .. })), "{why:?}");
        let supervisor = Arc::new(story.supervisor);
        let (answer, answered) = mpsc::channel();
        let asked = Arc::clone(&supervisor);
        thread::spawn(move || answer.send(asked.status().workers.len()));
        assert_eq!(answered.recv_timeout(DEADLINE), Ok(1));
        let other = supervisor.spawn(way.plain("exit")).unwrap();
        assert!(other.wait_timeout(DEADLINE).expect("an exit").success());
        assert_eq!(worker.wait_timeout(Duration::ZERO), None, "its pipe is still open");
        assert_eq!(kernel::kill(daemon.unwrap(), libc::SIGKILL), 0);
        assert!(worker.wait_timeout(DEADLINE).expect("an exit").success());
    }
}

#[test]
fn success_before_newline_is_a_success() {
    let mut story = Story::new();
    let spec = WorkerSpec::new("true").ready(Readiness::notify_fd(Pass::fd(3))).restart(Restart::OnFailure);
    story.supervisor.spawn(spec).unwrap();
    let events = story.rest();
    let died = events
        .iter()
        .any(|event| matches!(event.kind, EventKind::NotReady { reason: ReadinessError::Exited { .. }, .. }));
    let exits = events.iter().filter(|event| matches!(event.kind, EventKind::Exited { .. })).count();
    assert!(died && exits == 1, "{events:#?}");
}

/// A worker whose readiness is decided by a closure on its messages, which blocks until the sender is dropped.
fn slow_readiness_closure(script: &str) -> (WorkerSpec, Receiver<()>, Sender<()>) {
    let (entering, entered) = crossbeam_channel::unbounded();
    let (open, opened) = crossbeam_channel::unbounded::<()>();
    let is_it = move |_: &Message| {
        entering.send(()).unwrap_or_default();
        opened.recv().unwrap_or_default();
        true
    };
    let spec = WorkerSpec::new("sh").args(["-c", script]).messages(Pass::fd(3)).ready(Readiness::message(is_it));
    (spec, entered, open)
}

#[test]
fn p06_blocking_readiness_closure_delays_no_other_worker() {
    let mut story = Story::new();
    let (spec, entered, open) = slow_readiness_closure("echo 1 >&3; echo 2 >&3; sleep 1000");
    let blocked = story.supervisor.spawn(spec).unwrap();
    entered.recv_timeout(DEADLINE).expect("a call of the closure");
    // Its own messages arrive, and the messages and exits of others.
    assert_eq!([story.json(), story.json()], [json!(1), json!(2)]);
    let other = WorkerSpec::new("sh").args(["-c", "echo 3 >&3"]).messages(Pass::fd(3));
    let other = story.supervisor.spawn(other.ready(Readiness::message(|_| true))).unwrap();
    assert_eq!(story.json(), json!(3));
    story.find(|event| matches!(event.kind, EventKind::Ready { .. }).then_some(()));
    assert!(story.exit().success());
    assert!(other.wait_timeout(DEADLINE).is_some() && story.supervisor.status().is_complete);
    // Its stop does not wait for the closure either.
    assert!(blocked.stop_timeout(Duration::ZERO).wait(DEADLINE).unfinished().next().is_none());
    assert_eq!(entered.len(), 0, "the closure is called once at a time");
    drop(open);
}

#[test]
fn p01_ready_precedes_exited() {
    let mut story = Story::new();
    let (spec, entered, open) = slow_readiness_closure("echo 1 >&3");
    let worker = story.supervisor.spawn(spec.drain_timeout(DEADLINE)).unwrap();
    entered.recv_timeout(DEADLINE).expect("a call of the closure");
    let pid = worker.pid().unwrap();
    assert!(becomes_true(|| !is_alive(pid)), "an exit");
    // Once the loop has replied, it has seen the exit.
    assert!(story.supervisor.status().is_complete);
    drop(open);
    let kinds: Vec<_> = story.rest().into_iter().map(|event| event.kind).collect();
    let ready = kinds.iter().position(|kind| matches!(kind, EventKind::Ready { .. }));
    let exited = kinds.iter().position(|kind| matches!(kind, EventKind::Exited { .. }));
    assert!(ready.is_some() && ready < exited, "{kinds:#?}");
}

#[test]
fn p15_exit_waits_for_blocking_closure_up_to_drain_timeout() {
    let mut story = Story::new();
    let (spec, entered, open) = slow_readiness_closure("echo 1 >&3");
    story.supervisor.spawn(spec.drain_timeout(Duration::from_millis(20))).unwrap();
    entered.recv_timeout(DEADLINE).expect("a call of the closure");
    let why = story.find(|event| match event.kind {
        EventKind::NotReady { reason: why, .. } => Some(why),
        _ => None,
    });
    assert!(matches!(why, ReadinessError::Exited { .. }), "{why:?}");
    assert!(story.exit().success());
    drop(open);
}

#[test]
fn p06_output_is_searched_up_to_a_limit() {
    const LENGTH: usize = 32 << 10;
    let line = "x".repeat(LENGTH);
    for ready in [Readiness::log_line("never"), Readiness::message(|_| false)] {
        let spec = WorkerSpec::new("yes").arg(&line);
        let spec = if format!("{ready:?}").contains("never") {
            spec.stdout(OutputMode::Lines)
        } else {
            spec.messages_on_stdout()
        };
        let supervisor = Supervisor::new().unwrap();
        supervisor.spawn(spec.ready(ready).stop(StopPolicy::kill())).unwrap();
        let mut seen = 0;
        let why = loop {
            match supervisor.events().recv_timeout(DEADLINE).expect("an event").kind {
                EventKind::Line { .. } | EventKind::Message(_) => seen += LENGTH + 16,
                EventKind::NotReady { reason: why, .. } => break why,
                _ => {}
            }
        };
        assert!(matches!(why, ReadinessError::OutputLimit { .. }), "{why:?}");
        assert!(seen >= 16 << 20, "{seen}");
    }
}

/// As when the host is stopped by SIGSTOP, its cgroup is frozen, or the machine is suspended: the loop wakes long after its timers.
#[test]
#[ignore = "takes 4 s"]
fn p15_suspended_host_does_not_use_up_timeouts() {
    if !alone("health::p15_suspended_host_does_not_use_up_timeouts", |spec| spec) {
        return;
    }
    let mut story = Story::new();
    let spec = shell(Way::Direct, "read line; echo up; cat").stdout(OutputMode::Lines);
    let worker = story.supervisor.spawn(spec.ready(Readiness::log_line("up").timeout(Duration::from_secs(2)))).unwrap();
    let stdin = worker.take_stdin().unwrap();
    // Once the loop has replied, the timers are set.
    assert!(story.supervisor.status().is_complete);
    let stopped = stop_loop();
    thread::sleep(Duration::from_secs(4));
    drop(stopped);
    (&stdin).write_all(b"go\n").unwrap();
    let is_suspension = |warning: &Warning| matches!(warning, Warning::Suspended { missed } if !missed.is_zero());
    story.find(|event| matches!(event.kind, EventKind::Warning(warning) if is_suspension(&warning)).then_some(()));
    story.find(|event| match event.kind {
        EventKind::Ready { .. } => Some(()),
        EventKind::NotReady { reason: why, .. } => panic!("{why:?}"),
        _ => None,
    });
}

#[test]
fn unobservable_readiness_is_refused() {
    let story = Story::new();
    let refused = |spec: WorkerSpec| match story.supervisor.spawn(spec) {
        Err(SpawnError::Spec(error)) => error,
        other => panic!("{other:?}"),
    };
    let spec = || WorkerSpec::new("true");
    let conflict = |spec| match refused(spec) {
        SpecError::Conflict { settings, .. } => settings,
        other => panic!("{other:?}"),
    };
    assert_eq!(conflict(spec().ready(Readiness::control())), ["ready", "control"]);
    assert_eq!(conflict(spec().ready(Readiness::message(|_| true))), ["ready", "messages"]);
    assert_eq!(conflict(spec().ready(Readiness::log_line("x"))), ["ready", "stdout"]);
    assert_eq!(conflict(spec().watchdog(Watchdog::ping(DEADLINE))), ["watchdog", "control"]);
    assert_eq!(conflict(spec().watchdog(Watchdog::messages(DEADLINE))), ["watchdog", "messages"]);
    let shorter = Watchdog::ping(DEADLINE).ping_after(2 * DEADLINE);
    assert_eq!(conflict(spec().control(Pass::env("C")).watchdog(shorter)), ["watchdog", "ping_after"]);
    let brief =
        spec().stdout(OutputMode::Lines).ready(Readiness::log_line("x").timeout(DEADLINE)).runtime_max(DEADLINE);
    assert_eq!(conflict(brief), ["runtime_max", "ready"]);
    assert!(spec().ready(Readiness::started()).runtime_max(Duration::from_secs(1)).validate().is_ok(), "ready at once");
    assert_eq!(conflict(spec().runtime_max(Duration::ZERO)), ["runtime_max", "spawn"]);
    let taken = spec().messages_on_stdout().ready(Readiness::log_line("x"));
    assert_eq!(conflict(taken), ["ready", "stdout"], "its stdout carries messages");
    assert_eq!(conflict(spec().ready(Readiness::sd_notify().timeout(Duration::ZERO))), ["ready", "timeout"]);
    for address in ["nonsense", ":80", "localhost:", "localhost:http", "localhost:0"] {
        assert_eq!(conflict(spec().ready(Readiness::connect_tcp(address))), ["ready", "connect_tcp"], "{address}");
    }
    let bad = refused(spec().stdout(OutputMode::Lines).ready(Readiness::log_line("(")));
    assert!(matches!(&bad, SpecError::InvalidPattern { pattern, .. } if &**pattern == "("), "{bad:?}");
    let reason = bad.source().unwrap().to_string();
    assert_eq!(bad.to_string(), format!("invalid regular expression \"(\": {reason}"));
}
