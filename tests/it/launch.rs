//! Starts: what a child inherits and does not inherit, and errors. Most tests run twice: direct and through a user's own `Command`.

use crate::{
    kernel,
    support::{DEADLINE, FIXTURE, Story, Way, alone, both_ways, guarded, one_message, open_descriptors, read_to_end},
};
use pipewright::{
    OutputMode, Pass, ProcessGroup, SpawnError, SpawnStep, SpecError, StdinMode, Supervisor, WorkerSpec,
    limits::{IoPriority, ResourceLimit},
};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    sync::{Arc, Barrier},
    thread,
};

/// The fds that an `inspect` worker reports as open.
fn numbers(inspected: &Value) -> BTreeSet<i64> {
    inspected["fds"].as_array().unwrap().iter().map(|fd| fd["fd"].as_i64().unwrap()).collect()
}

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn script(directory: &tempfile::TempDir, name: &str, text: &str) -> std::path::PathBuf {
    let path = directory.path().join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn errno(error: &SpawnError) -> Option<i32> {
    error.io_error().and_then(io::Error::raw_os_error)
}

both_ways! {
    fn p03_child_has_standard_streams_and_its_handles_only(way: Way) {
        let leaked: Vec<i32> = (0..50).map(|_| kernel::leaky_duplicate(0)).collect();
        let inspected = one_message(way.fixture("inspect"));
        leaked.into_iter().for_each(kernel::close);
        let numbers = numbers(&inspected);
        assert_eq!(numbers.len(), 4, "{numbers:?} of {inspected}");
        assert!(numbers.is_superset(&BTreeSet::from([0, 1, 2])), "{numbers:?}");
        if way == Way::Direct {
            assert!(numbers.contains(&3), "{numbers:?}");
        }
        for fd in inspected["fds"].as_array().unwrap().iter().filter(|fd| fd["fd"].as_i64().unwrap() > 2) {
            assert_eq!(fd["cloexec"], true, "Parent sets close-on-exec as soon as it has a handle: {fd}");
        }
    }

    fn p03_concurrent_spawns_leak_no_handles(way: Way) {
        const THREADS: usize = 40;
        const EACH: usize = 3;
        let supervisor = Supervisor::new().unwrap();
        let start = Barrier::new(THREADS);
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    start.wait();
                    for _ in 0..EACH {
                        supervisor.spawn(way.fixture("inspect")).unwrap();
                    }
                });
            }
        });
        let mut story = Story::of(supervisor);
        let mut count = 0;
        for event in story.rest() {
            if let pipewright::EventKind::Message(message) = event.kind {
                let inspected: Value = message.json().unwrap();
                assert_eq!(numbers(&inspected).len(), 4, "{inspected}");
                count += 1;
            }
        }
        assert_eq!(count, THREADS * EACH);
    }

    fn arguments_arrive_unchanged(way: Way) {
        let odd = ["", "{}", "{{}}", "a b", "\"quoted\"", "$HOME", "-", "--", "ünï", "*"];
        let inspected = one_message(way.fixture("inspect").args(odd));
        let arguments: Vec<&str> = inspected["argv"].as_array().unwrap().iter().map(|a| a.as_str().unwrap()).collect();
        assert!(arguments.ends_with(&odd), "{arguments:?}");
    }

    fn environment_is_inherited_and_changed_in_order(way: Way) {
        let spec = way.fixture("inspect").env("GONE", "1").env_remove("GONE").env("STAYS", "a=b").env_remove("PATH");
        let inspected = one_message(spec);
        let environment = &inspected["env"];
        assert_eq!(environment["STAYS"], "a=b");
        assert!(environment.get("GONE").is_none(), "{environment}");
        assert!(environment.get("PATH").is_none(), "{environment}");
        assert_eq!(environment.get("CARGO_MANIFEST_DIR").is_some(), std::env::var("CARGO_MANIFEST_DIR").is_ok());
    }

    fn env_clear_removes_inherited_variables(way: Way) {
        let inspected = one_message(way.fixture("inspect").env("BEFORE", "1").env_clear().env("AFTER", "1"));
        let names: Vec<&String> = inspected["env"].as_object().unwrap().keys().collect();
        assert_eq!(names, ["AFTER", "PIPEWRIGHT_TREE"], "and the token of its process tree");
    }

    fn handle_is_passed_in_environment(way: Way) {
        let spec = way.plain("env-worker").messages(Pass::env("PIPEWRIGHT_MESSAGES"));
        assert!(one_message(spec).is_object());
    }

    fn current_dir_is_set(way: Way) {
        let directory = scratch();
        let inspected = one_message(way.fixture("inspect").current_dir(directory.path()));
        assert_eq!(inspected["cwd"], directory.path().to_str().unwrap());
    }

    fn missing_current_dir_is_reported_with_path(way: Way) {
        let error = way.fixture("inspect").current_dir("/no/such/place").spawn_unsupervised().unwrap_err();
        assert_eq!(errno(&error), Some(libc::ENOENT), "{error:?}");
        if way == Way::Direct {
            assert_eq!(error.step(), Some(&SpawnStep::CurrentDir(std::path::Path::new("/no/such/place").into())));
            assert!(error.to_string().contains("/no/such/place"), "{error}");
        }
    }

    fn missing_program_is_reported_with_path(way: Way) {
        for number in 3..64 {
            // A handle at the number of std's private socket would hide this error.
            let spec = way.program("/no/such/program").messages(Pass::fd(number));
            match spec.spawn_unsupervised().unwrap_err() {
                // A user's Command keeps the parent's numbers, so a number in use here is not available.
                SpawnError::Failed { step: SpawnStep::FixedFd(taken), .. } if way == Way::Command => {
                    assert_eq!(taken, number);
                }
                error => {
                    assert_eq!(errno(&error), Some(libc::ENOENT), "{error:?}");
                    assert!(error.to_string().contains("/no/such/program"), "{error}");
                    assert!(error.is_permanent());
                }
            }
        }
    }

    fn program_not_in_path_is_reported_with_name(way: Way) {
        let error = way.program("no-such-program-anywhere").spawn_unsupervised().unwrap_err();
        assert_eq!(errno(&error), Some(libc::ENOENT));
        assert!(error.to_string().contains("no-such-program-anywhere"), "{error}");
    }

    fn file_without_execute_permission_is_denied(way: Way) {
        let directory = scratch();
        let path = script(&directory, "plain", "#!/bin/sh\n");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = way.program(path).spawn_unsupervised().unwrap_err();
        assert_eq!(errno(&error), Some(libc::EACCES), "{error:?}");
    }

    fn p16_format_error_mentions_missing_shebang(way: Way) {
        let directory = scratch();
        let mut other_machine = fs::read(FIXTURE).unwrap();
        other_machine[18] ^= 0xff;
        for (name, bytes) in [("script", &b"exit 0\n"[..]), ("empty", b""), ("foreign", &other_machine)] {
            let path = directory.path().join(name);
            fs::write(&path, bytes).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            let search = directory.path().to_str().unwrap();
            for spec in [way.program(&path), way.program(name).env("PATH", search)] {
                let error = spec.spawn_unsupervised().unwrap_err();
                assert_eq!((errno(&error), error.step()), (Some(libc::ENOEXEC), Some(&SpawnStep::Format)), "{name}");
                assert!(error.to_string().contains("no `#!` line"), "{error}");
                assert!(error.is_permanent());
            }
        }
    }

    fn relative_program_resolves_in_current_dir_of_child(way: Way) {
        let directory = scratch();
        fs::create_dir(directory.path().join("bin")).unwrap();
        script(&directory, "bin/tool", "#!/bin/sh\nexit \"$1\"\n");
        for spec in [way.program("bin/tool"), way.program("./bin/tool"), way.program("tool").env("PATH", "no:bin")] {
            let mut process = spec.arg("5").current_dir(directory.path()).spawn_unsupervised().unwrap();
            assert_eq!(process.wait().unwrap().code(), Some(5));
        }
    }

    fn too_long_argument_list_is_reported(way: Way) {
        for program in [way.plain("exit"), way.program("true")] {
            let error = program.args((0..40).map(|_| "x".repeat(120 << 10))).spawn_unsupervised();
            // A single argument is limited to 128 KiB, all arguments together to a quarter of the stack limit.
            let error = error.map(drop).unwrap_err();
            assert_eq!(errno(&error), Some(libc::E2BIG), "{error:?}");
            assert!(error.is_permanent());
            assert!(!error.to_string().contains("searched"), "it was found: {error}");
        }
    }

    fn busy_program_is_retried_then_reported(way: Way) {
        let directory = scratch();
        let path = directory.path().join("busy");
        fs::copy(FIXTURE, &path).unwrap();
        let writer = OpenOptions::new().append(true).open(&path).unwrap();
        let error = way.program(&path).arg("exit").spawn_unsupervised().unwrap_err();
        assert_eq!(errno(&error), Some(libc::ETXTBSY), "{error:?}");
        let start = Arc::new(Barrier::new(2));
        let closer = thread::spawn({
            let start = Arc::clone(&start);
            move || {
                start.wait();
                drop(writer);
            }
        });
        start.wait();
        let mut process = way.program(&path).args(["exit", "--code", "7"]).spawn_unsupervised().unwrap();
        assert_eq!(process.wait().unwrap().code(), Some(7));
        closer.join().unwrap();
    }

    fn process_group_is_new_session_or_inherited(way: Way) {
        let own = one_message(way.fixture("inspect"));
        assert_eq!(own["pgid"], own["pid"]);
        assert_ne!(own["sid"], own["pid"]);
        let session = one_message(way.fixture("inspect").process_group(ProcessGroup::NewSession));
        assert_eq!(session["sid"], session["pid"]);
        let inherited = one_message(way.fixture("inspect").process_group(ProcessGroup::Inherit));
        assert_ne!(inherited["pgid"], inherited["pid"]);
    }

    fn rlimits_nice_affinity_and_umask_are_set(way: Way) {
        let spec = way.fixture("inspect").rlimit(ResourceLimit::OpenFiles, 123).rlimit(ResourceLimit::CoreBytes, 0).nice(7).umask(0o137);
        let spec = spec.io_priority(IoPriority::BestEffort(6)).cpu_affinity([0]);
        let inspected = one_message(spec);
        assert_eq!(inspected["limits"]["nofile"], serde_json::json!([123, 123]), "{inspected}");
        assert_eq!(inspected["limits"]["core"], serde_json::json!([0, 0]), "{inspected}");
        assert_eq!(inspected["nice"], 7, "{inspected}");
        assert_eq!(inspected["umask"], 0o137, "{inspected}");
        assert_eq!(inspected["io_priority"], 2 << 13 | 6, "the class, then the level: {inspected}");
        assert_eq!(inspected["processors"], "0", "{inspected}");
    }

    fn missing_processor_is_reported(way: Way) {
        match way.plain("exit").cpu_affinity([999]).spawn_unsupervised() {
            Err(SpawnError::Failed { step, source, .. }) => {
                // std does not report which step of a `Command` failed.
                let expected = if way == Way::Direct { SpawnStep::CpuAffinity } else { SpawnStep::Command };
                assert_eq!((step, source.raw_os_error()), (expected, Some(libc::EINVAL)));
            }
            other => panic!("{other:?}"),
        }
    }

    fn many_threads_spawn_concurrently(way: Way) {
        const THREADS: usize = 250;
        let supervisor = Supervisor::new().unwrap();
        let start = Barrier::new(THREADS);
        thread::scope(|scope| {
            for code in 0..THREADS {
                let (supervisor, start) = (&supervisor, &start);
                scope.spawn(move || {
                    start.wait();
                    let worker = supervisor.spawn(way.plain("exit").args(["--code", &code.to_string()])).unwrap();
                    let exit = worker.wait_timeout(DEADLINE).expect("its end");
                    assert_eq!(exit.code(), i32::try_from(code).ok());
                });
            }
        });
    }

    fn child_has_default_signal_state(way: Way) {
        let test = match way {
            Way::Direct => "launch::direct::child_has_default_signal_state",
            Way::Command => "launch::command::child_has_default_signal_state",
        };
        if !alone(test, |spec| spec) {
            return;
        }
        kernel::ignore_signal(libc::SIGUSR1);
        kernel::ignore_signal(libc::SIGCHLD);
        kernel::block_signal(libc::SIGUSR2);
        let inspected = one_message(way.fixture("inspect"));
        assert_eq!(inspected["blocked"], 0, "{inspected}");
        // Rust's own runtime ignores SIGPIPE in the fixture itself.
        assert_eq!(inspected["ignored"].as_u64().unwrap() & !(1 << (libc::SIGPIPE - 1)), 0, "{inspected}");
    }

    fn parent_death_signal_is_sigkill_unless_set(way: Way) {
        assert_eq!(one_message(way.fixture("inspect"))["pdeathsig"], libc::SIGKILL);
        assert_eq!(one_message(way.fixture("inspect").parent_death_signal(None))["pdeathsig"], 0);
        assert_eq!(one_message(way.fixture("inspect").parent_death_signal(Some(libc::SIGTERM)))["pdeathsig"], libc::SIGTERM);
    }

    fn pipes_carry_bytes_in_both_directions(way: Way) {
        let spec = way
            .plain("echo-pipe")
            .input_pipe("in", Pass::arg("--read={}"))
            .output_pipe("out", Pass::arg("--write={}"));
        let mut process = spec.spawn_unsupervised().unwrap();
        let (mut input, output) = (process.take_writer("in").unwrap(), process.take_reader("out").unwrap());
        assert!(process.take_writer("in").is_none(), "an end is taken once");
        assert!(process.take_writer("out").is_none(), "an end has one direction");
        input.write_all(b"there and back").unwrap();
        drop(input);
        assert_eq!(read_to_end(&output), b"there and back");
        assert!(process.wait_timeout(DEADLINE).unwrap().unwrap().success());
    }

    fn output_goes_to_file_pipe_or_fd(way: Way) {
        let directory = scratch();
        let path = directory.path().join("out");
        for _ in 0..2 {
            let spec = way.plain("exit").args(["--stdout", "to a file,", "--stderr", "to a pipe"]);
            let mut process =
                spec.stdout(OutputMode::File(path.clone())).stderr(OutputMode::Lines).spawn_unsupervised().unwrap();
            assert_eq!(read_to_end(&process.take_stderr().unwrap()).trim_ascii_end(), b"to a pipe");
            assert!(process.wait_timeout(DEADLINE).unwrap().unwrap().success());
        }
        assert_eq!(fs::read_to_string(&path).unwrap().matches("to a file,").count(), 2, "files are appended to");
        let given = File::create(directory.path().join("given")).unwrap();
        let spec = way.plain("exit").args(["--stdout", "given"]).stdout(given);
        assert!(spec.spawn_unsupervised().unwrap().wait().unwrap().success());
        assert_eq!(fs::read_to_string(directory.path().join("given")).unwrap().trim_end(), "given");
    }

    fn stdin_reads_from_file_or_pipe(way: Way) {
        let directory = scratch();
        let path = directory.path().join("in");
        fs::write(&path, "from a file\n").unwrap();
        assert_eq!(one_message(way.fixture("echo").stdin(StdinMode::File(path))), "from a file");
        let mut process = way.fixture("echo").stdin(StdinMode::Pipe).spawn_unsupervised().unwrap();
        process.take_stdin().unwrap().write_all(b"from a pipe\n").unwrap();
        assert_eq!(read_to_end(&process.take_messages().unwrap()), b"\"from a pipe\"\n");
        assert!(process.wait_timeout(DEADLINE).unwrap().unwrap().success());
    }

    fn inherited_fd_reaches_child(way: Way) {
        let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut process = way.plain("say").inherit_fd(theirs, Pass::arg("--write={}")).arg("--text=hello").spawn_unsupervised().unwrap();
        let mut received = [0; 5];
        ours.set_read_timeout(Some(DEADLINE)).unwrap();
        ours.read_exact(&mut received).unwrap();
        assert_eq!(&received, b"hello");
        assert!(process.wait_timeout(DEADLINE).unwrap().unwrap().success());
    }

    fn failed_start_leaves_no_process_and_no_fd(way: Way) {
        let test = match way {
            Way::Direct => "launch::direct::failed_start_leaves_no_process_and_no_fd",
            Way::Command => "launch::command::failed_start_leaves_no_process_and_no_fd",
        };
        if !alone(test, |spec| spec) {
            return;
        }
        let supervisor = guarded();
        let children = || fs::read_to_string(format!("/proc/self/task/{0}/children", std::process::id())).unwrap();
        let before = (open_descriptors(), children());
        for _ in 0..20 {
            let spec = way.program("/no/such/program").messages(Pass::arg("{}")).stdin(StdinMode::Pipe).stderr(OutputMode::Lines);
            supervisor.spawn(spec.clone()).unwrap_err();
            supervisor.spawn(spec.stdout(OutputMode::File("/no/such/file".into()))).unwrap_err();
        }
        assert_eq!((open_descriptors(), children()), before);
        assert!(supervisor.events().is_empty(), "{:?}", supervisor.events().recv());
    }

    fn fd_shortage_is_temporary_error(way: Way) {
        let test = match way {
            Way::Direct => "launch::direct::fd_shortage_is_temporary_error",
            Way::Command => "launch::command::fd_shortage_is_temporary_error",
        };
        if !alone(test, |spec| spec.rlimit(ResourceLimit::OpenFiles, 64)) {
            return;
        }
        let at_first = open_descriptors();
        let mut hoard = Vec::new();
        while let Ok(file) = File::open("/dev/null") {
            hoard.push(file);
        }
        // One fd becomes free after each failure, so that each step of the start fails once.
        let mut failures = 0;
        let mut process = loop {
            match way.fixture("inspect").spawn_unsupervised() {
                Err(error) => {
                    assert_eq!(errno(&error), Some(libc::EMFILE), "{error:?}");
                    assert!(!error.is_permanent());
                    failures += 1;
                    hoard.pop().unwrap();
                }
                Ok(process) => break process,
            }
        };
        assert!(failures > 3, "{failures} steps failed");
        assert!(!read_to_end(&process.take_messages().unwrap()).is_empty());
        drop(process);
        drop(hoard);
        assert_eq!(open_descriptors(), at_first, "after {failures} failures");
    }

    fn host_without_standard_streams_can_spawn(way: Way) {
        let test = match way {
            Way::Direct => "launch::direct::host_without_standard_streams_can_spawn",
            Way::Command => "launch::command::host_without_standard_streams_can_spawn",
        };
        if !alone(test, |spec| spec) {
            return;
        }
        // Duplicated, so that the test harness can still print the result.
        let kept: Vec<i32> = [0, 1, 2].map(kernel::leaky_duplicate).to_vec();
        [0, 1, 2].into_iter().for_each(kernel::close);
        let inspected = {
            let mut story = Story::new();
            story.supervisor.spawn(way.fixture("inspect").stdin(StdinMode::Inherit)).unwrap();
            story.json()
        };
        for (number, copy) in kept.into_iter().enumerate() {
            kernel::restore(copy, i32::try_from(number).unwrap());
        }
        let streams: Vec<&Value> = inspected["fds"].as_array().unwrap().iter().take(3).collect();
        assert_eq!(numbers(&inspected).len(), 4, "{inspected}");
        for stream in streams {
            assert_eq!(stream["target"], "/dev/null", "{inspected}");
        }
    }

    fn host_without_standard_streams_gets_errors_and_child_output_stays_clean(way: Way) {
        let test = match way {
            Way::Direct => {
                "launch::direct::host_without_standard_streams_gets_errors_and_child_output_stays_clean"
            }
            Way::Command => {
                "launch::command::host_without_standard_streams_gets_errors_and_child_output_stays_clean"
            }
        };
        if !alone(test, |spec| spec) {
            return;
        }
        let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let theirs = Arc::new(OwnedFd::from(theirs));
        let kept: Vec<i32> = [0, 1, 2].map(kernel::leaky_duplicate).to_vec();
        [0, 1, 2].into_iter().for_each(kernel::close);
        let outcome = way.program("/no/such/program").spawn_unsupervised().map(drop);
        let child = way.program("true").stdout(OutputMode::Fd(theirs)).spawn_unsupervised().map(|mut process| process.wait().is_ok());
        let still_closed = (0..=2).all(|number| kernel::leaky_duplicate(number) < 0);
        for (number, copy) in kept.into_iter().enumerate() {
            kernel::restore(copy, i32::try_from(number).unwrap());
        }
        assert_eq!(errno(&outcome.unwrap_err()), Some(libc::ENOENT));
        assert!(still_closed);
        assert!(child.unwrap());
        let mut received = Vec::new();
        ours.read_to_end(&mut received).unwrap();
        assert_eq!(received, b"", "messages between std and the library must not reach the child's stdout");
    }

    fn p03_closes_fds_without_close_range(way: Way) {
        let test = match way {
            Way::Direct => "launch::direct::p03_closes_fds_without_close_range",
            Way::Command => "launch::command::p03_closes_fds_without_close_range",
        };
        if !alone(test, |spec| spec) {
            return;
        }
        kernel::refuse(libc::SYS_close_range, None, libc::ENOSYS);
        // More than fit into the buffer that reads /proc/self/fd.
        let leaked: Vec<i32> = (0..500).map(|_| kernel::leaky_duplicate(0)).collect();
        let inspected = one_message(way.fixture("inspect"));
        leaked.into_iter().for_each(kernel::close);
        assert_eq!(numbers(&inspected).len(), 4, "{inspected}");
    }

    fn p11_forked_host_does_not_kill_process(way: Way) {
        let test = match way {
            Way::Direct => "launch::direct::p11_forked_host_does_not_kill_process",
            Way::Command => "launch::command::p11_forked_host_does_not_kill_process",
        };
        if !alone(test, |spec| spec) {
            return;
        }
        let mut process = Some(way.fixture("echo").stdin(StdinMode::Pipe).spawn_unsupervised().unwrap());
        let forked = kernel::fork(|| {
            drop(process.take());
            0
        });
        assert_eq!(kernel::wait(forked), 0);
        let mut process = process.unwrap();
        process.take_stdin().unwrap().write_all(b"still here\n").unwrap();
        assert_eq!(read_to_end(&process.take_messages().unwrap()), b"\"still here\"\n");
        assert!(process.wait_timeout(DEADLINE).unwrap().unwrap().success());
    }

    fn host_with_twenty_thousand_fds_can_spawn(way: Way) {
        let test = match way {
            Way::Direct => "launch::direct::host_with_twenty_thousand_fds_can_spawn",
            Way::Command => "launch::command::host_with_twenty_thousand_fds_can_spawn",
        };
        if !alone(test, |spec| spec) {
            return;
        }
        let null = File::open("/dev/null").unwrap();
        let mut open = 0;
        while open < 20_000 && kernel::leaky_duplicate(null.as_raw_fd()) >= 0 {
            open += 1;
        }
        // Leave room for the fds of the test itself.
        (0..64).for_each(|back| kernel::close(null.as_raw_fd() + open - back));
        assert!(open > 900, "{open} descriptors");
        let inspected = one_message(way.fixture("inspect"));
        assert_eq!(numbers(&inspected).len(), 4, "with {open} open in the host: {inspected}");
    }
}

#[test]
fn fds_move_to_any_numbers() {
    // Permutations of numbers that the parent's own ends are likely to have.
    for rotation in 0..8 {
        let mut spec = WorkerSpec::new(FIXTURE).arg("inspect").messages(Pass::arg("--messages={}"));
        let places: Vec<i32> = (0..8).map(|place| 4 + (place * 3 + rotation) % 8).collect();
        for (place, number) in places.iter().enumerate() {
            spec = spec.input_pipe(&format!("pipe {place}"), Pass::fd(*number));
        }
        let inspected = one_message(spec.output_pipe("high", Pass::fd(900)));
        let expected: BTreeSet<i64> = (0..12).chain([900]).collect();
        assert_eq!(numbers(&inspected), expected);
    }
}

#[test]
fn fixed_fd_is_also_written_to_argument() {
    let inspected = one_message(WorkerSpec::new(FIXTURE).arg("inspect").messages(Pass::arg("--messages={}").at_fd(77)));
    assert!(numbers(&inspected).contains(&77), "{inspected}");
}

#[test]
fn fixed_fd_must_be_below_rlimit() {
    if !alone("launch::fixed_fd_must_be_below_rlimit", |spec| spec.rlimit(ResourceLimit::OpenFiles, 64)) {
        return;
    }
    let supervisor = Supervisor::new().unwrap();
    let at = |number| WorkerSpec::new(FIXTURE).arg("inspect").messages(Pass::arg("--messages={}").at_fd(number));
    for number in [64, i32::MAX] {
        let error = supervisor.spawn(at(number)).unwrap_err();
        assert_eq!(error.step(), Some(&SpawnStep::Fds), "{error:?}");
    }
    supervisor.spawn(at(63).input_pipe("low", Pass::fd(4)).input_pipe("lower", Pass::fd(3))).unwrap();
    let inspected = Story::of(supervisor).json();
    assert_eq!(numbers(&inspected), BTreeSet::from([0, 1, 2, 3, 4, 63]));
}

#[test]
fn command_with_setsid_hook_can_start() {
    for group in [ProcessGroup::New, ProcessGroup::NewSession] {
        let spec = WorkerSpec::from_command(|| kernel::with_session(std::process::Command::new(FIXTURE)));
        let inspected = one_message(spec.arg("inspect").messages(Pass::arg("--messages={}")).process_group(group));
        assert_eq!(inspected["sid"], inspected["pid"], "{inspected}");
    }
}

#[test]
fn missing_interpreter_is_reported() {
    let directory = scratch();
    let error = WorkerSpec::new(script(&directory, "orphan", "#!/no/such/shell\n")).spawn_unsupervised().unwrap_err();
    assert_eq!(error.step(), Some(&SpawnStep::Interpreter(Some("/no/such/shell".into()))), "{error:?}");
}

#[test]
fn path_is_searched_as_by_execvp() {
    let (first, second) = (scratch(), scratch());
    let denied = script(&first, "tool", "#!/bin/sh\nexit 1\n");
    fs::set_permissions(&denied, fs::Permissions::from_mode(0o644)).unwrap();
    script(&second, "tool", "#!/bin/sh\nexit 42\n");
    let path = format!("/no/such/place:{}:{}", first.path().display(), second.path().display());
    let mut process = WorkerSpec::new("tool").env("PATH", path).spawn_unsupervised().unwrap();
    assert_eq!(process.wait().unwrap().code(), Some(42), "a file that is not executable does not end the search");
    let only_denied = format!("{}:/no/such/place", first.path().display());
    let error = WorkerSpec::new("tool").env("PATH", only_denied).spawn_unsupervised().unwrap_err();
    assert_eq!(errno(&error), Some(libc::EACCES), "reported if nothing else is found");
}

#[test]
fn spec_errors_are_returned_before_spawn() {
    let supervisor = Supervisor::new().unwrap();
    let refused = |spec: WorkerSpec| match supervisor.spawn(spec) {
        Err(SpawnError::Spec(error)) => error,
        other => panic!("{other:?}"),
    };
    let spec = || WorkerSpec::new("true");
    assert_eq!(refused(WorkerSpec::new("")), SpecError::EmptyProgram);
    assert_eq!(refused(spec().messages(Pass::arg("--fd"))), SpecError::MissingPlaceholder { text: "--fd".into() });
    assert_eq!(
        refused(spec().messages(Pass::fd(5)).input_pipe("x", Pass::arg("{}").at_fd(5))),
        SpecError::DuplicateFd { number: 5, first: "messages".into(), second: "x".into() }
    );
    assert_eq!(refused(spec().messages(Pass::fd(1))), SpecError::ReservedFd { number: 1 });
    assert_eq!(refused(spec().messages(Pass::env("X")).messages_on_stdout()), SpecError::DuplicateMessageStream);
    assert_eq!(
        refused(spec().input_pipe("x", Pass::env("X")).output_pipe("x", Pass::env("Y"))),
        SpecError::DuplicatePipe { name: "x".into() }
    );
    assert_eq!(refused(spec().arg("a\0b")), SpecError::NulByte { what: "argument" });
    assert_eq!(refused(spec().env("A=B", "c")), SpecError::InvalidVariable { name: "A=B".into() });
    assert_eq!(refused(spec().window(0)), SpecError::InvalidSize { what: "window", bytes: 0 });
    assert_eq!(refused(spec().control_window(0)), SpecError::InvalidSize { what: "control window", bytes: 0 });
    assert_eq!(refused(spec().parent_death_signal(Some(99))), SpecError::InvalidSignal { signal: 99 });
    assert_eq!(refused(spec().io_priority(IoPriority::RealTime(8))), SpecError::InvalidIoPriority { level: 8 });
    assert_eq!(refused(spec().cpu_affinity([0, 9999])), SpecError::InvalidProcessor { number: 9999 });
    assert!(supervisor.events().is_empty());
}

#[test]
fn p05_start_does_not_copy_parent_memory() {
    const PAGES: usize = 16 << 10;
    if !alone("launch::p05_start_does_not_copy_parent_memory", |spec| spec) {
        return;
    }
    let supervisor = guarded();
    let mut memory = kernel::small_pages(PAGES * 4096);
    // After a fork, each page of the parent is copied when it is written, even long after the exec.
    let mut pages_copied = |way: Way| {
        let worker = supervisor.spawn(way.plain("exit")).unwrap();
        assert!(worker.wait_timeout(DEADLINE).expect("its end").success());
        let before = kernel::page_faults();
        memory.iter_mut().step_by(4096).for_each(|byte| *byte = byte.wrapping_add(1));
        kernel::page_faults() - before
    };
    let direct = pages_copied(Way::Direct);
    let forked = pages_copied(Way::Command);
    assert!(direct < PAGES as u64 / 8, "{direct} of {PAGES}");
    assert!(forked > PAGES as u64 / 2, "a `Command` with a hook forks, so the counter must show it: {forked}");
}

#[test]
fn supervised_settings_conflict_with_spawn_unsupervised() {
    let spec = || WorkerSpec::new("true");
    for (setting, spec) in [
        ("cgroup_limit", spec().cgroup_limit(pipewright::limits::CgroupLimit::PidsMax(3))),
        ("runtime_max", spec().runtime_max(DEADLINE)),
        ("restart", spec().restart(pipewright::Restart::OnFailure)),
        ("ready", spec().ready(pipewright::Readiness::sd_notify())),
        ("watchdog", spec().watchdog(pipewright::Watchdog::notify(DEADLINE))),
        ("outlive_supervisor", spec().outlive_supervisor()),
    ] {
        match spec.spawn_unsupervised() {
            Err(SpawnError::Spec(SpecError::Conflict { settings, .. })) => {
                assert_eq!(settings, [setting, "spawn_unsupervised"]);
            }
            other => panic!("{setting}: {other:?}"),
        }
    }
}

#[test]
fn message_stream_conflicts_do_not_depend_on_call_order() {
    let spec = || WorkerSpec::new("x");
    let conflict = |spec: WorkerSpec| match spec.validate().unwrap_err() {
        SpecError::Conflict { settings, .. } => settings,
        other => panic!("{other:?}"),
    };
    for output in [OutputMode::Null, OutputMode::Inherit] {
        let either =
            [spec().stdout(output.clone()).messages_on_stdout(), spec().messages_on_stdout().stdout(output.clone())];
        assert_eq!(either.map(conflict), [["messages_on_stdout", "stdout"]; 2]);
        let either =
            [spec().stderr(output.clone()).messages_on_stderr(), spec().messages_on_stderr().stderr(output.clone())];
        assert_eq!(either.map(conflict), [["messages_on_stderr", "stderr"]; 2]);
    }
    for fits in [
        spec().stdout(OutputMode::Lines).messages_on_stdout(),
        spec().messages_on_stdout().stdout(OutputMode::Lines),
        spec().messages_on_stdout().stdout(OutputMode::Null).stdout(OutputMode::Lines),
        spec().messages_on_stderr().stdout(OutputMode::Null),
    ] {
        assert_eq!(fits.validate(), Ok(()));
    }
}

#[test]
fn p16_error_text_has_what_which_and_why() {
    let error = WorkerSpec::new("./no-such-program").spawn_unsupervised().unwrap_err();
    assert_eq!(error.to_string(), "failed to start ./no-such-program: execve: No such file or directory (os error 2)");
    assert!(format!("{error:?}").starts_with("Failed { program: \"./no-such-program\", step: Exec(None)"), "{error:?}");
    let error = WorkerSpec::new("").spawn_unsupervised().unwrap_err();
    assert_eq!(error.to_string(), "invalid worker spec: empty program name");
    assert_eq!(format!("{error:?}"), "Spec(EmptyProgram)");
}
