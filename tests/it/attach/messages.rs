//! Messages of attached workers: notifications over control.

use super::{connected, spec, start, start_with};
use crate::support::{DEADLINE, Story};
use pipewright::{
    Attachment, CallError, EventKind, Framing, OutputMode, Pass, Readiness, SpawnError, SpecError, Supervisor,
    WorkerSpec,
};
use serde_json::{Value, json};
use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    time::Duration,
};

fn talking() -> WorkerSpec {
    spec().messages(Pass::env("PIPEWRIGHT_MESSAGES"))
}

/// Connects as a worker in another language would, and returns the answer to its hello.
#[track_caller]
fn connect(attachment: &Attachment) -> (UnixStream, Value) {
    let (path, key) = attachment.variable().1.to_str().unwrap().rsplit_once('?').unwrap();
    let mut socket = UnixStream::connect(path).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let hello = json!({"jsonrpc": "2.0", "id": 0, "method": "hello", "params": {"key": key, "version": 1}});
    writeln!(socket, "{hello}").unwrap();
    let mut answer = String::new();
    BufReader::new(&socket).read_line(&mut answer).unwrap();
    (socket, serde_json::from_str(&answer).unwrap())
}

#[test]
fn p01_messages_of_an_attached_worker_arrive_in_order() {
    let mut story = Story::new();
    let attachment = story.supervisor.attach(talking()).unwrap();
    let _process = start(&attachment, "serve");
    assert_eq!(attachment.worker().call::<_, u32>("pour", &[3], DEADLINE).unwrap(), 3);
    assert_eq!([story.json(), story.json(), story.json()], [json!([0]), json!([1]), json!([2])]);
    let status = story.supervisor.status().workers;
    assert!(status.first().unwrap().last_message.is_some(), "{status:?}");
}

/// More than the window, by a worker that buffers them and names a framing, which has no effect.
#[test]
fn p06_attached_worker_that_sends_more_than_its_window_waits() {
    const COUNT: u64 = 10_000;
    let mut story = Story::new();
    let spec = talking().framing(Framing::Nul).control_window(64 << 10);
    let attachment = story.supervisor.attach(spec).unwrap();
    let arguments = ["flood", "--count=10000", "--size=100", "--framing=nul"];
    let mut process = start_with(&attachment, &arguments);
    connected(&mut story);
    assert!(process.wait_timeout(Duration::from_millis(100)).unwrap().is_none(), "nothing is received: it waits");
    for n in 0..COUNT {
        assert_eq!(story.json()["n"], n);
    }
    assert_eq!(process.wait_timeout(DEADLINE).unwrap().expect("ends").code(), Some(0));
    story.end();
}

#[test]
fn attached_worker_becomes_ready_by_a_message() {
    let mut story = Story::new();
    let ready = Readiness::message(|message| message.json::<String>().is_ok_and(|text| text == "up")).timeout(DEADLINE);
    let attachment = story.supervisor.attach(talking().ready(ready)).unwrap();
    let mut process = start(&attachment, "echo");
    let mut stdin = process.take_stdin().unwrap();
    stdin.write_all(b"begin\n").unwrap();
    assert_eq!(story.json(), "begin");
    assert!(attachment.worker().wait_ready(Duration::ZERO).is_err(), "this is not the message");
    stdin.write_all(b"up\n").unwrap();
    attachment.worker().wait_ready(DEADLINE).unwrap();
    drop(stdin);
    process.wait_timeout(DEADLINE).unwrap().expect("ends");
}

#[test]
fn p15_attached_worker_learns_that_its_parent_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let report = directory.path().join("report");
    let story = Story::new();
    let attachment = story.supervisor.attach(talking()).unwrap();
    let argument = format!("--report={}", report.display());
    let mut process = start_with(&attachment, &["send-after-parent", &argument]);
    attachment.worker().wait_incarnation(1, DEADLINE).unwrap();
    drop(story);
    process.wait_timeout(DEADLINE).unwrap().expect("ends");
    assert_eq!(fs::read_to_string(&report).unwrap(), "the parent is gone, or no longer reads messages");
}

#[test]
fn p16_attached_worker_whose_spec_has_no_messages_cannot_send_any() {
    let story = Story::new();
    let attachment = story.supervisor.attach(spec()).unwrap();
    let _process = start(&attachment, "serve");
    match attachment.worker().call::<_, u32>("pour", &[1], DEADLINE).unwrap_err() {
        CallError::Rpc(error) => assert_eq!(error.message, "this worker was given no pipe for messages"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn p12_hello_is_answered_with_whether_messages_are_taken() {
    let mut story = Story::new();
    for (spec, messages) in [(spec(), json!(null)), (talking(), json!(true))] {
        let attachment = story.supervisor.attach(spec).unwrap();
        let (mut socket, answer) = connect(&attachment);
        assert_eq!((&answer["result"]["version"], &answer["result"]["messages"]), (&json!(1), &messages));
        for params in ["[ {\"a\" : 1} ]", "[1,2]", "{\"a\":1}"] {
            writeln!(socket, r#"{{"jsonrpc":"2.0","method":"$/message","params":{params}}}"#).unwrap();
        }
        let mut received = Vec::new();
        while received.len() < 3 {
            match story.next().kind {
                EventKind::Message(message) => received.push(format!("message {}", message.as_str().unwrap())),
                EventKind::Notification(note) => received.push(note.method().to_owned()),
                _ => {}
            }
        }
        let first = if messages == json!(true) { "message {\"a\" : 1}" } else { "$/message" };
        assert_eq!(received, [first, "$/message", "$/message"], "other parameters are those of a notification");
    }
}

#[test]
fn p16_messages_on_a_standard_stream_are_refused() {
    let supervisor = Supervisor::new().unwrap();
    for (refused, setting) in [
        (spec().messages_on_stdout(), "messages_on_stdout"),
        (spec().messages_on_stderr(), "messages_on_stderr"),
        (talking().output_pipe("out", Pass::arg("{}")), "output_pipe"),
        (talking().stdout(OutputMode::Lines).ready(Readiness::log_line("up")), "ready"),
    ] {
        match supervisor.attach(refused).unwrap_err() {
            SpawnError::Spec(SpecError::Conflict { settings, .. }) => assert_eq!(settings, ["attach", setting]),
            other => panic!("{setting}: {other:?}"),
        }
    }
}
