//! The reference server of the Model Context Protocol.

use super::{end_of_input, program};
use crate::support::{DEADLINE, Story, becomes_true, example};
use pipewright::{CallError, EventKind, OutputMode, StdioProtocol, Watchdog, Worker, WorkerSpec};
use serde_json::{Value, json};
use std::{fs, time::Duration};

fn server() -> Option<WorkerSpec> {
    Some(WorkerSpec::new(program("mcp-server-everything")?).arg("stdio").stderr(OutputMode::Lines))
}

fn started(spec: WorkerSpec) -> (Story, Worker) {
    let story = Story::new();
    let worker = story.supervisor.spawn(spec.control_on_stdio(StdioProtocol::mcp()).stop(end_of_input())).unwrap();
    worker.wait_ready(DEADLINE).unwrap();
    let server: Value = worker.handshake().unwrap().unwrap();
    assert_eq!(server["serverInfo"]["name"], "mcp-servers/everything");
    (story, worker)
}

fn tool(worker: &Worker, name: &str, arguments: &Value) -> Result<Value, CallError> {
    worker.call("tools/call", &json!({"name": name, "arguments": arguments}), DEADLINE)
}

#[test]
fn foreign_mcp_server_lists_and_calls_tools_and_stops_at_the_end_of_its_input() {
    let Some(spec) = server() else { return };
    let (mut story, worker) = started(spec.watchdog(Watchdog::ping(Duration::from_secs(5))));
    let tools: Value = worker.call("tools/list", &(), DEADLINE).unwrap();
    assert!(tools["tools"].as_array().unwrap().iter().any(|tool| tool["name"] == "echo"), "{tools}");
    let echoed = tool(&worker, "echo", &json!({"message": "a\nb"})).unwrap();
    assert_eq!(echoed["content"][0]["text"], "Echo: a\nb");
    let refused = worker.call::<_, Value>("no/such/method", &(), DEADLINE);
    assert!(matches!(&refused, Err(CallError::Rpc(error)) if error.code == -32601), "{refused:?}");
    worker.stop();
    let exit = story.exit();
    assert!(exit.success(), "{exit:?}");
    assert!(exit.stderr_text().to_string().contains("STDIO"), "its log: {exit:?}");
}

#[test]
fn foreign_mcp_server_reports_progress_and_is_told_of_cancellations() {
    let Some(_) = server() else { return };
    let directory = tempfile::tempdir().unwrap();
    let log = |name: &str| fs::read_to_string(directory.path().join(name)).unwrap_or_default();
    let script = r#"tee requests | "$0" stdio | tee answers"#;
    let spec = WorkerSpec::new("sh").args(["-c", script]).arg(program("mcp-server-everything").unwrap());
    let (mut story, worker) = started(spec.current_dir(directory.path()));
    let arguments = json!({"duration": 1, "steps": 4});
    let params = json!({
        "name": "trigger-long-running-operation", "arguments": arguments, "_meta": {"progressToken": "p"},
    });
    let call = worker.start_call("tools/call", &params).unwrap();
    let mut progress = |last: u64| {
        story.find(|event| match event.kind {
            EventKind::Notification(notification) if notification.method() == "notifications/progress" => {
                let params: Value = notification.params().unwrap();
                (params["progress"] == last).then_some(())
            }
            _ => None,
        });
    };
    progress(1);
    drop(call);
    // The server works on, and keeps the answer to itself.
    progress(4);
    assert_eq!(tool(&worker, "echo", &json!({"message": "next"})).unwrap()["content"][0]["text"], "Echo: next");
    let id = |name: &str, text: &str| -> Value {
        let lines = log(name);
        let line = lines.lines().find(|line| line.contains(text)).unwrap_or_else(|| panic!("no {text} in {lines}"));
        serde_json::from_str(line).unwrap()
    };
    let request = id("requests", "long-running");
    let cancelled = id("requests", "notifications/cancelled");
    assert_eq!(cancelled["params"]["requestId"], request["id"]);
    assert!(cancelled["params"]["reason"].is_string(), "{cancelled}");
    assert!(becomes_true(|| log("answers").contains("Echo: next")));
    assert!(!log("answers").lines().any(|line| {
        let answer: Value = serde_json::from_str(line).unwrap();
        answer["id"] == request["id"]
    }));
    worker.stop();
    assert!(story.exit().success(), "{:?}", story.told);
}

#[test]
fn foreign_mcp_server_that_is_killed_ends_its_calls() {
    let Some(spec) = server() else { return };
    let (mut story, worker) = started(spec);
    let arguments = json!({"duration": 3600, "steps": 1});
    let call = worker
        .start_call("tools/call", &json!({"name": "trigger-long-running-operation", "arguments": arguments}))
        .unwrap();
    worker.kill().unwrap();
    match call.wait::<Value>(DEADLINE) {
        Err(CallError::WorkerExited { exit: Some(exit), .. }) => assert_eq!(exit.signal(), Some(libc::SIGKILL)),
        other => panic!("{other:?}"),
    }
    story.exit();
}

#[test]
fn foreign_mcp_server_is_hosted_by_the_example() {
    let Some(server) = program("mcp-server-everything") else { return };
    let spec = WorkerSpec::new(example("mcp_host")).args(["echo", r#"{"message":"hello"}"#]).arg(server).arg("stdio");
    let mut story = Story::new();
    story.supervisor.spawn(spec.stdout(OutputMode::Lines).stderr(OutputMode::Lines)).unwrap();
    let exit = story.exit();
    assert!(exit.success(), "{:#?}", story.told);
    let printed = |text: &str| assert!(story.told.iter().any(|event| event.contains(text)), "{:#?}", story.told);
    printed(r#"tool "echo""#);
    printed("Echo: hello");
}
