//! Containers whose seccomp profile is older than pidfds deny `pidfd_open` or `pidfd_send_signal`.

use crate::{
    kernel,
    support::{DEADLINE, Story, Way, alone, as_ordinary_user, comes_true, is_alive},
};
use pipewright::{
    Exit, ExitStatus, Pass, ProcessGroup, StdinMode, StopPolicy, StopStep, Supervisor, WorkerSpec,
    status::KernelFeature,
};
use std::{fs, sync::Arc, time::Duration};

/// What can be denied, and what a worker's containment calls it.
const DENIED: [(libc::c_long, KernelFeature); 2] =
    [(libc::SYS_pidfd_open, KernelFeature::PidfdOpen), (libc::SYS_pidfd_send_signal, KernelFeature::PidfdSendSignal)];

/// A worker that has started a daemon, sent its pid, and then does this. At SIGTERM it exits with 7.
fn with_daemon(way: Way, group: ProcessGroup, then: &str) -> WorkerSpec {
    // The trap is set before anything can be known of it.
    let daemon = "setsid sleep 1000 </dev/null >/dev/null 2>&1 & echo $! >/proc/self/fd/$1";
    let script = format!("trap 'exit 7' TERM; {daemon}; {then}");
    let spec = way.program("/bin/sh").args(["-c", &script, "sh"]).messages(Pass::arg("{}")).stdin(StdinMode::Pipe);
    spec.process_group(group).drain_timeout(Duration::from_millis(20)).stop(StopPolicy::kill())
}

/// Every way of starting, in a group of its own and in the host's: a worker that ends by itself and one that is killed leave nothing.
///
/// Orphans become children of this process, which nothing else reaps.
fn ends_trees(means: KernelFeature) {
    kernel::prctl(libc::PR_SET_CHILD_SUBREAPER, 1);
    let mut story = Story::new();
    for (way, group) in [
        (Way::Direct, ProcessGroup::New),
        (Way::Direct, ProcessGroup::Inherit),
        (Way::Command, ProcessGroup::New),
        (Way::Command, ProcessGroup::Inherit),
    ] {
        for is_stopped in [false, true] {
            let what = format!("{means} {way:?} {group:?} {is_stopped}");
            let worker = story.supervisor.spawn(with_daemon(way, group, "read -r _; exit 0")).unwrap();
            let containment = worker.containment().unwrap();
            assert!(containment.missing.iter().any(|one| one.feature == means), "{what}: {containment}");
            let daemon = u32::try_from(story.json().as_u64().unwrap()).unwrap();
            assert!(comes_true(|| fs::read(format!("/proc/{daemon}/cmdline")).unwrap().starts_with(b"sleep")));
            if is_stopped {
                drop(worker.stop());
            } else {
                drop(worker.take_stdin());
            }
            let exit: Arc<Exit> = story.exit();
            let killed = ExitStatus::Signal { signal: libc::SIGKILL, core_dumped: false };
            assert_eq!(exit.status, if is_stopped { killed } else { ExitStatus::Code(0) }, "{what}: {exit:?}");
            assert!(!fs::exists(format!("/proc/{daemon}")).unwrap(), "{what}: it lives, or is a zombie: {exit:?}");
            // Other tests may have processes that cannot be inspected at the same time.
            assert!(exit.uninspected.is_some(), "{what}: {exit:?}");
            assert!(exit.survivors.iter().all(|survivor| !survivor.alive), "{what}: {exit:?}");
        }
    }
}

#[test]
fn p09_trees_end_where_pidfd_open_is_denied() {
    if !as_ordinary_user("denied::p09_trees_end_where_pidfd_open_is_denied") {
        return;
    }
    let (call, means) = DENIED[0];
    kernel::refuse(call, None, libc::EPERM);
    ends_trees(means);
}

#[test]
fn p09_trees_end_where_pidfd_send_signal_is_denied() {
    if !as_ordinary_user("denied::p09_trees_end_where_pidfd_send_signal_is_denied") {
        return;
    }
    let (call, means) = DENIED[1];
    kernel::refuse(call, None, libc::ENOSYS);
    ends_trees(means);
}

#[test]
fn p09_trees_end_where_both_are_denied() {
    if !alone("denied::p09_trees_end_where_both_are_denied", |spec| spec) {
        return;
    }
    for (call, _) in DENIED {
        kernel::refuse(call, None, libc::EPERM);
    }
    ends_trees(DENIED[1].1);
}

#[test]
fn p10_a_stop_signals_a_worker_in_the_hosts_group_where_signals_by_pidfd_are_denied() {
    if !as_ordinary_user("denied::p10_a_stop_signals_a_worker_in_the_hosts_group_where_signals_by_pidfd_are_denied") {
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
    assert!(comes_true(|| !is_alive(daemon)), "{exit:?}");
}

#[test]
fn p16_a_command_that_cannot_be_held_by_a_pidfd_fails_with_the_call_that_is_denied() {
    const SO_PASSPIDFD: u32 = 76; // Linux 6.5
    if !alone("denied::p16_a_command_that_cannot_be_held_by_a_pidfd_fails_with_the_call_that_is_denied", |spec| spec) {
        return;
    }
    kernel::refuse(libc::SYS_pidfd_open, None, libc::EPERM);
    kernel::refuse(libc::SYS_setsockopt, Some((2, SO_PASSPIDFD)), libc::ENOPROTOOPT);
    let supervisor = Supervisor::new().unwrap();
    let refused = supervisor.spawn(Way::Command.plain("hang")).unwrap_err().to_string();
    assert!(refused.contains("pidfd_open: Operation not permitted"), "{refused}");
    supervisor.spawn(Way::Direct.plain("hang")).unwrap();
}
