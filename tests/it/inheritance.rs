//! Environment variables that workers inherit if the host is itself a worker, or a child of `make` or of Node.

use crate::support::{self, DEADLINE, FIXTURE, Story, Way, alone, both_ways};
use pipewright::{EventKind, OutputMode, Pass, WorkerSpec};
use std::{collections::BTreeMap, fs};

/// The output of a program until it exits.
fn output(spec: &WorkerSpec) -> String {
    let mut process = spec.clone().stdout(OutputMode::Lines).spawn_unsupervised().unwrap();
    let text = support::read_to_end(&process.take_stdout().unwrap());
    process.wait_timeout(DEADLINE).unwrap().expect("it ends");
    String::from_utf8(text).unwrap()
}

/// A worker's environment as printed by `env`.
fn environment(spec: WorkerSpec) -> BTreeMap<String, String> {
    let text = output(&spec.arg("-0"));
    let variables = text.split_terminator('\0').filter_map(|variable| variable.split_once('='));
    variables.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// What a host has inherited, and what its workers then do.
const INHERITED: [(&str, &str, Option<&str>); 14] = [
    ("NODE_CHANNEL_FD", "3", None),
    ("NODE_CHANNEL_SERIALIZATION_MODE", "json", None),
    ("PIPEWRIGHT_MESSAGES", "3", None),
    ("PIPEWRIGHT_CONTROL", "/run/control?key", None),
    ("PIPEWRIGHT_CONTROL_KEY", "key", None),
    ("PIPEWRIGHT_HANDLES", "STATUS_FD:BELL_FD", None),
    ("STATUS_FD", "5", None),
    ("BELL_FD", "6", None),
    ("LISTEN_FDS", "1", None),
    ("WAYLAND_SOCKET", "7", None),
    ("MAKEFLAGS", "k -j3 --jobserver-auth=3,4 -- CC=gcc", Some("k -j3 -- CC=gcc")),
    ("MFLAGS", "-k -j3 --jobserver-auth=fifo:/tmp/GMfifo1", Some("-k -j3")),
    ("CARGO_MAKEFLAGS", "-j --jobserver-fds=3,4 --jobserver-auth=3,4", None),
    ("PIPEWRIGHT_TREE", "0123.1.1.", Some("0123.1.1.")),
];

#[test]
fn p03_variables_that_name_descriptors_are_not_inherited() {
    let configure = |spec: WorkerSpec| INHERITED.iter().fold(spec, |spec, (name, value, _)| spec.env(*name, *value));
    if !alone("inheritance::p03_variables_that_name_descriptors_are_not_inherited", configure) {
        return;
    }
    for way in [Way::Direct, Way::Command] {
        let found = environment(way.program("env"));
        for (name, _, expected) in INHERITED {
            assert_eq!(found.get(name).map(String::as_str), expected, "{name}, {way:?}");
        }
        let set = INHERITED.iter().fold(way.program("env"), |spec, (name, value, _)| spec.env(*name, *value));
        let found = environment(set);
        for (name, value, _) in INHERITED {
            assert_eq!(found.get(name).map(String::as_str), Some(value), "set by the spec: {name}, {way:?}");
        }
        let cleared = environment(way.program("/usr/bin/env").env_clear().env("A", "1"));
        assert_eq!(cleared.into_iter().collect::<Vec<_>>(), [("A".to_owned(), "1".to_owned())], "{way:?}");
    }
    let own = || {
        let mut command = std::process::Command::new("/usr/bin/env");
        command.env("MAKEFLAGS", "--jobserver-auth=8,9").env("NODE_CHANNEL_FD", "8").env_remove("MFLAGS");
        command
    };
    let found = environment(WorkerSpec::from_command(own));
    assert_eq!(found.get("MAKEFLAGS").map(String::as_str), Some("--jobserver-auth=8,9"), "set by the user's Command");
    assert_eq!(found.get("NODE_CHANNEL_FD").map(String::as_str), Some("8"), "set by the user's Command");
    assert_eq!((found.get("MFLAGS"), found.get("LISTEN_FDS")), (None, None));
    let cleared = || {
        let mut command = std::process::Command::new("/usr/bin/env");
        command.env_clear();
        command
    };
    assert_eq!(environment(WorkerSpec::from_command(cleared)), BTreeMap::new(), "cleared by the user's Command");
}

both_ways! {
    fn p03_nested_supervisors_receive_only_their_own_workers(way: Way) {
        let mut story = Story::new();
        let spec = way.plain("level").args(["--depth", "2"]).messages(Pass::env("LEVEL_2"));
        let spec = if way == Way::Command { spec.args(["--way", "command"]) } else { spec };
        story.supervisor.spawn(spec.control(Pass::env("OUTER_CONTROL"))).unwrap();
        let mut levels = Vec::new();
        for event in story.rest() {
            match event.kind {
                EventKind::Message(message) => levels.push(message.json::<serde_json::Value>().unwrap()),
                EventKind::Exited { exit, .. } => assert!(exit.success(), "{exit}"),
                EventKind::InvalidFrame(fault) => panic!("{fault:?}"),
                _ => {}
            }
        }
        let depths: Vec<_> = levels.iter().map(|level| level["depth"].as_u64().unwrap()).collect();
        assert_eq!(depths, [2, 1, 0], "each message once");
        for level in &levels {
            let names = level["names"].as_array().unwrap().iter().map(|name| name.as_str().unwrap());
            let ours: Vec<_> = names.filter(|name| name.starts_with("LEVEL_") || *name == "OUTER_CONTROL").collect();
            let expected = match level["depth"].as_u64().unwrap() {
                2 => vec!["LEVEL_2".to_owned(), "OUTER_CONTROL".to_owned()],
                depth => vec![format!("LEVEL_{depth}")],
            };
            assert!(ours.len() == expected.len() && expected.iter().all(|name| ours.contains(&&**name)), "{level}");
        }
    }

    fn p12_control_key_is_not_in_the_arguments(way: Way) {
        let mut story = Story::new();
        let worker = story.supervisor.spawn(way.fixture("serve").arg("--inspect").control(Pass::arg("--control={}"))).unwrap();
        let inspected = story.json();
        let key = inspected["env"]["PIPEWRIGHT_CONTROL_KEY"].as_str().expect("the key").to_owned();
        let arguments = inspected["argv"].to_string();
        assert!(key.len() >= 32 && !arguments.contains(&key), "{key} in {arguments}");
        assert!(arguments.contains("--control=/"), "{arguments}");
        assert_eq!(worker.call::<_, i64>("add", &[1, 2], DEADLINE).unwrap(), 3);
    }
}

/// The output of a host started by a Makefile's recipe, with three jobs and descriptors for the jobserver's tokens.
fn below_make(recipe: &str) -> String {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("Makefile"), format!("all:\n\t+@{recipe}\n")).unwrap();
    fs::write(directory.path().join("inner.mk"), "all: a b c\na b c:\n\t@echo built $@ >&2\n").unwrap();
    let spec = |style: &[&str]| {
        let spec = WorkerSpec::new("make").args(["--no-print-directory", "-j3"]).args(style);
        spec.env_remove("MAKEFLAGS").env_remove("MFLAGS").env_remove("MAKELEVEL").current_dir(directory.path())
    };
    // Since 4.4 a FIFO, which names no descriptor, is the default; older versions do not know the option.
    let help = output(&spec(&["--help"]));
    let style: &[&str] = if help.contains("--jobserver-style") { &["--jobserver-style=pipe"] } else { &[] };
    output(&spec(style))
}

#[test]
#[ignore = "needs make"]
fn p03_worker_below_make_keeps_its_pipes() {
    let script = r#"make -s -f inner.mk && cat <&3 >&4 && printf '\n"%s"\n' "$$MAKEFLAGS" >&4"#;
    let said = below_make(&format!(
        "echo \"$$MAKEFLAGS\"; {FIXTURE} run-worker --input '\"in\"' -- sh -c '{}'",
        script.replace('\'', "'\\''")
    ));
    let (first, rest) = said.split_once('\n').unwrap();
    assert!(first.contains("--jobserver-auth=") || first.contains("--jobserver-fds="), "{said:?}");
    let mut lines = rest.lines();
    assert_eq!(lines.next(), Some("\"in\""), "the whole input, and no token in the messages: {said:?}");
    let flags = lines.next().unwrap();
    assert!(!flags.contains("jobserver") && flags.contains("-j3"), "other flags stay: {said:?}");
    assert_eq!((lines.next(), lines.next()), (Some("exit code 0"), None), "{said:?}");
}

#[test]
#[ignore = "needs node"]
fn p03_node_worker_below_a_node_host_has_no_channel() {
    let worker = "require('fs').writeSync(4, JSON.stringify(typeof process.send) + '\\n')";
    let host = "const [program, ...rest] = process.argv.slice(1); \
                require('child_process').spawn(program, rest, { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] })\
                .on('message', (m) => console.log('to the wrong parent', m));";
    let spec = WorkerSpec::new("node").args(["-e", host, FIXTURE, "run-worker", "--", "node", "-e", worker]);
    assert_eq!(output(&spec), "\"undefined\"\nexit code 0\n");
}
