//! A host of its own: it supervises trees until somebody kills it.

use crate::{Options, Outcome};
use pipewright::{
    Backoff, EventKind, OutputMode, Pass, ProcessGroup, Readiness, Restart, RestartIntensity, RestartPolicy, StdinMode,
    StopPolicy, StopStep, Supervisor, Watchdog, WorkerSpec, guard::Guard,
};
use std::{
    env,
    error::Error,
    fs,
    io::{Read, Write},
    os::unix::fs::FileExt,
    process::Command,
    time::Duration,
};

/// Three deep, one branch in a session of its own, streams closed, as daemons are.
const TREE: &str = "setsid sh -c 'sleep 1000 </dev/null >/dev/null 2>&1 & exec sleep 1000' & (sleep 1000; :) & wait";
/// Leaves a daemon behind and ends, again and again.
const CRASH: &str = "setsid sh -c 'sleep 1000 </dev/null >/dev/null 2>&1 & exec sleep 1000' & exit 1";

/// Members of the worker's group that have no environment to be found by, and two that have left the group. All hold standard
/// output.
const HOSTILE: &str = "env -i sleep 1000 & env -i sh -c 'sleep 1000; :' & $0 overwrite-environment & setsid sleep 1000 & \
                       setsid $0 end-main-thread & wait";

/// Writes a title over the whole environment, as sshd and nginx do.
pub(crate) fn overwrite_environment() -> Outcome {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit_once(") ").ok_or("no name")?.1.split_whitespace().collect();
    // Fields 50 and 51 of proc_pid_stat(5), of which the third is the first here.
    let (start, end): (u64, u64) = (fields[47].parse()?, fields[48].parse()?);
    let title: Vec<u8> = b"title: ".iter().copied().cycle().take(usize::try_from(end - start)?).collect();
    let memory = fs::File::options().write(true).open("/proc/self/mem")?;
    Ok(memory.write_all_at(&title, start)?)
}

fn guard(options: &Options) -> Result<Guard, String> {
    match options.get("guard") {
        None => Ok(Guard::default()),
        Some("shell") => Ok(Guard::Shell),
        Some("own") => Ok(Guard::OwnExecutable),
        Some("none") => Ok(Guard::Disabled),
        Some(other) => Err(format!("there is no guard {other:?}")),
    }
}

/// `[--guard shell|own|none] [--hostile] [--single] [--forked] --level own|session|inherit|command|process|survive`: says `up` and how
/// its workers are contained when all have been started for the first time, and every warning. With `--single`, there is one worker.
/// With `--forked`, a fork of this process lives on, with all that it has open but for standard output.
pub(crate) fn run(options: &Options) -> Outcome {
    let level = options.get("level").unwrap_or("own").to_owned();
    // Without /proc, it is found by its own name.
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

/// `[--guard shell|own|none]`: a host with one worker that has connected for control; says so, and lives until the end of its input.
pub(crate) fn control(options: &Options) -> Outcome {
    let supervisor = Supervisor::builder().guard(guard(options)?).build()?;
    let worker = WorkerSpec::new(env::current_exe()?).arg("serve").control(Pass::arg("--control={}"));
    let worker = supervisor.spawn(worker)?;
    worker.call::<_, ()>("ping", &(), Duration::from_secs(30))?;
    say("up")?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// A host that leaves the terminal's signals to its supervisors. Says `up PID`, and at the end how its worker ended; ends with
/// `--code N`. With `--frozen`, a second worker is frozen, and named too; with `--twice`, there is a second supervisor; with
/// `--time-limit-ms N` it says when its worker has had that time. `--deadlines-ms N` gives it three more workers, which are not
/// ready, give no sign of life, and do not end in that time: it says when each of them is found out. With `--warnings` it says those too.
pub(crate) fn terminal(options: &Options) -> Result<u8, Box<dyn Error>> {
    let supervisor = Supervisor::new()?;
    let signals = supervisor.handle_signals()?;
    if options.has("no-more") {
        drop(signals);
        say(&format!("up {}", std::process::id()))?;
        supervisor.events().iter().for_each(drop);
    }
    let worker = supervisor.spawn(terminal_worker(options)?)?;
    let other = Supervisor::new()?;
    let _others = if options.has("twice") { Some(other.handle_signals()?) } else { None };
    let mut up = vec![worker.pid().unwrap_or_default()];
    if options.has("frozen") {
        // Without a cgroup of its own, whose freezing the kernel keeps apart from signals.
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
    // They end with the last worker after the first Ctrl-C: nobody has closed anything here.
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
    options.number_or("code", 0)
}

/// `[--script SCRIPT] [--time-limit-ms N] [--grace-ms N] [--group own|session|inherit] [--keyboard]`, the last for one that reads
/// what is typed.
fn terminal_worker(options: &Options) -> Result<WorkerSpec, Box<dyn Error>> {
    let script = options.get("script").unwrap_or("exec sleep 1000").to_owned();
    let mut spec =
        WorkerSpec::new("/bin/sh").args(["-c".to_owned(), script]).process_group(match options.get("group") {
            None | Some("own") => ProcessGroup::New,
            Some("session") => ProcessGroup::NewSession,
            Some("inherit") => ProcessGroup::Inherit,
            Some(other) => return Err(format!("there is no group {other:?}").into()),
        });
    if options.get("time-limit-ms").is_some() {
        spec = spec.runtime_max(Duration::from_millis(options.number("time-limit-ms")?));
    }
    if options.get("grace-ms").is_some() {
        let grace_period = Duration::from_millis(options.number("grace-ms")?);
        // Twice: one that is only asked to end sooner is not killed yet.
        let ask = [StopStep::SignalGroup(libc::SIGTERM)];
        spec = spec.stop(StopPolicy::kill().step(ask.clone(), grace_period).step(ask, grace_period));
    }
    Ok(if options.has("keyboard") { spec.stdin(StdinMode::Inherit) } else { spec })
}

/// One for each deadline that a worker can miss by itself.
fn overdue(deadline: Duration) -> [WorkerSpec; 3] {
    let idle = || WorkerSpec::new("sleep").arg("1000");
    [
        idle().stdout(OutputMode::Lines).ready(Readiness::log_line("never").timeout(deadline)),
        idle().watchdog(Watchdog::notify(deadline)),
        idle().runtime_max(deadline),
    ]
}

fn say(line: &str) -> Outcome {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{line}")?;
    Ok(stdout.flush()?)
}
