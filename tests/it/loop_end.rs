//! When the supervisor's loop ends before its workers do: nobody lives on whom nobody looks after, and nobody waits for ever.
//!
//! No worker and no closure can bring that about, so each host takes the loop's epoll away from it, as a careless `closefrom`
//! would: at the next thing that the loop hears it ends.

use crate::{
    kernel,
    support::{DEADLINE, FIXTURE, Story, alone, children, comes_true, open_descriptors, stop_loop, wait_gone},
};
use pipewright::{
    CallError, DependencyCondition, Event, EventKind, ExitStatus, GroupError, Pass, Restart, SpawnError, Strategy,
    Worker, WorkerSpec,
};
use std::{
    fs::{self, File},
    os::fd::{IntoRawFd, RawFd},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

const ZERO: Duration = Duration::ZERO;
const KILLED: ExitStatus = ExitStatus::Signal { signal: libc::SIGKILL, core_dumped: false };

/// A supervisor, and the numbers of its loop's epoll: some are kept to be closed in need.
fn host() -> (Story, Vec<RawFd>) {
    let before = open_descriptors();
    let story = Story::new();
    // When it answers it has them all.
    story.supervisor.status();
    let is_new = |(number, what): &(RawFd, PathBuf)| {
        what == Path::new("anon_inode:[eventpoll]") && !before.iter().any(|(before, _)| before == number)
    };
    (story, open_descriptors().into_iter().filter(is_new).map(|(number, _)| number).collect())
}

/// The next wait of the loop fails: it has something else there.
fn take_away(epolls: &[RawFd]) {
    for number in epolls {
        kernel::restore(File::open("/dev/null").unwrap().into_raw_fd(), *number);
    }
}

/// Starts somebody who says its number in a file, and waits for that.
const FAMILY: &str =
    "sh -c 'echo $$ >$0.new; mv $0.new $0; exec sleep 1000' $0 & while [ ! -e $0 ]; do :; done; exec sleep 1000";
/// The same, and it leaves its session and its parent.
const DAEMON: &str = "(setsid sh -c 'echo $$ >$0.new; mv $0.new $0; exec sleep 1000' $0 &); \
                      while [ ! -e $0 ]; do :; done; exec sleep 1000";

fn number_in(file: &Path) -> u32 {
    assert!(comes_true(|| file.exists()), "{}", file.display());
    fs::read_to_string(file).unwrap().trim().parse().unwrap()
}

#[track_caller]
fn killed(worker: &Worker) {
    assert_eq!(worker.wait_timeout(DEADLINE).expect("its end").status, KILLED);
    assert!(!Path::new(&format!("/proc/{}", worker.pid().unwrap())).exists(), "it is reaped");
}

#[test]
fn everybody_ends_with_it_and_is_told() {
    if !alone("loop_end::everybody_ends_with_it_and_is_told", |spec| spec) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (mut story, epolls) = host();
    let file = directory.path().join("number");
    let spec = WorkerSpec::new("sh").args(["-c", DAEMON]).arg(&file).restart(Restart::Always);
    let here = story.supervisor.spawn(spec).unwrap();
    let daemon = number_in(&file);
    let serving = WorkerSpec::new(FIXTURE).arg("serve").control(Pass::arg("--control={}"));
    let there = thread::scope(|scope| scope.spawn(|| story.supervisor.spawn(serving)).join().unwrap()).unwrap();
    story.find(|event| matches!(event.kind, EventKind::ControlConnected).then_some(()));
    let group = story.supervisor.group(Strategy::OneForOne).unwrap();
    let member = group.add(WorkerSpec::new("sleep").arg("1000").restart(Restart::Always)).unwrap();
    assert!(member.wait_ready(DEADLINE));
    let waiting = group.add(WorkerSpec::new("true").depends_on(&member, DependencyCondition::Completed)).unwrap_err();
    assert!(matches!(waiting, GroupError::Rejected { .. }), "{waiting}");
    let call = there.start_call("until cancelled", &()).unwrap();

    take_away(&epolls);
    let restarting = there.restart();
    killed(&here);
    killed(&there);
    killed(&member);
    wait_gone(daemon);
    assert!(matches!(call.wait::<()>(DEADLINE), Err(CallError::WorkerExited(Some(_)))), "with how it has ended");
    assert!(!restarting.wait(DEADLINE));
    nobody_is_there(&story, &group, &here);
    let told = story.rest();
    let ends = |event: &&Event| matches!(&event.kind, EventKind::Exited(exit) if exit.status == KILLED);
    assert_eq!(told.iter().filter(ends).count(), 3, "{told:#?}");
}

/// Whatever is asked for then has an answer.
fn nobody_is_there(story: &Story, group: &pipewright::WorkerGroup, worker: &Worker) {
    let supervisor = &story.supervisor;
    assert!(supervisor.status().workers.is_empty());
    assert!(supervisor.stop_all().wait(DEADLINE).workers.is_empty());
    assert!(supervisor.shutdown(DEADLINE).workers.is_empty());
    assert!(worker.stop().wait(DEADLINE).unfinished().next().is_none());
    assert!(!worker.restart().wait(DEADLINE));
    assert!(matches!(
        worker.call::<_, ()>("echo", &(), DEADLINE),
        Err(CallError::NotConnected | CallError::WorkerExited(_))
    ));
    assert!(matches!(supervisor.group(Strategy::OneForOne), Err(GroupError::SupervisorGone)));
    assert!(matches!(group.add(WorkerSpec::new("true")), Err(GroupError::SupervisorGone)));
    assert!(matches!(group.remove(worker), Err(GroupError::SupervisorGone)));
    assert!(group.stop().wait(DEADLINE).workers.is_empty());
    assert!(group.start().wait(DEADLINE) && group.restart().wait(DEADLINE), "there is nobody to wait for");
}

#[test]
fn a_start_that_is_under_way_is_undone_by_its_caller() {
    if alone("loop_end::a_start_that_is_under_way_is_undone_by_its_caller", |spec| spec) {
        // Any thread may be the parent of one that survives us.
        a_late_start_is_undone(FAMILY, WorkerSpec::outlive_supervisor);
    }
}

#[test]
fn a_start_that_is_under_way_is_undone_by_the_spawner() {
    if alone("loop_end::a_start_that_is_under_way_is_undone_by_the_spawner", |spec| spec) {
        a_late_start_is_undone(DAEMON, |spec| spec);
    }
}

fn a_late_start_is_undone(script: &'static str, with: impl Fn(WorkerSpec) -> WorkerSpec) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("number");
    let (story, epolls) = host();
    // It ends with the loop, and the guard that stands by then is used up for that.
    let sleeper = WorkerSpec::new("sleep").arg("1000");
    let (events, wakes) = (story.supervisor.events().clone(), story.supervisor.spawn(sleeper).unwrap());
    let at = file.clone();
    let command = move || {
        take_away(&epolls);
        wakes.stop();
        while events.recv_timeout(DEADLINE).is_ok() {}
        let mut command = Command::new("sh");
        command.args(["-c", script]).arg(&at);
        command
    };
    let error = story.supervisor.spawn(with(WorkerSpec::from_command(command))).expect_err("nobody looks after it");
    assert!(matches!(error, SpawnError::SupervisorGone), "{error}");
    if let Ok(number) = fs::read_to_string(&file) {
        wait_gone(number.trim().parse().unwrap());
    }
    // From now on nothing is even begun.
    let ran = directory.path().join("ran");
    let error = story.supervisor.spawn(with(WorkerSpec::new("touch").arg(&ran))).expect_err("nobody looks after it");
    assert!(matches!(error, SpawnError::SupervisorGone), "{error}");
    drop(story);
    assert!(!ran.exists());
    assert!(children(std::process::id()).is_empty(), "nor a zombie");
}

/// Everything that waits for an answer of the loop: the waits end, and say that there was none.
#[test]
#[ignore = "waits for the 5 s that a loop has to answer"]
fn p15_every_question_to_a_loop_that_does_not_run_ends() {
    if !alone("loop_end::p15_every_question_to_a_loop_that_does_not_run_ends", |spec| spec) {
        return;
    }
    let Story { supervisor, .. } = Story::new();
    let worker = supervisor.spawn(WorkerSpec::new("sleep").arg("1000")).unwrap();
    let group = supervisor.group(Strategy::OneForOne).unwrap();
    let member = group.add(WorkerSpec::new("sleep").arg("1000")).unwrap();
    let stopped = stop_loop();
    thread::scope(|scope| {
        let ends = [
            scope.spawn(|| assert!(!supervisor.status().is_complete)),
            scope.spawn(|| assert!(supervisor.stop_all().wait(ZERO).unfinished().next().is_some())),
            scope.spawn(|| assert!(supervisor.group(Strategy::OneForOne).is_err())),
            scope.spawn(|| assert!(group.add(WorkerSpec::new("true")).is_err())),
            scope.spawn(|| assert!(group.remove(&member).is_err())),
            scope.spawn(|| assert!(group.batch().start().is_err())),
            scope.spawn(|| assert!(worker.stop_timeout(ZERO).wait(ZERO).unfinished().next().is_some())),
            scope.spawn(|| assert!(worker.wait_timeout(ZERO).is_none())),
        ];
        for end in ends {
            end.join().unwrap();
        }
    });
    drop(stopped);
    assert!(supervisor.status().is_complete, "it answers again");
    drop(group);
    drop(supervisor);
    assert!(worker.wait_timeout(DEADLINE).is_some() && member.wait_timeout(DEADLINE).is_some());
}
