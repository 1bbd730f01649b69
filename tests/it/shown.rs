//! `{:?}` of public types shows their identity, but no secrets and no internals.

use crate::support::{DEADLINE, FIXTURE, Story};
use pipewright::{
    CallSet, EventKind, GroupPolicy, OutputMode, Parent, Pass, StdinMode, Supervisor, WorkerSpec,
    pipe::{
        CancelToken, Timeout, anonymous,
        named::{self, ConnectOptions, Listener, ListenerOptions, PipeName},
    },
};
use std::fmt::Debug;

const SECRET: &str = "hunter2";
/// Internal types and fields of the library and of std.
const INTERNALS: [&str; 12] = [
    "Mutex", "poisoned", "Atomic", "Sender", "Receiver", "Mailbox", "Meter", "OwnedFd", "Shared", "(Weak)", "Condvar",
    "Credit",
];

struct Shown(Vec<String>);

impl Shown {
    fn of(&mut self, what: &str, value: &impl Debug) {
        let text = format!("{value:?}");
        let words = |name| text.match_indices(name).map(|(at, _)| text[..at].chars().next_back());
        let internals =
            INTERNALS.into_iter().find(|name| words(*name).any(|before| !before.is_some_and(char::is_alphanumeric)));
        if text.contains(SECRET) || text.len() > 600 || internals.is_some() {
            self.0.push(format!("{what} ({internals:?}): {text}"));
        }
    }
}

#[test]
fn p12_debug_shows_no_secrets_and_no_internals() {
    let mut shown = Shown(Vec::new());
    let mut story = Story::new();
    shown.of("Supervisor", &story.supervisor);
    shown.of("SupervisorBuilder", &Supervisor::builder());
    let spec = WorkerSpec::new(FIXTURE)
        .arg("serve")
        .arg("--inspect")
        .env("PASSWORD", SECRET)
        .messages(Pass::arg("--messages={}"))
        .control(Pass::env("PIPEWRIGHT_CONTROL"))
        .stdin(StdinMode::Pipe)
        .stderr(OutputMode::Lines);
    shown.of("WorkerSpec", &spec);
    let worker = story.supervisor.spawn(spec.clone()).unwrap();
    shown.of("Worker", &worker);
    shown.of("PendingCall", &worker.start_call("add", &[1, 2]).unwrap());
    let calls = CallSet::new();
    shown.of("CallCanceller", &calls.start(&worker, 7, "add", &[1, 2]).unwrap());
    shown.of("CallSet", &calls);
    shown.of("FinishedCall", &calls.finished().recv_timeout(DEADLINE).unwrap());
    shown.of("SupervisorStatus", &story.supervisor.status());
    let stopping = worker.stop();
    shown.of("StopHandle", &stopping);
    for event in story.rest() {
        // The content of a message is the worker's: this one sends its environment.
        if !matches!(event.kind, EventKind::Message(_)) {
            shown.of("Event", &event);
        }
    }
    let group = Supervisor::new().unwrap();
    shown.of("WorkerGroup", &group.group(GroupPolicy::default()));
    let process = WorkerSpec::new("cat")
        .env("PASSWORD", SECRET)
        .stdin(StdinMode::Pipe)
        .stdout(OutputMode::Lines)
        .spawn_unsupervised()
        .unwrap();
    shown.of("Process", &process);
    let (reader, end) = anonymous::from_child().unwrap();
    shown.of("PipeReader", &reader);
    shown.of("ChildEnd", &end);
    let writer = end.into_writer().unwrap();
    shown.of("PipeWriter", &writer);
    let (_reader, end) = anonymous::from_child().unwrap();
    let parent = Parent::from_handle(end.into_handle()).unwrap();
    shown.of("Parent", &parent);
    shown.of("BufferedSender", &parent.buffered(10));
    let place = tempfile::tempdir().unwrap();
    let name = PipeName::new(place.path().join("pipe")).unwrap();
    shown.of("ListenerOptions", &ListenerOptions::new());
    shown.of("ConnectOptions", &ConnectOptions::new());
    let listener = Listener::bind(&name).unwrap();
    shown.of("Listener", &listener);
    let stream = named::connect(&name, DEADLINE).unwrap();
    shown.of("Stream", &stream);
    shown.of("Peer", &stream.peer().unwrap());
    shown.of("Timeout", &Timeout::after(DEADLINE));
    shown.of("CancelToken", &CancelToken::new().unwrap());
    let (read, write) = stream.split();
    shown.of("ReadHalf", &read);
    shown.of("WriteHalf", &write);
    assert!(shown.0.is_empty(), "\n{}", shown.0.join("\n\n"));
}
