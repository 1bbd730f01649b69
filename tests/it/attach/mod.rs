//! Workers whose process is started elsewhere and connects.

mod messages;

use crate::{
    support::{DEADLINE, FIXTURE, Story, alone, becomes_true, wait_gone},
    terminal::{is_in_state, wait_state},
};
use pipewright::{
    Attachment, EventKind, Exit, ExitStatus, OutputMode, Pass, Process, Readiness, ReadinessAnswer, Restart,
    SpawnError, SpawnStep, SpecError, StdinMode, StopPolicy, StopStep, Supervisor, Watchdog, WorkerSpec,
    events::{AfterExit, DisconnectReason, HandshakeError, Warning},
    limits::{CgroupLimit, ResourceLimit},
    pipe::anonymous::PipeReader,
};
use serde_json::{Value, json};
use std::{
    fs,
    time::{Duration, Instant},
};

fn spec() -> WorkerSpec {
    WorkerSpec::new("plugin").control(Pass::env("PIPEWRIGHT_CONTROL"))
}

/// Starts the fixture as a debugger would: without the supervisor, with the variable of the attachment.
#[track_caller]
fn start(attachment: &Attachment, subcommand: &str) -> Process {
    start_with(attachment, &[subcommand])
}

#[track_caller]
fn start_with(attachment: &Attachment, arguments: &[&str]) -> Process {
    let (name, value) = attachment.variable();
    let spec = WorkerSpec::new(FIXTURE).args(arguments).env(name, value).stdin(StdinMode::Pipe);
    spec.spawn_unsupervised().unwrap()
}

/// Starts a process that connects, reads nothing, and exits at the end of its standard input.
#[track_caller]
fn start_deaf(address: &str) -> Process {
    let (path, key) = address.rsplit_once('?').unwrap();
    let spec = WorkerSpec::new(FIXTURE).arg("deaf").arg(format!("--control={path}"));
    spec.env("PIPEWRIGHT_CONTROL_KEY", key).stdin(StdinMode::Pipe).spawn_unsupervised().unwrap()
}

/// Reads one line from a pipe of a process.
#[track_caller]
fn read_line(pipe: &PipeReader) -> String {
    let mut line = String::new();
    while !line.ends_with('\n') {
        let mut byte = [0];
        match pipe.read_timeout(&mut byte, DEADLINE) {
            Ok(1) => line.push(byte[0].into()),
            ended => panic!("{ended:?} after {line:?}"),
        }
    }
    line.trim_end().to_owned()
}

/// The kernel records the status of a process that its parent has reaped (Linux 6.15), so that others can read it.
fn kernel_records_statuses() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap(), numbers.next().unwrap()) >= (6, 15)
}

/// The status of an attached process is known only if its parent, here the test, reaps it soon, which a loaded machine can prevent.
#[track_caller]
fn assert_status(exit: &Exit, expected: ExitStatus) {
    assert!([expected, ExitStatus::Unknown].contains(&exit.status), "{exit}, not {expected}");
}

#[track_caller]
fn started(story: &mut Story) -> u32 {
    story.find(|event| match event.kind {
        EventKind::Started { pid } => Some(pid),
        _ => None,
    })
}

#[track_caller]
fn connected(story: &mut Story) {
    story.find(|event| matches!(event.kind, EventKind::ControlConnected).then_some(()));
}

#[track_caller]
fn rejection(story: &mut Story) -> HandshakeError {
    story.find(|event| match event.kind {
        EventKind::Warning(warning) => match *warning {
            Warning::HandshakeRejected { fault, .. } => Some(fault),
            _ => None,
        },
        _ => None,
    })
}

#[test]
fn p01_attached_process_calls_and_is_called_until_it_exits() {
    let mut story = Story::new();
    let attachment = story.supervisor.attach(spec()).unwrap();
    let worker = attachment.worker().clone();
    let waiting = worker.start_call("add", &[2, 3]).unwrap();
    let mut process = start(&attachment, "serve");
    assert_eq!(waiting.wait::<i64>(DEADLINE).unwrap(), 5, "the call has waited for the connection");
    assert_eq!((started(&mut story), worker.pid(), worker.incarnation()), (process.pid(), Some(process.pid()), 1));
    connected(&mut story);
    let answer = worker.start_call("ask back", &["why"]).unwrap();
    let request = story.find(|event| match event.kind {
        EventKind::Request(request) => Some(request),
        _ => None,
    });
    request.reply(&"because").unwrap();
    assert_eq!(answer.wait::<String>(DEADLINE).unwrap(), "because");

    let stopped = worker.stop();
    assert_eq!(process.wait_timeout(DEADLINE).unwrap().and_then(Exit::code), Some(0), "`shutdown` ends it");
    let (exit, next) = story.end();
    assert_status(&exit, ExitStatus::Code(0));
    assert_eq!(next, AfterExit::Finished);
    assert!(exit.usage.is_none());
    assert_eq!(stopped.wait(DEADLINE).unfinished().count(), 0);
    assert!(story.rest().is_empty());
}

#[test]
fn attached_process_becomes_ready_by_a_call() {
    let mut story = Story::new();
    let ready = Readiness::call("echo", &json!({"hello": [1]}), |_: Value| ReadinessAnswer::Ready).timeout(DEADLINE);
    let attachment = story.supervisor.attach(spec().ready(ready)).unwrap();
    let _process = start(&attachment, "serve");
    attachment.worker().wait_ready(DEADLINE).unwrap();
    assert_eq!(attachment.worker().handshake::<Value>().unwrap().unwrap(), json!({"hello": [1]}));
    story.find(|event| matches!(event.kind, EventKind::Ready { .. }).then_some(()));
}

#[test]
fn p01_attached_process_that_is_killed_by_another_is_reported() {
    let mut story = Story::new();
    let attachment = story.supervisor.attach(spec()).unwrap();
    let mut process = start(&attachment, "serve");
    connected(&mut story);
    let call = attachment.worker().start_call("wait", &["for ever"]).unwrap();
    process.kill().unwrap();
    process.wait_timeout(DEADLINE).unwrap().expect("ends");
    let (exit, next) = story.end();
    assert_status(&exit, ExitStatus::Signal { signal: libc::SIGKILL, core_dumped: false });
    assert_eq!(next, AfterExit::Finished);
    let error = call.wait::<String>(DEADLINE).unwrap_err();
    assert!(matches!(error, pipewright::CallError::WorkerExited { .. }), "{error:?}");
}

#[test]
fn p15_attached_process_that_is_not_reaped_ends_with_an_unknown_status() {
    let mut story = Story::new();
    let attachment = story.supervisor.attach(spec()).unwrap();
    let process = start(&attachment, "serve");
    connected(&mut story);
    process.kill().unwrap();
    assert_eq!(story.end().0.status, ExitStatus::Unknown);
}

#[test]
fn p01_status_of_an_attached_process_is_known_where_the_kernel_records_it() {
    let mut story = Story::new();
    let mut status = || {
        let attachment = story.supervisor.attach(spec()).unwrap();
        let mut process = start(&attachment, "serve");
        connected(&mut story);
        attachment.worker().stop();
        process.wait_timeout(DEADLINE).unwrap().expect("ends");
        story.end().0.status
    };
    let statuses: Vec<_> = (0..3).map(|_| status()).collect();
    let knows = statuses.contains(&ExitStatus::Code(0));
    assert_eq!(knows, kernel_records_statuses(), "{statuses:?}");
}

#[test]
fn attached_process_may_close_its_connection_and_continue() {
    let mut story = Story::new();
    let attachment = story.supervisor.attach(spec()).unwrap();
    let mut process = start(&attachment, "hang-up");
    connected(&mut story);
    let why = story.find(|event| match event.kind {
        EventKind::ControlDisconnected(why) => Some(why),
        _ => None,
    });
    assert_eq!(why, DisconnectReason::Closed);
    drop(process.take_stdin());
    process.wait_timeout(DEADLINE).unwrap().expect("ends");
    assert_status(&story.end().0, ExitStatus::Code(0));
}

#[test]
fn p08_attached_process_that_does_not_stop_is_detached() {
    let mut story = Story::new();
    for kills_later in [false, true] {
        let attachment = story.supervisor.attach(spec()).unwrap();
        let mut process = start_deaf(attachment.variable().1.to_str().unwrap());
        connected(&mut story);
        let worker = attachment.into_worker();
        let began = Instant::now();
        let stopped = if kills_later { worker.stop_timeout(Duration::ZERO) } else { worker.stop() };
        let (exit, next) = story.end();
        assert_eq!((exit.status, next), (ExitStatus::Detached, AfterExit::Finished));
        assert_eq!(exit.to_string(), "still there: detached");
        let took = began.elapsed();
        assert_eq!(took >= Duration::from_secs(2), !kills_later, "{took:?}");
        assert_eq!(stopped.wait(DEADLINE).unfinished().count(), 1);
        assert!(process.wait_timeout(Duration::ZERO).unwrap().is_none(), "it runs on");
        drop(process.take_stdin());
        assert!(process.wait_timeout(DEADLINE).unwrap().expect("ends").success(), "no signal was sent");
    }
}

#[test]
fn p09_attached_process_outlives_the_drop_of_the_supervisor() {
    let mut story = Story::of(Supervisor::builder().grace_period(Duration::from_millis(50)).build().unwrap());
    let attachment = story.supervisor.attach(spec()).unwrap();
    let mut process = start_deaf(attachment.variable().1.to_str().unwrap());
    connected(&mut story);
    let worker = attachment.into_worker();
    drop(story);
    assert_eq!(worker.wait_timeout(Duration::ZERO).expect("ended").status, ExitStatus::Detached);
    assert!(process.wait_timeout(Duration::ZERO).unwrap().is_none(), "it runs on");
    drop(process.take_stdin());
    assert!(process.wait_timeout(DEADLINE).unwrap().expect("ends").success());
}

#[test]
fn p08_attached_process_with_a_stop_policy_is_killed() {
    for drops in [false, true] {
        let mut story = Story::new();
        let policy = StopPolicy::kill().step([StopStep::Signal(libc::SIGWINCH)], Duration::from_millis(10));
        let attachment = story.supervisor.attach(spec().stop(policy)).unwrap();
        let mut process = start_deaf(attachment.variable().1.to_str().unwrap());
        connected(&mut story);
        if drops {
            drop(story);
        } else {
            attachment.worker().stop();
        }
        let exit = process.wait_timeout(DEADLINE).unwrap().expect("ends");
        assert_eq!(exit.signal(), Some(libc::SIGKILL), "{exit}");
    }
}

#[test]
fn p10_signals_by_the_handle_reach_the_process_alone() {
    let mut story = Story::new();
    let attachment = story.supervisor.attach(spec()).unwrap();
    // In the process group of this test, which a signal to its group would end.
    let (name, value) = attachment.variable();
    let serve = WorkerSpec::new(FIXTURE).arg("serve").env(name, value);
    let mut process = serve.process_group(pipewright::ProcessGroup::Inherit).spawn_unsupervised().unwrap();
    connected(&mut story);
    attachment.worker().signal_group(libc::SIGTERM).unwrap();
    assert_eq!(process.wait_timeout(DEADLINE).unwrap().and_then(Exit::signal), Some(libc::SIGTERM));
    story.end();
    let error = attachment.worker().signal(libc::SIGTERM).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ESRCH));
}

#[test]
fn p01_worker_that_is_stopped_before_it_is_attached_has_one_final_event() {
    let mut story = Story::new();
    let attachment = story.supervisor.attach(spec()).unwrap();
    let worker = attachment.worker();
    let call = worker.start_call("add", &[1]).unwrap();
    worker.restart();
    assert_eq!(worker.wait_timeout(Duration::from_millis(1)), None, "neither a restart nor a call ends it");
    worker.stop();
    let next = story.find(|event| match event.kind {
        EventKind::NotStarted { next } => Some(next),
        _ => None,
    });
    assert_eq!(next, AfterExit::Finished);
    assert_eq!(worker.wait_timeout(Duration::ZERO).unwrap().status, ExitStatus::NeverStarted);
    assert!(call.wait::<i64>(DEADLINE).is_err());
    // Its key has been revoked.
    let mut late = start(&attachment, "serve");
    assert_eq!(rejection(&mut story), HandshakeError::UnknownKey);
    assert_eq!(late.wait_timeout(DEADLINE).unwrap().and_then(Exit::code), Some(64));
    assert!(story.rest().is_empty());
}

#[test]
fn p15_worker_that_is_not_attached_in_time_ends_with_the_reason() {
    let mut story = Story::new();
    let attachment = story.supervisor.attach(spec().control_connect_timeout(Duration::from_millis(20))).unwrap();
    let (error, next) = story.find(|event| match event.kind {
        EventKind::SpawnFailed { error, next } => Some((error, next)),
        _ => None,
    });
    assert!(next.is_final(), "{next}");
    assert!(matches!(&*error, SpawnError::Failed { step: SpawnStep::Attach, .. }), "{error:?}");
    assert_eq!(error.to_string(), "failed to start plugin: attaching a process: no process has connected within 20ms");
    assert_eq!(attachment.worker().wait_timeout(Duration::ZERO).unwrap().status, ExitStatus::NeverStarted);
    assert!(story.rest().is_empty());
}

#[test]
fn p13_attached_worker_is_not_restarted() {
    let mut story = Story::new();
    let attachment = story.supervisor.attach(spec()).unwrap();
    let mut process = start(&attachment, "serve");
    connected(&mut story);
    assert!(attachment.worker().restart().wait(Duration::from_millis(1)).is_err());
    assert_eq!(attachment.worker().call::<_, i64>("add", &[1], DEADLINE).unwrap(), 1, "it was not stopped either");
    process.kill().unwrap();
    process.wait_timeout(DEADLINE).unwrap();
    assert_eq!(story.end().1, AfterExit::Finished);
    assert!(story.rest().is_empty());
}

#[test]
fn p12_address_is_valid_for_one_process() {
    let mut story = Story::new();
    let attachment = story.supervisor.attach(spec()).unwrap();
    let _first = start(&attachment, "serve");
    connected(&mut story);
    let _second = start(&attachment, "serve");
    assert_eq!(rejection(&mut story), HandshakeError::UnknownKey);
    assert_eq!(attachment.worker().call::<_, i64>("add", &[1], DEADLINE).unwrap(), 1);
}

#[test]
fn p12_attachment_shows_its_secret_only_where_it_is_asked_for() {
    let supervisor = Supervisor::new().unwrap();
    let named = WorkerSpec::new("plugin").control(Pass::env("MY_CONTROL"));
    for (spec, expected) in
        [(named, "MY_CONTROL"), (WorkerSpec::new("plugin").control(Pass::arg("--control={}")), "PIPEWRIGHT_CONTROL")]
    {
        let attachment = supervisor.attach(spec).unwrap();
        let (name, value) = attachment.variable();
        let (name, value) = (name.to_str().unwrap(), value.to_str().unwrap());
        let (path, key) = value.rsplit_once('?').unwrap();
        assert_eq!((name, key.len()), (expected, 32));
        assert!(fs::exists(path).unwrap());
        assert_eq!(attachment.to_string(), format!("{expected}='{value}'"));
        assert!(!format!("{attachment:?}").contains(key));
    }
}

#[test]
fn p16_settings_that_need_a_start_are_refused() {
    let supervisor = Supervisor::new().unwrap();
    for (refused, setting) in [
        (WorkerSpec::new("plugin"), "control"),
        (spec().restart(Restart::OnFailure), "restart"),
        (spec().stdin(StdinMode::Pipe), "stdin"),
        (spec().input_pipe("in", Pass::arg("{}")), "input_pipe"),
        (spec().output_pipe("out", Pass::arg("{}")), "output_pipe"),
        (spec().inherit_fd(fs::File::open("/dev/null").unwrap(), Pass::arg("{}")), "inherit_fd"),
        (spec().ready(Readiness::sd_notify()), "ready"),
        (spec().ready(Readiness::notify_fd(Pass::arg("{}"))), "ready"),
        (spec().stdout(OutputMode::Lines).ready(Readiness::log_line("up")), "ready"),
        (spec().watchdog(Watchdog::ping(Duration::from_secs(1))), "watchdog"),
        (spec().runtime_max(Duration::from_secs(1)), "runtime_max"),
        (spec().rlimit(ResourceLimit::CoreBytes, 0), "rlimit"),
        (spec().cgroup_limit(CgroupLimit::PidsMax(9)), "cgroup_limit"),
    ] {
        match supervisor.attach(refused).unwrap_err() {
            SpawnError::Spec(SpecError::Conflict { settings, .. }) => assert_eq!(settings, ["attach", setting]),
            other => panic!("{setting}: {other:?}"),
        }
    }
    supervisor.close();
    assert!(matches!(supervisor.attach(spec()).unwrap_err(), SpawnError::SupervisorGone));
}

/// The promise of the worker that has the tree is not weakened by the attachment.
#[test]
fn p09_attached_process_in_the_tree_of_a_worker_ends_with_it() {
    let mut story = Story::new();
    let attachment = story.supervisor.attach(spec()).unwrap();
    let (name, value) = attachment.variable();
    // It leaves the group of its worker, as in a terminal that a worker has opened.
    let script = r#"setsid "$0" serve & read -r line"#;
    let terminal = WorkerSpec::new("sh").args(["-c", script, FIXTURE]).env(name, value).stdin(StdinMode::Pipe);
    let terminal = story.supervisor.spawn(terminal).unwrap();
    connected(&mut story);
    let pid = attachment.worker().pid().unwrap();
    terminal.stop();
    wait_gone(pid);
    let exit = attachment.worker().wait_timeout(DEADLINE).expect("ends");
    assert!(!matches!(exit.status, ExitStatus::Detached), "{exit}");
    let left = &terminal.wait_timeout(DEADLINE).expect("ends").survivors;
    assert!(left.iter().all(|survivor| !survivor.alive), "{left:?}");
}

#[test]
fn p09_attached_process_outlives_a_host_that_is_stopped_and_killed() {
    let spec = WorkerSpec::new(FIXTURE).arg("attach-host").stdin(StdinMode::Pipe).stdout(OutputMode::Lines);
    let mut host = spec.spawn_unsupervised().unwrap();
    let said = host.take_stdout().unwrap();
    let mut process = start_deaf(&read_line(&said));
    // The host has an ordinary worker too, which its guard kills.
    let ordinary: u32 = read_line(&said).parse().unwrap();
    // As by Ctrl-Z.
    host.signal(libc::SIGTSTP).unwrap();
    wait_state(host.pid(), 'T');
    wait_state(ordinary, 'T');
    assert!(!is_in_state(process.pid(), 'T'));
    host.kill().unwrap();
    host.wait_timeout(DEADLINE).unwrap().expect("ends");
    wait_gone(ordinary);
    assert!(process.wait_timeout(Duration::from_millis(50)).unwrap().is_none(), "it runs on");
    drop(process.take_stdin());
    assert!(process.wait_timeout(DEADLINE).unwrap().expect("ends").success());
}

#[test]
fn p07_attached_workers_leave_nothing_behind() {
    if !alone("attach::p07_attached_workers_leave_nothing_behind", |spec| spec) {
        return;
    }
    let supervisor = Supervisor::new().unwrap();
    let descriptors = || fs::read_dir("/proc/self/fd").unwrap().count();
    let cycle = || {
        let attachment = supervisor.attach(spec()).unwrap();
        let mut process = start(&attachment, "serve");
        assert_eq!(attachment.worker().call::<_, i64>("add", &[1], DEADLINE).unwrap(), 1);
        attachment.worker().stop();
        process.wait_timeout(DEADLINE).unwrap().expect("ends");
        attachment.worker().wait_timeout(DEADLINE).expect("ends");
        while supervisor.events().try_recv().is_ok() {}
    };
    cycle();
    let before = descriptors();
    for _ in 0..5 {
        cycle();
    }
    assert!(supervisor.status().workers.is_empty());
    assert!(becomes_true(|| descriptors() <= before), "{before}, {}", descriptors());
}
