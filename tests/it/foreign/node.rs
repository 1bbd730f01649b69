//! Scripts of Node as `child_process.fork` starts them.

use super::program;
use crate::support::{DEADLINE, Story};
use pipewright::{
    CallError, Event, EventKind, Framing, OutputMode, Pass, Readiness, SpawnError, SpecError, StdioProtocol, Worker,
    WorkerSpec, events::DisconnectReason,
};
use serde_json::{Value, json};

/// A script that answers each message, unless it is a command.
const SCRIPT: &str = r#"
process.on("message", (message) => {
    if (message?.then === "exit") { process.send("x".repeat(message.bytes)); process.exit(7); }
    if (message?.then === "disconnect") { setInterval(() => {}, 1000); process.disconnect(); return; }
    if (message?.then === "flood") for (let i = 0; i < message.count; i++) process.send(i);
    process.send({ got: message });
});
process.on("disconnect", () => console.error("disconnected"));
process.send({ cmd: "NODE_secret" });
process.send({ ready: [process.env.NODE_CHANNEL_FD ?? null, process.env.NODE_CHANNEL_SERIALIZATION_MODE ?? null] });
"#;

fn script() -> Option<WorkerSpec> {
    Some(WorkerSpec::new(program("node")?).args(["-e", SCRIPT]).node_channel().stderr(OutputMode::Lines))
}

fn started() -> Option<(Story, Worker)> {
    let mut story = Story::new();
    let worker = story.supervisor.spawn(script()?).unwrap();
    assert_eq!(story.json(), json!({"ready": [null, null]}));
    Some((story, worker))
}

#[test]
fn foreign_node_script_receives_and_sends_messages() {
    let Some((mut story, worker)) = started() else { return };
    for message in [json!("text"), json!([1, null, "a\nb\u{2028}é"]), json!({"cmd": "mine"}), Value::Null, json!(5.5)]
    {
        worker.send(&message).unwrap();
        assert_eq!(story.json(), json!({"got": message}));
    }
    let long = json!("é".repeat(3 << 20));
    worker.send(&long).unwrap();
    assert!(story.json()["got"] == long);
    assert!(matches!(worker.send(&json!({"cmd": "NODE_x"})), Err(CallError::Encode(_))));
    worker.stop();
    story.find(|event| {
        matches!(&event.kind, EventKind::Line { line, .. } if line.text() == "disconnected").then_some(())
    });
    assert!(story.exit().success(), "{:?}", story.told);
}

#[test]
fn foreign_node_script_delivers_its_last_message_before_exited() {
    let Some((mut story, worker)) = started() else { return };
    // What an unprivileged socket takes; Node drops the rest at `process.exit`.
    let bytes = if crate::kernel::effective_uid() == 0 { 3_000_000 } else { 200_000 };
    worker.send(&json!({"then": "exit", "bytes": bytes})).unwrap();
    assert_eq!(story.json().as_str().map(str::len), Some(bytes));
    assert_eq!(story.exit().code(), Some(7));
    assert!(matches!(worker.send(&1), Err(CallError::WorkerExited { exit: Some(_), .. })));
}

#[test]
fn foreign_node_script_floods_in_order() {
    let Some((mut story, worker)) = started() else { return };
    worker.send(&json!({"then": "flood", "count": 50_000})).unwrap();
    for number in 0..50_000 {
        assert_eq!(story.message().json::<u32>().unwrap(), number);
    }
    assert!(story.json()["got"].is_object());
}

#[test]
fn foreign_node_script_that_is_killed_ends_as_any_worker() {
    let Some((mut story, worker)) = started() else { return };
    worker.send(&json!({"then": "flood", "count": 1_000_000})).unwrap();
    story.message();
    worker.kill().unwrap();
    assert_eq!(story.exit().signal(), Some(libc::SIGKILL));
    let refused = worker.send(&1);
    assert!(matches!(refused, Err(CallError::WorkerExited { .. })), "{refused:?}");
}

#[test]
fn foreign_node_script_that_disconnects_runs_on() {
    let Some((mut story, worker)) = started() else { return };
    worker.send(&json!({"then": "disconnect"})).unwrap();
    let reason = story.find(|event: Event| match event.kind {
        EventKind::ControlDisconnected(reason) => Some(reason),
        _ => None,
    });
    assert_eq!(reason, DisconnectReason::Closed);
    assert!(worker.send(&1).is_err());
    assert!(worker.wait_timeout(std::time::Duration::ZERO).is_none());
    worker.stop();
    assert_eq!(story.exit().signal(), Some(libc::SIGTERM));
}

#[test]
fn foreign_node_script_becomes_ready_by_a_message_and_has_no_calls() {
    let Some(spec) = script() else { return };
    let mut story = Story::new();
    let is_ready = |message: &pipewright::Message| message.as_str().is_ok_and(|text| text.contains("ready"));
    let worker = story.supervisor.spawn(spec.ready(Readiness::message(is_ready))).unwrap();
    story.find(|event| matches!(event.kind, EventKind::Ready { .. }).then_some(()));
    for refused in
        [worker.call::<_, ()>("m", &(), DEADLINE), worker.notify("m", &()), worker.start_call("m", &()).map(drop)]
    {
        assert!(matches!(refused, Err(CallError::Unsupported { operation: "call", .. })), "{refused:?}");
    }
}

#[test]
fn p16_settings_that_conflict_with_node_channel_are_refused() {
    let spec = || WorkerSpec::new("node").node_channel();
    let conflict = |spec: WorkerSpec| match spec.validate().unwrap_err() {
        SpecError::Conflict { settings, .. } => settings,
        error => panic!("{error:?}"),
    };
    assert_eq!(spec().messages(Pass::fd(3)).validate(), Err(SpecError::DuplicateMessageStream));
    assert_eq!(conflict(spec().control(Pass::arg("{}"))), ["node_channel", "control"]);
    assert_eq!(
        conflict(spec().control_on_stdio(StdioProtocol::new(Framing::Lines))),
        ["node_channel", "control_on_stdio"]
    );
    assert_eq!(conflict(spec().framing(Framing::Nul)), ["node_channel", "framing"]);
    let refused = spec().spawn_unsupervised().unwrap_err();
    assert!(matches!(refused, SpawnError::Spec(SpecError::ControlUnsupported)), "{refused:?}");
    let story = Story::new();
    let other = story.supervisor.spawn(WorkerSpec::new("true")).unwrap();
    assert!(matches!(other.send(&1), Err(CallError::Unsupported { operation: "send", .. })));
}
