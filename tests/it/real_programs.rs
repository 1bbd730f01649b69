//! Unmodified programs as workers: each takes an fd number on its command line or in its environment.
//!
//! Tests of programs that may be missing are ignored by default; continuous integration installs the programs and runs them.

use crate::support::{DEADLINE, Story, Way, both_ways, read_to_end};
use pipewright::{
    Backoff, EventKind, OutputMode, Pass, Readiness, Restart, RestartIntensity, RestartPolicy, StdinMode, StopPolicy,
    StopStep, WorkerSpec,
    events::{AfterExit, GiveUpReason},
};
use serde_json::Value;
use std::{fs, io::Write};

/// Runs a worker and returns its messages as text and its exit.
fn run(spec: WorkerSpec) -> (Vec<String>, std::sync::Arc<pipewright::Exit>) {
    let mut story = Story::new();
    story.supervisor.spawn(spec.stderr(OutputMode::Lines)).unwrap();
    let (mut messages, mut ended) = (Vec::new(), None);
    for event in story.rest() {
        match event.kind {
            EventKind::Message(message) => messages.push(message.as_str().unwrap().to_owned()),
            EventKind::Exited { exit, .. } => ended = Some(exit),
            _ => {}
        }
    }
    (messages, ended.unwrap())
}

both_ways! {
    #[ignore = "needs gpg"]
    fn gpg_reports_status_over_message_pipe(way: Way) {
        let home = tempfile::tempdir().unwrap();
        let clear = home.path().join("clear");
        fs::write(&clear, "attack at dawn").unwrap();
        let gpg = || way.program("gpg").arg("--homedir").arg(home.path()).args(["--batch", "--no-autostart"]);
        let spec = gpg()
            .args(["--pinentry-mode", "loopback", "--status-fd"])
            .messages(Pass::arg("{}"))
            .arg("--passphrase-fd")
            .input_pipe("passphrase", Pass::arg("{}"))
            .args(["--symmetric", "--output"])
            .arg(home.path().join("secret"))
            .arg(&clear);
        let mut story = Story::new();
        let worker = story.supervisor.spawn(spec.stdout(OutputMode::Null).stderr(OutputMode::Lines)).unwrap();
        worker.take_writer("passphrase").unwrap().write_all(b"correct horse\n").unwrap();
        let first = story.message();
        assert!(first.as_str().unwrap().starts_with("[GNUPG:] "), "{first:?}");
        // Without an agent, gpg fails and reports that over the same pipe.
        drop(worker.wait_timeout(DEADLINE).expect("its end"));
        let events = story.rest();
        assert!(events.iter().any(|event| matches!(event.kind, EventKind::Exited { .. })), "{events:?}");
        let spec = gpg().args(["--status-fd"]).messages(Pass::arg("{}")).args(["--list-packets"]).arg(&clear);
        let (messages, exit) = run(spec.stdout(OutputMode::Null));
        assert!(messages.iter().any(|line| line.starts_with("[GNUPG:] NODATA")), "{messages:?}, {exit}");
    }

    #[ignore = "needs bubblewrap, and the right to make namespaces"]
    fn bwrap_reports_child_and_exit_as_json(way: Way) {
        let spec = way
            .program("bwrap")
            .args(["--ro-bind", "/", "/", "--json-status-fd"])
            .messages(Pass::arg("{}"))
            .args(["sh", "-c", "exit 7"])
            .validate_json();
        let (messages, exit) = run(spec);
        assert_eq!(exit.code(), Some(7), "{}", exit.stderr_text());
        let values: Vec<Value> = messages.iter().map(|text| serde_json::from_str(text).unwrap()).collect();
        assert!(values[0]["child-pid"].is_u64(), "{messages:?}");
        assert_eq!(values.last().unwrap()["exit-code"], 7, "{messages:?}");
    }

    #[ignore = "needs dpkg and dpkg-deb"]
    fn dpkg_reports_status_over_message_pipe(way: Way) {
        let scratch = tempfile::tempdir().unwrap();
        let (tree, root) = (scratch.path().join("tree"), scratch.path().join("root"));
        fs::create_dir_all(tree.join("DEBIAN")).unwrap();
        for directory in ["info", "updates", "triggers"] {
            fs::create_dir_all(root.join("var/lib/dpkg").join(directory)).unwrap();
        }
        for file in ["status", "available"] {
            fs::write(root.join("var/lib/dpkg").join(file), "").unwrap();
        }
        let control = "Package: nothing\nVersion: 1\nArchitecture: all\nMaintainer: none <n@example.org>\nDescription: -\n";
        fs::write(tree.join("DEBIAN/control"), control).unwrap();
        let package = scratch.path().join("nothing.deb");
        let built = WorkerSpec::new("dpkg-deb").args(["--root-owner-group", "--build"]).arg(&tree).arg(&package);
        assert!(built.stdout(OutputMode::Null).spawn_unsupervised().unwrap().wait().unwrap().success());
        let root = format!("--root={}", root.display());
        let spec = way
            .program("dpkg")
            .args([root.as_str(), "--force-not-root", "--force-bad-path", "--log=/dev/null", "--status-fd"])
            .messages(Pass::arg("{}"))
            .arg("--install")
            .arg(&package);
        let (messages, exit) = run(spec.stdout(OutputMode::Null));
        assert!(exit.success(), "{exit}: {}", exit.stderr_text());
        assert!(messages.contains(&"status: nothing: installed".to_owned()), "{messages:?}");
    }

    #[ignore = "needs valgrind"]
    fn valgrind_keeps_its_log_out_of_stderr(way: Way) {
        let spec = way.program("valgrind").messages(Pass::arg("--log-fd={}")).arg("/bin/true");
        let (messages, exit) = run(spec);
        assert!(exit.success(), "{exit}: {}", exit.stderr_text());
        assert!(messages.iter().any(|line| line.contains("ERROR SUMMARY: 0 errors")), "{messages:?}");
        assert_eq!(exit.stderr_text(), "");
    }

    #[ignore = "needs openssl"]
    fn openssl_reads_password_from_pipe(way: Way) {
        let seal = |clear: &[u8], password: &[u8], mode: &[&str]| {
            let spec = way
                .program("openssl")
                .args(["enc", "-aes-256-cbc", "-pbkdf2"])
                .args(mode)
                .arg("-pass")
                .input_pipe("password", Pass::arg("fd:{}"))
                .stdin(StdinMode::Pipe)
                .stdout(OutputMode::Lines)
                .stderr(OutputMode::Null);
            let mut process = spec.spawn_unsupervised().unwrap();
            process.take_writer("password").unwrap().write_all(password).unwrap();
            process.take_stdin().unwrap().write_all(clear).unwrap();
            let sealed = read_to_end(&process.take_stdout().unwrap());
            (sealed, process.wait_timeout(DEADLINE).unwrap().unwrap().success())
        };
        let (sealed, _) = seal(b"attack at dawn", b"correct horse\n", &["-e"]);
        assert_eq!(seal(&sealed, b"correct horse\n", &["-d"]), (b"attack at dawn".to_vec(), true));
        // One in 256 wrong passwords gives valid padding and a successful exit, but never the text.
        assert_ne!(seal(&sealed, b"wrong horse\n", &["-d"]).0, b"attack at dawn");
    }
}

/// git takes a single digit. Direct starts only: with a user's own `Command`, that fd number would have to be free in the parent.
#[test]
#[ignore = "needs git"]
fn git_trace2_events_are_json_messages() {
    let spec = WorkerSpec::new("git").arg("version").messages(Pass::env("GIT_TRACE2_EVENT").at_fd(9)).validate_json();
    let (messages, exit) = run(spec.stdout(OutputMode::Null));
    assert!(exit.success());
    let values: Vec<Value> = messages.iter().map(|text| serde_json::from_str(text).unwrap()).collect();
    assert_eq!(values[0]["event"], "version", "{messages:?}");
    assert!(values.iter().any(|event| event["event"] == "exit" && event["code"] == 0), "{messages:?}");
}

#[test]
#[ignore = "needs redis-server"]
fn redis_becomes_ready_by_sd_notify() {
    let directory = tempfile::tempdir().unwrap();
    let mut story = Story::new();
    let spec = WorkerSpec::new("redis-server")
        .args(["--supervised", "systemd", "--port", "0", "--save", "", "--unixsocket"])
        .arg(directory.path().join("redis.sock"))
        .current_dir(directory.path())
        .stdout(OutputMode::Lines)
        .ready(Readiness::sd_notify());
    let worker = story.supervisor.spawn(spec).unwrap();
    assert!(worker.wait_ready(DEADLINE).is_ok(), "{:?}", story.rest());
    story.find(|event| matches!(event.kind, EventKind::StatusText(_)).then_some(()));
    worker.stop();
    assert!(worker.wait_timeout(DEADLINE).expect("its end").success());
}

#[test]
#[ignore = "needs python3"]
fn server_with_port_in_use_gives_up_with_stderr() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let mut story = Story::new();
    let policy = RestartPolicy::from(Restart::OnFailure)
        .backoff(Backoff::constant(std::time::Duration::from_millis(1)))
        .intensity(RestartIntensity::new(1, DEADLINE));
    let spec = WorkerSpec::new("python3").args(["-m", "http.server", "--bind", "127.0.0.1", &port]);
    let spec = spec.stdout(OutputMode::Lines).stderr(OutputMode::Lines).restart(policy);
    let worker = story.supervisor.spawn(spec.ready(Readiness::log_line("Serving HTTP"))).unwrap();
    assert!(!story.end().1.is_final());
    assert_eq!(story.end().1, AfterExit::GaveUp(GiveUpReason::IntensityExceeded));
    let exit = worker.wait_timeout(DEADLINE).expect("its end");
    assert!(exit.stderr_text().contains("Address already in use"), "{exit}: {}", exit.stderr_text());
    assert_eq!(worker.incarnation(), 2);
}

#[test]
fn stop_kills_background_children_of_script() {
    let mut story = Story::new();
    let script = "trap '' TERM; for n in 1 2 3; do (trap '' TERM; sh -c 'echo $$; exec sleep 1000') & done; wait";
    let stop = StopPolicy::kill().step([StopStep::SignalGroup(libc::SIGTERM)], std::time::Duration::from_millis(50));
    let spec = WorkerSpec::new("sh").args(["-c", script]).stdout(OutputMode::Lines).stop(stop);
    let worker = story.supervisor.spawn(spec).unwrap();
    let children: Vec<u32> = (0..3)
        .map(|_| {
            story.find(|event| match event.kind {
                EventKind::Line { line, .. } => Some(line.text().parse().unwrap()),
                _ => None,
            })
        })
        .collect();
    worker.stop();
    assert_eq!(worker.wait_timeout(DEADLINE).expect("its end").signal(), Some(libc::SIGKILL));
    assert!(children.iter().all(|child| !crate::support::is_alive(*child)));
}
