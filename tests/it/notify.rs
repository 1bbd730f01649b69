//! Notifications by `sd_notify(3)`, and which senders are accepted. The test itself sends them, as the same user.

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

/// A variable in the environment of a worker, which cannot be read before its exec is done.
#[track_caller]
fn variable(worker: &Worker, name: &str) -> String {
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

/// A socket to notify for a worker.
fn notifier(worker: &Worker) -> UnixDatagram {
    let socket = UnixDatagram::unbound().unwrap();
    socket.connect(variable(worker, "NOTIFY_SOCKET")).unwrap();
    socket
}

/// A worker that sends no notifications, and a socket to send them.
fn spawn(story: &Story, spec: WorkerSpec) -> (Worker, UnixDatagram) {
    let worker = story.supervisor.spawn(spec).unwrap();
    let notifier = notifier(&worker);
    (worker, notifier)
}

fn waiting(way: Way) -> WorkerSpec {
    way.plain("hang").ready(Readiness::sd_notify())
}

/// Sends a status, and returns the events that came before it was received.
#[track_caller]
fn until_status(story: &mut Story, notifier: &UnixDatagram, text: &str) -> Vec<EventKind> {
    notifier.send(format!("STATUS={text}").as_bytes()).unwrap();
    let mut kinds = Vec::new();
    loop {
        match story.next().kind {
            EventKind::StatusText(status) if &*status == text => return kinds,
            kind => kinds.push(kind),
        }
    }
}

both_ways! {
    fn second_ready_has_no_effect(way: Way) {
        let mut story = Story::new();
        let (worker, notifier) = spawn(&story, waiting(way));
        notifier.send(b"READY=1").unwrap();
        notifier.send(b"READY=1\nREADY=1").unwrap();
        let kinds = until_status(&mut story, &notifier, "over");
        let ready = kinds.iter().filter(|kind| matches!(kind, EventKind::Ready { .. }));
        assert_eq!(ready.count(), 1, "{kinds:?}");
        assert!(worker.wait_ready(Duration::ZERO).is_ok());
    }

    fn p15_extend_timeout_postpones_readiness_timeout(way: Way) {
        const WITHIN: Duration = Duration::from_millis(500);
        let mut story = Story::new();
        let (worker, notifier) = spawn(&story, way.plain("hang").ready(Readiness::sd_notify().timeout(WITHIN)));
        notifier.send(b"EXTEND_TIMEOUT_USEC=60000000").unwrap();
        assert!(worker.wait_ready(WITHIN + WITHIN / 2).is_err());
        assert_eq!(story.supervisor.status().workers[0].state, WorkerState::Starting);
        notifier.send(b"READY=1").unwrap();
        let after = story.find(|event| match event.kind {
            EventKind::Ready { after } => Some(after),
            EventKind::NotReady { reason: why, .. } => panic!("{why:?}"),
            _ => None,
        });
        assert!(after > WITHIN, "{after:?}");
    }

    fn p15_extend_timeout_never_shortens(way: Way) {
        const WITHIN: Duration = Duration::from_millis(500);
        let mut story = Story::new();
        let (_worker, notifier) = spawn(&story, way.plain("hang").ready(Readiness::sd_notify().timeout(WITHIN)));
        notifier.send(b"EXTEND_TIMEOUT_USEC=1").unwrap();
        let why = story.find(|event| match event.kind {
            EventKind::NotReady { reason: why, .. } => Some(why),
            _ => None,
        });
        assert!(matches!(why, ReadinessError::TimedOut { waited, .. } if waited >= WITHIN), "{why:?}");
    }

    fn p15_watchdog_without_notifications_warns_then_stops(way: Way) {
        let mut story = Story::new();
        let (worker, notifier) = spawn(&story, way.plain("hang").watchdog(Watchdog::notify(Duration::from_millis(500))));
        assert_eq!(variable(&worker, "WATCHDOG_USEC"), "500000");
        notifier.send(b"WATCHDOG=1").unwrap();
        let silent_for = story.find(|event| match event.kind {
            EventKind::WatchdogWarning { silent_for } => Some(silent_for),
            EventKind::WatchdogTimeout => panic!("no warning came first"),
            _ => None,
        });
        assert!(silent_for >= Duration::from_millis(250), "{silent_for:?}");
        story.find(|event| matches!(event.kind, EventKind::WatchdogTimeout).then_some(()));
        assert_eq!(story.exit().signal(), Some(libc::SIGTERM));
    }

    fn p15_watchdog_notifications_keep_the_worker_running(way: Way) {
        const PERIOD: Duration = Duration::from_millis(600);
        let mut story = Story::new();
        let (worker, notifier) = spawn(&story, way.plain("hang").watchdog(Watchdog::notify(PERIOD)));
        // Two periods with short silences.
        for _ in 0..40 {
            notifier.send(b"WATCHDOG=1").unwrap();
            assert_eq!(worker.wait_timeout(PERIOD / 20), None, "{:?}", story.rest());
        }
        let kinds = until_status(&mut story, &notifier, "over");
        assert!(!kinds.iter().any(|kind| matches!(kind, EventKind::WatchdogTimeout)), "{kinds:?}");
    }

    fn watchdog_trigger_during_a_stop_keeps_the_grace_period(way: Way) {
        let mut story = Story::new();
        let stop = StopPolicy::kill().step([StopStep::Signal(libc::SIGTERM)], Duration::from_secs(3600));
        let spec = way.fixture("ignore-term").watchdog(Watchdog::notify(DEADLINE)).stop(stop);
        let (worker, notifier) = spawn(&story, spec);
        story.message();
        let stopping = worker.stop();
        assert_eq!(story.supervisor.status().workers[0].state, WorkerState::Stopping);
        notifier.send(b"WATCHDOG=trigger").unwrap();
        let kinds = until_status(&mut story, &notifier, "over");
        assert!(!kinds.iter().any(|kind| matches!(kind, EventKind::WatchdogTimeout)), "{kinds:?}");
        let report = stopping.wait(Duration::from_millis(100));
        assert_eq!(report.unfinished().count(), 1, "{report}");
        worker.kill().unwrap();
    }

    fn stopping_is_reported_once(way: Way) {
        let mut story = Story::new();
        let (worker, notifier) = spawn(&story, way.plain("hang").ready(Readiness::sd_notify()));
        notifier.send(b"STOPPING=1").unwrap();
        notifier.send(b"STOPPING=1").unwrap();
        let kinds = until_status(&mut story, &notifier, "over");
        assert_eq!(kinds.iter().filter(|kind| matches!(kind, EventKind::SelfStopping)).count(), 1, "{kinds:?}");
        assert_eq!(worker.wait_timeout(Duration::ZERO), None, "it is not stopped");
    }

    fn barrier_closes_after_earlier_notifications(way: Way) {
        let mut story = Story::new();
        let (worker, notifier) = spawn(&story, waiting(way));
        let (mut barrier, held) = std::io::pipe().unwrap();
        notifier.send(b"READY=1").unwrap();
        kernel::send_descriptors(&notifier, b"BARRIER=1", &[held.as_fd()]);
        drop(held);
        assert!(kernel::poll_readable(&barrier, DEADLINE), "the barrier is open");
        assert_eq!(barrier.read(&mut [0]).unwrap(), 0);
        assert!(worker.wait_ready(Duration::ZERO).is_ok());
        story.find(|event| matches!(event.kind, EventKind::Ready { .. }).then_some(()));
    }

    fn p03_passed_descriptors_are_closed(way: Way) {
        let mut story = Story::new();
        let (_worker, notifier) = spawn(&story, waiting(way));
        let (mut reader, writer) = std::io::pipe().unwrap();
        // As many as the kernel accepts in one message.
        let many: Vec<BorrowedFd<'_>> = (0..253).map(|_| writer.as_fd()).collect();
        for text in ["FDSTORE=1", "nonsense", ""] {
            kernel::send_descriptors(&notifier, text.as_bytes(), &many);
        }
        until_status(&mut story, &notifier, "over");
        drop(writer);
        assert!(kernel::poll_readable(&reader, DEADLINE), "they are open");
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    }

    fn p12_notifications_of_other_users_are_ignored(way: Way) {
        if !is_root() {
            // The test cannot switch to another user.
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let program = reachable(Path::new(FIXTURE), directory.path());
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let mut story = Story::new();
        let (worker, notifier) = spawn(&story, waiting(way));
        let mut other_user = Command::new("setpriv");
        other_user.args(["--reuid=65500", "--clear-groups"]).arg(&program);
        other_user.args(["notify", "--times", "3", "--say", "READY=1,STATUS=mine"]).env("NOTIFY_SOCKET", variable(&worker, "NOTIFY_SOCKET"));
        assert!(other_user.stdin(Stdio::null()).status().unwrap().success());
        let kinds = until_status(&mut story, &notifier, "over");
        assert!(!kinds.iter().any(|kind| matches!(kind, EventKind::Ready { .. } | EventKind::StatusText(_))), "{kinds:?}");
        // One warning for any number of notifications.
        let warnings: Vec<_> = kinds.iter().filter(|kind| matches!(kind, EventKind::Warning(_))).collect();
        let [EventKind::Warning(warning)] = &*warnings else { panic!("{kinds:?}") };
        let of_it = |warning: &Warning| matches!(warning, Warning::NotificationRejected { worker: of, uid: 65500, .. } if *of == worker.id());
        assert!(of_it(warning), "{warning}");
    }
}

#[test]
fn p06_descriptors_that_block_on_close_delay_no_worker() {
    if !alone("notify::p06_descriptors_that_block_on_close_delay_no_worker", |spec| spec) {
        return;
    }
    let mut story = Story::new();
    let (worker, notifier) = spawn(&story, waiting(Way::Direct));
    let (_reader, writer) = kernel::lingering();
    // The loop is stopped until it is the last holder.
    let stopped = stop_loop();
    kernel::send_descriptors(&notifier, b"STATUS=took it", &[writer.as_fd()]);
    drop(writer);
    drop(stopped);
    story.find(|event| matches!(event.kind, EventKind::StatusText(_)).then_some(()));
    assert!(worker.stop_timeout(Duration::ZERO).wait(DEADLINE).unfinished().next().is_none());
}
