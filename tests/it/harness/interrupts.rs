//! Ctrl-C: tests are interrupted, not failed.

use super::{finish, harness, program};
use crate::{
    kernel,
    support::{DEADLINE, signal_until_exit, wait_gone},
};
use std::{
    fs::{self, File},
    io::Read,
    os::fd::OwnedFd,
    path::Path,
};

/// A pipe in which a test reports its process id.
struct Pids(OwnedFd);

impl Pids {
    fn new(directory: &Path) -> Self {
        let path = directory.join("pids");
        assert_eq!(kernel::make_fifo(&path), 0);
        // Opened for both directions, which does not block.
        Self(File::options().read(true).write(true).open(path).unwrap().into())
    }

    fn next(&self) -> u32 {
        let mut pipe = File::from(self.0.try_clone().unwrap());
        let mut line = String::new();
        loop {
            assert!(kernel::poll_readable(&self.0, DEADLINE), "no test has sent its pid; so far {line:?}");
            let mut byte = [0];
            pipe.read_exact(&mut byte).unwrap();
            match byte {
                [b'\n'] => return line.parse().unwrap(),
                [byte] => line.push(char::from(byte)),
            }
        }
    }
}

#[test]
fn interrupted_test_has_not_failed() {
    for (signal, code, name) in [(libc::SIGINT, 130, "SIGINT"), (libc::SIGTERM, 143, "SIGTERM")] {
        let directory = tempfile::tempdir().unwrap();
        let pids = Pids::new(directory.path());
        let tests = [("first", ""), ("hangs", "echo begun; echo $$ >pids; exec sleep 1000"), ("third", "")];
        let program = program(directory.path(), "tests", &tests);
        let junit = directory.path().join("junit.xml");
        let process = harness().args(["-j1", "--junit"]).arg(&junit).arg(&program).spawn_unsupervised().unwrap();
        let pid = pids.next();
        process.signal(signal).unwrap();
        let run = finish(process);
        assert_eq!(run.code, Some(code), "{}", run.stderr);
        let summary = run.summary();
        assert!(summary.starts_with("2/3 tests run: 1 passed, 1 interrupted\n"), "{}", run.stderr);
        assert!(run.line("hangs").contains("INTERRUPT ["), "{}", run.stderr);
        assert!(run.stderr.contains(&format!("\n   Cancelling due to {name}: ")), "{}", run.stderr);
        assert!(run.stderr.ends_with(&format!("error: interrupted by {name}\n")), "{}", run.stderr);
        assert!(!run.stderr.contains("failed") && !run.stderr.contains("FAIL"), "{}", run.stderr);
        let junit = fs::read_to_string(junit).unwrap();
        assert!(junit.contains("<skipped message=\"interrupted\"/>"), "{junit}");
        assert!(junit.contains("<skipped message=\"not run\"/>"), "{junit}");
        wait_gone(pid);
    }
}

#[test]
fn second_interrupt_kills() {
    let directory = tempfile::tempdir().unwrap();
    let pids = Pids::new(directory.path());
    // Reports each SIGTERM, and goes on.
    let body = "trap 'echo $$ >pids' TERM; echo $$ >pids; while :; do sleep 1000 & wait; done";
    let program = program(directory.path(), "tests", &[("stubborn", body)]);
    let mut process = harness().args(["--grace-period", "1h"]).arg(&program).spawn_unsupervised().unwrap();
    let pid = pids.next();
    process.signal(libc::SIGINT).unwrap();
    assert_eq!(pids.next(), pid, "SIGTERM came first");
    signal_until_exit(&mut process, libc::SIGINT);
    let run = finish(process);
    assert_eq!(run.code, Some(130), "{}", run.stderr);
    assert!(run.summary().starts_with("1 test run: 0 passed, 1 interrupted\n"), "{}", run.stderr);
    wait_gone(pid);
}

#[test]
fn interrupt_while_tests_are_listed_ends_harness() {
    let directory = tempfile::tempdir().unwrap();
    let pids = Pids::new(directory.path());
    let program = directory.path().join("tests");
    super::script(&program, "cd \"$(dirname \"$0\")\"; echo $$ >pids; exec sleep 1000");
    let process = harness().arg("-j2").arg(&program).spawn_unsupervised().unwrap();
    let both = [pids.next(), pids.next()]; // all tests, and those with `#[ignore]`
    process.signal(libc::SIGINT).unwrap();
    let run = finish(process);
    assert_eq!((run.code, &*run.stderr), (Some(130), "error: interrupted by SIGINT\n"));
    both.into_iter().for_each(wait_gone);
}

#[test]
fn killed_harness_leaves_no_test() {
    let directory = tempfile::tempdir().unwrap();
    let pids = Pids::new(directory.path());
    let body = "setsid sh -c 'echo $$ >pids; exec sleep 1000' & echo $$ >pids; exec sleep 1000";
    let program = program(directory.path(), "tests", &[("hangs", body)]);
    let process = harness().arg(&program).spawn_unsupervised().unwrap();
    let both = [pids.next(), pids.next()];
    process.signal(libc::SIGKILL).unwrap();
    both.into_iter().for_each(wait_gone);
    assert_eq!(finish(process).code, None);
}
