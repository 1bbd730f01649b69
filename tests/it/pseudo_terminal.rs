//! A host on a pseudo terminal: Ctrl-C, Ctrl-Z, job control and hangup.

use crate::{
    guard::guard_of,
    kernel,
    support::{Chance, DEADLINE, FIXTURE, becomes_true, carriers, cgroups_of, wait_all_gone, wait_gone},
    terminal::{is_in_state, wait_state},
};
use pipewright::{Process, ProcessGroup, WorkerSpec};
use std::{
    fmt,
    fs::{self, File},
    io::{Read, Write},
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

const CTRL_C: &str = "\x03";
const CTRL_Z: &str = "\x1a";

/// Exits at SIGTERM with code 3, and with code 9 if the terminal's SIGINT reaches it.
const GRACEFUL: &str = "trap 'exit 9' INT; trap 'exit 3' TERM; echo well; while :; do sleep 1000 & wait; done";
/// Prints a line at SIGTERM and does not exit.
const STUBBORN: &str = "trap 'echo asked' TERM; echo well; while :; do sleep 1000 & wait; done";
/// Four processes, two of them in a session of their own.
const TREE: &str = "setsid sh -c 'echo \"away $$\"; sleep 1000 & wait' & sleep 1000 & wait";
/// Prints the line that it reads.
const READER: &str = "read -r line && echo \"got $line\"; exec sleep 1000";

/// A pseudo terminal and its output so far.
struct Terminal {
    master: File,
    path: PathBuf,
    processes: Processes,
    shown: String,
}

/// All processes started in one terminal, with their descendants.
struct Processes {
    mark: String,
}

/// A host as the job of an interactive shell.
struct Job {
    shell: Process,
    host: u32,
}

impl Terminal {
    fn open() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let (master, path) = kernel::open_terminal();
        // Ctrl-C and Ctrl-Z must not discard output that is not read yet.
        kernel::set_local_mode(&master, libc::NOFLSH);
        let mark = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        Self { master, path, processes: Processes { mark }, shown: String::new() }
    }

    /// A program that is the session leader of this terminal.
    fn session_leader(&self, program: &str) -> WorkerSpec {
        // The first terminal that a session leader opens becomes its controlling terminal.
        let spec = WorkerSpec::new("/bin/sh").args(["-c", r#"exec "$@" <>"$0" >&0 2>&0"#]).arg(&self.path).arg(program);
        spec.process_group(ProcessGroup::NewSession).env(Processes::MARK, &self.processes.mark)
    }

    /// Starts a host without a shell.
    fn start(&mut self, options: &[&str]) -> Process {
        let host = self
            .session_leader(FIXTURE)
            .arg("terminal-host")
            .args(options.iter().copied())
            .spawn_unsupervised()
            .unwrap();
        self.wait_for("up ");
        host
    }

    /// Starts an interactive shell and a host as its job.
    fn start_job(&mut self, options: &str, script: &str) -> Job {
        // The terminal echoes input, which must not contain the text that the test waits for.
        let shell = self.session_leader("/bin/sh").arg("-i").env_remove("ENV").env("PS1", "> ");
        let shell = shell.env("HOST", FIXTURE).env("SCRIPT", script).spawn_unsupervised().unwrap();
        let mut job = Job { shell, host: 0 };
        job.again(self, options);
        job
    }

    fn type_in(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap();
    }

    /// Reads until the output contains one of these texts.
    #[track_caller]
    fn wait_for_any(&mut self, wanted: &[&str]) {
        let until = now() + DEADLINE;
        while !wanted.iter().any(|wanted| self.shown.contains(wanted)) {
            let has_more = kernel::poll_readable(&self.master, until.saturating_duration_since(now())) && self.read();
            assert!(has_more, "no {wanted:?}; it has shown:\n{}\n{}", self.shown, self.processes);
        }
    }

    /// Whether the output contains this text within `time`.
    fn shows_within(&mut self, wanted: &str, time: Duration) -> bool {
        let until = now() + time;
        while !self.shown.contains(wanted) {
            if !(kernel::poll_readable(&self.master, until.saturating_duration_since(now())) && self.read()) {
                return false;
            }
        }
        true
    }

    #[track_caller]
    fn wait_for(&mut self, wanted: &str) {
        self.wait_for_any(&[wanted]);
    }

    /// Waits until all processes of [`TREE`] run their programs. During an exec a process has no environment, so it cannot be
    /// recognized.
    #[track_caller]
    fn wait_tree(&mut self) {
        self.wait_for("away ");
        let sleeps = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "sleep\n");
        assert!(
            becomes_true(|| self.processes.all().iter().filter(|pid| sleeps(pid)).count() == 2),
            "{}",
            self.processes
        );
    }

    /// Returns false at the end of the stream, which a terminal reports as EIO.
    fn read(&mut self) -> bool {
        let mut part = [0; 4096];
        match self.master.read(&mut part) {
            Ok(bytes) => {
                self.shown.push_str(&String::from_utf8_lossy(&part[..bytes]));
                bytes > 0
            }
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
                false
            }
        }
    }

    /// The first number in the output after these words.
    #[track_caller]
    fn number_after(&mut self, words: &str) -> u32 {
        self.wait_for(words);
        let start = self.shown.find(words).unwrap() + words.len();
        while !self.shown[start..].contains(|sign: char| !sign.is_ascii_digit()) {
            assert!(self.read(), "no number: {}", self.shown);
        }
        let digits = self.shown[start..].split(|sign: char| !sign.is_ascii_digit()).next().unwrap();
        digits.parse().unwrap_or_else(|_| panic!("no number: {}", self.shown))
    }

    /// Closes the terminal; returns the processes started in it.
    fn close(self) -> Processes {
        self.processes
    }

    #[track_caller]
    fn wait_foreground(&self, group: u32) {
        let has = || kernel::foreground(&self.master);
        assert!(
            becomes_true(|| has() == group),
            "{} has it, not {group}; it has shown:\n{}\n{}",
            has(),
            self.shown,
            self.processes
        );
    }

    /// Expects the exit of the worker, as the host prints it, and then that of the host with its own code.
    #[track_caller]
    fn ends(&mut self, mut host: Process, worker: &str) {
        self.wait_for(worker);
        let exit =
            host.wait_timeout(DEADLINE).unwrap().unwrap_or_else(|| panic!("the host still runs:\n{}", self.processes));
        assert_eq!(exit.code(), Some(7), "{exit}; it has shown:\n{}", self.shown);
        self.processes.wait_all_gone();
    }
}

impl Job {
    /// Makes the shell start a host.
    #[track_caller]
    fn again(&mut self, terminal: &mut Terminal, options: &str) {
        terminal.shown.clear();
        terminal.type_in(&format!("\"$HOST\" terminal-host --code 7 --script \"$SCRIPT\" {options}\n"));
        terminal.wait_for("up ");
        self.host = kernel::foreground(&terminal.master);
    }

    /// All processes except the shell.
    fn job_processes(&self, terminal: &Terminal) -> Vec<u32> {
        terminal.processes.all().into_iter().filter(|pid| *pid != self.shell.pid()).collect()
    }

    /// Ctrl-Z: the whole job is stopped, and the shell is in the foreground.
    #[track_caller]
    fn suspend(&self, terminal: &mut Terminal) {
        terminal.type_in(CTRL_Z);
        terminal.wait_foreground(self.shell.pid());
        let is_stopped = || self.job_processes(terminal).into_iter().all(|pid| is_in_state(pid, 'T'));
        assert!(becomes_true(is_stopped), "a process is not stopped:\n{}", terminal.processes);
        terminal.type_in("echo \"$((20 + 3)) skidoo\"\n");
        terminal.wait_for("23 skidoo");
    }

    /// `fg`: the whole job continues in the foreground.
    #[track_caller]
    fn resume(&self, terminal: &mut Terminal) {
        terminal.type_in("fg\n");
        terminal.wait_foreground(self.host);
        let continues = || !self.job_processes(terminal).into_iter().any(|pid| is_in_state(pid, 'T'));
        assert!(becomes_true(continues), "a process is stopped:\n{}", terminal.processes);
    }

    /// Ctrl-C: the job exits, and the shell gets the host's exit code.
    #[track_caller]
    fn ends_at_ctrl_c(&self, terminal: &mut Terminal, worker: &str) {
        terminal.type_in(CTRL_C);
        self.ends(terminal, worker);
    }

    #[track_caller]
    fn ends(&self, terminal: &mut Terminal, worker: &str) {
        terminal.wait_for(worker);
        terminal.wait_foreground(self.shell.pid());
        terminal.type_in("echo \"its code is $?\"\n");
        terminal.wait_for("its code is 7");
        for pid in self.job_processes(terminal) {
            wait_gone(pid);
        }
    }
}

impl Processes {
    const MARK: &str = "TEST_MARK_PSEUDO_TERMINAL";

    fn all(&self) -> Vec<u32> {
        carriers(Self::MARK, &self.mark)
    }

    #[track_caller]
    fn wait_all_gone(&self) {
        wait_all_gone(|| self.all());
    }
}

/// The stat lines of all processes.
impl fmt::Display for Processes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.all().into_iter().try_for_each(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            write!(formatter, "{stat}")
        })
    }
}

fn now() -> Instant {
    Instant::now()
}

fn pause(time: Duration) {
    let (_keep, never) = crossbeam_channel::bounded::<()>(0);
    assert!(never.recv_timeout(time).is_err());
}

#[test]
fn ctrl_c_reaches_only_host_and_stops_worker_gracefully() {
    worker_prints_and_stops_gracefully();
}

/// A worker that writes to the terminal exits gracefully at Ctrl-C.
#[track_caller]
fn worker_prints_and_stops_gracefully() {
    let mut terminal = Terminal::open();
    let host = terminal.start(&["--code=7", "--script", GRACEFUL]);
    terminal.wait_for("well");
    terminal.type_in(CTRL_C);
    terminal.ends(host, "exit code 3");
}

#[test]
fn second_ctrl_c_kills_worker() {
    let mut terminal = Terminal::open();
    let host = terminal.start(&["--code=7", "--grace-ms=3600000", "--script", STUBBORN]);
    terminal.wait_for("well");
    terminal.type_in(CTRL_C);
    terminal.wait_for("asked");
    terminal.type_in(CTRL_C);
    // Repeated: a second Ctrl-C that arrives too soon counts as the first.
    let mut times = 0..500;
    while !terminal.shows_within("killed by", Duration::from_millis(60)) && times.next().is_some() {
        terminal.type_in(CTRL_C);
    }
    terminal.ends(host, "killed by signal 9 (SIGKILL)");
}

#[test]
fn p15_ctrl_z_pauses_processes_and_deadlines_until_fg() {
    const LIMIT: Duration = Duration::from_millis(900);
    const EXPIRED: [&str; 3] = ["not ready", "unresponsive", "had "];
    let began = now();
    let mut terminal = Terminal::open();
    let job = terminal.start_job(&format!("--deadlines-ms {}", LIMIT.as_millis()), TREE);
    terminal.wait_tree();
    job.suspend(&mut terminal);
    let ran_before_max = began.elapsed();
    // Time that must not count.
    pause(LIMIT);
    let continued = now();
    job.resume(&mut terminal);
    terminal.wait_for_any(&EXPIRED);
    let (ran_after, left) = (continued.elapsed(), LIMIT.saturating_sub(ran_before_max));
    assert!(ran_after >= left, "{ran_after:?} after fg, when {left:?} were left:\n{}", terminal.shown);
    for expired in EXPIRED {
        terminal.wait_for(expired);
    }
    job.ends_at_ctrl_c(&mut terminal, "killed by signal 15 (SIGTERM)");
}

#[test]
fn p15_ctrl_z_pauses_stop_policy() {
    const GRACE: Duration = Duration::from_millis(500);
    let mut terminal = Terminal::open();
    let job = terminal.start_job(&format!("--grace-ms {}", GRACE.as_millis()), STUBBORN);
    terminal.wait_for("well");
    let began = now();
    terminal.type_in(CTRL_C);
    terminal.wait_for("asked");
    job.suspend(&mut terminal);
    let ran_before_max = began.elapsed();
    // Time that must not count.
    pause(GRACE);
    let continued = now();
    job.resume(&mut terminal);
    job.ends(&mut terminal, "killed by signal 9 (SIGKILL)");
    let (ran_after, left) = (continued.elapsed(), GRACE.saturating_sub(ran_before_max));
    assert!(ran_after >= left, "{ran_after:?} after fg, when {left:?} were left:\n{}", terminal.shown);
}

/// Whether the job keeps running after two Ctrl-Z in quick succession and one `fg`.
fn continues_for_good(between: Duration) -> bool {
    let mut terminal = Terminal::open();
    let job = terminal.start_job("", &format!("trap 'echo went on' CONT; {GRACEFUL}"));
    terminal.wait_for("well");
    terminal.type_in(CTRL_Z);
    pause(between);
    terminal.type_in(CTRL_Z);
    wait_state(job.host, 'T');
    terminal.wait_foreground(job.shell.pid());
    // The shell prints 128 plus the number of the signal that stopped the job.
    terminal.type_in("fg; echo \"back with $?\"\n");
    terminal.wait_for_any(&["went on", "back with 1"]);
    // A second stop would take effect before Ctrl-C and return the terminal to the shell.
    terminal.type_in(CTRL_C);
    let mut ends = false;
    let is_known = becomes_true(|| {
        while kernel::poll_readable(&terminal.master, Duration::ZERO) && terminal.read() {}
        ends = terminal.shown.contains("exit code 3");
        ends || is_in_state(job.host, 'T') && kernel::foreground(&terminal.master) == job.shell.pid()
    });
    assert!(is_known, "it has shown:\n{}\n{}", terminal.shown, terminal.processes);
    terminal.close().wait_all_gone();
    ends
}

#[test]
#[ignore = "takes 11 s: twenty rounds at a terminal"]
fn repeated_ctrl_z_stops_once() {
    const ROUNDS: usize = 20;
    let seed = u64::from(std::process::id()) << 32 | 0x9E37_79B9;
    let mut chance = Chance(seed);
    let stopped_again = (0..ROUNDS).filter(|_| !continues_for_good(Duration::from_micros(chance.below(500)))).count();
    // A signal handler that was running at the stop writes its notification after SIGCONT; it looks like a new Ctrl-Z.
    assert!(stopped_again <= ROUNDS / 10, "{stopped_again} times of {ROUNDS}, seed {seed}");
}

#[test]
fn ctrl_z_is_ignored_without_job_control_shell() {
    // Without a job control shell, no process could send SIGCONT.
    let mut terminal = Terminal::open();
    let script = "trap 'echo went on' CONT; echo well; while :; do sleep 1000 & wait; done";
    let host = terminal.start(&["--code=7", "--script", script]);
    terminal.wait_for("well");
    terminal.type_in(CTRL_Z);
    terminal.wait_for("went on");
    terminal.type_in(CTRL_C);
    terminal.ends(host, "killed by signal 15 (SIGTERM)");

    let mut terminal = Terminal::open();
    let mut host = terminal.start(&["--no-more"]);
    terminal.type_in(CTRL_Z);
    terminal.type_in(CTRL_C);
    assert_eq!(host.wait_timeout(DEADLINE).unwrap().expect("its end").signal(), Some(libc::SIGINT));
}

#[test]
fn p09_hangup_of_terminal_leaves_no_process() {
    let mut terminal = Terminal::open();
    let mut host = terminal.start(&["--script", TREE]);
    terminal.wait_tree();
    let guard = guard_of(host.pid());
    let processes = terminal.close();
    assert_eq!(host.wait_timeout(DEADLINE).unwrap().expect("its end").signal(), Some(libc::SIGHUP));
    processes.wait_all_gone();
    wait_gone(guard);
    assert_eq!(cgroups_of(host.pid()), [""; 0]);
}

#[test]
fn p09_hangup_of_shell_leaves_no_process_of_its_job() {
    for is_suspended in [false, true] {
        let mut terminal = Terminal::open();
        let job = terminal.start_job("", TREE);
        terminal.wait_tree();
        let guard = guard_of(job.host);
        if is_suspended {
            terminal.type_in(CTRL_Z);
            terminal.wait_foreground(job.shell.pid());
        }
        terminal.close().wait_all_gone();
        wait_gone(guard);
        assert_eq!(cgroups_of(job.host), [""; 0]);
    }
}

#[test]
fn worker_in_new_group_is_stopped_by_terminal_read() {
    let mut terminal = Terminal::open();
    let host = terminal.start(&["--code=7", "--keyboard", "--script", READER]);
    wait_state(terminal.number_after("up "), 'T');
    terminal.type_in("hello\n");
    terminal.type_in(CTRL_C);
    terminal.ends(host, "killed by signal 15 (SIGTERM)");
    assert!(!terminal.shown.contains("got"), "{}", terminal.shown);
}

#[test]
fn worker_in_new_group_writes_to_terminal_unless_tostop() {
    worker_prints_and_stops_gracefully();

    let mut terminal = Terminal::open();
    kernel::set_local_mode(&terminal.master, libc::TOSTOP);
    let host = terminal.start(&["--code=7", "--script", "echo well; exec sleep 1000"]);
    wait_state(terminal.number_after("up "), 'T');
    terminal.type_in(CTRL_C);
    terminal.ends(host, "killed by signal 15 (SIGTERM)");
    assert!(!terminal.shown.contains("well"), "{}", terminal.shown);
}

#[test]
fn worker_in_inherited_group_or_new_session_uses_terminal() {
    // Ctrl-C also makes the host send SIGTERM, which must not come first.
    let interrupted = format!("trap '' TERM; {READER}");
    for (group, script, end) in [
        ("inherit", interrupted.as_str(), "killed by signal 2 (SIGINT)"),
        ("session", READER, "killed by signal 15 (SIGTERM)"),
    ] {
        let mut terminal = Terminal::open();
        kernel::set_local_mode(&terminal.master, libc::TOSTOP);
        let host = terminal.start(&["--code=7", "--keyboard", "--group", group, "--script", script]);
        terminal.type_in("hello\n");
        terminal.wait_for("got hello");
        terminal.type_in(CTRL_C);
        terminal.ends(host, end);
    }
}

#[test]
fn only_worker_in_new_session_cannot_open_dev_tty() {
    let script = "if (: </dev/tty) 2>/dev/null; then echo it opens; else echo it does not; fi; exec sleep 1000";
    for (group, output) in [("own", "it opens"), ("inherit", "it opens"), ("session", "it does not")] {
        let mut terminal = Terminal::open();
        let host = terminal.start(&["--code=7", "--group", group, "--script", script]);
        terminal.wait_for(output);
        terminal.type_in(CTRL_C);
        terminal.ends(host, "killed by signal");
    }
}
