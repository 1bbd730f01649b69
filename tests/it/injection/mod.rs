//! Every system call of the library can fail at any time. Each scenario runs with each of its calls failing once, at each occurrence,
//! with each error of a machine that is short of a resource: the scenario ends in time, nothing panics, no message is lost, no worker
//! is blamed, nothing is left, at most one operation fails with the cause in its error, and the next one succeeds.
#![expect(clippy::print_stdout, reason = "each run is shown when the test fails")]

mod calls;
mod injector;
mod run;
mod scenarios;

use crate::support::{alone_within, cgroups_of, children, may_make_cgroups, open_descriptors};
use calls::{CALLS, IN_CGROUPS, Means, OUTSIDE_CGROUPS, means};
use injector::Fault;
use pipewright::{StdinMode, Supervisor, WorkerSpec, limits::CgroupLimit, status::ContainmentKind};
use run::Run;
use scenarios::SCENARIOS;
use std::{
    collections::BTreeSet,
    env, fs, panic,
    path::{Path, PathBuf},
    process,
    sync::{Mutex, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// Scenario, call and error for which std panics: it cannot read whether the exec failed.
const EXCUSED: [(&str, &str, i32); 1] = [("command", "recv", libc::ENOMEM)];
/// Longer than a scenario's own deadlines.
const RUN_TIME: Duration = Duration::from_secs(60);

/// Makes the process keep its files in a separate directory.
fn at_a_place(spec: WorkerSpec, place: &mut Option<TempDir>) -> WorkerSpec {
    let place = place.insert(tempfile::tempdir().unwrap()).path();
    let spec = spec.env("XDG_RUNTIME_DIR", place).env("TMPDIR", place);
    // Workers do not inherit variables with this prefix.
    match env::var_os("PIPEWRIGHT_INJECT") {
        Some(wanted) => spec.env("PIPEWRIGHT_INJECT", wanted),
        None => spec,
    }
}

fn in_a_process_of_its_own(test: &str, time: Duration, body: impl FnOnce()) {
    let mut place = None;
    if alone_within(test, time, |spec| at_a_place(spec, &mut place)) {
        body();
    }
}

#[test]
fn p16_each_call_of_the_library_fails_once_and_the_next_operation_works() {
    let test = "injection::p16_each_call_of_the_library_fails_once_and_the_next_operation_works";
    in_a_process_of_its_own(test, Duration::from_secs(120), || {
        let mut injection = Injection::new();
        injection.fail_what_happens_once();
        let counts = injection.count();
        for call in 0..CALLS.len() {
            // In the scenario that makes it most often.
            let most = (0..SCENARIOS.len()).max_by_key(|scenario| counts[*scenario][call]).unwrap();
            if counts[most][call] > 0 {
                injection.run(
                    most,
                    Some(Fault { call, errno: CALLS[call].errnos[0], occurrence: 1, lasts: Duration::ZERO }),
                );
            }
        }
        injection.end();
    });
}

/// Calls that only the event loop makes and repeats.
const OF_THE_LOOP: [(&str, &str); 5] = [
    ("control", "epoll_ctl"),
    ("output", "epoll_ctl"),
    ("stop", "epoll_ctl"),
    ("readiness", "clone of a thread"),
    ("drop", "rmdir"),
];

#[test]
fn p16_shortage_of_100_ms_loses_nothing() {
    let test = "injection::p16_shortage_of_100_ms_loses_nothing";
    in_a_process_of_its_own(test, Duration::from_secs(120), || {
        let mut injection = Injection::new();
        for (scenario, call) in OF_THE_LOOP {
            let scenario = SCENARIOS.iter().position(|(name, _)| *name == scenario).unwrap();
            injection.last(scenario, call, |at, count| [1, count.div_ceil(2), count].contains(&at));
        }
        injection.report();
    });
}

#[test]
#[ignore = "takes many minutes"]
fn p16_shortage_of_100_ms_loses_nothing_at_any_moment() {
    let test = "injection::p16_shortage_of_100_ms_loses_nothing_at_any_moment";
    in_a_process_of_its_own(test, Duration::from_secs(3600), || {
        let mut injection = Injection::new();
        for scenario in 0..SCENARIOS.len() {
            for call in ["epoll_ctl", "poll", "clone of a thread", "rmdir", "unlink"] {
                injection.last(scenario, call, |_, _| true);
            }
        }
        injection.report();
    });
}

#[test]
#[ignore = "takes many minutes"]
fn p16_each_call_of_the_library_fails_at_each_occurrence_with_each_error() {
    let test = "injection::p16_each_call_of_the_library_fails_at_each_occurrence_with_each_error";
    in_a_process_of_its_own(test, Duration::from_secs(3600), || {
        // `PIPEWRIGHT_INJECT="restart epoll_ctl"` runs those alone, `PIPEWRIGHT_INJECT=""` everything; without it, the first, the
        // middle and the last occurrence.
        let wanted = env::var("PIPEWRIGHT_INJECT");
        let only = wanted.clone().unwrap_or_default();
        let mut injection = Injection::new();
        injection.fail_what_happens_once();
        let counts = injection.count();
        for (scenario, counts) in counts.iter().enumerate() {
            for (call, count) in counts.iter().enumerate() {
                let name = format!("{} {}", SCENARIOS[scenario].0, CALLS[call].name);
                if !name.starts_with(&only) {
                    continue;
                }
                let is_wanted = |at: &u32| wanted.is_ok() || [1, count.div_ceil(2), *count].contains(at);
                for occurrence in (1..=*count).filter(is_wanted) {
                    for &errno in CALLS[call].errnos {
                        if EXCUSED.contains(&(SCENARIOS[scenario].0, CALLS[call].name, errno)) {
                            continue;
                        }
                        injection.run(scenario, Some(Fault { call, errno, occurrence, lasts: Duration::ZERO }));
                    }
                }
            }
        }
        if only.is_empty() { injection.end() } else { injection.report() }
    });
}

#[test]
fn p09_cgroup_is_made_at_the_next_start_after_a_failure() {
    let test = "injection::p09_cgroup_is_made_at_the_next_start_after_a_failure";
    if !may_make_cgroups() {
        return;
    }
    in_a_process_of_its_own(test, RUN_TIME, || {
        injector::watch().expect("seccomp's user notification");
        let call = CALLS.iter().position(|call| call.name == "mkdir").unwrap();
        for spec in [WorkerSpec::new("cat"), WorkerSpec::new("cat").cgroup_limit(CgroupLimit::PidsMax(64))] {
            let supervisor = Supervisor::new().unwrap();
            let start = || supervisor.spawn(spec.clone().stdin(StdinMode::Pipe));
            injector::arm(Some(Fault { call, errno: libc::ENOSPC, occurrence: 1, lasts: Duration::ZERO }));
            let first = start();
            injector::disarm();
            assert!(injector::has_fired());
            let reason = match &first {
                Ok(worker) => worker.containment().unwrap().to_string(),
                Err(error) => error.to_string(),
            };
            assert!(reason.contains("No space left on device"), "{reason}");
            match start() {
                Ok(second) => {
                    let containment = second.containment().unwrap();
                    assert_eq!(containment.kind, ContainmentKind::Cgroup, "{containment}");
                }
                // If the controller is not delegated to this process.
                Err(error) => assert!(first.is_err() && !error.to_string().contains("No space left"), "{error}"),
            }
        }
    });
}

struct Injection {
    directory: PathBuf,
    runs: usize,
    /// Indices of `CALLS`, with the errors that were injected.
    injected: BTreeSet<(usize, i32)>,
    faults: Vec<String>,
}

static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

impl Injection {
    fn new() -> Self {
        panic::set_hook(Box::new(|info| {
            let thread = thread::current().name().unwrap_or_default().to_owned();
            println!("{thread}: {info}");
            PANICS.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{thread}: {info}"));
        }));
        injector::watch().expect("seccomp's user notification");
        let directory = env::var_os("XDG_RUNTIME_DIR").unwrap().into();
        Self { directory, runs: 0, injected: BTreeSet::new(), faults: Vec::new() }
    }

    /// The stack of a child is reused, so this call is made only once.
    fn fail_what_happens_once(&mut self) {
        let call = CALLS.iter().position(|call| call.name == "mmap of a stack").unwrap();
        self.run(0, Some(Fault { call, errno: libc::ENOMEM, occurrence: 1, lasts: Duration::ZERO }));
    }

    /// The number of calls of each kind in each scenario.
    fn count(&mut self) -> Vec<Vec<u32>> {
        let counts = (0..SCENARIOS.len()).map(|scenario| {
            self.run(scenario, None);
            injector::counts()
        });
        let counts = counts.collect();
        assert!(self.faults.is_empty(), "without a failing call: {:#?}", self.faults);
        counts
    }

    /// Makes each selected occurrence of a call fail, and all that follow for 100 ms.
    fn last(&mut self, scenario: usize, call: &str, is_wanted: impl Fn(u32, u32) -> bool) {
        self.run(scenario, None);
        let call = CALLS.iter().position(|one| one.name == call).unwrap();
        let count = injector::counts()[call];
        for occurrence in (1..=count).filter(|at| is_wanted(*at, count)) {
            let errno = *CALLS[call].errnos.last().unwrap();
            self.run(scenario, Some(Fault { call, errno, occurrence, lasts: Duration::from_millis(100) }));
        }
    }

    fn run(&mut self, scenario: usize, fault: Option<Fault>) {
        let (name, body) = SCENARIOS[scenario];
        self.runs += 1;
        let (directory, number) = (self.directory.clone(), self.runs);
        let before = (open_descriptors(), children(process::id()));
        let (done, is_done) = mpsc::channel();
        let scene = thread::Builder::new().name(name.into()).spawn(move || {
            let run = Run::new(fault, directory, number);
            injector::arm(fault);
            let outcome = panic::catch_unwind(panic::AssertUnwindSafe(|| body(&run)));
            injector::disarm();
            done.send(outcome.is_ok()).unwrap();
        });
        let scene = scene.unwrap();
        let text = fault.map_or_else(String::new, |fault| fault.describe());
        let case = format!("{name}: {text}");
        let began = now();
        if is_done.recv_timeout(RUN_TIME).is_err() {
            injector::disarm();
            println!("{case}: does not end\n{:#?}", self.faults);
            process::abort();
        }
        scene.join().unwrap();
        if let Some(fault) = fault.filter(|_| injector::has_fired()) {
            self.injected.insert((fault.call, fault.errno));
        }
        println!("RUN {case}: {:?}", began.elapsed());
        let mut found: Vec<String> = PANICS.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect();
        found.extend(self.left(&before));
        if !found.is_empty() {
            let found = format!("{case}: {}", found.join("; "));
            println!("FAULT {found}");
            self.faults.push(found);
        }
    }

    /// What a run has left behind.
    fn left(&self, (descriptors, processes): &(Vec<(i32, PathBuf)>, Vec<u32>)) -> Vec<String> {
        let mut found = Vec::new();
        let own = process::id();
        let new = || children(own).into_iter().filter(|child| !processes.contains(child)).collect::<Vec<_>>();
        if !soon(|| new().is_empty()) {
            found.push(format!("processes are left: {:?}", new()));
        }
        if !soon(|| open_descriptors().len() == descriptors.len()) {
            let all = open_descriptors();
            let new: Vec<_> = all.iter().filter(|open| !descriptors.contains(open)).collect();
            found.push(format!("descriptors are left: {new:?}"));
        }
        if !soon(|| cgroups_of(own).is_empty()) {
            found.push(format!("cgroups are left: {:?}", cgroups_of(own)));
            for cgroup in cgroups_of(own) {
                drop(fs::remove_dir(cgroup));
            }
        }
        let files = files_below(&self.directory);
        if !files.is_empty() {
            found.push(format!("files are left: {files:?}"));
            for file in files {
                drop(fs::remove_file(file));
            }
        }
        found
    }

    fn report(&self) {
        println!("{} runs, {} pairs of call and error, {} faults", self.runs, self.injected.len(), self.faults.len());
        assert!(self.faults.is_empty(), "{:#?}", self.faults);
    }

    fn end(&self) {
        self.report();
        let injected: BTreeSet<&str> = self.injected.iter().map(|(call, _)| CALLS[*call].name).collect();
        for (name, of) in calls_of_the_sources() {
            let Some(Means::Calls(calls)) = means(&name) else { continue };
            let not_here: &[&str] = if may_make_cgroups() { &OUTSIDE_CGROUPS } else { &IN_CGROUPS };
            for call in calls.iter().filter(|call| !not_here.contains(call)) {
                assert!(injected.contains(call), "{call}, for {name} ({of}), was never made to fail");
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "how long a run takes")]
fn now() -> Instant {
    Instant::now()
}

/// Whether this becomes true within three seconds.
fn soon(mut is_so: impl FnMut() -> bool) -> bool {
    let (_keep, never) = crossbeam_channel::bounded::<()>(0);
    (0..300).any(|_| is_so() || never.recv_timeout(Duration::from_millis(10)).is_ok())
}

/// Sockets and lock files; directories may remain.
fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_directory { found.extend(files_below(&entry.path())) } else { found.push(entry.path()) }
    }
    found
}

/// The names of all system calls in the sources, each with a file that makes it: through rustix and the C library in `sys`, and through
/// std everywhere.
fn calls_of_the_sources() -> Vec<(String, String)> {
    const STARTS: [&str; 9] = [
        "libc::SYS_",
        "libc::",
        "fs::",
        "File::",
        "UnixStream::",
        "UnixListener::",
        "UnixDatagram::",
        "os_pipe::",
        "thread::",
    ];
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = std::collections::BTreeMap::new();
    for path in files_below(&root) {
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        let code: Vec<_> = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        let code = code.join("\n");
        for start in STARTS {
            for part in code.split(start).skip(1) {
                let name: String = part.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
                let is_call = start == "libc::SYS_" || part[name.len()..].starts_with('(') || name == "Builder";
                if is_call && !name.starts_with(char::is_uppercase) || name == "Builder" {
                    found.insert(name, path.strip_prefix(&root).unwrap().display().to_string());
                }
            }
        }
        for name in calls_of_rustix(&code) {
            found.insert(name, path.strip_prefix(&root).unwrap().display().to_string());
        }
    }
    found.into_iter().collect()
}

/// Functions of rustix are called by their full paths, so that they are found here; `rustix::net::sockopt::socket_error` is listed as
/// `sockopt::socket_error`. Types, and functions that only repeat a call, are imported.
fn calls_of_rustix(code: &str) -> Vec<String> {
    for import in code.split("use rustix::").skip(1).filter_map(|rest| rest.split(';').next()) {
        let names =
            import.split(|c: char| !c.is_alphanumeric() && c != '_' && c != ':').filter(|name| !name.is_empty());
        let functions: Vec<_> = names
            .filter_map(|name| name.rsplit("::").next())
            .filter(|name| !name.is_empty() && !name.starts_with(char::is_uppercase))
            .filter(|name| !["retry_on_intr", "spare_capacity"].contains(name))
            .collect();
        assert!(functions.is_empty(), "call these by their whole paths: {functions:?}");
    }
    let paths = code.split("rustix::").skip(1).filter_map(|part| {
        let path: String = part.chars().take_while(|c| c.is_ascii_alphanumeric() || "_:".contains(*c)).collect();
        part[path.len()..].starts_with('(').then_some(path)
    });
    let functions = paths.filter(|path| !path.contains(char::is_uppercase));
    functions.filter_map(|path| Some(path.split_once("::")?.1.to_owned())).collect()
}

#[test]
fn p16_each_call_of_the_sources_is_known_to_the_injection_test() {
    let found = calls_of_the_sources();
    assert!(found.len() > 60 && found.iter().any(|(name, _)| name == "epoll::wait"), "the walk found {found:?}");
    let unknown: Vec<_> = found.iter().filter(|(name, _)| means(name).is_none()).collect();
    assert!(unknown.is_empty(), "neither made to fail nor excused in injection/calls.rs: {unknown:?}");
}
