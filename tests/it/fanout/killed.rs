//! What is left when `fanout` is killed.

use super::{compiler, database, fanout, run, write};
use crate::{
    kernel,
    support::{DEADLINE, becomes_true, wait_gone},
};
use std::{fs::File, io::Read, os::fd::OwnedFd};

#[test]
fn killed_build_leaves_no_compiler_and_is_continued_by_the_next() {
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("pids");
    assert_eq!(kernel::make_fifo(&fifo), 0);
    // Compiles `a.c`. Of `b.c` it writes half of an object, sends its pid, and never ends.
    let script = "echo x >>starts\ncase $* in *b.c*) [ -e good ] || { echo half >b.o; mkfifo wait; echo $$ >pids; read -r x <wait; };; esac\n\
                  exec cc \"$@\"";
    let slow = compiler(directory.path(), "slow-gcc", script);
    let database = database(directory.path(), &[("a.c", "int a;\n"), ("b.c", "int b;\n")], &slow);
    // Opened for both directions, which does not block.
    let pipe = OwnedFd::from(File::options().read(true).write(true).open(&fifo).unwrap());
    let mut process = fanout()
        .arg(&database)
        .args(["-j1", "--joblog"])
        .arg(directory.path().join("log"))
        .spawn_unsupervised()
        .unwrap();
    assert!(kernel::poll_readable(&pipe, DEADLINE), "no compiler has sent its pid");
    let mut text = [0; 32];
    let length = File::from(pipe).read(&mut text).unwrap();
    let pid: u32 = String::from_utf8_lossy(&text[..length]).trim().parse().unwrap();
    // `b.c` is started at once when `a.c` has ended, and that is recorded meanwhile.
    let log = directory.path().join(".fanout_log");
    assert!(becomes_true(|| std::fs::read_to_string(&log).unwrap().lines().any(|line| line.starts_with("s "))));
    process.kill().unwrap();
    process.wait_timeout(DEADLINE).unwrap().expect("its end");
    wait_gone(pid);
    assert_eq!(std::fs::read_to_string(directory.path().join("b.o")).unwrap(), "half\n");
    write(directory.path(), "good", "");
    let next = run(&fanout().arg(&database));
    assert!(
        next.exit.success() && next.stdout.contains("1 built, 1 up to date, 0 failed"),
        "{}\n{}",
        next.stdout,
        next.stderr
    );
    let starts = std::fs::read_to_string(directory.path().join("starts")).unwrap();
    assert_eq!(starts.lines().count(), 3, "a.c once, b.c twice");
    assert!(std::fs::metadata(directory.path().join("b.o")).unwrap().len() > 100);
}
