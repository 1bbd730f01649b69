//! How tests end: passed, failed, killed, timed out, retried; TAP.

use super::{harness, program, run, script};

#[test]
fn each_ending_is_reported() {
    let directory = tempfile::tempdir().unwrap();
    let tests = [
        ("passes", "echo 'nothing to see'"),
        ("fails", "echo 'to stdout'; echo \"to stderr\" >&2; exit 101"),
        ("crashes", "kill -SEGV $$"),
        ("hangs", "echo begun; exec sleep 1000"),
        ("flaky", "[ -e once ] || { touch once; echo 'the first time'; exit 1; }"),
        ("ignored", "exit 1"),
    ];
    let program = program(directory.path(), "tests", &tests);
    let spec = harness().args(["--no-fail-fast", "--retries", "1", "--slow-timeout", "1s", "--terminate-after", "2"]);
    let run = run(&spec.arg(&program));
    assert_eq!(run.code, Some(100), "{}", run.stderr);
    let first = run.stderr.lines().nth(1).unwrap();
    assert_eq!(first, "     Starting 5 tests across 1 program (1 test skipped)");
    let summary = run.summary();
    let expected = "5 tests run: 2 passed (1 flaky), 2 failed, 1 timed out, 1 skipped\n";
    assert!(summary.starts_with(expected), "{}", run.stderr);
    let labels = |name: &str| -> Vec<&str> {
        let lines = run.stderr.lines().filter(|line| line.contains(&format!("/tests {name}")));
        lines.map(|line| line.split('[').next().unwrap().trim()).collect()
    };
    assert_eq!(labels("passes"), ["PASS"]);
    assert_eq!(labels("fails"), ["TRY 1 FAIL", "TRY 2 FAIL", "TRY 2 FAIL"]);
    assert_eq!(labels("crashes"), ["TRY 1 SIGSEGV", "TRY 2 SIGSEGV", "TRY 2 SIGSEGV"]);
    assert_eq!(labels("flaky"), ["TRY 1 FAIL", "TRY 2 PASS", "FLAKY 2/2"]);
    let hangs = ["SLOW", "TRMNTG", "TRY 1 TIMEOUT", "TRY 2 SLOW", "TRY 2 TRMNTG", "TRY 2 TIMEOUT", "TRY 2 TIMEOUT"];
    assert_eq!(labels("hangs"), hangs, "{}", run.stderr);
    // Only the output of failures, in the order in which it was written.
    assert!(!run.stderr.contains("nothing to see"), "{}", run.stderr);
    assert!(run.stderr.contains("  output ───\n    to stdout\n    to stderr\n"), "{}", run.stderr);
    assert!(run.stderr.contains("    begun\n") && run.stderr.contains("    the first time\n"), "{}", run.stderr);
    assert!(run.stderr.ends_with("\nerror: test run failed\n") && run.stdout.is_empty(), "{}", run.stderr);
}

#[test]
fn output_is_shown_when_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let program = program(directory.path(), "tests", &[("passes", "printf 'a\\033[2Jb'"), ("fails", "echo c; exit 1")]);
    let spec = harness().arg("--no-fail-fast").arg(&program);
    let count = |failure: &str, success: &str| {
        let run = run(&spec.clone().args(["--failure-output", failure, "--success-output", success]));
        (run.stderr.matches("    a\\u{1b}[2Jb\n").count(), run.stderr.matches("    c\n").count())
    };
    assert_eq!(count("never", "never"), (0, 0));
    assert_eq!(count("immediate", "final"), (1, 1));
    assert_eq!(count("immediate-final", "immediate-final"), (2, 2));
}

#[test]
fn stopped_test_has_timed_out_whatever_its_exit_code() {
    let directory = tempfile::tempdir().unwrap();
    let program = program(directory.path(), "tests", &[("hangs", "trap 'exit 0' TERM; sleep 1000 & wait")]);
    let run = run(&harness().args(["--slow-timeout", "100ms", "--terminate-after", "1"]).arg(&program));
    assert_eq!(run.code, Some(100), "{}", run.stderr);
    assert!(run.summary().starts_with("1 test run: 0 passed, 1 timed out\n"), "{}", run.stderr);
}

#[test]
fn program_that_vanishes_is_no_failed_test() {
    let directory = tempfile::tempdir().unwrap();
    let tests = [("a", "rm \"$0\""), ("b", "")];
    let program = program(directory.path(), "tests", &tests);
    let run = run(&harness().args(["-j1", "--no-fail-fast"]).arg(&program));
    assert_eq!(run.code, Some(100), "{}", run.stderr);
    assert!(run.summary().starts_with("2 tests run: 1 passed, 1 exec failed\n"), "{}", run.stderr);
    assert!(run.line("XFAIL [").contains("No such file or directory"), "{}", run.stderr);
}

#[test]
fn never_more_tests_at_a_time_than_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    // Each test takes one of two places, and fails if there is none.
    let body = "for place in 1 2; do mkdir $place 2>/dev/null && { sleep 0.02; rmdir $place; exit 0; }; done; exit 1";
    let names: Vec<String> = (0..30).map(|number| format!("t{number}")).collect();
    let tests: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), body)).collect();
    let program = program(directory.path(), "tests", &tests);
    let all = run(&harness().args(["-j", "2"]).arg(&program));
    assert_eq!(all.code, Some(0), "{}", all.stderr);
    assert!(all.summary().starts_with("30 tests run: 30 passed\n"), "{}", all.stderr);
    let more = run(&harness().args(["-j", "8", "--no-fail-fast"]).arg(&program));
    assert_eq!(more.code, Some(100), "eight at a time find no place: {}", more.stderr);
}

#[test]
fn first_failure_ends_run_without_keep_going() {
    let directory = tempfile::tempdir().unwrap();
    let tests = [("a", "exit 1"), ("b", "exit 1"), ("c", ""), ("d", "")];
    let program = program(directory.path(), "tests", &tests);
    let run_with = |option: &[&str]| run(&harness().arg("-j1").args(option).arg(&program));
    let first = run_with(&[]);
    assert!(first.summary().starts_with("1/4 tests run: 0 passed, 1 failed\n"), "{}", first.stderr);
    assert!(first.stderr.contains("  Cancelling due to test failure"), "{}", first.stderr);
    assert!(first.stderr.contains("warning: 3 tests were not run"), "{}", first.stderr);
    let second = run_with(&["--max-fail", "2"]);
    assert!(second.summary().starts_with("2/4 tests run: 0 passed, 2 failed\n"), "{}", second.stderr);
    let all = run_with(&["--no-fail-fast"]);
    assert!(all.summary().starts_with("4 tests run: 2 passed, 2 failed\n"), "{}", all.stderr);
    assert_eq!([first.code, second.code, all.code], [Some(100); 3]);
}

#[test]
fn tap_program_is_one_test() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name);
    script(&file("good.t"), "echo 'ok 1 - a'; echo 'not ok 2 - b # TODO'; echo 1..2");
    script(&file("bad.t"), "echo 1..2; echo 'ok 1 - a'; echo 'not ok 2 - b'; echo '# because' >&2");
    script(&file("short.t"), "echo 1..2; echo ok; exit 3");
    script(&file("skipped.t"), "echo '1..0 # SKIP no network'");
    script(&file("mixed.t"), "echo 'not ok 1' >&2; echo ok; echo 1..1");
    let names = ["good.t", "bad.t", "short.t", "skipped.t", "mixed.t"];
    let spec = names.iter().fold(harness().arg("--no-fail-fast"), |spec, name| spec.arg("--tap").arg(file(name)));
    let run = run(&spec);
    assert_eq!(run.code, Some(100), "{}", run.stderr);
    assert!(run.summary().starts_with("4 tests run: 2 passed, 2 failed, 1 skipped\n"), "{}", run.stderr);
    assert!(run.line("good.t").ends_with("good.t: 2 points"), "{}", run.stderr);
    assert!(run.line("bad.t").ends_with("bad.t: 1 of 2 points failed: 2 b"), "{}", run.stderr);
    assert!(run.stderr.contains("    not ok 2 - b\n    # because\n"), "{}", run.stderr);
    assert!(run.line("short.t").ends_with("short.t: planned 2 points, ran 1; exit code 3"), "{}", run.stderr);
    assert!(run.line("SKIP [").ends_with("skipped.t: no network"), "{}", run.stderr);
    assert!(run.line("mixed.t").ends_with("mixed.t: 1 points"), "standard error is not TAP: {}", run.stderr);
}

#[test]
fn slow_test_passes_with_warnings() {
    let directory = tempfile::tempdir().unwrap();
    let program = program(directory.path(), "tests", &[("slow", "sleep 1")]);
    let run = run(&harness().args(["--slow-timeout", "100ms"]).arg(&program));
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(run.summary().starts_with("1 test run: 1 passed (1 slow)\n"), "{}", run.stderr);
    assert!(
        run.stderr.contains("SLOW [>  0.100s] (───)") && run.stderr.contains("SLOW [>  0.200s] (───)"),
        "{}",
        run.stderr
    );
}

#[test]
fn retry_waits_for_its_delay_while_others_run() {
    let directory = tempfile::tempdir().unwrap();
    // The first test passes once the second has run, whose turn comes while the retry waits.
    let tests = [("first", "[ -e second ]"), ("second", "touch second")];
    let program = program(directory.path(), "tests", &tests);
    let run = run(&harness().args(["-j1", "--retries", "1", "--retry-delay", "300ms"]).arg(&program));
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(run.summary().starts_with("2 tests run: 2 passed (1 flaky)\n"), "{}", run.stderr);
}

#[test]
fn flood_of_output_is_cut_in_the_middle() {
    let directory = tempfile::tempdir().unwrap();
    let body = "echo begun; head -c 20000000 /dev/zero | tr '\\0' 'x'; echo; echo ended; exit 1";
    let program = program(directory.path(), "tests", &[("floods", body)]);
    let run = run(&harness().arg(&program));
    assert_eq!(run.code, Some(100), "{}", &run.stderr[..run.stderr.len().min(1000)]);
    assert!(run.stderr.contains("    begun\n") && run.stderr.contains("    ended\n"), "{}", run.stderr.len());
    assert!(run.stderr.contains(" bytes omitted]\n") && run.stderr.len() < 2 << 20, "{}", run.stderr.len());
}
