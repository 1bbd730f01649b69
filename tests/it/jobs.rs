//! Queues of jobs: N at a time, dependencies, resources, and one final event for each job.

use crate::support::{Chance, DEADLINE, Story, is_alive};
use pipewright::{
    Backoff, Event, EventKind, ExitCause, ExitMatch, OutputMode, Restart, RestartPolicy, StopPolicy, StopStep,
    Supervisor, SurvivorPolicy, WorkerId, WorkerSpec,
    events::{AfterExit, GiveUpReason},
    pool::{Budget, Job, JobError, JobOutcome, JobSpec, Jobs, OnFailure},
    status::WorkerState,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    thread,
    time::Duration,
};

fn shell(script: &str) -> WorkerSpec {
    WorkerSpec::new("/bin/sh").args(["-c", script])
}

fn exits(code: u8) -> WorkerSpec {
    shell(&format!("exit {code}"))
}

/// Runs until it is stopped.
fn endless() -> WorkerSpec {
    WorkerSpec::new("/bin/sleep").arg("1000")
}

fn below(chance: &mut Chance, limit: usize) -> usize {
    usize::try_from(chance.below(limit as u64)).unwrap()
}

/// The final events by worker. Panics if a worker has two.
fn finals(events: &[Event]) -> BTreeMap<WorkerId, &EventKind> {
    let mut finals = BTreeMap::new();
    for event in events.iter().filter(|event| event.kind.is_final()) {
        assert!(finals.insert(event.worker, &event.kind).is_none(), "two final events: {events:?}");
    }
    finals
}

/// The most workers that ran at a time, as the order of the events shows it.
fn most_at_a_time(events: &[Event]) -> usize {
    let (mut running, mut most) = (BTreeSet::new(), 0);
    for event in events {
        match event.kind {
            EventKind::Started { .. } => drop(running.insert(event.worker)),
            EventKind::Exited { .. } => drop(running.remove(&event.worker)),
            _ => {}
        }
        most = most.max(running.len());
    }
    most
}

fn ended(job: &Job) -> JobOutcome {
    job.wait_timeout(DEADLINE).unwrap_or_else(|| panic!("{job:?} has not ended"))
}

#[test]
fn p01_jobs_above_the_limit_wait_and_each_has_one_final_event() {
    let mut story = Story::new();
    let jobs = Jobs::new(&story.supervisor, 3);
    let submitted: Vec<Job> = (0..30).map(|at| jobs.submit(exits(at % 2)).unwrap()).collect();
    let events = story.rest();
    assert!(most_at_a_time(&events) <= 3);
    let finals = finals(&events);
    assert_eq!(finals.keys().copied().collect::<Vec<_>>(), submitted.iter().map(Job::id).collect::<Vec<_>>());
    for (at, job) in submitted.iter().enumerate() {
        let outcome = job.wait_timeout(Duration::ZERO).expect("known with the final event");
        assert_eq!(outcome.success(), at % 2 == 0, "{outcome}");
        assert_eq!(outcome.exit().and_then(|exit| exit.code()), Some(i32::from(at % 2 != 0)));
    }
}

#[test]
fn job_starts_after_its_dependencies_have_succeeded() {
    let mut story = Story::new();
    let jobs = Jobs::new(&story.supervisor, 8);
    let first: Vec<Job> = (0..4).map(|_| jobs.submit(shell("sleep 0.05")).unwrap()).collect();
    let link = first.iter().fold(JobSpec::new(exits(0)), JobSpec::after);
    let link = jobs.submit(link).unwrap();
    let last = jobs.submit(JobSpec::new(exits(0)).after(&link).after(&first[0])).unwrap();
    let events = story.rest();
    let position = |worker: &Job, wanted: fn(&EventKind) -> bool| {
        events.iter().position(|event| event.worker == worker.id() && wanted(&event.kind)).expect("in the events")
    };
    let is_start = |kind: &EventKind| matches!(kind, EventKind::Started { .. });
    for dependency in &first {
        assert!(position(dependency, EventKind::is_final) < position(&link, is_start));
    }
    assert!(position(&link, EventKind::is_final) < position(&last, is_start));
}

#[test]
fn p01_dependents_of_a_failed_job_end_with_the_reason() {
    let mut story = Story::new();
    let jobs = Jobs::new(&story.supervisor, 2);
    let failed = jobs.submit(exits(3)).unwrap();
    let dependent = jobs.submit(JobSpec::new(exits(0)).after(&failed)).unwrap();
    let indirect = jobs.submit(JobSpec::new(exits(0)).after(&dependent)).unwrap();
    let other = jobs.submit(exits(0)).unwrap();
    ended(&indirect);
    let late = jobs.submit(JobSpec::new(exits(0)).after(&other).after(&indirect)).unwrap();
    let events = story.rest();
    let on = |job: &Job| match finals(&events)[&job.id()] {
        EventKind::DependencyFailed { on } => *on,
        other => panic!("{other:?}"),
    };
    assert_eq!([on(&dependent), on(&indirect), on(&late)], [failed.id(), dependent.id(), indirect.id()]);
    assert!(ended(&other).success());
    let outcome = ended(&late);
    assert!(matches!(&outcome, JobOutcome::DependencyFailed { on } if *on == indirect.id()), "{outcome:?}");
    assert_eq!(outcome.to_string(), format!("not started, since job {} has not succeeded", indirect.id()));
}

#[test]
fn p01_cancelled_jobs_end_whether_they_run_or_wait() {
    let mut story = Story::new();
    let jobs = Jobs::new(&story.supervisor, 1);
    let running = jobs.submit(endless()).unwrap();
    let waiting = jobs.submit(exits(0)).unwrap();
    let blocked = jobs.submit(JobSpec::new(exits(0)).after(&running)).unwrap();
    let next = jobs.submit(exits(0)).unwrap();
    story.find(|event| matches!(event.kind, EventKind::Started { .. }).then_some(()));
    waiting.cancel();
    let outcome = ended(&waiting);
    assert!(matches!(outcome, JobOutcome::NotStarted { next: AfterExit::Finished }), "{outcome:?}");
    running.cancel();
    let outcome = ended(&running);
    assert!(matches!(&outcome, JobOutcome::Failed { next: AfterExit::Finished, .. }), "{outcome:?}");
    assert!(matches!(ended(&blocked), JobOutcome::DependencyFailed { on } if on == running.id()));
    assert!(ended(&next).success(), "the slot is free again");
    finals(&story.rest());
}

#[test]
fn cancel_all_ends_the_jobs_of_one_queue() {
    let mut story = Story::new();
    let budget = Budget::new(4);
    let (jobs, others) = (Jobs::with_budget(&story.supervisor, &budget), Jobs::with_budget(&story.supervisor, &budget));
    let all: Vec<Job> = (0..20).map(|_| jobs.submit(endless()).unwrap()).collect();
    let other = others.submit(exits(0)).unwrap();
    let report = jobs.cancel_all().wait(DEADLINE);
    assert_eq!((report.workers.len(), report.unfinished().count()), (20, 0), "{report}");
    assert!(all.iter().all(|job| job.outcome().is_some_and(|outcome| !outcome.success())));
    assert!(ended(&other).success());
    assert!(ended(&jobs.submit(exits(0)).unwrap()).success(), "later jobs run");
    assert_eq!(finals(&story.rest()).len(), 22);
}

#[test]
fn resources_and_weights_bound_what_runs_together() {
    let mut story = Story::new();
    let jobs = Jobs::with_budget(&story.supervisor, &Budget::new(4).resource("link", 1));
    let linking: Vec<WorkerId> =
        (0..4).map(|_| jobs.submit(JobSpec::new(shell("sleep 0.02")).needs([("link", 1)])).unwrap().id()).collect();
    let heavy: Vec<WorkerId> =
        (0..4).map(|_| jobs.submit(JobSpec::new(shell("sleep 0.02")).weight(3)).unwrap().id()).collect();
    let (mut linkers, mut slots) = (0, 0);
    for event in story.rest() {
        let weight = if heavy.contains(&event.worker) { 3 } else { 1 };
        let links = i32::from(linking.contains(&event.worker));
        match event.kind {
            EventKind::Started { .. } => (linkers, slots) = (linkers + links, slots + weight),
            EventKind::Exited { .. } => (linkers, slots) = (linkers - links, slots - weight),
            _ => {}
        }
        assert!(linkers <= 1 && slots <= 4, "{linkers} linkers, {slots} slots");
    }
}

#[test]
fn p16_jobs_that_can_never_run_are_refused() {
    let supervisor = Supervisor::new().unwrap();
    let jobs = Jobs::with_budget(&supervisor, &Budget::new(2).resource("link", 1));
    let refused = |spec: JobSpec| jobs.submit(spec).unwrap_err().to_string();
    let job = || JobSpec::new(exits(0));
    assert_eq!(refused(job().weight(3)), "the job takes 3 slots, and there are 2");
    assert_eq!(refused(job().weight(0)), "a job of weight 0 would take no slot: the lowest weight is 1");
    assert_eq!(refused(job().needs([("gpu", 1)])), "the job needs `gpu`, which is no resource of its budget");
    assert_eq!(refused(job().needs([("link", 2)])), "the job needs 2 of `link`, and there is 1");
    let others = Supervisor::new().unwrap();
    let foreign = Jobs::new(&others, 1).submit(exits(0)).unwrap();
    let text = format!("the job depends on job {}, whose queue has another budget", foreign.id());
    assert_eq!(refused(job().after(&foreign)), text);
    assert!(refused(JobSpec::new(WorkerSpec::new("a\0b"))).starts_with("invalid worker spec: "));
    supervisor.close();
    assert!(matches!(jobs.submit(exits(0)), Err(JobError::SupervisorGone)));
}

#[test]
fn p09_jobs_end_with_their_supervisor() {
    let supervisor = Supervisor::new().unwrap();
    let events = supervisor.events().clone();
    let jobs = Jobs::new(&supervisor, 2);
    let all: Vec<Job> = (0..10).map(|_| jobs.submit(endless()).unwrap()).collect();
    drop(supervisor);
    assert!(all.iter().all(|job| job.wait_timeout(Duration::ZERO).is_some()));
    assert_eq!(finals(&events.try_iter().collect::<Vec<_>>()).len(), 10);
    assert!(matches!(jobs.submit(exits(0)), Err(JobError::SupervisorGone)));
}

#[test]
fn job_that_cannot_be_started_fails_alone() {
    let mut story = Story::new();
    let jobs = Jobs::new(&story.supervisor, 1);
    let missing = jobs.submit(WorkerSpec::new("/does/not/exist")).unwrap();
    let next = jobs.submit(exits(0)).unwrap();
    assert!(ended(&next).success());
    let outcome = ended(&missing);
    assert!(matches!(outcome, JobOutcome::SpawnFailed { .. }), "{outcome:?}");
    assert!(outcome.to_string().contains("/does/not/exist"), "{outcome}");
    finals(&story.rest());
}

#[test]
fn slots_are_numbered_from_one_and_reused() {
    let mut story = Story::new();
    let jobs = Jobs::new(&story.supervisor, 2);
    let spec = shell("exit $PIPEWRIGHT_SLOT");
    let submitted: Vec<Job> = (0..6).map(|_| jobs.submit(spec.clone()).unwrap()).collect();
    story.rest();
    for job in submitted {
        let slot = job.slot().unwrap();
        assert!((1..=2).contains(&slot), "slot {slot}");
        assert_eq!(ended(&job).exit().and_then(|exit| exit.code()), i32::try_from(slot).ok());
    }
}

#[test]
fn limit_changes_while_jobs_run() {
    let mut story = Story::new();
    let jobs = Jobs::new(&story.supervisor, 0);
    let waiting: Vec<Job> = (0..3).map(|_| jobs.submit(endless()).unwrap()).collect();
    assert_eq!(jobs.submit(exits(0)).unwrap().wait_timeout(Duration::from_millis(50)).map(drop), None, "paused");
    jobs.budget().set_limit(3);
    // All three at a time: none of them ends by itself.
    for _ in &waiting {
        story.find(|event| matches!(event.kind, EventKind::Started { .. }).then_some(()));
    }
    assert_eq!(jobs.budget().limit(), 3);
    jobs.budget().set_limit(1);
    waiting[0].cancel();
    ended(&waiting[0]);
    waiting[1].cancel();
    ended(&waiting[1]);
    waiting[2].cancel();
    assert_eq!(finals(&story.rest()).len(), 4);
}

/// The reason with which a job was given up.
fn reason(job: &Job) -> Option<GiveUpReason> {
    match ended(job) {
        JobOutcome::Failed { next: AfterExit::GaveUp(reason), .. }
        | JobOutcome::SpawnFailed { next: AfterExit::GaveUp(reason), .. }
        | JobOutcome::NotStarted { next: AfterExit::GaveUp(reason) } => Some(reason),
        _ => None,
    }
}

fn started(story: &mut Story, job: &Job) {
    story.find(|event| (event.worker == job.id() && matches!(event.kind, EventKind::Started { .. })).then_some(()));
}

#[test]
fn job_is_retried_and_others_run_during_its_backoff() {
    let mut story = Story::new();
    let jobs = Jobs::new(&story.supervisor, 1);
    // An hour: without a free slot the other job would not run.
    let slow = RestartPolicy::from(Restart::OnFailure).backoff(Backoff::constant(Duration::from_secs(3600)));
    let retried = jobs.submit(JobSpec::new(exits(1).restart(slow)).retries(3)).unwrap();
    let other = jobs.submit(exits(0)).unwrap();
    assert!(ended(&other).success());
    assert!(retried.outcome().is_none(), "it is tried again");
    let status = story.supervisor.status();
    assert_eq!(status.workers.iter().map(|worker| worker.state).collect::<Vec<_>>(), [WorkerState::Waiting]);
    retried.worker().restart();
    retried.worker().wait_incarnation(2, DEADLINE).unwrap();
    retried.cancel();
    let outcome = ended(&retried);
    assert!(!outcome.success(), "{outcome}");
    finals(&story.rest());
}

#[test]
fn p13_retries_are_counted() {
    let mut story = Story::new();
    let jobs = Jobs::new(&story.supervisor, 2);
    let quick = || RestartPolicy::default().backoff(Backoff::constant(Duration::ZERO));
    let directory = tempfile::tempdir().unwrap();
    let flaky = format!("test -e {0}/ran || {{ : > {0}/ran; exit 1; }}", directory.path().display());
    let flaky = jobs.submit(JobSpec::new(shell(&flaky).restart(quick())).retries(2)).unwrap();
    let failing = jobs.submit(JobSpec::new(exits(1).restart(quick())).retries(7)).unwrap();
    let never = jobs.submit(JobSpec::new(exits(1).restart(Restart::OnFailure)).retries(0)).unwrap();
    let skipped =
        jobs.submit(JobSpec::new(exits(77).restart(quick().success([ExitMatch::Code(77)]))).retries(2)).unwrap();
    let after = jobs.submit(JobSpec::new(exits(0)).after(&flaky).after(&skipped)).unwrap();
    finals(&story.rest());
    assert!([&flaky, &skipped, &after].iter().all(|job| ended(job).success()));
    assert_eq!(reason(&failing), Some(GiveUpReason::IntensityExceeded));
    let attempts = [&flaky, &failing, &never, &skipped].map(|job| job.worker().incarnation());
    assert_eq!(attempts, [2, 8, 1, 1]);
}

#[test]
fn p15_deadline_ends_a_job_whether_it_runs_or_waits() {
    let mut story = Story::new();
    let jobs = Jobs::new(&story.supervisor, 1);
    let soon = Duration::from_secs(2);
    let running = jobs.submit(JobSpec::new(endless()).deadline(soon)).unwrap();
    let waiting = jobs.submit(JobSpec::new(exits(0)).after(&running).deadline(Duration::from_millis(1))).unwrap();
    let in_time = jobs.submit(JobSpec::new(exits(0)).deadline(Duration::MAX)).unwrap();
    assert_eq!(reason(&waiting), Some(GiveUpReason::DeadlineExceeded));
    assert!(running.outcome().is_none());
    assert_eq!(reason(&running), Some(GiveUpReason::DeadlineExceeded));
    let outcome = ended(&running);
    let exit = outcome.exit().unwrap();
    assert!(exit.cause == ExitCause::Deadline && exit.duration < DEADLINE, "{exit:?}");
    assert!(outcome.to_string().ends_with(", stopped at its deadline; gave up: its deadline has passed"), "{outcome}");
    assert!(ended(&in_time).success());
    assert_eq!(ended(&waiting).to_string(), "not started: its deadline has passed");
    finals(&story.rest());
}

#[test]
fn first_failure_ends_the_queue_as_its_policy_says() {
    for policy in [OnFailure::FinishRunning, OnFailure::StopRunning] {
        let mut story = Story::new();
        let budget = Budget::new(3);
        let jobs = Jobs::with_budget(&story.supervisor, &budget).on_failure(policy);
        let others = Jobs::with_budget(&story.supervisor, &budget);
        let running = jobs.submit(endless()).unwrap();
        let retrying = Backoff::constant(Duration::from_secs(3600));
        let retrying = exits(1).restart(RestartPolicy::from(Restart::OnFailure).backoff(retrying));
        let retrying = jobs.submit(JobSpec::new(retrying).retries(1)).unwrap();
        started(&mut story, &running);
        let blocked = jobs.submit(JobSpec::new(exits(0)).after(&running)).unwrap();
        let cancelled = jobs.submit(JobSpec::new(exits(0)).after(&running)).unwrap();
        cancelled.cancel();
        ended(&cancelled);
        assert!(blocked.outcome().is_none(), "a cancelled job is no failure");
        let failed = jobs.submit(exits(3)).unwrap();
        assert_eq!(reason(&failed), None);
        assert_eq!(reason(&blocked), Some(GiveUpReason::FailFast));
        assert_eq!(reason(&retrying), Some(GiveUpReason::FailFast));
        let late = jobs.submit(exits(0)).unwrap();
        assert_eq!(reason(&late), Some(GiveUpReason::FailFast));
        if policy == OnFailure::FinishRunning {
            assert!(running.outcome().is_none(), "it runs");
            running.cancel();
        }
        let cause = ended(&running).exit().unwrap().cause;
        let expected = if policy == OnFailure::FinishRunning { ExitCause::Stop } else { ExitCause::FailFast };
        assert_eq!(cause, expected);
        assert!(ended(&others.submit(exits(0)).unwrap()).success(), "other queues are not affected");
        finals(&story.rest());
    }
}

/// A job that has failed is not tried again once the queue has halted.
#[test]
fn no_job_is_retried_after_the_first_failure() {
    let mut story = Story::new();
    let jobs = Jobs::new(&story.supervisor, 2).on_failure(OnFailure::FinishRunning);
    let file = tempfile::NamedTempFile::new().unwrap();
    let later = RestartPolicy::default().backoff(Backoff::constant(Duration::from_secs(3600)));
    let script = format!("while [ -e {} ]; do sleep 0.01; done; exit 1", file.path().display());
    let running = jobs.submit(JobSpec::new(shell(&script).restart(later)).retries(1)).unwrap();
    started(&mut story, &running);
    assert_eq!(reason(&jobs.submit(exits(1)).unwrap()), None);
    file.close().unwrap();
    assert_eq!(reason(&running), Some(GiveUpReason::FailFast));
    assert!(running.outcome().unwrap().exit().is_some(), "it ended by itself");
    finals(&story.rest());
}

#[test]
fn cancelled_job_that_ends_well_has_not_succeeded() {
    let mut story = Story::new();
    let jobs = Jobs::new(&story.supervisor, 2);
    let script = "trap 'exit 0' TERM; echo up; while :; do sleep 0.01; done";
    let stop = StopPolicy::kill().step([StopStep::Signal(libc::SIGTERM)], DEADLINE);
    let cancelled = jobs.submit(shell(script).stdout(OutputMode::Lines).stop(stop)).unwrap();
    let dependent = jobs.submit(JobSpec::new(exits(0)).after(&cancelled)).unwrap();
    story.find(|event| matches!(event.kind, EventKind::Line { .. }).then_some(()));
    cancelled.cancel();
    let outcome = ended(&cancelled);
    assert_eq!((outcome.to_string().as_str(), outcome.success()), ("exit code 0, cancelled", false));
    assert!(matches!(ended(&dependent), JobOutcome::DependencyFailed { on } if on == cancelled.id()));
    finals(&story.rest());
}

#[test]
fn jobs_start_by_priority_and_then_in_order() {
    let mut story = Story::new();
    let jobs = Jobs::new(&story.supervisor, 1);
    let first = jobs.submit(endless()).unwrap();
    let submitted: Vec<Job> = [0, 0, 5, -1, 5]
        .into_iter()
        .map(|priority| jobs.submit(JobSpec::new(exits(0)).priority(priority)).unwrap())
        .collect();
    first.cancel();
    let events = story.rest();
    let starts = events.iter().filter(|event| matches!(event.kind, EventKind::Started { .. }));
    let order: Vec<WorkerId> = starts.map(|event| event.worker).filter(|worker| *worker != first.id()).collect();
    assert_eq!(order, [2, 4, 0, 1, 3].map(|at| submitted[at].id()));
}

#[test]
fn budget_is_shared_by_queues_of_several_supervisors() {
    let (left, right) = (Supervisor::new().unwrap(), Supervisor::new().unwrap());
    let budget = Budget::new(2);
    let queues = [Jobs::with_budget(&left, &budget), Jobs::with_budget(&right, &budget)];
    let waits = shell("sleep 0.02");
    let all: Vec<Job> = (0..20).map(|at| queues[at % 2].submit(waits.clone()).unwrap()).collect();
    let last = queues[1].submit(JobSpec::new(exits(0)).after(&all[0]).after(&all[19])).unwrap();
    assert!(ended(&last).success());
    for job in &all {
        let slot = job.slot();
        assert!(ended(job).success() && slot.is_some_and(|slot| slot <= 2), "{job:?} in slot {slot:?}");
    }
    for supervisor in [&left, &right] {
        supervisor.close();
        assert!(finals(&supervisor.events().iter().collect::<Vec<_>>()).len() >= 10);
    }
}

/// A queue whose supervisor is dropped gives its slots back to the others.
#[test]
fn slots_of_a_dropped_supervisor_return_to_the_budget() {
    let (left, right) = (Supervisor::new().unwrap(), Supervisor::new().unwrap());
    let budget = Budget::new(1);
    let running = Jobs::with_budget(&left, &budget).submit(endless()).unwrap();
    let jobs = Jobs::with_budget(&right, &budget);
    let waiting = jobs.submit(exits(0)).unwrap();
    let dependent = jobs.submit(JobSpec::new(exits(0)).after(&running)).unwrap();
    running.worker().wait_incarnation(1, DEADLINE).unwrap();
    drop(left);
    assert!(ended(&waiting).success());
    assert!(matches!(ended(&dependent), JobOutcome::DependencyFailed { on } if on == running.id()));
}

/// Otherwise the exits of jobs would fill the channel of a consumer that is slow.
#[test]
fn p07_no_job_starts_while_the_window_is_full() {
    let supervisor = Supervisor::builder().window(8 << 10).build().unwrap();
    let jobs = Jobs::new(&supervisor, 2);
    let all: Vec<Job> = (0..200).map(|_| jobs.submit(WorkerSpec::new("/bin/true")).unwrap()).collect();
    assert!(all[199].wait_timeout(Duration::from_secs(2)).is_none());
    let unreceived = supervisor.events().len();
    assert!(unreceived < 100, "{unreceived} events wait");
    supervisor.close();
    assert_eq!(finals(&supervisor.events().iter().collect::<Vec<_>>()).len(), 200);
    assert!(all.iter().all(|job| ended(job).success()));
}

/// Jobs with a random dependency graph, of which one in ten fails by itself: those run whose dependencies have all succeeded, and no other.
fn run_random_graph(count: usize, seed: u64) {
    let mut chance = Chance(seed);
    let story = Story::new();
    let jobs = Jobs::with_budget(&story.supervisor, &Budget::new(8).resource("link", 2));
    let (mut all, mut expected) = (Vec::<Job>::new(), Vec::<Option<bool>>::new());
    for at in 0..count {
        let fails = chance.below(10) == 0;
        let mut spec = JobSpec::new(WorkerSpec::new(if fails { "/bin/false" } else { "/bin/true" }));
        spec = spec.priority(chance.one_of(&[0, 0, 1])).weight(chance.one_of(&[1, 1, 1, 3]));
        spec = spec.needs([("link", chance.one_of(&[0, 0, 1, 2]))]);
        let mut may_run = true;
        for _ in 0..chance.below(3).min(at as u64) {
            // Also of jobs that have ended already.
            let on = below(&mut chance, at);
            spec = spec.after(&all[on]);
            may_run &= expected[on] == Some(true);
        }
        all.push(jobs.submit(spec).unwrap());
        expected.push(may_run.then_some(!fails));
    }
    story.supervisor.close();
    let mut finals = BTreeMap::new();
    let mut ran = BTreeSet::new();
    for event in story.supervisor.events() {
        if matches!(event.kind, EventKind::Started { .. }) {
            assert!(ran.insert(event.worker), "each runs once");
        }
        if event.kind.is_final() {
            let outcome = match event.kind {
                EventKind::Exited { exit, .. } => Some(exit.success()),
                EventKind::DependencyFailed { .. } => None,
                other => panic!("{other:?}"),
            };
            assert_eq!(finals.insert(event.worker, outcome), None, "one final event each");
        }
    }
    for (at, (job, expected)) in all.iter().zip(&expected).enumerate() {
        assert_eq!(finals.get(&job.id()), Some(expected), "job {at}");
        assert_eq!(ran.contains(&job.id()), expected.is_some(), "job {at}");
    }
}

#[test]
fn p01_random_graph_of_jobs_runs_the_right_set() {
    run_random_graph(1500, 12);
}

#[test]
#[ignore = "takes a minute"]
fn p01_random_graph_of_20_000_jobs_runs_the_right_set() {
    run_random_graph(20_000, 13);
}

/// Threads submit, cancel, kill and change limits at once, while workers fail, are retried and time out.
#[test]
fn p01_jobs_end_once_whatever_many_threads_do() {
    const THREADS: u64 = 4;
    const JOBS: usize = 60;
    let supervisor = Supervisor::new().unwrap();
    let budget = Budget::new(4).resource("link", 1);
    let quick = RestartPolicy::default().backoff(Backoff::constant(Duration::from_millis(1)));
    let all: Vec<Job> = thread::scope(|scope| {
        let threads: Vec<_> = (1..=THREADS)
            .map(|seed| {
                let (jobs, quick) = (Jobs::with_budget(&supervisor, &budget), &quick);
                scope.spawn(move || {
                    let mut chance = Chance(seed * 7919);
                    let mut own = Vec::<Job>::new();
                    for _ in 0..JOBS {
                        let script =
                            chance.one_of(&["exit 0", "exit 0", "exit 1", "sleep 0.01", "kill -9 $$", "sleep 1000"]);
                        let worker = shell(script).restart(quick.clone()).runtime_max(Duration::from_millis(200));
                        let mut spec = JobSpec::new(worker).retries(chance.one_of(&[0, 0, 2]));
                        spec = spec.weight(chance.one_of(&[1, 2])).needs([("link", chance.below(2))]);
                        if chance.below(4) == 0 {
                            spec = spec.deadline(Duration::from_millis(chance.below(300)));
                        }
                        if !own.is_empty() && chance.below(3) == 0 {
                            spec = spec.after(&own[below(&mut chance, own.len())]);
                        }
                        own.push(jobs.submit(spec).unwrap());
                        let other = &own[below(&mut chance, own.len())];
                        match chance.below(12) {
                            0 => drop(other.cancel()),
                            1 => drop(other.worker().restart()),
                            // ESRCH before the start.
                            2 => drop(other.worker().kill()),
                            3 => jobs.budget().set_limit(below(&mut chance, 5) + 2),
                            4 => drop(own[0].worker().stop_timeout(Duration::ZERO)),
                            _ => {}
                        }
                    }
                    own
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    supervisor.close();
    let events: Vec<Event> = supervisor.events().iter().collect();
    let finals = finals(&events);
    assert_eq!(finals.len(), all.len());
    assert!(most_at_a_time(&events) <= 6);
    for job in &all {
        let outcome = job.outcome().unwrap_or_else(|| panic!("{job:?} has no outcome"));
        let is_told = match (&outcome, finals[&job.id()]) {
            (JobOutcome::Succeeded(_), EventKind::Exited { exit, .. }) => exit.success(),
            (JobOutcome::Failed { next, .. }, EventKind::Exited { next: told, .. })
            | (JobOutcome::NotStarted { next }, EventKind::NotStarted { next: told }) => next == told,
            (JobOutcome::DependencyFailed { on }, EventKind::DependencyFailed { on: told }) => on == told,
            _ => false,
        };
        assert!(is_told, "{outcome:?}: {:?}", finals[&job.id()]);
    }
    // All slots are free again.
    let other = Supervisor::new().unwrap();
    budget.set_limit(3);
    let whole =
        Jobs::with_budget(&other, &budget).submit(JobSpec::new(exits(0)).weight(3).needs([("link", 1)])).unwrap();
    assert!(ended(&whole).success());
    assert_eq!(whole.slot(), Some(1));
}

#[test]
fn p08_shutdown_ends_jobs_that_run_and_that_wait() {
    let story = Story::new();
    let jobs = Jobs::new(&story.supervisor, 2);
    let all: Vec<Job> = (0..6).map(|_| jobs.submit(endless()).unwrap()).collect();
    let blocked = jobs.submit(JobSpec::new(exits(0)).after(&all[5])).unwrap();
    let report = story.supervisor.shutdown(Duration::from_millis(200));
    assert!(report.is_complete && report.unfinished().count() == 0, "{report}");
    assert!(all.iter().chain([&blocked]).all(|job| job.outcome().is_some_and(|outcome| !outcome.success())));
    let events: Vec<Event> = story.supervisor.events().iter().collect();
    assert_eq!(finals(&events).len(), 7);
}

/// The slot is free when the whole tree has ended, or at the exit if survivors are left alone.
#[test]
fn p09_slot_is_taken_until_the_tree_has_ended() {
    let mut story = Story::new();
    let jobs = Jobs::new(&story.supervisor, 1);
    let leaves = |script: &str| shell(script).stderr(OutputMode::Lines).drain_timeout(Duration::from_millis(10));
    let killed = jobs.submit(leaves("setsid sleep 1000 & echo $! >&2")).unwrap();
    let next = jobs.submit(exits(0)).unwrap();
    let mut survivor = None;
    let is_start = |kind: &EventKind| matches!(kind, EventKind::Started { .. });
    story.find(|event| {
        if let EventKind::Line { line, .. } = &event.kind {
            survivor = line.text().parse::<u32>().ok();
        }
        (event.worker == next.id() && is_start(&event.kind)).then_some(())
    });
    assert!(!is_alive(survivor.expect("it has written its number")), "killed before the slot was free");
    assert!(ended(&killed).success());
    let kept = jobs.submit(leaves("setsid sleep 5 & :").survivors(SurvivorPolicy::Ignore)).unwrap();
    assert!(ended(&kept).success() && ended(&jobs.submit(exits(0)).unwrap()).success());
}

#[test]
fn p16_handles_are_printed_in_short() {
    let supervisor = Supervisor::new().unwrap();
    let budget = Budget::new(2).resource("link", 1);
    let jobs = Jobs::with_budget(&supervisor, &budget);
    let first = jobs.submit(exits(0)).unwrap();
    ended(&first);
    let spec = JobSpec::new(exits(0)).after(&first).needs([("link", 1)]).retries(2);
    let text = format!("{spec:?}");
    let rest = format!(
        "after: [{}], priority: 0, weight: 1, needs: [(\"link\", 1)], deadline: None, retries: Some(2) }}",
        first.id().to_string().trim_start_matches('#')
    );
    assert!(text.starts_with("JobSpec { worker: WorkerSpec {") && text.ends_with(&rest), "{text}");
    assert_eq!(format!("{budget:?} {jobs:?}"), "Budget Jobs { queue: 1 }");
}
