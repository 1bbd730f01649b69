//! The results as XML.

use super::{harness, program, run};
use crate::foreign;
use pipewright::{OutputMode, WorkerSpec};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Runs tests that end in all ways, with one retry. Returns the file of results.
fn results(directory: &Path) -> PathBuf {
    let tests = [
        ("passes", ""),
        ("fails", "printf 'a <b> \\001\\033[1m & \\377c\\n]]>'; exit 3"),
        ("flaky", "[ -e once ] || { touch once; echo first; exit 1; }"),
        ("crashes", "kill -SEGV $$"),
        ("hangs", "exec sleep 1000"),
        ("leaks", "sleep 1000 &"),
        ("vanishes", "rm \"$0\"; exit 1"),
        ("a<b>&\"c", "exit 1"),
    ];
    let program = program(directory, "tests", &tests);
    let file = directory.join("reports/junit.xml");
    let spec =
        harness().args(["-j1", "--no-fail-fast", "--retries", "1", "--slow-timeout", "1s", "--terminate-after", "1"]);
    let run = run(&spec.arg("--junit").arg(&file).arg(&program));
    assert_eq!(run.code, Some(100), "{}", run.stderr);
    file
}

#[test]
fn junit_has_every_test() {
    let directory = tempfile::tempdir().unwrap();
    let text = fs::read_to_string(results(directory.path())).unwrap();
    let report = quick_junit::Report::deserialize_from_str(&text).unwrap();
    let [suite] = &*report.test_suites else { panic!("{text}") };
    assert_eq!((suite.tests, suite.failures, suite.errors, suite.skipped), (8, 4, 1, 0), "{text}");
    let case = |name: &str| suite.test_cases.iter().find(|case| case.name.as_str() == name).unwrap();
    assert_eq!(case("fails").system_out.as_ref().unwrap().as_str(), "a <b>  & \u{fffd}c\n]]>", "{text}");
    assert!(text.contains("<failure message=\"exit code 3\" type=\"test failure\"/>"), "{text}");
    assert!(text.contains("<failure message=\"killed by signal 11 (SIGSEGV)\" type=\"test failure\"/>"), "{text}");
    assert!(text.contains("type=\"test timeout\"") && text.contains("<flakyFailure "), "{text}");
    let leak = case("leaks").system_err.as_ref().unwrap().as_str();
    assert!(leak.contains(" (sleep 1000) was left running, with stdout and stderr open"), "{text}");
}

/// The schema of Jenkins' plugin `xunit`, with which pytest tests its own results.
#[test]
fn foreign_schema_of_jenkins_accepts_junit() {
    let (Some(xmllint), Some(schema)) = (foreign::program("xmllint"), foreign::program("junit-10.xsd")) else { return };
    let directory = tempfile::tempdir().unwrap();
    let spec = WorkerSpec::new(xmllint).args(["--noout", "--schema"]).arg(schema).arg(results(directory.path()));
    let output = spec.stdout(OutputMode::Bytes).stderr(OutputMode::ToStdout).spawn_unsupervised().unwrap();
    let output = output.wait_with_output(crate::support::DEADLINE).unwrap();
    assert!(output.exit.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
