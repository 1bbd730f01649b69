//! Seccomp profiles older than pidfds deny `pidfd_open` or `pidfd_send_signal`.

use crate::{
    kernel,
    support::{DEADLINE, Story, Way, alone, as_ordinary_user, becomes_true, is_alive},
};
use pipewright::{
    Exit, ExitStatus, Pass, ProcessGroup, StdinMode, StopPolicy, StopStep, Supervisor, WorkerSpec,
    status::KernelFeature,
};
use std::{fs, sync::Arc, time::Duration};

/// The system calls, and their names in a worker's containment.
const DENIED: [(libc::c_long, KernelFeature); 2] =
    [(libc::SYS_pidfd_open, KernelFeature::PidfdOpen), (libc::SYS_pidfd_send_signal, KernelFeature::PidfdSendSignal)];

/// A worker that starts a daemon, sends its pid and continues with `then`. At SIGTERM it exits with code 7.
fn with_daemon(way: Way, group: ProcessGroup, then: &str) -> WorkerSpec {
    // The trap is set before the pid is sent.
    let daemon = "setsid sleep 1000 </dev/null >/dev/null 2>&1 & echo $! >/proc/self/fd/$1";
    let script = format!("trap 'exit 7' TERM; {daemon}; {then}");
    let spec = way.program("/bin/sh").args(["-c", &script, "sh"]).messages(Pass::arg("{}")).stdin(StdinMode::Pipe);
    spec.process_group(group).drain_timeout(Duration::from_millis(20)).stop(StopPolicy::kill())
}

/// In both ways of starting and both process groups, neither an exiting nor a killed worker leaves a process.
///
/// Orphans become children of this process, which nothing else reaps.
fn kills_trees(feature: KernelFeature) {
    kernel::prctl(libc::PR_SET_CHILD_SUBREAPER, 1);
    let mut story = Story::new();
    for (way, group) in [
        (Way::Direct, ProcessGroup::New),
        (Way::Direct, ProcessGroup::Inherit),
        (Way::Command, ProcessGroup::New),
        (Way::Command, ProcessGroup::Inherit),
    ] {
        for is_stopped in [false, true] {
            let what = format!("{feature} {way:?} {group:?} {is_stopped}");
            let worker = story.supervisor.spawn(with_daemon(way, group, "read -r _; exit 0")).unwrap();
            let containment = worker.containment().unwrap();
            assert!(containment.missing.iter().any(|one| one.feature == feature), "{what}: {containment}");
            let daemon = u32::try_from(story.json().as_u64().unwrap()).unwrap();
            assert!(becomes_true(|| fs::read(format!("/proc/{daemon}/cmdline")).unwrap().starts_with(b"sleep")));
            if is_stopped {
                drop(worker.stop());
            } else {
                drop(worker.take_stdin());
            }
            let exit: Arc<Exit> = story.exit();
            let killed = ExitStatus::Signal { signal: libc::SIGKILL, core_dumped: false };
            assert_eq!(exit.status, if is_stopped { killed } else { ExitStatus::Code(0) }, "{what}: {exit:?}");
            assert!(!fs::exists(format!("/proc/{daemon}")).unwrap(), "{what}: alive or a zombie: {exit:?}");
            // Other tests may have processes that cannot be inspected at the same time.
            assert!(exit.uninspected.is_some(), "{what}: {exit:?}");
            assert!(exit.survivors.iter().all(|survivor| !survivor.alive), "{what}: {exit:?}");
        }
    }
}

#[test]
fn p09_kills_trees_without_pidfd_open() {
    if !as_ordinary_user("denied::p09_kills_trees_without_pidfd_open") {
        return;
    }
    let (call, feature) = DENIED[0];
    kernel::refuse(call, None, libc::EPERM);
    kills_trees(feature);
}

#[test]
fn p09_kills_trees_without_pidfd_send_signal() {
    if !as_ordinary_user("denied::p09_kills_trees_without_pidfd_send_signal") {
        return;
    }
    let (call, feature) = DENIED[1];
    kernel::refuse(call, None, libc::ENOSYS);
    kills_trees(feature);
}

#[test]
fn p09_kills_trees_without_both() {
    if !alone("denied::p09_kills_trees_without_both", |spec| spec) {
        return;
    }
    for (call, _) in DENIED {
        kernel::refuse(call, None, libc::EPERM);
    }
    kills_trees(DENIED[1].1);
}

#[test]
fn p10_stop_signals_worker_in_host_group_without_pidfd_send_signal() {
    if !as_ordinary_user("denied::p10_stop_signals_worker_in_host_group_without_pidfd_send_signal") {
        return;
    }
    kernel::refuse(libc::SYS_pidfd_send_signal, None, libc::EPERM);
    let mut story = Story::of(Supervisor::new().unwrap());
    let spec = with_daemon(Way::Command, ProcessGroup::Inherit, "while :; do read -r _; done");
    let spec = spec.stop(StopPolicy::kill().step([StopStep::Signal(libc::SIGTERM)], DEADLINE));
    let worker = story.supervisor.spawn(spec).unwrap();
    let daemon = u32::try_from(story.json().as_u64().unwrap()).unwrap();
    worker.signal(0).unwrap();
    drop(worker.stop());
    let exit = story.exit();
    assert_eq!(exit.status, ExitStatus::Code(7), "{exit:?}");
    assert!(becomes_true(|| !is_alive(daemon)), "{exit:?}");
}

#[test]
fn p16_command_without_pidfd_fails_naming_the_denied_call() {
    const SO_PASSPIDFD: u32 = 76; // Linux 6.5
    if !alone("denied::p16_command_without_pidfd_fails_naming_the_denied_call", |spec| spec) {
        return;
    }
    kernel::refuse(libc::SYS_pidfd_open, None, libc::EPERM);
    kernel::refuse(libc::SYS_setsockopt, Some((2, SO_PASSPIDFD)), libc::ENOPROTOOPT);
    let supervisor = Supervisor::new().unwrap();
    let refused = supervisor.spawn(Way::Command.plain("hang")).unwrap_err().to_string();
    assert!(refused.contains("pidfd_open: Operation not permitted"), "{refused}");
    supervisor.spawn(Way::Direct.plain("hang")).unwrap();
}
