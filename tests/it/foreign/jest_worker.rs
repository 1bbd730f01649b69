//! Functions of modules of Node, which the `processChild.js` of jest-worker calls.

use super::{ROOT, program};
use crate::support::{DEADLINE, becomes_true};
use pipewright::{
    OutputMode, Supervisor, WorkerSpec,
    pool::{Dialect, Pool, PoolBuilder, PoolEvent, Task, TaskError, TaskErrorKind},
};
use serde_json::{Value, json};
use std::{fs, path::Path, sync::mpsc, time::Duration};
use tempfile::TempDir;

const MODULE: &str = r#"
const fs = require("fs");
exports.add = (...numbers) => numbers.reduce((sum, number) => sum + number, 0);
exports.pid = () => process.pid;
exports.later = (value) => new Promise((resolve) => setTimeout(() => resolve(value), 20));
exports.fail = (text) => { throw Object.assign(new TypeError(text), { code: 42 }); };
exports.nothing = () => {};
exports.hang = () => { console.error("I hang"); while (true); };
exports.twice = () => { process.send([0, "first"]); return "second"; };
exports.garbage = () => { process.send({ not: "an answer" }); return 1; };
exports.exhaust = () => { const all = []; while (true) all.push(new Array(100000).fill(all.length)); };
exports.report = () => { process.send([3, { done: 1 }]); return new Promise(() => {}); };
exports.setup = () => fs.appendFileSync(__dirname + "/log", "setup\n");
exports.teardown = () => fs.appendFileSync(__dirname + "/log", "teardown\n");
exports.__esModule = true;
exports.default = exports.add;
"#;

type Request = (&'static str, Value);

/// A pool of workers with the functions above.
struct Farm {
    supervisor: Supervisor,
    directory: TempDir,
}

impl Farm {
    fn new() -> Option<Self> {
        library()?;
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("module.js"), MODULE).unwrap();
        Some(Self { supervisor: Supervisor::new().unwrap(), directory })
    }

    fn pool(&self) -> PoolBuilder<Request, Value> {
        let spec = spec(&["--max-old-space-size=64"]).unwrap();
        Pool::builder(&self.supervisor, spec).dialect(Dialect::jest_worker(self.directory.path().join("module.js")))
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

fn library() -> Option<String> {
    program("node")?;
    let installed = Path::new(ROOT).join("target/foreign/node_modules/jest-worker/build/processChild.js");
    if !installed.is_file() {
        program("jest-worker/build/processChild.js")?;
    }
    Some(installed.display().to_string())
}

fn spec(options: &[&str]) -> Option<WorkerSpec> {
    let node = program("node")?;
    Some(WorkerSpec::new(node).args(options).arg(library()?).stderr(OutputMode::Lines).stderr_tail(16 << 10))
}

#[track_caller]
fn result(task: Task<Value>) -> Result<Value, TaskError> {
    task.wait_timeout(DEADLINE).unwrap_or_else(|task| panic!("{task:?} has not ended"))
}

#[test]
fn foreign_jest_worker_runs_functions_of_an_unmodified_module() {
    let Some(farm) = Farm::new() else { return };
    let pool = farm.pool().workers(2).build().unwrap();
    let requests: Vec<Request> = (0..500).map(|n| (["add", "default", "later"][n % 3], json!([n, 0]))).collect();
    for (n, sum) in pool.map(&requests).enumerate() {
        assert_eq!(sum.unwrap(), json!(n));
    }
    assert_eq!(result(pool.submit(("nothing", json!([]))).unwrap()).unwrap(), Value::Null);
    let long = "é\n".repeat(1 << 20);
    assert_eq!(result(pool.submit(("later", json!([long]))).unwrap()).unwrap(), json!(long));
    let report = pool.shutdown(DEADLINE);
    assert_eq!((report.aborted, report.workers_left), (0, 0));
    let mut log: Vec<_> = farm.log().lines().map(str::to_owned).collect();
    log.sort_unstable();
    assert_eq!(log, ["setup", "setup", "teardown", "teardown"]);
}

#[test]
fn foreign_jest_worker_errors_keep_their_name_message_and_stack() {
    let Some(farm) = Farm::new() else { return };
    let pool = farm.pool().build().unwrap();
    let error = result(pool.submit(("fail", json!(["as you wish"]))).unwrap()).unwrap_err();
    assert!(error.to_string().ends_with("TypeError: as you wish"), "{error}");
    let thrown = error.foreign().unwrap();
    assert_eq!((&*thrown.name, &*thrown.message), ("TypeError", "as you wish"));
    assert!(thrown.stack.unwrap().contains("module.js:"));
    assert_eq!(thrown.properties, json!({"code": 42}));
    let unknown = result(pool.submit(("unknown", json!([]))).unwrap()).unwrap_err();
    assert_eq!(unknown.foreign().unwrap().name, "TypeError", "{unknown}");
    let wrong = result(pool.submit(("add", json!(5))).unwrap()).unwrap_err();
    assert!(wrong.to_string().contains("the arguments of a function are an array"), "{wrong}");
    assert_eq!(result(pool.submit(("add", json!([1, 2]))).unwrap()).unwrap(), 3);
    assert_eq!(pool.status().exits, 0);
}

#[test]
fn foreign_jest_worker_killed_in_a_task_is_replaced() {
    let Some(farm) = Farm::new() else { return };
    let pool = farm.pool().retries(1).build().unwrap();
    let pid = result(pool.submit(("pid", json!([]))).unwrap()).unwrap().as_i64().unwrap();
    let task = pool.task(("report", json!([]))).retries(0).submit().unwrap();
    assert!(becomes_true(|| task.progress::<Value>().is_ok_and(|value| value == Some(json!({"done": 1})))));
    let retried = pool.submit(("pid", json!([]))).unwrap();
    assert!(std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
    let error = result(task).unwrap_err();
    assert!(matches!(&error.kind, TaskErrorKind::WorkerDied(exit) if exit.signal() == Some(9)), "{error:?}");
    assert_ne!(result(retried).unwrap(), json!(pid));
}

#[test]
fn foreign_jest_worker_that_hangs_is_killed_at_the_timeout() {
    let Some(farm) = Farm::new() else { return };
    let pool = farm.pool().cancel_grace(Duration::from_millis(100)).build().unwrap();
    let task = pool.task(("hang", json!([]))).timeout(Duration::from_millis(200)).submit().unwrap();
    let error = result(task).unwrap_err();
    assert!(matches!(error.kind, TaskErrorKind::TimedOut { .. }), "{error:?}");
    assert_eq!(result(pool.submit(("add", json!([1]))).unwrap()).unwrap(), 1);
}

#[test]
fn foreign_jest_worker_out_of_memory_is_named() {
    let Some(farm) = Farm::new() else { return };
    let pool = farm.pool().build().unwrap();
    let error = result(pool.submit(("exhaust", json!([]))).unwrap()).unwrap_err();
    assert!(matches!(&error.kind, TaskErrorKind::WorkerDied(exit) if exit.signal() == Some(6)), "{error:?}");
    assert!(error.to_string().contains("heap out of memory"), "{error}");
    assert_eq!(result(pool.submit(("add", json!([1]))).unwrap()).unwrap(), 1);
}

#[test]
fn foreign_jest_worker_that_answers_twice_or_sends_garbage_is_replaced() {
    let Some(farm) = Farm::new() else { return };
    let (sender, reports) = mpsc::channel();
    let on_event = move |event: &PoolEvent| {
        if let PoolEvent::ProtocolViolated { reason, .. } = event {
            sender.send(reason.to_string()).unwrap();
        }
    };
    let pool = farm.pool().on_event(on_event).build().unwrap();
    let first = result(pool.submit(("twice", json!([]))).unwrap()).unwrap();
    assert_eq!(first, "first");
    let reason = reports.recv_timeout(DEADLINE).unwrap();
    assert_eq!(reason, "an answer, although the worker has no task: `[0,\"second\"]`");
    let error = result(pool.submit(("garbage", json!([]))).unwrap()).unwrap_err();
    assert!(matches!(&error.kind, TaskErrorKind::Protocol { .. }), "{error:?}");
    assert!(error.to_string().contains("its worker was killed: no message of jest-worker"), "{error}");
    assert!(error.to_string().contains("{\"not\":\"an answer\"}"), "{error}");
    assert_eq!(result(pool.submit(("add", json!([1]))).unwrap()).unwrap(), 1);
    assert!(becomes_true(|| pool.status().exits == 2), "{:?}", pool.status());
}

#[test]
fn foreign_jest_worker_without_its_module_does_not_start() {
    let Some(spec) = spec(&[]) else { return };
    let directory = tempfile::tempdir().unwrap();
    let supervisor = Supervisor::new().unwrap();
    let pool = |module: &str| {
        let dialect = Dialect::jest_worker(directory.path().join(module));
        Pool::<Request, Value>::builder(&supervisor, spec.clone()).dialect(dialect)
    };
    let failed = |module: &str| result(pool(module).build().unwrap().submit(("add", json!([]))).unwrap()).unwrap_err();
    let missing = failed("missing.js");
    assert!(matches!(&missing.kind, TaskErrorKind::NoWorkers(_)), "{missing:?}");
    fs::write(directory.path().join("bad.js"), "exports.setup = () => { throw new RangeError('not today'); };")
        .unwrap();
    let bad = failed("bad.js");
    assert!(bad.to_string().contains("the worker is not set up: remote error -32001: RangeError: not today"), "{bad}");
    let refused = pool("bad.js").in_flight(2).build().unwrap_err();
    assert_eq!(refused.to_string(), "jest-worker has at most 1 tasks in flight, not 2");
}
