//! Shared by the tests: both ways of starting, waits with a deadline, tests in a process of their own.

use crate::kernel;
use pipewright::{
    Event, EventKind, Exit, Message, OutputMode, Pass, Process, Supervisor, WorkerSpec, events::AfterExit,
};
use serde_json::Value;
use std::{
    ffi::OsString,
    fs,
    io::Read,
    os::fd::RawFd,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

/// Far longer than any step takes, also on a loaded machine; a wait that reaches it has failed.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// How a worker is started: directly, or through a user's own `Command`. The same tests run for both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Direct,
    Command,
}

impl Way {
    pub(crate) fn program(self, program: impl Into<OsString>) -> WorkerSpec {
        let program = program.into();
        match self {
            Self::Direct => WorkerSpec::new(program),
            Self::Command => WorkerSpec::from_command(move || Command::new(&program)),
        }
    }

    /// The fixture with its message pipe.
    pub(crate) fn fixture(self, subcommand: &str) -> WorkerSpec {
        self.program(FIXTURE).arg(subcommand).messages(Pass::arg("--messages={}"))
    }

    /// The fixture without a message pipe.
    pub(crate) fn plain(self, subcommand: &str) -> WorkerSpec {
        self.program(FIXTURE).arg(subcommand)
    }
}

pub(crate) const FIXTURE: &str = env!("CARGO_BIN_EXE_child-fixture");

/// Path of an example's program, which `cargo test` builds, but `cargo test --test it` does not.
#[track_caller]
pub(crate) fn example(name: &str) -> PathBuf {
    const BUILD: &str = "build it with `cargo build --examples`, or run the whole `cargo test`";
    let program = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("examples").join(name);
    let built = program.metadata().unwrap_or_else(|error| panic!("{}: {error}: {BUILD}", program.display()));
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let files = |directory: &str| {
        let entries = fs::read_dir(examples.join(directory)).into_iter().flatten();
        entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()).collect::<Vec<_>>()
    };
    let mut sources = files(name);
    if sources.is_empty() {
        sources.push(examples.join(format!("{name}.rs")));
    }
    sources.extend(files("shared"));
    for source in sources {
        let written = source.metadata().unwrap().modified().unwrap();
        assert!(
            written <= built.modified().unwrap(),
            "{} is older than {}: {BUILD}",
            program.display(),
            source.display()
        );
    }
    program
}

/// Generates two tests from each function, one per way of starting.
macro_rules! both_ways {
    ($($(#[$attribute:meta])* fn $name:ident($way:ident: Way) $body:block)*) => {
        mod direct {
            $($(#[$attribute])* #[test] fn $name() { super::$name(crate::support::Way::Direct); })*
        }
        mod command {
            $($(#[$attribute])* #[test] fn $name() { super::$name(crate::support::Way::Command); })*
        }
        $(fn $name($way: Way) $body)*
    };
}
pub(crate) use both_ways;

/// Waits until `list` is empty, including processes that are started meanwhile.
#[track_caller]
pub(crate) fn wait_all_gone(list: impl Fn() -> Vec<u32>) {
    loop {
        let left = list();
        if left.is_empty() {
            return;
        }
        left.into_iter().for_each(wait_gone);
    }
}

/// Signals the process until it exits. Pauses between signals, since a second one that follows too soon counts as the first.
#[track_caller]
pub(crate) fn signal_until_exit(process: &mut Process, signal: i32) {
    const PAUSE: Duration = Duration::from_millis(60);
    for _ in 0..DEADLINE.as_millis() / PAUSE.as_millis() {
        process.signal(signal).unwrap();
        if process.wait_timeout(PAUSE).unwrap().is_some() {
            return;
        }
    }
    panic!("{} is still running", process.pid());
}

/// A supervisor and its events so far, which are printed when an expected event does not arrive.
pub(crate) struct Story {
    pub(crate) supervisor: Supervisor,
    pub(crate) told: Vec<String>,
}

impl Story {
    pub(crate) fn new() -> Self {
        Self::of(Supervisor::new().unwrap())
    }

    pub(crate) fn of(supervisor: Supervisor) -> Self {
        Self { supervisor, told: Vec::new() }
    }

    #[track_caller]
    pub(crate) fn next(&mut self) -> Event {
        match self.supervisor.events().recv_timeout(DEADLINE) {
            Ok(event) => {
                self.told.push(shorten(&format!("{event:?}")));
                event
            }
            Err(error) => panic!("{error}; told so far: {:#?}", self.told),
        }
    }

    /// Returns the first result of `pick`; skips other events.
    #[track_caller]
    pub(crate) fn find<T>(&mut self, mut pick: impl FnMut(Event) -> Option<T>) -> T {
        loop {
            if let Some(found) = pick(self.next()) {
                return found;
            }
        }
    }

    #[track_caller]
    pub(crate) fn message(&mut self) -> Message {
        self.find(|event| match event.kind {
            EventKind::Message(message) => Some(message),
            _ => None,
        })
    }

    #[track_caller]
    pub(crate) fn json(&mut self) -> Value {
        self.message().json().unwrap()
    }

    #[track_caller]
    pub(crate) fn exit(&mut self) -> Arc<Exit> {
        self.end().0
    }

    /// Returns the next exit of a worker, and what happens to the worker.
    #[track_caller]
    pub(crate) fn end(&mut self) -> (Arc<Exit>, AfterExit) {
        self.find(|event| match event.kind {
            EventKind::Exited { exit, next } => Some((exit, next)),
            _ => None,
        })
    }

    /// Closes the supervisor and returns all events until the channel closes.
    #[track_caller]
    pub(crate) fn rest(&mut self) -> Vec<Event> {
        self.supervisor.close();
        let mut events = Vec::new();
        loop {
            match self.supervisor.events().recv_timeout(DEADLINE) {
                Ok(event) => events.push(event),
                Err(crossbeam_channel::RecvTimeoutError::Disconnected) => return events,
                Err(error) => panic!("{error}; told so far: {:#?}", self.told),
            }
        }
    }
}

pub(crate) fn shorten(text: &str) -> String {
    text.chars().take(300).collect()
}

/// Runs a worker and returns its message.
pub(crate) fn one_message(spec: WorkerSpec) -> Value {
    let mut story = Story::new();
    story.supervisor.spawn(spec.stderr(OutputMode::Lines)).unwrap();
    story.json()
}

/// A supervisor whose guard runs: it is started with the first worker.
pub(crate) fn guarded() -> Supervisor {
    let supervisor = Supervisor::new().unwrap();
    let first = supervisor.spawn(WorkerSpec::new("true")).unwrap();
    first.wait_timeout(DEADLINE).expect("exits");
    while supervisor.events().try_recv().is_ok() {}
    supervisor
}

/// The open descriptors of this process, with their targets.
pub(crate) fn open_descriptors() -> Vec<(RawFd, PathBuf)> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc/self/fd").unwrap() {
        let entry = entry.unwrap();
        // The descriptor of the directory being read is closed by now.
        if let Ok(target) = fs::read_link(entry.path()) {
            let number = entry.file_name().to_str().unwrap().parse().unwrap();
            if !target.to_string_lossy().contains("/fd") {
                found.push((number, target));
            }
        }
    }
    found.sort();
    found
}

/// Suspends the event loop of the only supervisor of this process until the result is dropped.
#[track_caller]
pub(crate) fn stop_loop() -> kernel::Stopped {
    let tasks = fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap());
    let is_loop = |task: &fs::DirEntry| {
        fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.trim_end() == "pipewright-loop")
    };
    let loops: Vec<i32> =
        tasks.filter(is_loop).map(|task| task.file_name().to_str().unwrap().parse().unwrap()).collect();
    let [thread] = *loops else { panic!("not one loop: {loops:?}") };
    kernel::stop_thread(thread)
}

/// Runs a test in a process of its own, with its own descriptors, limits and signals: starts the test binary again for this
/// test. Returns `true` in that process.
///
/// `prepare` adjusts the spec of that process.
pub(crate) fn alone(test: &str, prepare: impl FnOnce(WorkerSpec) -> WorkerSpec) -> bool {
    alone_within(test, 4 * DEADLINE, prepare)
}

/// As [`alone`], for tests that take up to `time`.
pub(crate) fn alone_within(test: &str, time: Duration, prepare: impl FnOnce(WorkerSpec) -> WorkerSpec) -> bool {
    const ALONE: &str = "PIPEWRIGHT_TEST_ALONE";
    if std::env::var(ALONE).is_ok_and(|name| name == test) {
        return true;
    }
    let spec = WorkerSpec::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--include-ignored", "--test-threads=1"])
        .stdout(OutputMode::Lines)
        .stderr(OutputMode::Lines);
    let process = prepare(spec).env(ALONE, test).spawn_unsupervised().unwrap();
    let output = process.wait_with_output(time).unwrap_or_else(|error| panic!("{test} alone: {error}: {error:?}"));
    let [stdout, stderr] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    let ran_one = stdout.contains("1 passed");
    assert!(output.exit.success() && ran_one, "{test} alone: {:?}\n{stdout}\n{stderr}", output.exit);
    false
}

/// The user `nobody`, by convention.
pub(crate) const NOBODY: u32 = 65534;

/// As [`alone`], but drops root privileges: an ordinary user has no cgroups and cannot read other users' processes.
pub(crate) fn as_ordinary_user(test: &str) -> bool {
    alone_as(test, NOBODY)
}

/// As [`as_ordinary_user`], for tests whose processes cannot be inspected. The exits of all other workers of the same user would
/// count these processes, so the tests get a user of their own. This needs root: without it they do nothing.
pub(crate) fn with_unreadable_processes(test: &str) -> bool {
    kernel::effective_uid() == 0 && alone_as(test, NOBODY - 1)
}

fn alone_as(test: &str, user: u32) -> bool {
    let is_there = alone(test, |spec| spec.env("HOME", "/tmp").env_remove("XDG_RUNTIME_DIR").env_remove("TMPDIR"));
    if is_there && kernel::effective_uid() == 0 {
        kernel::become_user(user);
    }
    is_there
}

/// Reads to the end of file; panics at the deadline.
#[track_caller]
pub(crate) fn read_to_end(pipe: &pipewright::pipe::anonymous::PipeReader) -> Vec<u8> {
    let mut all = Vec::new();
    let mut part = vec![0; 64 << 10];
    loop {
        match pipe.read_timeout(&mut part, DEADLINE) {
            Ok(0) => return all,
            Ok(bytes) => all.extend_from_slice(&part[..bytes]),
            Err(error) => panic!("{error} after {} bytes: {}", all.len(), shorten(&String::from_utf8_lossy(&all))),
        }
    }
}

/// Whether a process exists and is not a zombie.
pub(crate) fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the name, which is in parentheses and may contain parentheses.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// The live processes with this variable and value in their environment.
pub(crate) fn carriers(name: &str, value: &str) -> Vec<u32> {
    let mark = format!("{name}={value}");
    let pids =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        // In one read: an exec may replace it between two reads.
        let mut environment = vec![0; 256 << 10];
        let read = fs::File::open(format!("/proc/{pid}/environ")).and_then(|mut file| file.read(&mut environment));
        environment.truncate(read.unwrap_or(0));
        environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes()) && is_alive(*pid)
    })
    .collect()
}

/// The children of all threads of a process.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let lists = threads.map(|thread| fs::read_to_string(thread.unwrap().path().join("children")).unwrap_or_default());
    lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
}

/// Number of context switches of the library's threads in this process.
pub(crate) fn switches() -> u64 {
    let threads = fs::read_dir("/proc/self/task").unwrap().map(|thread| thread.unwrap().path());
    let mine =
        threads.filter(|thread| fs::read_to_string(thread.join("comm")).unwrap_or_default().starts_with("pipewright"));
    mine.map(|thread| {
        let status = fs::read_to_string(thread.join("status")).unwrap();
        let lines = status.lines().filter(|line| line.contains("ctxt_switches"));
        lines.map(|line| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()).sum::<u64>()
    })
    .sum()
}

/// The most memory that this process has had, in bytes.
pub(crate) fn peak_memory() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

/// A pseudo-random generator with a given seed, not zero: xorshift64, <https://www.jstatsoft.org/article/view/v008i14>.
pub(crate) struct Chance(pub(crate) u64);

impl Chance {
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    pub(crate) fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::try_from(self.below(choices.len() as u64)).unwrap()]
    }
}

/// Mount point of cgroup v2.
pub(crate) fn cgroup2_mount() -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let line = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
    line.split(' ').nth(4).map(str::to_owned)
}

/// All cgroups created by supervisors of a process.
pub(crate) fn cgroups_of(pid: u32) -> Vec<String> {
    let name = format!("pipewright-{pid}-");
    let mut found = Vec::new();
    let mut below = Vec::from_iter(cgroup2_mount());
    while let Some(directory) = below.pop() {
        // Cgroups are created and removed meanwhile.
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let path = entry.path().into_os_string().into_string().unwrap();
                let is_one = entry.file_name().to_str().unwrap().starts_with(&name);
                if is_one { found.push(path) } else { below.push(path) }
            }
        }
    }
    found
}

/// Whether supervisors can create cgroups here.
pub(crate) fn may_make_cgroups() -> bool {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default().to_owned();
    let Some(mount) = cgroup2_mount() else { return false };
    let probe = format!("{mount}{own}/pipewright-test-{}", std::process::id());
    fs::create_dir(&probe).and_then(|()| fs::remove_dir(&probe)).is_ok()
}

/// Polls a condition for which there is no event. Returns false at the deadline.
pub(crate) fn becomes_true(mut is_so: impl FnMut() -> bool) -> bool {
    let (_keep, never) = crossbeam_channel::bounded::<()>(0);
    (0..DEADLINE.as_millis()).any(|_| is_so() || never.recv_timeout(Duration::from_millis(1)).is_ok())
}

/// Waits for the exit of a process that is not a child.
#[track_caller]
pub(crate) fn wait_gone(pid: u32) {
    let Some(watch) = watch(pid) else { return };
    let gone = poll_readable(&watch, DEADLINE);
    assert!(
        gone || !is_alive(pid),
        "process {pid} is still there: {:?}",
        fs::read_to_string(format!("/proc/{pid}/status"))
    );
}

/// Opens a pidfd with `pidfd_open`, since `/proc/PID` cannot be polled.
fn watch(pid: u32) -> Option<std::os::fd::OwnedFd> {
    kernel::pidfd_open(pid)
}

fn poll_readable(fd: &std::os::fd::OwnedFd, timeout: Duration) -> bool {
    kernel::poll_readable(fd, timeout)
}
