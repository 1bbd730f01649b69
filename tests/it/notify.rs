//! What workers tell by `sd_notify(3)`, and who is heard. The test itself tells it: it is of the same user.

use crate::{
    kernel,
    named::{is_root, reachable},
    support::{DEADLINE, FIXTURE, Story, Way, alone, both_ways, stop_loop},
};
use pipewright::{
    EventKind, Readiness, StopPolicy, StopStep, Watchdog, Worker, WorkerSpec,
    events::{ReadinessError, Warning},
    status::WorkerState,
};
use std::{
    fs,
    io::Read,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::{fs::PermissionsExt, net::UnixDatagram},
    },
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// What a worker finds in its environment. It shows none while its exec is not over.
#[track_caller]
fn told(worker: &Worker, name: &str) -> String {
    let until = Instant::now() + DEADLINE;
    loop {
        let environment = fs::read(format!("/proc/{}/environ", worker.pid().unwrap())).unwrap();
        let mut variables = environment.split(|byte| *byte == 0).map(String::from_utf8_lossy);
        let value = variables.find_map(|variable| Some(variable.strip_prefix(name)?.strip_prefix('=')?.to_owned()));
        if let Some(value) = value {
            return value;
        }
        assert!(Instant::now() < until, "no {name} in {}", String::from_utf8_lossy(&environment));
    }
}

/// One who can tell of a worker.
fn teller(worker: &Worker) -> UnixDatagram {
    let socket = UnixDatagram::unbound().unwrap();
    socket.connect(told(worker, "NOTIFY_SOCKET")).unwrap();
    socket
}

/// A worker that says nothing of itself, and one who speaks for it.
fn spawn(story: &Story, spec: WorkerSpec) -> (Worker, UnixDatagram) {
    let worker = story.supervisor.spawn(spec).unwrap();
    let teller = teller(&worker);
    (worker, teller)
}

fn waiting(way: Way) -> WorkerSpec {
    way.plain("hang").ready(Readiness::sd_notify())
}

/// Tells this as its status, and gives the kinds of all that was told before that is heard.
#[track_caller]
fn until_status(story: &mut Story, teller: &UnixDatagram, text: &str) -> Vec<EventKind> {
    teller.send(format!("STATUS={text}").as_bytes()).unwrap();
    let mut kinds = Vec::new();
    loop {
        match story.next().kind {
            EventKind::StatusText(status) if &*status == text => return kinds,
            kind => kinds.push(kind),
        }
    }
}

both_ways! {
    fn who_tells_twice_that_it_is_ready_becomes_so_once(way: Way) {
        let mut story = Story::new();
        let (worker, teller) = spawn(&story, waiting(way));
        teller.send(b"READY=1").unwrap();
        teller.send(b"READY=1\nREADY=1").unwrap();
        let kinds = until_status(&mut story, &teller, "over");
        let ready = kinds.iter().filter(|kind| matches!(kind, EventKind::Ready { .. }));
        assert_eq!(ready.count(), 1, "{kinds:?}");
        assert!(worker.wait_ready(Duration::ZERO));
    }

    fn p15_who_asks_for_more_time_to_become_ready_has_it(way: Way) {
        const WITHIN: Duration = Duration::from_millis(500);
        let mut story = Story::new();
        let (worker, teller) = spawn(&story, way.plain("hang").ready(Readiness::sd_notify().timeout(WITHIN)));
        teller.send(b"EXTEND_TIMEOUT_USEC=60000000").unwrap();
        assert!(!worker.wait_ready(WITHIN + WITHIN / 2));
        assert_eq!(story.supervisor.status().workers[0].state, WorkerState::Starting);
        teller.send(b"READY=1").unwrap();
        let after = story.find(|event| match event.kind {
            EventKind::Ready { after } => Some(after),
            EventKind::NotReady { reason: why, .. } => panic!("{why:?}"),
            _ => None,
        });
        assert!(after > WITHIN, "{after:?}");
    }

    fn p15_who_asks_for_less_time_loses_none(way: Way) {
        const WITHIN: Duration = Duration::from_millis(500);
        let mut story = Story::new();
        let (_worker, teller) = spawn(&story, way.plain("hang").ready(Readiness::sd_notify().timeout(WITHIN)));
        teller.send(b"EXTEND_TIMEOUT_USEC=1").unwrap();
        let why = story.find(|event| match event.kind {
            EventKind::NotReady { reason: why, .. } => Some(why),
            _ => None,
        });
        assert!(matches!(why, ReadinessError::TimedOut { waited } if waited >= WITHIN), "{why:?}");
    }

    fn p15_a_watchdog_that_is_told_nothing_is_told_first_and_bites_then(way: Way) {
        let mut story = Story::new();
        let (worker, teller) = spawn(&story, way.plain("hang").watchdog(Watchdog::notify(Duration::from_millis(500))));
        assert_eq!(told(&worker, "WATCHDOG_USEC"), "500000");
        teller.send(b"WATCHDOG=1").unwrap();
        let silent_for = story.find(|event| match event.kind {
            EventKind::WatchdogWarning { silent_for } => Some(silent_for),
            EventKind::WatchdogTimeout => panic!("punished before it was told"),
            _ => None,
        });
        assert!(silent_for >= Duration::from_millis(250), "{silent_for:?}");
        story.find(|event| matches!(event.kind, EventKind::WatchdogTimeout).then_some(()));
        assert_eq!(story.exit().signal(), Some(libc::SIGTERM));
    }

    fn p15_a_watchdog_that_is_told_again_and_again_does_not_bite(way: Way) {
        const PERIOD: Duration = Duration::from_millis(600);
        let mut story = Story::new();
        let (worker, teller) = spawn(&story, way.plain("hang").watchdog(Watchdog::notify(PERIOD)));
        // Two periods of short silences.
        for _ in 0..40 {
            teller.send(b"WATCHDOG=1").unwrap();
            assert_eq!(worker.wait_timeout(PERIOD / 20), None, "{:?}", story.rest());
        }
        let kinds = until_status(&mut story, &teller, "over");
        assert!(!kinds.iter().any(|kind| matches!(kind, EventKind::WatchdogTimeout)), "{kinds:?}");
    }

    fn who_triggers_its_watchdog_during_a_stop_keeps_its_grace_period(way: Way) {
        let mut story = Story::new();
        let stop = StopPolicy::kill().step([StopStep::Signal(libc::SIGTERM)], Duration::from_secs(3600));
        let spec = way.fixture("ignore-term").watchdog(Watchdog::notify(DEADLINE)).stop(stop);
        let (worker, teller) = spawn(&story, spec);
        story.message();
        let stopping = worker.stop();
        assert_eq!(story.supervisor.status().workers[0].state, WorkerState::Stopping);
        teller.send(b"WATCHDOG=trigger").unwrap();
        let kinds = until_status(&mut story, &teller, "over");
        assert!(!kinds.iter().any(|kind| matches!(kind, EventKind::WatchdogTimeout)), "{kinds:?}");
        let report = stopping.wait(Duration::from_millis(100));
        assert_eq!(report.unfinished().count(), 1, "{report}");
        worker.kill().unwrap();
    }

    fn that_it_is_about_to_end_is_told_once(way: Way) {
        let mut story = Story::new();
        let (worker, teller) = spawn(&story, way.plain("hang").ready(Readiness::sd_notify()));
        teller.send(b"STOPPING=1").unwrap();
        teller.send(b"STOPPING=1").unwrap();
        let kinds = until_status(&mut story, &teller, "over");
        assert_eq!(kinds.iter().filter(|kind| matches!(kind, EventKind::SelfStopping)).count(), 1, "{kinds:?}");
        assert_eq!(worker.wait_timeout(Duration::ZERO), None, "it ends when it likes");
    }

    fn a_barrier_is_let_go_when_all_before_it_is_known(way: Way) {
        let mut story = Story::new();
        let (worker, teller) = spawn(&story, waiting(way));
        let (mut barrier, held) = std::io::pipe().unwrap();
        teller.send(b"READY=1").unwrap();
        kernel::send_descriptors(&teller, b"BARRIER=1", &[held.as_fd()]);
        drop(held);
        assert!(kernel::poll_readable(&barrier, DEADLINE), "it is held");
        assert_eq!(barrier.read(&mut [0]).unwrap(), 0);
        assert!(worker.wait_ready(Duration::ZERO));
        story.find(|event| matches!(event.kind, EventKind::Ready { .. }).then_some(()));
    }

    fn p03_descriptors_that_come_along_are_closed(way: Way) {
        let mut story = Story::new();
        let (_worker, teller) = spawn(&story, waiting(way));
        let (mut reader, writer) = std::io::pipe().unwrap();
        // As many as the kernel lets through at once.
        let many: Vec<BorrowedFd<'_>> = (0..253).map(|_| writer.as_fd()).collect();
        for text in ["FDSTORE=1", "nonsense", ""] {
            kernel::send_descriptors(&teller, text.as_bytes(), &many);
        }
        until_status(&mut story, &teller, "over");
        drop(writer);
        assert!(kernel::poll_readable(&reader, DEADLINE), "they are held");
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    }

    fn p12_another_user_is_not_heard(way: Way) {
        if !is_root() {
            // There is no other user to be had.
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let program = reachable(Path::new(FIXTURE), directory.path());
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let mut story = Story::new();
        let (worker, teller) = spawn(&story, waiting(way));
        let mut stranger = Command::new("setpriv");
        stranger.args(["--reuid=65500", "--clear-groups"]).arg(&program);
        stranger.args(["notify", "--times", "3", "--say", "READY=1,STATUS=mine"]).env("NOTIFY_SOCKET", told(&worker, "NOTIFY_SOCKET"));
        assert!(stranger.stdin(Stdio::null()).status().unwrap().success());
        let kinds = until_status(&mut story, &teller, "over");
        assert!(!kinds.iter().any(|kind| matches!(kind, EventKind::Ready { .. } | EventKind::StatusText(_))), "{kinds:?}");
        // Once, however many there are.
        let warnings: Vec<_> = kinds.iter().filter(|kind| matches!(kind, EventKind::Warning(_))).collect();
        let [EventKind::Warning(warning)] = &*warnings else { panic!("{kinds:?}") };
        let of_it = |warning: &Warning| matches!(warning, Warning::NotificationRejected { worker: of, uid: 65500, .. } if *of == worker.id());
        assert!(of_it(warning), "{warning}");
    }
}

#[test]
fn p06_descriptors_that_do_not_close_hold_nobody_up() {
    if !alone("notify::p06_descriptors_that_do_not_close_hold_nobody_up", |spec| spec) {
        return;
    }
    let mut story = Story::new();
    let (worker, teller) = spawn(&story, waiting(Way::Direct));
    let (_reader, writer) = kernel::lingering();
    // The loop does not run until only itself can be the last to close.
    let stopped = stop_loop();
    kernel::send_descriptors(&teller, b"STATUS=took it", &[writer.as_fd()]);
    drop(writer);
    drop(stopped);
    story.find(|event| matches!(event.kind, EventKind::StatusText(_)).then_some(()));
    assert!(worker.stop_timeout(Duration::ZERO).wait(DEADLINE).unfinished().next().is_none());
}
