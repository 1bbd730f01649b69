//! The example `keep_alive`, run as a program.

use crate::{
    kernel,
    support::{DEADLINE, example, read_to_end, signal_until_exit, wait_gone},
};
use pipewright::{Exit, OutputMode, Process, StdinMode, WorkerSpec, pipe::anonymous::PipeReader};
use std::{fs, io::Write, net::TcpListener, os::unix::net::UnixListener};

// Cargo runs no unit tests of an example that is also built as a program, so its pure parts are tested here.
#[path = "../../../examples/keep_alive/value.rs"]
mod value;
#[path = "../../../examples/keep_alive/recipe.rs"]
#[expect(dead_code, reason = "the rest is tested through the program")]
mod recipe;
#[path = "../../../examples/keep_alive/file.rs"]
#[expect(dead_code, reason = "the rest is tested through the program")]
mod file;
#[path = "../../../examples/keep_alive/table.rs"]
mod table;

mod reload; // reloads of the file
mod screen; // output

/// A running `keep_alive`, and its output so far.
struct Foreman {
    directory: tempfile::TempDir,
    process: Process,
    stdout: Said,
    stderr: Said,
}

/// A stream that is read line by line.
struct Said {
    pipe: PipeReader,
    rest: Vec<u8>,
    lines: Vec<String>,
}

impl Said {
    fn new(pipe: PipeReader) -> Self {
        Self { pipe, rest: Vec::new(), lines: Vec::new() }
    }

    #[track_caller]
    fn next(&mut self) -> &str {
        let mut part = [0; 4096];
        let end = loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                break end;
            }
            match self.pipe.read_timeout(&mut part, DEADLINE) {
                Ok(0) => panic!("end of output; read so far: {:#?}", self.lines),
                Ok(bytes) => self.rest.extend_from_slice(&part[..bytes]),
                Err(error) => panic!("{error}; read so far: {:#?}", self.lines),
            }
        };
        let line: Vec<u8> = self.rest.drain(..=end).collect();
        self.lines.push(String::from_utf8_lossy(&line).trim_end().to_owned());
        self.lines.last().unwrap()
    }

    /// The next line that starts with `start`. Skips other lines.
    #[track_caller]
    fn find(&mut self, start: &str) -> String {
        loop {
            let line = self.next();
            if line.starts_with(start) {
                return line.to_owned();
            }
        }
    }

    /// Waits for lines that start with these texts, in any order.
    #[track_caller]
    fn find_all<const N: usize>(&mut self, starts: [&str; N]) {
        let mut missing = starts.to_vec();
        while !missing.is_empty() {
            let line = self.next();
            missing.retain(|start| !line.starts_with(start));
        }
    }

    /// The process id in the last start of a worker.
    #[track_caller]
    fn pid(&self, name: &str) -> u32 {
        let start = format!("{name}: started (pid ");
        let line = self.lines.iter().rfind(|line| line.starts_with(&start)).expect("a start");
        line.rsplit(' ').next().unwrap().trim_end_matches(')').parse().unwrap()
    }

    /// All lines up to the end.
    #[track_caller]
    fn all(mut self) -> Vec<String> {
        self.rest.extend(read_to_end(&self.pipe));
        let rest = String::from_utf8_lossy(&self.rest).into_owned();
        self.lines.into_iter().chain(rest.lines().map(str::to_owned)).collect()
    }
}

impl Foreman {
    fn new(file: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("workers.toml"), file).unwrap();
        let spec = WorkerSpec::new(example("keep_alive")).arg("workers.toml").current_dir(directory.path());
        let mut process = spec.stdout(OutputMode::Lines).stderr(OutputMode::Lines).spawn_unsupervised().unwrap();
        let (stdout, stderr) = (process.take_stdout().unwrap(), process.take_stderr().unwrap());
        Self { directory, process, stdout: Said::new(stdout), stderr: Said::new(stderr) }
    }

    fn reload(&self, file: &str) {
        fs::write(self.directory.path().join("workers.toml"), file).unwrap();
        self.process.signal(libc::SIGHUP).unwrap();
    }

    /// The exit and the complete output.
    #[track_caller]
    fn finish(mut self) -> (Exit, Vec<String>, Vec<String>) {
        let (stdout, stderr) = (self.stdout.all(), self.stderr.all());
        (self.process.wait_timeout(DEADLINE).unwrap().expect("an exit").clone(), stdout, stderr)
    }
}

/// The index of each of these lines, which must all exist.
#[track_caller]
fn places(lines: &[String], starts: &[&str]) -> Vec<usize> {
    let place = |start: &&str| lines.iter().position(|line| line.starts_with(start));
    starts.iter().map(|start| place(start).unwrap_or_else(|| panic!("no {start:?} in {lines:#?}"))).collect()
}

const HANG: &str = "exec sleep 1000";

#[test]
fn workers_start_in_order_and_stop_in_reverse() {
    let mut foreman = Foreman::new(&format!(
        r#"
        [workers.web]
        command = ["sh", "-c", "echo with $COLOUR; {HANG}"]
        after = {{ database = "ready", migration = "exited" }}
        env = {{ COLOUR = "blue" }}
        [workers.migration]
        command = ["sh", "-c", "exit 77"]
        restart = {{ when = "on-failure", success_codes = [77] }}
        after = ["database"]
        [workers.database]
        command = ["sh", "-c", "ulimit -n; echo listening; {HANG}"]
        ready = {{ line = "^listening$", within = "20s" }}
        stop = [{{ signal = "QUIT", wait = "20s" }}]
        limits = {{ open_files = 77, nice = 1 }}
        "#
    ));
    foreman.stdout.find("web | with blue");
    foreman.process.signal(libc::SIGTERM).unwrap();
    let (exit, lines, stderr) = foreman.finish();
    assert!(exit.success() && stderr.is_empty(), "{exit}: {lines:#?}, {stderr:#?}");
    let places = places(
        &lines,
        &[
            "database: started (pid ",
            "database | 77",
            "database: ready after ",
            "migration: started",
            "migration: exit code 77",
            "web: started",
            "keep_alive: stopping all",
            "database: killed by signal 3 (SIGQUIT)",
        ],
    );
    assert!(places.is_sorted(), "{lines:#?}");
    let ends: Vec<_> = lines.iter().filter(|line| line.contains(": killed by")).collect();
    assert_eq!(ends, ["web: killed by signal 15 (SIGTERM)", "database: killed by signal 3 (SIGQUIT)"]);
}

#[test]
fn invalid_files_give_one_line_and_exit_code_2() {
    for (file, expected) in [
        ("[workers.web]\ncommand = [1]", "workers.toml:2: worker `web`, `command`: "),
        ("[workers.web]\ncommand = ['x']\nrestrat = 'always'", "workers.toml:3: worker `web`, `restrat`: unknown key"),
        (
            "[workers.web]\ncommand = ['x']\nafter = ['db']",
            "workers.toml:3: worker `web`, `after`: unknown worker `db`",
        ),
        ("[workers.a]\ncommand = ['x']\nafter = ['a']", "workers.toml:3: worker `a`, `after`: dependency cycle"),
        ("[workers.a\n", "workers.toml:1: "),
        ("", "workers.toml: no workers defined"),
    ] {
        let (exit, stdout, stderr) = Foreman::new(file).finish();
        assert_eq!(exit.code(), Some(2), "{file}: {stderr:#?}");
        assert!(stdout.is_empty() && stderr.len() == 1, "{file}: {stdout:#?}, {stderr:#?}");
        assert!(stderr[0].starts_with(&format!("keep_alive: {expected}")), "{file}: {stderr:#?}");
    }
}

#[test]
fn irregular_files_are_refused_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("fifo");
    assert_eq!(kernel::make_fifo(&fifo), 0);
    for (path, expected) in [
        (directory.path().join("missing"), "No such file"),
        (fifo, "not a regular file"),
        (directory.path().to_owned(), "not a regular file"),
        ("/dev/zero".into(), "not a regular file"),
    ] {
        let spec = WorkerSpec::new(example("keep_alive")).arg(&path).stderr(OutputMode::Lines);
        let mut process = spec.spawn_unsupervised().unwrap();
        let stderr = Said::new(process.take_stderr().unwrap()).all();
        let expected = format!("keep_alive: {}: {expected}", path.display());
        assert!(stderr.len() == 1 && stderr[0].starts_with(&expected), "{stderr:#?}");
        assert_eq!(process.wait_timeout(DEADLINE).unwrap().expect("an exit").code(), Some(2));
    }
}

#[test]
fn second_ctrl_c_kills_all_workers() {
    let mut foreman = Foreman::new(
        r#"
        [workers.stubborn]
        command = ["sh", "-c", "trap '' TERM; echo here; while :; do sleep 1000; done"]
        ready = { line = "here" }
        stop = [{ signal = "TERM", wait = "1h" }]
        [workers.polite]
        command = ["sh", "-c", "sleep 1000 & echo $!; wait"]
        after = ["stubborn"]
        [workers.hopeless]
        command = ["no-such-program"]
        restart = "always"
        "#,
    );
    foreman.stdout.find_all(["polite | ", "hopeless: gave up"]);
    let child = foreman.stdout.lines.iter().find_map(|line| line.strip_prefix("polite | "));
    let grandchild: u32 = child.unwrap().parse().unwrap();
    foreman.process.signal(libc::SIGINT).unwrap();
    foreman.stdout.find("polite: killed by signal 15");
    wait_gone(grandchild);
    signal_until_exit(&mut foreman.process, libc::SIGINT);
    let (exit, lines, stderr) = foreman.finish();
    assert!(exit.success(), "a worker had failed, but all were stopped: {exit}, {lines:#?}, {stderr:#?}");
    places(&lines, &["stubborn: killed by signal 9", "hopeless: gave up: its program cannot be started"]);
    for line in &lines {
        if let Some((_, pid)) = line.split_once(": started (pid ") {
            wait_gone(pid.trim_end_matches(')').parse().unwrap());
        }
    }
}

#[test]
fn exit_code_is_1_when_a_worker_has_failed() {
    let (exit, lines, stderr) = Foreman::new(
        r#"
        [workers.crashing]
        command = ["sh", "-c", "echo 'no licence today' >&2; exit 3"]
        restart = { when = "on-failure", first = "1ms", restarts = 2 }
        [workers.behind]
        command = ["sleep", "1000"]
        after = { crashing = "exited" }
        [workers.done]
        command = ["true"]
        "#,
    )
    .finish();
    assert_eq!(exit.code(), Some(1), "{lines:#?}, {stderr:#?}");
    let again = lines.iter().filter(|line| line.starts_with("crashing: exit code 3, restarting in ")).count();
    assert_eq!(again, 2, "{lines:#?}");
    let end = [
        "crashing: exit code 3, gave up: restarted too often",
        "crashing:   no licence today",
        "behind: not started: crashing has failed",
    ];
    assert!(places(&lines, &end).is_sorted(), "{lines:#?}");
    let (exit, lines, _) = Foreman::new("[workers.done]\ncommand = ['true']").finish();
    assert!(exit.success(), "{exit}: {lines:#?}");
}

#[test]
fn failures_count_whatever_the_exit_code() {
    let directory = tempfile::tempdir().unwrap();
    // Opening a socket fails with an error that counts as temporary.
    let socket = directory.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    let exits_at_sigterm = r#"command = ["sh", "-c", "trap 'exit 0' TERM; sleep 1000 & wait"]"#;
    for (worker, expected) in [
        (format!("command = ['true']\noutput = {{ file = '{}' }}", socket.display()), "bad: failed to start true: "),
        (
            "command = ['true']\noutput = { file = 'no-such-directory/log' }".into(),
            "bad: gave up: its program cannot be started",
        ),
        ("command = ['true']\nready = { line = 'here' }".into(), "bad: will never be ready"),
        ("command = ['true']\nrestart = 'on-failure'\nready = { line = 'here' }".into(), "bad: will never be ready"),
        (format!("{exits_at_sigterm}\nready = {{ line = 'here', within = '300ms' }}"), "bad: not ready after "),
        (format!("{exits_at_sigterm}\nlimits = {{ run_time = '300ms' }}"), "bad: stopped after "),
    ] {
        let (exit, lines, stderr) = Foreman::new(&format!("[workers.bad]\n{worker}\n")).finish();
        assert_eq!(exit.code(), Some(1), "{worker}: {lines:#?}, {stderr:#?}");
        places(&lines, &[expected]);
    }
}

#[test]
fn successful_restart_clears_the_failure() {
    let (exit, lines, stderr) = Foreman::new(
        r#"
        [workers.second]
        command = ["sh", "-c", "test -e mark && exec echo here; touch mark; exit 3"]
        ready = { line = "here" }
        restart = { when = "on-failure", first = "1ms" }
        [workers.behind]
        command = ["true"]
        after = { second = "exited" }
        "#,
    )
    .finish();
    assert!(exit.success() && stderr.is_empty(), "{exit}: {lines:#?}, {stderr:#?}");
    let story =
        ["second: will never be ready", "second: exit code 3, restarting in ", "second: ready", "second: exit code 0"];
    assert!(places(&lines, &story).is_sorted(), "{lines:#?}");
}

#[test]
fn recent_output_is_shown_when_not_ready() {
    let (exit, lines, stderr) = Foreman::new(
        r#"
        [workers.web]
        command = ["sh", "-c", "for word in one two three 'no licence'; do echo $word; done"]
        ready = { line = "here" }
        "#,
    )
    .finish();
    assert_eq!(exit.code(), Some(1), "{lines:#?}, {stderr:#?}");
    let start = places(&lines, &["web: will never be ready"])[0];
    assert_eq!(lines[start + 1..start + 4], ["web:   two", "web:   three", "web:   no licence"], "{lines:#?}");
}

#[test]
#[ignore = "needs python3"]
fn second_program_on_a_port_gives_up_with_its_output() {
    const LISTEN: &str =
        "import socket, sys, time; place = socket.create_server(('127.0.0.1', int(sys.argv[1]))); time.sleep(1000)";
    // A free port.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let worker = |name: &str, more: &str| {
        format!(
            "[workers.{name}]\ncommand = ['python3', '-c', \"{LISTEN}\", '{port}']\nrestart = {{ when = 'always', first = '1ms', restarts = 1 }}\n{more}\n"
        )
    };
    let first = worker("first", &format!("ready = {{ connect = '127.0.0.1:{port}' }}"));
    let mut foreman = Foreman::new(&(first + &worker("second", "after = ['first']")));
    foreman.stdout.find("second: exit code 1, gave up: restarted too often");
    let why = foreman.stdout.find("second:   OSError");
    assert!(why.contains("Address already in use"), "{why}");
    foreman.process.signal(libc::SIGINT).unwrap();
    let (exit, lines, _) = foreman.finish();
    assert!(exit.success(), "{exit}: {lines:#?}");
}

#[test]
#[ignore = "needs script, of util-linux"]
fn terminal_shows_a_table() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("workers.toml");
    fs::write(&file, "[workers.web]\ncommand = ['sh', '-c', 'echo hello; exec sleep 1000']").unwrap();
    // Not every shell replaces itself by its last command, and a remaining shell would exit at Ctrl-C.
    let command = format!("exec {} {}", example("keep_alive").display(), file.display());
    let spec = WorkerSpec::new("script").args(["-q", "-e", "-c", &command, "/dev/null"]);
    let spec = spec.env("SHELL", "/bin/sh").env("TERM", "xterm");
    let mut process = spec.stdin(StdinMode::Pipe).stdout(OutputMode::Lines).spawn_unsupervised().unwrap();
    let mut stdout = Said::new(process.take_stdout().unwrap());
    // The terminal ends lines with CR and LF.
    while !(stdout.next().contains("web") && stdout.lines.last().unwrap().contains("hello")) {}
    let mut keyboard = process.take_stdin().unwrap();
    keyboard.write_all(b"\x03").unwrap();
    let all = stdout.all().join("\n");
    assert!(all.contains("worker           state") && all.contains("keep_alive: stopping all"), "{all}");
    let exit = process.wait_timeout(DEADLINE).unwrap().expect("an exit");
    assert!(exit.success(), "{exit}: {all}");
}
