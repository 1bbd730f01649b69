//! Every exit says what ended the process.

use crate::support::{DEADLINE, Story};
use pipewright::{
    Backoff, DependencyCondition, EventKind, ExitCause, OutputMode, Readiness, Restart, RestartPolicy, Strategy,
    Supervisor, Watchdog, Worker, WorkerSpec,
};
use std::time::Duration;

const SHORT: Duration = Duration::from_millis(100);

fn hanging() -> WorkerSpec {
    WorkerSpec::new("/bin/sleep").arg("1000")
}

/// The cause of the next exit of this worker, and its text.
#[track_caller]
fn cause(story: &mut Story, worker: &Worker) -> (ExitCause, String) {
    story.find(|event| match event.kind {
        EventKind::Exited { exit, .. } if event.worker == worker.id() => Some((exit.cause, exit.to_string())),
        _ => None,
    })
}

/// Spawns a worker and does something to it.
#[track_caller]
fn cause_after(spec: WorkerSpec, act: impl FnOnce(&Supervisor, &Worker)) -> (ExitCause, String) {
    let mut story = Story::new();
    let worker = story.supervisor.spawn(spec).unwrap();
    act(&story.supervisor, &worker);
    cause(&mut story, &worker)
}

#[test]
fn p16_exit_without_a_stop_is_its_own() {
    let shell = |script: &str| WorkerSpec::new("/bin/sh").args(["-c", script]);
    assert_eq!(cause_after(shell("exit 3"), |_, _| {}), (ExitCause::Itself, "exit code 3".into()));
    let killed = "killed by signal 9 (SIGKILL)";
    assert_eq!(cause_after(shell("kill -9 $$"), |_, _| {}), (ExitCause::Itself, killed.into()));
    let signal = |_: &Supervisor, worker: &Worker| worker.signal(libc::SIGTERM).unwrap();
    assert_eq!(cause_after(hanging(), signal).0, ExitCause::Itself);
}

#[test]
fn p16_exit_at_a_request_names_the_request() {
    let terminated = "killed by signal 15 (SIGTERM)";
    let stop = |_: &Supervisor, worker: &Worker| drop(worker.stop_timeout(DEADLINE));
    assert_eq!(cause_after(hanging(), stop), (ExitCause::Stop, terminated.into()));
    let stop_all = |supervisor: &Supervisor, _: &Worker| drop(supervisor.stop_all());
    assert_eq!(cause_after(hanging(), stop_all).0, ExitCause::Stop);
    let restart = |_: &Supervisor, worker: &Worker| drop(worker.restart());
    assert_eq!(cause_after(hanging(), restart).0, ExitCause::Restart);
    let kill = |_: &Supervisor, worker: &Worker| worker.kill().unwrap();
    assert_eq!(cause_after(hanging(), kill), (ExitCause::Kill, "killed by signal 9 (SIGKILL)".into()));
    let shutdown = |supervisor: &Supervisor, _: &Worker| drop(supervisor.shutdown(DEADLINE));
    assert_eq!(cause_after(hanging(), shutdown).0, ExitCause::SupervisorEnd);
    // The first decision counts.
    let both = |supervisor: &Supervisor, worker: &Worker| {
        worker.stop();
        drop(supervisor.shutdown(DEADLINE));
    };
    assert_eq!(cause_after(hanging(), both).0, ExitCause::Stop);
    let story = Story::new();
    let worker = story.supervisor.spawn(hanging()).unwrap();
    drop(story);
    assert_eq!(worker.wait().cause, ExitCause::SupervisorEnd);
}

#[test]
fn p16_exit_by_a_rule_of_the_spec_names_the_rule() {
    let (cause, text) = cause_after(hanging().runtime_max(SHORT), |_, _| {});
    assert_eq!((cause, &*text), (ExitCause::TimeLimit, "killed by signal 15 (SIGTERM), stopped at its time limit"));
    let never = Readiness::log_line("never").timeout(SHORT);
    let (cause, text) = cause_after(hanging().stdout(OutputMode::Lines).ready(never), |_, _| {});
    assert_eq!(cause, ExitCause::Readiness);
    let (status, reason) = text.split_once(", stopped: not ready after ").expect("the reason");
    assert_eq!(status, "killed by signal 15 (SIGTERM)");
    assert!(reason.ends_with(": it has not printed the expected line"), "{text}");
    for watchdog in [Watchdog::notify(SHORT), Watchdog::notify(SHORT).abort_signal(libc::SIGABRT)] {
        let (cause, text) = cause_after(hanging().watchdog(watchdog), |_, _| {});
        assert_eq!(cause, ExitCause::Watchdog, "{text}");
        assert!(text.ends_with(", stopped by its watchdog"), "{text}");
    }
}

#[test]
fn p16_member_stopped_with_its_siblings_names_its_group() {
    let mut story = Story::new();
    let group = story.supervisor.group(Strategy::OneForAll).unwrap();
    let at_once = || RestartPolicy::from(Restart::Always).backoff(Backoff::constant(Duration::ZERO));
    let steady = group.add(hanging().restart(at_once())).unwrap();
    let failing = group.add(hanging().restart(at_once())).unwrap();
    failing.signal(libc::SIGTERM).unwrap();
    let text = "killed by signal 15 (SIGTERM), stopped with its group";
    assert_eq!(cause(&mut story, &steady), (ExitCause::Group, text.into()));
    failing.wait_incarnation(2, DEADLINE).unwrap();
    group.restart().wait(DEADLINE).unwrap();
    assert_eq!(cause(&mut story, &steady).0, ExitCause::Restart);
    failing.restart().wait(DEADLINE).unwrap();
    // A dependency is stopped when its dependents have ended, and still because of the same request.
    let after = hanging().restart(at_once()).depends_on(&steady, DependencyCondition::Started);
    let last = group.add(after).unwrap();
    last.wait_incarnation(1, DEADLINE).unwrap();
    group.stop();
    assert_eq!(cause(&mut story, &last).0, ExitCause::Stop);
    assert_eq!(cause(&mut story, &steady).0, ExitCause::Stop);
}
