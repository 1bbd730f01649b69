//! Queues of jobs: N at a time, dependencies, resources, and one final event for each job.

use crate::support::{DEADLINE, Story};
use pipewright::{
    Event, EventKind, Supervisor, WorkerId, WorkerSpec,
    events::AfterExit,
    pool::{Budget, Job, JobError, JobOutcome, JobSpec, Jobs},
};
use std::{
    collections::{BTreeMap, BTreeSet},
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
    assert_eq!(most_at_a_time(&events), 3);
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
