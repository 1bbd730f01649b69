//! Output of the program: to a terminal, to a slow or closed reader, and to files.

use super::{Foreman, HANG, Said, places};
use crate::{
    kernel,
    support::{DEADLINE, example, shorten, wait_gone},
};
use pipewright::{OutputMode, ProcessGroup, WorkerSpec};
use std::{
    fs::{self, File},
    io::Read,
    os::{fd::OwnedFd, unix::net::UnixStream},
    process::{Command, Stdio},
};

#[test]
fn help_and_version_succeed() {
    for (option, expected) in [("--help", "Starts the workers"), ("-h", "Starts the workers"), ("-V", "keep_alive 0.")]
    {
        let spec = WorkerSpec::new(example("keep_alive")).arg(option).stdout(OutputMode::Lines);
        let mut process = spec.spawn_unsupervised().unwrap();
        let lines = Said::new(process.take_stdout().unwrap()).all();
        assert!(lines[0].starts_with(expected), "{lines:#?}");
        assert!(lines.iter().all(|line| line.chars().count() <= 80), "{lines:#?}");
        assert!(process.wait_timeout(DEADLINE).unwrap().expect("an exit").success());
    }
}

#[test]
fn worker_output_cannot_control_the_terminal() {
    let (exit, lines, stderr) = Foreman::new(
        r#"
        [workers.colour]
        command = ["printf", "\\033[31mred\\n\\033]0;title\\007\\033[2J\\ttab\\n"]
        "#,
    )
    .finish();
    assert!(exit.success(), "{exit}: {lines:#?}, {stderr:#?}");
    places(&lines, &["colour | \\u{1b}[31mred", "colour | \\u{1b}]0;title\\u{7}\\u{1b}[2J\ttab"]);
    assert!(lines.iter().all(|line| line.chars().all(|char| char == '\t' || !char.is_control())), "{lines:#?}");
}

/// Whether a line begins with a time such as `2026-11-27T22:10:00.123Z `.
fn has_time(line: &str) -> bool {
    line.len() > 25 && line.as_bytes()[10] == b'T' && &line[23..25] == "Z "
}

#[test]
fn lines_in_log_files_have_time_and_name() {
    let mut foreman = Foreman::new(&format!(
        r#"
        [workers.one]
        command = ["sh", "-c", "echo first; echo second >&2; {HANG}"]
        output = {{ file = "log" }}
        ready = {{ line = "second" }}
        [workers.two]
        command = ["echo", "third"]
        output = {{ file = "log" }}
        after = ["one"]
        [workers.raw]
        command = ["echo", "as it is"]
        output = {{ file = "raw.log", raw = true }}
        after = {{ two = "exited" }}
        "#
    ));
    foreman.stdout.find("raw: exit code 0");
    // Renamed by a log rotation, and reopened when the configuration is reloaded.
    let (log, old) = (foreman.directory.path().join("log"), foreman.directory.path().join("log.1"));
    fs::rename(&log, &old).unwrap();
    let again = "[workers.two]\ncommand = ['echo', 'fourth']\noutput = { file = 'log' }\n";
    foreman.reload(again);
    foreman.stdout.find("one: removed from the file");
    foreman.stdout.find("two: exit code 0");
    assert_eq!(fs::read_to_string(foreman.directory.path().join("raw.log")).unwrap(), "as it is\n");
    assert!(foreman.process.wait_timeout(DEADLINE).unwrap().expect("an exit").success());
    let (old, log) = (fs::read_to_string(old).unwrap(), fs::read_to_string(log).unwrap());
    assert!(old.lines().chain(log.lines()).all(has_time), "{old}{log}");
    let mut texts: Vec<&str> = old.lines().map(|line| &line[25..]).collect();
    texts.sort_unstable();
    assert_eq!(texts, ["one | first", "one | second", "two | third"]);
    assert_eq!(&log.lines().next().unwrap()[25..], "two | fourth");
}

#[test]
fn stdout_to_a_file_has_times() {
    let directory = tempfile::tempdir().unwrap();
    let (file, log) = (directory.path().join("workers.toml"), directory.path().join("log"));
    fs::write(&file, "[workers.web]\ncommand = ['echo', 'hello']").unwrap();
    let status = Command::new(example("keep_alive")).arg(file).stdout(File::create(&log).unwrap()).status().unwrap();
    assert!(status.success());
    let text = fs::read_to_string(log).unwrap();
    assert!(text.lines().all(has_time) && text.contains("Z web | hello\n"), "{text}");
}

/// Writes 10,000 lines of 60 bytes.
const COUNT: &str = "i=10000; while [ $i -lt 20000 ]; do echo \"line-$i-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\"; i=$((i + 1)); done";

#[test]
fn p02_nonblocking_stdout_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("workers.toml");
    fs::write(&file, format!("[workers.count]\ncommand = ['sh', '-c', '{COUNT}']")).unwrap();
    let (mut reader, writer) = UnixStream::pair().unwrap();
    writer.set_nonblocking(true).unwrap();
    reader.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut command = Command::new(example("keep_alive"));
    let mut process = command.arg(file).stdout(OwnedFd::from(writer)).stderr(Stdio::null()).spawn().unwrap();
    drop(command);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert!(process.wait().unwrap().success());
    let whole = text.lines().filter(|line| line.starts_with("count | line-1") && line.len() == 67).count();
    assert_eq!(whole, 10000, "{}", shorten(&text));
}

#[test]
fn p15_unread_output_does_not_block_the_shutdown() {
    let mut foreman = Foreman::new(
        "[workers.flood]\ncommand = ['sh', '-c', 'while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done']",
    );
    foreman.stdout.find("flood | ");
    let flood = foreman.stdout.pid("flood");
    foreman.process.signal(libc::SIGTERM).unwrap();
    let exit = foreman.process.wait_timeout(DEADLINE).unwrap().expect("an exit").clone();
    assert!(exit.success(), "{exit}");
    wait_gone(flood);
}

#[test]
fn closed_terminal_stops_all_workers() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("workers.toml");
    fs::write(&file, "[workers.web]\ncommand = ['sh', '-c', 'echo pid $$ here; exec sleep 1000']").unwrap();
    let (mut window, path) = kernel::open_terminal();
    // A session leader gets the first terminal that it opens as controlling terminal.
    let spec = WorkerSpec::new("/bin/sh").args(["-c", r#"exec "$@" <>"$0" >&0 2>&0"#]).arg(path);
    let mut process =
        spec.arg(example("keep_alive")).arg(file).process_group(ProcessGroup::NewSession).spawn_unsupervised().unwrap();
    let mut shown = String::new();
    let pid = loop {
        let mut part = [0; 4096];
        assert!(kernel::poll_readable(&window, DEADLINE), "{shown}");
        let length = window.read(&mut part).unwrap();
        shown.push_str(&String::from_utf8_lossy(&part[..length]));
        if let Some((before, _)) = shown.split_once(" here") {
            break before.rsplit(' ').next().unwrap().parse().unwrap();
        }
    };
    drop(window);
    let exit = process.wait_timeout(DEADLINE).unwrap().expect("an exit");
    assert!(exit.success(), "{exit}: {shown}");
    wait_gone(pid);
}
