//! Processes that outlive their worker: killed, reported or ignored.

use crate::support::{Story, Way, both_ways, is_alive, wait_gone};
use pipewright::{
    Exit, Pass, SpawnError, SpecError, StdinMode, StopPolicy, Supervisor, SurvivorPolicy, WorkerSpec,
    limits::CgroupLimit,
};
use std::{sync::Arc, time::Duration};

/// Starts a daemon of its own session and a child in its own group, with closed streams, sends their pids, and then does `then`.
const STARTS: &str = r"
setsid sh -c 'echo $$ >/proc/self/fd/$1; exec sleep 1000 </dev/null >/dev/null 2>&1' sh $1 &
sh -c 'echo $$ >/proc/self/fd/$1; exec sleep 1000 </dev/null >/dev/null 2>&1' sh $1 &
";

fn starts(way: Way, survivors: SurvivorPolicy, then: &str) -> WorkerSpec {
    let script = format!("{STARTS}{then}");
    let spec = way.program("/bin/sh").args(["-c", &script, "sh"]).messages(Pass::arg("{}")).stdin(StdinMode::Pipe);
    spec.drain_timeout(Duration::from_millis(20)).survivors(survivors).stop(StopPolicy::kill())
}

/// Kills what a test has left on purpose.
struct Left(Vec<u32>);

impl Drop for Left {
    fn drop(&mut self) {
        for pid in &self.0 {
            crate::kernel::kill(*pid, libc::SIGKILL);
        }
    }
}

/// Receives the two pids, in any order.
#[track_caller]
fn two(story: &mut Story) -> Left {
    Left([(); 2].map(|()| u32::try_from(story.json().as_u64().unwrap()).unwrap()).to_vec())
}

fn reported(exit: &Arc<Exit>) -> Vec<u32> {
    let mut pids: Vec<u32> = exit.survivors.iter().map(|survivor| survivor.pid).collect();
    pids.sort_unstable();
    pids
}

both_ways! {
    fn p09_descendant_that_exits_within_grace_period_is_no_survivor(way: Way) {
        for policy in [SurvivorPolicy::Kill, SurvivorPolicy::Report] {
            let mut story = Story::new();
            let spec = way.program("/bin/sh").args(["-c", "sleep 0.1 >/dev/null 2>&1 &"]).survivors(policy);
            story.supervisor.spawn(spec.survivor_grace_period(crate::support::DEADLINE)).unwrap();
            let exit = story.exit();
            assert!(exit.success() && exit.survivors.is_empty(), "{exit:?}");
            assert!(exit.duration >= Duration::from_millis(90), "{exit:?}");
        }
    }

    fn p09_descendant_that_outlives_grace_period_is_killed(way: Way) {
        let mut story = Story::new();
        let spec = starts(way, SurvivorPolicy::Kill, "exit 0").survivor_grace_period(Duration::from_millis(100));
        story.supervisor.spawn(spec).unwrap();
        let mut left = two(&mut story);
        left.0.sort_unstable();
        let exit = story.exit();
        assert_eq!(reported(&exit), left.0, "{exit:?}");
        assert!(exit.duration >= Duration::from_millis(100), "{exit:?}");
        left.0.iter().for_each(|pid| wait_gone(*pid));
    }

    fn p08_stop_does_not_wait_for_survivor_grace_period(way: Way) {
        let mut story = Story::new();
        let spec = starts(way, SurvivorPolicy::Kill, "read -r _").survivor_grace_period(Duration::MAX);
        let worker = story.supervisor.spawn(spec).unwrap();
        let left = two(&mut story);
        worker.kill().unwrap();
        story.exit();
        left.0.iter().for_each(|pid| wait_gone(*pid));
    }

    fn p09_reports_survivors_and_leaves_them_alive(way: Way) {
        let mut story = Story::new();
        let worker = story.supervisor.spawn(starts(way, SurvivorPolicy::Report, "read -r _; exit 0")).unwrap();
        let mut left = two(&mut story);
        drop(worker.take_stdin());
        left.0.sort_unstable();
        let exit = story.exit();
        assert!(exit.success(), "{exit}");
        assert_eq!(reported(&exit), left.0, "{exit:?}");
        assert!(exit.survivors.iter().all(|survivor| survivor.alive), "{exit:?}");
        assert!(left.0.iter().all(|pid| is_alive(*pid)), "{exit:?}");
        drop(story);
        assert!(left.0.iter().all(|pid| is_alive(*pid)), "they outlive the supervisor, too");
    }

    fn p09_leaves_survivors_that_are_not_looked_for(way: Way) {
        let mut story = Story::new();
        let worker = story.supervisor.spawn(starts(way, SurvivorPolicy::Ignore, "read -r _; exit 0")).unwrap();
        let left = two(&mut story);
        drop(worker.take_stdin());
        let exit = story.exit();
        assert!(exit.success() && exit.survivors.is_empty() && exit.uninspected.is_none(), "{exit:?}");
        assert!(left.0.iter().all(|pid| is_alive(*pid)));
    }

    fn p09_stop_kills_group_and_leaves_reported_daemons(way: Way) {
        let mut story = Story::new();
        let worker = story.supervisor.spawn(starts(way, SurvivorPolicy::Report, "exec sleep 1000")).unwrap();
        let left = two(&mut story);
        let group = |pid: &u32| crate::kernel::group_of(*pid) == Some(worker.pid().unwrap());
        let (members, daemons): (Vec<u32>, Vec<u32>) = left.0.iter().partition(|pid| group(pid));
        worker.stop();
        let exit = story.exit();
        assert_eq!((members.len(), daemons.len()), (1, 1), "{exit:?}");
        wait_gone(members[0]);
        assert!(is_alive(daemons[0]), "{exit:?}");
    }
}

#[test]
fn p09_killed_survivors_are_reported_as_ended() {
    let mut story = Story::new();
    let worker = story.supervisor.spawn(starts(Way::Direct, SurvivorPolicy::Kill, "read -r _; exit 0")).unwrap();
    let left = two(&mut story);
    drop(worker.take_stdin());
    let exit = story.exit();
    assert!(!exit.survivors.is_empty() && exit.survivors.iter().all(|survivor| !survivor.alive), "{exit:?}");
    assert!(left.0.iter().all(|pid| !is_alive(*pid)), "{exit:?}");
}

#[test]
fn survivors_conflict_with_cgroup_limit_and_unsupervised_spawn() {
    let conflict = |refused: Result<(), SpawnError>| match refused {
        Err(SpawnError::Spec(SpecError::Conflict { settings, .. })) => settings,
        other => panic!("{other:?}"),
    };
    let supervisor = Supervisor::new().unwrap();
    let spec = WorkerSpec::new("true").survivors(SurvivorPolicy::Report);
    let limited = supervisor.spawn(spec.clone().cgroup_limit(CgroupLimit::PidsMax(9)));
    assert_eq!(conflict(limited.map(drop)), ["cgroup_limit", "survivors"]);
    assert_eq!(conflict(spec.spawn_unsupervised().map(drop)), ["survivors", "spawn_unsupervised"]);
}
