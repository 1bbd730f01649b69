//! Runs the programs of the README with workers that misbehave.

use crate::{
    kernel,
    support::{DEADLINE, Story, example, read_to_end, wait_gone},
};
use pipewright::{EventKind, OutputMode, Process, WorkerSpec};
use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};

#[test]
fn readme_contains_the_tested_programs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    for name in ["hello.rs", "first_program.rs", "one_plugin.rs", "word_count.rs"] {
        let program = fs::read_to_string(root.join("examples").join(name)).unwrap();
        let code = &program[program.find("use pipewright").unwrap()..];
        assert!(readme.contains(&format!("```rust,no_run\n{code}```")), "the README shows another {name}");
    }
    let program = fs::read_to_string(root.join("examples/workers/worker.py")).unwrap();
    let code = &program[program.find("import").unwrap()..];
    assert!(readme.contains(&format!("```python\n{code}```")), "the README shows another worker in Python");
}

#[test]
fn readme_shows_the_output_of_hello() {
    let readme = include_str!("../../README.md");
    let spec = WorkerSpec::new(example("hello")).stdout(OutputMode::Lines).stderr(OutputMode::Lines);
    let (code, text) = finish(spec.spawn_unsupervised().unwrap());
    assert_eq!(code, Some(0), "{text}");
    assert!(readme.contains(&format!("```text\n{text}```")), "{text}");
}

#[test]
fn readme_shows_the_output_of_word_count() {
    let readme = include_str!("../../README.md");
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("alice.txt"), "Down the Rabbit-Hole").unwrap();
    fs::write(directory.path().join("image.png"), b"\x89PNG").unwrap();
    let spec = WorkerSpec::new(example("word_count")).args(["alice.txt", "image.png", "missing.txt"]);
    let spec = spec.current_dir(directory.path()).stdout(OutputMode::Lines).stderr(OutputMode::Lines);
    let (code, text) = finish(spec.spawn_unsupervised().unwrap());
    assert_eq!(code, Some(0), "{text}");
    assert!(readme.contains(&format!("$ word_count alice.txt image.png missing.txt\n{text}```")), "{text}");
}

/// Starts an example of the README in a directory where its worker is the shell script.
fn start(program: &str, worker: &str, script: &str) -> (tempfile::TempDir, Process) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(worker);
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let spec = WorkerSpec::new(example(program)).current_dir(directory.path());
    (directory, spec.stdout(OutputMode::Lines).stderr(OutputMode::Lines).spawn_unsupervised().unwrap())
}

/// Returns the exit code and everything it printed.
#[track_caller]
fn finish(mut process: Process) -> (Option<i32>, String) {
    let streams = [process.take_stdout().unwrap(), process.take_stderr().unwrap()];
    let text: Vec<u8> = streams.iter().flat_map(read_to_end).collect();
    let exit = process.wait_timeout(DEADLINE).unwrap().expect("exits");
    (exit.code(), String::from_utf8(text).unwrap())
}

#[test]
fn p15_host_of_one_plugin_exits_with_its_plugin() {
    for (script, expected) in [
        ("exit 0", "#1: exit code 0"),
        ("echo 'no licence' >&2; exit 0", "#1: exit code 0, finished: no licence"),
        // A descendant keeps the pipes open, and nothing connects.
        ("sleep 0.2 & exit 0", "#1: exit code 0"),
    ] {
        let (_directory, process) = start("one_plugin", "plugin", script);
        let (code, text) = finish(process);
        assert!(code == Some(0) && text.contains(expected), "{script}: {code:?}: {text}");
    }
}

#[test]
fn p15_host_of_one_plugin_stops_a_hanging_plugin_at_sigint() {
    let (directory, process) =
        start("one_plugin", "plugin", "while :; do [ -p pid ] && break; done; echo $$ >pid; exec sleep 1000");
    // The plugin is not ready within 5 s and would be restarted; SIGINT comes before that.
    let fifo = directory.path().join("pid");
    assert_eq!(kernel::make_fifo(&fifo), 0);
    let pipe = fs::File::options().read(true).write(true).open(fifo).unwrap();
    assert!(kernel::poll_readable(&pipe, DEADLINE), "the plugin has not started");
    let mut pid = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(pipe), &mut pid).unwrap();
    process.signal(libc::SIGINT).unwrap();
    let (code, text) = finish(process);
    assert!(code == Some(0) && text.contains("#1: killed by signal"), "{code:?}: {text}");
    wait_gone(pid.trim().parse().unwrap());
}

#[test]
fn p02_first_program_continues_after_invalid_messages() {
    let script = "h=${1#--messages=}\ncase $2 in a.c) echo '{\"done\": \"no\"}' >&$h; echo '{\"done\": 7}' >&$h ;; *) echo broken >&2; exit 3 ;; esac";
    let (_directory, process) = start("first_program", "compile-worker", script);
    let (code, text) = finish(process);
    assert_eq!(code, Some(0), "{text}");
    for expected in ["#1: 7 done", "at byte 12", "#2: exit code 3\nbroken"] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
}

#[test]
fn p15_harness_stops_a_hanging_test_and_one_that_leaves_a_daemon() {
    let mut story = Story::new();
    for script in ["echo tested; sleep 1000", "echo tested; setsid sleep 1000 & exit 3"] {
        let test = WorkerSpec::new("sh").args(["-c", script]).runtime_max(Duration::from_millis(300));
        story.supervisor.spawn(test.stdout(OutputMode::Lines).stderr(OutputMode::Lines)).unwrap();
    }
    story.supervisor.close();
    let (mut lines, mut exits) = (0, 0);
    while exits < 2 {
        story.find(|event| match &event.kind {
            EventKind::Line { line, .. } => {
                lines += u32::from(line.text() == "tested");
                Some(())
            }
            EventKind::Exited { .. } => {
                exits += 1;
                Some(())
            }
            _ => None,
        });
    }
    assert_eq!(lines, 2, "{:#?}", story.told);
}
