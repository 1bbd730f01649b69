//! The event loop ends before its workers: all workers are killed, and no wait hangs.
//!
//! No worker and no closure can cause that, so each test replaces the loop's epoll descriptor, as a careless `closefrom` would. The loop ends at its next
//! wait.

use crate::{
    kernel,
    support::{DEADLINE, FIXTURE, Story, alone, becomes_true, children, open_descriptors, stop_loop, wait_gone},
};
use pipewright::{
    CallError, DependencyCondition, Event, EventKind, ExitStatus, GroupError, Pass, Restart, SpawnError, Strategy,
    Supervisor, Worker, WorkerSpec,
    pool::{Budget, JobSpec, Jobs},
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

/// A supervisor, and the numbers of its loop's epoll descriptors, spare ones included.
fn host() -> (Story, Vec<RawFd>) {
    let before = open_descriptors();
    let story = Story::new();
    // Once it answers, all of them are open.
    story.supervisor.status();
    let is_new = |(number, what): &(RawFd, PathBuf)| {
        what == Path::new("anon_inode:[eventpoll]") && !before.iter().any(|(before, _)| before == number)
    };
    (story, open_descriptors().into_iter().filter(is_new).map(|(number, _)| number).collect())
}

/// Makes the next wait of the loop fail.
fn replace_epolls(epolls: &[RawFd]) {
    for number in epolls {
        kernel::restore(File::open("/dev/null").unwrap().into_raw_fd(), *number);
    }
}

/// Starts a child that writes its pid to a file, and waits for the file.
const FAMILY: &str =
    "sh -c 'echo $$ >$0.new; mv $0.new $0; exec sleep 1000' $0 & while [ ! -e $0 ]; do :; done; exec sleep 1000";
/// The same with a daemon: its own session, its parent exited.
const DAEMON: &str = "(setsid sh -c 'echo $$ >$0.new; mv $0.new $0; exec sleep 1000' $0 &); \
                      while [ ! -e $0 ]; do :; done; exec sleep 1000";

fn pid_in(file: &Path) -> u32 {
    assert!(becomes_true(|| file.exists()), "{}", file.display());
    fs::read_to_string(file).unwrap().trim().parse().unwrap()
}

#[track_caller]
fn killed(worker: &Worker) {
    assert_eq!(worker.wait_timeout(DEADLINE).expect("exits").status, KILLED);
    assert!(!Path::new(&format!("/proc/{}", worker.pid().unwrap())).exists(), "it is not reaped");
}

#[test]
fn kills_and_reports_all_workers() {
    if !alone("loop_end::kills_and_reports_all_workers", |spec| spec) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (mut story, epolls) = host();
    let file = directory.path().join("number");
    let spec = WorkerSpec::new("sh").args(["-c", DAEMON]).arg(&file).restart(Restart::Always);
    let here = story.supervisor.spawn(spec).unwrap();
    let daemon = pid_in(&file);
    let serving = WorkerSpec::new(FIXTURE).arg("serve").control(Pass::arg("--control={}"));
    let there = thread::scope(|scope| scope.spawn(|| story.supervisor.spawn(serving)).join().unwrap()).unwrap();
    story.find(|event| matches!(event.kind, EventKind::ControlConnected).then_some(()));
    let group = story.supervisor.group(Strategy::OneForOne).unwrap();
    let member = group.add(WorkerSpec::new("sleep").arg("1000").restart(Restart::Always)).unwrap();
    assert!(member.wait_ready(DEADLINE).is_ok());
    let waiting = group.add(WorkerSpec::new("true").depends_on(&member, DependencyCondition::Completed)).unwrap_err();
    assert!(matches!(waiting, GroupError::Rejected { .. }), "{waiting}");
    let call = there.start_call("until cancelled", &()).unwrap();

    replace_epolls(&epolls);
    let restarting = there.restart();
    killed(&here);
    killed(&there);
    killed(&member);
    wait_gone(daemon);
    assert!(matches!(call.wait::<()>(DEADLINE), Err(CallError::WorkerExited { exit: Some(_), .. })), "with its exit");
    assert!(restarting.wait(DEADLINE).is_err());
    assert_all_calls_return(&story, &group, &here);
    let told = story.rest();
    let ends = |event: &&Event| matches!(&event.kind, EventKind::Exited { exit, .. } if exit.status == KILLED);
    assert_eq!(told.iter().filter(ends).count(), 3, "{told:#?}");
}

/// Asserts that every method returns after the loop has ended.
fn assert_all_calls_return(story: &Story, group: &pipewright::WorkerGroup, worker: &Worker) {
    let supervisor = &story.supervisor;
    assert!(supervisor.status().workers.is_empty());
    assert!(supervisor.stop_all().wait(DEADLINE).workers.is_empty());
    assert!(supervisor.shutdown(DEADLINE).workers.is_empty());
    assert!(worker.stop().wait(DEADLINE).unfinished().next().is_none());
    assert!(worker.restart().wait(DEADLINE).is_err());
    assert!(matches!(
        worker.call::<_, ()>("echo", &(), DEADLINE),
        Err(CallError::NotConnected | CallError::WorkerExited { .. })
    ));
    assert!(matches!(supervisor.group(Strategy::OneForOne), Err(GroupError::SupervisorGone)));
    assert!(matches!(group.add(WorkerSpec::new("true")), Err(GroupError::SupervisorGone)));
    assert!(matches!(group.remove(worker), Err(GroupError::SupervisorGone)));
    assert!(group.stop().wait(DEADLINE).workers.is_empty());
    assert!(
        group.start().wait(DEADLINE).is_ok() && group.restart().wait(DEADLINE).is_ok(),
        "there is no worker to wait for"
    );
}

#[test]
fn caller_undoes_pending_spawn() {
    if alone("loop_end::caller_undoes_pending_spawn", |spec| spec) {
        // A worker that outlives the supervisor may be started by any thread.
        late_spawn_is_undone(FAMILY, WorkerSpec::outlive_supervisor);
    }
}

#[test]
fn spawner_undoes_pending_spawn() {
    if alone("loop_end::spawner_undoes_pending_spawn", |spec| spec) {
        late_spawn_is_undone(DAEMON, |spec| spec);
    }
}

fn late_spawn_is_undone(script: &'static str, with: impl Fn(WorkerSpec) -> WorkerSpec) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("number");
    let (story, epolls) = host();
    // It is killed when the loop ends; by then the guard runs.
    let sleeper = WorkerSpec::new("sleep").arg("1000");
    let (events, wakes) = (story.supervisor.events().clone(), story.supervisor.spawn(sleeper).unwrap());
    let at = file.clone();
    let command = move || {
        replace_epolls(&epolls);
        wakes.stop();
        while events.recv_timeout(DEADLINE).is_ok() {}
        let mut command = Command::new("sh");
        command.args(["-c", script]).arg(&at);
        command
    };
    let error = story.supervisor.spawn(with(WorkerSpec::from_command(command))).expect_err("the loop has ended");
    assert!(matches!(error, SpawnError::SupervisorGone), "{error}");
    if let Ok(number) = fs::read_to_string(&file) {
        wait_gone(number.trim().parse().unwrap());
    }
    // Later spawns do not even start.
    let ran = directory.path().join("ran");
    let error = story.supervisor.spawn(with(WorkerSpec::new("touch").arg(&ran))).expect_err("the loop has ended");
    assert!(matches!(error, SpawnError::SupervisorGone), "{error}");
    drop(story);
    assert!(!ran.exists());
    assert!(children(std::process::id()).is_empty(), "a zombie is left");
}

/// Everything that waits for an answer of the loop returns, and reports the timeout.
#[test]
#[ignore = "waits for the 5 s that a loop has to answer"]
fn p15_every_request_to_a_suspended_loop_times_out() {
    if !alone("loop_end::p15_every_request_to_a_suspended_loop_times_out", |spec| spec) {
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

#[test]
fn ends_jobs_and_gives_their_slots_back() {
    if !alone("loop_end::ends_jobs_and_gives_their_slots_back", |spec| spec) {
        return;
    }
    let other = Supervisor::new().unwrap();
    other.status();
    let (mut story, epolls) = host();
    let budget = Budget::new(1);
    let jobs = Jobs::with_budget(&story.supervisor, &budget);
    let running = jobs.submit(WorkerSpec::new("sleep").arg("1000")).unwrap();
    let waiting = jobs.submit(WorkerSpec::new("true")).unwrap();
    let dependent = jobs.submit(JobSpec::new(WorkerSpec::new("true")).after(&running)).unwrap();
    let elsewhere = Jobs::with_budget(&other, &budget).submit(WorkerSpec::new("true")).unwrap();
    let mut all = vec![running, waiting, dependent];
    story.find(|event| matches!(event.kind, EventKind::Started { .. }).then_some(()));
    replace_epolls(&epolls);
    story.supervisor.status();
    // A job that is still accepted ends, too.
    while let Ok(job) = jobs.submit(WorkerSpec::new("true")) {
        all.push(job);
    }
    for job in &all {
        let outcome = job.wait_timeout(DEADLINE).expect("ends");
        assert!(!outcome.success(), "{outcome}");
    }
    assert!(elsewhere.wait_timeout(DEADLINE).expect("its slot is free").success());
    let is_final = |event: &Event, worker| event.worker == worker && event.kind.is_final();
    let events: Vec<Event> = story.supervisor.events().try_iter().collect();
    for job in &all[..3] {
        assert_eq!(events.iter().filter(|event| is_final(event, job.id())).count(), 1, "{job:?}: {events:?}");
    }
}
