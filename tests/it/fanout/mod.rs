//! The `fanout` example as its user runs it.

use crate::{
    kernel,
    support::{DEADLINE, example, is_alive, read_to_end, shorten, wait_gone},
};
use pipewright::{Exit, OutputMode, Process, WorkerSpec};
use std::{
    ffi::OsStr,
    fs::{self, File},
    io::Read,
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt, fs::PermissionsExt, net::UnixStream},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

// Cargo does not run unit tests of an example that is also built as a program, so its pure modules are tested here.
#[path = "../../../examples/fanout/build_log.rs"]
#[expect(dead_code, reason = "code that reads files is tested through the program")]
mod build_log;
#[path = "../../../examples/fanout/command.rs"]
mod command;
#[path = "../../../examples/fanout/database.rs"]
#[expect(dead_code, reason = "code that reads files is tested through the program")]
mod database;
#[path = "../../../examples/fanout/depfile.rs"]
mod depfile;
#[path = "../../../examples/fanout/diagnostics.rs"]
mod diagnostics;
#[path = "../../../examples/fanout/rule.rs"]
mod rule;

mod attempts;
mod jobserver;
mod killed;
mod sccache;
mod up_to_date;

fn fanout() -> WorkerSpec {
    // Messages of compilers depend on the locale.
    WorkerSpec::new(example("fanout")).env("LC_ALL", "C").stdout(OutputMode::Lines).stderr(OutputMode::Lines)
}

struct Run {
    exit: Exit,
    stdout: String,
    stderr: String,
}

fn finish(mut process: Process) -> Run {
    let (stdout, stderr) = (process.take_stdout().unwrap(), process.take_stderr().unwrap());
    // Read one after the other: a few lines cannot fill a pipe.
    let text = |pipe| String::from_utf8(read_to_end(&pipe)).unwrap();
    let (stdout, stderr) = (text(stdout), text(stderr));
    Run { exit: process.wait_timeout(DEADLINE).unwrap().expect("its end").clone(), stdout, stderr }
}

fn run(spec: &WorkerSpec) -> Run {
    finish(spec.spawn_unsupervised().unwrap())
}

fn write(directory: &Path, name: &str, text: &str) -> PathBuf {
    let path = directory.join(name);
    fs::write(&path, text).unwrap();
    path
}

/// A compiler that is a shell script.
fn compiler(directory: &Path, name: &str, script: &str) -> String {
    let path = write(directory, name, &format!("#!/bin/sh\n{script}\n"));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.to_str().unwrap().to_owned()
}

/// A database of files in one directory, each compiled by `cc`.
fn database(directory: &Path, files: &[(&str, &str)], compiler: &str) -> PathBuf {
    let entries: Vec<_> = files
        .iter()
        .map(|(name, text)| {
            write(directory, name, text);
            let object = format!("{}.o", name.trim_end_matches(".c"));
            serde_json::json!({"directory": directory, "file": name, "arguments": [compiler, "-Wall", "-c", name, "-o", object]})
        })
        .collect();
    write(directory, "compile_commands.json", &serde_json::to_string(&entries).unwrap())
}

fn objects(directory: &Path) -> usize {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|extension| extension == "o")).count()
}

#[test]
fn builds_example_project() {
    let out = tempfile::tempdir().unwrap();
    let run = run(&fanout().arg("--out").arg(out.path()).args(["--jobs", "2"]));
    assert!(run.exit.success(), "{}\n{}", run.stdout, run.stderr);
    assert!(run.stdout.contains("13 built, 0 failed, 1 warnings in "), "{}", run.stdout);
    assert!(run.stdout.contains("warning: unused variable 'digits' [-Wunused-variable]"), "{}", run.stdout);
    assert_eq!(run.stderr.lines().filter(|line| line.contains("/13] ")).count(), 13, "{}", run.stderr);
    assert_eq!(objects(out.path()), 13);
}

#[test]
fn stops_at_first_failure_without_keep_going() {
    let directory = tempfile::tempdir().unwrap();
    let files = [("a.c", "int a = b;\n"), ("b.c", "int b;\n"), ("c.c", "int c;\n"), ("d.c", "int d;\n")];
    let database = database(directory.path(), &files, "cc");
    let stopped = run(&fanout().arg(&database).args(["--jobs", "1"]));
    assert_eq!(stopped.exit.code(), Some(1));
    assert!(stopped.stdout.contains("3 not built\n0 built, 1 failed, 0 warnings"), "{}", stopped.stdout);
    assert!(stopped.stdout.contains("a.c:1:9: error:"), "{}", stopped.stdout);
    assert!(!directory.path().join("d.o").exists());
    let continued = run(&fanout().arg(&database).args(["--jobs", "2", "--keep-going"]));
    assert_eq!(continued.exit.code(), Some(1));
    assert!(continued.stdout.contains("3 built, 1 failed, 0 warnings"), "{}", continued.stdout);
    assert!(directory.path().join("d.o").exists());
}

#[test]
fn invalid_database_exits_with_2_and_one_line() {
    let directory = tempfile::tempdir().unwrap();
    for (text, expected) in [
        (None, "No such file"),
        (Some("{"), "not a compilation database"),
        (Some("{\"a\":1}"), "not a compilation database"),
        (Some("[]"), "no entries"),
        (Some(r#"[{"directory":"/","file":"a.c","command":"cc\n'a"}]"#), "open quote"),
        (Some(r#"[{"directory":"/no/such/place","file":"a.c","command":"cc -c a.c"}]"#), "/no/such/place"),
    ] {
        let path = directory.path().join("database.json");
        drop(fs::remove_file(&path));
        if let Some(text) = text {
            fs::write(&path, text).unwrap();
        }
        let run = run(&fanout().arg(&path));
        assert_eq!(run.exit.code(), Some(2), "{text:?}");
        assert!(run.stderr.contains(expected) && run.stderr.lines().count() == 1, "{text:?}: {}", run.stderr);
        assert!(run.stderr.contains("database.json"), "{}", run.stderr);
    }
    assert_eq!(run(&fanout().args(["--jobs", "0"])).exit.code(), Some(2));
    assert_eq!(run(&fanout().arg("--jbos")).exit.code(), Some(2));
    let not_text = run(&fanout().arg(OsStr::from_bytes(b"\xff.json")));
    assert_eq!(not_text.exit.code(), Some(2), "{}", not_text.stderr);
    assert!(not_text.stderr.contains("No such file") && not_text.stderr.lines().count() == 1, "{}", not_text.stderr);
    let help = run(&fanout().arg("--help"));
    assert!(
        help.exit.success() && help.stdout.starts_with("usage: fanout ") && help.stdout.contains("exit codes:"),
        "{}\n{}",
        help.stdout,
        help.stderr
    );
}

#[test]
fn missing_compiler_fails_entry() {
    let directory = tempfile::tempdir().unwrap();
    let run = run(&fanout().arg(database(directory.path(), &[("a.c", "int a;\n")], "no-such-compiler")));
    assert_eq!(run.exit.code(), Some(1), "{}", run.stderr);
    assert!(run.stdout.contains("failed to start no-such-compiler"), "{}", run.stdout);
}

#[test]
fn compiler_failure_without_diagnostic_is_reported() {
    let directory = tempfile::tempdir().unwrap();
    for (script, expected) in [
        ("echo 'no licence today' >&2; exit 3", "exit code 3\n"),
        ("exit 4", "exit code 4\n"),
        ("kill -SEGV $$", "killed by signal 11 (SIGSEGV)"),
    ] {
        let odd = compiler(directory.path(), "odd-cc", script);
        let run = run(&fanout().arg(database(directory.path(), &[("a.c", "")], &odd)));
        assert_eq!(run.exit.code(), Some(1), "{script}: {}", run.stderr);
        assert!(run.stdout.contains(&format!("error: a.c: {odd}: {expected}")), "{script}: {}", run.stdout);
    }
}

#[test]
fn objects_of_same_name_are_both_kept() {
    let directory = tempfile::tempdir().unwrap();
    let entries: Vec<_> = ["x", "y"]
        .iter()
        .map(|part| {
            fs::create_dir(directory.path().join(part)).unwrap();
            write(directory.path(), &format!("{part}/a.c"), "int a;\n");
            let (file, object) = (format!("{part}/a.c"), format!("{part}/a.o"));
            serde_json::json!({"directory": directory.path(), "file": file, "command": format!("cc -c {file} -o {object}")})
        })
        .collect();
    let database = write(directory.path(), "compile_commands.json", &serde_json::to_string(&entries).unwrap());
    let out = directory.path().join("out");
    let run = run(&fanout().arg(database).arg("--out").arg(&out));
    assert!(run.exit.success(), "{}\n{}", run.stdout, run.stderr);
    assert!(out.join("x/a.o").exists() && out.join("y/a.o").exists());
    assert!(!directory.path().join("x/a.o").exists(), "only below --out");
}

#[test]
fn closed_output_does_not_stop_build() {
    let out = tempfile::tempdir().unwrap();
    let mut process = fanout().arg("--out").arg(out.path()).spawn_unsupervised().unwrap();
    drop((process.take_stdout(), process.take_stderr()));
    let exit = process.wait_timeout(DEADLINE).unwrap().expect("its end").clone();
    assert!(exit.success(), "{exit}");
    assert_eq!(objects(out.path()), 13);
}

#[test]
fn interrupt_kills_compilers() {
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("pids");
    assert_eq!(kernel::make_fifo(&fifo), 0);
    // Sends its pid, ignores SIGTERM and SIGINT, and never exits by itself.
    let script =
        "trap '' TERM INT\nmkfifo \"$0.$$\"\necho \"$$\" > \"$(dirname \"$0\")/pids\"\nread -r line < \"$0.$$\"";
    let slow = compiler(directory.path(), "slow-cc", script);
    for (signal, code) in [(libc::SIGINT, 130), (libc::SIGTERM, 143)] {
        let database = database(directory.path(), &[("a.c", "")], &slow);
        // Opened for both directions, which does not block.
        let pipe = OwnedFd::from(File::options().read(true).write(true).open(&fifo).unwrap());
        let process = fanout().arg(database).spawn_unsupervised().unwrap();
        assert!(kernel::poll_readable(&pipe, DEADLINE), "no compiler has sent its pid");
        let mut text = [0; 32];
        let length = File::from(pipe).read(&mut text).unwrap();
        let pid: u32 = String::from_utf8_lossy(&text[..length]).trim().parse().unwrap();
        assert!(is_alive(pid));
        process.signal(signal).unwrap();
        let run = finish(process);
        assert_eq!(run.exit.code(), Some(code), "{}\n{}", run.stdout, run.stderr);
        assert!(run.stdout.contains("1 not built\n0 built, 0 failed, 0 warnings"), "{}", run.stdout);
        wait_gone(pid);
    }
}

/// A database of one entry for each command, all in one directory.
fn commands(directory: &Path, commands: &[&str]) -> PathBuf {
    let entry = |command| serde_json::json!({"directory": directory, "file": "a.c", "command": command});
    let entries: Vec<_> = commands.iter().map(entry).collect();
    write(directory, "a.c", "int a = V;\n");
    write(directory, "compile_commands.json", &serde_json::to_string(&entries).unwrap())
}

#[test]
fn relative_compiler_resolves_from_entry_directory() {
    let directory = tempfile::tempdir().unwrap();
    let (build, tools) = (directory.path().join("build"), directory.path().join("tools"));
    fs::create_dir_all(&build).unwrap();
    fs::create_dir_all(&tools).unwrap();
    compiler(&tools, "gcc", "echo 'a.c:1:1: warning: the right one' >&2");
    // A wrong compiler, at the same path relative to the caller's directory.
    let (caller, wrong) = (directory.path().join("x/caller"), directory.path().join("x/tools"));
    fs::create_dir_all(&caller).unwrap();
    fs::create_dir_all(&wrong).unwrap();
    compiler(&wrong, "gcc", "exit 1");
    let entry = serde_json::json!([{"directory": ".", "file": "a.c", "command": "../tools/gcc -c a.c"}]);
    let database = write(&build, "compile_commands.json", &entry.to_string());
    let run = run(&fanout().arg(database).current_dir(&caller));
    assert!(run.exit.success(), "{}\n{}", run.stdout, run.stderr);
    assert!(run.stdout.contains("the right one"), "{}", run.stdout);
}

#[test]
fn daemon_of_compiler_wrapper_survives_without_delay() {
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("pids");
    assert_eq!(kernel::make_fifo(&fifo), 0);
    let pipe = OwnedFd::from(File::options().read(true).write(true).open(&fifo).unwrap());
    // As sccache's first call: the server keeps the inherited standard error open.
    let script = "setsid sh -c 'echo $$ >\"$(dirname \"$0\")/pids\"; exec sleep 1000' \"$0\" </dev/null >/dev/null &\nexec cc \"$@\"";
    let wrapper = compiler(directory.path(), "wrapper", script);
    let run = run(&fanout().arg(database(directory.path(), &[("a.c", "int a;\n"), ("b.c", "int b;\n")], &wrapper)));
    assert!(run.exit.success(), "{}\n{}", run.stdout, run.stderr);
    assert!(kernel::poll_readable(&pipe, DEADLINE), "no daemon has sent its pid");
    let mut text = [0; 32];
    let length = File::from(pipe).read(&mut text).unwrap();
    for pid in String::from_utf8_lossy(&text[..length]).lines() {
        let pid: u32 = pid.parse().unwrap();
        assert!(is_alive(pid), "the daemon {pid} was killed");
        kernel::kill(pid, libc::SIGKILL);
    }
}

#[test]
fn all_compiler_output_is_printed() {
    let directory = tempfile::tempdir().unwrap();
    let script = "echo 'copied to the output'\necho 'a.c:1:2: warning: odd' >&2\necho '    1 | a' >&2";
    let chatty = compiler(directory.path(), "chatty", script);
    let run = run(&fanout().arg(database(directory.path(), &[("a.c", "")], &chatty)));
    assert!(run.exit.success(), "{}\n{}", run.stdout, run.stderr);
    let expected = "copied to the output\na.c:1:2: warning: odd\n    1 | a\n1 built, 0 failed, 1 warnings";
    assert!(run.stdout.starts_with(expected), "{}", run.stdout);
}

#[test]
fn entries_with_same_output_run_in_sequence() {
    let directory = tempfile::tempdir().unwrap();
    // Fails if another compiler writes the same output.
    let script = "mkdir lock || exit 1\nfor i in 1 2 3 4 5 6 7 8 9; do cc -c a.c -DV=\"$1\" -o a.o; done\nrmdir lock";
    let slow = compiler(directory.path(), "slow", script);
    let lines: Vec<String> = (1..4).map(|value| format!("{slow} {value} -o a.o")).collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let run = run(&fanout().arg(commands(directory.path(), &lines)).args(["-j4", "-k"]));
    assert!(run.exit.success() && run.stdout.contains("3 built"), "{}\n{}", run.stdout, run.stderr);
}

#[test]
fn entry_waits_for_producer_of_its_input() {
    let directory = tempfile::tempdir().unwrap();
    let entries = serde_json::json!([
        {"directory": directory.path(), "file": "a.c", "command": "cc -DV=1 -c a.c -o a.o"},
        {"directory": directory.path(), "file": "a.o", "command": ": && cc a.o -shared -o liba.so && :", "output": "liba.so"},
    ]);
    write(directory.path(), "a.c", "int a = V;\n");
    let database = write(directory.path(), "compile_commands.json", &entries.to_string());
    let run = run(&fanout().arg(database).arg("-j2"));
    assert!(run.exit.success(), "{}\n{}", run.stdout, run.stderr);
    assert!(directory.path().join("liba.so").exists());
}

#[test]
fn directories_of_dependency_files_are_created() {
    let directory = tempfile::tempdir().unwrap();
    let line = "cc -DV=1 -MT a.o -MD -MP -MF .deps/a.Tpo -c -o a.o a.c";
    let database = commands(directory.path(), &[line]);
    let here = run(&fanout().arg(&database));
    assert!(here.exit.success() && directory.path().join(".deps/a.Tpo").exists(), "{}", here.stdout);
    fs::remove_dir_all(directory.path().join(".deps")).unwrap();
    let out = directory.path().join("out");
    let elsewhere = run(&fanout().arg(&database).arg("--out").arg(&out));
    assert!(elsewhere.exit.success() && out.join("a.o.d").exists(), "{}", elsewhere.stdout);
    assert!(!directory.path().join(".deps").exists(), "only below --out");
}

#[test]
fn invalid_entries_are_reported_and_others_compiled() {
    let directory = tempfile::tempdir().unwrap();
    let entries = serde_json::json!([
        {"directory": directory.path(), "file": "a.c", "command": "cc -DV=1 -c a.c"},
        {"directory": directory.path(), "file": "", "command": "", "output": "all"},
        {"directory": "/no/such/place", "file": "b.c", "command": "cc -c b.c"},
        {"directory": directory.path(), "file": "x", "command": "cd / && true"},
    ]);
    write(directory.path(), "a.c", "int a = V;\n");
    let run = run(&fanout().arg(write(directory.path(), "database.json", &entries.to_string())));
    assert_eq!(run.exit.code(), Some(1), "{}\n{}", run.stdout, run.stderr);
    assert!(run.stderr.contains("database.json: entry 2 (all): empty command\n"), "{}", run.stderr);
    assert!(run.stderr.contains("database.json: entry 3 (b.c): no such directory: /no/such/place\n"), "{}", run.stderr);
    assert!(run.stdout.contains("2 built, 2 failed, "), "{}", run.stdout);
    assert!(directory.path().join("a.o").exists());
}

#[test]
fn non_utf8_file_names_are_compiled() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join(OsStr::from_bytes(b"\xe9.c")), "int a;\n").unwrap();
    let mut text = format!("[{{\"directory\":{:?},\"file\":\"", directory.path()).into_bytes();
    text.extend(b"\xe9.c\",\"command\":\"cc -c \xe9.c -o \xe9.o\"}]");
    let database = directory.path().join(OsStr::from_bytes(b"\xff.json"));
    fs::write(&database, text).unwrap();
    let run = run(&fanout().arg(&database));
    assert!(run.exit.success(), "{}\n{}", run.stdout, run.stderr);
    assert!(directory.path().join(OsStr::from_bytes(b"\xe9.o")).exists());
}

#[test]
fn p02_nonblocking_stdout_loses_no_lines() {
    const LINES: usize = 3000;
    let directory = tempfile::tempdir().unwrap();
    // More than a socket buffer holds.
    let text = "x".repeat(400);
    let script = format!("i=0; while [ $i -lt {LINES} ]; do echo \"a.c:1:1: warning: {text}\" >&2; i=$((i + 1)); done");
    let chatty = compiler(directory.path(), "chatty", &script);
    let (mut reader, writer) = UnixStream::pair().unwrap();
    writer.set_nonblocking(true).unwrap();
    reader.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut command = Command::new(example("fanout"));
    command
        .arg(database(directory.path(), &[("a.c", "")], &chatty))
        .stdout(OwnedFd::from(writer))
        .stderr(Stdio::null());
    let mut process = command.spawn().unwrap();
    drop(command);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert!(process.wait().unwrap().success());
    assert_eq!(text.matches("a.c:1:1: warning: xxx").count(), LINES, "{}", shorten(&text));
}
