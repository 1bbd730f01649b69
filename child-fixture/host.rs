//! A host of its own: it supervises trees until somebody kills it.

use crate::{Options, Outcome};
use pipewright::{Backoff, EventKind, Group, Intensity, Restart, RestartPolicy, Supervisor, WorkerSpec};
use std::{io::Write, process::Command, time::Duration};

/// Three deep, one branch in a session of its own, streams closed, as daemons are.
const TREE: &str = "setsid sh -c 'sleep 1000 </dev/null >/dev/null 2>&1 & exec sleep 1000' & (sleep 1000; :) & wait";
/// Leaves a daemon behind and ends, again and again.
const CRASH: &str = "setsid sh -c 'sleep 1000 </dev/null >/dev/null 2>&1 & exec sleep 1000' & exit 1";

/// `--level own|session|inherit|command|process|survive`: says `up` and how its workers are contained when everybody has been
/// started for the first time.
pub(crate) fn run(options: &Options) -> Outcome {
    let level = options.get("level").unwrap_or("own").to_owned();
    let spec = |script: &'static str| {
        let spec = match level.as_str() {
            "command" | "process" => WorkerSpec::from_command(move || {
                let mut command = Command::new("/bin/sh");
                command.args(["-c", script]);
                command
            }),
            _ => WorkerSpec::new("/bin/sh").args(["-c", script]),
        };
        let group = match level.as_str() {
            "session" => Group::Session,
            "inherit" | "process" => Group::Inherit,
            _ => Group::Own,
        };
        let policy = RestartPolicy::from(Restart::Always)
            .backoff(Backoff::constant(Duration::from_millis(1)))
            .intensity(Intensity::unlimited());
        let spec = spec.group(group).restart(policy);
        if level == "survive" { spec.survive_parent() } else { spec }
    };
    let supervisor = Supervisor::new()?;
    let mut contained = None;
    for _ in 0..3 {
        contained = supervisor.spawn(spec(TREE))?.containment();
        supervisor.spawn(spec(CRASH))?;
    }
    println!("up {contained:?}");
    std::io::stdout().flush()?;
    for event in supervisor.events() {
        drop(event);
    }
    Ok(())
}

/// A host that leaves the terminal's signals to its supervisors. Says `up PID`, and at the end how its worker ended. With
/// `--frozen`, a second worker is frozen, and named too; with `--twice`, there is a second supervisor; with `--time-limit-ms N` it
/// says when its worker has had that time.
pub(crate) fn terminal(options: &Options) -> Outcome {
    let supervisor = Supervisor::new()?;
    let signals = supervisor.terminal_signals()?;
    if options.has("no-more") {
        drop(signals);
        println!("up {}", std::process::id());
        std::io::stdout().flush()?;
        supervisor.events().iter().for_each(drop);
    }
    let script = options.get("script").unwrap_or("exec sleep 1000").to_owned();
    let mut spec = WorkerSpec::new("/bin/sh").args(["-c".to_owned(), script]);
    if options.get("time-limit-ms").is_some() {
        spec = spec.time_limit(Duration::from_millis(options.number("time-limit-ms")?));
    }
    let worker = supervisor.spawn(spec)?;
    let other = Supervisor::new()?;
    let _others = if options.has("twice") { Some(other.terminal_signals()?) } else { None };
    let mut up = vec![worker.pid()];
    if options.has("frozen") {
        // Without a cgroup of its own, whose freezing the kernel keeps apart from signals.
        let frozen = supervisor.spawn(WorkerSpec::from_command(|| {
            let mut command = Command::new("sleep");
            command.arg("1000");
            command
        }))?;
        frozen.freeze()?;
        up.push(frozen.pid());
    }
    println!("up {}", up.iter().map(u32::to_string).collect::<Vec<_>>().join(" "));
    std::io::stdout().flush()?;
    // They end with the last worker after the first Ctrl-C: nobody has closed anything here.
    for event in supervisor.events() {
        if let EventKind::TimedOut { after } = event.kind {
            println!("had {} ms", after.as_millis());
            std::io::stdout().flush()?;
        }
    }
    println!("{}", worker.wait());
    Ok(())
}
