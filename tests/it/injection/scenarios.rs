//! What a host does with the library, each part with a separate supervisor. Each scenario runs with one failing call or with none.

use super::{injector, run::Run};
use crate::support::{FIXTURE, Way, becomes_true};
use pipewright::{
    Backoff, DependencyCondition, ExitStatus, Framing, OutputMode, Pass, Readiness, Restart, RestartPolicy, StdinMode,
    StdioProtocol, StopPolicy, StopStep, Strategy, Supervisor, TerminalSize, WorkerSpec,
    limits::{CgroupLimit, IoPriority, ResourceLimit},
    pipe::{
        PipeMode,
        named::{ConnectOptions, ListenerOptions, PipeName},
    },
};
use std::{
    io::{Read, Write},
    sync::OnceLock,
    thread,
    time::Duration,
};

/// A name and its function.
pub(super) type Scenario = (&'static str, fn(&Run));

pub(super) const SCENARIOS: &[Scenario] = &[
    ("start", start),
    ("command", command),
    ("input", input),
    ("terminal", terminal),
    ("output", output),
    ("control", control),
    ("stdio", stdio),
    ("attach", attach),
    ("restart", restart),
    ("stop", stop),
    ("tree", tree),
    ("drop", dropped),
    ("group", group),
    ("readiness", readiness),
    ("limits", limits),
    ("pipes", pipes),
];

/// Longer than anything takes here, and shorter than the limit of a run.
const SOON: Duration = Duration::from_secs(8);

fn shell(script: &str) -> WorkerSpec {
    WorkerSpec::new("/bin/sh").args(["-c", script, "sh"])
}

fn serving() -> WorkerSpec {
    WorkerSpec::new(FIXTURE).arg("serve").control(Pass::arg("--control={}")).stderr(OutputMode::Lines)
}

fn attach(run: &Run) {
    let host = run.host();
    let spec = WorkerSpec::new("plugin").control(Pass::env("PIPEWRIGHT_CONTROL"));
    let attachment = run.must("attach", || host.supervisor.attach(spec.clone()));
    let mut process = run.aside(|| {
        let (name, value) = attachment.variable();
        WorkerSpec::new(FIXTURE).arg("serve").env(name, value).spawn_unsupervised().unwrap()
    });
    let worker = attachment.into_worker();
    let sum = run.must("call", || worker.call::<_, i64>("add", &[2, 40], SOON));
    run.check(sum == 42, || format!("the sum is {sum}"));
    worker.stop();
    let exit = run.aside(|| process.wait_timeout(SOON).unwrap().cloned());
    run.check(exit.as_ref().is_some_and(pipewright::Exit::success), || format!("it was stopped: {exit:?}"));
    let exit = host.exit(&worker);
    let is_known = matches!(exit.status, ExitStatus::Code(0) | ExitStatus::Unknown);
    run.check(is_known, || format!("its exit was seen: {exit}"));
}

/// All settings that are applied between clone and exec.
fn start(run: &Run) {
    let host = run.host();
    let spec = WorkerSpec::new("/bin/true").stdin(StdinMode::Pipe).nice(1).umask(0o27).current_dir("/");
    let spec = spec.rlimit(ResourceLimit::CoreBytes, 0).io_priority(IoPriority::Idle).cpu_affinity([0]);
    let spec = spec.input_pipe("more", Pass::fd(7)).pipe_capacity(1 << 17).messages(Pass::fd(8));
    for spec in [spec.clone(), spec.process_group(pipewright::ProcessGroup::NewSession)] {
        let worker = run.must("spawn", || host.supervisor.spawn(spec.clone()));
        run.aside(|| drop(worker.take_stdin()));
        let exit = host.exit(&worker);
        run.check(exit.success(), || format!("it ended well before: {exit}"));
        host.supervisor.status();
    }
}

fn command(run: &Run) {
    let host = run.host();
    let spec = Way::Command.program(FIXTURE).arg("lines").args(["--stdout", "3"]).stdout(OutputMode::Lines);
    let worker = run.must("spawn", || host.supervisor.spawn(spec.clone()));
    let exit = host.exit(&worker);
    run.check(exit.success(), || format!("it ended well before: {exit}"));
    run.check(host.seen(&worker).lines == ["out 0", "out 1", "out 2"], || format!("{:?}", host.seen(&worker)));
}

fn input(run: &Run) {
    let host = run.host();
    let spec = WorkerSpec::new("cat").stdin(StdinMode::Pipe).stdout(OutputMode::Lines);
    let worker = run.must("spawn", || host.supervisor.spawn(spec.clone()));
    let mut stdin = worker.take_stdin().unwrap();
    for line in ["one\n", "two\n", "three\n"] {
        run.must("write", || stdin.write_all(line.as_bytes()));
    }
    drop(stdin);
    let exit = host.exit(&worker);
    run.check(exit.success(), || format!("it ended well before: {exit}"));
    run.check(host.seen(&worker).lines == ["one", "two", "three"], || format!("{:?}", host.seen(&worker)));
}

fn terminal(run: &Run) {
    let host = run.host();
    let spec = WorkerSpec::new("cat").stdin(StdinMode::Pty).stdout(OutputMode::PtyLines).stderr(OutputMode::PtyLines);
    let worker = run.must("spawn", || host.supervisor.spawn(spec.clone()));
    run.must("resize", || worker.resize(TerminalSize { rows: 1, columns: 2 }));
    let mut stdin = worker.take_stdin().unwrap();
    for line in ["one\n", "two\n", "\x04"] {
        run.must("write", || stdin.write_all(line.as_bytes()));
    }
    let exit = host.exit(&worker);
    run.check(exit.success(), || format!("it ended well before: {exit}"));
    run.check(host.seen(&worker).lines == ["one", "two"], || format!("{:?}", host.seen(&worker)));
}

fn output(run: &Run) {
    const COUNT: u64 = 40;
    let host = run.host();
    let flood = WorkerSpec::new(FIXTURE).arg("flood").args(["--count", "40", "--size", "3000"]).window(16 << 10);
    let flood = flood.messages(Pass::arg("--messages={}")).stderr(OutputMode::Lines);
    let flood = run.must("spawn", || host.supervisor.spawn(flood.clone()));
    let lines = WorkerSpec::new(FIXTURE).arg("lines").args(["--stdout", "9", "--stderr", "7"]);
    let lines = lines.stdout(OutputMode::Lines).stderr(OutputMode::Lines);
    let lines = run.must("spawn", || host.supervisor.spawn(lines.clone()));
    for worker in [&flood, &lines] {
        let exit = host.exit(worker);
        run.check(exit.success(), || format!("it ended well before: {exit}"));
    }
    let numbers: Vec<u64> = host.seen(&flood).messages.iter().map(|message| message["n"].as_u64().unwrap()).collect();
    run.check(numbers.iter().copied().eq(0..COUNT), || format!("all messages in order: {numbers:?}"));
    let lines = host.seen(&lines).lines;
    run.check(lines.len() == 16, || format!("all lines: {lines:?}"));
}

fn control(run: &Run) {
    let host = run.host();
    let spec = serving().ready(Readiness::control().timeout(SOON));
    let worker = run.must("spawn", || host.supervisor.spawn(spec.clone()));
    run.check(worker.wait_ready(SOON).is_ok(), || format!("it became ready: {:?}", host.seen(&worker)));
    for n in 0..3 {
        let sum = run.must("call", || worker.call::<_, i64>("add", &[n, 40], SOON));
        run.check(sum == n + 40, || format!("the sum is {sum}"));
    }
    let answer = run.must("call back", || worker.call::<_, [i64; 1]>("ask back", &[5], SOON));
    run.check(answer == [5], || format!("the answer is {answer:?}"));
    // More than a socket accepts at once.
    let text = "x".repeat(300_000);
    let echo = run.must("large call", || worker.call::<_, [String; 1]>("echo", &[&text], SOON));
    run.check(echo[0] == text, || format!("{} bytes came back", echo[0].len()));
    let report = worker.stop().wait(SOON);
    run.check(report.unfinished().count() == 0, || format!("it stopped: {report}"));
    let exit = host.exit(&worker);
    run.check(exit.success(), || format!("it ended well when it was asked to: {exit}"));
}

/// Calls over standard input and output.
fn stdio(run: &Run) {
    let host = run.host();
    let spec = WorkerSpec::new(FIXTURE).args(["stdio-server", "--framing", "content-length"]);
    let spec = spec.control_on_stdio(StdioProtocol::new(Framing::ContentLength)).stderr(OutputMode::Lines);
    let worker = run.must("spawn", || host.supervisor.spawn(spec.clone()));
    for text in ["short".to_owned(), "x".repeat(300_000)] {
        let echo = run.must("call", || worker.call::<_, [String; 1]>("echo", &[&text], SOON));
        run.check(echo[0] == text, || format!("{} bytes came back", echo[0].len()));
    }
    let report = worker.stop().wait(SOON);
    run.check(report.unfinished().count() == 0, || format!("it stopped: {report}"));
    let exit = host.exit(&worker);
    run.check(exit.success(), || format!("it ended well at the end of its input: {exit}"));
}

fn restart(run: &Run) {
    let host = run.host();
    let tally = run.aside(|| tempfile::NamedTempFile::new().unwrap());
    let policy = RestartPolicy::from(Restart::OnFailure).backoff(Backoff::constant(Duration::from_millis(1)));
    let spec = shell("echo >>$1; read line <$1; [ $(wc -l <$1) = 3 ]").arg(tally.path()).restart(policy);
    let worker = run.must("spawn", || host.supervisor.spawn(spec.clone()));
    run.check(worker.wait_incarnation(3, SOON).is_ok(), || format!("it came back twice: {:?}", host.seen(&worker)));
    let exit = host.exit_after(&worker, 3);
    run.check(exit.success(), || format!("the third time it ended well: {exit}"));
    let seen = host.seen(&worker);
    run.check(seen.exits == 3, || format!("three exits, one for each of its lives: {seen:?}"));
    run.aside(|| drop(tally));
}

fn stop(run: &Run) {
    let host = run.host();
    let stop = StopPolicy::kill().step([StopStep::Signal(libc::SIGTERM)], Duration::from_millis(5));
    let spec = WorkerSpec::new(FIXTURE).arg("ignore-term").messages(Pass::arg("--messages={}")).stop(stop);
    let spec = spec.ready(Readiness::message(|_| true).timeout(SOON));
    let worker = run.must("spawn", || host.supervisor.spawn(spec.clone()));
    run.check(worker.wait_ready(SOON).is_ok(), || format!("it became ready: {:?}", host.seen(&worker)));
    run.must("freeze", || worker.freeze());
    run.must("thaw", || worker.thaw());
    let report = worker.stop().wait(SOON);
    run.check(report.unfinished().count() == 0, || format!("it stopped: {report}"));
    let exit = host.exit(&worker);
    run.check(exit.signal() == Some(libc::SIGKILL), || format!("it was killed: {exit}"));
}

const DAEMON: &str = "setsid sleep 1000 </dev/null >/dev/null 2>&1 & sleep 1000 </dev/null >/dev/null 2>&1 & ";

fn tree(run: &Run) {
    let host = run.host();
    let spec = shell(&format!("{DAEMON} exit 0")).env(run.mark().0, run.mark().1);
    let worker = run.must("spawn", || host.supervisor.spawn(spec.clone()));
    let exit = host.exit(&worker);
    run.check(exit.success(), || format!("it ended well before: {exit}"));
    run.check(becomes_true(|| run.marked().is_empty()), || format!("still there: {:?}", run.marked()));
}

fn dropped(run: &Run) {
    let host = run.host();
    let spec = shell(&format!("{DAEMON} echo; wait")).env(run.mark().0, run.mark().1).stdout(OutputMode::Lines);
    let spec = spec.ready(Readiness::log_line("").timeout(SOON)).restart(Restart::Always);
    let worker = run.must("spawn", || host.supervisor.spawn(spec.clone()));
    run.check(worker.wait_ready(SOON).is_ok(), || format!("it became ready: {:?}", host.seen(&worker)));
    drop(host);
    run.check(becomes_true(|| run.marked().is_empty()), || format!("still there: {:?}", run.marked()));
}

fn group(run: &Run) {
    let host = run.host();
    let group = run.must("group", || host.supervisor.group(Strategy::OneForAll));
    let member = || WorkerSpec::new("sleep").arg("1000").restart(Restart::Always);
    let first = run.must("add", || group.add(member()));
    let second = run.must("add", || group.add(member().depends_on(&first, DependencyCondition::Ready)));
    for worker in [&first, &second] {
        run.check(worker.wait_ready(SOON).is_ok(), || format!("it became ready: {:?}", host.seen(worker)));
    }
    run.must("kill", || first.kill());
    run.check(second.wait_incarnation(2, SOON).is_ok(), || format!("both came back: {:?}", host.seen(&second)));
    let report = group.stop().wait(SOON);
    run.check(report.unfinished().count() == 0, || format!("it stopped: {report}"));
    let ends = || host.all().iter().filter(|event| event.contains("GroupEnded")).count();
    run.check(becomes_true(|| ends() > 0), || format!("its end was reported: {:?}", host.all()));
    run.check(ends() == 1, || format!("its end was reported once: {:?}", host.all()));
}

fn readiness(run: &Run) {
    let host = run.host();
    let newline = shell("echo >/proc/self/fd/$1; read line").ready(Readiness::notify_fd(Pass::arg("{}")).timeout(SOON));
    let notify =
        WorkerSpec::new(FIXTURE).arg("notify").args(["--say", "READY=1"]).ready(Readiness::sd_notify().timeout(SOON));
    let check = shell("read line").ready(Readiness::check(|| true).timeout(SOON));
    for spec in [newline, notify, check] {
        let spec = spec.stdin(StdinMode::Pipe).stderr(OutputMode::Lines);
        let worker = run.must("spawn", || host.supervisor.spawn(spec.clone()));
        let stdin = worker.take_stdin();
        run.check(worker.wait_ready(SOON).is_ok(), || format!("it became ready: {:?}", host.seen(&worker)));
        drop(stdin);
        host.exit(&worker);
    }
}

/// Whether workers can be limited here, determined once and without a failing call.
fn can_limit(run: &Run, spec: &WorkerSpec) -> bool {
    static CAN: OnceLock<bool> = OnceLock::new();
    *CAN.get_or_init(|| run.aside(|| Supervisor::new().unwrap().spawn(spec.clone()).is_ok()))
}

fn limits(run: &Run) {
    let spec = WorkerSpec::new("/bin/true").cgroup_limit(CgroupLimit::PidsMax(10));
    if can_limit(run, &spec) {
        let host = run.host();
        let worker = run.must("spawn", || host.supervisor.spawn(spec.clone()));
        let exit = host.exit(&worker);
        run.check(exit.success(), || format!("it ended well before: {exit}"));
    }
}

fn pipes(run: &Run) {
    let missing = PipeName::new(run.path("missing")).unwrap();
    let error = pipewright::pipe::named::connect(&missing, Duration::from_millis(5)).unwrap_err();
    run.check(injector::has_fired() || error.to_string().contains("missing"), || error.to_string());
    for (mode, shakes) in [(PipeMode::Byte, false), (PipeMode::Message, true)] {
        let name = PipeName::new(run.path(&format!("pipe-{shakes}"))).unwrap();
        let (mut server, mut client) = (ListenerOptions::new().mode(mode), ConnectOptions::new().mode(mode));
        if shakes {
            server = server.handshake();
            client = client.handshake(pipewright::pipe::named::ImpersonationLevel::Identification);
        }
        let listener = run.must("listen", || server.listen(&name));
        thread::scope(|scope| {
            let serving = run.aside(|| {
                scope.spawn(|| {
                    let mut errors = Vec::new();
                    loop {
                        match listener.accept_timeout(SOON) {
                            Ok(mut stream) => {
                                if let Err(error) = stream.peer() {
                                    errors.push(error.to_string());
                                    drop(stream.peer().unwrap());
                                }
                                let mut all = Vec::new();
                                let mut read = stream.read_to_end(&mut all);
                                if let Err(error) = read {
                                    // The second attempt must succeed.
                                    errors.push(error.to_string());
                                    read = stream.read_to_end(&mut all);
                                }
                                match read {
                                    // Ignores a client that gave up after its connect failed.
                                    Ok(_) if all.is_empty() => {}
                                    Ok(_) => return (Ok(all), errors),
                                    Err(error) => return (Err(error.to_string()), errors),
                                }
                            }
                            Err(error) if errors.len() < 2 => errors.push(error.to_string()),
                            Err(error) => return (Err(error.to_string()), errors),
                        }
                    }
                })
            });
            let stream = run.must("connect", || client.connect(&name, SOON));
            run.must("write", || {
                let mut rest = &b"a message"[..];
                while !rest.is_empty() {
                    let written = stream.write_timeout(rest, SOON)?;
                    rest = &rest[written..];
                }
                Ok::<_, std::io::Error>(())
            });
            drop(stream);
            let (got, errors) = serving.join().unwrap();
            run.check(got.as_deref() == Ok(b"a message"), || format!("the message arrived: {got:?}, {errors:?}"));
        });
        drop(listener);
        run.check(!name.path().unwrap().exists() || injector::has_fired(), || format!("{name:?} is left"));
    }
}
