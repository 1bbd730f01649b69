//! Starts that block, and values of the host's that block or panic when they are dropped: only the worker concerned waits.

use crate::support::{DEADLINE, Story};
use crossbeam_channel::{Receiver, Sender};
use pipewright::{
    Backoff, EventKind, ExitStatus, Pass, Readiness, Restart, RestartPolicy, Supervisor, Worker, WorkerSpec,
};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// A start that blocks until the test lets it go on.
struct Gate {
    entered: Receiver<()>,
    open: Sender<()>,
}

/// The start of this number, counted from 1, blocks; all others do not.
fn gated(blocks: u32, make: impl Fn() -> Command + Send + Sync + 'static) -> (WorkerSpec, Gate) {
    let (entering, entered) = crossbeam_channel::unbounded();
    let (open, opened) = crossbeam_channel::unbounded::<()>();
    let starts = AtomicU32::new(0);
    let spec = WorkerSpec::from_command(move || {
        if starts.fetch_add(1, Ordering::SeqCst) + 1 == blocks {
            entering.send(()).unwrap();
            // Also ends when the test does, by a failure.
            opened.recv().unwrap_or_default();
        }
        make()
    });
    (spec, Gate { entered, open })
}

impl Gate {
    #[track_caller]
    fn wait_entered(&self) {
        self.entered.recv_timeout(DEADLINE).expect("the start that blocks");
    }
}

fn sleeper() -> Command {
    let mut command = Command::new("sleep");
    command.arg("1000");
    command
}

/// Polls, since the end of a thread is no event.
#[track_caller]
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < DEADLINE, "{what}: not after {DEADLINE:?}");
        thread::yield_now();
    }
}

fn at_once() -> RestartPolicy {
    RestartPolicy::from(Restart::Always).backoff(Backoff::constant(Duration::ZERO))
}

#[track_caller]
fn runs_and_ends(supervisor: &Supervisor) {
    let worker = supervisor.spawn(WorkerSpec::new("true")).unwrap();
    worker.wait_timeout(DEADLINE).expect("the end of a worker beside a start that blocks");
}

#[test]
fn p06_a_start_that_hangs_delays_no_other() {
    let supervisor = Supervisor::new().unwrap();
    let (spec, gate) = gated(1, sleeper);
    thread::scope(|scope| {
        let hanging = scope.spawn(|| supervisor.spawn(spec).unwrap());
        gate.wait_entered();
        for _ in 0..3 {
            runs_and_ends(&supervisor);
        }
        assert_eq!(supervisor.status().spawner_threads, 2, "one that hangs and one that serves");
        gate.open.send(()).unwrap();
        let worker = hanging.join().unwrap();
        wait_until("the second thread ends, since none of its workers lives", || {
            supervisor.status().spawner_threads == 1
        });
        assert!(worker.stop().wait(DEADLINE).unfinished().next().is_none());
    });
}

#[test]
fn p09_a_second_spawner_thread_lives_as_long_as_its_workers() {
    let supervisor = Supervisor::new().unwrap();
    let (spec, gate) = gated(1, sleeper);
    thread::scope(|scope| {
        let hanging = scope.spawn(|| supervisor.spawn(spec).unwrap());
        gate.wait_entered();
        let of_the_second = supervisor.spawn(WorkerSpec::new("sleep").arg("1000")).unwrap();
        gate.open.send(()).unwrap();
        hanging.join().unwrap().stop().wait(DEADLINE);
        runs_and_ends(&supervisor);
        assert_eq!(supervisor.status().spawner_threads, 2, "its worker would get the parent-death signal");
        assert_eq!(of_the_second.wait_timeout(Duration::from_millis(20)), None);
        of_the_second.stop().wait(DEADLINE);
        wait_until("the second thread ends", || supervisor.status().spawner_threads == 1);
    });
}

/// A worker whose restart blocks.
fn with_blocked_restart(supervisor: &Supervisor) -> (Worker, Gate) {
    let (spec, gate) = gated(2, || {
        let mut command = Command::new("sh");
        command.args(["-c", "[ -e \"$0\" ] || exit 1; sleep 1000", "/nonexistent"]);
        command
    });
    let worker = supervisor.spawn(spec.restart(at_once())).unwrap();
    gate.wait_entered();
    (worker, gate)
}

#[test]
fn p06_a_restart_that_hangs_delays_no_other_and_not_its_own_stop() {
    let mut story = Story::new();
    let (worker, gate) = with_blocked_restart(&story.supervisor);
    let (beside, beside_gate) = gated(u32::MAX, || Command::new("false"));
    let beside = story.supervisor.spawn(beside.restart(at_once())).unwrap();
    assert!(beside.wait_incarnation(3, DEADLINE).is_ok(), "another worker's restarts: {:?}", story.told);
    beside.stop().wait(DEADLINE);
    drop(beside_gate);
    let report = worker.stop().wait(DEADLINE);
    let exit = report.workers[0].exit.as_ref().expect("its end is known while its restart still blocks");
    assert_eq!(exit.status, ExitStatus::Code(1));
    gate.open.send(()).unwrap();
    let events = story.rest();
    let is_started =
        |event: &&pipewright::Event| event.worker == worker.id() && matches!(event.kind, EventKind::Started { .. });
    assert_eq!(events.iter().filter(is_started).count(), 1, "the restart that was cancelled is undone: {events:?}");
}

#[test]
fn p01_a_restart_that_is_under_way_when_its_worker_is_stopped_is_reported() {
    let mut story = Story::new();
    let (worker, gate) = with_blocked_restart(&story.supervisor);
    let stopping = worker.stop();
    // The loop has read the stop by the time it answers.
    assert!(story.supervisor.status().is_complete);
    gate.open.send(()).unwrap();
    let report = stopping.wait(DEADLINE);
    assert!(report.workers[0].exit.is_some(), "{report}");
    let events = story.rest();
    let count = |is: fn(&EventKind) -> bool| events.iter().filter(|event| is(&event.kind)).count();
    let ends = count(|kind| matches!(kind, EventKind::Exited { .. }));
    assert_eq!((count(|kind| matches!(kind, EventKind::Started { .. })), ends), (2, 2), "{events:?}");
}

#[test]
fn p06_a_restart_that_waits_behind_others_is_cancelled_at_once() {
    let supervisor = Supervisor::new().unwrap();
    let hanging: Vec<_> = (0..3).map(|_| with_blocked_restart(&supervisor)).collect();
    assert_eq!(supervisor.status().spawner_threads, 3, "as many as starts that hang");
    for (worker, _gate) in &hanging {
        let report = worker.stop().wait(DEADLINE);
        assert!(report.workers[0].exit.is_some(), "{report}");
    }
    runs_and_ends(&supervisor);
    assert!(supervisor.status().spawner_threads <= 4);
}

#[test]
fn p15_drop_and_shutdown_keep_their_bounds_while_a_restart_hangs() {
    let supervisor = Supervisor::new().unwrap();
    let (worker, gate) = with_blocked_restart(&supervisor);
    let began = Instant::now();
    let report = supervisor.shutdown(Duration::from_secs(1));
    assert!(report.workers.iter().all(|ended| ended.exit.is_some()), "{report}");
    drop(supervisor);
    assert!(began.elapsed() < DEADLINE / 2, "{:?}", began.elapsed());
    assert!(worker.wait_timeout(Duration::ZERO).is_some());
    drop(gate);
}

#[test]
fn p06_a_program_that_is_busy_delays_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("busy");
    fs::copy("/bin/true", &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let _writer = fs::OpenOptions::new().append(true).open(&program).unwrap();
    let supervisor = Supervisor::new().unwrap();
    let (failed, failures) = crossbeam_channel::unbounded();
    thread::scope(|scope| {
        for _ in 0..8 {
            let (failed, supervisor, program) = (failed.clone(), &supervisor, &program);
            scope.spawn(move || failed.send(supervisor.spawn(WorkerSpec::new(program)).map(drop)));
        }
        runs_and_ends(&supervisor);
        assert_eq!(failures.len(), 0, "a worker beside them ran and ended before the first of them was given up");
        for _ in 0..8 {
            let error = failures.recv_timeout(DEADLINE).unwrap().unwrap_err();
            assert_eq!(error.io_error().and_then(std::io::Error::raw_os_error), Some(libc::ETXTBSY), "{error}");
        }
    });
}

/// Does something when it is dropped.
struct AtEnd<F: FnMut()>(F);

impl<F: FnMut()> Drop for AtEnd<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// A worker that ends, and whose spec holds a value in one of the ways there are.
fn holding<T: Send + Sync + 'static>(way: &str, value: T) -> WorkerSpec {
    let spec = WorkerSpec::new("sh").args(["-c", "echo '{}' >&3"]);
    match way {
        "message" => spec.messages(Pass::fd(3)).ready(Readiness::message(move |_| {
            let _held = &value;
            true
        })),
        "check" => WorkerSpec::new("true").ready(Readiness::check(move || {
            let _held = &value;
            true
        })),
        _ => WorkerSpec::from_command(move || {
            let _held = &value;
            Command::new("true")
        }),
    }
}

const WAYS: [&str; 3] = ["message", "check", "command"];

#[test]
fn p06_user_value_that_blocks_in_drop_delays_no_worker() {
    for way in WAYS {
        let supervisor = Supervisor::new().unwrap();
        let (dropping, dropped) = crossbeam_channel::unbounded();
        let (open, opened) = crossbeam_channel::unbounded::<()>();
        let value = AtEnd(move || {
            dropping.send(thread::current().name().map(ToOwned::to_owned)).unwrap();
            opened.recv().unwrap_or_default();
        });
        let worker = supervisor.spawn(holding(way, value)).unwrap();
        worker.wait_timeout(DEADLINE).expect("exits");
        let thread = dropped.recv_timeout(DEADLINE).expect("its value is dropped");
        assert_ne!(thread.as_deref(), Some("pipewright-loop"), "{way}");
        runs_and_ends(&supervisor);
        drop(open);
    }
}

#[test]
fn p06_user_value_that_panics_in_drop_harms_no_worker() {
    for way in WAYS {
        let supervisor = Supervisor::new().unwrap();
        let innocent = supervisor.spawn(WorkerSpec::new("sleep").arg("1000")).unwrap();
        let (dropping, dropped) = crossbeam_channel::unbounded();
        let value = AtEnd(move || {
            dropping.send(()).unwrap();
            panic!("a value of the host's panics");
        });
        let worker = supervisor.spawn(holding(way, value)).unwrap();
        worker.wait_timeout(DEADLINE).expect("exits");
        dropped.recv_timeout(DEADLINE).expect("its value is dropped");
        runs_and_ends(&supervisor);
        assert_eq!(innocent.wait_timeout(Duration::ZERO), None, "{way}");
    }
}

#[test]
fn p06_panic_payload_that_panics_harms_no_worker() {
    struct Grenade(Sender<()>);
    impl Drop for Grenade {
        fn drop(&mut self) {
            self.0.send(()).unwrap();
            panic!("what was thrown panics too");
        }
    }
    let supervisor = Supervisor::new().unwrap();
    let (dropping, dropped) = crossbeam_channel::unbounded();
    let spec = WorkerSpec::from_command(move || std::panic::panic_any(Grenade(dropping.clone())));
    let error = supervisor.spawn(spec).unwrap_err();
    assert!(format!("{error:?}").contains("panicked"), "{error:?}");
    dropped.recv_timeout(DEADLINE).expect("what was thrown is dropped");
    runs_and_ends(&supervisor);
}

#[test]
fn p15_the_last_owner_of_a_supervisor_may_be_a_worker_of_its_own() {
    for way in WAYS {
        let supervisor = Arc::new(Supervisor::new().unwrap());
        let events = supervisor.events().clone();
        let worker = supervisor.spawn(holding(way, Arc::clone(&supervisor))).unwrap();
        let other = supervisor.spawn(WorkerSpec::new("sleep").arg("1000")).unwrap();
        supervisor.close();
        drop(supervisor);
        let mut told = Vec::new();
        loop {
            match events.recv_timeout(DEADLINE) {
                Ok(event) => told.push(event),
                Err(crossbeam_channel::RecvTimeoutError::Disconnected) => break,
                Err(error) => panic!("{way}: {error}: {told:#?}"),
            }
        }
        assert!(worker.wait_timeout(DEADLINE).is_some(), "{way}: {told:#?}");
        assert!(other.wait_timeout(DEADLINE).is_some(), "{way}: {told:#?}");
    }
}

#[test]
fn p15_a_supervisor_may_be_dropped_by_its_own_threads() {
    let slot: Arc<Mutex<Option<Supervisor>>> = Arc::default();
    for by_message in [true, false] {
        let supervisor = Supervisor::new().unwrap();
        let other = supervisor.spawn(WorkerSpec::new("sleep").arg("1000")).unwrap();
        let taken = Arc::clone(&slot);
        let drop_it = move || drop(taken.lock().unwrap().take());
        let spec = if by_message {
            // The message comes when the supervisor is in its slot.
            WorkerSpec::new("sh")
                .args(["-c", "read line; echo '{}' >&3; sleep 1000"])
                .stdin(pipewright::StdinMode::Pipe)
                .messages(Pass::fd(3))
                .ready(Readiness::message(move |_| {
                    drop_it();
                    true
                }))
        } else {
            let starts = AtomicU32::new(0);
            WorkerSpec::from_command(move || {
                if starts.fetch_add(1, Ordering::SeqCst) == 1 {
                    drop_it();
                }
                let mut command = Command::new("sh");
                command.args(["-c", "read line"]);
                command
            })
            .stdin(pipewright::StdinMode::Pipe)
            .restart(at_once())
        };
        let worker = supervisor.spawn(spec).unwrap();
        let stdin = worker.take_stdin().unwrap();
        *slot.lock().unwrap() = Some(supervisor);
        std::io::Write::write_all(&mut &stdin, b"go\n").unwrap();
        assert!(other.wait_timeout(DEADLINE).is_some(), "by a message: {by_message}");
        assert!(worker.wait_timeout(DEADLINE).is_some(), "by a message: {by_message}");
    }
}

#[test]
fn p07_restarts_wait_for_a_consumer_that_does_not_receive() {
    const WINDOW: usize = 16 << 10;
    let supervisor = Supervisor::new().unwrap();
    let policy = at_once().intensity(pipewright::RestartIntensity::unlimited());
    let spec = WorkerSpec::new("false").window(WINDOW).restart(policy);
    let worker = supervisor.spawn(spec).unwrap();
    let is_held_back = || {
        let status = supervisor.status();
        let [worker] = &*status.workers else { panic!("{status:?}") };
        worker.window_used >= WINDOW && worker.state == pipewright::status::WorkerState::Waiting
    };
    wait_until("its window is used up by its events", is_held_back);
    let incarnation = worker.incarnation();
    assert!(worker.wait_incarnation(incarnation + 1, Duration::from_millis(100)).is_err(), "its restart waits");
    assert!(supervisor.events().len() <= WINDOW / 64, "{} events", supervisor.events().len());
    while supervisor.events().try_recv().is_ok() {}
    assert!(worker.wait_incarnation(incarnation + 1, DEADLINE).is_ok(), "it goes on when they are received");
    worker.stop();
    assert!(worker.stop().wait(DEADLINE).unfinished().next().is_none());
}
