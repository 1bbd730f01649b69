//! Sockets of the supervisor: access of workers of other users and namespaces, and unusual directories.

use crate::{
    kernel,
    named::{is_root, reachable},
    support::{DEADLINE, FIXTURE, Story, Way, alone},
};
use pipewright::{
    CallError, CallSet, EventKind, Pass, Readiness, StdinMode, Watchdog, Worker, WorkerSpec, events::DisconnectReason,
};
use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// A user id that no other test uses.
const SETPRIV: [&str; 3] = ["--reuid=65501", "--regid=65501", "--clear-groups"];

/// The fixture at a path that this user can reach.
fn fixture_for_all() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = reachable(Path::new(FIXTURE), directory.path());
    (directory, program)
}

fn as_another(program: &Path) -> WorkerSpec {
    WorkerSpec::new("setpriv").args(SETPRIV).arg(program).current_dir("/")
}

#[track_caller]
fn becomes_ready(spec: WorkerSpec) -> (Story, Worker) {
    let mut story = Story::new();
    let worker = story.supervisor.spawn(spec.ready(Readiness::sd_notify()).stdin(StdinMode::Pipe)).unwrap();
    story.find(|event| match event.kind {
        EventKind::Ready { .. } => Some(()),
        EventKind::NotReady { .. } | EventKind::Exited { .. } | EventKind::Warning(_) => panic!("{event:?}"),
        _ => None,
    });
    (story, worker)
}

#[test]
fn p15_notification_from_own_network_namespace_arrives() {
    let unshare: &[&str] = if is_root() { &["--net"] } else { &["--map-root-user", "--net"] };
    if !Command::new("unshare").args(unshare).arg("true").status().is_ok_and(|status| status.success()) {
        eprintln!("skipped: no network namespace is to be had");
        return;
    }
    becomes_ready(WorkerSpec::new("unshare").args(unshare).args([FIXTURE, "notify", "--say", "READY=1"]));
}

#[test]
fn p15_notification_after_dropping_privileges_arrives() {
    if !is_root() {
        return;
    }
    let (_directory, program) = fixture_for_all();
    becomes_ready(as_another(&program).args(["notify", "--say", "READY=1"]));
    // Below a process that has kept its privileges.
    let script = format!("setpriv {} {} notify --say READY=1; exit 3", SETPRIV.join(" "), program.display());
    let (mut story, worker) =
        becomes_ready(WorkerSpec::new("sh").args(["-c", &script]).watchdog(Watchdog::notify(DEADLINE)));
    drop(worker.take_stdin());
    assert_eq!(story.exit().code(), Some(3));
}

#[test]
fn p12_worker_of_other_user_connects_only_if_its_spec_allows() {
    if !is_root() {
        return;
    }
    let (_directory, program) = fixture_for_all();
    let mut story = Story::new();
    let serve = as_another(&program).arg("serve").control(Pass::arg("--control={}"));
    let other = story.supervisor.spawn(serve.clone().peer_user(65501)).unwrap();
    assert_eq!(other.call::<_, [u32; 1]>("echo", &[7], DEADLINE).unwrap(), [7]);
    // Workers of this user continue with the same server.
    let own = story.supervisor.spawn(Way::Direct.plain("serve").control(Pass::arg("--control={}"))).unwrap();
    assert_eq!(own.call::<_, [u32; 1]>("echo", &[8], DEADLINE).unwrap(), [8]);
    // Other processes of that user are rejected for workers whose spec does not allow it.
    let hidden = story.supervisor.spawn(serve.control_connect_timeout(Duration::from_millis(500))).unwrap();
    let why = story.find(|event| match event.kind {
        EventKind::ControlDisconnected(why) if event.worker == hidden.id() => Some(why),
        _ => None,
    });
    assert_eq!(why, DisconnectReason::OtherUser { uid: 65501 }, "it runs, or was rejected and has exited");
}

#[test]
fn p16_reports_worker_of_other_user_that_may_not_connect() {
    if !is_root() {
        return;
    }
    let mut story = Story::new();
    let spec = WorkerSpec::new("setpriv").args(SETPRIV).args(["sleep", "1000"]);
    let spec = spec.control(Pass::env("PIPEWRIGHT_CONTROL")).control_connect_timeout(Duration::from_millis(300));
    let worker = story.supervisor.spawn(spec).unwrap();
    let why = story.find(|event| match event.kind {
        EventKind::ControlDisconnected(why) => Some(why),
        _ => None,
    });
    assert_eq!(why, DisconnectReason::OtherUser { uid: 65501 });
    assert!(why.to_string().contains("user 65501"), "{why}");
    assert!(!matches!(worker.call::<_, u32>("echo", &[1], DEADLINE), Ok(_) | Err(CallError::TimedOut)));
    // A worker that fails when it is rejected, and exits.
    let spec = WorkerSpec::new("setpriv").args(SETPRIV).arg("false").control(Pass::env("PIPEWRIGHT_CONTROL"));
    let ends = story.supervisor.spawn(spec).unwrap();
    let why = story.find(|event| match event.kind {
        EventKind::ControlDisconnected(why) if event.worker == ends.id() => Some(why),
        _ => None,
    });
    assert_eq!(why, DisconnectReason::OtherUser { uid: 65501 });
}

/// Path of the control server in the environment of a worker.
#[track_caller]
fn control_path(story: &mut Story) -> PathBuf {
    let spec = WorkerSpec::new("printenv").arg("PIPEWRIGHT_CONTROL").stdout(pipewright::OutputMode::Lines);
    story.supervisor.spawn(spec.control(Pass::env("PIPEWRIGHT_CONTROL"))).unwrap();
    let address = story.find(|event| match event.kind {
        EventKind::Line { line, .. } => Some(line.text().into_owned()),
        _ => None,
    });
    address.rsplit_once('?').unwrap().0.into()
}

#[test]
fn p12_private_socket_directory_is_removed_with_supervisor() {
    const NAME: &str = "peers::p12_private_socket_directory_is_removed_with_supervisor";
    let directory = tempfile::tempdir().unwrap();
    let here = |spec: WorkerSpec| spec.env_remove("XDG_RUNTIME_DIR").env("TMPDIR", directory.path());
    if !alone(NAME, here) {
        return;
    }
    let mut story = Story::new();
    let path = control_path(&mut story);
    let private = path.parent().unwrap();
    assert_eq!(private.parent(), Some(env::temp_dir().as_path()));
    assert_eq!(fs::metadata(private).unwrap().permissions().mode() & 0o7777, 0o700);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    drop(story);
    assert!(!private.exists());
}

#[test]
fn p11_socket_address_is_short_for_any_runtime_directory() {
    const NAME: &str = "peers::p11_socket_address_is_short_for_any_runtime_directory";
    // In a child process whose `TMPDIR` cannot be used.
    let directory = tempfile::tempdir_in("/tmp").unwrap();
    // Short enough for a socket address, too long for the sockets of the supervisor.
    let runtime = directory.path().join("x".repeat(100 - 1 - directory.path().as_os_str().len()));
    fs::create_dir(&runtime).unwrap();
    fs::set_permissions(&runtime, fs::Permissions::from_mode(0o700)).unwrap();
    // The next one is no directory.
    let here = |spec: WorkerSpec| spec.env("XDG_RUNTIME_DIR", &runtime).env("TMPDIR", "/dev/null");
    if !alone(NAME, here) {
        return;
    }
    let path = control_path(&mut Story::new());
    assert!(path.as_os_str().len() <= 107, "{}", path.display());
    let worker = WorkerSpec::new(FIXTURE).arg("serve").control(Pass::arg("--control={}"));
    let story = Story::new();
    let worker = story.supervisor.spawn(worker).unwrap();
    assert_eq!(worker.call::<_, [u32; 1]>("echo", &[7], DEADLINE).unwrap(), [7]);
}

#[test]
fn p11_fork_dropping_calls_and_requests_ends_none() {
    const NAME: &str = "peers::p11_fork_dropping_calls_and_requests_ends_none";
    if !alone(NAME, |spec| spec) {
        return;
    }
    let mut story = Story::new();
    let spec = Way::Direct.plain("serve").args(["--threads", "4"]).control(Pass::arg("--control={}"));
    let worker = story.supervisor.spawn(spec).unwrap();
    let mut call = Some(worker.start_call("wait", &["line"]).unwrap());
    let asking = worker.start_call("ask back", &[7]).unwrap();
    let mut request = Some(story.find(|event| match event.kind {
        EventKind::Request(request) => Some(request),
        _ => None,
    }));
    let mut calls = Some(CallSet::new());
    calls.as_ref().unwrap().start(&worker, (), "wait", &["line"]).unwrap();
    let forked = kernel::fork(|| {
        drop((call.take(), request.take(), calls.take()));
        0
    });
    assert_eq!(kernel::wait(forked), 0);
    request.unwrap().reply(&8).unwrap();
    assert_eq!(asking.wait::<u32>(DEADLINE).unwrap(), 8);
    worker.call::<_, ()>("release", &["line"], DEADLINE).unwrap();
    assert_eq!(call.unwrap().wait::<String>(DEADLINE).unwrap(), "line");
    let finished = calls.unwrap().finished().recv_timeout(DEADLINE).unwrap();
    assert_eq!(finished.into_result::<String>().1.unwrap(), "line");
}
