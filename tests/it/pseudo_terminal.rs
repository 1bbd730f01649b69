//! What people do at a terminal, with a real one: keys, jobs, and a window that is closed.

use crate::{
    guard::guard_of,
    kernel,
    support::{Chance, DEADLINE, FIXTURE, carriers, cgroups_of, comes_true, wait_gone, wait_nobody},
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

/// Ends politely, and by another code where the terminal's Ctrl-C reaches it.
const POLITE: &str = "trap 'exit 9' INT; trap 'exit 3' TERM; echo well; while :; do sleep 1000 & wait; done";
/// Tells that it is asked to end, and does not.
const STUBBORN: &str = "trap 'echo asked' TERM; echo well; while :; do sleep 1000 & wait; done";
/// Four processes, two of them in a session of their own.
const TREE: &str = "setsid sh -c 'echo \"away $$\"; sleep 1000 & wait' & sleep 1000 & wait";
/// Says what it has read.
const READER: &str = "read -r line && echo \"got $line\"; exec sleep 1000";

/// A terminal's window: what is typed there, and all that it has shown.
struct Terminal {
    window: File,
    path: PathBuf,
    crowd: Crowd,
    shown: String,
}

/// Whoever was started in one terminal, with all they have started.
struct Crowd {
    mark: String,
}

/// A host that is the job of a shell for people.
struct Job {
    shell: Process,
    host: u32,
}

impl Terminal {
    fn open() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let (window, path) = kernel::open_terminal();
        // What was said before Ctrl-C or Ctrl-Z, and not read yet, is not thrown away.
        kernel::set_local_mode(&window, libc::NOFLSH);
        let mark = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        Self { window, path, crowd: Crowd { mark }, shown: String::new() }
    }

    /// A program that becomes the first one of this terminal.
    fn first(&self, program: &str) -> WorkerSpec {
        // A session's leader gets the first terminal that it opens.
        let spec = WorkerSpec::new("/bin/sh").args(["-c", r#"exec "$@" <>"$0" >&0 2>&0"#]).arg(&self.path).arg(program);
        spec.process_group(ProcessGroup::NewSession).env(Crowd::MARK, &self.crowd.mark)
    }

    /// A host, and nobody else.
    fn start(&mut self, options: &[&str]) -> Process {
        let host = self.first(FIXTURE).arg("terminal-host").args(options.iter().copied()).spawn_unsupervised().unwrap();
        self.wait_for("up ");
        host
    }

    /// A shell for people, and a host that is its job.
    fn start_job(&mut self, options: &str, script: &str) -> Job {
        // The terminal shows what is typed: that must not hold what is waited for.
        let shell = self.first("/bin/sh").arg("-i").env_remove("ENV").env("PS1", "> ");
        let shell = shell.env("HOST", FIXTURE).env("SCRIPT", script).spawn_unsupervised().unwrap();
        let mut job = Job { shell, host: 0 };
        job.again(self, options);
        job
    }

    fn type_in(&mut self, keys: &str) {
        self.window.write_all(keys.as_bytes()).unwrap();
    }

    /// Reads until it has shown one of these.
    #[track_caller]
    fn wait_for_any(&mut self, wanted: &[&str]) {
        let until = now() + DEADLINE;
        while !wanted.iter().any(|wanted| self.shown.contains(wanted)) {
            let has_more = kernel::poll_readable(&self.window, until.saturating_duration_since(now())) && self.read();
            assert!(has_more, "no {wanted:?}; it has shown:\n{}\n{}", self.shown, self.crowd);
        }
    }

    /// Whether it has shown this by then.
    fn shows_within(&mut self, wanted: &str, time: Duration) -> bool {
        let until = now() + time;
        while !self.shown.contains(wanted) {
            if !(kernel::poll_readable(&self.window, until.saturating_duration_since(now())) && self.read()) {
                return false;
            }
        }
        true
    }

    #[track_caller]
    fn wait_for(&mut self, wanted: &str) {
        self.wait_for_any(&[wanted]);
    }

    /// Until all of a [`TREE`] are there, and what they are to be: who is in the middle of an exec has no environment, and is not
    /// known to belong to it.
    #[track_caller]
    fn wait_tree(&mut self) {
        self.wait_for("away ");
        let sleeps = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "sleep\n");
        assert!(comes_true(|| self.crowd.all().iter().filter(|pid| sleeps(pid)).count() == 2), "{}", self.crowd);
    }

    /// False at the end, which a terminal tells by an error.
    fn read(&mut self) -> bool {
        let mut part = [0; 4096];
        match self.window.read(&mut part) {
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

    /// The first number that was shown behind these words.
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

    /// Closes the window; gives those who were started in it.
    fn close(self) -> Crowd {
        self.crowd
    }

    #[track_caller]
    fn wait_foreground(&self, group: u32) {
        let has = || kernel::foreground(&self.window);
        assert!(
            comes_true(|| has() == group),
            "{} has it, not {group}; it has shown:\n{}\n{}",
            has(),
            self.shown,
            self.crowd
        );
    }

    /// The host ends by itself, with its own code, and tells before how its worker has.
    #[track_caller]
    fn ends(&mut self, mut host: Process, worker: &str) {
        self.wait_for(worker);
        let exit = host.wait_timeout(DEADLINE).unwrap().unwrap_or_else(|| panic!("it runs still:\n{}", self.crowd));
        assert_eq!(exit.code(), Some(7), "{exit}; it has shown:\n{}", self.shown);
        self.crowd.wait_nobody();
    }
}

impl Job {
    /// Has the shell start its host again.
    #[track_caller]
    fn again(&mut self, terminal: &mut Terminal, options: &str) {
        terminal.shown.clear();
        terminal.type_in(&format!("\"$HOST\" terminal-host --code 7 --script \"$SCRIPT\" {options}\n"));
        terminal.wait_for("up ");
        self.host = kernel::foreground(&terminal.window);
    }

    /// Whoever of the crowd is not the shell.
    fn everybody(&self, terminal: &Terminal) -> Vec<u32> {
        terminal.crowd.all().into_iter().filter(|pid| *pid != self.shell.pid()).collect()
    }

    /// Ctrl-Z: everybody is stopped, and the shell has the terminal.
    #[track_caller]
    fn is_put_aside(&self, terminal: &mut Terminal) {
        terminal.type_in(CTRL_Z);
        terminal.wait_foreground(self.shell.pid());
        let is_stopped = || self.everybody(terminal).into_iter().all(|pid| is_in_state(pid, 'T'));
        assert!(comes_true(is_stopped), "somebody is not stopped:\n{}", terminal.crowd);
        terminal.type_in("echo \"$((20 + 3)) skidoo\"\n");
        terminal.wait_for("23 skidoo");
    }

    #[track_caller]
    fn is_taken_up(&self, terminal: &mut Terminal) {
        terminal.type_in("fg\n");
        terminal.wait_foreground(self.host);
        let goes_on = || !self.everybody(terminal).into_iter().any(|pid| is_in_state(pid, 'T'));
        assert!(comes_true(goes_on), "somebody is stopped:\n{}", terminal.crowd);
    }

    /// Ctrl-C: all but the shell end, and it knows the host's code.
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
        for pid in self.everybody(terminal) {
            wait_gone(pid);
        }
    }
}

impl Crowd {
    const MARK: &str = "TEST_MARK_PSEUDO_TERMINAL";

    fn all(&self) -> Vec<u32> {
        carriers(Self::MARK, &self.mark)
    }

    #[track_caller]
    fn wait_nobody(&self) {
        wait_nobody(|| self.all());
    }
}

/// Who is there, and how.
impl fmt::Display for Crowd {
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

fn let_pass(time: Duration) {
    let (_keep, never) = crossbeam_channel::bounded::<()>(0);
    assert!(never.recv_timeout(time).is_err());
}

#[test]
fn ctrl_c_reaches_the_host_alone_and_ends_everybody_politely() {
    shows_and_ends_politely();
}

/// A worker that writes to the terminal, and Ctrl-C.
#[track_caller]
fn shows_and_ends_politely() {
    let mut terminal = Terminal::open();
    let host = terminal.start(&["--code=7", "--script", POLITE]);
    terminal.wait_for("well");
    terminal.type_in(CTRL_C);
    terminal.ends(host, "exit code 3");
}

#[test]
fn the_second_ctrl_c_ends_everybody_at_once() {
    let mut terminal = Terminal::open();
    let host = terminal.start(&["--code=7", "--grace-ms=3600000", "--script", STUBBORN]);
    terminal.wait_for("well");
    terminal.type_in(CTRL_C);
    terminal.wait_for("asked");
    terminal.type_in(CTRL_C);
    // As who holds the key down: a second one that comes too soon is taken for the first.
    let mut times = 0..500;
    while !terminal.shows_within("killed by", Duration::from_millis(60)) && times.next().is_some() {
        terminal.type_in(CTRL_C);
    }
    terminal.ends(host, "killed by signal 9 (SIGKILL)");
}

#[test]
fn p15_ctrl_z_stops_everybody_with_their_deadlines_until_fg() {
    const LIMIT: Duration = Duration::from_millis(900);
    const FOUND_OUT: [&str; 3] = ["not ready", "unresponsive", "had "];
    let began = now();
    let mut terminal = Terminal::open();
    let job = terminal.start_job(&format!("--deadlines-ms {}", LIMIT.as_millis()), TREE);
    terminal.wait_tree();
    job.is_put_aside(&mut terminal);
    let ran_at_most = began.elapsed();
    // Time has to pass that does not count.
    let_pass(LIMIT);
    let went_on = now();
    job.is_taken_up(&mut terminal);
    terminal.wait_for_any(&FOUND_OUT);
    let (ran_then, left) = (went_on.elapsed(), LIMIT.saturating_sub(ran_at_most));
    assert!(ran_then >= left, "{ran_then:?} after it went on, when {left:?} were left:\n{}", terminal.shown);
    for found_out in FOUND_OUT {
        terminal.wait_for(found_out);
    }
    job.ends_at_ctrl_c(&mut terminal, "killed by signal 15 (SIGTERM)");
}

#[test]
fn p15_ctrl_z_stops_a_stop_ladder_too() {
    const GRACE: Duration = Duration::from_millis(500);
    let mut terminal = Terminal::open();
    let job = terminal.start_job(&format!("--grace-ms {}", GRACE.as_millis()), STUBBORN);
    terminal.wait_for("well");
    let began = now();
    terminal.type_in(CTRL_C);
    terminal.wait_for("asked");
    job.is_put_aside(&mut terminal);
    let ran_at_most = began.elapsed();
    // Time has to pass that does not count.
    let_pass(GRACE);
    let went_on = now();
    job.is_taken_up(&mut terminal);
    job.ends(&mut terminal, "killed by signal 9 (SIGKILL)");
    let (ran_then, left) = (went_on.elapsed(), GRACE.saturating_sub(ran_at_most));
    assert!(ran_then >= left, "{ran_then:?} after it went on, when {left:?} were left:\n{}", terminal.shown);
}

/// Whether `fg` has everybody go on for good after two Ctrl-Z, one so soon after the other.
fn goes_on_for_good(between: Duration) -> bool {
    let mut terminal = Terminal::open();
    let job = terminal.start_job("", &format!("trap 'echo went on' CONT; {POLITE}"));
    terminal.wait_for("well");
    terminal.type_in(CTRL_Z);
    let_pass(between);
    terminal.type_in(CTRL_Z);
    wait_state(job.host, 'T');
    terminal.wait_foreground(job.shell.pid());
    // 128 and the number of the signal that has stopped it.
    terminal.type_in("fg; echo \"back with $?\"\n");
    terminal.wait_for_any(&["went on", "back with 1"]);
    // Another stop would come before this, and give the terminal back to the shell.
    terminal.type_in(CTRL_C);
    let mut ends = false;
    let is_known = comes_true(|| {
        while kernel::poll_readable(&terminal.window, Duration::ZERO) && terminal.read() {}
        ends = terminal.shown.contains("exit code 3");
        ends || is_in_state(job.host, 'T') && kernel::foreground(&terminal.window) == job.shell.pid()
    });
    assert!(is_known, "it has shown:\n{}\n{}", terminal.shown, terminal.crowd);
    terminal.close().wait_nobody();
    ends
}

#[test]
#[ignore = "takes 11 s: twenty rounds at a terminal"]
fn an_impatient_ctrl_z_stops_once() {
    const ROUNDS: usize = 20;
    let seed = u64::from(std::process::id()) << 32 | 0x9E37_79B9;
    let mut chance = Chance(seed);
    let stopped_again = (0..ROUNDS).filter(|_| !goes_on_for_good(Duration::from_micros(chance.below(500)))).count();
    // A handler that has begun when everybody is stopped is heard only when they go on, and nobody can tell it from a new one.
    assert!(stopped_again <= ROUNDS / 10, "{stopped_again} times of {ROUNDS}, seed {seed}");
}

#[test]
fn ctrl_z_stops_nobody_whom_nobody_could_have_go_on() {
    // There is no shell above them.
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
fn p09_a_closed_window_leaves_nobody() {
    let mut terminal = Terminal::open();
    let mut host = terminal.start(&["--script", TREE]);
    terminal.wait_tree();
    let guard = guard_of(host.pid());
    let crowd = terminal.close();
    assert_eq!(host.wait_timeout(DEADLINE).unwrap().expect("its end").signal(), Some(libc::SIGHUP));
    crowd.wait_nobody();
    wait_gone(guard);
    assert_eq!(cgroups_of(host.pid()), [""; 0]);
}

#[test]
fn p09_the_closed_window_of_a_shell_leaves_nobody_of_its_job() {
    for is_put_aside in [false, true] {
        let mut terminal = Terminal::open();
        let job = terminal.start_job("", TREE);
        terminal.wait_tree();
        let guard = guard_of(job.host);
        if is_put_aside {
            terminal.type_in(CTRL_Z);
            terminal.wait_foreground(job.shell.pid());
        }
        terminal.close().wait_nobody();
        wait_gone(guard);
        assert_eq!(cgroups_of(job.host), [""; 0]);
    }
}

#[test]
fn a_worker_in_a_group_of_its_own_that_reads_the_terminal_is_stopped_until_it_ends() {
    let mut terminal = Terminal::open();
    let host = terminal.start(&["--code=7", "--keyboard", "--script", READER]);
    wait_state(terminal.number_after("up "), 'T');
    terminal.type_in("hello\n");
    terminal.type_in(CTRL_C);
    terminal.ends(host, "killed by signal 15 (SIGTERM)");
    assert!(!terminal.shown.contains("got"), "{}", terminal.shown);
}

#[test]
fn a_worker_in_a_group_of_its_own_writes_to_the_terminal_unless_that_stops_it() {
    shows_and_ends_politely();

    let mut terminal = Terminal::open();
    kernel::set_local_mode(&terminal.window, libc::TOSTOP);
    let host = terminal.start(&["--code=7", "--script", "echo well; exec sleep 1000"]);
    wait_state(terminal.number_after("up "), 'T');
    terminal.type_in(CTRL_C);
    terminal.ends(host, "killed by signal 15 (SIGTERM)");
    assert!(!terminal.shown.contains("well"), "{}", terminal.shown);
}

#[test]
fn a_worker_in_our_group_or_in_a_session_of_its_own_has_the_terminal() {
    // The first of both signals would end it.
    let interrupted = format!("trap '' TERM; {READER}");
    for (group, script, end) in [
        ("inherit", interrupted.as_str(), "killed by signal 2 (SIGINT)"),
        ("session", READER, "killed by signal 15 (SIGTERM)"),
    ] {
        let mut terminal = Terminal::open();
        kernel::set_local_mode(&terminal.window, libc::TOSTOP);
        let host = terminal.start(&["--code=7", "--keyboard", "--group", group, "--script", script]);
        terminal.type_in("hello\n");
        terminal.wait_for("got hello");
        terminal.type_in(CTRL_C);
        terminal.ends(host, end);
    }
}

#[test]
fn only_a_worker_in_a_session_of_its_own_cannot_open_the_terminal_by_its_name() {
    let script = "if (: </dev/tty) 2>/dev/null; then echo it opens; else echo it does not; fi; exec sleep 1000";
    for (group, said) in [("own", "it opens"), ("inherit", "it opens"), ("session", "it does not")] {
        let mut terminal = Terminal::open();
        let host = terminal.start(&["--code=7", "--group", group, "--script", script]);
        terminal.wait_for(said);
        terminal.type_in(CTRL_C);
        terminal.ends(host, "killed by signal");
    }
}
