//! Processes and open outputs that tests leave behind.

use super::{Run, harness, program, run};
use crate::support::wait_gone;
use std::path::Path;

/// Runs one test that leaves a process behind and prints the process's id. Returns that id, too.
fn run_leaking(directory: &Path, body: &str, options: &[&str]) -> (Run, u32) {
    let program = program(directory, "tests", &[("leaks", body)]);
    let run = run(&harness().args(options).args(["--success-output", "immediate"]).arg(&program));
    let pid = run.stderr.lines().find_map(|line| line.trim().strip_prefix("left "));
    let pid = pid.unwrap_or_else(|| panic!("no pid: {}", run.stderr)).parse().unwrap();
    (run, pid)
}

#[test]
fn leaked_process_is_named_and_killed() {
    let directory = tempfile::tempdir().unwrap();
    let (run, pid) = run_leaking(directory.path(), "sleep 1000 & echo \"left $!\"", &[]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let named = format!("process {pid} (sleep 1000) was left running, with stdout and stderr open");
    assert!(run.stderr.contains(&named), "{}", run.stderr);
    assert!(run.summary().starts_with("1 test run: 1 passed (1 leaky)\n"), "{}", run.stderr);
    assert!(run.line("leaks").contains("LEAK ["), "{}", run.stderr);
    wait_gone(pid);
}

#[test]
fn leaked_daemon_without_output_is_named() {
    let directory = tempfile::tempdir().unwrap();
    // In a session of its own, with nothing open: a harness that waits for the end of the output does not see it.
    let body = "mkfifo up; setsid sh -c 'echo up >up; exec sleep 1000' </dev/null >/dev/null 2>&1 & echo \"left $!\"; read -r x <up";
    let (run, pid) = run_leaking(directory.path(), body, &["--fail-leaks"]);
    assert_eq!(run.code, Some(100), "{}", run.stderr);
    assert!(run.stderr.contains(&format!("process {pid} (")), "{}", run.stderr);
    assert!(run.summary().starts_with("1 test run: 0 passed, 1 failed\n"), "{}", run.stderr);
    assert!(run.line("leaks").contains("LEAK-FAIL ["), "{}", run.stderr);
    wait_gone(pid);
}

#[test]
fn test_without_leaks_passes_strictly() {
    let directory = tempfile::tempdir().unwrap();
    let program = program(
        directory.path(),
        "tests",
        &[("waits", "sleep 0.01 & wait"), ("plain", "true"), ("soon", "sleep 0.03 & exit 0")],
    );
    let run = run(&harness().args(["--fail-leaks", "--leak-timeout", "30s"]).arg(&program));
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(run.summary().starts_with("3 tests run: 3 passed\n"), "{}", run.stderr);
}
