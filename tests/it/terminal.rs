//! What the terminal does to a host, and the workers that have left its process group.

use crate::{
    kernel,
    support::{Chance, DEADLINE, FIXTURE, carriers, children, wait_gone},
};
use pipewright::{Output, WorkerSpec};
use std::{
    fs,
    io::{BufRead, BufReader},
    time::Duration,
};

/// Whether it is stopped, by the letter of `proc_pid_stat(5)`.
fn is_stopped(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
}

#[test]
fn p11_ctrl_z_during_a_start_stops_nobody_for_good() {
    const MARK: &str = "PIPEWRIGHT_TEST_TERMINAL";
    let mark = std::process::id().to_string();
    let (_keep, never) = crossbeam_channel::bounded::<()>(0);
    let pause = |time| assert!(never.recv_timeout(time).is_err());
    let seed = u64::from(std::process::id()) << 32 | 0x9E37_79B9;
    let mut chance = Chance(seed);
    // It starts somebody again and again, each in a group of his own.
    let spec = WorkerSpec::new(FIXTURE).args(["host", "--level", "own"]).env(MARK, &mark).stdout(Output::Lines);
    let mut host = spec.stderr(Output::Null).launch().unwrap();
    let mut line = String::new();
    BufReader::new(host.take_stdout().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "up\n");
    for _ in 0..400 {
        assert_eq!(kernel::kill_group(host.pid(), libc::SIGTSTP), 0);
        pause(Duration::from_micros(chance.below(1500)));
        assert_eq!(kernel::kill_group(host.pid(), libc::SIGCONT), 0);
        pause(Duration::from_micros(chance.below(1500)));
    }
    let mut stopped = Vec::new();
    for _ in 0..DEADLINE.as_millis() {
        stopped = children(host.pid()).into_iter().filter(|pid| is_stopped(*pid)).collect();
        if stopped.is_empty() {
            break;
        }
        pause(Duration::from_millis(1));
    }
    host.kill().unwrap();
    host.wait().unwrap();
    for pid in carriers(MARK, &mark) {
        wait_gone(pid);
    }
    assert_eq!(stopped, Vec::<u32>::new(), "seed {seed}");
}
