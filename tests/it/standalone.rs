//! Workers that are started without a parent: what they say, and how they are tried by hand.

use crate::{
    kernel,
    support::{DEADLINE, FIXTURE, read_to_end, shorten},
};
use pipewright::{
    OutputMode, Process, ProcessGroup, StdinMode, WorkerSpec,
    pipe::anonymous::{PipeReader, PipeWriter},
};
use serde_json::{Value, json};
use std::{
    fs,
    io::{Read, Write},
    os::fd::OwnedFd,
    sync::Arc,
    time::Instant,
};

fn standalone(subcommand: &str) -> WorkerSpec {
    WorkerSpec::new(FIXTURE).arg(subcommand).env("PIPEWRIGHT_STANDALONE", "1")
}

/// A worker whose standard input and output are pipes.
struct Tried {
    process: Process,
    input: Option<PipeWriter>,
    output: PipeReader,
    /// Read, and not yet returned as a line.
    rest: Vec<u8>,
}

impl Tried {
    #[track_caller]
    fn start(spec: WorkerSpec) -> Self {
        let mut process = spec.stdin(StdinMode::Pipe).stdout(OutputMode::Lines).spawn_unsupervised().unwrap();
        let (input, output) = (process.take_stdin(), process.take_stdout().unwrap());
        Self { process, input, output, rest: Vec::new() }
    }

    fn type_in(&mut self, text: &str) {
        self.input.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    #[track_caller]
    fn line(&mut self) -> Value {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<_> = self.rest.drain(..=end).collect();
                return serde_json::from_slice(&line)
                    .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&line)));
            }
            let mut part = [0; 4096];
            match self.output.read_timeout(&mut part, DEADLINE) {
                Ok(bytes @ 1..) => self.rest.extend_from_slice(&part[..bytes]),
                ended => panic!("{ended:?} after {}", shorten(&String::from_utf8_lossy(&self.rest))),
            }
        }
    }

    /// Ends its standard input; returns what it still writes, and its exit code.
    #[track_caller]
    fn end(mut self) -> (String, Option<i32>) {
        drop(self.input.take());
        let mut rest = std::mem::take(&mut self.rest);
        rest.extend(read_to_end(&self.output));
        let exit = self.process.wait_timeout(DEADLINE).unwrap().expect("exits at the end of its input");
        (String::from_utf8(rest).unwrap(), exit.code())
    }
}

#[test]
fn p16_worker_without_parent_says_what_it_is() {
    for (subcommand, expected) in [
        ("serve", "child-fixture is a worker: another program starts it and gives it a pipe for messages"),
        ("env-worker", "$PIPEWRIGHT_MESSAGES should hold the number of the pipe for messages, but it is not set"),
    ] {
        for setting in [None, Some(""), Some("yes")] {
            let spec = WorkerSpec::new(FIXTURE).arg(subcommand).stderr(OutputMode::Lines);
            let spec = setting.into_iter().fold(spec, |spec, value| spec.env("PIPEWRIGHT_STANDALONE", value));
            let mut process = spec.spawn_unsupervised().unwrap();
            let said = String::from_utf8(read_to_end(&process.take_stderr().unwrap())).unwrap();
            assert!(said.contains(expected) && said.contains("set PIPEWRIGHT_STANDALONE=1"), "{said}");
            assert_eq!(said.trim_end().lines().count(), 1, "{said}");
            assert_eq!(process.wait_timeout(DEADLINE).unwrap().unwrap().code(), Some(64));
        }
    }
}

#[test]
fn standalone_worker_writes_messages_and_answers_requests() {
    let mut worker = Tried::start(standalone("serve").arg("--inspect"));
    assert!(worker.line().get("jsonrpc").is_none(), "a message, not a line of the control connection");
    worker.type_in("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"add\",\"params\":[2,3]}\n");
    assert_eq!(worker.line(), json!({"jsonrpc": "2.0", "id": 1, "result": 5}));
    worker.type_in("{\"jsonrpc\":\"2.0\",\"id\":\"two\",\"method\":\"no such\"}\n\n");
    assert_eq!(worker.line()["error"]["code"], -32601);
    worker.type_in("add 2 3\n");
    let invalid = worker.line();
    assert_eq!((&invalid["id"], invalid["error"]["code"].as_i64()), (&Value::Null, Some(-32700)));
    worker.type_in("{\"id\":3,\"method\":\"add\"}\n");
    let invalid = worker.line();
    assert_eq!((&invalid["id"], invalid["error"]["code"].as_i64()), (&Value::Null, Some(-32600)));
    // The last line counts without a line feed, as in a file that a person wrote.
    worker.type_in("{\"jsonrpc\":\"2.0\",\"id\":4,\"method\":\"add\",\"params\":[4]}");
    assert_eq!(worker.end(), ("{\"jsonrpc\":\"2.0\",\"id\":4,\"result\":4}\n".into(), Some(0)));
}

#[test]
fn standalone_worker_calls_and_is_answered() {
    let mut worker = Tried::start(standalone("serve"));
    worker.type_in("{\"jsonrpc\":\"2.0\",\"id\":7,\"method\":\"ask back\",\"params\":[\"why\"]}\n");
    assert_eq!(worker.line(), json!({"jsonrpc": "2.0", "method": "asking", "params": ["why"]}));
    let question = worker.line();
    assert_eq!((&question["method"], &question["params"]), (&json!("back"), &json!(["why"])));
    worker.type_in(&format!("{}\n", json!({"jsonrpc": "2.0", "id": question["id"], "result": "because"})));
    assert_eq!(worker.line(), json!({"jsonrpc": "2.0", "id": 7, "result": "because"}));
    worker.type_in("{\"jsonrpc\":\"2.0\",\"method\":\"shutdown\"}\n");
    assert_eq!(worker.process.wait_timeout(DEADLINE).unwrap().and_then(pipewright::Exit::code), Some(0));
}

#[test]
fn p15_standalone_call_fails_at_the_end_of_input() {
    // Three calls; its standard input is `/dev/null`.
    let mut process = standalone("ask").stdout(OutputMode::Lines).spawn_unsupervised().unwrap();
    let said = String::from_utf8(read_to_end(&process.take_stdout().unwrap())).unwrap();
    let (failed, control): (Vec<_>, Vec<_>) = said.lines().partition(|line| !line.contains("jsonrpc"));
    assert_eq!(failed.len(), 3, "{said}");
    assert!(failed.iter().all(|line| line.ends_with(&pipewright::CallError::ParentGone.to_string())), "{said}");
    assert!(control.last().unwrap().contains("\"state\""), "a notification is written all the same: {said}");
    assert_eq!(process.wait_timeout(DEADLINE).unwrap().and_then(pipewright::Exit::code), Some(0));
}

#[test]
fn standalone_worker_serves_a_file_of_requests() {
    for threads in ["1", "3"] {
        let mut worker = Tried::start(standalone("serve").args(["--threads", threads]));
        let requests =
            (0..200).map(|id| format!("{}\n", json!({"jsonrpc": "2.0", "id": id, "method": "add", "params": [id, 1]})));
        worker.type_in(&requests.collect::<String>());
        let (said, code) = worker.end();
        let mut answers: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        answers.sort_by_key(|answer| answer["id"].as_i64());
        let results: Vec<_> = answers.iter().map(|answer| answer["result"].as_i64().unwrap()).collect();
        assert_eq!((results, code), ((1..=200).collect(), Some(0)));
    }
}

#[test]
fn standalone_messages_are_lines_and_leave_standard_input_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("input");
    fs::write(&path, "for the worker\n").unwrap();
    let input = Arc::new(OwnedFd::from(fs::File::open(&path).unwrap()));
    for options in [&["inspect"][..], &["inspect", "--framing", "length32"], &["env-worker"]] {
        let spec = standalone(options[0]).args(&options[1..]).stdin(StdinMode::Fd(Arc::clone(&input)));
        let mut process = spec.stdout(OutputMode::Lines).spawn_unsupervised().unwrap();
        let said = read_to_end(&process.take_stdout().unwrap());
        let message: Value = serde_json::from_slice(said.strip_suffix(b"\n").unwrap()).unwrap();
        assert!(message.is_object() && !said.starts_with(b"\n"), "{message}");
        assert_eq!(process.wait_timeout(DEADLINE).unwrap().and_then(pipewright::Exit::code), Some(0));
    }
    let mut unread = String::new();
    fs::File::from(Arc::into_inner(input).unwrap()).read_to_string(&mut unread).unwrap();
    assert_eq!(unread, "for the worker\n");
}

#[test]
fn p15_standalone_worker_ends_when_nothing_reads_its_output() {
    let spec = standalone("flood").args(["--count", "1000000", "--size", "100"]).stdout(OutputMode::Lines);
    let mut process = spec.stderr(OutputMode::Lines).spawn_unsupervised().unwrap();
    drop(process.take_stdout());
    let said = String::from_utf8(read_to_end(&process.take_stderr().unwrap())).unwrap();
    let exit = process.wait_timeout(DEADLINE).unwrap().expect("ends");
    assert!(exit.code() == Some(64) && said.contains("the parent is gone"), "{exit}: {said}");
}

/// Named pipes precede the variable, as in a worker of a host that a developer started with it.
#[test]
fn standalone_variable_does_not_divert_a_worker_from_its_parent() {
    let spec = standalone("serve").control(pipewright::Pass::env("PIPEWRIGHT_CONTROL")).stdout(OutputMode::Lines);
    let supervisor = pipewright::Supervisor::new().unwrap();
    let worker = supervisor.spawn(spec).unwrap();
    assert_eq!(worker.call::<_, i64>("add", &[2, 3], DEADLINE).unwrap(), 5);
}

#[test]
fn standalone_worker_in_a_terminal_ends_at_ctrl_d_and_ctrl_c() {
    for (keys, expected) in [("\x04", "exit code 0"), ("\x03", "killed by signal 2 (SIGINT)")] {
        let (mut master, path) = kernel::open_terminal();
        // The first terminal that a session leader opens becomes its controlling terminal.
        let shell = WorkerSpec::new("/bin/sh").args(["-c", r#"exec "$@" <>"$0" >&0 2>&0"#]).arg(&path);
        let spec = shell.args([FIXTURE, "serve"]).process_group(ProcessGroup::NewSession);
        let mut process = spec.env("PIPEWRIGHT_STANDALONE", "1").spawn_unsupervised().unwrap();
        master.write_all(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"add\",\"params\":[2,3]}\n").unwrap();
        let mut shown = String::new();
        let until = Instant::now() + DEADLINE;
        while !shown.contains("\"result\":5}") {
            let mut part = [0; 4096];
            let left = until.saturating_duration_since(Instant::now());
            assert!(kernel::poll_readable(&master, left), "it has shown: {shown}");
            let bytes = master.read(&mut part).unwrap();
            shown.push_str(&String::from_utf8_lossy(&part[..bytes]));
        }
        master.write_all(keys.as_bytes()).unwrap();
        let exit = process.wait_timeout(DEADLINE).unwrap().expect("ends");
        assert_eq!(exit.to_string(), expected, "{shown}");
    }
}
