//! Every worker has exactly one final event, after which its exit is known.

use crate::support::{DEADLINE, Story};
use pipewright::{
    AutoShutdown, Backoff, DependencyCondition, Event, EventKind, ExitMatch, GroupPolicy, OutputMode, Readiness,
    Restart, RestartIntensity, RestartPolicy, Strategy, Worker, WorkerGroup, WorkerId, WorkerSpec, events::AfterExit,
};
use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

const NEVER: Duration = Duration::from_secs(3600);

fn shell(script: &str) -> WorkerSpec {
    WorkerSpec::new("/bin/sh").args(["-c", script])
}

/// Restarts after an hour.
fn later() -> RestartPolicy {
    RestartPolicy::from(Restart::Always)
        .backoff(Backoff::constant(NEVER).jitter(0.0))
        .intensity(RestartIntensity::unlimited())
}

fn is_not_started(event: &Event, worker: &Worker) -> bool {
    event.worker == worker.id() && matches!(event.kind, EventKind::NotStarted { next: AfterExit::Finished })
}

#[test]
fn p01_worker_stopped_during_its_backoff_is_reported() {
    let mut story = Story::new();
    let worker = story.supervisor.spawn(shell("exit 3").restart(later())).unwrap();
    assert_eq!(story.end().1, AfterExit::Restart { after: NEVER });
    assert_eq!(worker.wait_timeout(Duration::ZERO), None, "it runs again");
    worker.stop();
    let last = story.next();
    assert!(is_not_started(&last, &worker) && last.kind.is_final() && last.incarnation == 1, "{last:?}");
    assert_eq!(worker.wait_timeout(Duration::ZERO).and_then(|exit| exit.code()), Some(3));
    assert_eq!(story.rest().len(), 0);
}

#[test]
fn p01_worker_in_its_backoff_is_reported_when_the_supervisor_is_dropped() {
    let mut story = Story::new();
    let worker = story.supervisor.spawn(shell("exit 3").restart(later())).unwrap();
    story.end();
    let events = story.supervisor.events().clone();
    drop(story);
    let rest: Vec<Event> = events.try_iter().collect();
    assert!(matches!(&*rest, [event] if is_not_started(event, &worker)), "{rest:?}");
}

#[test]
fn p01_members_that_never_run_are_reported() {
    let mut story = Story::new();
    let group = story.supervisor.group(Strategy::OneForOne).unwrap();
    let running = group.add(shell("exec sleep 1000").restart(Restart::Always)).unwrap();
    let waiting = shell("exit 0").depends_on(&running, DependencyCondition::Ready).restart(Restart::OnFailure);
    let gate =
        group.add(shell("exec sleep 1000").stdout(OutputMode::Lines).ready(Readiness::log_line("never"))).unwrap();
    let waiting = group.add(waiting.depends_on(&gate, DependencyCondition::Ready)).unwrap();
    group.stop();
    let (mut ended, mut told) = (HashSet::new(), Vec::new());
    story.find(|event| {
        told.push(format!("{event:?}"));
        if event.kind.is_final() {
            assert!(ended.insert(event.worker), "{event:?}");
            assert_eq!(is_not_started(&event, &waiting), event.worker == waiting.id(), "{event:?}");
        }
        matches!(event.kind, EventKind::GroupEnded(_)).then_some(())
    });
    assert_eq!(ended, HashSet::from([running.id(), gate.id(), waiting.id()]), "before the end of the group: {told:#?}");
    let late = group.add(shell("exit 0")).unwrap();
    assert!(late.wait_timeout(Duration::ZERO).is_some(), "its group does not run");
    let last = story.next();
    assert!(is_not_started(&last, &late), "{last:?}");
}

#[test]
fn p01_member_is_final_before_its_siblings_have_stopped() {
    let mut story = Story::new();
    let group = story.supervisor.group(Strategy::OneForAll).unwrap();
    let fast = group.add(shell("exec sleep 1000").restart(Restart::Always)).unwrap();
    let slow = shell("trap '' TERM; echo up; exec sleep 1000").restart(Restart::Always);
    let slow = group.add(slow.stdout(OutputMode::Lines).ready(Readiness::log_line("up"))).unwrap();
    assert!(slow.wait_ready(DEADLINE).is_ok());
    group.stop();
    let first = story.find(|event| event.kind.is_final().then_some(event));
    assert!(matches!(first.kind, EventKind::Exited { next: AfterExit::Finished, .. }), "{first:?}");
    assert_eq!(first.worker, fast.id());
    assert!(fast.wait_timeout(Duration::ZERO).is_some() && slow.wait_timeout(Duration::ZERO).is_none());
    slow.kill().unwrap();
    story.find(|event| matches!(event.kind, EventKind::GroupEnded(_)).then_some(()));
    // A call starts it again: it has another final event.
    assert!(group.start().wait(DEADLINE).is_ok());
    fast.stop();
    let again = story.find(|event| (event.worker == fast.id() && event.kind.is_final()).then_some(event));
    assert_eq!(again.incarnation, 2);
}

#[test]
fn p01_exit_is_known_after_the_final_event_and_the_event_after_the_exit() {
    const WORKERS: usize = 200;
    let story = Story::new();
    let events = story.supervisor.events();
    let spawn = || story.supervisor.spawn(WorkerSpec::new("/bin/true")).unwrap();
    let workers: HashMap<WorkerId, Worker> =
        (0..WORKERS).map(|_| spawn()).map(|worker| (worker.id(), worker)).collect();
    let mut ended = 0;
    while ended < WORKERS {
        let event = events.recv_timeout(DEADLINE).unwrap();
        if event.kind.is_final() {
            ended += 1;
            assert!(workers[&event.worker].wait_timeout(Duration::ZERO).is_some(), "{event:?}");
        }
    }
    for _ in 0..WORKERS {
        let worker = spawn();
        worker.wait();
        let last = events.try_iter().last();
        assert!(last.as_ref().is_some_and(|event| event.kind.is_final()), "{last:?}");
    }
}

/// A sequence of pseudo-random numbers: splitmix64.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ mixed >> 31) % end
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::try_from(self.below(choices.len() as u64)).unwrap()]
    }

    fn policy(&mut self) -> GroupPolicy {
        let strategy = self.pick(&[Strategy::OneForOne, Strategy::OneForAll, Strategy::RestForOne]);
        let shutdown = self.pick(&[AutoShutdown::Never, AutoShutdown::AnySignificant]);
        GroupPolicy::from(strategy).intensity(u32::try_from(self.below(4)).unwrap(), NEVER).auto_shutdown(shutdown)
    }

    fn worker(&mut self, workers: &[Worker]) -> WorkerSpec {
        let code = self.pick(&[0, 1, 1, 3]);
        let script = match self.below(4) {
            0 => "exec sleep 1000".to_owned(),
            1 => format!("exit {code}"),
            _ => format!("sleep 0.0{}; exit {code}", self.below(9)),
        };
        let restart = RestartPolicy::from(self.pick(&[Restart::Never, Restart::OnFailure, Restart::Always]))
            .backoff(Backoff::constant(Duration::from_millis(self.pick(&[0, 1, 20]))))
            .fatal([ExitMatch::Code(3)]);
        let mut spec = shell(&script).restart(restart);
        for worker in workers {
            if self.below(5) == 0 {
                let condition = self.pick(&[DependencyCondition::Started, DependencyCondition::Completed]);
                spec = spec.depends_on(worker, condition);
            }
        }
        if self.below(3) == 0 { spec.significant() } else { spec }
    }
}

/// What has happened to a worker since its last final event.
#[derive(Debug, Default)]
struct Run {
    is_final: bool,
    /// How many final events may still follow without a start between them: one for each call that may have started the worker.
    calls: u32,
}

#[derive(Debug, Default)]
struct Runs(HashMap<WorkerId, Run>);

impl Runs {
    fn note(&mut self, event: &Event) -> Result<(), String> {
        let is_of_worker = !matches!(
            event.kind,
            EventKind::GroupGaveUp(_)
                | EventKind::GroupEnded(_)
                | EventKind::GroupRestarting(_)
                | EventKind::Warning(_)
        );
        let Some(run) = self.0.get_mut(&event.worker).filter(|_| is_of_worker) else { return Ok(()) };
        let begins = matches!(event.kind, EventKind::Started { .. } | EventKind::SpawnFailed { .. });
        if run.is_final && !begins {
            if !event.kind.is_final() {
                return Err(format!("{event:?} after the final event"));
            }
            run.calls = run.calls.checked_sub(1).ok_or_else(|| format!("{event:?} is a second final event"))?;
        }
        run.is_final = event.kind.is_final();
        Ok(())
    }
}

/// Runs random groups with workers that fail, and requests of a user if `is_used`.
fn random_groups(seed: u64, is_used: bool) -> Result<(), String> {
    let mut random = Random(seed);
    let story = Story::new();
    let outer = story.supervisor.group(random.policy()).unwrap();
    let mut groups: Vec<WorkerGroup> = vec![outer.clone()];
    for _ in 0..2 {
        let parent = groups[usize::try_from(random.below(groups.len() as u64)).unwrap()].clone();
        let policy = random.policy().restart(random.pick(&[Restart::Never, Restart::OnFailure, Restart::Always]));
        groups.push(parent.group(policy).unwrap());
    }
    let (mut workers, mut runs) = (Vec::new(), Runs::default());
    for _ in 0..8 {
        let group = groups[usize::try_from(random.below(3)).unwrap()].clone();
        if let Ok(worker) = group.add(random.worker(&workers)) {
            runs.0.insert(worker.id(), Run::default());
            workers.push(worker);
        }
    }
    if workers.is_empty() {
        return Ok(());
    }
    for _ in 0..30 {
        let deadline = std::time::Instant::now() + Duration::from_millis(random.below(10));
        while let Ok(event) = story.supervisor.events().recv_deadline(deadline) {
            runs.note(&event)?;
        }
        let worker = workers[usize::try_from(random.below(workers.len() as u64)).unwrap()].clone();
        let group = groups[usize::try_from(random.below(3)).unwrap()].clone();
        let choice = random.below(if is_used { 8 } else { 0 }.max(3));
        if choice > 4 {
            runs.0.values_mut().for_each(|run| run.calls += 1);
        }
        match choice {
            0 => drop(worker.stop()),
            1 => drop(worker.kill()),
            2 => drop(worker.restart()),
            3 => drop(group.stop()),
            4 => drop(group.remove(&worker)),
            5 => drop(outer.start_member(&worker)),
            6 => drop(group.start()),
            _ => drop(group.restart()),
        }
    }
    story.supervisor.stop_all();
    story.supervisor.close();
    loop {
        match story.supervisor.events().recv_timeout(DEADLINE) {
            Ok(event) => runs.note(&event)?,
            Err(crossbeam_channel::RecvTimeoutError::Disconnected) => break,
            Err(error) => return Err(format!("{error}: {runs:?}")),
        }
    }
    for worker in &workers {
        if !runs.0[&worker.id()].is_final || worker.wait_timeout(Duration::ZERO).is_none() {
            return Err(format!("{worker:?} has vanished: {runs:?}"));
        }
    }
    Ok(())
}

#[test]
fn p01_members_of_random_groups_have_one_final_event() {
    for (seed, is_used) in (0..20).flat_map(|seed| [(seed, false), (seed, true)]) {
        let base = u64::from(std::process::id()) << 32;
        let result = random_groups(base + seed, is_used);
        assert_eq!(result, Ok(()), "seed {}, used: {is_used}", base + seed);
    }
}
