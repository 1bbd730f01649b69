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
    // Not every `sh` takes a descriptor number of two digits.
    way.program("bash").args(["-c", script]).stdin(StdinMode::Pipe)
}

/// Starts it, waits until it is ready, and for its end when its input ends.
#[track_caller]
fn becomes_ready(spec: WorkerSpec) {
    let mut story = Story::new();
    let worker = story.supervisor.spawn(spec).unwrap();
    assert!(worker.wait_ready(DEADLINE), "{:?}", story.rest());
    story.find(|event| match event.kind {
        EventKind::Ready { .. } => Some(()),
        EventKind::Exited(exit) => panic!("{exit}"),
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
        EventKind::Ready { .. } => panic!("it is ready"),
        _ => None,
    });
    assert!(!worker.wait_ready(DEADLINE));
    (why.0, why.1, story)
}

/// For a check: not ready before this is set.
fn flag() -> (Arc<AtomicBool>, impl Fn() -> bool + Send + Sync + 'static) {
    let flag = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&flag);
    (flag, move || asked.load(Ordering::Relaxed))
}

/// SIGTERM, and then all the time in the world.
fn endless_stop() -> StopPolicy {
    StopPolicy::kill().step([StopStep::Signal(libc::SIGTERM)], Duration::from_secs(3600))
}

both_ways! {
    fn a_line_makes_ready(way: Way) {
        let spec = shell(way, "echo starting; echo listening on port 80; cat").stdout(OutputMode::Lines);
        becomes_ready(spec.ready(Readiness::log_line("^listening on port [0-9]+$")));
    }

    fn a_line_on_standard_error_makes_ready(way: Way) {
        let spec = shell(way, "echo up >&2; cat").stdout(OutputMode::Lines).stderr(OutputMode::Lines);
        becomes_ready(spec.ready(Readiness::log_line("^up$")));
    }

    fn a_start_makes_ready(way: Way) {
        becomes_ready(shell(way, "cat").ready(Readiness::started()));
    }

    fn a_message_makes_ready(way: Way) {
        let spec = shell(way, r#"echo '{"n":1}' >&$1; echo '{"n":2}' >&$1; cat"#).arg("sh").messages(Pass::arg("{}"));
        becomes_ready(spec.ready(Readiness::message(|message| message.as_str().is_ok_and(|text| text.contains('2')))));
    }

    fn a_newline_on_its_descriptor_makes_ready(way: Way) {
        // It says something else before, and closes it after.
        let spec = shell(way, "printf well >&$1; echo >&$1; eval \"exec $1>&-\"; cat").arg("sh");
        becomes_ready(spec.ready(Readiness::notify_fd(Pass::arg("{}"))));
    }

    fn a_descriptor_closed_without_a_newline_is_never_ready(way: Way) {
        let spec = shell(way, "printf well >&$1; eval \"exec $1>&-\"; cat").arg("sh");
        let (why, _, mut story) = never_ready(spec.ready(Readiness::notify_fd(Pass::arg("{}"))));
        assert!(matches!(why, ReadinessError::PipeClosed { .. }), "{why:?}");
        // Its input ends by the first rung of the stop ladder.
        assert!(story.exit().success());
    }

    fn control_makes_ready(way: Way) {
        let spec = way.plain("serve").control(Pass::arg("--control={}"));
        let mut story = Story::new();
        let worker = story.supervisor.spawn(spec.ready(Readiness::control())).unwrap();
        assert!(worker.wait_ready(DEADLINE), "{:?}", story.told);
        story.find(|event| matches!(event.kind, EventKind::Ready { .. }).then_some(()));
    }

    fn sd_notify_makes_ready(way: Way) {
        let spec = way.plain("notify").args(["--say", "X_UNKNOWN=1,STATUS=warming up,READY=1"]).stdin(StdinMode::Pipe);
        becomes_ready(spec.ready(Readiness::sd_notify()));
    }

    fn p07_a_flood_of_statuses_is_bounded_and_the_last_one_is_kept(way: Way) {
        let mut story = Story::new();
        let spec = way.plain("notify").args(["--say", "STATUS=busy,READY=1,STATUS=idle", "--times", "20000"]);
        let worker = story.supervisor.spawn(spec.stdin(StdinMode::Pipe).ready(Readiness::sd_notify())).unwrap();
        assert!(worker.wait_ready(DEADLINE), "{:?}", story.told);
        let status = story.supervisor.status();
        assert!(matches!(status.workers[0].status.as_deref(), Some("idle" | "busy")), "{status:?}");
        drop(worker.take_stdin());
        worker.wait_timeout(DEADLINE).expect("its end");
        assert!(story.supervisor.events().len() < 20, "{} wait", story.supervisor.events().len());
        let told = story.find(|event| match event.kind {
            EventKind::StatusText(text) => Some(text),
            _ => None,
        });
        assert_eq!(&*told, "busy");
    }

    fn who_triggers_its_own_watchdog_is_ended(way: Way) {
        let mut story = Story::new();
        let spec = way.plain("notify").args(["--say", "WATCHDOG=1,WATCHDOG=trigger"]).stdin(StdinMode::Pipe);
        story.supervisor.spawn(spec.watchdog(Watchdog::notify(DEADLINE))).unwrap();
        story.find(|event| matches!(event.kind, EventKind::WatchdogTimeout).then_some(()));
        story.exit();
    }

    fn an_open_socket_makes_ready(way: Way) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let mut story = Story::new();
        let worker = story.supervisor.spawn(shell(way, "cat").ready(Readiness::connect_unix(&path))).unwrap();
        assert!(!worker.wait_ready(Duration::ZERO));
        let listener = UnixListener::bind(&path).unwrap();
        assert!(worker.wait_ready(DEADLINE), "{:?}", story.told);
        drop(listener);
        story.find(|event| matches!(event.kind, EventKind::Ready { .. }).then_some(()));
    }

    fn an_open_port_makes_ready(way: Way) {
        let listener = TcpListener::bind("localhost:0").unwrap();
        let address = format!("localhost:{}", listener.local_addr().unwrap().port());
        becomes_ready(shell(way, "cat").ready(Readiness::connect_tcp(address)));
        listener.accept().expect("somebody has come");
    }

    fn a_check_makes_ready_and_may_panic(way: Way) {
        let is_ready = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&is_ready);
        let check = Readiness::check(move || if asked.load(Ordering::Relaxed) { true } else { panic!("not yet") });
        let mut story = Story::new();
        let worker = story.supervisor.spawn(shell(way, "cat").ready(check)).unwrap();
        assert!(!worker.wait_ready(Duration::from_millis(30)));
        is_ready.store(true, Ordering::Relaxed);
        assert!(worker.wait_ready(DEADLINE), "{:?}", story.told);
        story.find(|event| matches!(event.kind, EventKind::Ready { .. }).then_some(()));
    }

    fn who_is_not_ready_in_time_is_stopped_and_comes_back(way: Way) {
        let mut story = Story::new();
        let policy = RestartPolicy::from(Restart::OnFailure).backoff(Backoff::constant(Duration::from_millis(1)));
        let ready = Readiness::log_line("never").timeout(Duration::from_millis(400));
        let spec = shell(way, "echo one; printf two >&2; cat").stdout(OutputMode::Lines).stderr(OutputMode::Lines);
        story.supervisor.spawn(spec.ready(ready).restart(policy)).unwrap();
        for incarnation in 1..=2 {
            let slow_after = story.find(|event| match event.kind {
                EventKind::ReadinessDelayed { waited } if event.incarnation == incarnation => Some(waited),
                EventKind::NotReady { .. } => panic!("punished before it was told"),
                _ => None,
            });
            assert!(slow_after >= Duration::from_millis(300), "{slow_after:?}");
            let (why, last_words) = story.find(|event| match event.kind {
                EventKind::NotReady { reason: why, recent_output: last_words } if event.incarnation == incarnation => Some((why, last_words)),
                _ => None,
            });
            assert!(matches!(why, ReadinessError::TimedOut { waited } if waited >= Duration::from_millis(400)), "{why:?}");
            assert!(["one\ntwo", "twoone\n"].contains(&&*last_words), "{last_words:?}");
            // It ended with success, and yet it is a failure.
            assert!(story.exit().success());
            story.find(|event| matches!(event.kind, EventKind::Restarting { .. }).then_some(()));
        }
    }

    fn who_dies_before_it_is_ready_is_told(way: Way) {
        let spec = shell(way, "echo no such port >&2; exit 3").stderr(OutputMode::Lines).ready(Readiness::log_line("listening"));
        let (why, last_words, mut story) = never_ready(spec);
        assert!(matches!(why, ReadinessError::Exited { .. }), "{why:?}");
        assert_eq!(&*last_words, "no such port\n");
        let exit = story.exit();
        assert_eq!((exit.code(), &*exit.stderr_text()), (Some(3), "no such port\n"));
    }

    fn who_has_had_its_time_is_stopped_and_comes_back(way: Way) {
        let mut story = Story::new();
        let policy = RestartPolicy::from(Restart::OnFailure).backoff(Backoff::constant(Duration::from_millis(1)));
        let limit = Duration::from_millis(50);
        story.supervisor.spawn(shell(way, "cat").runtime_max(limit).restart(policy)).unwrap();
        for incarnation in 1..=2 {
            let after = story.find(|event| match event.kind {
                EventKind::RuntimeExceeded { after } if event.incarnation == incarnation => Some(after),
                EventKind::Exited(exit) => panic!("{exit} before its time"),
                _ => None,
            });
            assert!(after >= limit, "{after:?}");
            assert!(story.exit().success(), "by the first rung of its ladder");
        }
    }

    fn who_ends_in_time_is_not_told_to_have_had_it(way: Way) {
        let mut story = Story::new();
        story.supervisor.spawn(shell(way, "exit 0").runtime_max(DEADLINE)).unwrap();
        let events = story.rest();
        assert!(!events.iter().any(|event| matches!(event.kind, EventKind::RuntimeExceeded { .. })), "{events:?}");
    }

    fn who_does_not_answer_a_ping_is_told_asked_for_a_stack_and_ended(way: Way) {
        let mut story = Story::new();
        let watchdog = Watchdog::ping(Duration::from_millis(60)).abort_signal(libc::SIGABRT);
        let spec = way.plain("deaf").control(Pass::arg("--control={}")).stdin(StdinMode::Pipe).watchdog(watchdog);
        story.supervisor.spawn(spec).unwrap();
        let silent_for = story.find(|event| match event.kind {
            EventKind::WatchdogWarning { silent_for } => Some(silent_for),
            EventKind::WatchdogTimeout => panic!("punished before it was told"),
            _ => None,
        });
        assert!(silent_for >= Duration::from_millis(30), "{silent_for:?}");
        assert_eq!(story.exit().signal(), Some(libc::SIGABRT));
    }

    fn who_answers_pings_lives(way: Way) {
        let mut story = Story::new();
        let spec = way.plain("serve").control(Pass::arg("--control={}"));
        let worker = story.supervisor.spawn(spec.watchdog(Watchdog::ping(Duration::from_millis(400)))).unwrap();
        assert_eq!(worker.wait_timeout(Duration::from_millis(1200)), None);
        worker.stop();
        for event in story.rest() {
            assert!(!matches!(event.kind, EventKind::WatchdogTimeout), "{:?}", story.told);
        }
    }

    fn who_sends_no_messages_is_ended(way: Way) {
        let mut story = Story::new();
        let spec = way.fixture("echo").stdin(StdinMode::Pipe).watchdog(Watchdog::messages(Duration::from_millis(60)));
        story.supervisor.spawn(spec).unwrap();
        story.find(|event| matches!(event.kind, EventKind::WatchdogTimeout).then_some(()));
        story.exit();
    }

    fn a_stopped_worker_is_not_silent(way: Way) {
        let mut story = Story::new();
        let spec = way.plain("deaf").control(Pass::arg("--control={}")).stdin(StdinMode::Pipe);
        let worker = story.supervisor.spawn(spec.watchdog(Watchdog::ping(Duration::from_millis(60)))).unwrap();
        worker.signal(libc::SIGSTOP).unwrap();
        assert_eq!(worker.wait_timeout(Duration::from_millis(300)), None, "its period begins anew");
        while let Ok(event) = story.supervisor.events().try_recv() {
            assert!(!matches!(event.kind, EventKind::WatchdogWarning { .. } | EventKind::WatchdogTimeout), "{event:?}");
        }
        worker.signal(libc::SIGCONT).unwrap();
        story.find(|event| matches!(event.kind, EventKind::WatchdogTimeout).then_some(()));
    }

    fn nobody_is_pinged_before_it_has_connected(way: Way) {
        let mut story = Story::new();
        let script = "read; exec \"$@\"";
        let spec = shell(way, script).args(["bash", FIXTURE, "serve"]).control(Pass::arg("--control={}"));
        let worker = story.supervisor.spawn(spec.watchdog(Watchdog::ping(Duration::from_millis(400)))).unwrap();
        let mut stdin = worker.take_stdin().unwrap();
        assert_eq!(worker.wait_timeout(Duration::from_millis(1200)), None, "three times its period");
        stdin.write_all(b"\n").unwrap();
        assert_eq!(worker.call::<_, [u32; 1]>("echo", &[1], DEADLINE).unwrap(), [1]);
        story.find(|event| matches!(event.kind, EventKind::ControlConnected).then_some(()));
        assert!(!story.told.iter().any(|told| told.contains("Silent")), "{:?}", story.told);
        let never = shell(way, "read").control(Pass::arg("--control={}")).control_connect_timeout(Duration::from_millis(100));
        let never = story.supervisor.spawn(never.watchdog(Watchdog::ping(Duration::from_millis(100)))).unwrap();
        assert!(never.wait_timeout(DEADLINE).is_some(), "it has had its time to connect: {:?}", story.told);
    }

    fn a_watchdog_does_not_cut_the_grace_period_of_a_stop(way: Way) {
        let mut story = Story::new();
        let (ready, is_ready) = flag();
        let spec = way.fixture("ignore-term").stop(endless_stop()).ready(Readiness::check(is_ready));
        let worker = story.supervisor.spawn(spec.watchdog(Watchdog::messages(Duration::from_millis(200)))).unwrap();
        story.message();
        // Whoever is frozen is not silent: so the stop comes first, however late we are.
        worker.freeze().unwrap();
        ready.store(true, Ordering::Relaxed);
        assert!(worker.wait_ready(DEADLINE), "{:?}", story.told);
        let report = worker.stop().wait(Duration::from_millis(600));
        assert_eq!(report.unfinished().count(), 1, "{report}");
        worker.kill().unwrap();
        let events = story.rest();
        assert!(!events.iter().any(|event| matches!(event.kind, EventKind::WatchdogTimeout)), "{events:?}");
    }

    fn a_deadline_of_readiness_does_not_cut_the_grace_period_of_a_stop(way: Way) {
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
                // The deadline came before the stop: it needs a longer one here.
                within *= 2;
                continue;
            }
            assert_eq!(state, WorkerState::Stopping);
            let report = stopping.wait(2 * within);
            assert_eq!(report.unfinished().count(), 1, "{report}");
            worker.kill().unwrap();
            let events = story.rest();
            let why = events.iter().find_map(|event| match event.kind {
                EventKind::NotReady { reason: why, .. } => Some(why),
                _ => None,
            });
            assert!(matches!(why, Some(ReadinessError::Exited { .. })), "{events:?}");
            return;
        }
    }

    fn who_has_ended_is_not_found_silent_while_its_pipe_is_drained(way: Way) {
        let mut story = Story::new();
        // It ends right after it has become ready, and its child holds its pipe for longer than its period.
        let script = "sleep 1000 & echo 1 >/proc/self/fd/$1; exit 0";
        let spec = shell(way, script).arg("sh").messages(Pass::arg("{}")).drain_timeout(Duration::from_millis(1200));
        let spec = spec.ready(Readiness::message(|_| true)).watchdog(Watchdog::messages(Duration::from_millis(500)));
        let policy = RestartPolicy::from(Restart::OnFailure).backoff(Backoff::constant(Duration::from_millis(1)));
        let worker = story.supervisor.spawn(spec.restart(policy)).unwrap();
        let exit = worker.wait_timeout(DEADLINE).expect("its end");
        assert!(exit.success() && exit.leaked_streams.len() == 1, "{exit:?}");
        assert_eq!(worker.incarnation(), 1);
        let events = story.rest();
        let is_blamed = |kind: &EventKind| matches!(kind, EventKind::WatchdogWarning { .. } | EventKind::WatchdogTimeout);
        assert!(!events.iter().any(|event| is_blamed(&event.kind)), "{events:?}");
    }

    fn a_newline_at_the_very_end_makes_ready(way: Way) {
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

    fn p06_who_keeps_a_readiness_pipe_open_holds_up_nobody(way: Way) {
        let mut story = Story::new();
        // No newline; the daemon holds both pipes when its parent has ended.
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
        assert!(other.wait_timeout(DEADLINE).expect("another's end").success());
        assert_eq!(worker.wait_timeout(Duration::ZERO), None, "its pipe is held");
        assert_eq!(kernel::kill(daemon.unwrap(), libc::SIGKILL), 0);
        assert!(worker.wait_timeout(DEADLINE).expect("its end").success());
    }
}

#[test]
fn who_ends_well_before_its_newline_has_ended_well() {
    let mut story = Story::new();
    let spec = WorkerSpec::new("true").ready(Readiness::notify_fd(Pass::fd(3))).restart(Restart::OnFailure);
    story.supervisor.spawn(spec).unwrap();
    let events = story.rest();
    let died = events
        .iter()
        .any(|event| matches!(event.kind, EventKind::NotReady { reason: ReadinessError::Exited { .. }, .. }));
    let exits = events.iter().filter(|event| matches!(event.kind, EventKind::Exited(_))).count();
    assert!(died && exits == 1, "{events:#?}");
}

/// A worker that sends messages, is waited for by the first of them, and whose closure blocks until the sender is dropped.
fn judged_slowly(script: &str) -> (WorkerSpec, Receiver<()>, Sender<()>) {
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
fn p06_a_closure_for_messages_that_blocks_delays_no_other_worker() {
    let mut story = Story::new();
    let (spec, entered, open) = judged_slowly("echo 1 >&3; echo 2 >&3; sleep 1000");
    let blocked = story.supervisor.spawn(spec).unwrap();
    entered.recv_timeout(DEADLINE).expect("its closure is called");
    // Its own messages come, and those of others, with their ends.
    assert_eq!([story.json(), story.json()], [json!(1), json!(2)]);
    let other = WorkerSpec::new("sh").args(["-c", "echo 3 >&3"]).messages(Pass::fd(3));
    let other = story.supervisor.spawn(other.ready(Readiness::message(|_| true))).unwrap();
    assert_eq!(story.json(), json!(3));
    story.find(|event| matches!(event.kind, EventKind::Ready { .. }).then_some(()));
    assert!(story.exit().success());
    assert!(other.wait_timeout(DEADLINE).is_some() && story.supervisor.status().is_complete);
    // Neither does its stop wait for the closure.
    assert!(blocked.stop_timeout(Duration::ZERO).wait(DEADLINE).unfinished().next().is_none());
    assert_eq!(entered.len(), 0, "the closure is called once at a time");
    drop(open);
}

#[test]
fn p01_a_worker_that_was_ready_before_it_ended_is_ready_first() {
    let mut story = Story::new();
    let (spec, entered, open) = judged_slowly("echo 1 >&3");
    let worker = story.supervisor.spawn(spec.drain_timeout(DEADLINE)).unwrap();
    entered.recv_timeout(DEADLINE).expect("its closure is called");
    let pid = worker.pid().unwrap();
    assert!(becomes_true(|| !is_alive(pid)), "its end");
    // The loop knows of that when it has answered.
    assert!(story.supervisor.status().is_complete);
    drop(open);
    let kinds: Vec<_> = story.rest().into_iter().map(|event| event.kind).collect();
    let ready = kinds.iter().position(|kind| matches!(kind, EventKind::Ready { .. }));
    let exited = kinds.iter().position(|kind| matches!(kind, EventKind::Exited(_)));
    assert!(ready.is_some() && ready < exited, "{kinds:#?}");
}

#[test]
fn p15_an_end_waits_for_a_closure_that_blocks_no_longer_than_for_streams() {
    let mut story = Story::new();
    let (spec, entered, open) = judged_slowly("echo 1 >&3");
    story.supervisor.spawn(spec.drain_timeout(Duration::from_millis(20))).unwrap();
    entered.recv_timeout(DEADLINE).expect("its closure is called");
    let why = story.find(|event| match event.kind {
        EventKind::NotReady { reason: why, .. } => Some(why),
        _ => None,
    });
    assert!(matches!(why, ReadinessError::Exited { .. }), "{why:?}");
    assert!(story.exit().success());
    drop(open);
}

#[test]
fn p06_output_beyond_a_limit_is_not_looked_through() {
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

/// As where the host is stopped by SIGSTOP, its cgroup is frozen, or the machine sleeps: the loop wakes long after its timers.
#[test]
#[ignore = "lets 4 s pass"]
fn p15_a_suspended_host_takes_no_time_from_a_worker() {
    if !alone("health::p15_a_suspended_host_takes_no_time_from_a_worker", |spec| spec) {
        return;
    }
    let mut story = Story::new();
    let spec = shell(Way::Direct, "read line; echo up; cat").stdout(OutputMode::Lines);
    let worker = story.supervisor.spawn(spec.ready(Readiness::log_line("up").timeout(Duration::from_secs(2)))).unwrap();
    let stdin = worker.take_stdin().unwrap();
    // Its timers are set when the loop has answered.
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
fn what_cannot_be_observed_is_refused() {
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
    assert!(
        spec().ready(Readiness::started()).runtime_max(Duration::from_secs(1)).validate().is_ok(),
        "it is ready at once"
    );
    assert_eq!(conflict(spec().runtime_max(Duration::ZERO)), ["runtime_max", "spawn"]);
    let taken = spec().messages_on_stdout().ready(Readiness::log_line("x"));
    assert_eq!(conflict(taken), ["ready", "stdout"], "its lines are messages");
    assert_eq!(conflict(spec().ready(Readiness::sd_notify().timeout(Duration::ZERO))), ["ready", "timeout"]);
    for address in ["nonsense", ":80", "localhost:", "localhost:http", "localhost:0"] {
        assert_eq!(conflict(spec().ready(Readiness::connect_tcp(address))), ["ready", "connect_tcp"], "{address}");
    }
    let bad = refused(spec().stdout(OutputMode::Lines).ready(Readiness::log_line("(")));
    assert_eq!(bad, SpecError::InvalidPattern { pattern: "(".into() });
}
