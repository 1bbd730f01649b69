//! The `plugin_host` example as its user runs it: with commands from a pipe.

mod parts; // its pure modules
mod reload; // files that change

use crate::support::{DEADLINE, example, wait_gone};
use pipewright::{
    Event, EventKind, Exit, OutputMode, Process, StdinMode, Supervisor, Worker, WorkerSpec, pipe::anonymous::PipeWriter,
};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};
use tempfile::TempDir;

/// The plugins that come with the program, without those that have to be built.
const PLUGINS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/plugin_host/plugins");

/// A host that runs, and what it has written.
struct Session {
    supervisor: Supervisor,
    host: Worker,
    input: Option<PipeWriter>,
    directory: TempDir,
    /// Lines of both streams that were not asked for yet.
    lines: Vec<String>,
}

impl Session {
    /// Starts the host with the plugins of these names.
    #[track_caller]
    fn start(options: &[&str], plugins: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::copy(Path::new(PLUGINS).join("plugin.py"), directory.path().join("plugin.py")).unwrap();
        for name in plugins {
            install(&plugin_file(name), &directory.path().join(name));
        }
        Self::in_directory(options, directory)
    }

    #[track_caller]
    fn in_directory(options: &[&str], directory: TempDir) -> Self {
        let supervisor = Supervisor::new().unwrap();
        let spec = WorkerSpec::new(example("plugin_host")).args(options).arg(directory.path()).stdin(StdinMode::Pipe);
        // Python writes no bytecode beside the plugins.
        let spec = spec.env("PYTHONDONTWRITEBYTECODE", "1");
        let host = supervisor.spawn(spec.stdout(OutputMode::Lines).stderr(OutputMode::Lines)).unwrap();
        let input = host.take_stdin();
        Self { supervisor, host, input, directory, lines: Vec::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    #[track_caller]
    fn type_lines(&self, commands: &str) {
        let input = self.input.as_ref().expect("the input is open");
        input.write_all_timeout(format!("{commands}\n").as_bytes(), DEADLINE).unwrap();
    }

    /// Returns the next line that contains the text, of either stream. Lines before it can be asked for later.
    #[track_caller]
    fn expect(&mut self, text: &str) -> String {
        loop {
            if let Some(at) = self.lines.iter().position(|line| line.contains(text)) {
                return self.lines.remove(at);
            }
            let event = self.supervisor.events().recv_timeout(DEADLINE);
            let Ok(Event { kind: EventKind::Line { line, .. }, .. }) = event else {
                if let Ok(event) = event
                    && !matches!(event.kind, EventKind::Exited { .. })
                {
                    continue;
                }
                panic!("no {text:?} in {:#?}", self.lines);
            };
            self.lines.push(line.text().into_owned());
        }
    }

    /// Ends the input, and returns the exit code and all lines that were not asked for.
    #[track_caller]
    fn finish(mut self) -> (Arc<Exit>, String) {
        drop(self.input.take());
        self.rest()
    }

    #[track_caller]
    fn rest(mut self) -> (Arc<Exit>, String) {
        loop {
            match self.supervisor.events().recv_timeout(DEADLINE) {
                Ok(Event { kind: EventKind::Line { line, .. }, .. }) => self.lines.push(line.text().into_owned()),
                Ok(Event { kind: EventKind::Exited { exit, .. }, .. }) => {
                    assert!(exit.survivors.is_empty(), "{:?}", exit.survivors);
                    return (exit, self.lines.join("\n"));
                }
                Ok(_) => {}
                Err(error) => panic!("{error}: {:#?}", self.lines),
            }
        }
    }

    /// The process of a plugin, by `list`.
    #[track_caller]
    fn pid(&mut self, label: &str) -> u32 {
        self.type_lines("list");
        let line = self.expect(&format!("{label}, process "));
        let number = line.split("process ").nth(1).and_then(|rest| rest.split(',').next());
        number.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{line}"))
    }
}

fn plugin_file(name: &str) -> PathBuf {
    match name {
        "primes" => example("plugin_host").with_file_name("prime_plugin"),
        name => Path::new(PLUGINS).join(name),
    }
}

/// Writes a file beside the directory and renames it, so that the host sees it only whole.
fn install(from: &Path, to: &Path) {
    let part = to.with_file_name(".part");
    fs::copy(from, &part).unwrap();
    fs::rename(part, to).unwrap();
}

/// A plugin in Python with these lines.
fn write_plugin(path: &Path, text: &str) {
    let part = path.with_file_name(".part");
    fs::write(&part, format!("#!/usr/bin/env python3\n{text}\n")).unwrap();
    fs::set_permissions(&part, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(part, path).unwrap();
}

/// Runs the host with these arguments and no input.
#[track_caller]
fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    let spec = WorkerSpec::new(example("plugin_host")).args(arguments).stdin(StdinMode::Null);
    let spec = spec.stdout(OutputMode::Bytes).stderr(OutputMode::Bytes);
    let process: Process = spec.spawn_unsupervised().unwrap();
    let output = process.wait_with_output(DEADLINE).unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.exit.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn p16_plugin_host_explains_its_command_line() {
    let (code, help, _) = run(&["--help"]);
    assert!(code == Some(0) && help.starts_with("Runs every executable file of a directory as a plugin"), "{help}");
    for (arguments, expected) in [
        (&["--version"][..], "plugin_host 0.1.0"),
        (&[][..], "usage: plugin_host [OPTIONS] DIRECTORY"),
        (&["--fast", "."][..], "unknown option --fast"),
        (&["--timeout"][..], "--timeout needs a time"),
        (&["--timeout", "soon", "."][..], "--timeout soon: not a time such as 5s or 200ms"),
        (&["a", "b"][..], "more than one directory"),
        (&["/nonexistent"][..], "plugin_host: /nonexistent: "),
    ] {
        let (code, output, errors) = run(arguments);
        let expected_code = if arguments == ["--version"] { 0 } else { 2 };
        assert!(code == Some(expected_code) && (output + &errors).contains(expected), "{arguments:?}: {errors}");
    }
}

#[test]
#[ignore = "needs python3 and node"]
fn plugins_in_three_languages_are_called() {
    let mut session = Session::start(&[], &["words.py", "dates.js", "primes"]);
    session.type_lines(
        "# calls wait for the plugins\ncall words.py count [\"a b c\"]\ncall dates.js weekday [\"2026-11-28\"]\n\
         call primes factor [1234567890]\nwait\nlist\nquit",
    );
    for expected in [
        "[1] 3",
        "[2] \"Saturday\"",
        "[3] [2,3,3,5,3607,3803]",
        "version 1: weekday, days",
        "version 2: count, factor, sleep, total",
        "version 2: factor",
    ] {
        session.expect(expected);
    }
    let (exit, text) = session.finish();
    assert_eq!(exit.code(), Some(0), "{text}");
}

#[test]
#[ignore = "needs python3"]
fn plugins_call_back() {
    let mut session = Session::start(&[], &["words.py", "primes", "faulty.py"]);
    session.type_lines("call words.py factor [\"a b c d e f\"]\ncall words.py total [\"a b\"]\nwait");
    session.expect("[1] [2, 3]"); // by the other plugin
    session.expect("[2] 2");
    // The host keeps what a plugin stores while it is replaced.
    session.type_lines("reload words.py\nwait\ncall words.py total [\"c\"]");
    session.expect("[3] 3");
    session.type_lines("call faulty.py forbidden");
    session.expect("the plugin has not named the capability \"store\"");
    // A plugin that calls itself in a circle ends at the deadlines.
    write_plugin(
        &session.path("circle.py"),
        "import plugin\ndef again(cancelled):\n    return plugin.ask('call', plugin='circle.py', method='again', params=[])\n\
         plugin.serve({'again': again}, capabilities=['call'])",
    );
    session.expect("circle.py#1: ready");
    session.type_lines("call circle.py again within 300ms\nwait\ncall words.py count [\"alive\"]");
    session.expect("[5] circle.py#1 again failed: no answer within 300ms, cancelled");
    session.expect("[6] 1");
    assert_eq!(session.finish().0.code(), Some(1), "a call has failed");
}

#[test]
#[ignore = "needs python3"]
fn p15_calls_have_deadlines_and_are_cancelled() {
    let mut session = Session::start(&["--timeout", "60s"], &["words.py"]);
    session.expect("words.py#1: ready");
    session.type_lines("call words.py sleep [61] within 200ms\ncall words.py sleep [62]\ncall words.py count [\"a\"]");
    session.expect("[3] 1");
    session.expect("[1] words.py#1 sleep failed: no answer within 200ms, cancelled");
    session.expect("words.py#1: sleep 61 was cancelled");
    session.type_lines("list\ncancel 2\ncancel 9");
    session.expect("[2] words.py#1 sleep, for ");
    session.expect("[2] words.py#1 sleep failed: call was cancelled");
    session.expect("words.py#1: sleep 62 was cancelled");
    session.expect("no call 9 is open");
    // The end of the program cancels what is open.
    session.type_lines("call words.py sleep [63]\nquit");
    session.expect("[4] words.py#1 sleep failed: call was cancelled");
    assert_eq!(session.rest().0.code(), Some(1));
}

#[test]
#[ignore = "needs python3"]
fn p13_plugin_that_crashes_is_restarted_and_others_continue() {
    let mut session = Session::start(&[], &["faulty.py", "words.py"]);
    session.type_lines("wait\ncall words.py sleep [0.1]\ncall faulty.py crash");
    session.expect("[2] faulty.py#1 crash failed: worker exited: killed by signal 6 (SIGABRT)");
    session.expect("faulty.py#1: killed by signal 6 (SIGABRT), restarts in ");
    assert_eq!(session.expect("about to crash"), "    about to crash", "the end of its standard error");
    session.expect("[1] 0.1");
    // The next call waits for the restart.
    session.type_lines("call faulty.py garbage\nwait\nlist");
    session.expect("[3] \"after garbage\"");
    session.expect("restarted 1 times, version 2");
    assert_eq!(session.finish().0.code(), Some(1));
}

#[test]
#[ignore = "needs python3"]
fn p13_plugin_that_crashes_again_and_again_is_given_up_until_it_changes() {
    let mut session = Session::start(&[], &["words.py"]);
    write_plugin(&session.path("sick.py"), "raise SystemExit('no licence')");
    for _ in 0..5 {
        session.expect("sick.py#1: exit code 1, restarts in ");
        session.expect("    no licence");
    }
    session.expect("sick.py#1: exit code 1, gave up: restarted too often");
    session.expect("sick.py: does not run; it is started when its file changes, or by `reload sick.py`");
    write_plugin(&session.path("sick.py"), "import plugin\nplugin.serve({'well': lambda cancelled: True})");
    session.expect("sick.py#2: ready");
    session.type_lines("call sick.py well");
    session.expect("[1] true");
    assert_eq!(session.finish().0.code(), Some(0));
}

#[test]
#[ignore = "needs python3"]
fn p15_plugin_that_hangs_is_replaced_by_its_watchdog() {
    let mut session = Session::start(&["--watchdog", "2s", "--timeout", "60s"], &["faulty.py", "words.py"]);
    session.type_lines("wait\ncall faulty.py hang\ncall faulty.py hang within 50ms\ncall words.py sleep [3]");
    session.expect("[2] faulty.py#1 hang failed: no answer within 50ms, cancelled");
    session.expect("faulty.py#1: hangs: it answers no pings, replaced");
    session.expect("[1] faulty.py#1 hang failed: worker exited: ");
    session.expect("stopped by its watchdog");
    session.expect("[3] 3"); // the other plugin answers pings while it works
    session.type_lines("call faulty.py garbage");
    session.expect("[4] \"after garbage\"");
    assert_eq!(session.finish().0.code(), Some(1));
}

#[test]
#[ignore = "needs python3"]
fn attached_process_replaces_the_plugin_until_it_ends() {
    let mut session = Session::start(&[], &["words.py"]);
    session.expect("words.py#1: ready");
    let old = session.pid("words.py#1");
    session.type_lines("attach words.py\nwait\nlist");
    session.expect("words.py#2 has not connected, and replaces words.py#1 when it is ready");
    // Changes of the file do not end the wait for it.
    let line = session.expect("PIPEWRIGHT_CONTROL=");
    write_plugin(&session.path("words.py"), "import plugin\nplugin.serve({'where': lambda cancelled: 'here'})");
    session.expect("words.py#2: its file has changed, words.py#2 stays; `reload words.py` replaces it");
    // As pasted in another terminal.
    let spec = WorkerSpec::new("sh").args(["-c", &format!("{line} & wait")]).env("PYTHONDONTWRITEBYTECODE", "1");
    let mut terminal = spec.spawn_unsupervised().unwrap();
    session.expect("words.py#2: ready");
    session.expect("words.py#1: replaced by words.py#2, stops");
    wait_gone(old);
    session.type_lines("call words.py where");
    session.expect("[1] \"here\"");
    let attached = session.pid("words.py#2");
    assert!(std::process::Command::new("kill").arg(attached.to_string()).status().unwrap().success());
    terminal.wait_timeout(DEADLINE).unwrap().expect("the plugin has ended");
    session.expect("words.py#3: ready");
    session.type_lines("call words.py where\nattach nothing");
    session.expect("[2] \"here\"");
    session.expect("no plugin \"nothing\"");
    assert_eq!(session.finish().0.code(), Some(1));
}

#[test]
#[ignore = "needs python3"]
fn p02_garbage_on_a_connection_is_shown_and_skipped() {
    let mut session = Session::start(&[], &["faulty.py"]);
    session.type_lines("call faulty.py garbage");
    session.expect("faulty.py#1: sent a line of 7 bytes that is not JSON-RPC 2.0");
    session.expect("[1] \"after garbage\"");
    assert_eq!(session.finish().0.code(), Some(0));
}

#[test]
#[ignore = "needs python3"]
fn p13_plugin_of_another_version_is_not_restarted() {
    let directory = tempfile::tempdir().unwrap();
    fs::copy(Path::new(PLUGINS).join("plugin.py"), directory.path().join("plugin.py")).unwrap();
    let path = |name| directory.path().join(name);
    write_plugin(&path("future.py"), "import plugin\nplugin.serve({}, version=3)");
    write_plugin(&path("greedy.py"), "import plugin\nplugin.serve({}, capabilities=['network'])");
    write_plugin(&path("silent.py"), "import sys\nprint('no licence', file=sys.stderr)\nsys.exit(9)");
    let mut session = Session::in_directory(&[], directory);
    session.expect("future.py#1: cannot be used: it speaks version 3 of the plugin protocol, this host speaks 1 and 2");
    session.expect("future.py: does not run; it is started when its file changes, or by `reload future.py`");
    session.expect("greedy.py#1: cannot be used: it needs the capability \"network\", this host has call, log, store");
    session.expect("silent.py#1: exited before it was ready");
    session.expect("silent.py#1: exit code 9, restarts in ");
    session.type_lines("call future.py any\nlist");
    session.expect("future.py does not run");
    session.expect("future.py: does not run");
    assert_eq!(session.finish().0.code(), Some(1));
}

#[test]
#[ignore = "needs python3"]
fn p08_interrupted_host_leaves_no_plugin() {
    for (signal, code) in [(libc::SIGINT, 130), (libc::SIGTERM, 143)] {
        let mut session = Session::start(&[], &["words.py"]);
        session.expect("words.py#1: ready");
        let plugin = session.pid("words.py#1");
        session.type_lines("call words.py sleep [60] within 60s\nlist");
        session.expect("[1] words.py#1 sleep, for ");
        session.host.signal(signal).unwrap();
        let (exit, text) = session.rest();
        assert_eq!(exit.code(), Some(code), "{text}");
        assert!(text.contains("[1] words.py#1 sleep failed: "), "{text}");
        let is_shown = text.contains("does not run") || text.contains("finished");
        assert!(!is_shown, "the end of a plugin that was requested is no news: {text}");
        wait_gone(plugin);
    }
}

#[test]
#[ignore = "needs python3"]
fn p16_commands_that_cannot_be_executed_say_why() {
    let mut session = Session::start(&[], &["words.py"]);
    for (command, expected) in [
        ("fly", "unknown command fly; `help` lists the commands"),
        ("call words.py", "usage: call PLUGIN METHOD [JSON] [within TIME]"),
        ("call words.py count 5", "parameters are an array or an object, such as [5]"),
        ("call words.py count [\"a\"", "invalid JSON: EOF while parsing a list at line 1 column 4"),
        ("call words.py count [\"a\"] quickly", "unexpected quickly after the parameters"),
        ("call words.py count within soon", "soon is not a time such as 5s or 200ms"),
        ("call nothing count", "no plugin \"nothing\"; there are: words.py"),
        ("call words.py fly", "[1] words.py#1 fly failed: remote error -32601: method not found: fly"),
        ("cancel one", "one is not the number of a call"),
        ("list all", "unexpected all"),
        ("reload nothing", "no plugin \"nothing\"; there are: words.py"),
        ("help", "call PLUGIN METHOD [JSON] [within TIME]  call a method"),
    ] {
        session.type_lines(command);
        session.expect(expected);
    }
    assert_eq!(session.finish().0.code(), Some(1));
}
