//! Servers of JSON-RPC, Bazel workers and modules of Python as the workers of pools.

use super::{end_of_input, program};
use crate::support::{DEADLINE, becomes_true};
use pipewright::{
    OutputMode, RpcError, StdioProtocol, Supervisor, WorkerSpec,
    pool::{BazelWorker, Dialect, Pool, PoolBuilder, PoolEvent, StartFailure, Task, TaskError, TaskErrorKind},
};
use serde_json::{Value, json};
use std::{fs, path::Path, sync::mpsc, time::Duration};

#[track_caller]
fn result<R: serde::de::DeserializeOwned>(task: Task<R>) -> Result<R, TaskError> {
    task.wait_timeout(DEADLINE).unwrap_or_else(|task| panic!("{task:?} has not ended"))
}

/// Kills the only worker of a pool while it has a task, and returns the error of that task.
fn killed_in_a_task<Q, R>(supervisor: &Supervisor, pool: &Pool<Q, R>, task: Task<R>) -> TaskError
where
    R: serde::de::DeserializeOwned,
{
    assert!(becomes_true(|| pool.status().running == 1), "{:?}", pool.status());
    let workers = supervisor.status().workers;
    let pid = workers.first().and_then(|worker| worker.pid).unwrap();
    assert!(std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
    let error = result(task).err().unwrap();
    assert!(matches!(&error.kind, TaskErrorKind::WorkerDied(exit) if exit.signal() == Some(9)), "{error:?}");
    error
}

type Tool = (&'static str, Value);

fn mcp(supervisor: &Supervisor) -> Option<PoolBuilder<Tool, Value>> {
    let spec = WorkerSpec::new(program("mcp-server-everything")?).arg("stdio").stop(end_of_input());
    Some(Pool::builder(supervisor, spec.stderr(OutputMode::Lines)).dialect(Dialect::mcp(StdioProtocol::mcp())))
}

#[test]
fn foreign_mcp_pool_calls_tools_and_reports_their_progress() {
    let supervisor = Supervisor::new().unwrap();
    let Some(builder) = mcp(&supervisor) else { return };
    // The servers send notifications of their own.
    let _serving = supervisor.serve(1, |_, _| Ok::<_, RpcError>(())).unwrap();
    let pool = builder.workers(2).in_flight(4).build().unwrap();
    let steps = json!({"duration": 1, "steps": 3});
    let long = pool.submit(("trigger-long-running-operation", steps)).unwrap();
    let echoes: Vec<Tool> = (0..60).map(|n| ("echo", json!({"message": format!("{n}")}))).collect();
    for (n, echo) in pool.map(&echoes).enumerate() {
        assert_eq!(echo.unwrap()["content"][0]["text"], format!("Echo: {n}"));
    }
    assert!(becomes_true(|| long.progress::<Value>().is_ok_and(|value| value.is_some_and(|it| it["total"] == 3))));
    result(long).unwrap();
    let failed = result(pool.submit(("echo", json!({}))).unwrap()).unwrap_err();
    assert!(matches!(&failed.kind, TaskErrorKind::Failed(error) if error.message.contains("message")), "{failed:?}");
    let report = pool.shutdown(DEADLINE);
    assert_eq!((report.aborted, report.workers_left), (0, 0));
}

#[test]
fn foreign_mcp_pool_replaces_a_server_that_is_killed_in_a_task() {
    let supervisor = Supervisor::new().unwrap();
    let Some(builder) = mcp(&supervisor) else { return };
    let _serving = supervisor.serve(1, |_, _| Ok::<_, RpcError>(())).unwrap();
    let pool = builder.build().unwrap();
    let task = pool.submit(("trigger-long-running-operation", json!({"duration": 3600, "steps": 1}))).unwrap();
    killed_in_a_task(&supervisor, &pool, task);
    let echo = result(pool.submit(("echo", json!({"message": "next"}))).unwrap()).unwrap();
    assert_eq!(echo["content"][0]["text"], "Echo: next");
}

fn clangd(supervisor: &Supervisor, directory: &Path) -> Option<PoolBuilder<Value, Value>> {
    let root = format!("file://{}", directory.display());
    let symbols = json!({"documentSymbol": {"hierarchicalDocumentSymbolSupport": true}});
    let params = json!({
        "processId": std::process::id(), "rootUri": root, "capabilities": {"textDocument": symbols},
    });
    let spec = WorkerSpec::new(program("clangd")?).current_dir(directory).stderr(OutputMode::Lines);
    let dialect = Dialect::json_rpc(StdioProtocol::lsp().initialize(&params));
    Some(Pool::builder(supervisor, spec).dialect(dialect))
}

/// Opens a document, asks for its symbols, and closes it.
fn symbols(name: &str, text: &str) -> Value {
    let uri = format!("file:///{name}");
    let document = json!({"uri": uri, "languageId": "c", "version": 1, "text": text});
    json!({
        "before": [["textDocument/didOpen", {"textDocument": document}]],
        "method": "textDocument/documentSymbol",
        "params": {"textDocument": {"uri": uri}},
        "after": [["textDocument/didClose", {"textDocument": {"uri": uri}}]],
    })
}

#[test]
fn foreign_clangd_pool_lists_the_symbols_of_many_files() {
    let (supervisor, directory) = (Supervisor::new().unwrap(), tempfile::tempdir().unwrap());
    let Some(builder) = clangd(&supervisor, directory.path()) else { return };
    let _serving = supervisor.serve(1, |_, _| Ok::<_, RpcError>(())).unwrap();
    let pool = builder.workers(2).in_flight(2).build().unwrap();
    let tasks: Vec<_> =
        (0..20).map(|n| symbols(&format!("f{n}.c"), &format!("int first{n};\nint second(void);\n"))).collect();
    for (n, found) in pool.map(&tasks).enumerate() {
        let found = found.unwrap();
        let names: Vec<_> = found.as_array().unwrap().iter().map(|symbol| symbol["name"].clone()).collect();
        assert_eq!(names, [json!(format!("first{n}")), json!("second")]);
    }
    let unknown = result(pool.submit(json!(["no/such/method", {}])).unwrap()).unwrap_err();
    assert!(matches!(&unknown.kind, TaskErrorKind::Failed(error) if error.code == -32601), "{unknown:?}");
    let wrong = result(pool.submit(json!(["shutdown", 5])).unwrap()).unwrap_err();
    assert!(wrong.to_string().contains("the parameters of a method are an array or an object"), "{wrong}");
    let report = pool.shutdown(DEADLINE);
    assert_eq!((report.aborted, report.workers_left), (0, 0));
}

#[test]
fn foreign_clangd_pool_replaces_a_server_that_is_killed_in_a_task() {
    let (supervisor, directory) = (Supervisor::new().unwrap(), tempfile::tempdir().unwrap());
    let Some(builder) = clangd(&supervisor, directory.path()) else { return };
    let _serving = supervisor.serve(1, |_, _| Ok::<_, RpcError>(())).unwrap();
    let pool = builder.build().unwrap();
    assert!(becomes_true(|| pool.status().ready == 1));
    let pid = supervisor.status().workers[0].pid.unwrap();
    // It does not answer before it is killed.
    assert!(std::process::Command::new("kill").args(["-STOP", &pid.to_string()]).status().unwrap().success());
    let task = pool.submit(symbols("a.c", "int a;\n")).unwrap();
    killed_in_a_task(&supervisor, &pool, task);
    assert_eq!(result(pool.submit(symbols("a.c", "int a;\n")).unwrap()).unwrap()[0]["name"], "a");
}

/// A worker of the JSON kind by the documentation of Bazel: the package `@bazel/worker` speaks protobuf only. It compiles files of Python.
const BAZEL_WORKER: &str = r#"
import json, os, sys, threading
assert sys.argv[-1] == "--persistent_worker"
lock, waiting = threading.Lock(), {}
def answer(request, **fields):
    if request.get("requestId"): fields["requestId"] = request["requestId"]
    with lock: print(json.dumps(fields), flush=True)
def run(request):
    path, *options = request["arguments"]
    if "--print" in options: print("Compiling " + path, flush=True)
    if "--other" in options: return answer({"requestId": 77}, exitCode=0)
    if "--wait" in options:
        waiting[request.get("requestId", 0)].wait()
        return answer(request, wasCancelled=True)
    try: code = compile(open(path).read(), path, "exec")
    except Exception as error: return answer(request, exitCode=1, output=f"{type(error).__name__}: {error}")
    answer(request, exitCode=0, output=f"{path}: {len(code.co_names)} names")
    if "--twice" in options: answer(request, exitCode=0)
for line in sys.stdin:
    request = json.loads(line)
    id = request.get("requestId", 0)
    if request.get("cancel"):
        if id in waiting: waiting[id].set()
        continue
    waiting[id] = threading.Event()
    if id: threading.Thread(target=run, args=[request], daemon=True).start()
    else: run(request)
"#;

fn bazel(supervisor: &Supervisor, dialect: BazelWorker) -> Option<PoolBuilder<Vec<String>, String>> {
    let spec = WorkerSpec::new(program("python3")?).args(["-c", BAZEL_WORKER]).stderr(OutputMode::Lines);
    Some(Pool::builder(supervisor, spec).dialect(dialect))
}

fn arguments(path: &Path, options: &[&str]) -> Vec<String> {
    let path = path.display().to_string();
    [path.as_str()].iter().chain(options).map(|&text| text.to_owned()).collect()
}

#[test]
fn foreign_bazel_worker_compiles_files_one_by_one_and_several_at_once() {
    let (supervisor, directory) = (Supervisor::new().unwrap(), tempfile::tempdir().unwrap());
    let path = directory.path().join("a.py");
    fs::write(&path, "a = 1\nb = a\n").unwrap();
    for (dialect, in_flight) in [(BazelWorker::new(), 1), (BazelWorker::new().multiplex(), 8)] {
        let Some(builder) = bazel(&supervisor, dialect) else { return };
        let pool = builder.workers(2).in_flight(in_flight).build().unwrap();
        let tasks: Vec<_> = (0..200).map(|_| arguments(&path, &[])).collect();
        for output in pool.map(&tasks) {
            assert_eq!(output.unwrap(), format!("{}: 2 names", path.display()));
        }
        let missing = result(pool.submit(arguments(Path::new("/missing"), &[])).unwrap()).unwrap_err();
        assert!(matches!(&missing.kind, TaskErrorKind::Failed(error) if error.code == 1), "{missing:?}");
        assert!(missing.to_string().contains("failed: FileNotFoundError"), "{missing}");
        let report = pool.shutdown(DEADLINE);
        assert_eq!((report.aborted, report.workers_left), (0, 0));
    }
    let refused = bazel(&supervisor, BazelWorker::new()).unwrap().in_flight(2).build().unwrap_err();
    assert!(refused.to_string().contains("a Bazel worker that is not multiplex"), "{refused}");
}

#[test]
fn foreign_bazel_worker_cancels_a_task_and_keeps_the_others() {
    let supervisor = Supervisor::new().unwrap();
    let dialect = BazelWorker::new().multiplex().cancellation();
    let Some(builder) = bazel(&supervisor, dialect) else { return };
    let pool = builder.in_flight(2).cancel_grace(DEADLINE).build().unwrap();
    let waits = arguments(Path::new("a"), &["--wait"]);
    let timed = pool.task(waits).timeout(Duration::from_millis(200)).submit().unwrap();
    assert!(matches!(result(timed).unwrap_err().kind, TaskErrorKind::TimedOut { .. }));
    let output = result(pool.submit(arguments(Path::new("/dev/null"), &[])).unwrap()).unwrap();
    assert_eq!(output, "/dev/null: 0 names");
    assert_eq!(pool.status().exits, 0, "it has answered that the task is cancelled");
}

#[test]
fn foreign_bazel_worker_killed_in_a_task_is_replaced() {
    let supervisor = Supervisor::new().unwrap();
    let Some(builder) = bazel(&supervisor, BazelWorker::new()) else { return };
    let pool = builder.build().unwrap();
    let task = pool.submit(arguments(Path::new("a"), &["--wait"])).unwrap();
    killed_in_a_task(&supervisor, &pool, task);
    result(pool.submit(arguments(Path::new("/dev/null"), &[])).unwrap()).unwrap();
}

#[test]
fn foreign_bazel_worker_that_prints_or_answers_wrongly_is_replaced() {
    let supervisor = Supervisor::new().unwrap();
    let Some(builder) = bazel(&supervisor, BazelWorker::new().multiplex()) else { return };
    let (sender, reports) = mpsc::channel();
    let on_event = move |event: &PoolEvent| {
        if let PoolEvent::ProtocolViolated { reason, .. } = event {
            sender.send(reason.to_string()).unwrap();
        }
    };
    let pool = builder.on_event(on_event).build().unwrap();
    let run = |options: &[&str]| result(pool.submit(arguments(Path::new("/dev/null"), options)).unwrap());
    let printed = run(&["--print"]).unwrap_err();
    assert!(matches!(&printed.kind, TaskErrorKind::Protocol { .. }), "{printed:?}");
    let text = "no answer of a Bazel worker on standard output, which is for answers only: `Compiling /dev/null`";
    assert_eq!(reports.recv_timeout(DEADLINE).unwrap(), text);
    let other = run(&["--other"]).unwrap_err();
    let text = "an answer with the id 77, which no task of the worker has: `{\"exitCode\": 0, \"requestId\": 77}`";
    assert!(other.to_string().ends_with(text), "{other}");
    assert_eq!(reports.recv_timeout(DEADLINE).unwrap(), text);
    run(&["--twice"]).unwrap();
    let twice = reports.recv_timeout(DEADLINE).unwrap();
    assert!(twice.starts_with("an answer with the id"), "{twice}");
    run(&[]).unwrap();
}

const PYTHON_MODULE: &str = r#"
import asyncio, os, sys, time, __main__
class Names:
    @staticmethod
    def join(first, last): return f"{last}, {first}"
def add(*numbers): return sum(numbers)
def loud():
    print("{} to standard output")
    os.write(1, b"[]\n")
    os.system("echo null; cat")
    return sys.stdin.read()
def fail(text): raise ValueError(text)
def wrong(): return {1, 2}
def nan(): return float("nan")
async def later(value):
    await asyncio.sleep(0.01)
    return value
def hang():
    __main__.progress({"done": 1})
    time.sleep(3600)
"#;

fn python(supervisor: &Supervisor, module: &str, directory: &Path) -> Option<PoolBuilder<Tool, Value>> {
    fs::write(directory.join("functions.py"), PYTHON_MODULE).unwrap();
    let spec = WorkerSpec::new(program("python3")?).current_dir(directory).stderr(OutputMode::Lines);
    Some(Pool::builder(supervisor, spec).dialect(Dialect::python_module(module)))
}

#[test]
fn foreign_python_module_runs_its_functions_whatever_they_print() {
    let (supervisor, directory) = (Supervisor::new().unwrap(), tempfile::tempdir().unwrap());
    let Some(builder) = python(&supervisor, "functions", directory.path()) else { return };
    let pool = builder.workers(2).in_flight(2).build().unwrap();
    let tasks: Vec<Tool> = (0..300).map(|n| (["add", "later"][n % 2], json!([n]))).collect();
    for (n, sum) in pool.map(&tasks).enumerate() {
        assert_eq!(sum.unwrap(), json!(n));
    }
    let run = |function, arguments| result(pool.submit((function, arguments)).unwrap());
    assert_eq!(run("loud", json!([])).unwrap(), "");
    assert_eq!(run("Names.join", json!({"last": "Ü\u{2028}", "first": "b"})).unwrap(), "Ü\u{2028}, b");
    let error = run("fail", json!(["as you wish"])).unwrap_err();
    assert!(error.to_string().ends_with("ValueError: as you wish"), "{error}");
    let raised = error.foreign().unwrap();
    assert_eq!((&*raised.name, &*raised.message), ("ValueError", "as you wish"));
    assert!(raised.stack.unwrap().contains("functions.py"));
    for (function, name) in [("wrong", "TypeError"), ("nan", "ValueError"), ("unknown", "AttributeError")] {
        assert_eq!(run(function, json!([])).unwrap_err().foreign().unwrap().name, name);
    }
    assert_eq!(pool.status().exits, 0);
    let report = pool.shutdown(DEADLINE);
    assert_eq!((report.aborted, report.workers_left), (0, 0));
}

#[test]
fn foreign_python_module_killed_in_a_task_is_replaced() {
    let (supervisor, directory) = (Supervisor::new().unwrap(), tempfile::tempdir().unwrap());
    let Some(builder) = python(&supervisor, "functions", directory.path()) else { return };
    let pool = builder.build().unwrap();
    let task = pool.submit(("hang", json!([]))).unwrap();
    assert!(becomes_true(|| task.progress::<Value>().is_ok_and(|value| value == Some(json!({"done": 1})))));
    killed_in_a_task(&supervisor, &pool, task);
    assert_eq!(result(pool.submit(("add", json!([1, 2]))).unwrap()).unwrap(), 3);
}

#[test]
fn foreign_python_module_that_is_missing_does_not_start() {
    let (supervisor, directory) = (Supervisor::new().unwrap(), tempfile::tempdir().unwrap());
    let Some(builder) = python(&supervisor, "no_such_module", directory.path()) else { return };
    let pool = builder.build().unwrap();
    let error = result(pool.submit(("add", json!([]))).unwrap()).unwrap_err();
    assert!(matches!(&error.kind, TaskErrorKind::NoWorkers(StartFailure::Exited(_))), "{error:?}");
    assert!(error.to_string().contains("No module named 'no_such_module'"), "{error}");
}
