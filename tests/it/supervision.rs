//! Restarts and stops (promises 8 and 13), and the events of a worker.

use crate::{
    kernel,
    support::{DEADLINE, Story, Way, alone, becomes_true, both_ways, is_alive, read_to_end},
};
use pipewright::{
    Backoff, Event, EventKind, ExitMatch, ExitStatus, OutputMode, Pass, Readiness, Restart, RestartIntensity,
    RestartPolicy, SpawnError, SpecError, StdinMode, StopPolicy, StopReport, StopStep, Strategy, Supervisor, WaitError,
    Worker, WorkerSpec,
    events::{AfterExit, GiveUpReason},
    limits::ResourceLimit,
    status::WorkerState,
};
use std::{
    fs::{self, File, OpenOptions},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

const SHORT: Duration = Duration::from_millis(1);

fn shell(way: Way, script: &str) -> WorkerSpec {
    way.program("/bin/sh").args(["-c", script])
}

fn at_once(restart: Restart) -> RestartPolicy {
    RestartPolicy::from(restart).backoff(Backoff::constant(SHORT))
}

/// The kinds of events, without values that vary.
fn outline(events: &[Event]) -> Vec<String> {
    let kind = |event: &Event| match &event.kind {
        EventKind::Started { .. } => "started".into(),
        EventKind::Exited { exit, next: AfterExit::Restart { .. } } => format!("{exit}, restarts"),
        EventKind::Exited { exit, next } => format!("{exit}, {next}"),
        EventKind::SpawnFailed { error, next } => format!("{error}, {next}"),
        other => format!("{other:?}"),
    };
    events.iter().map(|event| format!("{}: {}", event.incarnation, kind(event))).collect()
}

both_ways! {
    fn p13_failing_worker_is_restarted_until_it_succeeds(way: Way) {
        let mut story = Story::new();
        let state = tempfile::NamedTempFile::new().unwrap();
        // Fails twice: it counts its runs in a file.
        let script = format!("echo >> {0}; exit $((3 - $(wc -l < {0})))", state.path().display());
        let worker = story.supervisor.spawn(shell(way, &script).restart(at_once(Restart::OnFailure))).unwrap();
        let events = story.rest();
        assert_eq!(outline(&events), [
            "1: started", "1: exit code 2, restarts",
            "2: started", "2: exit code 1, restarts",
            "3: started", "3: exit code 0, finished",
        ]);
        assert!(worker.wait().success());
        assert_eq!(worker.incarnation(), 3);
    }

    fn p13_worker_gives_up_after_too_many_failures(way: Way) {
        let mut story = Story::new();
        let policy = at_once(Restart::Always).intensity(RestartIntensity::new(2, Duration::from_secs(60)));
        let worker = story.supervisor.spawn(shell(way, "echo why >&2; exit 9").stderr(OutputMode::Lines).restart(policy)).unwrap();
        let events = story.rest();
        let ends: Vec<_> = outline(&events).into_iter().filter(|line| !line.contains("Line")).collect();
        assert_eq!(ends, [
            "1: started", "1: exit code 9, restarts", "2: started", "2: exit code 9, restarts",
            "3: started", "3: exit code 9, gave up: restarted too often",
        ]);
        assert_eq!(worker.wait().stderr_text(), "why\n");
    }

    fn p13_fatal_exit_code_gives_up_at_once(way: Way) {
        let mut story = Story::new();
        let policy = at_once(Restart::Always).fatal([ExitMatch::Code(125)]);
        story.supervisor.spawn(shell(way, "exit 125").restart(policy)).unwrap();
        assert_eq!(outline(&story.rest()), ["1: started", "1: exit code 125, gave up: its exit code is fatal"]);
    }

    fn p13_missing_program_is_not_retried(way: Way) {
        let mut story = Story::new();
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("program");
        fs::copy("/bin/cat", &program).unwrap();
        let spec = way.program(&program).stdin(StdinMode::Pipe).restart(at_once(Restart::Always));
        let worker = story.supervisor.spawn(spec).unwrap();
        // It exits at end of file on its input, when its program is already deleted.
        fs::remove_file(&program).unwrap();
        drop(worker.take_stdin());
        let events = story.rest();
        let error = events.iter().find_map(|event| match &event.kind {
            EventKind::SpawnFailed { error, next: AfterExit::GaveUp(GiveUpReason::SpawnFailed) } => Some(error),
            _ => None,
        });
        assert!(matches!(error.map(|error| &**error), Some(SpawnError::Failed { .. })), "{events:#?}");
        assert!(events.last().is_some_and(|event| event.kind.is_final()), "{events:#?}");
        assert!(worker.wait().success());
    }

    fn p06_restart_that_opens_a_fifo_does_not_block(way: Way) {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        assert_eq!(kernel::make_fifo(&fifo), 0);
        // With both ends open, opening the FIFO does not block.
        let held = || OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
        let story = Story::new();
        let policy = at_once(Restart::Always).intensity(RestartIntensity::new(1, DEADLINE));
        let writer = held();
        let spec = way.program("/bin/cat").stdin(StdinMode::File(fifo.clone())).restart(policy);
        let worker = story.supervisor.spawn(spec).unwrap();
        drop(writer);
        // The second incarnation starts although the FIFO has no writer, and so exits at once.
        let exit = worker.wait_timeout(DEADLINE);
        let incarnation = worker.incarnation();
        // Unblocks an open that blocks all the same, so that the test ends.
        drop(held());
        assert!(exit.is_some_and(|exit| exit.success()));
        assert_eq!(incarnation, 2);
    }

    fn output_of_an_exited_worker_can_still_be_read(way: Way) {
        let story = Story::new();
        let spec = way.plain("say").args(["--text", "last words"]).output_pipe("said", Pass::arg("--write={}"));
        let worker = story.supervisor.spawn(spec).unwrap();
        assert!(worker.wait_timeout(DEADLINE).expect("an exit").success());
        assert_eq!(read_to_end(&worker.take_reader("said").unwrap()), b"last words");
    }

    fn worker_restarts_on_request(way: Way) {
        let mut story = Story::new();
        let spec = way.plain("serve").control(Pass::arg("--control={}"));
        let worker = story.supervisor.spawn(spec).unwrap();
        let first = worker.pid().unwrap();
        assert_eq!(worker.call::<_, i64>("add", &[1, 2], DEADLINE).unwrap(), 3);
        assert!(worker.restart().wait(DEADLINE).is_ok(), "{:?}", story.told);
        assert_eq!(worker.incarnation(), 2);
        assert_ne!(worker.pid().unwrap(), first);
        assert_eq!(worker.call::<_, i64>("add", &[3, 4], DEADLINE).unwrap(), 7);
        // The default stop policy begins with the notification `shutdown`, at which this worker exits.
        let report = worker.stop().wait(DEADLINE);
        assert!(matches!(&*report.workers, [ended] if ended.exit.as_ref().unwrap().success()), "{report}");
        assert!(worker.restart().wait(DEADLINE).is_err(), "the worker has ended");
        let outline: Vec<_> = outline(&story.rest()).into_iter().filter(|line| !line.contains("onnected")).collect();
        assert_eq!(outline, [
            "1: started", "1: exit code 0, restarts", "2: started", "2: exit code 0, finished",
        ]);
    }

    fn p08_stop_runs_stage_by_stage(way: Way) {
        let story = Story::new();
        let stop = StopPolicy::kill().step([StopStep::Signal(libc::SIGTERM)], SHORT).step([StopStep::ClosePipes], SHORT);
        let spec = way.fixture("ignore-term").stdin(StdinMode::Pipe).stop(stop);
        let worker = ready(story, spec);
        worker.1.stop();
        assert_eq!(worker.1.wait_timeout(DEADLINE).expect("an exit").signal(), Some(libc::SIGKILL));
    }

    fn p08_second_stop_begins_the_next_stage(way: Way) {
        let endless = Duration::from_secs(3600);
        let stop = StopPolicy::kill().step([StopStep::Signal(libc::SIGTERM)], endless);
        let worker = ready(Story::new(), way.fixture("ignore-term").stop(stop));
        let stopping = worker.1.stop();
        assert_eq!(stopping.wait(10 * SHORT).unfinished().count(), 1, "it ignores SIGTERM");
        worker.1.stop();
        assert_eq!(worker.1.wait_timeout(DEADLINE).expect("an exit").signal(), Some(libc::SIGKILL));
        worker.1.stop();
    }

    fn p08_stop_timeout_kills_during_any_stage(way: Way) {
        let stops: [fn(&Story, &Worker) -> StopReport; 4] = [
            |_, worker| worker.stop_timeout(Duration::from_millis(50)).wait(DEADLINE),
            |_, worker| worker.stop_timeout(Duration::ZERO).wait(DEADLINE),
            |_, worker| [worker.stop(), worker.stop_timeout(Duration::from_millis(50))][1].wait(DEADLINE),
            |story, _| story.supervisor.shutdown(Duration::from_millis(50)),
        ];
        for stop in stops {
            // Its standard input can be closed, so the first stage has something to do and takes a second.
            let (story, worker) = ready(Story::new(), way.fixture("ignore-term").stdin(StdinMode::Pipe));
            let report = stop(&story, &worker);
            assert_eq!(report.unfinished().count(), 0, "{report}");
            assert!(report.workers[0].took < Duration::from_millis(900), "{report}");
        }
        let supervisor = Supervisor::builder().grace_period(Duration::from_millis(50)).build().unwrap();
        let (story, worker) = ready(Story::of(supervisor), way.fixture("ignore-term").stdin(StdinMode::Pipe));
        drop(story);
        assert_eq!(worker.wait_timeout(Duration::ZERO).expect("an exit").signal(), Some(libc::SIGKILL));
    }

    fn stopped_worker_is_not_restarted(way: Way) {
        let mut story = Story::new();
        let hanging = story.supervisor.spawn(way.plain("hang").restart(at_once(Restart::Always))).unwrap();
        hanging.stop();
        let slow = RestartPolicy::from(Restart::Always).backoff(Backoff::constant(Duration::from_secs(3600)));
        let slow = slow.intensity(RestartIntensity::unlimited());
        let waiting = story.supervisor.spawn(shell(way, "exit 1").restart(slow)).unwrap();
        story.find(|event| matches!(event.kind, EventKind::Exited { next: AfterExit::Restart { .. }, .. }).then_some(()));
        assert_eq!(waiting.wait_timeout(Duration::ZERO), None, "the restart is pending");
        waiting.stop();
        assert_eq!(waiting.wait_timeout(DEADLINE).expect("an exit").code(), Some(1));
        assert_eq!(hanging.wait_timeout(DEADLINE).expect("an exit").signal(), Some(libc::SIGTERM));
        story.rest();
    }

    fn p15_waits_tell_a_timeout_from_an_end(way: Way) {
        let mut story = Story::new();
        let spec = way.program("/bin/cat").stdin(StdinMode::Pipe).stdout(OutputMode::Lines);
        let worker = story.supervisor.spawn(spec.ready(Readiness::log_line("never"))).unwrap();
        let is_timeout = |result| matches!(result, Err(WaitError::TimedOut { worker: id }) if id == worker.id());
        assert!(is_timeout(worker.wait_ready(SHORT)) && is_timeout(worker.wait_incarnation(2, SHORT)));
        worker.wait_incarnation(1, SHORT).unwrap();
        let restart = worker.restart();
        worker.wait_incarnation(2, DEADLINE).unwrap();
        drop(worker.take_stdin());
        for result in [
            restart.wait(DEADLINE), worker.wait_ready(DEADLINE), worker.wait_incarnation(3, DEADLINE),
            worker.restart().wait(DEADLINE),
        ] {
            let Err(WaitError::Ended { worker: id, exit }) = result else { panic!("{result:?}: {:?}", story.told) };
            assert!(id == worker.id() && exit.success(), "{exit}");
        }
        worker.wait_incarnation(2, Duration::ZERO).unwrap();
        story.rest();
    }

    fn p15_waits_for_a_member_that_never_runs_return(way: Way) {
        let story = Story::new();
        let group = story.supervisor.group(Strategy::OneForOne).unwrap();
        group.stop().wait(DEADLINE);
        let worker = group.add(way.plain("hang")).unwrap();
        assert_eq!(worker.wait().status, ExitStatus::NeverStarted);
        for result in [worker.wait_ready(DEADLINE), worker.wait_incarnation(1, DEADLINE), worker.restart().wait(DEADLINE)] {
            let Err(WaitError::Ended { exit, .. }) = &result else { panic!("{result:?}") };
            assert_eq!(exit.status, ExitStatus::NeverStarted);
        }
        let mut batch = group.batch();
        let dropped = batch.add(way.plain("hang")).unwrap();
        assert!(matches!(dropped.wait_ready(Duration::ZERO), Err(WaitError::TimedOut { .. })));
        drop(batch);
        assert_eq!(dropped.wait().status, ExitStatus::NeverStarted);
    }

    fn p08_worker_can_extend_its_stop(way: Way) {
        let mut story = Story::new();
        let stop = StopPolicy::kill().step([StopStep::Notify("shutdown".into())], Duration::from_millis(200));
        let spec = way.plain("slow-end").control(Pass::arg("--control={}")).args(["--ms", "600"]).stop(stop);
        let worker = story.supervisor.spawn(spec).unwrap();
        story.find(|event| matches!(event.kind, EventKind::ControlConnected).then_some(()));
        worker.stop();
        let exit = worker.wait_timeout(DEADLINE).expect("an exit");
        assert!(exit.success(), "{exit}");
    }

    fn p16_shutdown_reports_exits_and_unfinished_workers(way: Way) {
        let mut story = Story::new();
        let polite = story.supervisor.spawn(way.plain("serve").control(Pass::arg("--control={}")).name("polite")).unwrap();
        let stubborn = story.supervisor.spawn(way.fixture("ignore-term").name("stubborn")).unwrap();
        story.message();
        polite.call::<_, ()>("ping", &(), DEADLINE).unwrap();
        let report = story.supervisor.shutdown(Duration::from_millis(400));
        let [slow, fast] = report.workers.as_slice() else { panic!("{report}") };
        assert_eq!((slow.worker, &*slow.name, fast.worker), (stubborn.id(), "stubborn", polite.id()));
        assert_eq!(slow.exit.as_ref().and_then(|exit| exit.signal()), Some(libc::SIGKILL), "{report}");
        assert!(fast.exit.as_ref().is_some_and(|exit| exit.success()), "{report}");
        assert!(slow.took >= Duration::from_millis(400) && report.unfinished().count() == 0, "{report}");
        assert!(story.supervisor.spawn(way.plain("exit")).is_err(), "no more workers are accepted");
        story.rest();
    }

    fn p16_status_lists_all_workers(way: Way) {
        let mut story = Story::new();
        let serving = way.plain("serve").control(Pass::arg("--control={}")).name("serving");
        let serving = story.supervisor.spawn(serving.ready(Readiness::control())).unwrap();
        assert!(serving.wait_ready(DEADLINE).is_ok());
        let speaking = story.supervisor.spawn(way.fixture("ignore-term").stop(StopPolicy::kill()).name("speaking").window(4096)).unwrap();
        story.message();
        let slow = RestartPolicy::from(Restart::Always).backoff(Backoff::constant(Duration::from_secs(3600)));
        let slow = slow.intensity(RestartIntensity::unlimited());
        let waiting = story.supervisor.spawn(shell(way, "exit 1").restart(slow)).unwrap();
        assert!(!story.end().1.is_final());
        let status = story.supervisor.status();
        let states: Vec<_> = status.workers.iter().map(|one| (one.worker, one.state)).collect();
        assert_eq!(states, [
            (serving.id(), WorkerState::Running), (speaking.id(), WorkerState::Running), (waiting.id(), WorkerState::Waiting),
        ]);
        let [first, second, third] = status.workers.as_slice() else { panic!("{status:?}") };
        assert_eq!((&*first.name, first.pid, first.incarnation), ("serving", serving.pid(), 1));
        assert!(first.rss_bytes.is_some_and(|bytes| bytes > 100_000) && first.uptime.is_some(), "{first:?}");
        assert!(second.last_message.is_some() && second.window == 4096, "{second:?}");
        assert_eq!((third.pid, third.uptime, third.last_message), (None, None, None));
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!(json["workers"][2]["state"], "waiting", "{json}");
        assert!(json["workers"][0]["uptime"].is_f64(), "{json}");
    }

    fn p16_status_has_counters(way: Way) {
        let mut story = Story::new();
        let policy = at_once(Restart::OnFailure);
        // Fails twice, then writes a message and keeps a processor busy.
        let state = tempfile::NamedTempFile::new().unwrap();
        let script = "echo >>$2; [ $(wc -l <$2) = 3 ] || exit 1; echo '\"0123456789\"' >/proc/self/fd/$1; while :; do :; done";
        let spec = shell(way, script).arg("sh").messages(Pass::arg("{}")).arg(state.path()).restart(policy);
        story.supervisor.spawn(spec).unwrap();
        let message = story.message();
        let own = |story: &Story| story.supervisor.status().workers.remove(0);
        let status = own(&story);
        assert_eq!((status.restarts, status.incarnation), (2, 3), "{status:?}");
        assert_eq!(status.window_used, message.as_str().unwrap().len() + 64, "as `WorkerSpec::window` counts");
        drop(message);
        assert_eq!(own(&story).window_used, 0);
        let until = Instant::now() + DEADLINE;
        while own(&story).cpu.expect("a CPU time") < Duration::from_millis(20) {
            assert!(Instant::now() < until, "{:?}", own(&story));
        }
        assert!(own(&story).cpu <= own(&story).uptime);
    }

    fn p16_status_counts_queued_work(way: Way) {
        let mut story = Story::new();
        let deaf = way.plain("deaf").control(Pass::arg("--control={}")).stdin(StdinMode::Pipe);
        let deaf = story.supervisor.spawn(deaf).unwrap();
        story.find(|event| matches!(event.kind, EventKind::ControlConnected).then_some(()));
        assert_eq!(story.supervisor.status().workers[0].control_queue, 0);
        // More than a socket buffer holds.
        let text = "x".repeat(100 << 10);
        for _ in 0..8 {
            deaf.notify("listen", &[&text]).unwrap();
        }
        let queue = story.supervisor.status().workers[0].control_queue;
        assert!(queue > 100 << 10 && queue < 9 * (100 << 10), "{queue}");
        for _ in 0..3 {
            story.supervisor.spawn(way.plain("exit")).unwrap().wait_timeout(DEADLINE).expect("an exit");
        }
        assert_eq!(story.supervisor.status().events_waiting, 6, "three started, three ended");
        assert_eq!(story.supervisor.events().try_iter().count(), 6);
        assert_eq!(story.supervisor.status().events_waiting, 0);
    }

    fn p09_dropped_supervisor_restarts_no_worker(way: Way) {
        let story = Story::new();
        let worker = story.supervisor.spawn(way.plain("hang").restart(at_once(Restart::Always))).unwrap();
        drop(story);
        assert!(!is_alive(worker.pid().unwrap()));
        assert_eq!(worker.wait_timeout(Duration::ZERO).expect("an exit").signal(), Some(libc::SIGTERM));
    }
}

#[test]
fn variables_of_the_service_manager_are_not_inherited() {
    const NAMES: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_PID", "LISTEN_FDS"];
    let of_a_service = |spec: WorkerSpec| NAMES.into_iter().fold(spec, |spec, name| spec.env(name, "1"));
    if !alone("supervision::variables_of_the_service_manager_are_not_inherited", of_a_service) {
        return;
    }
    assert!(NAMES.into_iter().all(|name| std::env::var(name).is_ok_and(|value| value == "1")));
    for way in [Way::Direct, Way::Command] {
        let mut story = Story::new();
        let spec = way.program("env").stdout(OutputMode::Lines);
        story.supervisor.spawn(spec.clone()).unwrap();
        story.supervisor.spawn(spec.env("LISTEN_FDS", "2")).unwrap();
        let lines = story.rest().into_iter().filter_map(|event| match event.kind {
            EventKind::Line { line, .. } => Some(line.text().into_owned()),
            _ => None,
        });
        let told: Vec<_> = lines.filter(|line| NAMES.into_iter().any(|name| line.starts_with(name))).collect();
        assert_eq!(told, ["LISTEN_FDS=2"], "only the variable set in the spec, {way:?}");
    }
}

/// Starts a worker and waits for its first message.
fn ready(mut story: Story, spec: WorkerSpec) -> (Story, Worker) {
    let worker = story.supervisor.spawn(spec).unwrap();
    story.message();
    (story, worker)
}

#[test]
fn p16_status_counts_queued_events_after_all_exits() {
    let supervisor = Supervisor::new().unwrap();
    let worker = supervisor.spawn(WorkerSpec::new("true")).unwrap();
    supervisor.close();
    worker.wait_timeout(DEADLINE).expect("an exit");
    let have_gone = || {
        let status = supervisor.status();
        // Started and Exited, both sent before the wait ended.
        assert_eq!(status.events_waiting, 2, "{status:?}");
        status.workers.is_empty()
    };
    assert!(becomes_true(have_gone), "{:?}", supervisor.status());
}

#[test]
fn contradictory_settings_are_refused() {
    let story = Story::new();
    let slow = RestartPolicy::from(Restart::Always).backoff(Backoff::constant(Duration::from_secs(10)));
    let error = story.supervisor.spawn(WorkerSpec::new("true").restart(slow)).unwrap_err();
    let SpawnError::Spec(SpecError::Conflict { settings, .. }) = &error else { panic!("{error:?}") };
    assert_eq!(settings, &["intensity", "backoff"]);
    let text = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    assert!(text.contains("`intensity`") && text.contains("50s") && text.contains("30s"), "{text}");
    let conflict = |spec: WorkerSpec| match story.supervisor.spawn(spec) {
        Err(SpawnError::Spec(SpecError::Conflict { settings, .. })) => settings,
        other => panic!("{other:?}"),
    };
    let restart = |policy: RestartPolicy| WorkerSpec::new("true").restart(policy);
    let zero_period = at_once(Restart::Always).intensity(RestartIntensity::new(3, Duration::ZERO));
    assert_eq!(conflict(restart(zero_period)), ["intensity", "period"]);
    assert_eq!(conflict(restart(at_once(Restart::Always).fatal([ExitMatch::Code(300)]))), ["restart", "fatal"]);
    let told = WorkerSpec::new("true").messages(Pass::env("WHERE"));
    assert_eq!(conflict(told.clone().env_clear()), ["Pass::env", "env_clear"]);
    assert_eq!(conflict(told.clone().env("WHERE", "there")), ["Pass::env", "env"]);
    assert_eq!(conflict(told.output_pipe("other", Pass::env("WHERE"))), ["Pass::env", "Pass::env"]);
    let error = story.supervisor.spawn(WorkerSpec::new("true").nice(20)).unwrap_err();
    assert!(matches!(error, SpawnError::Spec(SpecError::InvalidNice { nice: 20 })), "{error:?}");
    let bad = StopPolicy::kill().step([StopStep::Signal(65)], Duration::ZERO);
    let error = story.supervisor.spawn(WorkerSpec::new("true").stop(bad)).unwrap_err();
    assert!(matches!(error, SpawnError::Spec(SpecError::InvalidSignal { signal: 65 })), "{error:?}");
}

/// Opens every file descriptor that this process may still open, including those that are closed meanwhile, until the sender is
/// dropped.
fn take_all_descriptors(done: mpsc::Receiver<()>) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let mut taken = Vec::new();
        while !matches!(done.try_recv(), Err(mpsc::TryRecvError::Disconnected)) {
            match File::open("/dev/null") {
                Ok(file) => taken.push(file),
                Err(_) => thread::yield_now(),
            }
        }
    })
}

#[test]
fn p13_shortage_of_descriptors_is_no_failure_of_a_worker() {
    let test = "supervision::p13_shortage_of_descriptors_is_no_failure_of_a_worker";
    if !alone(test, |spec| spec.rlimit(ResourceLimit::OpenFiles, 96)) {
        return;
    }
    let mut story = Story::new();
    // The policy allows one restart; the shortage causes more failed starts than that.
    let policy = RestartPolicy::from(Restart::Always).backoff(Backoff::constant(Duration::from_millis(300)));
    let spec =
        WorkerSpec::new("cat").stdin(StdinMode::Pipe).restart(policy.intensity(RestartIntensity::new(1, DEADLINE)));
    let worker = story.supervisor.spawn(spec).unwrap();
    worker.kill().unwrap();
    // Descendants cannot be searched for during a shortage, and the exit would wait for its end.
    story.find(|event| matches!(event.kind, EventKind::Exited { .. }).then_some(()));
    let (shortage, done) = mpsc::channel();
    let taker = take_all_descriptors(done);
    let mut shortages = 0;
    story.find(|event| match event.kind {
        EventKind::SpawnFailed { error, next: AfterExit::Restart { .. } } => {
            assert!(error.is_shortage() && !error.is_permanent(), "{error:?}");
            shortages += 1;
            (shortages == 3).then_some(())
        }
        EventKind::SpawnFailed { .. } => panic!("{event:?}"),
        _ => None,
    });
    drop(shortage);
    taker.join().unwrap();
    assert!(worker.wait_incarnation(2, DEADLINE).is_ok(), "{:?}", story.told);
    assert_eq!(story.supervisor.status().workers[0].restarts, 1, "failed starts are no restarts");
    worker.kill().unwrap();
    let why = story.find(|event| match event.kind {
        EventKind::Exited { next: AfterExit::GaveUp(why), .. } => Some(why),
        _ => None,
    });
    assert_eq!(why, GiveUpReason::IntensityExceeded, "its own failures still count");
}
