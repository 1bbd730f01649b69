//! A separate host process, which supervises trees until it is killed.

use crate::{Options, Outcome};
use pipewright::{
    Backoff, EventKind, OutputMode, Pass, ProcessGroup, Readiness, Restart, RestartIntensity, RestartPolicy, StdinMode,
    StopPolicy, StopStep, Supervisor, Watchdog, WorkerSpec, guard::Guard,
};
use std::{
    env,
    error::Error,
    fs,
    io::{self, Read, Write},
    os::unix::fs::FileExt,
    process::Command,
    time::Duration,
};

/// Three levels deep; one branch is a daemon: in its own session, with its streams redirected.
const TREE: &str = "setsid sh -c 'sleep 1000 </dev/null >/dev/null 2>&1 & exec sleep 1000' & (sleep 1000; :) & wait";
/// Leaves a daemon behind and exits with an error, at each restart.
const CRASH: &str = "setsid sh -c 'sleep 1000 </dev/null >/dev/null 2>&1 & exec sleep 1000' & exit 1";

/// Members of the worker's process group without the token in their environment, and two processes that have left the group. All
/// hold standard output open.
const HOSTILE: &str = "env -i sleep 1000 & env -i sh -c 'sleep 1000; :' & $0 overwrite-environment & setsid sleep 1000 & \
                       setsid $0 end-main-thread & wait";

/// Overwrites the whole environment with a process title, as sshd and nginx do.
pub(crate) fn overwrite_environment() -> Outcome {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit_once(") ").ok_or("no name")?.1.split_whitespace().collect();
    // Fields 50 and 51 of proc_pid_stat(5); the first two are cut off here.
    let (start, end): (u64, u64) = (fields[47].parse()?, fields[48].parse()?);
    let title: Vec<u8> = b"title: ".iter().copied().cycle().take(usize::try_from(end - start)?).collect();
    let memory = fs::File::options().write(true).open("/proc/self/mem")?;
    Ok(memory.write_all_at(&title, start)?)
}

/// Prints the address of an attachment, and when it is connected the pid of an ordinary worker; then waits to be killed.
pub(crate) fn attach() -> Outcome {
    let supervisor = Supervisor::new()?;
    let _signals = supervisor.handle_signals()?;
    let attachment = supervisor.attach(WorkerSpec::new("plugin").control(Pass::env("PIPEWRIGHT_CONTROL")))?;
    println!("{}", attachment.variable().1.to_str().ok_or("not UTF-8")?);
    let connected = supervisor.events().iter().any(|event| matches!(event.kind, EventKind::ControlConnected));
    let ordinary = supervisor.spawn(WorkerSpec::new("sleep").arg("1000"))?;
    println!("{}", ordinary.pid().filter(|_| connected).ok_or("no worker")?);
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

pub(crate) fn guard(options: &Options) -> Result<Guard, String> {
    match options.get("guard") {
        None => Ok(Guard::default()),
        Some("shell") => Ok(Guard::Shell),
        Some("own") => Ok(Guard::OwnExecutable),
        Some("none") => Ok(Guard::Disabled),
        Some(other) => Err(format!("unknown guard {other:?}")),
    }
}

/// `[--guard shell|own|none] [--hostile] [--single] [--forked] --level own|session|inherit|command|process|survive`: once all
/// workers have started, prints `up` and their containment; also prints every warning. `--single` starts one worker. With `--forked`, a
/// fork of this process stays alive with all open descriptors except standard output.
pub(crate) fn run(options: &Options) -> Outcome {
    let level = options.get("level").unwrap_or("own").to_owned();
    // Does not depend on /proc.
    let fixture = env::current_exe().or_else(|_| env::args_os().next().map(Into::into).ok_or("no name"))?;
    let spec = |script: &'static str| {
        let spec = match level.as_str() {
            "command" | "process" => WorkerSpec::from_command({
                let fixture = fixture.clone();
                move || {
                    let mut command = Command::new("/bin/sh");
                    command.args(["-c", script]).arg(&fixture);
                    command
                }
            }),
            _ => WorkerSpec::new("/bin/sh").args(["-c", script]).arg(&fixture),
        };
        let group = match level.as_str() {
            "session" => ProcessGroup::NewSession,
            "inherit" | "process" => ProcessGroup::Inherit,
            _ => ProcessGroup::New,
        };
        let policy = RestartPolicy::from(Restart::Always)
            .backoff(Backoff::constant(Duration::from_millis(1)))
            .intensity(RestartIntensity::unlimited());
        let spec = spec.process_group(group).restart(policy);
        if level == "survive" { spec.outlive_supervisor() } else { spec }
    };
    let supervisor = Supervisor::builder().guard(guard(options)?).build()?;
    let mut contained = None;
    if options.has("hostile") {
        supervisor.spawn(spec(HOSTILE))?;
    }
    for _ in 0..if options.has("single") { 1 } else { 3 } {
        contained = supervisor.spawn(spec(TREE))?.containment().map(|it| it.kind);
        if !options.has("single") {
            supervisor.spawn(spec(CRASH))?;
        }
    }
    if options.has("forked") {
        crate::kernel::fork_that_waits();
    }
    say(&format!("up {contained:?}"))?;
    for event in supervisor.events() {
        if let EventKind::Warning(warning) = event.kind {
            say(&warning.to_string())?;
        }
    }
    Ok(())
}

/// `[--guard shell|own|none]`: a host with one worker. Prints a line once its control connection is open, and waits for the end of
/// standard input.
pub(crate) fn control(options: &Options) -> Outcome {
    let supervisor = Supervisor::builder().guard(guard(options)?).build()?;
    let worker = WorkerSpec::new(env::current_exe()?).arg("serve").control(Pass::arg("--control={}"));
    let worker = supervisor.spawn(worker)?;
    worker.call::<_, ()>("ping", &(), Duration::from_secs(30))?;
    say("up")?;
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// A host whose supervisors handle the signals of the terminal. Prints `up PID`, and at the end the exit of its worker; exits with
/// `--code N`, or with 128 and the signal it received with `--signal-code`. `--frozen` freezes a second worker and prints its pid too; `--twice` creates a second supervisor; with
/// `--time-limit-ms N` it prints when the runtime limit is exceeded. `--deadlines-ms N` starts three more workers that miss their
/// readiness, watchdog and runtime timeouts, and prints each event. `--warnings` prints warnings.
pub(crate) fn terminal(options: &Options) -> Result<u8, Box<dyn Error>> {
    let supervisor = Supervisor::new()?;
    let mut signals = Some(supervisor.handle_signals()?);
    if options.has("no-more") {
        signals = None;
        say(&format!("up {}", std::process::id()))?;
        supervisor.events().iter().for_each(drop);
    }
    let worker = supervisor.spawn(terminal_worker(options)?)?;
    let other = Supervisor::new()?;
    let _others = if options.has("twice") { Some(other.handle_signals()?) } else { None };
    let mut up = vec![worker.pid().unwrap_or_default()];
    if options.has("frozen") {
        // Without a cgroup: the freezer of a cgroup is independent of stop signals.
        let frozen = supervisor.spawn(WorkerSpec::from_command(|| {
            let mut command = Command::new("sleep");
            command.arg("1000");
            command
        }))?;
        frozen.freeze()?;
        up.push(frozen.pid().unwrap_or_default());
    }
    if options.get("deadlines-ms").is_some() {
        for spec in overdue(Duration::from_millis(options.number("deadlines-ms")?)) {
            up.push(supervisor.spawn(spec)?.pid().unwrap_or_default());
        }
    }
    say(&format!("up {}", up.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")))?;
    // The events end with the last worker after the first Ctrl-C; the supervisor was not closed.
    for event in supervisor.events() {
        match event.kind {
            EventKind::RuntimeExceeded { after } => say(&format!("had {} ms", after.as_millis()))?,
            EventKind::NotReady { .. } => say("not ready")?,
            EventKind::WatchdogTimeout => say("unresponsive")?,
            EventKind::Warning(warning) if options.has("warnings") => say(&warning.to_string())?,
            _ => {}
        }
    }
    say(&worker.wait().to_string())?;
    if options.has("signal-code") {
        let received = signals.and_then(|signals| signals.received()).unwrap_or_default();
        return Ok(u8::try_from(128 + received)?);
    }
    options.number_or("code", 0)
}

/// `[--script SCRIPT] [--time-limit-ms N] [--grace-ms N] [--group own|session|inherit] [--keyboard]`; with the last, the worker
/// reads from the terminal.
fn terminal_worker(options: &Options) -> Result<WorkerSpec, Box<dyn Error>> {
    let script = options.get("script").unwrap_or("exec sleep 1000").to_owned();
    let mut spec =
        WorkerSpec::new("/bin/sh").args(["-c".to_owned(), script]).process_group(match options.get("group") {
            None | Some("own") => ProcessGroup::New,
            Some("session") => ProcessGroup::NewSession,
            Some("inherit") => ProcessGroup::Inherit,
            Some(other) => return Err(format!("unknown group {other:?}").into()),
        });
    if options.get("time-limit-ms").is_some() {
        spec = spec.runtime_max(Duration::from_millis(options.number("time-limit-ms")?));
    }
    if options.get("grace-ms").is_some() {
        let grace_period = Duration::from_millis(options.number("grace-ms")?);
        // Twice: a worker that is only asked to exit sooner is not killed yet.
        let ask = [StopStep::SignalGroup(libc::SIGTERM)];
        spec = spec.stop(StopPolicy::kill().step(ask.clone(), grace_period).step(ask, grace_period));
    }
    Ok(if options.has("keyboard") { spec.stdin(StdinMode::Inherit) } else { spec })
}

/// One worker for each timeout.
fn overdue(deadline: Duration) -> [WorkerSpec; 3] {
    let idle = || WorkerSpec::new("sleep").arg("1000");
    [
        idle().stdout(OutputMode::Lines).ready(Readiness::log_line("never").timeout(deadline)),
        idle().watchdog(Watchdog::notify(deadline)),
        idle().runtime_max(deadline),
    ]
}

pub(crate) fn say(line: &str) -> Outcome {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}")?;
    Ok(stdout.flush()?)
}
