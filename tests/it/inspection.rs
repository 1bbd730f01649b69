//! Finds descendants by any remaining trace, and counts processes that cannot be inspected. Drops root privileges, since root can read
//! everything.

use crate::{
    kernel,
    support::{
        DEADLINE, FIXTURE, NOBODY, Story, Way, alone, as_ordinary_user, becomes_true, carriers, is_alive,
        may_make_cgroups, wait_gone, with_unreadable_processes,
    },
};
use pipewright::{
    Backoff, Exit, ExitStatus, Pass, Restart, RestartIntensity, RestartPolicy, StdinMode, StopPolicy, WorkerSpec,
    status::{Containment, ContainmentKind, KernelFeature},
};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

/// A worker that runs `script` with the number of its message pipe as `$1` and the fixture as `$0`, and exits at the end of its input.
fn running(script: &str) -> WorkerSpec {
    let script = format!("{script}\nread -r _; exit 0");
    let spec = Way::Command.program("/bin/sh").args(["-c", &script, FIXTURE]).messages(Pass::arg("{}"));
    spec.stdin(StdinMode::Pipe).drain_timeout(Duration::from_millis(20)).stop(StopPolicy::kill())
}

/// Runs the worker until `is_so` holds for its descendant. Returns the descendant's pid and the worker's exit.
#[track_caller]
fn descendant_and_exit(spec: WorkerSpec, is_so: impl Fn(u32) -> bool) -> (u32, Arc<Exit>) {
    let mut story = Story::new();
    let worker = story.supervisor.spawn(spec).unwrap();
    let descendant = u32::try_from(story.json().as_u64().unwrap()).unwrap();
    assert!(becomes_true(|| is_so(descendant)), "{:?}", fs::read_to_string(format!("/proc/{descendant}/status")));
    drop(worker.take_stdin());
    let exit = story.exit();
    assert!(exit.success(), "{exit:?}");
    (descendant, exit)
}

fn has_no_environment(pid: u32) -> bool {
    let read = |file| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
    read("cmdline").starts_with(b"sleep") && read("environ").is_empty()
}

fn cannot_be_read(pid: u32) -> bool {
    fs::read(format!("/proc/{pid}/environ")).is_err()
}

#[test]
fn p09_kills_descendant_without_environment_in_the_group() {
    let script = "env -i sleep 1000 </dev/null >/dev/null 2>&1 9>&- & echo $! >/proc/self/fd/$1";
    let (descendant, exit) = descendant_and_exit(running(script), has_no_environment);
    assert!(!is_alive(descendant), "{exit:?}");
    assert_eq!(exit.survivors.iter().map(|one| one.pid).collect::<Vec<_>>(), [descendant], "{exit:?}");
}

#[test]
fn p09_kills_descendant_without_environment_in_a_session_of_the_tree() {
    // The session leader has the token; its child, in a group of its own, does not.
    let script = r"setsid sh -c '
        set -m
        env -i sleep 1000 </dev/null >/dev/null 2>&1 &
        echo $! >/proc/self/fd/$1
        exec sleep 1001 </dev/null >/dev/null 2>&1' sh $1 &";
    let (descendant, exit) = descendant_and_exit(running(script), has_no_environment);
    assert!(!is_alive(descendant), "{exit:?}");
}

#[test]
fn p09_kills_descendant_known_only_by_a_pipe() {
    let script = "setsid env -i sleep 1000 </dev/null 2>&1 & echo $! >/proc/self/fd/$1";
    let (descendant, exit) = descendant_and_exit(running(script), has_no_environment);
    assert!(!is_alive(descendant), "{exit:?}");
    assert_eq!(exit.survivors.iter().map(|one| &*one.holds).collect::<Vec<_>>(), [["messages".into()]], "{exit:?}");
}

#[test]
fn p09_kills_descendant_whose_main_thread_has_ended() {
    if !as_ordinary_user("inspection::p09_kills_descendant_whose_main_thread_has_ended") {
        return;
    }
    let script = "setsid \"$0\" end-main-thread </dev/null >/dev/null 2>&1 & echo $! >/proc/self/fd/$1";
    let has_left = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z'))
    };
    let (descendant, exit) = descendant_and_exit(running(script), has_left);
    wait_gone(descendant);
    assert_eq!(exit.survivors.iter().map(|one| one.pid).collect::<Vec<_>>(), [descendant], "{exit:?}");
}

#[test]
fn p09_kills_unreadable_descendant_by_its_group() {
    if !with_unreadable_processes("inspection::p09_kills_unreadable_descendant_by_its_group") {
        return;
    }
    let script = "\"$0\" undumpable </dev/null >/dev/null 2>&1 & echo $! >/proc/self/fd/$1";
    let (descendant, exit) = descendant_and_exit(running(script), cannot_be_read);
    wait_gone(descendant);
    assert_eq!(exit.survivors.len(), 1, "{exit:?}");
}

#[test]
fn p09_counts_descendant_that_cannot_be_inspected() {
    if !with_unreadable_processes("inspection::p09_counts_descendant_that_cannot_be_inspected") {
        return;
    }
    let script = "setsid \"$0\" undumpable </dev/null >/dev/null 2>&1 & echo $! >/proc/self/fd/$1";
    let (descendant, exit) = descendant_and_exit(running(script), cannot_be_read);
    // Nothing shows its worker. The other tests of this user may have such processes at the same time.
    assert!(exit.uninspected.is_some_and(|count| count >= 1) && exit.survivors.is_empty(), "{exit:?}");
    kernel::kill(descendant, libc::SIGKILL);
}

#[test]
fn p09_counts_none_if_all_candidates_were_inspected() {
    if kernel::effective_uid() != 0 {
        // Programs of other tests, such as gpg-agent, refuse to be inspected by their own user.
        return;
    }
    let (_, exit) =
        descendant_and_exit(running("sleep 1000 </dev/null >/dev/null 2>&1 & echo $! >/proc/self/fd/$1"), is_alive);
    assert_eq!(exit.uninspected, Some(0), "{exit:?}");
}

#[test]
fn p06_killing_a_large_tree_leaves_descriptors_to_the_host() {
    if !alone("inspection::p06_killing_a_large_tree_leaves_descriptors_to_the_host", |spec| {
        spec.rlimit(pipewright::limits::ResourceLimit::OpenFiles, 160)
    }) {
        return;
    }
    let is_over = Arc::new(AtomicBool::new(false));
    let opens = thread::spawn({
        let is_over = Arc::clone(&is_over);
        move || {
            while !is_over.load(Ordering::Relaxed) {
                fs::File::open("/dev/null").expect("a descriptor for the host");
                thread::yield_now();
            }
        }
    });
    let script =
        "for i in $(seq 300); do setsid sleep 1000 </dev/null >/dev/null 2>&1 & done; echo $! >/proc/self/fd/$1";
    // A process still in the worker's group would be killed with it and not be listed.
    let all_have_left = |last: u32| {
        let read = |path: String| fs::read_to_string(path).unwrap_or_default();
        let stat = read(format!("/proc/{last}/stat"));
        let parent = stat.split(' ').nth(3).unwrap_or_default();
        let children = read(format!("/proc/{parent}/task/{parent}/children"));
        let sleeps = |child: &&str| read(format!("/proc/{child}/comm")) == "sleep\n";
        children.split_whitespace().filter(sleeps).count() == 300
    };
    let (_, exit) = descendant_and_exit(running(script), all_have_left);
    is_over.store(true, Ordering::Relaxed);
    opens.join().unwrap();
    assert_eq!(exit.survivors.len(), 300, "{exit}");
    assert!(exit.survivors.iter().all(|survivor| !survivor.alive), "{exit:?}");
}

#[test]
fn p09_subreaper_reaps_killed_survivors() {
    if !alone("inspection::p09_subreaper_reaps_killed_survivors", |spec| spec) {
        return;
    }
    kernel::prctl(libc::PR_SET_CHILD_SUBREAPER, 1);
    for way in [Way::Direct, Way::Command] {
        let script = "setsid sleep 1000 </dev/null >/dev/null 2>&1 & echo $! >/proc/self/fd/$1; read -r _; exit 0";
        let spec = way.program("/bin/sh").args(["-c", script, "sh"]).messages(Pass::arg("{}")).stdin(StdinMode::Pipe);
        let (descendant, exit) = descendant_and_exit(spec.drain_timeout(Duration::from_millis(20)), is_alive);
        assert!(!fs::exists(format!("/proc/{descendant}")).unwrap(), "{way:?}: a zombie is left, {exit:?}");
    }
}

#[test]
fn p09_subreaper_finds_unreadable_orphans() {
    if !with_unreadable_processes("inspection::p09_subreaper_finds_unreadable_orphans") {
        return;
    }
    let supervisor = pipewright::Supervisor::builder().subreaper(true).build().unwrap();
    let mut story = Story::of(supervisor);
    let script = "setsid \"$0\" undumpable </dev/null >/dev/null 2>&1 & echo $! >/proc/self/fd/$1";
    let worker = story.supervisor.spawn(running(script)).unwrap();
    let descendant = u32::try_from(story.json().as_u64().unwrap()).unwrap();
    assert!(becomes_true(|| cannot_be_read(descendant)));
    drop(worker.take_stdin());
    let exit = story.exit();
    assert!(!fs::exists(format!("/proc/{descendant}")).unwrap(), "{exit:?}");
    assert_eq!(exit.survivors.len(), 1, "{exit:?}");
}

#[test]
fn p09_subreaper_reaps_exiting_orphans_while_workers_restart() {
    if !alone("inspection::p09_subreaper_reaps_exiting_orphans_while_workers_restart", |spec| spec) {
        return;
    }
    let supervisor = pipewright::Supervisor::builder().subreaper(true).build().unwrap();
    let mut story = Story::of(supervisor);
    let script = "sh -c 'sleep 0.01 </dev/null >/dev/null 2>&1 & echo $! >/proc/self/fd/$0' $1; read -r _";
    let leaver =
        Way::Direct.program("/bin/sh").args(["-c", script, "sh"]).messages(Pass::arg("{}")).stdin(StdinMode::Pipe);
    let leaver = story.supervisor.spawn(leaver).unwrap();
    let orphan = story.json().as_u64().unwrap();
    // Each of its exits is a request to the thread that also reaps.
    let again = RestartPolicy::from(Restart::Always)
        .backoff(Backoff::constant(Duration::from_millis(50)))
        .intensity(RestartIntensity::unlimited());
    story.supervisor.spawn(WorkerSpec::new("sh").args(["-c", "setsid sleep 1000 & exit 0"]).restart(again)).unwrap();
    assert!(becomes_true(|| !fs::exists(format!("/proc/{orphan}")).unwrap()), "a zombie is left");
    drop(leaver);
}

#[test]
fn p16_containment_names_missing_features() {
    let story = Story::new();
    let worker = story.supervisor.spawn(Way::Command.plain("hang")).unwrap();
    let containment = worker.containment().unwrap();
    let missing: Vec<KernelFeature> = containment.missing.iter().map(|one| one.feature).collect();
    assert_eq!(missing, [KernelFeature::Cgroup], "{containment}");
    assert!(containment.to_string().starts_with("process group; no cgroup: "), "{containment}");
}

/// Runs a worker that leaves a process in its group and a daemon. Returns its containment, their pids and its exit. Needs no `/proc`.
fn run_without_proc(story: &mut Story, meanwhile: impl FnOnce()) -> (Containment, [u32; 2], Arc<Exit>) {
    let script = "sleep 1000 </dev/null >/dev/null 2>&1 & echo $! >&$1; \
        setsid sleep 1000 </dev/null >/dev/null 2>&1 & echo $! >&$1; read -r _; exit 0";
    let spec =
        Way::Direct.program("/bin/sh").args(["-c", script, "sh"]).messages(Pass::arg("{}")).stdin(StdinMode::Pipe);
    let worker = story.supervisor.spawn(spec.drain_timeout(Duration::from_millis(20))).unwrap();
    let [member, daemon] = [(); 2].map(|()| u32::try_from(story.json().as_u64().unwrap()).unwrap());
    assert!(becomes_true(|| kernel::group_of(daemon) == Some(daemon)));
    meanwhile();
    let containment = worker.containment().unwrap();
    drop(worker.take_stdin());
    let exit = story.exit();
    (containment, [member, daemon], exit)
}

/// Waits for the exit of a process, without `/proc`.
fn exits(pid: u32) -> bool {
    kernel::pidfd_open(pid).is_none_or(|process| kernel::poll_readable(&process, DEADLINE))
}

fn missing_features(containment: &Containment) -> Vec<KernelFeature> {
    containment.missing.iter().map(|one| one.feature).collect()
}

#[test]
fn p16_containment_and_exit_report_missing_proc() {
    // Only root may mount.
    if kernel::effective_uid() != 0 || !alone("inspection::p16_containment_and_exit_report_missing_proc", |spec| spec) {
        return;
    }
    kernel::unshare_mounts();
    kernel::hide_proc();
    for user in [0, NOBODY] {
        kernel::become_user(user);
        let (containment, [member, daemon], exit) = run_without_proc(&mut Story::new(), || {});
        assert_eq!(
            missing_features(&containment),
            [KernelFeature::Cgroup, KernelFeature::Proc],
            "{user}: {containment}"
        );
        assert_eq!((exit.status, exit.uninspected), (ExitStatus::Code(0), None), "{user}: {exit:?}");
        assert!(exits(member), "{user}: {exit:?}");
        kernel::kill(daemon, libc::SIGKILL);
    }
}

#[test]
fn p09_cgroup_kills_tree_without_proc() {
    let test = "inspection::p09_cgroup_kills_tree_without_proc";
    if kernel::effective_uid() != 0 || !may_make_cgroups() || !alone(test, |spec| spec) {
        return;
    }
    kernel::unshare_mounts();
    let (containment, [member, daemon], exit) = run_without_proc(&mut Story::new(), kernel::hide_proc);
    assert_eq!(
        (containment.kind, missing_features(&containment)),
        (ContainmentKind::Cgroup, vec![KernelFeature::Proc])
    );
    assert!(exits(member) && exits(daemon), "{exit:?}");
    assert_eq!(exit.uninspected, Some(0), "{exit:?}");
}

#[test]
fn p09_kills_descendants_while_pids_wrap_around() {
    let test = "inspection::p09_kills_descendants_while_pids_wrap_around";
    if kernel::effective_uid() != 0 || !alone(test, |spec| spec) {
        return;
    }
    kernel::unshare_mounts();
    kernel::unshare_numbers();
    let process_1 = kernel::fork(|| {
        kernel::mount_proc();
        // Since Linux 6.14 each PID namespace has a limit of its own.
        let highest: u32 = fs::read_to_string("/proc/sys/kernel/pid_max").unwrap().trim().parse().unwrap();
        let mut story = Story::new();
        let script = "setsid sleep 1000 </dev/null >/dev/null 2>&1 & sleep 1000 </dev/null >/dev/null 2>&1 &";
        for before in 1..8 {
            // The next process gets the next id. Kernels without checkpoints do not have the file.
            if fs::write("/proc/sys/kernel/ns_last_pid", (highest - before).to_string()).is_err() {
                return 7;
            }
            // Without a cgroup.
            let spec = Way::Command.program("/bin/sh").args(["-c", script]).env("TEST_MARK_WRAP", "1");
            let worker = story.supervisor.spawn(spec).unwrap();
            let exit = story.exit();
            assert!(exit.success(), "{exit:?}");
            let left = carriers("TEST_MARK_WRAP", "1");
            assert!(left.is_empty(), "{left:?} of worker {:?}, {before} before the highest: {exit:?}", worker.pid());
        }
        7
    });
    // A panic ends the only thread, with status 0.
    assert_eq!(kernel::wait(process_1), 7 << 8);
}

#[test]
fn p10_ignores_pids_of_another_namespace() {
    let test = "inspection::p10_ignores_pids_of_another_namespace";
    if kernel::effective_uid() != 0 || !alone(test, |spec| spec) {
        return;
    }
    kernel::unshare_numbers();
    let process_1 = kernel::fork(|| {
        kernel::become_user(NOBODY);
        let (containment, [member, daemon], exit) = run_without_proc(&mut Story::new(), || {});
        assert_eq!(missing_features(&containment), [KernelFeature::Cgroup, KernelFeature::Proc], "{containment}");
        assert_eq!((exit.uninspected, exit.survivors.len()), (None, 0), "{exit:?}");
        assert!(exits(member), "{exit:?}");
        assert_eq!(kernel::kill(daemon, 0), 0, "it was found");
        7
    });
    // A panic ends the only thread, with status 0.
    assert_eq!(kernel::wait(process_1), 7 << 8);
}

#[test]
#[ignore = "takes 12 s, and needs root to make a setuid program"]
fn p13_no_restart_beside_a_process_that_refuses_sigkill() {
    let test = "inspection::p13_no_restart_beside_a_process_that_refuses_sigkill";
    let program = std::env::temp_dir().join("pipewright-test-setuid");
    if kernel::effective_uid() == 0 && std::env::var_os("PIPEWRIGHT_TEST_ALONE").is_none() {
        drop(fs::remove_file(&program));
        fs::copy(FIXTURE, &program).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).unwrap();
    }
    if !as_ordinary_user(test) {
        fs::remove_file(&program).unwrap();
        return;
    }
    let mut story = Story::new();
    let spec = WorkerSpec::new(&program).arg("own-user").messages(Pass::arg("--messages={}"));
    let spec = spec.stop(StopPolicy::kill()).restart(Restart::Always).parent_death_signal(None);
    let worker = story.supervisor.spawn(spec).unwrap();
    let first = worker.pid().unwrap();
    story.message();
    let restarting = worker.restart();
    assert_eq!(story.exit().status, ExitStatus::KillRefused);
    assert!(restarting.wait(Duration::from_millis(500)).is_err(), "it runs beside {first}");
    assert!(is_alive(first) && worker.incarnation() == 1);
    // It exits by itself; then the next incarnation starts.
    assert!(worker.wait_incarnation(2, DEADLINE).is_ok());
    assert!(!fs::exists(format!("/proc/{first}")).unwrap(), "a zombie is left");
}
