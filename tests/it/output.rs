//! Captured output: one stream for both outputs, bytes as they were written.

use crate::support::{DEADLINE, Story, Way, alone, both_ways};
use pipewright::{
    EventKind, Framing, OutputMode, SpecError, StdioProtocol, Supervisor, WorkerSpec, events::OutputStream,
};
use std::fs;

/// Writes to both streams in turn, without buffering.
const ALTERNATING: &str = "i=0; while [ $i -lt 300 ]; do echo out$i; echo err$i >&2; i=$((i+1)); done";
/// Exits with 0 if both outputs are the same open file.
const SAME_FILE: &str = r#"[ "$(readlink /proc/$$/fd/1)" = "$(readlink /proc/$$/fd/2)" ]"#;

fn alternating_lines() -> Vec<String> {
    (0..300).flat_map(|number| [format!("out{number}"), format!("err{number}")]).collect()
}

both_ways! {
    fn p01_stderr_to_stdout_keeps_the_order_of_both(way: Way) {
        let mut story = Story::new();
        let spec = way.program("sh").args(["-c", ALTERNATING]).stdout(OutputMode::Lines).stderr(OutputMode::ToStdout);
        story.supervisor.spawn(spec).unwrap();
        let (mut lines, mut tail) = (Vec::new(), String::new());
        for event in story.rest() {
            match event.kind {
                EventKind::Line { stream, line } => {
                    assert_eq!(stream, OutputStream::Stdout);
                    lines.push(line.text().into_owned());
                }
                EventKind::Exited(exit) => tail = exit.stderr_text().into_owned(),
                _ => {}
            }
        }
        assert_eq!(lines, alternating_lines());
        assert_eq!(tail, lines.join("\n") + "\n", "the end of both is kept for the exit");
    }

    fn stderr_to_stdout_follows_every_mode_of_stdout(way: Way) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let spec = way.program("sh").args(["-c", ALTERNATING]).stdout(OutputMode::File(path.clone()));
        let mut process = spec.stderr(OutputMode::ToStdout).spawn_unsupervised().unwrap();
        assert!(process.wait_timeout(DEADLINE).unwrap().unwrap().success());
        assert_eq!(fs::read_to_string(&path).unwrap().lines().collect::<Vec<_>>(), alternating_lines());

        let file = fs::File::create(&path).unwrap();
        for stdout in [OutputMode::from(file), OutputMode::Null, OutputMode::Lines] {
            let shown = format!("{stdout:?}");
            let script = format!("{ALTERNATING}; {SAME_FILE}");
            let supervisor = Supervisor::new().unwrap();
            let spec = way.program("sh").args(["-c", &script]).stdout(stdout).stderr(OutputMode::ToStdout);
            let worker = supervisor.spawn(spec).unwrap();
            assert!(worker.wait_timeout(DEADLINE).unwrap().success(), "{shown}");
        }
        // Both share the position in the file.
        assert_eq!(fs::read_to_string(&path).unwrap().lines().collect::<Vec<_>>(), alternating_lines());
    }

    fn stderr_to_stdout_follows_inherited_stdout(way: Way) {
        let test = match way {
            Way::Direct => "output::direct::stderr_to_stdout_follows_inherited_stdout",
            Way::Command => "output::command::stderr_to_stdout_follows_inherited_stdout",
        };
        if alone(test, |spec| spec) {
            let spec = way.program("sh").args(["-c", SAME_FILE]);
            let exit_of = |spec: WorkerSpec| spec.spawn_unsupervised().unwrap().wait().unwrap().code();
            assert_eq!(exit_of(spec.clone()), Some(1), "the test has two streams");
            assert_eq!(exit_of(spec.stderr(OutputMode::ToStdout)), Some(0));
        }
    }
}

#[test]
fn p16_stderr_to_stdout_conflicts_are_typed() {
    let conflict = |spec: WorkerSpec| match spec.validate().unwrap_err() {
        SpecError::Conflict { settings, .. } => settings,
        other => panic!("{other}"),
    };
    let spec = || WorkerSpec::new("true");
    assert_eq!(conflict(spec().stdout(OutputMode::ToStdout)), ["stdout", "OutputMode::ToStdout"]);
    let either = [
        spec().messages_on_stdout().stderr(OutputMode::ToStdout),
        spec().stderr(OutputMode::ToStdout).messages_on_stdout(),
    ];
    assert_eq!(either.map(conflict), [["messages_on_stdout", "stderr"]; 2]);
    let stdio = spec().control_on_stdio(StdioProtocol::new(Framing::Lines)).stderr(OutputMode::ToStdout);
    assert_eq!(conflict(stdio), ["control_on_stdio", "stderr"]);
    assert_eq!(conflict(spec().messages_on_stderr().stderr(OutputMode::ToStdout)), ["messages_on_stderr", "stderr"]);
}
