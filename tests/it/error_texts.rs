//! The texts that a user reads when a worker fails: the error of a call, and what a program prints of the events.

use crate::support::{DEADLINE, FIXTURE};
use pipewright::{
    CallError, Event, EventKind, OutputMode, Pass, Readiness, ReadinessAnswer, Restart, Supervisor, Watchdog, Worker,
    WorkerSpec, pool::Pool,
};
use regex_lite::Regex;
use serde_json::{Value, json};
use std::{fmt::Write as _, fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};

/// For a call that is not answered. The worker has connected before.
const SHORT: Duration = Duration::from_millis(300);

/// The beginning of each worker: it connects, and has what it needs to misbehave.
const CONNECT: &str = r#"
import json, os, signal, socket, subprocess, sys, time
path, key = os.environ["PIPEWRIGHT_CONTROL"].rsplit("?", 1)
control = socket.socket(socket.AF_UNIX)
control.connect(path)
lines = control.makefile("rb")

def say(**message):
    control.sendall(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")

def hello(key=key, version=1):
    say(id=0, method="hello", params={"key": key, "version": version})
    answer = json.loads(lines.readline())
    if "error" in answer:
        sys.exit(answer["error"]["message"])

def request():
    while True:
        line = lines.readline()
        if not line:
            sys.exit(0)
        message = json.loads(line)
        if message.get("method") == "ping":
            say(id=message["id"], result=None)
        elif "id" in message and "method" in message:
            return message
"#;

/// A worker in Python that connects, and then does this.
fn worker(script: &str) -> WorkerSpec {
    python(&format!("{CONNECT}\nhello()\n{script}"))
}

fn python(script: &str) -> WorkerSpec {
    WorkerSpec::new("python3")
        .args(["-c", script])
        .name("worker")
        .control(Pass::env("PIPEWRIGHT_CONTROL"))
        .stderr(OutputMode::Lines)
}

/// A supervisor, and what a program has printed of it.
struct Log {
    supervisor: Supervisor,
    text: String,
}

impl Log {
    fn new() -> Self {
        Self { supervisor: Supervisor::new().unwrap(), text: String::new() }
    }

    fn print(&mut self, text: impl std::fmt::Display) {
        writeln!(self.text, "{text}").unwrap();
    }

    fn call(&mut self, worker: &Worker, timeout: Duration) {
        let result: Result<Value, CallError> = worker.call("work", &(), timeout);
        self.print(match result {
            Ok(value) => format!("call: {value}"),
            Err(error) => format!("call: {error}"),
        });
    }

    /// What happened so far, up to the last event of the worker.
    #[track_caller]
    fn print_events(&mut self) {
        loop {
            let event = self.supervisor.events().recv_timeout(DEADLINE);
            let event = event.unwrap_or_else(|error| panic!("{error} after {}", self.text));
            let is_final = event.kind.is_final();
            self.print_event(event);
            if is_final {
                return;
            }
        }
    }

    fn print_event(&mut self, event: Event) {
        match event.kind {
            EventKind::NotReady { reason, recent_output } => {
                self.print(reason);
                self.print_lines(&recent_output);
            }
            EventKind::InvalidFrame(frame) => self.print(format!("sent {frame}")),
            EventKind::ControlDisconnected(reason) => self.print(reason),
            EventKind::Warning(warning) => self.print(format!("warning: {warning}")),
            EventKind::WatchdogTimeout => self.print("watchdog: no sign of life"),
            EventKind::SpawnFailed { error, next } => self.print(format!("{error}, {next}")),
            EventKind::Exited { exit, next } => {
                self.print(format!("{exit}, {next}"));
                self.print_lines(&exit.stderr_text());
                exit.leaked_streams.iter().for_each(|leak| self.print(leak));
                exit.survivors.iter().for_each(|survivor| self.print(survivor));
            }
            _ => {}
        }
    }

    fn print_lines(&mut self, text: &str) {
        text.lines().for_each(|line| self.print(format!("| {line}").trim_end()));
    }
}

/// Without what differs from run to run.
fn normalized(text: &str) -> String {
    let mut text = text.trim_end().to_owned();
    for (pattern, replacement) in [
        (r"\b[0-9]+(\.[0-9]+)?(ns|µs|ms|s)\b", "TIME"),
        (r"process [0-9]+", "process PID"),
        (r"/tmp/[.A-Za-z0-9]+", "/tmp/DIR"),
        (r#""id": [0-9]+, "result""#, r#""id": N, "result""#),
        (r"line [0-9]+, in", "line N, in"),
        (r"\[[0-9]+ bytes omitted", "[N bytes omitted"),
        (r"at offset [0-9]+", "at offset N"),
        (r"[0-9]+ events are not received \([0-9]+ bytes", "N events are not received (N bytes"),
        (r"not read [0-9]+ bytes", "not read N bytes"),
        (r"\bof [0-9]+ bytes", "of N bytes"),
    ] {
        text = Regex::new(pattern).unwrap().replace_all(&text, replacement).into_owned();
    }
    text
}

#[track_caller]
fn assert_text(log: &Log, expected: &str) {
    let text = normalized(&log.text);
    assert!(text == expected, "the user reads:\n{text}\ninstead of:\n{expected}");
}

/// Spawns the worker, calls it, and pins what the user reads up to its end.
#[track_caller]
fn assert_call(spec: WorkerSpec, timeout: Duration, expected: &str) {
    let mut log = Log::new();
    let worker = log.supervisor.spawn(spec).unwrap();
    if timeout == SHORT {
        worker.wait_ready(DEADLINE).unwrap();
    }
    log.call(&worker, timeout);
    worker.stop_timeout(SHORT);
    log.print_events();
    assert_text(&log, expected);
}

/// A file that the kernel is to execute.
fn program(directory: &Path, name: &str, text: &str, mode: u32) -> WorkerSpec {
    let path = directory.join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    WorkerSpec::new(path)
}

#[test]
fn p16_program_that_cannot_be_executed_is_named_with_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str, text: &str, mode| program(directory.path(), name, text, mode);
    let mut text = String::new();
    for spec in [
        WorkerSpec::new("no-such-program").env("PATH", "/usr/bin:/bin"),
        WorkerSpec::new(directory.path().join("missing")),
        at("data", "text", 0o644),
        at("script", "#!/usr/bin/pyhton3\n", 0o755),
        at("windows", "#!/bin/sh\r\nexit 0\r\n", 0o755),
        at("text", "no program\n", 0o755),
        at("empty", "", 0o755),
        WorkerSpec::new(directory.path()),
        WorkerSpec::new("true").current_dir("/nonexistent"),
    ] {
        writeln!(text, "{}", Supervisor::new().unwrap().spawn(spec).unwrap_err()).unwrap();
    }
    let text = normalized(&text);
    assert!(text == NOT_EXECUTED, "the user reads:\n{text}");
}

const NOT_EXECUTED: &str = r"failed to start no-such-program: execve (searched in /usr/bin:/bin): No such file or directory (os error 2)
failed to start /tmp/DIR/missing: execve: No such file or directory (os error 2)
failed to start /tmp/DIR/data: file is not executable: Permission denied (os error 13)
failed to start /tmp/DIR/script: interpreter /usr/bin/pyhton3 of its `#!` line not found: No such file or directory (os error 2)
failed to start /tmp/DIR/windows: interpreter /bin/sh\r of its `#!` line not found: No such file or directory (os error 2)
failed to start /tmp/DIR/text: file has no `#!` line and is not an executable for this machine: Exec format error (os error 8)
failed to start /tmp/DIR/empty: file has no `#!` line and is not an executable for this machine: Exec format error (os error 8)
failed to start /tmp/DIR: it is a directory: Permission denied (os error 13)
failed to start true: entering working directory /nonexistent: No such file or directory (os error 2)";

/// The errors of a pool with a worker that is the fixture's, or with another one.
#[test]
fn p16_task_of_a_pool_says_which_task_has_failed_and_why() {
    let supervisor = Supervisor::new().unwrap();
    let fixture = || WorkerSpec::new(FIXTURE).arg("pool-worker").stderr(OutputMode::Lines);
    let pool = |spec| Pool::<(&str, Value), Vec<u32>>::builder(&supervisor, spec).workers(1);
    let mut text = String::new();
    for (spec, request, retries) in [
        (fixture(), ("die", json!(11)), 0),
        (fixture(), ("die", json!(6)), 5),
        (fixture(), ("fail", json!("a.rs: no such file")), 0),
        (fixture(), ("panic", Value::Null), 0),
        (fixture(), ("fly", Value::Null), 0),
        (fixture(), ("echo", json!("many")), 0),
        (fixture(), ("hang", Value::Null), 0),
        (fixture().args(["--exit", "3"]), ("square", json!(2)), 0),
        (WorkerSpec::new("no-such-worker").env("PATH", "/bin"), ("square", json!(2)), 0),
        (WorkerSpec::new("/bin/cat"), ("square", json!(2)), 0),
    ] {
        let pool = pool(spec).retries(retries).timeout(Duration::from_secs(1)).cancel_grace(SHORT).build().unwrap();
        let error = match pool.task(request).name(format!("lint {}", text.lines().count() + 1)).submit() {
            Ok(task) => task.wait_timeout(DEADLINE).unwrap().unwrap_err().to_string(),
            Err(error) => error.to_string(),
        };
        writeln!(text, "{error}").unwrap();
    }
    let text = normalized(&text);
    assert!(text == TASK_ERRORS, "the user reads:\n{text}");
}

const TASK_ERRORS: &str = r#"lint 1: its worker has died: killed by signal 11 (SIGSEGV); its last line on stderr: about to die
lint 2: every worker that had it has died: killed by signal 6 (SIGABRT); its last line on stderr: about to die (attempt 4)
lint 3: failed: a.rs: no such file
lint 4: failed: the method panicked
lint 5: failed: method not found: "fly"
lint 6: invalid result: invalid message at byte 5: `"many[here]"`: invalid type: string "many", expected a sequence at line 1 column 6
lint 7: no result within TIME
lint 8: no worker starts: exited before it was used: exit code 3; its last line on stderr: cannot start: no licence
lint 9: no worker starts: failed to start no-such-worker: execve (searched in /bin): No such file or directory (os error 2)
lint 10: no worker starts: exited before it was used: exit code 0"#;

#[test]
#[ignore = "needs python3"]
fn p16_worker_of_another_version() {
    let ready = Readiness::call("initialize", &json!({}), |version: u32| match version {
        2 => ReadinessAnswer::Ready,
        other => ReadinessAnswer::Fatal(format!("it speaks version {other}, this host speaks 2")),
    });
    let spec = worker("message = request()\nsay(id=message['id'], result=1)\nrequest()");
    assert_call(
        spec.ready(ready).restart(Restart::Always),
        DEADLINE,
        r"call: worker exited: killed by signal 15 (SIGTERM), stopped: cannot be used: it speaks version 1, this host speaks 2
cannot be used: it speaks version 1, this host speaks 2
killed by signal 15 (SIGTERM), stopped: cannot be used: it speaks version 1, this host speaks 2, gave up: its answer to the readiness call is fatal",
    );
}

#[test]
#[ignore = "needs python3"]
fn p16_worker_of_another_version_of_the_protocol() {
    let spec = python(&format!("{CONNECT}\nhello(version=7)"));
    assert_call(
        spec,
        DEADLINE,
        r#"call: worker exited: exit code 1; its last line on stderr: protocol version 7 is not supported, only 1
warning: refused a connection to the control socket by process PID: protocol version 7 is not supported, only 1: `{"jsonrpc": "2.0", "id": 0, "method": "hello", "params": {"key": "...", "version": 7}}\n`
exited before it connected to its control pipe
exit code 1, finished
| protocol version 7 is not supported, only 1"#,
    );
}

#[test]
#[ignore = "needs python3"]
fn p16_worker_whose_handshake_is_refused() {
    let spec = python(&format!("{CONNECT}\nhello(key='0')"));
    assert_call(
        spec,
        DEADLINE,
        r#"call: worker exited: exit code 1; its last line on stderr: no worker with this key is expected: it was used before, or its worker has ended
warning: refused a connection to the control socket by process PID: no worker with this key is expected: it was used before, or its worker has ended: `{"jsonrpc": "2.0", "id": 0, "method": "hello", "params": {"key": "0", "version": 1}}\n`
exited before it connected to its control pipe
exit code 1, finished
| no worker with this key is expected: it was used before, or its worker has ended"#,
    );
}

#[test]
#[ignore = "needs python3"]
fn p16_worker_that_dies_at_its_start() {
    let spec = python("import sys\nsys.exit('worker.conf: no such file')");
    let ready = Readiness::control();
    assert_call(
        spec.ready(ready),
        DEADLINE,
        r"call: worker exited: exit code 1; its last line on stderr: worker.conf: no such file
exited before it connected to its control pipe
exited before it was ready, after TIME
| worker.conf: no such file
exit code 1, finished
| worker.conf: no such file",
    );
}

#[test]
#[ignore = "needs python3"]
fn p16_worker_that_dies_in_a_call() {
    let spec = worker("request()\nraise KeyError('colour')");
    assert_call(
        spec.clone(),
        DEADLINE,
        r#"call: worker exited: exit code 1; its last line on stderr: KeyError: 'colour'
exit code 1, finished
| Traceback (most recent call last):
|   File "<string>", line N, in <module>
| KeyError: 'colour'"#,
    );
}

#[test]
#[ignore = "needs python3"]
fn p16_worker_that_dies_by_a_signal() {
    let spec = worker("request()\nos.kill(os.getpid(), signal.SIGSEGV)")
        .rlimit(pipewright::limits::ResourceLimit::CoreBytes, 0);
    assert_call(
        spec,
        DEADLINE,
        r"call: worker exited: killed by signal 11 (SIGSEGV)
killed by signal 11 (SIGSEGV), finished",
    );
}

#[test]
#[ignore = "needs python3"]
fn p16_worker_that_exits_without_an_answer() {
    assert_call(
        worker("request()"),
        DEADLINE,
        r"call: worker exited: exit code 0
exit code 0, finished",
    );
}

#[test]
#[ignore = "needs python3"]
fn p16_worker_that_is_restarted() {
    let mut log = Log::new();
    let spec = worker("request()\nsys.exit(3)").restart(Restart::Always);
    let worker = log.supervisor.spawn(spec).unwrap();
    log.call(&worker, DEADLINE);
    worker.stop();
    log.print_events();
    assert_text(
        &log,
        r"call: worker exited: exit code 3; restarts in TIME
exit code 3, restarts in TIME",
    );
}

#[test]
#[ignore = "needs python3"]
fn p16_worker_that_hangs() {
    let spec = worker("request()\ntime.sleep(1000)").ready(Readiness::control());
    assert_call(
        spec.clone(),
        SHORT,
        r"call: no answer before the timeout
killed by signal 9 (SIGKILL), finished",
    );
    let mut log = Log::new();
    let worker = log.supervisor.spawn(spec.watchdog(Watchdog::ping(Duration::from_secs(1)))).unwrap();
    log.call(&worker, DEADLINE);
    log.print_events();
    assert_text(
        &log,
        "call: worker exited: killed by signal 15 (SIGTERM), stopped by its watchdog
watchdog: no sign of life
killed by signal 15 (SIGTERM), stopped by its watchdog, finished",
    );
}

#[test]
#[ignore = "needs python3"]
fn p16_worker_that_is_stopped_by_a_signal() {
    let spec = worker("request()\nos.kill(os.getpid(), signal.SIGSTOP)").ready(Readiness::control());
    assert_call(
        spec,
        SHORT,
        r"call: no answer before the timeout
killed by signal 9 (SIGKILL), finished",
    );
}

#[test]
#[ignore = "needs python3"]
fn p16_worker_that_ignores_its_cancellation_and_its_stop() {
    let script = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nrequest()\nwhile True: time.sleep(1000)";
    assert_call(
        worker(script).ready(Readiness::control()),
        SHORT,
        r"call: no answer before the timeout
killed by signal 9 (SIGKILL), finished",
    );
}

#[test]
#[ignore = "needs python3"]
fn p16_worker_that_answers_with_garbage() {
    let script = "request()\ncontrol.sendall(b'Segmentation fault\\n')\nrequest()";
    assert_call(
        worker(script).ready(Readiness::control()),
        SHORT,
        r"call: no answer before the timeout
sent a line of N bytes that is not JSON-RPC 2.0, at offset N: `Segmentation fault`
killed by signal 9 (SIGKILL), finished",
    );
}

#[test]
#[ignore = "needs python3"]
fn p16_worker_that_answers_with_another_type() {
    let mut log = Log::new();
    let spec = worker("message = request()\nsay(id=message['id'], result={'size': 'large'})\nrequest()");
    let worker = log.supervisor.spawn(spec).unwrap();
    let error = worker.call::<_, Vec<u32>>("work", &(), DEADLINE).unwrap_err();
    log.print(error);
    assert_text(
        &log,
        r#"invalid result: invalid message at byte 0: `[here]{"size": "large"}`: invalid type: map, expected a sequence at line 1 column 0"#,
    );
}

#[test]
#[ignore = "needs python3"]
fn p16_worker_that_answers_twice() {
    let script = "message = request()\nsay(id=message['id'], result=1)\nsay(id=message['id'], result=2)\nrequest()";
    assert_call(
        worker(script),
        DEADLINE,
        r#"call: 1
sent an answer of N bytes to no open request, at offset N: `{"jsonrpc": "2.0", "id": N, "result": 2}`
killed by signal 9 (SIGKILL), finished"#,
    );
}

#[test]
#[ignore = "needs python3"]
fn p16_worker_that_answers_another_call() {
    let script = "message = request()\nsay(id='other', result=1)\nrequest()";
    assert_call(
        worker(script).ready(Readiness::control()),
        SHORT,
        r#"call: no answer before the timeout
sent an answer of N bytes to no open request, at offset N: `{"jsonrpc": "2.0", "id": "other", "result": 1}`
killed by signal 9 (SIGKILL), finished"#,
    );
}

#[test]
#[ignore = "needs python3"]
fn p16_worker_that_answers_with_an_error() {
    let script =
        "message = request()\nsay(id=message['id'], error={'code': -32601, 'message': 'method not found'})\nrequest()";
    assert_call(
        worker(script),
        DEADLINE,
        r"call: remote error -32601: method not found
killed by signal 9 (SIGKILL), finished",
    );
}

#[test]
#[ignore = "needs python3"]
fn p16_worker_that_closes_its_connection() {
    let script = "request()\ncontrol.shutdown(socket.SHUT_RDWR)\ntime.sleep(1000)";
    assert_call(
        worker(script),
        DEADLINE,
        r"call: worker has no control connection: it has closed it, or did not connect in time
closed its control connection
killed by signal 15 (SIGTERM), finished",
    );
}

#[test]
#[ignore = "needs python3"]
fn p16_worker_that_does_not_connect() {
    let spec = python("import time\ntime.sleep(1000)").control_connect_timeout(Duration::from_millis(200));
    assert_call(
        spec.clone(),
        DEADLINE,
        r"call: worker has no control connection: it has closed it, or did not connect in time
did not connect to its control pipe in time
killed by signal 15 (SIGTERM), finished",
    );
    let ready = Readiness::control().timeout(Duration::from_millis(200));
    assert_call(python("import time\ntime.sleep(1000)").ready(ready), DEADLINE, "call: worker exited: killed by signal 15 (SIGTERM), stopped: not ready after TIME: it has not connected to its control pipe
not ready after TIME: it has not connected to its control pipe
exited before it connected to its control pipe
killed by signal 15 (SIGTERM), stopped: not ready after TIME: it has not connected to its control pipe, finished");
}

#[test]
#[ignore = "needs python3"]
fn p16_worker_that_fills_its_pipe() {
    let script = "request()\nmessages = os.fdopen(int(os.environ['MESSAGES']), 'w')\n\
                  while True: messages.write('[' + '1,' * 1000 + '1]\\n')";
    let spec = worker(script).messages(Pass::env("MESSAGES")).ready(Readiness::control());
    assert_call(
        spec,
        Duration::from_secs(3),
        r"call: no answer while N events are not received (N bytes of this worker): receive or `serve` them on another thread than the caller's
killed by signal 9 (SIGKILL), finished",
    );
}

#[test]
#[ignore = "needs python3"]
fn p16_worker_that_does_not_read() {
    let mut log = Log::new();
    let worker = log.supervisor.spawn(worker("time.sleep(1000)")).unwrap();
    let text = "x".repeat(400_000);
    let mut calls = Vec::new();
    let error = loop {
        match worker.start_call("work", &[&text]) {
            Ok(call) => calls.push(call),
            Err(error) => break error,
        }
    };
    log.print(error);
    assert_text(&log, r"send queue is full: the peer has not read N bytes");
}

#[test]
#[ignore = "needs python3"]
fn p16_worker_that_floods_standard_error() {
    let script = "request()\nfor number in range(10000): print('line', number, file=sys.stderr)\nsys.exit(1)";
    assert_call(
        worker(script).stderr_tail(68),
        DEADLINE,
        "call: worker exited: exit code 1; its last line on stderr: line 9999
exit code 1, finished
| line 0
| line 1
| line 2
| line 3
| line 4
| [N bytes omitted]
|
| line 9999",
    );
}

#[test]
#[ignore = "needs python3"]
fn p16_worker_that_leaves_a_process_behind() {
    let script = "request()\nsubprocess.Popen(['sleep', '1000'], start_new_session=True)\nsys.exit(1)";
    assert_call(
        worker(script),
        DEADLINE,
        r"call: worker exited: exit code 1
exit code 1, finished
stderr is still held open by another process
process PID (sleep 1000) was left running, with stderr open; it was killed",
    );
}
