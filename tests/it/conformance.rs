//! Workers that do not use the library: the examples, one that was written from docs/protocol.md alone, and one with faults. Each is
//! checked by `tests/conformance/check.py`, which plays the parent, and called by a supervisor.

use crate::support::{DEADLINE, FIXTURE, Story};
use pipewright::{CallError, OutputMode, Pass, WorkerSpec};
use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    thread,
};

const CALLS: [&str; 7] = ["--call", "add", "[20, 22]", "42", "--bad", "add", "[\"x\"]"];

fn in_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Runs a program; returns its exit code and what it printed.
fn run(spec: WorkerSpec) -> (Option<i32>, String) {
    let process = spec.stdout(OutputMode::Lines).stderr(OutputMode::ToStdout).spawn_unsupervised().unwrap();
    let output = process.wait_with_output(4 * DEADLINE).unwrap();
    (output.exit.code(), String::from_utf8(output.stdout).unwrap())
}

fn check(options: &[&str], command: &[OsString]) -> (Option<i32>, String) {
    let script = in_repository("tests/conformance/check.py");
    run(WorkerSpec::new("python3").arg(script).args(options).arg("--").args(command))
}

#[track_caller]
fn assert_conforms(options: &[&str], command: &[OsString]) {
    let (code, text) = check(options, command);
    assert_eq!(code, Some(0), "{command:?}: {text}");
    assert!(text.contains("conforms to version 1"), "{text}");
}

fn words<const N: usize>(words: [&str; N]) -> Vec<OsString> {
    words.map(OsString::from).to_vec()
}

/// The worker conforms, and answers a supervisor.
#[track_caller]
fn assert_works(command: &[OsString]) {
    assert_conforms(&CALLS, command);
    let story = Story::new();
    let (program, arguments) = command.split_first().unwrap();
    let spec = WorkerSpec::new(program).args(arguments).control(Pass::env("PIPEWRIGHT_CONTROL"));
    let worker = story.supervisor.spawn(spec.stderr(OutputMode::Lines)).unwrap();
    assert_eq!(worker.call::<_, f64>("add", &[20, 22], DEADLINE).unwrap().to_bits(), 42_f64.to_bits());
    let refused = |method: &str, params: &[&str]| match worker.call::<_, f64>(method, params, DEADLINE) {
        Err(CallError::Rpc(error)) => error.code,
        other => panic!("{other:?}"),
    };
    assert_eq!((refused("subtract", &[]), refused("add", &["x"])), (-32601, -32602));
    worker.call::<_, ()>("ping", &(), DEADLINE).unwrap();
    let report = worker.stop().wait(DEADLINE);
    assert!(report.workers[0].exit.as_ref().unwrap().success(), "it exits when requested: {report}");
}

#[test]
#[ignore = "needs python3"]
fn worker_in_python_conforms() {
    assert_works(&["python3".into(), in_repository("examples/workers/worker.py").into()]);
}

#[test]
#[ignore = "needs python3 and node"]
fn worker_in_node_conforms() {
    assert_works(&["node".into(), in_repository("examples/workers/worker.js").into()]);
}

#[test]
#[ignore = "needs python3 and perl"]
fn worker_in_perl_that_was_written_from_the_page_conforms() {
    assert_works(&["perl".into(), in_repository("tests/conformance/from_the_page.pl").into()]);
}

#[test]
#[ignore = "needs python3 and go"]
fn worker_in_go_conforms() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("worker");
    let build = WorkerSpec::new("go").args(["build", "-o"]).arg(&program).current_dir(directory.path());
    let build = build.env("GOCACHE", directory.path().join("cache")).env("GOFLAGS", "");
    let (code, text) = run(build.arg(in_repository("examples/workers/worker.go")));
    assert_eq!((code, &*text), (Some(0), ""));
    assert_works(&[program.into()]);
}

const ASSEMBLIES: [&str; 10] = [
    "Private.CoreLib",
    "Runtime",
    "Runtime.Extensions",
    "Collections",
    "Console",
    "Linq",
    "Memory",
    "Net.Primitives",
    "Net.Sockets",
    "Text.Json",
];

/// The runtime in `DOTNET_ROOT` has no compiler; `mcs` of Mono compiles against its assemblies.
#[test]
#[ignore = "needs python3, mcs and a .NET runtime in DOTNET_ROOT"]
fn worker_in_csharp_conforms() {
    let root = PathBuf::from(std::env::var_os("DOTNET_ROOT").expect("DOTNET_ROOT"));
    let versions = fs::read_dir(root.join("shared/Microsoft.NETCore.App")).unwrap();
    let runtime = versions.map(|entry| entry.unwrap().path()).max().expect("a runtime");
    let version = runtime.file_name().unwrap().to_str().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("worker.dll");
    let settings = serde_json::json!({"runtimeOptions": {
        "framework": {"name": "Microsoft.NETCore.App", "version": version},
        "configProperties": {"System.Globalization.Invariant": true},
    }});
    fs::write(program.with_extension("runtimeconfig.json"), settings.to_string()).unwrap();
    let mut compile = WorkerSpec::new("mcs").args(["-noconfig", "-nostdlib", "-nowarn:1702", "-langversion:latest"]);
    for name in ASSEMBLIES {
        compile = compile.arg(format!("-r:{}/System.{name}.dll", runtime.display()));
    }
    let compile = compile.arg(format!("-out:{}", program.display())).arg(in_repository("examples/workers/Worker.cs"));
    let (code, text) = run(compile);
    assert_eq!(code, Some(0), "{text}");
    assert_works(&[root.join("dotnet").into(), program.into()]);
}

#[test]
#[ignore = "needs python3"]
fn worker_of_this_library_conforms() {
    let slow = ["--slow", "until cancelled", "[]"];
    let options: Vec<&str> = CALLS.into_iter().chain(slow).collect();
    assert_conforms(&options, &words([FIXTURE, "serve"]));
    assert_conforms(&options, &words([FIXTURE, "serve", "--control={control}"]));
    let inspected = words([FIXTURE, "serve", "--inspect", "--control", "{control}", "--messages={messages}"]);
    assert_conforms(&options, &inspected);
}

/// Each fault of `tests/conformance/broken.py`, and the check and the words by which it is found.
const FAULTS: [(&str, &str, &str); 36] = [
    ("never connects", "ping", "hello: did not connect within"),
    ("exits at once", "ping", "hello: exited with 1 before it connected; its standard error ends with: no licence"),
    ("says nothing", "ping", "hello: sent no first line"),
    ("says hello late", "ping", "hello: the first line is not `hello`"),
    ("says hello with another key", "ping", "hello: the hello has another key"),
    ("says hello with version 2", "ping", "hello: the hello names version 2"),
    ("says hello twice", "ping", "ping: a second hello"),
    ("connects twice", "shutdown", "shutdown: connected twice"),
    ("omits the version of JSON-RPC", "ping", "ping: a line lacks \"jsonrpc\":\"2.0\""),
    ("prints to the connection", "ping", "ping: a line is not JSON"),
    ("answers in another encoding", "ids", "ids: a line is not UTF-8"),
    ("sends a scalar as params", "ping", "ping: params are neither an array nor an object"),
    ("extends by a text", "ping", "ping: $/extend without a whole number"),
    ("answers ping with a text", "ping", "ping: `ping` is answered with"),
    ("answers twice", "ping", "ping: an answer to no open request"),
    ("returns ids as text", "ids", "ids: an answer to no open request"),
    ("returns ids as numbers", "ids", "ids: an answer to no open request"),
    ("answers an unknown method with a result", "unknown methods", "instead of the error -32601"),
    ("sends an error without a code", "unknown methods", "an error without a whole code"),
    ("sends a result beside the error", "unknown methods", "with either result or error"),
    ("accepts any params", "calls", "calls: `add` with invalid params is answered with"),
    ("answers notifications", "notifications", "notifications: an answer to no open request"),
    ("takes a read for a line", "lines", "violation: lines: "),
    ("splits lines at U+2028", "lines", "violation: lines: "),
    ("reads no large lines", "large request", "violation: large request: "),
    ("drops what does not fit", "full connection", "full connection: no answer to"),
    ("never answers a cancelled request", "cancellation", "cancellation: no answer to"),
    ("answers a cancelled request with another error", "cancellation", "instead of the error -32800"),
    ("ignores shutdown", "shutdown", "shutdown: still runs 0.5 s after `shutdown`"),
    ("takes longer than it asks for", "shutdown", "shutdown: still runs 0.7 s after `shutdown`"),
    ("exits with 3 at shutdown", "shutdown", "shutdown: exits with 3 instead of 0"),
    ("survives its parent", "end of connection", "end of connection: still runs"),
    ("ignores SIGTERM", "sigterm", "sigterm: still runs"),
    ("survives its refusal", "refusal", "refusal: still runs"),
    ("exits with 0 when it is refused", "refusal", "refusal: exits with 0"),
    ("sends half a message", "shutdown", "shutdown: the last message has no end"),
];

#[test]
#[ignore = "needs python3"]
fn conformance_finds_each_fault() {
    let worker = in_repository("tests/conformance/broken.py");
    let broken = |fault: &str, framing: &str| -> Vec<OsString> {
        vec!["python3".into(), worker.clone().into(), fault.into(), framing.into()]
    };
    let slow = ["--slow", "wait", "[]", "--messages", "--stop", "0.5", "--timeout"];
    let options: Vec<&str> = CALLS.into_iter().chain(slow).collect();
    let unhurried: Vec<&str> = options.iter().copied().chain(["5"]).collect();
    assert_conforms(&unhurried, &broken("none", "lines"));
    let find = |(fault, only, expected): &(&str, &str, &str)| {
        let (code, text) = check(&[&*options, &["1", "--only", only]].concat(), &broken(fault, "lines"));
        assert!(code == Some(1) && text.contains(expected), "{fault}: {code:?}: {text}");
    };
    // Most of the time they wait.
    thread::scope(|scope| {
        for faults in FAULTS.chunks(6) {
            scope.spawn(|| faults.iter().for_each(find));
        }
    });
    for framing in ["lines", "nul", "length", "content-length"] {
        let options = ["--messages", "--framing", framing, "--only", "shutdown"];
        assert_conforms(&options, &broken("none", framing));
        for (fault, expected) in [
            ("prints to the message pipe", "a message is not JSON: b'starting up'"),
            ("sends a message in another encoding", "a message is not UTF-8"),
        ] {
            let (code, text) = check(&options, &broken(fault, framing));
            assert!(code == Some(1) && text.contains(expected), "{framing}: {fault}: {code:?}: {text}");
        }
    }
}

#[test]
#[ignore = "needs python3"]
fn conformance_finds_a_worker_that_does_not_report_readiness() {
    let worker = in_repository("tests/conformance/broken.py");
    for means in ["notify", "newline"] {
        let run = |fault: &str, timeout: &str| {
            let command = ["python3".into(), worker.clone().into(), fault.into(), "lines".into(), "{ready}".into()];
            check(&["--ready", means, "--only", "readiness", "--timeout", timeout], &command)
        };
        let (code, text) = run("none", "5");
        assert_eq!(code, Some(0), "{means}: {text}");
        let (code, text) = run("is never ready", "1");
        assert!(code == Some(1) && text.contains("readiness: not ready within 1.0 s"), "{means}: {code:?}: {text}");
    }
}

#[test]
#[ignore = "needs python3"]
fn conformance_notes_a_worker_that_does_not_miss_its_parent() {
    let options = ["--only", "alone", "--stop", "0.5"];
    for (command, expected) in [(&["sleep", "100"][..], "still runs after 0.5 s"), (&["true"], "exits with 0 without")]
    {
        let command: Vec<OsString> = command.iter().map(OsString::from).collect();
        let (code, text) = check(&options, &command);
        assert!(code == Some(0) && text.contains(&format!("note: alone: {expected}")), "{command:?}: {code:?}: {text}");
    }
}

#[test]
#[ignore = "needs python3"]
fn conformance_refuses_what_it_cannot_check() {
    let (code, text) = check(&[], &words(["/nonexistent/worker"]));
    assert!(code == Some(2) && text.contains("No such file"), "{code:?}: {text}");
    let (code, text) = check(&["--call", "add", "[20,", "42"], &words(["true"]));
    assert_eq!(code, Some(2), "{text}");
}
