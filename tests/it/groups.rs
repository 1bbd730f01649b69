//! Groups of workers: order, strategies, and who gives up for whom.

use crate::{
    kernel,
    support::{DEADLINE, Story, Way, both_ways},
};
use pipewright::{
    AutoShutdown, Backoff, DependencyCondition, Event, EventKind, ExitMatch, ExitStatus, GroupError, GroupPolicy,
    OutputMode, Readiness, Restart, RestartPolicy, SpecError, StdinMode, StopPolicy, StopStep, StoppedWorker, Strategy,
    Supervisor, Worker, WorkerGroup, WorkerSpec,
    events::GiveUpReason,
    status::{GroupEndReason, GroupState, WorkerState},
};
use std::{sync::mpsc, thread, time::Duration};

/// Lives until its input ends, and ends with this code.
fn until_told(way: Way, code: i32) -> WorkerSpec {
    way.program("/bin/sh")
        .args(["-c", &format!("echo up; cat; exit {code}")])
        .stdin(StdinMode::Pipe)
        .stdout(OutputMode::Lines)
}

fn always(spec: WorkerSpec) -> WorkerSpec {
    spec.restart(RestartPolicy::from(Restart::Always).backoff(Backoff::constant(Duration::from_millis(1))))
}

fn group(story: &Story, policy: impl Into<GroupPolicy>) -> WorkerGroup {
    story.supervisor.group(policy).unwrap()
}

/// Waits until this incarnation of a worker has started.
#[track_caller]
fn started(story: &mut Story, worker: &Worker, incarnation: u32) {
    story.find(|event| {
        let is_it = event.worker == worker.id() && event.incarnation == incarnation;
        (is_it && matches!(event.kind, EventKind::Started { .. })).then_some(())
    });
}

/// Who started and ended, in order, by their names.
fn outline(events: &[Event], workers: &[&Worker]) -> Vec<String> {
    let name =
        |event: &Event| workers.iter().find(|worker| worker.id() == event.worker).map_or("?", |worker| worker.name());
    events
        .iter()
        .filter_map(|event| match &event.kind {
            EventKind::Started { .. } => Some(format!("{} starts", name(event))),
            EventKind::Exited(_) => Some(format!("{} ends", name(event))),
            EventKind::DependencyFailed { .. } => Some(format!("{} waits in vain", name(event))),
            EventKind::GroupGaveUp(_) => Some("gave up".into()),
            EventKind::GroupRestarting(_) => Some("begins anew".into()),
            EventKind::GroupEnded(_) => Some("ended".into()),
            _ => None,
        })
        .collect()
}

/// Ready when it ignores SIGTERM; its ladder has no end.
fn deaf(way: Way) -> WorkerSpec {
    let stop = StopPolicy::kill().step([StopStep::Signal(libc::SIGTERM)], Duration::from_secs(3600));
    way.fixture("ignore-term").stop(stop).ready(Readiness::message(|_| true))
}

fn was_killed(ended: &StoppedWorker) -> bool {
    ended.exit.as_ref().is_some_and(|exit| exit.signal() == Some(libc::SIGKILL))
}

both_ways! {
    fn p09_members_start_in_order_and_stop_in_reverse(way: Way) {
        let mut story = Story::new();
        let group = group(&story, Strategy::OneForOne);
        let database = until_told(way, 0).name("database").ready(Readiness::log_line("up"));
        let database = group.add(database).unwrap();
        let cache = group.add(until_told(way, 0).name("cache").depends_on(&database, DependencyCondition::Started)).unwrap();
        let web = until_told(way, 0).name("web").depends_on(&database, DependencyCondition::Ready).depends_on(&cache, DependencyCondition::Ready);
        let web = group.add(web).unwrap();
        assert!(web.wait_ready(DEADLINE));
        group.stop();
        for worker in [&web, &cache, &database] {
            assert!(worker.wait_timeout(DEADLINE).expect("its end").success());
        }
        let events = story.rest();
        let outline = outline(&events, &[&database, &cache, &web]);
        let expected =
            ["database starts", "cache starts", "web starts", "web ends", "cache ends", "database ends", "ended"];
        assert_eq!(outline, expected);
    }

    fn p13_one_for_all_restarts_all(way: Way) {
        let mut story = Story::new();
        let group = group(&story, Strategy::OneForAll);
        let first = group.add(always(until_told(way, 0)).name("first")).unwrap();
        let second = group.add(always(until_told(way, 0)).name("second")).unwrap();
        started(&mut story, &second, 1);
        drop(first.take_stdin());
        started(&mut story, &first, 2);
        assert!(second.wait_incarnation(2, DEADLINE), "{:?}", story.told);
    }

    fn p13_rest_for_one_restarts_those_after_it(way: Way) {
        let mut story = Story::new();
        let group = group(&story, Strategy::RestForOne);
        let [first, second, third] =
            ["first", "second", "third"].map(|name| group.add(always(until_told(way, 0)).name(name)).unwrap());
        started(&mut story, &third, 1);
        drop(second.take_stdin());
        assert!(second.wait_incarnation(2, DEADLINE) && third.wait_incarnation(2, DEADLINE), "{:?}", story.told);
        assert_eq!(first.incarnation(), 1);
    }

    fn p13_a_group_that_restarts_too_often_gives_up(way: Way) {
        let mut story = Story::new();
        let policy = GroupPolicy::from(Strategy::OneForAll).intensity(1, DEADLINE);
        let group = group(&story, policy);
        let crashing = group.add(always(way.program("/bin/false")).name("crashing")).unwrap();
        let steady = group.add(always(until_told(way, 0)).name("steady")).unwrap();
        story.find(|event| matches!(event.kind, EventKind::GroupGaveUp(id) if id == group.id()).then_some(()));
        assert_eq!(crashing.wait_timeout(DEADLINE).expect("its end").code(), Some(1));
        steady.wait_timeout(DEADLINE).expect("its end");
        story.find(|event| matches!(event.kind, EventKind::GroupEnded(id) if id == group.id()).then_some(()));
        let states: Vec<_> = story.supervisor.status().workers.iter().map(|worker| worker.state).collect();
        assert_eq!(states, [WorkerState::Ended; 2]);
    }

    fn who_waits_for_one_that_fails_is_told(way: Way) {
        let mut story = Story::new();
        let group = group(&story, Strategy::OneForOne);
        let migration = group.add(way.program("/bin/false").name("migration")).unwrap();
        let web = group.add(until_told(way, 0).name("web").depends_on(&migration, DependencyCondition::Completed)).unwrap();
        let on = story.find(|event| match event.kind {
            EventKind::DependencyFailed { on } => Some((event.worker, on)),
            _ => None,
        });
        assert_eq!(on, (web.id(), migration.id()));
        let exit = web.wait_timeout(DEADLINE).expect("its end");
        assert_eq!((exit.status, web.pid(), web.incarnation()), (ExitStatus::NeverStarted, None, 0));
        assert!(story.rest().iter().all(|event| event.worker != web.id()));
    }

    fn a_significant_member_ends_its_group(way: Way) {
        let mut story = Story::new();
        let group = group(&story, GroupPolicy::default().auto_shutdown(AutoShutdown::AnySignificant));
        let steady = group.add(always(until_told(way, 0)).name("steady")).unwrap();
        let job = group.add(until_told(way, 0).name("job").significant()).unwrap();
        started(&mut story, &job, 1);
        drop(job.take_stdin());
        assert!(steady.wait_timeout(DEADLINE).expect("its end").success());
        story.find(|event| matches!(event.kind, EventKind::GroupEnded(_)).then_some(()));
    }

    fn the_last_significant_member_ends_its_group(way: Way) {
        let mut story = Story::new();
        let group = group(&story, GroupPolicy::default().auto_shutdown(AutoShutdown::AllSignificant));
        let steady = group.add(always(until_told(way, 0)).ready(Readiness::log_line("up"))).unwrap();
        let [first, last] = ["first", "last"].map(|name| {
            let spec = until_told(way, 0).name(name).significant().depends_on(&steady, DependencyCondition::Ready);
            group.add(spec.ready(Readiness::log_line("up"))).unwrap()
        });
        assert!(first.wait_ready(DEADLINE) && last.wait_ready(DEADLINE), "{:?}", story.told);
        drop(first.take_stdin());
        assert!(first.wait_timeout(DEADLINE).expect("its end").success());
        // Asked after its end was dealt with: the group goes on.
        let states: Vec<_> = story.supervisor.status().workers.iter().map(|worker| worker.state).collect();
        assert_eq!(states, [WorkerState::Running, WorkerState::Ended, WorkerState::Running]);
        drop(last.take_stdin());
        assert!(steady.wait_timeout(DEADLINE).expect("its end").success());
        story.find(|event| matches!(event.kind, EventKind::GroupEnded(id) if id == group.id()).then_some(()));
    }

    fn p13_a_member_that_gives_up_takes_its_group_along(way: Way) {
        for strategy in [Strategy::OneForAll, Strategy::OneForOne] {
            let mut story = Story::new();
            let group = group(&story, strategy);
            let steady = group.add(always(until_told(way, 0)).ready(Readiness::log_line("up"))).unwrap();
            let policy = RestartPolicy::from(Restart::Always).fatal([ExitMatch::Code(3)]);
            let fatal = group.add(until_told(way, 3).restart(policy).depends_on(&steady, DependencyCondition::Ready)).unwrap();
            started(&mut story, &fatal, 1);
            drop(fatal.take_stdin());
            let why = story.find(|event| match event.kind {
                EventKind::GaveUp(why) if event.worker == fatal.id() => Some(why),
                _ => None,
            });
            assert_eq!(why, GiveUpReason::FatalCode);
            story.find(|event| matches!(event.kind, EventKind::GroupGaveUp(id) if id == group.id()).then_some(()));
            assert!(steady.wait_timeout(DEADLINE).expect("its end").success());
            assert_eq!(group.wait_timeout(DEADLINE), Some(GroupEndReason::GaveUp), "{strategy:?}");
        }
    }

    fn a_group_within_is_restarted_as_one(way: Way) {
        let mut story = Story::new();
        let outer = group(&story, Strategy::OneForOne);
        let inner = GroupPolicy::from(Strategy::OneForAll).intensity(0, DEADLINE).restart(Restart::Always);
        let inner = outer.group(inner).unwrap();
        let first = inner.add(always(until_told(way, 3))).unwrap();
        let second = inner.add(always(until_told(way, 0))).unwrap();
        started(&mut story, &second, 1);
        drop(first.take_stdin());
        // It bears no restart, so it gives up, and the group around it starts it anew.
        story.find(|event| matches!(event.kind, EventKind::GroupGaveUp(id) if id == inner.id()).then_some(()));
        story.find(|event| matches!(event.kind, EventKind::GroupRestarting(id) if id == inner.id()).then_some(()));
        assert!(first.wait_incarnation(2, DEADLINE) && second.wait_incarnation(2, DEADLINE), "{:?}", story.told);
    }

    fn members_come_and_go_while_it_runs(way: Way) {
        let story = Story::new();
        let group = group(&story, Strategy::OneForOne);
        let first = group.add(always(until_told(way, 0))).unwrap();
        assert!(first.wait_ready(DEADLINE));
        let second = group.add(until_told(way, 0).depends_on(&first, DependencyCondition::Ready)).unwrap();
        assert!(second.wait_ready(DEADLINE));
        assert!(matches!(group.remove(&first), Err(GroupError::Rejected { .. })), "the second waits for it");
        group.remove(&second).unwrap();
        assert!(second.wait_timeout(DEADLINE).expect("its end").success());
        group.remove(&first).unwrap();
        assert!(first.wait_timeout(DEADLINE).expect("its end").success());
        assert_eq!(story.supervisor.status().workers.len(), 0);
        first.stop();
    }

    fn p08_the_end_of_a_group_takes_no_longer_than_it_may(way: Way) {
        const MEMBERS: u32 = 10;
        const LADDER: Duration = Duration::from_millis(400);
        let mut story = Story::new();
        let group = group(&story, GroupPolicy::default().stop_timeout(Duration::from_millis(500)));
        let stop = StopPolicy::kill().step([StopStep::Signal(libc::SIGTERM)], LADDER);
        let deaf = || always(way.fixture("ignore-term").stop(stop.clone()).ready(Readiness::message(|_| true)));
        let mut last = group.add(deaf()).unwrap();
        for _ in 1..MEMBERS {
            last = group.add(deaf().depends_on(&last, DependencyCondition::Ready)).unwrap();
        }
        assert!(last.wait_ready(DEADLINE), "{:?}", story.told);
        // One ladder after the other would take four seconds; what is left is killed when the time of the group is over.
        let report = group.stop().wait(DEADLINE);
        assert_eq!((report.workers.len(), report.unfinished().count()), (10, 0), "{report}");
        assert!(report.workers.iter().all(was_killed), "{report}");
        assert!(report.workers[0].took < MEMBERS * LADDER, "{report}");
        story.find(|event| matches!(event.kind, EventKind::GroupEnded(id) if id == group.id()).then_some(()));
        assert!(group.start().wait(DEADLINE), "its time begins anew with its next end");
        assert_eq!(last.incarnation(), 2);
        story.supervisor.shutdown(Duration::ZERO);
    }

    fn p16_a_report_tells_when_each_member_has_ended(way: Way) {
        let story = Story::new();
        let group = group(&story, Strategy::OneForOne);
        let stop = StopPolicy::kill().step([StopStep::Signal(libc::SIGTERM)], Duration::from_secs(1));
        let fast = group.add(way.plain("hang").restart(Restart::OnFailure)).unwrap();
        let slow = way.fixture("ignore-term").ready(Readiness::message(|_| true)).stop(stop).restart(Restart::Always);
        let slow = group.add(slow).unwrap();
        assert!(fast.wait_ready(DEADLINE) && slow.wait_ready(DEADLINE), "{:?}", story.told);
        let report = group.stop().wait(DEADLINE);
        let [first, second] = report.workers.as_slice() else { panic!("{report}") };
        assert_eq!((first.worker, second.worker), (slow.id(), fast.id()), "{report}");
        assert!(first.took > second.took + Duration::from_millis(300), "{report}");
    }

    fn p08_a_shutdown_also_ends_who_waits_for_others_to_end(way: Way) {
        let mut story = Story::new();
        let group = group(&story, Strategy::OneForOne);
        let database = group.add(deaf(way)).unwrap();
        let web = group.add(deaf(way).depends_on(&database, DependencyCondition::Ready)).unwrap();
        assert!(web.wait_ready(DEADLINE), "{:?}", story.told);
        let report = story.supervisor.shutdown(Duration::from_millis(200));
        assert!(report.workers.len() == 2 && report.workers.iter().all(was_killed), "{report}");
        story.rest();
    }

    fn p08_a_member_is_killed_when_its_stop_has_had_its_time(way: Way) {
        let story = Story::new();
        let group = group(&story, Strategy::OneForOne);
        let database = group.add(deaf(way)).unwrap();
        let web = group.add(deaf(way).depends_on(&database, DependencyCondition::Ready)).unwrap();
        assert!(web.wait_ready(DEADLINE), "{:?}", story.told);
        // It would be told only after the other has ended, which does not before its own time is over.
        let stopping = database.stop_timeout(Duration::from_millis(100));
        assert!(stopping.wait(DEADLINE).workers.iter().all(was_killed), "{:?}", story.told);
        let report = web.stop_timeout(Duration::from_millis(100)).wait(DEADLINE);
        assert!(report.workers.iter().all(was_killed), "{report}");
    }

    fn p06_a_member_that_opens_a_fifo_holds_up_nobody(way: Way) {
        let directory = tempfile::tempdir().unwrap();
        let [unwritten, unread] = ["unwritten", "unread"].map(|name| directory.path().join(name));
        assert_eq!((kernel::make_fifo(&unwritten), kernel::make_fifo(&unread)), (0, 0));
        let mut story = Story::new();
        let group = group(&story, Strategy::OneForOne);
        let reading = group.add(way.program("/bin/cat").stdin(StdinMode::File(unwritten))).unwrap();
        let mut batch = group.batch();
        let writing = batch.add(way.plain("exit").stdout(OutputMode::File(unread))).unwrap();
        batch.start().unwrap();
        let other = group.add(until_told(way, 0)).unwrap();
        assert!(other.wait_incarnation(1, DEADLINE), "{:?}", story.told);
        assert!(reading.wait_timeout(DEADLINE).expect("its end").success(), "nobody writes");
        let error = story.find(|event| match event.kind {
            EventKind::SpawnFailed(error) if event.worker == writing.id() => Some(error),
            _ => None,
        });
        assert_eq!(error.io_error().and_then(std::io::Error::raw_os_error), Some(libc::ENXIO), "nobody reads");
        let (ended, end) = mpsc::channel();
        thread::spawn(move || {
            drop(story);
            ended.send(())
        });
        assert_eq!(end.recv_timeout(DEADLINE), Ok(()), "drop");
    }

    fn a_group_begins_anew_and_is_waited_for(way: Way) {
        let story = Story::new();
        let group = group(&story, Strategy::OneForOne);
        let [first, second] =
            ["first", "second"].map(|name| group.add(always(until_told(way, 0)).name(name).ready(Readiness::log_line("up"))).unwrap());
        assert!(first.wait_ready(DEADLINE) && second.wait_ready(DEADLINE));
        assert!(group.restart().wait(DEADLINE), "{:?}", story.supervisor.status());
        assert_eq!((first.incarnation(), second.incarnation()), (2, 2));
        let report = group.stop().wait(DEADLINE);
        assert!(report.workers.iter().all(|ended| ended.exit.as_ref().is_some_and(|exit| exit.success())), "{report}");
        assert!(group.stop().wait(DEADLINE).workers.is_empty(), "nobody is left to end");
    }

    fn everybody_is_stopped_and_others_come_later(way: Way) {
        let story = Story::new();
        let first = group(&story, Strategy::OneForOne);
        let steady = first.add(always(until_told(way, 0))).unwrap();
        let alone = story.supervisor.spawn(until_told(way, 0)).unwrap();
        assert!(steady.wait_incarnation(1, DEADLINE));
        let report = story.supervisor.stop_all().wait(DEADLINE);
        assert_eq!((report.workers.len(), report.unfinished().count()), (2, 0), "{report}");
        assert!(alone.wait_timeout(DEADLINE).is_some());
        let later = group(&story, Strategy::OneForOne).add(always(until_told(way, 0))).unwrap();
        assert!(later.wait_incarnation(1, DEADLINE), "{:?}", story.supervisor.status());
        assert!(first.start().wait(DEADLINE) && steady.incarnation() == 2);
    }

    fn a_group_is_removed_with_all_in_it(way: Way) {
        let mut story = Story::new();
        let outer = group(&story, Strategy::OneForAll);
        let inner = outer.group(Strategy::OneForOne).unwrap();
        let steady = inner.add(always(until_told(way, 0))).unwrap();
        let needing = outer.add(always(until_told(way, 0)).depends_on(&steady, DependencyCondition::Started)).unwrap();
        assert!(needing.wait_incarnation(1, DEADLINE));
        assert!(matches!(inner.remove_all(), Err(GroupError::Rejected { .. })), "one outside waits for one of it");
        outer.remove(&needing).unwrap();
        needing.wait_timeout(DEADLINE).expect("its end");
        let report = inner.remove_all().unwrap().wait(DEADLINE);
        assert!(report.workers.len() == 1 && report.unfinished().count() == 0, "{report}");
        story.find(|event| matches!(event.kind, EventKind::GroupEnded(id) if id == inner.id()).then_some(()));
        assert!(matches!(inner.add(until_told(way, 0)), Err(GroupError::Rejected { .. })), "it is not there any more");
        assert!(inner.start().wait(DEADLINE) && !steady.restart().wait(DEADLINE));
        let states: Vec<_> = story.supervisor.status().workers.iter().map(|worker| worker.state).collect();
        assert_eq!(states, [], "nobody is kept");
        assert!(outer.add(always(until_told(way, 0))).unwrap().wait_incarnation(1, DEADLINE), "the rest goes on");
    }

    fn p01_a_group_that_the_outer_one_restarts_has_not_ended(way: Way) {
        let mut story = Story::new();
        let outer = group(&story, Strategy::OneForAll);
        let inner = outer.group(GroupPolicy::default()).unwrap();
        let first = outer.add(always(until_told(way, 0)).name("first")).unwrap();
        let within = inner.add(always(until_told(way, 0)).name("within")).unwrap();
        // It holds the restart up until it is killed.
        let slow = outer.add(deaf(way).restart(Restart::Always).name("slow")).unwrap();
        assert!(slow.wait_ready(DEADLINE), "{:?}", story.told);
        let restarting = outer.restart();
        story.find(|event| (event.worker == within.id() && matches!(event.kind, EventKind::Exited(_))).then_some(()));
        // Asked after that end was dealt with.
        let state = inner.status().expect("it is there");
        assert_eq!((state.state, state.members[0].state), (GroupState::Waiting, WorkerState::Waiting));
        assert_eq!(outer.status().expect("it is there").state, GroupState::Stopping);
        assert!(within.wait_timeout(Duration::ZERO).is_none() && inner.wait_timeout(Duration::ZERO).is_none());
        slow.kill().unwrap();
        assert!(restarting.wait(DEADLINE), "{:?}", story.told);
        assert_eq!((first.incarnation(), within.incarnation(), slow.incarnation()), (2, 2, 2));
        let restarted = story.find(|event| match event.kind {
            EventKind::GroupRestarting(id) => Some(id),
            EventKind::GroupEnded(_) => panic!("{event:?}"),
            _ => None,
        });
        assert_eq!(restarted, outer.id());
        slow.kill().unwrap();
        drop(first.take_stdin());
        assert!(within.wait_incarnation(3, DEADLINE), "{:?}", story.told);
    }

    fn p13_a_group_restarted_by_the_outer_one_begins_with_a_fresh_history(way: Way) {
        let mut story = Story::new();
        let outer = group(&story, GroupPolicy::default().intensity(2, DEADLINE));
        let inner = outer.group(GroupPolicy::from(Strategy::OneForAll).intensity(1, DEADLINE)).unwrap();
        let pause = Backoff::constant(Duration::from_millis(20));
        let spec = way.program("/bin/false").restart(RestartPolicy::from(Restart::Always).backoff(pause));
        let crashing = inner.add(spec).unwrap();
        let (mut starts, mut pauses, mut gave_up) = (0, 0, 0);
        let end = story.find(|event| {
            match event.kind {
                EventKind::Started { .. } => starts += 1,
                EventKind::Restarting { after } => pauses += u32::from(!after.is_zero()),
                EventKind::GroupGaveUp(_) => gave_up += 1,
                EventKind::GaveUp(_) => panic!("no fatal end and no intensity of its own: {event:?}"),
                EventKind::GroupEnded(id) if id == outer.id() => return Some(outer.wait()),
                _ => {}
            }
            None
        });
        // Three lives of the inner group, each with two starts; all but the first start wait.
        assert_eq!((end, starts, pauses, gave_up), (GroupEndReason::GaveUp, 6, 5, 4), "{:?}", story.told);
        assert_eq!(inner.wait_timeout(DEADLINE), Some(GroupEndReason::WithParent));
        // A caller begins anew: there is room for one restart again.
        assert!(outer.start().wait(DEADLINE));
        assert!(crashing.wait_incarnation(8, DEADLINE), "{:?}", story.told);
    }

    fn p13_restarts_keep_the_order_of_declaration(way: Way) {
        for strategy in [Strategy::OneForAll, Strategy::RestForOne] {
            let mut story = Story::new();
            let group = group(&story, strategy);
            let slowly = RestartPolicy::from(Restart::Always).backoff(Backoff::constant(Duration::from_millis(100)));
            let database = group.add(until_told(way, 0).restart(slowly).name("database")).unwrap();
            let web = group.add(always(until_told(way, 0)).name("web")).unwrap();
            started(&mut story, &web, 1);
            drop(database.take_stdin());
            let mut again = Vec::new();
            story.find(|event| {
                if event.incarnation == 2 && matches!(event.kind, EventKind::Started { .. }) {
                    again.push(event.worker);
                }
                (again.len() == 2).then_some(())
            });
            assert_eq!(again, [database.id(), web.id()], "{strategy:?}");
        }
    }

    fn p16_an_inner_group_is_restarted_by_default(way: Way) {
        let mut story = Story::new();
        let outer = group(&story, Strategy::OneForAll);
        let inner = outer.group(Strategy::OneForOne).unwrap();
        let first = outer.add(always(until_told(way, 0))).unwrap();
        let within = inner.add(always(until_told(way, 0))).unwrap();
        started(&mut story, &within, 1);
        drop(first.take_stdin());
        assert!(within.wait_incarnation(2, DEADLINE), "{:?}", story.told);
        // One that is never restarted does not come back with its siblings, and that is final.
        let once = outer.group(GroupPolicy::default().restart(Restart::Never)).unwrap();
        let within_once = once.add(always(until_told(way, 0))).unwrap();
        started(&mut story, &within_once, 1);
        drop(first.take_stdin());
        assert_eq!(once.wait_timeout(DEADLINE), Some(GroupEndReason::WithParent));
        assert!(within.wait_incarnation(3, DEADLINE) && within_once.wait_timeout(DEADLINE).is_some());
    }

    fn p16_any_end_of_a_significant_member_ends_its_group(way: Way) {
        let mut story = Story::new();
        let group = group(&story, GroupPolicy::default().auto_shutdown(AutoShutdown::AllSignificant));
        let steady = group.add(always(until_told(way, 0))).unwrap();
        let migration = group.add(until_told(way, 1)).unwrap();
        let fatal = RestartPolicy::from(Restart::Never).fatal([ExitMatch::Code(3)]);
        let gives_up = group.add(until_told(way, 3).restart(fatal).significant()).unwrap();
        let needs = group.add(until_told(way, 0).depends_on(&migration, DependencyCondition::Completed).significant()).unwrap();
        started(&mut story, &gives_up, 1);
        drop(gives_up.take_stdin());
        assert!(gives_up.wait_timeout(DEADLINE).is_some());
        assert_eq!(group.status().expect("it is there").state, GroupState::Running);
        drop(migration.take_stdin());
        assert_eq!(group.wait_timeout(DEADLINE), Some(GroupEndReason::ShutDown), "{:?}", story.told);
        assert!(steady.wait_timeout(DEADLINE).is_some() && needs.wait_timeout(DEADLINE).is_some());
    }

    fn p16_a_worker_of_another_group_is_refused(way: Way) {
        let story = Story::new();
        let (outer, other) = (group(&story, Strategy::OneForOne), group(&story, Strategy::OneForOne));
        let inner = outer.group(Strategy::OneForOne).unwrap();
        let worker = inner.add(always(until_told(way, 0))).unwrap();
        let stranger = Story::new();
        let strange = group(&stranger, Strategy::OneForOne).add(always(until_told(way, 0))).unwrap();
        let alone = story.supervisor.spawn(until_told(way, 0)).unwrap();
        for refused in [other.remove(&worker), other.start_member(&worker).map(drop)] {
            let is_it = matches!(&refused, Err(GroupError::NotAMember { worker: id, group })
                if (*id, *group) == (worker.id(), other.id()));
            assert!(is_it, "{refused:?}");
        }
        for unknown in [&strange, &alone] {
            assert!(matches!(outer.remove(unknown), Err(GroupError::Rejected { .. })));
            let after = outer.add(until_told(way, 0).depends_on(unknown, DependencyCondition::Started));
            assert!(matches!(after, Err(GroupError::Rejected { .. })), "{after:?}");
        }
        assert!(worker.wait_timeout(Duration::ZERO).is_none() && strange.wait_timeout(Duration::ZERO).is_none());
        outer.remove(&worker).unwrap();
        assert!(worker.wait_timeout(DEADLINE).expect("its end").success());
    }

    fn p13_a_member_that_cannot_start_is_refused_and_its_siblings_go_on(way: Way) {
        for strategy in [Strategy::OneForOne, Strategy::OneForAll, Strategy::RestForOne] {
            let mut story = Story::new();
            let group = group(&story, strategy);
            let steady = group.add(always(until_told(way, 0))).unwrap();
            let error = group.add(way.program("/nonexistent/program").restart(Restart::Always)).unwrap_err();
            assert!(matches!(&error, GroupError::SpawnFailed(error) if error.is_permanent()), "{error:?}");
            assert!(error.to_string().contains("/nonexistent/program"), "{error}");
            let status = group.status().expect("it is there");
            assert_eq!((status.state, status.members.len(), status.restarts), (GroupState::Running, 1, 0));
            assert!(group.add(until_told(way, 0)).unwrap().wait_ready(DEADLINE), "{:?}", story.told);
            assert_eq!((steady.incarnation(), steady.wait_timeout(Duration::ZERO).is_none()), (1, true));
            group.stop();
            let outline = outline(&story.rest(), &[]);
            assert_eq!(outline.last().map(String::as_str), Some("ended"), "no other event of it: {outline:?}");
        }
    }

    fn p01_a_member_gives_up_only_for_good(way: Way) {
        let mut story = Story::new();
        let outer = group(&story, GroupPolicy::default().intensity(1, DEADLINE));
        let inner = outer.group(Strategy::OneForAll).unwrap();
        let fatal = RestartPolicy::from(Restart::Always).fatal([ExitMatch::Code(3)]);
        let worker = inner.add(until_told(way, 3).restart(fatal.backoff(Backoff::constant(Duration::ZERO)))).unwrap();
        let mut told = Vec::new();
        for incarnation in 1..=2 {
            started(&mut story, &worker, incarnation);
            drop(worker.take_stdin());
            story.find(|event| {
                assert!(!matches!(event.kind, EventKind::GaveUp(_)) || incarnation == 2, "{event:?}");
                match event.kind {
                    EventKind::GaveUp(why) => told.push(why),
                    EventKind::GroupRestarting(id) if id == inner.id() => return Some(()),
                    EventKind::GroupEnded(id) if id == outer.id() => return Some(()),
                    _ => {}
                }
                None
            });
        }
        assert_eq!(told, [GiveUpReason::FatalCode], "before the end of its group, once: {:?}", story.told);
        assert!(worker.wait_timeout(DEADLINE).is_some());
    }

    fn p01_the_end_of_a_group_is_reported_once(way: Way) {
        let mut story = Story::new();
        let outer = group(&story, Strategy::OneForOne);
        let inner = outer.group(Strategy::OneForOne).unwrap();
        let worker = inner.add(always(until_told(way, 0))).unwrap();
        assert!(worker.wait_ready(DEADLINE));
        for group in [&inner, &inner, &outer, &outer] {
            group.stop().wait(DEADLINE);
            assert_eq!(group.wait_timeout(DEADLINE), Some(GroupEndReason::Stopped));
        }
        story.supervisor.stop_all();
        let ends: Vec<_> = story.rest().into_iter().filter_map(|event| match event.kind {
            EventKind::GroupEnded(id) => Some(id),
            _ => None,
        }).collect();
        assert_eq!(ends, [inner.id(), outer.id()]);
    }

    fn p16_a_single_member_is_started(way: Way) {
        let mut story = Story::new();
        let group = group(&story, Strategy::OneForAll);
        let job = group.add(until_told(way, 0).name("job")).unwrap();
        let steady = group.add(always(until_told(way, 0)).ready(Readiness::log_line("up"))).unwrap();
        assert!(steady.wait_ready(DEADLINE));
        assert!(group.start_member(&steady).unwrap().wait(Duration::ZERO), "it runs already");
        steady.stop().wait(DEADLINE);
        drop(job.take_stdin());
        assert!(job.wait_timeout(DEADLINE).is_some(), "{:?}", story.told);
        for worker in [&steady, &job] {
            assert!(group.start_member(worker).unwrap().wait(DEADLINE), "{:?}", story.told);
        }
        assert_eq!((steady.incarnation(), job.incarnation()), (2, 2));
        group.stop().wait(DEADLINE);
        assert!(matches!(group.start_member(&steady), Err(GroupError::Rejected { .. })), "the group has ended");
        let ended = |event: Event| matches!(event.kind, EventKind::GroupEnded(_)).then_some(());
        story.find(ended);
    }

    fn p16_a_batch_is_declared_before_any_of_it_starts(way: Way) {
        let story = Story::new();
        let group = group(&story, Strategy::RestForOne);
        let mut batch = group.batch();
        let database = batch.add(until_told(way, 0).name("database").ready(Readiness::log_line("up"))).unwrap();
        let web = batch.add(until_told(way, 0).name("web").depends_on(&database, DependencyCondition::Ready)).unwrap();
        assert_eq!(group.status().expect("it is there").members.len(), 0);
        assert!(batch.start().unwrap().wait(DEADLINE), "{:?}", story.told);
        assert_eq!((database.incarnation(), web.incarnation()), (1, 1));
        let names: Vec<_> = group.status().expect("it is there").members.into_iter().map(|member| member.name).collect();
        assert_eq!(names, ["database".into(), "web".into()]);
        // All of it or nothing, and what is not declared has ended without a start.
        let mut refused = group.batch();
        let good = refused.add(until_told(way, 0).depends_on(&web, DependencyCondition::Started)).unwrap();
        refused.add(until_told(way, 0).significant().depends_on(&good, DependencyCondition::Started)).unwrap();
        assert!(matches!(refused.start(), Err(GroupError::Rejected { .. })));
        let mut dropped = group.batch();
        let never = dropped.add(until_told(way, 0)).unwrap();
        drop(dropped);
        for worker in [good, never] {
            assert_eq!(worker.wait_timeout(DEADLINE).expect("its end").status, ExitStatus::NeverStarted);
        }
        assert_eq!(group.status().expect("it is there").members.len(), 2);
        group.remove_all().unwrap().wait(DEADLINE);
        assert_eq!(group.wait_timeout(DEADLINE), Some(GroupEndReason::Removed));
        assert!(group.status().is_none());
        drop(story);
    }

    fn p13_restarts_of_all_members_count_together(way: Way) {
        let mut story = Story::new();
        let group = group(&story, GroupPolicy::default().intensity(2, DEADLINE));
        let workers = [0; 3].map(|_| group.add(always(until_told(way, 0))).unwrap());
        for worker in &workers {
            assert!(worker.wait_incarnation(1, DEADLINE));
            drop(worker.take_stdin());
            story.find(|event| (event.worker == worker.id() && matches!(event.kind, EventKind::Exited(_))).then_some(()));
        }
        assert_eq!(group.wait_timeout(DEADLINE), Some(GroupEndReason::GaveUp), "{:?}", story.told);
    }

    fn p09_a_dropped_supervisor_ends_its_groups(way: Way) {
        let story = Story::new();
        let group = group(&story, Strategy::OneForAll);
        let first = group.add(always(until_told(way, 0))).unwrap();
        let second = group.add(always(until_told(way, 0)).depends_on(&first, DependencyCondition::Ready)).unwrap();
        assert!(second.wait_ready(DEADLINE));
        drop(story);
        for worker in [first, second] {
            worker.wait_timeout(Duration::ZERO).expect("its end");
            assert!(!crate::support::is_alive(worker.pid().unwrap()));
        }
        assert!(matches!(group.add(WorkerSpec::new("true")), Err(GroupError::SupervisorGone)));
    }

    fn p08_a_shutdown_ends_groups_in_time(way: Way) {
        let mut story = Story::new();
        let group = group(&story, Strategy::OneForOne);
        let first = group.add(until_told(way, 0).name("first")).unwrap();
        let stubborn = way.fixture("ignore-term").name("stubborn").depends_on(&first, DependencyCondition::Ready);
        let stubborn = group.add(stubborn).unwrap();
        story.message();
        let report = story.supervisor.shutdown(Duration::from_millis(300));
        assert_eq!(report.unfinished().count(), 0, "{report}");
        assert_eq!(stubborn.wait().signal(), Some(libc::SIGKILL), "{report}");
        let events = story.rest();
        let outline = outline(&events, &[&first, &stubborn]);
        // In no order any more: the time is over for both.
        assert_eq!(outline.iter().filter(|line| line.ends_with(" ends")).count(), 2, "{outline:?}");
        assert_eq!(outline.last().map(String::as_str), Some("ended"), "{outline:?}");
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    let supervisor = Supervisor::new().unwrap();
    let group = supervisor.group(GroupPolicy::default()).unwrap();
    let refused = |spec: WorkerSpec| match group.add(spec) {
        Err(GroupError::Rejected { reason }) => reason,
        other => panic!("{other:?}"),
    };
    let hanging = || WorkerSpec::new("sleep").arg("1000");
    let first = group.add(hanging().restart(Restart::Always)).unwrap();
    assert!(refused(hanging().significant()).contains("automatic shutdown"));
    let forced = [
        RestartPolicy::from(Restart::Never).force_restart([ExitMatch::Code(3)]),
        RestartPolicy::from(Restart::Never).force_restart([ExitMatch::Signal(libc::SIGHUP)]),
    ];
    for policy in forced {
        assert!(refused(hanging().restart(policy)).contains("Restart::Never"));
    }
    group.add(hanging().restart(RestartPolicy::from(Restart::OnFailure).force_restart([ExitMatch::Code(3)]))).unwrap();
    assert!(refused(hanging().depends_on(&first, DependencyCondition::Completed)).contains("never ends"));
    let alone = supervisor.spawn(hanging()).unwrap();
    assert!(refused(hanging().depends_on(&alone, DependencyCondition::Ready)).contains("is not a member of a group"));
    assert!(supervisor.spawn(hanging().depends_on(&first, DependencyCondition::Ready)).is_err(), "only in a group");
    assert!(supervisor.group(GroupPolicy::default().significant()).is_err());
    for policy in [GroupPolicy::default().restart(Restart::Always), GroupPolicy::default().intensity(3, Duration::ZERO)]
    {
        assert!(matches!(supervisor.group(policy), Err(GroupError::Rejected { .. })), "{policy:?}");
    }
}

#[test]
fn p13_an_intensity_that_a_backoff_never_reaches_is_refused() {
    let supervisor = Supervisor::new().unwrap();
    let slow = RestartPolicy::from(Restart::Always).backoff(Backoff::constant(Duration::from_secs(10)));
    let add = |policy: GroupPolicy| {
        supervisor.group(policy).unwrap().add(WorkerSpec::new("sleep").arg("1000").restart(slow.clone()))
    };
    match add(GroupPolicy::default()) {
        Err(GroupError::Spec(SpecError::Conflict { settings, reason })) => {
            assert_eq!(settings, ["intensity", "backoff"]);
            assert!(reason.contains("50s") && reason.contains("30s"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    add(GroupPolicy::default().intensity(5, Duration::from_secs(60))).unwrap();
    add(GroupPolicy::default().unlimited_restarts()).unwrap();
}

#[test]
fn a_ladder_longer_than_its_group_has_is_refused() {
    let supervisor = Supervisor::new().unwrap();
    let short = GroupPolicy::default().stop_timeout(Duration::from_secs(1));
    let group = supervisor.group(short).unwrap();
    let within = group.group(GroupPolicy::default()).unwrap();
    let ladder = StopPolicy::kill().step([StopStep::ClosePipes], Duration::from_secs(2));
    for group in [&group, &within] {
        match group.add(WorkerSpec::new("true").stop(ladder.clone())) {
            Err(GroupError::Spec(SpecError::Conflict { settings, reason })) => {
                assert_eq!(settings, ["stop", "stop_timeout"]);
                assert!(reason.contains("2s") && reason.contains("1s"), "{reason}");
            }
            other => panic!("{other:?}"),
        }
    }
    match within.group(GroupPolicy::default().stop_timeout(Duration::from_secs(3))) {
        Err(GroupError::Rejected { reason }) => assert!(reason.contains("3s") && reason.contains("1s"), "{reason}"),
        other => panic!("{other:?}"),
    }
    group.add(WorkerSpec::new("true").stop(StopPolicy::kill())).unwrap();
}

#[test]
fn p16_who_waits_for_a_worker_outside_of_groups_is_told_so() {
    let supervisor = Supervisor::new().unwrap();
    let group = supervisor.group(GroupPolicy::default()).unwrap();
    let outside = supervisor.spawn(WorkerSpec::new("true")).unwrap();
    let error =
        group.add(WorkerSpec::new("true").depends_on(&outside, DependencyCondition::Started)).map(drop).unwrap_err();
    assert!(error.to_string().contains("is not a member of a group"), "{error}");
}
