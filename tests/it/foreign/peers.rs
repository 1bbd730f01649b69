//! Implementations of JSON-RPC as peers: `vscode-jsonrpc` of Node, `jsonrpcserver` of Python.

use super::{ROOT, end_of_input, program};
use crate::support::{DEADLINE, Story};
use pipewright::{CallError, EventKind, Framing, OutputMode, Restart, StdioProtocol, Worker, WorkerSpec};
use serde_json::{Value, json};
use std::{path::Path, time::Duration};

const VSCODE: &str = r#"
const rpc = require(process.argv[1]);
const connection = rpc.createMessageConnection(
    new rpc.StreamMessageReader(process.stdin), new rpc.StreamMessageWriter(process.stdout));
let cancelled = 0;
connection.onRequest("add", (...values) => values.slice(0, -1).reduce((sum, number) => sum + number));
connection.onRequest("fail", () => { throw new rpc.ResponseError(42, "as you wish", { why: [1] }); });
connection.onRequest("wait", (_, token) => new Promise((resolve) =>
    token.onCancellationRequested(() => { cancelled++; resolve(new rpc.ResponseError(-32800, "cancelled")); })));
connection.onRequest("cancelled", () => cancelled);
connection.onRequest("ask", (value) => connection.sendRequest("question", value));
connection.onNotification("tick", (value) => connection.sendNotification("tock", value));
connection.onClose(() => process.exit(0));
connection.listen();
"#;

fn vscode() -> Option<WorkerSpec> {
    let node = program("node")?;
    program("node-which")?;
    let library = Path::new(ROOT).join("target/foreign/node_modules/vscode-jsonrpc/lib/node/main.js");
    Some(peer(WorkerSpec::new(node).args(["-e", VSCODE]).arg(library), Framing::ContentLength))
}

fn peer(spec: WorkerSpec, framing: Framing) -> WorkerSpec {
    spec.control_on_stdio(StdioProtocol::new(framing)).stop(end_of_input()).stderr(OutputMode::Lines)
}

const JSONRPCSERVER: &str = r#"
import sys, time
from jsonrpcserver import Error, Success, dispatch, method
@method
def add(*numbers): return Success(sum(numbers))
@method
def named(first, second): return Success([second, first])
@method
def fail(): return Error(42, "as you wish", {"why": [1]})
@method
def sleep(seconds): time.sleep(seconds); return Success(None)
for line in sys.stdin:
    if answer := dispatch(line):
        print(answer, flush=True)
"#;

fn jsonrpcserver() -> Option<WorkerSpec> {
    program("pylsp")?;
    let python = Path::new(ROOT).join("target/foreign/python/bin/python");
    Some(peer(WorkerSpec::new(python).args(["-c", JSONRPCSERVER]), Framing::Lines))
}

fn started(spec: WorkerSpec) -> (Story, Worker) {
    let story = Story::new();
    let worker = story.supervisor.spawn(spec).unwrap();
    (story, worker)
}

/// Results, errors with data, unknown methods.
fn answers(worker: &Worker) {
    assert_eq!(worker.call::<_, i64>("add", &[1, 2, 4], DEADLINE).unwrap(), 7);
    match worker.call::<_, Value>("fail", &(), DEADLINE).unwrap_err() {
        CallError::Rpc(error) => {
            assert_eq!((error.code, &*error.message), (42, "as you wish"));
            assert_eq!(serde_json::from_str::<Value>(error.data.unwrap().get()).unwrap(), json!({"why": [1]}));
        }
        error => panic!("{error:?}"),
    }
    let unknown = worker.call::<_, Value>("no such method", &(), DEADLINE);
    assert!(matches!(&unknown, Err(CallError::Rpc(error)) if error.code == -32601), "{unknown:?}");
    assert!(matches!(worker.call::<_, Value>("add", &5, DEADLINE), Err(CallError::Encode(_))));
    let open: Vec<_> = (0..200_i64).map(|n| worker.start_call("add", &[n, n]).unwrap()).collect();
    for (n, call) in (0..).zip(open) {
        assert_eq!(call.wait::<i64>(DEADLINE).unwrap(), 2 * n);
    }
}

fn killed_ends_its_calls((mut story, worker): (Story, Worker), method: &str, params: &Value) {
    // A call that was not sent yet would wait for the next incarnation.
    assert_eq!(worker.call::<_, i64>("add", &[1], DEADLINE).unwrap(), 1);
    let call = worker.start_call(method, params).unwrap();
    worker.kill().unwrap();
    match call.wait::<Value>(DEADLINE) {
        Err(CallError::WorkerExited { exit: Some(exit), .. }) => assert_eq!(exit.signal(), Some(libc::SIGKILL)),
        other => panic!("{other:?}"),
    }
    story.exit();
    // The next incarnation answers.
    assert!(worker.wait_incarnation(2, DEADLINE).is_ok());
    assert_eq!(worker.call::<_, i64>("add", &[1, 2], DEADLINE).unwrap(), 3);
}

#[test]
fn foreign_vscode_jsonrpc_is_called_and_calls() {
    let Some(spec) = vscode() else { return };
    let (mut story, worker) = started(spec);
    answers(&worker);
    worker.notify("tick", &json!({"n": 1})).unwrap();
    let tock = story.find(|event| match event.kind {
        EventKind::Notification(notification) => Some(notification),
        _ => None,
    });
    assert_eq!((tock.method(), tock.params::<Value>().unwrap()), ("tock", json!({"n": 1})));
    let asking = worker.start_call("ask", &json!({"n": 2})).unwrap();
    let question = story.find(|event| match event.kind {
        EventKind::Request(request) => Some(request),
        _ => None,
    });
    assert_eq!((question.method(), question.params::<Value>().unwrap()), ("question", json!({"n": 2})));
    question.reply(&"answer").unwrap();
    assert_eq!(asking.wait::<String>(DEADLINE).unwrap(), "answer");
    let timed_out = worker.call::<_, Value>("wait", &json!({}), Duration::from_millis(50));
    assert!(matches!(timed_out, Err(CallError::TimedOut)), "{timed_out:?}");
    assert_eq!(worker.call::<_, u32>("cancelled", &(), DEADLINE).unwrap(), 1);
    worker.stop();
    assert!(story.exit().success(), "{:?}", story.told);
}

#[test]
fn foreign_vscode_jsonrpc_that_is_killed_ends_its_calls() {
    let Some(spec) = vscode() else { return };
    killed_ends_its_calls(started(spec.restart(Restart::Always)), "wait", &json!({}));
}

#[test]
fn foreign_jsonrpcserver_is_called() {
    let Some(spec) = jsonrpcserver() else { return };
    let (mut story, worker) = started(spec);
    answers(&worker);
    let named: Value = worker.call("named", &json!({"first": 1, "second": "é"}), DEADLINE).unwrap();
    assert_eq!(named, json!(["é", 1]));
    let invalid = worker.call::<_, Value>("named", &[1], DEADLINE);
    assert!(matches!(&invalid, Err(CallError::Rpc(error)) if error.code == -32602), "{invalid:?}");
    worker.notify("add", &[1]).unwrap();
    worker.stop();
    assert!(story.exit().success(), "{:?}", story.told);
}

#[test]
fn foreign_jsonrpcserver_that_is_killed_ends_its_calls() {
    let Some(spec) = jsonrpcserver() else { return };
    killed_ends_its_calls(started(spec.restart(Restart::Always)), "sleep", &json!([3600]));
}
