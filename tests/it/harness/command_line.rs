//! Which tests run, and exit codes.

use super::{harness, program, run, script};
use std::fs;

#[test]
fn partitions_run_each_test_once() {
    let directory = tempfile::tempdir().unwrap();
    let names: Vec<String> = (0..20).map(|number| format!("group_{}::t{number}", number % 3)).collect();
    let tests: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "echo \"$2\" >>ran")).collect();
    let program = program(directory.path(), "tests", &tests);
    let ran = directory.path().join("ran");
    for method in ["count", "hash"] {
        for number in 1..=3 {
            let part = format!("{method}:{number}/3");
            let run = run(&harness().args(["--partition", &part]).arg(&program));
            assert_eq!(run.code, Some(0), "{}", run.stderr);
        }
        let text = fs::read_to_string(&ran).unwrap();
        let mut lines: Vec<&str> = text.lines().collect();
        lines.sort_unstable();
        let mut expected: Vec<&str> = names.iter().map(String::as_str).collect();
        expected.sort_unstable();
        assert_eq!(lines, expected, "{method}");
        fs::remove_file(&ran).unwrap();
    }
}

#[test]
fn filters_select_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let program =
        program(directory.path(), "tests", &[("a::one", ""), ("a::two", ""), ("b::one", ""), ("ignored", "")]);
    let list = |arguments: &[&str]| {
        let run = run(&harness().arg("--list").args(arguments).arg(&program));
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        let id = format!("{} ", program.display());
        let names = run.stdout.lines().map(|line| line.strip_prefix(&id).unwrap());
        names.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(list(&[]), "a::one a::two b::one");
    assert_eq!(list(&["--filter", "one"]), "a::one b::one");
    assert_eq!(list(&["--filter", "=a::one", "--filter", "b::"]), "a::one b::one");
    assert_eq!(list(&["--filter", "/^a::.*o$/"]), "a::two");
    assert_eq!(list(&["--skip", "two", "--filter", "a::"]), "a::one");
    assert_eq!(list(&["--run-ignored", "only"]), "ignored");
    assert_eq!(list(&["--run-ignored", "all", "--partition", "2/2"]), "a::two ignored");
}

#[test]
fn ignored_test_runs_on_request() {
    let directory = tempfile::tempdir().unwrap();
    let program = program(directory.path(), "tests", &[("ignored", "[ \"$4\" = --ignored ]")]);
    let run = run(&harness().args(["--run-ignored", "only"]).arg(&program));
    assert_eq!(run.code, Some(0), "{}", run.stderr);
}

#[test]
fn exit_codes_are_those_of_nextest() {
    let directory = tempfile::tempdir().unwrap();
    let good = program(directory.path(), "good", &[("a", "")]);
    let check = |arguments: &[&str], code: i32, expected: &str| {
        let run = run(&harness().args(arguments).current_dir(directory.path()));
        assert_eq!(run.code, Some(code), "{arguments:?}: {}", run.stderr);
        assert!(run.stderr.contains(expected), "{arguments:?}: {}", run.stderr);
    };
    let good = good.to_str().unwrap();
    check(&[good], 0, "1 passed");
    // A program of this directory needs no `./`.
    check(&["good"], 0, "good a\n");
    check(&["--filter", "other", good], 4, "error: no tests to run\n");
    check(&["--filter", "other", "--no-tests", "pass", good], 0, "0 tests run");
    check(&["--retris", "3"], 96, "error: unknown option --retris\nusage: harness ");
    check(&["no-such-program"], 104, "No such file or directory");
    check(&["--junit", "/proc/x/y", good], 110, "error: failed to write /proc/x/y: ");
    for (text, expected) in [
        ("echo hello", "not `NAME: test`:\nhello"),
        ("echo 'unknown option' >&2; exit 2", "exit code 2\nunknown option"),
        ("kill -SEGV $$", "killed by signal 11 (SIGSEGV)"),
    ] {
        script(&directory.path().join("odd"), text);
        check(&["odd"], 104, "error: creating the test list failed: odd: failed to list tests: ");
        check(&["odd"], 104, expected);
    }
    let help = run(&harness().arg("--help"));
    assert_eq!(help.code, Some(0), "{}", help.stderr);
    assert!(help.stdout.starts_with("usage: harness "), "{}", help.stdout);
    assert!(run(&harness().arg("-V")).stdout.starts_with("harness 0."));
}
