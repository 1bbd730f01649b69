//! Signals of a terminal: the host and its workers in other process groups.

use crate::{
    kernel,
    support::{Chance, DEADLINE, FIXTURE, becomes_true, carriers, children, signal_until_exit, wait_gone},
};
use pipewright::{OutputMode, Process, WorkerSpec, pipe::anonymous::PipeReader};
use std::{
    fs,
    io::{BufRead, BufReader},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

/// Whether the process is in this state, a letter of `proc_pid_stat(5)`.
pub(crate) fn is_in_state(pid: u32, wanted: char) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(wanted))
}

#[track_caller]
pub(crate) fn wait_state(pid: u32, wanted: char) {
    assert!(becomes_true(|| is_in_state(pid, wanted)), "{:?}", fs::read_to_string(format!("/proc/{pid}/stat")));
}

#[track_caller]
fn wait_ignores(pid: u32, signal: i32) {
    wait_mask(pid, "SigIgn:", signal);
}

/// Waits until the signal is in this mask of `proc_pid_status(5)`.
#[track_caller]
fn wait_mask(pid: u32, mask: &str, signal: i32) {
    let status = || fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let is_in = || {
        let status = status();
        let found = status.lines().find_map(|line| line.strip_prefix(mask)).unwrap().trim();
        u64::from_str_radix(found, 16).unwrap() >> (signal - 1) & 1 == 1
    };
    assert!(becomes_true(is_in), "{}", status());
}

/// Starts a host whose supervisors handle the terminal's signals; returns it with the pids that it prints and its output.
fn host(options: &[&str]) -> (Process, Vec<u32>, BufReader<PipeReader>) {
    let spec = WorkerSpec::new(FIXTURE).arg("terminal-host").args(options.iter().copied()).stdout(OutputMode::Lines);
    let mut process = spec.spawn_unsupervised().unwrap();
    let mut lines = BufReader::new(process.take_stdout().unwrap());
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    let pids = line.strip_prefix("up ").unwrap_or_else(|| panic!("{line:?}")).split_whitespace();
    (process, pids.map(|pid| pid.parse().unwrap()).collect(), lines)
}

#[track_caller]
fn ends_at_ctrl_c(process: Process, lines: BufReader<PipeReader>) {
    ends_at_ctrl_c_by(process, lines, "killed by signal 15 (SIGTERM)\n");
}

#[track_caller]
fn ends_at_ctrl_c_by(process: Process, lines: BufReader<PipeReader>, end: &str) {
    process.signal(libc::SIGINT).unwrap();
    ends_by(process, lines, end);
}

/// Expects this line and a successful exit.
#[track_caller]
fn ends_by(mut process: Process, mut lines: BufReader<PipeReader>, end: &str) {
    let mut last = String::new();
    lines.read_line(&mut last).unwrap();
    assert_eq!(last, end);
    assert!(process.wait().unwrap().success());
}

#[test]
fn first_ctrl_c_stops_gracefully_and_second_kills() {
    let (process, _, lines) = host(&[]);
    ends_at_ctrl_c(process, lines);
    let (mut process, pids, lines) = host(&["--script", "trap '' TERM; echo up >&2; while :; do sleep 1000; done"]);
    // Before the trap is set, SIGTERM would terminate the worker.
    wait_ignores(pids[0], libc::SIGTERM);
    process.signal(libc::SIGINT).unwrap();
    signal_until_exit(&mut process, libc::SIGINT);
    ends_by(process, lines, "killed by signal 9 (SIGKILL)\n");
}

#[test]
fn received_signal_is_known_for_the_exit_code() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let (mut process, _, lines) = host(&["--signal-code"]);
        process.signal(signal).unwrap();
        let exit = process.wait_timeout(DEADLINE).unwrap().expect("its end");
        assert_eq!(exit.code(), Some(128 + signal), "{exit}");
        drop(lines);
    }
}

#[test]
fn simultaneous_signals_are_one_stop_request() {
    let (process, pids, lines) = host(&["--script", "trap 'sleep 0.3; exit 7' TERM; while :; do sleep 0.1; done"]);
    wait_mask(pids[0], "SigCgt:", libc::SIGTERM);
    // As timeout(1) sends them, but at the same time: two different signals, which the kernel does not merge.
    process.signal(libc::SIGSTOP).unwrap();
    wait_state(process.pid(), 'T');
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGCONT] {
        process.signal(signal).unwrap();
    }
    ends_by(process, lines, "exit code 7\n");
}

#[test]
fn ctrl_z_stops_host_and_worker_until_sigcont() {
    let (process, pids, lines) = host(&[]);
    process.signal(libc::SIGTSTP).unwrap();
    wait_state(process.pid(), 'T');
    wait_state(pids[0], 'T');
    process.signal(libc::SIGCONT).unwrap();
    wait_state(pids[0], 'S');
    ends_at_ctrl_c(process, lines);
}

#[test]
fn frozen_worker_stays_frozen_after_sigcont() {
    let (process, pids, lines) = host(&["--frozen"]);
    let [worker, frozen] = *pids else { panic!("{pids:?}") };
    wait_state(frozen, 'T');
    process.signal(libc::SIGTSTP).unwrap();
    wait_state(process.pid(), 'T');
    wait_state(worker, 'T');
    process.signal(libc::SIGCONT).unwrap();
    wait_state(worker, 'S');
    assert!(is_in_state(frozen, 'T'));
    ends_at_ctrl_c(process, lines);
}

#[test]
fn p11_dropped_signal_guard_restores_default_actions() {
    let (mut process, _, _lines) = host(&["--no-more"]);
    process.signal(libc::SIGTSTP).unwrap();
    wait_state(process.pid(), 'T');
    process.signal(libc::SIGCONT).unwrap();
    wait_state(process.pid(), 'S');
    process.signal(libc::SIGINT).unwrap();
    assert_eq!(process.wait_timeout(DEADLINE).unwrap().expect("its end").signal(), Some(libc::SIGINT));
}

#[test]
fn two_supervisors_stop_and_continue_together() {
    for _ in 0..5 {
        let (process, pids, lines) = host(&["--twice"]);
        process.signal(libc::SIGTSTP).unwrap();
        wait_state(process.pid(), 'T');
        process.signal(libc::SIGCONT).unwrap();
        wait_state(pids[0], 'S');
        // A second stop would arrive before SIGINT.
        ends_at_ctrl_c(process, lines);
    }
}

/// The runtime of the worker until its limit, as the host prints it.
fn had(line: &str) -> Duration {
    let ms = line.strip_prefix("had ").and_then(|line| line.strip_suffix(" ms\n"));
    Duration::from_millis(ms.unwrap_or_else(|| panic!("{line:?}")).parse().unwrap())
}

#[test]
fn p15_deadlines_pause_while_stopped_by_ctrl_z() {
    const LIMIT: Duration = Duration::from_millis(600);
    let began = Instant::now();
    let (process, _, mut lines) = host(&["--time-limit-ms=600"]);
    process.signal(libc::SIGTSTP).unwrap();
    wait_state(process.pid(), 'T');
    let ran_before_max = began.elapsed();
    // Time that must not count.
    let (_keep, never) = crossbeam_channel::bounded::<()>(0);
    assert!(never.recv_timeout(LIMIT).is_err());
    let continued = Instant::now();
    process.signal(libc::SIGCONT).unwrap();
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert!(had(&line) >= LIMIT, "{line}");
    let (ran_after, left) = (continued.elapsed(), LIMIT.saturating_sub(ran_before_max));
    assert!(ran_after >= left, "{ran_after:?} after SIGCONT, when {left:?} were left");
    ends_at_ctrl_c_by(process, lines, "killed by signal 15 (SIGTERM), stopped at its time limit\n");
}

#[test]
fn p15_deadlines_pause_while_host_is_suspended() {
    const LIMIT: Duration = Duration::from_millis(900);
    const SUSPENDED: Duration = Duration::from_millis(2400);
    let began = Instant::now();
    let (process, _, mut lines) = host(&["--deadlines-ms=900", "--warnings"]);
    // SIGSTOP gives the host no notification, like a frozen cgroup.
    process.signal(libc::SIGSTOP).unwrap();
    wait_state(process.pid(), 'T');
    let ran_before_max = began.elapsed();
    let (_keep, never) = crossbeam_channel::bounded::<()>(0);
    assert!(never.recv_timeout(SUSPENDED).is_err());
    let continued = Instant::now();
    process.signal(libc::SIGCONT).unwrap();
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert!(line.starts_with("event loop was not run for "), "{line:?}");
    let mut expired = Vec::new();
    for _ in 0..3 {
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        let (ran_after, left) = (continued.elapsed(), LIMIT.saturating_sub(ran_before_max));
        assert!(ran_after >= left, "{line:?}: {ran_after:?} after SIGCONT, when {left:?} were left");
        expired.push(line);
    }
    assert!(expired.iter().any(|line| line == "not ready\n"), "{expired:?}");
    ends_at_ctrl_c(process, lines);
}

#[test]
fn p15_deadline_expires_in_host_that_is_stopped_repeatedly() {
    let (process, _, mut lines) = host(&["--time-limit-ms=300"]);
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        sender.send((line, lines)).unwrap();
    });
    let until = Instant::now() + DEADLINE / 3;
    // Each stop interrupts the wait of the event loop, which must not restart its timeout.
    let (line, lines) = loop {
        assert!(Instant::now() < until, "the deadline has not expired");
        process.signal(libc::SIGSTOP).unwrap();
        wait_state(process.pid(), 'T');
        process.signal(libc::SIGCONT).unwrap();
        if let Ok(received) = receiver.recv_timeout(Duration::from_millis(20)) {
            break received;
        }
    };
    assert!(had(&line) >= Duration::from_millis(300), "{line}");
    ends_at_ctrl_c_by(process, lines, "killed by signal 15 (SIGTERM), stopped at its time limit\n");
}

#[test]
fn p11_ctrl_z_during_spawn_leaves_no_child_stopped() {
    const MARK: &str = "TEST_MARK_TERMINAL";
    let mark = std::process::id().to_string();
    let (_keep, never) = crossbeam_channel::bounded::<()>(0);
    let pause = |time| assert!(never.recv_timeout(time).is_err());
    let seed = u64::from(std::process::id()) << 32 | 0x9E37_79B9;
    let mut chance = Chance(seed);
    // The host restarts its worker continuously, each time in a new process group.
    let spec = WorkerSpec::new(FIXTURE).args(["host", "--level", "own"]).env(MARK, &mark).stdout(OutputMode::Lines);
    let mut host = spec.stderr(OutputMode::Null).spawn_unsupervised().unwrap();
    let mut line = String::new();
    BufReader::new(host.take_stdout().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("up "), "{line:?}");
    for _ in 0..400 {
        assert_eq!(kernel::kill_group(host.pid(), libc::SIGTSTP), 0);
        pause(Duration::from_micros(chance.below(1500)));
        assert_eq!(kernel::kill_group(host.pid(), libc::SIGCONT), 0);
        pause(Duration::from_micros(chance.below(1500)));
    }
    let stopped = || -> Vec<u32> { children(host.pid()).into_iter().filter(|pid| is_in_state(*pid, 'T')).collect() };
    becomes_true(|| stopped().is_empty());
    let stopped = stopped();
    host.kill().unwrap();
    host.wait().unwrap();
    for pid in carriers(MARK, &mark) {
        wait_gone(pid);
    }
    assert_eq!(stopped, Vec::<u32>::new(), "seed {seed}");
}
