//! Process trees: descendants end with their worker, at each level of containment.

use crate::support::{
    Chance, DEADLINE, FIXTURE, Story, Way, alone, becomes_true, both_ways, carriers, cgroup2_mount, is_alive,
    may_make_cgroups, wait_gone,
};
use pipewright::{
    EventKind, ExitStatus, OutputMode, Pass, ProcessGroup, SpawnError, SpawnStep, SpecError, StdinMode, StopPolicy,
    StopStep, Supervisor, Worker, WorkerSpec, limits::CgroupLimit, status::ContainmentKind,
};
use std::{
    fs,
    os::unix::fs::MetadataExt,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

/// Starts a daemon in its own session and a child, both with closed streams, which send their pids as messages.
const DAEMON: &str = r"
setsid sh -c 'echo $$ >/proc/self/fd/$1; exec sleep 1000 </dev/null >/dev/null 2>&1' sh $1 &
sh -c 'echo $$ >/proc/self/fd/$1; exec sleep 1000 </dev/null >/dev/null 2>&1' sh $1 &
";

fn daemons(way: Way, then: &str) -> WorkerSpec {
    let script = format!("{DAEMON}{then}");
    way.program("/bin/sh")
        .args(["-c", &script, "sh"])
        .messages(Pass::arg("{}"))
        .drain_timeout(Duration::from_millis(20))
}

/// Exits at the end of its input, which the test closes after both pids have arrived.
fn until_input_ends(way: Way) -> WorkerSpec {
    daemons(way, "read -r _; exit 0").stdin(StdinMode::Pipe)
}

/// Receives two pids.
#[track_caller]
fn two(story: &mut Story) -> [u32; 2] {
    [(); 2].map(|()| u32::try_from(story.json().as_u64().unwrap()).unwrap())
}

both_ways! {
    fn p09_kills_and_reports_daemons_after_worker_exit(way: Way) {
        let mut story = Story::new();
        let worker = story.supervisor.spawn(until_input_ends(way)).unwrap();
        let daemons = two(&mut story);
        // The pids are sent before exec: wait until both run sleep.
        let is_asleep = |pid: &u32| fs::read(format!("/proc/{pid}/cmdline")).unwrap().starts_with(b"sleep");
        assert!(becomes_true(|| daemons.iter().all(is_asleep)));
        drop(worker.take_stdin());
        let exit = story.exit();
        assert!(exit.success(), "{exit}");
        for daemon in daemons {
            assert!(!is_alive(daemon), "it must be dead before the exit event");
            let survivor = exit.survivors.iter().find(|survivor| survivor.pid == daemon);
            assert!(survivor.is_some_and(|survivor| &*survivor.command == "sleep 1000"), "{exit:?}");
        }
    }

    fn p09_kills_daemons_after_kill_or_stop(way: Way) {
        let ends: [fn(&Worker); 2] = [|worker| worker.kill().unwrap(), |worker| drop(worker.stop())];
        for end in ends {
            let mut story = Story::new();
            let worker = story.supervisor.spawn(daemons(way, "exec sleep 1000")).unwrap();
            let daemons = two(&mut story);
            end(&worker);
            story.exit();
            assert!(daemons.iter().all(|daemon| !is_alive(*daemon)));
        }
    }

    fn p09_kills_daemons_of_worker_in_inherited_group(way: Way) {
        let mut story = Story::new();
        let worker = story.supervisor.spawn(until_input_ends(way).process_group(ProcessGroup::Inherit)).unwrap();
        let daemons = two(&mut story);
        drop(worker.take_stdin());
        assert!(story.exit().success());
        assert!(daemons.iter().all(|daemon| !is_alive(*daemon)));
    }

    fn p09_finds_daemon_without_environment_by_its_ancestors(way: Way) {
        let mut story = Story::new();
        let script = "setsid env -i sh -c 'echo $$ >/proc/self/fd/$1; exec sleep 1000 >/dev/null' sh $1 & wait";
        let spec = way.program("/bin/sh").args(["-c", script, "sh"]).messages(Pass::arg("{}"));
        let worker = story.supervisor.spawn(spec.stop(StopPolicy::kill())).unwrap();
        let daemon = u32::try_from(story.json().as_u64().unwrap()).unwrap();
        worker.stop();
        story.exit();
        wait_gone(daemon);
    }

    fn frozen_worker_does_not_run_and_can_be_stopped(way: Way) {
        let mut story = Story::new();
        let spec = way.program("/bin/sh").args(["-c", "while :; do echo; done"]).stdout(OutputMode::Lines);
        let worker = story.supervisor.spawn(spec).unwrap();
        let line = |event: pipewright::Event| matches!(event.kind, EventKind::Line { .. }).then_some(());
        story.find(line);
        worker.freeze().unwrap();
        // Lines written before the freeze arrive, and then no more.
        while story.supervisor.events().recv_timeout(Duration::from_millis(200)).is_ok() {}
        worker.thaw().unwrap();
        story.find(line);
        worker.freeze().unwrap();
        worker.stop();
        let exit = loop {
            if let EventKind::Exited { exit, .. } = story.next().kind {
                break exit;
            }
        };
        assert_eq!(exit.signal(), Some(libc::SIGTERM));
    }

    fn p08_group_members_get_grace_period_of_stop(way: Way) {
        let mut story = Story::new();
        // The wrapper exits at SIGTERM, its server 50 ms later, after a message. The server's child exists before the signal and gets
        // it, too.
        let server = r"trap 'sleep 0.05; echo 2 >/proc/self/fd/$1; exit' TERM; sleep 1000 & echo 1 >/proc/self/fd/$1; wait";
        let script = "trap 'exit 0' TERM; sh -c \"$2\" sh $1 & wait";
        let spec = way.program("/bin/sh").args(["-c", script, "sh"]).messages(Pass::arg("{}")).arg(server);
        let stop = StopPolicy::kill().step([StopStep::SignalGroup(libc::SIGTERM)], DEADLINE);
        let worker = story.supervisor.spawn(spec.stop(stop)).unwrap();
        assert_eq!(story.json(), 1);
        worker.stop();
        assert_eq!(story.json(), 2, "the server was killed before the end of its grace period");
        assert!(story.exit().success());
    }

    fn p08_kills_group_members_after_grace_period(way: Way) {
        let mut story = Story::new();
        // The member ignores the signal that makes its parent exit.
        let script = "trap 'exit 0' TERM; $0 ignore-term --messages=$1 & wait";
        let spec = way.program("/bin/sh").args(["-c", script, FIXTURE]).messages(Pass::arg("{}"));
        let stop = StopPolicy::kill().step([StopStep::SignalGroup(libc::SIGTERM)], Duration::from_millis(100));
        let worker = story.supervisor.spawn(spec.stop(stop).drain_timeout(Duration::from_millis(20))).unwrap();
        story.message();
        let report = worker.stop().wait(DEADLINE);
        assert!(report.workers[0].exit.as_ref().expect("its end").success(), "{report}");
        assert!(report.workers[0].took >= Duration::from_millis(100), "{report}");
    }

    fn signal_group_reaches_all_members(way: Way) {
        let mut story = Story::new();
        let member = "trap 'echo 3 >/proc/self/fd/$1; exit' USR1; echo 1 >/proc/self/fd/$1; sleep 1000 & wait";
        let script = format!("trap 'echo 2 >/proc/self/fd/$1' USR1; ({member}) & while ! wait; do :; done");
        let spec = way.program("/bin/sh").args(["-c", &script, "sh"]).messages(Pass::arg("{}"));
        let worker = story.supervisor.spawn(spec).unwrap();
        assert_eq!(story.json(), 1);
        worker.signal_group(libc::SIGUSR1).unwrap();
        let mut received = [story.json(), story.json()].map(|number| number.as_u64());
        received.sort_unstable();
        assert_eq!(received, [Some(2), Some(3)]);
        assert!(worker.wait_timeout(DEADLINE).expect("its end").success());
    }

    fn spawn_succeeds_after_frozen_worker_is_killed(way: Way) {
        let supervisor = Arc::new(Supervisor::new().unwrap());
        for _ in 0..3 {
            let worker = supervisor.spawn(way.program("sleep").arg("1000")).unwrap();
            worker.freeze().unwrap();
            worker.kill().unwrap();
            assert_eq!(worker.wait_timeout(DEADLINE).expect("its end").signal(), Some(libc::SIGKILL));
            let (started, start) = mpsc::channel();
            let spawner = Arc::clone(&supervisor);
            thread::spawn(move || started.send(spawner.spawn(way.program("true"))));
            let next = start.recv_timeout(DEADLINE).expect("the next start").unwrap();
            assert!(next.wait_timeout(DEADLINE).expect("its end").success());
        }
    }

    fn stop_of_frozen_worker_runs_every_step(way: Way) {
        let story = Story::new();
        let stop = StopPolicy::kill().step([StopStep::ClosePipes], Duration::from_secs(3600));
        let worker = story.supervisor.spawn(way.program("cat").stdin(StdinMode::Pipe).stop(stop)).unwrap();
        worker.freeze().unwrap();
        worker.stop();
        assert!(worker.wait_timeout(DEADLINE).expect("its end").success(), "its input was closed");
    }
}

/// Workers that exit while their daemons exec other programs, twenty at a time.
fn daemons_during_exec(rounds: u64) {
    const MARK: &str = "TEST_MARK_DAEMONS";
    let mark = std::process::id().to_string();
    let mut chance = Chance(u64::from(std::process::id()) << 20 | 1);
    let mut story = Story::new();
    let spec = |count: u64| {
        let spec = Way::Command.fixture("chaos").args(["--kind", "daemons", "--count"]).arg(count.to_string());
        spec.env(MARK, &mark).drain_timeout(Duration::from_millis(20))
    };
    for _ in 0..rounds {
        let workers: Vec<_> = (0..20).map(|_| story.supervisor.spawn(spec(chance.below(300))).unwrap()).collect();
        for _ in &workers {
            story.exit();
        }
        assert_eq!(carriers(MARK, &mark), [0; 0]);
    }
}

#[test]
fn p09_kills_descendant_during_exec() {
    if alone("tree::p09_kills_descendant_during_exec", |spec| spec) {
        daemons_during_exec(20);
    }
}

#[test]
fn strongest_containment_is_chosen_and_reported() {
    let story = Story::new();
    let containment = |spec: WorkerSpec| story.supervisor.spawn(spec.arg("hang")).unwrap().containment().unwrap().kind;
    let expected = if may_make_cgroups() { ContainmentKind::Cgroup } else { ContainmentKind::ProcessGroup };
    assert_eq!(containment(Way::Direct.program(FIXTURE)), expected);
    // A user's own `Command` and a worker that outlives the supervisor have no cgroup.
    assert_eq!(containment(Way::Command.program(FIXTURE)), ContainmentKind::ProcessGroup);
    assert_eq!(containment(WorkerSpec::new(FIXTURE).outlive_supervisor()), ContainmentKind::ProcessGroup);
    assert_eq!(
        containment(Way::Command.program(FIXTURE).process_group(ProcessGroup::Inherit)),
        ContainmentKind::EnvToken
    );
}

#[test]
fn worker_cgroup_is_removed() {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    let story = Story::new();
    let worker = story.supervisor.spawn(Way::Direct.plain("hang")).unwrap();
    let of_worker = fs::read_to_string(format!("/proc/{}/cgroup", worker.pid().unwrap())).unwrap();
    let unified = |text: &str| text.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned);
    drop(story);
    worker.wait_timeout(DEADLINE).expect("its end");
    if let (Some(mount), Some(path)) = (cgroup2_mount(), unified(&of_worker)) {
        let is_own = Some(&path) == unified(&own).as_ref();
        assert!(is_own || !fs::exists(format!("{mount}{path}")).unwrap(), "{mount}{path}");
    }
}

#[test]
fn unavailable_cgroup_limit_is_reported() {
    let story = Story::new();
    // If the controller is available, the worker starts with the limit.
    match story.supervisor.spawn(WorkerSpec::new("true").cgroup_limit(CgroupLimit::MemoryMax(64 << 20))) {
        Ok(worker) => {
            assert_eq!(worker.containment().map_or(ContainmentKind::Cgroup, |it| it.kind), ContainmentKind::Cgroup);
        }
        Err(SpawnError::Failed { step, source, .. }) => {
            assert_eq!(step, SpawnStep::CgroupLimit);
            let reason = source.to_string();
            assert!(reason.contains("cgroup"), "{reason}");
        }
        Err(other) => panic!("{other:?}"),
    }
    let refused = |spec: WorkerSpec| match story.supervisor.spawn(spec.cgroup_limit(CgroupLimit::PidsMax(9))) {
        Err(SpawnError::Spec(SpecError::Conflict { settings, .. })) => settings,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(WorkerSpec::new("true").outlive_supervisor()), ["cgroup_limit", "outlive_supervisor"]);
    assert_eq!(refused(Way::Command.program("true")), ["cgroup_limit", "from_command"]);
}

#[test]
fn removed_worker_cgroup_does_not_affect_others() {
    // The worker moves to the root of the hierarchy, which requires root.
    let mount = cgroup2_mount().filter(|_| may_make_cgroups() && fs::metadata("/proc/self").unwrap().uid() == 0);
    let Some(mount) = mount else { return };
    let story = Story::new();
    let hanging = || story.supervisor.spawn(Way::Direct.plain("hang")).unwrap();
    assert_eq!(hanging().containment().map(|it| it.kind), Some(ContainmentKind::Cgroup));
    let script = "own=$(sed -n s/^0:://p /proc/self/cgroup); echo $$ >$1/cgroup.procs; rmdir $1$own";
    let leaving = story.supervisor.spawn(Way::Direct.program("/bin/sh").args(["-c", script, "sh", &mount])).unwrap();
    assert!(leaving.wait_timeout(DEADLINE).expect("its end").success());
    for _ in 0..3 {
        assert_eq!(hanging().containment().map(|it| it.kind), Some(ContainmentKind::Cgroup));
    }
}

#[test]
#[ignore = "takes six seconds, and needs root and the freezer of cgroup v1"]
fn unkillable_worker_is_reaped_after_late_exit() {
    // A process frozen by cgroup v1 does not die from SIGKILL.
    let freezer = format!("/sys/fs/cgroup/freezer/pipewright-test-{}", std::process::id());
    fs::create_dir(&freezer).unwrap();
    let story = Story::new();
    let worker = story.supervisor.spawn(Way::Direct.plain("hang").stop(StopPolicy::kill())).unwrap();
    fs::write(format!("{freezer}/cgroup.procs"), worker.pid().unwrap().to_string()).unwrap();
    let until = Instant::now() + DEADLINE;
    let wait = |is_over: &dyn Fn() -> bool| {
        while !is_over() {
            assert!(Instant::now() < until, "{:?}", fs::read_to_string(format!("{freezer}/freezer.state")));
        }
    };
    let state = format!("{freezer}/freezer.state");
    fs::write(&state, "FROZEN").unwrap();
    wait(&|| fs::read_to_string(&state).unwrap().trim() == "FROZEN");
    let report = worker.stop().wait(DEADLINE);
    assert_eq!(report.workers[0].exit.as_ref().map(|exit| exit.status), Some(ExitStatus::Unkillable), "{report}");
    fs::write(&state, "THAWED").unwrap();
    // It is reaped, although the test holds its handle.
    wait(&|| !fs::exists(format!("/proc/{}", worker.pid().unwrap())).unwrap());
    fs::remove_dir(&freezer).unwrap();
}
