//! Groups of workers: start and stop order, restart strategies, and failures.

mod refused;

use crate::{
    kernel,
    support::{DEADLINE, Story, Way, both_ways},
};
use pipewright::{
    AutoShutdown, Backoff, DependencyCondition, Event, EventKind, ExitMatch, ExitStatus, GroupError, GroupPolicy,
    OutputMode, Readiness, Restart, RestartPolicy, StdinMode, StopPolicy, StopStep, StoppedWorker, Strategy, Worker,
    WorkerGroup, WorkerSpec,
    events::{AfterExit, GiveUpReason},
    status::{GroupEndReason, GroupState, WorkerState},
};
use std::{sync::mpsc, thread, time::Duration};

/// Runs until end of file on its input, then exits with `code`.
fn until_eof(way: Way, code: i32) -> WorkerSpec {
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

/// Starts and exits in order, by the names of the workers.
fn outline(events: &[Event], workers: &[&Worker]) -> Vec<String> {
    let name =
        |event: &Event| workers.iter().find(|worker| worker.id() == event.worker).map_or("?", |worker| worker.name());
    events
        .iter()
        .filter_map(|event| match &event.kind {
            EventKind::Started { .. } => Some(format!("{} starts", name(event))),
            EventKind::Exited { .. } => Some(format!("{} ends", name(event))),
            EventKind::DependencyFailed { .. } => Some(format!("{} dependency failed", name(event))),
            EventKind::GroupGaveUp(_) => Some("gave up".into()),
            EventKind::GroupRestarting(_) => Some("restarting".into()),
            EventKind::GroupEnded(_) => Some("ended".into()),
            _ => None,
        })
        .collect()
}

/// Ready once it ignores SIGTERM. Its grace period never ends.
fn ignores_sigterm(way: Way) -> WorkerSpec {
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
        let database = until_eof(way, 0).name("database").ready(Readiness::log_line("up"));
        let database = group.add(database).unwrap();
        let cache = group.add(until_eof(way, 0).name("cache").depends_on(&database, DependencyCondition::Started)).unwrap();
        let web = until_eof(way, 0).name("web").depends_on(&database, DependencyCondition::Ready).depends_on(&cache, DependencyCondition::Ready);
        let web = group.add(web).unwrap();
        assert!(web.wait_ready(DEADLINE).is_ok());
        group.stop();
        for worker in [&web, &cache, &database] {
            assert!(worker.wait_timeout(DEADLINE).expect("an exit").success());
        }
        let events = story.rest();
        let outline = outline(&events, &[&database, &cache, &web]);
        let expected =
            ["database starts", "cache starts", "web starts", "web ends", "cache ends", "database ends", "ended"];
        assert_eq!(outline, expected);
    }

    fn p13_one_for_all_restarts_all_members(way: Way) {
        let mut story = Story::new();
        let group = group(&story, Strategy::OneForAll);
        let first = group.add(always(until_eof(way, 0)).name("first")).unwrap();
        let second = group.add(always(until_eof(way, 0)).name("second")).unwrap();
        started(&mut story, &second, 1);
        drop(first.take_stdin());
        started(&mut story, &first, 2);
        assert!(second.wait_incarnation(2, DEADLINE).is_ok(), "{:?}", story.told);
    }

    fn p13_rest_for_one_restarts_later_members(way: Way) {
        let mut story = Story::new();
        let group = group(&story, Strategy::RestForOne);
        let [first, second, third] =
            ["first", "second", "third"].map(|name| group.add(always(until_eof(way, 0)).name(name)).unwrap());
        started(&mut story, &third, 1);
        drop(second.take_stdin());
        assert!(second.wait_incarnation(2, DEADLINE).is_ok() && third.wait_incarnation(2, DEADLINE).is_ok(), "{:?}", story.told);
        assert_eq!(first.incarnation(), 1);
    }

    fn p13_group_gives_up_after_too_many_restarts(way: Way) {
        let mut story = Story::new();
        let policy = GroupPolicy::from(Strategy::OneForAll).intensity(1, DEADLINE);
        let group = group(&story, policy);
        let crashing = group.add(always(way.program("/bin/false")).name("crashing")).unwrap();
        let steady = group.add(always(until_eof(way, 0)).name("steady")).unwrap();
        story.find(|event| matches!(event.kind, EventKind::GroupGaveUp(id) if id == group.id()).then_some(()));
        assert_eq!(crashing.wait_timeout(DEADLINE).expect("an exit").code(), Some(1));
        steady.wait_timeout(DEADLINE).expect("an exit");
        story.find(|event| matches!(event.kind, EventKind::GroupEnded(id) if id == group.id()).then_some(()));
        let states: Vec<_> = story.supervisor.status().workers.iter().map(|worker| worker.state).collect();
        assert_eq!(states, [WorkerState::Ended; 2]);
    }

    fn failed_dependency_is_reported(way: Way) {
        let mut story = Story::new();
        let group = group(&story, Strategy::OneForOne);
        let migration = group.add(way.program("/bin/false").name("migration")).unwrap();
        let web = group.add(until_eof(way, 0).name("web").depends_on(&migration, DependencyCondition::Completed)).unwrap();
        let on = story.find(|event| match event.kind {
            EventKind::DependencyFailed { on } => Some((event.worker, on)),
            _ => None,
        });
        assert_eq!(on, (web.id(), migration.id()));
        let exit = web.wait_timeout(DEADLINE).expect("an exit");
        assert_eq!((exit.status, web.pid(), web.incarnation()), (ExitStatus::NeverStarted, None, 0));
        assert!(story.rest().iter().all(|event| event.worker != web.id()));
    }

    fn significant_member_ends_its_group(way: Way) {
        let mut story = Story::new();
        let group = group(&story, GroupPolicy::default().auto_shutdown(AutoShutdown::AnySignificant));
        let steady = group.add(always(until_eof(way, 0)).name("steady")).unwrap();
        let job = group.add(until_eof(way, 0).name("job").significant()).unwrap();
        started(&mut story, &job, 1);
        drop(job.take_stdin());
        assert!(steady.wait_timeout(DEADLINE).expect("an exit").success());
        story.find(|event| matches!(event.kind, EventKind::GroupEnded(_)).then_some(()));
    }

    fn last_significant_member_ends_its_group(way: Way) {
        let mut story = Story::new();
        let group = group(&story, GroupPolicy::default().auto_shutdown(AutoShutdown::AllSignificant));
        let steady = group.add(always(until_eof(way, 0)).ready(Readiness::log_line("up"))).unwrap();
        let [first, last] = ["first", "last"].map(|name| {
            let spec = until_eof(way, 0).name(name).significant().depends_on(&steady, DependencyCondition::Ready);
            group.add(spec.ready(Readiness::log_line("up"))).unwrap()
        });
        assert!(first.wait_ready(DEADLINE).is_ok() && last.wait_ready(DEADLINE).is_ok(), "{:?}", story.told);
        drop(first.take_stdin());
        assert!(first.wait_timeout(DEADLINE).expect("an exit").success());
        // Answered after the exit was handled: the group keeps running.
        let states: Vec<_> = story.supervisor.status().workers.iter().map(|worker| worker.state).collect();
        assert_eq!(states, [WorkerState::Running, WorkerState::Ended, WorkerState::Running]);
        drop(last.take_stdin());
        assert!(steady.wait_timeout(DEADLINE).expect("an exit").success());
        story.find(|event| matches!(event.kind, EventKind::GroupEnded(id) if id == group.id()).then_some(()));
    }

    fn p13_member_that_gives_up_ends_its_group(way: Way) {
        for strategy in [Strategy::OneForAll, Strategy::OneForOne] {
            let mut story = Story::new();
            let group = group(&story, strategy);
            let steady = group.add(always(until_eof(way, 0)).ready(Readiness::log_line("up"))).unwrap();
            let policy = RestartPolicy::from(Restart::Always).fatal([ExitMatch::Code(3)]);
            let fatal = group.add(until_eof(way, 3).restart(policy).depends_on(&steady, DependencyCondition::Ready)).unwrap();
            started(&mut story, &fatal, 1);
            drop(fatal.take_stdin());
            let why = story.find(|event| match event.kind {
                EventKind::Exited { next: AfterExit::GaveUp(why), .. } if event.worker == fatal.id() => Some(why),
                _ => None,
            });
            assert_eq!(why, GiveUpReason::FatalCode);
            story.find(|event| matches!(event.kind, EventKind::GroupGaveUp(id) if id == group.id()).then_some(()));
            assert!(steady.wait_timeout(DEADLINE).expect("an exit").success());
            assert_eq!(group.wait_timeout(DEADLINE), Some(GroupEndReason::GaveUp), "{strategy:?}");
        }
    }

    fn inner_group_is_restarted_as_a_unit(way: Way) {
        let mut story = Story::new();
        let outer = group(&story, Strategy::OneForOne);
        let inner = GroupPolicy::from(Strategy::OneForAll).intensity(0, DEADLINE).restart(Restart::Always);
        let inner = outer.group(inner).unwrap();
        let first = inner.add(always(until_eof(way, 3))).unwrap();
        let second = inner.add(always(until_eof(way, 0))).unwrap();
        started(&mut story, &second, 1);
        drop(first.take_stdin());
        // It allows no restart, so it gives up, and the outer group restarts it.
        story.find(|event| matches!(event.kind, EventKind::GroupGaveUp(id) if id == inner.id()).then_some(()));
        story.find(|event| matches!(event.kind, EventKind::GroupRestarting(id) if id == inner.id()).then_some(()));
        assert!(first.wait_incarnation(2, DEADLINE).is_ok() && second.wait_incarnation(2, DEADLINE).is_ok(), "{:?}", story.told);
    }

    fn members_are_added_and_removed_while_the_group_runs(way: Way) {
        let story = Story::new();
        let group = group(&story, Strategy::OneForOne);
        let first = group.add(always(until_eof(way, 0))).unwrap();
        assert!(first.wait_ready(DEADLINE).is_ok());
        let second = group.add(until_eof(way, 0).depends_on(&first, DependencyCondition::Ready)).unwrap();
        assert!(second.wait_ready(DEADLINE).is_ok());
        assert!(matches!(group.remove(&first), Err(GroupError::Rejected { .. })), "the second depends on it");
        group.remove(&second).unwrap();
        assert!(second.wait_timeout(DEADLINE).expect("an exit").success());
        group.remove(&first).unwrap();
        assert!(first.wait_timeout(DEADLINE).expect("an exit").success());
        assert_eq!(story.supervisor.status().workers.len(), 0);
        first.stop();
    }

    fn p08_group_stop_ends_within_its_timeout(way: Way) {
        const MEMBERS: u32 = 10;
        const GRACE_PERIOD: Duration = Duration::from_millis(400);
        let mut story = Story::new();
        let group = group(&story, GroupPolicy::default().stop_timeout(Duration::from_millis(500)));
        let stop = StopPolicy::kill().step([StopStep::Signal(libc::SIGTERM)], GRACE_PERIOD);
        let deaf = || always(way.fixture("ignore-term").stop(stop.clone()).ready(Readiness::message(|_| true)));
        let mut last = group.add(deaf()).unwrap();
        for _ in 1..MEMBERS {
            last = group.add(deaf().depends_on(&last, DependencyCondition::Ready)).unwrap();
        }
        assert!(last.wait_ready(DEADLINE).is_ok(), "{:?}", story.told);
        // One stop policy after the other would take four seconds; members that are left at the timeout of the group are killed.
        let report = group.stop().wait(DEADLINE);
        assert_eq!((report.workers.len(), report.unfinished().count()), (10, 0), "{report}");
        assert!(report.workers.iter().all(was_killed), "{report}");
        assert!(report.workers[0].took < MEMBERS * GRACE_PERIOD, "{report}");
        story.find(|event| matches!(event.kind, EventKind::GroupEnded(id) if id == group.id()).then_some(()));
        assert!(group.start().wait(DEADLINE).is_ok(), "the timeout counts from the next stop");
        assert_eq!(last.incarnation(), 2);
        story.supervisor.shutdown(Duration::ZERO);
    }

    fn p16_stop_report_has_the_exit_time_of_each_member(way: Way) {
        let story = Story::new();
        let group = group(&story, Strategy::OneForOne);
        let stop = StopPolicy::kill().step([StopStep::Signal(libc::SIGTERM)], Duration::from_secs(1));
        let fast = group.add(way.plain("hang").restart(Restart::OnFailure)).unwrap();
        let slow = way.fixture("ignore-term").ready(Readiness::message(|_| true)).stop(stop).restart(Restart::Always);
        let slow = group.add(slow).unwrap();
        assert!(fast.wait_ready(DEADLINE).is_ok() && slow.wait_ready(DEADLINE).is_ok(), "{:?}", story.told);
        let report = group.stop().wait(DEADLINE);
        let [first, second] = report.workers.as_slice() else { panic!("{report}") };
        assert_eq!((first.worker, second.worker), (slow.id(), fast.id()), "{report}");
        assert!(first.took > second.took + Duration::from_millis(300), "{report}");
    }

    fn p08_shutdown_ends_members_that_wait_for_dependents(way: Way) {
        let mut story = Story::new();
        let group = group(&story, Strategy::OneForOne);
        let database = group.add(ignores_sigterm(way)).unwrap();
        let web = group.add(ignores_sigterm(way).depends_on(&database, DependencyCondition::Ready)).unwrap();
        assert!(web.wait_ready(DEADLINE).is_ok(), "{:?}", story.told);
        let report = story.supervisor.shutdown(Duration::from_millis(200));
        assert!(report.workers.len() == 2 && report.workers.iter().all(was_killed), "{report}");
        story.rest();
    }

    fn p08_stop_timeout_kills_a_member(way: Way) {
        let story = Story::new();
        let group = group(&story, Strategy::OneForOne);
        let database = group.add(ignores_sigterm(way)).unwrap();
        let web = group.add(ignores_sigterm(way).depends_on(&database, DependencyCondition::Ready)).unwrap();
        assert!(web.wait_ready(DEADLINE).is_ok(), "{:?}", story.told);
        // It is stopped only after its dependent has ended, which does not happen before its own timeout.
        let stopping = database.stop_timeout(Duration::from_millis(100));
        assert!(stopping.wait(DEADLINE).workers.iter().all(was_killed), "{:?}", story.told);
        let report = web.stop_timeout(Duration::from_millis(100)).wait(DEADLINE);
        assert!(report.workers.iter().all(was_killed), "{report}");
    }

    fn p06_member_that_opens_a_fifo_delays_no_other(way: Way) {
        let directory = tempfile::tempdir().unwrap();
        let [unwritten, unread] = ["unwritten", "unread"].map(|name| directory.path().join(name));
        assert_eq!((kernel::make_fifo(&unwritten), kernel::make_fifo(&unread)), (0, 0));
        let mut story = Story::new();
        let group = group(&story, Strategy::OneForOne);
        let reading = group.add(way.program("/bin/cat").stdin(StdinMode::File(unwritten))).unwrap();
        let mut batch = group.batch();
        let writing = batch.add(way.plain("exit").stdout(OutputMode::File(unread))).unwrap();
        batch.start().unwrap();
        let other = group.add(until_eof(way, 0)).unwrap();
        assert!(other.wait_incarnation(1, DEADLINE).is_ok(), "{:?}", story.told);
        assert!(reading.wait_timeout(DEADLINE).expect("an exit").success(), "the FIFO has no writer");
        let error = story.find(|event| match event.kind {
            EventKind::SpawnFailed { error, .. } if event.worker == writing.id() => Some(error),
            _ => None,
        });
        assert_eq!(error.io_error().and_then(std::io::Error::raw_os_error), Some(libc::ENXIO), "the FIFO has no reader");
        let (ended, end) = mpsc::channel();
        thread::spawn(move || {
            drop(story);
            ended.send(())
        });
        assert_eq!(end.recv_timeout(DEADLINE), Ok(()), "drop");
    }

    fn group_restart_can_be_waited_for(way: Way) {
        let story = Story::new();
        let group = group(&story, Strategy::OneForOne);
        let [first, second] =
            ["first", "second"].map(|name| group.add(always(until_eof(way, 0)).name(name).ready(Readiness::log_line("up"))).unwrap());
        assert!(first.wait_ready(DEADLINE).is_ok() && second.wait_ready(DEADLINE).is_ok());
        assert!(group.restart().wait(DEADLINE).is_ok(), "{:?}", story.supervisor.status());
        assert_eq!((first.incarnation(), second.incarnation()), (2, 2));
        let report = group.stop().wait(DEADLINE);
        assert!(report.workers.iter().all(|ended| ended.exit.as_ref().is_some_and(|exit| exit.success())), "{report}");
        assert!(group.stop().wait(DEADLINE).workers.is_empty(), "no member is left");
    }

    fn members_can_be_added_after_stop_all(way: Way) {
        let story = Story::new();
        let first = group(&story, Strategy::OneForOne);
        let steady = first.add(always(until_eof(way, 0))).unwrap();
        let alone = story.supervisor.spawn(until_eof(way, 0)).unwrap();
        assert!(steady.wait_incarnation(1, DEADLINE).is_ok());
        let report = story.supervisor.stop_all().wait(DEADLINE);
        assert_eq!((report.workers.len(), report.unfinished().count()), (2, 0), "{report}");
        assert!(alone.wait_timeout(DEADLINE).is_some());
        let later = group(&story, Strategy::OneForOne).add(always(until_eof(way, 0))).unwrap();
        assert!(later.wait_incarnation(1, DEADLINE).is_ok(), "{:?}", story.supervisor.status());
        assert!(first.start().wait(DEADLINE).is_ok() && steady.incarnation() == 2);
    }

    fn group_is_removed_with_its_members(way: Way) {
        let mut story = Story::new();
        let outer = group(&story, Strategy::OneForAll);
        let inner = outer.group(Strategy::OneForOne).unwrap();
        let steady = inner.add(always(until_eof(way, 0))).unwrap();
        let needing = outer.add(always(until_eof(way, 0)).depends_on(&steady, DependencyCondition::Started)).unwrap();
        assert!(needing.wait_incarnation(1, DEADLINE).is_ok());
        assert!(matches!(inner.remove_all(), Err(GroupError::Rejected { .. })), "a member of the outer group depends on one of its members");
        outer.remove(&needing).unwrap();
        needing.wait_timeout(DEADLINE).expect("an exit");
        let report = inner.remove_all().unwrap().wait(DEADLINE);
        assert!(report.workers.len() == 1 && report.unfinished().count() == 0, "{report}");
        story.find(|event| matches!(event.kind, EventKind::GroupEnded(id) if id == inner.id()).then_some(()));
        assert!(matches!(inner.add(until_eof(way, 0)), Err(GroupError::Rejected { .. })), "the group is removed");
        assert!(inner.start().wait(DEADLINE).is_ok() && steady.restart().wait(DEADLINE).is_err());
        let states: Vec<_> = story.supervisor.status().workers.iter().map(|worker| worker.state).collect();
        assert_eq!(states, [], "no member is left");
        assert!(outer.add(always(until_eof(way, 0))).unwrap().wait_incarnation(1, DEADLINE).is_ok(), "the outer group keeps running");
    }

    fn p01_group_restarted_by_its_parent_has_not_ended(way: Way) {
        let mut story = Story::new();
        let outer = group(&story, Strategy::OneForAll);
        let inner = outer.group(GroupPolicy::default()).unwrap();
        let first = outer.add(always(until_eof(way, 0)).name("first")).unwrap();
        let within = inner.add(always(until_eof(way, 0)).name("within")).unwrap();
        // It delays the restart until it is killed.
        let slow = outer.add(ignores_sigterm(way).restart(Restart::Always).name("slow")).unwrap();
        assert!(slow.wait_ready(DEADLINE).is_ok(), "{:?}", story.told);
        let restarting = outer.restart();
        story.find(|event| (event.worker == within.id() && matches!(event.kind, EventKind::Exited { .. })).then_some(()));
        // Answered after that exit was handled.
        let state = inner.status().expect("a group");
        assert_eq!((state.state, state.members[0].state), (GroupState::Waiting, WorkerState::Waiting));
        assert_eq!(outer.status().expect("a group").state, GroupState::Stopping);
        assert!(within.wait_timeout(Duration::ZERO).is_none() && inner.wait_timeout(Duration::ZERO).is_none());
        slow.kill().unwrap();
        assert!(restarting.wait(DEADLINE).is_ok(), "{:?}", story.told);
        assert_eq!((first.incarnation(), within.incarnation(), slow.incarnation()), (2, 2, 2));
        let restarted = story.find(|event| match event.kind {
            EventKind::GroupRestarting(id) => Some(id),
            EventKind::GroupEnded(_) => panic!("{event:?}"),
            _ => None,
        });
        assert_eq!(restarted, outer.id());
        slow.kill().unwrap();
        drop(first.take_stdin());
        assert!(within.wait_incarnation(3, DEADLINE).is_ok(), "{:?}", story.told);
    }

    fn p13_group_restarted_by_its_parent_has_no_restart_history(way: Way) {
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
                EventKind::Exited { next: AfterExit::Restart { after }, .. } => pauses += u32::from(!after.is_zero()),
                EventKind::GroupGaveUp(_) => gave_up += 1,
                EventKind::Exited { next: AfterExit::GaveUp(_), .. } => {
                    panic!("no fatal end and no intensity of its own: {event:?}")
                }
                EventKind::GroupEnded(id) if id == outer.id() => return Some(outer.wait()),
                _ => {}
            }
            None
        });
        // The inner group runs three times with two starts each; all starts but the first are delayed.
        assert_eq!((end, starts, pauses, gave_up), (GroupEndReason::GaveUp, 6, 5, 4), "{:?}", story.told);
        assert_eq!(inner.wait_timeout(DEADLINE), Some(GroupEndReason::WithParent));
        // A start by the user clears the history: one restart is allowed again.
        assert!(outer.start().wait(DEADLINE).is_ok());
        assert!(crashing.wait_incarnation(8, DEADLINE).is_ok(), "{:?}", story.told);
    }

    fn p13_restarts_keep_the_order_of_declaration(way: Way) {
        for strategy in [Strategy::OneForAll, Strategy::RestForOne] {
            let mut story = Story::new();
            let group = group(&story, strategy);
            let slowly = RestartPolicy::from(Restart::Always).backoff(Backoff::constant(Duration::from_millis(100)));
            let database = group.add(until_eof(way, 0).restart(slowly).name("database")).unwrap();
            let web = group.add(always(until_eof(way, 0)).name("web")).unwrap();
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

    fn p16_inner_group_is_restarted_by_default(way: Way) {
        let mut story = Story::new();
        let outer = group(&story, Strategy::OneForAll);
        let inner = outer.group(Strategy::OneForOne).unwrap();
        let first = outer.add(always(until_eof(way, 0))).unwrap();
        let within = inner.add(always(until_eof(way, 0))).unwrap();
        started(&mut story, &within, 1);
        drop(first.take_stdin());
        assert!(within.wait_incarnation(2, DEADLINE).is_ok(), "{:?}", story.told);
        // A group that is never restarted does not restart with its siblings either.
        let once = outer.group(GroupPolicy::default().restart(Restart::Never)).unwrap();
        let within_once = once.add(always(until_eof(way, 0))).unwrap();
        started(&mut story, &within_once, 1);
        drop(first.take_stdin());
        assert_eq!(once.wait_timeout(DEADLINE), Some(GroupEndReason::WithParent));
        assert!(within.wait_incarnation(3, DEADLINE).is_ok() && within_once.wait_timeout(DEADLINE).is_some());
    }

    fn p16_any_exit_of_a_significant_member_counts(way: Way) {
        let mut story = Story::new();
        let group = group(&story, GroupPolicy::default().auto_shutdown(AutoShutdown::AllSignificant));
        let steady = group.add(always(until_eof(way, 0))).unwrap();
        let migration = group.add(until_eof(way, 1)).unwrap();
        let fatal = RestartPolicy::from(Restart::Never).fatal([ExitMatch::Code(3)]);
        let gives_up = group.add(until_eof(way, 3).restart(fatal).significant()).unwrap();
        let needs = group.add(until_eof(way, 0).depends_on(&migration, DependencyCondition::Completed).significant()).unwrap();
        started(&mut story, &gives_up, 1);
        drop(gives_up.take_stdin());
        assert!(gives_up.wait_timeout(DEADLINE).is_some());
        assert_eq!(group.status().expect("a group").state, GroupState::Running);
        drop(migration.take_stdin());
        assert_eq!(group.wait_timeout(DEADLINE), Some(GroupEndReason::ShutDown), "{:?}", story.told);
        assert!(steady.wait_timeout(DEADLINE).is_some() && needs.wait_timeout(DEADLINE).is_some());
    }

    fn p16_worker_of_another_group_is_refused(way: Way) {
        let story = Story::new();
        let (outer, other) = (group(&story, Strategy::OneForOne), group(&story, Strategy::OneForOne));
        let inner = outer.group(Strategy::OneForOne).unwrap();
        let worker = inner.add(always(until_eof(way, 0))).unwrap();
        let stranger = Story::new();
        let strange = group(&stranger, Strategy::OneForOne).add(always(until_eof(way, 0))).unwrap();
        let alone = story.supervisor.spawn(until_eof(way, 0)).unwrap();
        for refused in [other.remove(&worker), other.start_member(&worker).map(drop)] {
            let is_it = matches!(&refused, Err(GroupError::NotAMember { worker: id, group })
                if (*id, *group) == (worker.id(), other.id()));
            assert!(is_it, "{refused:?}");
        }
        for unknown in [&strange, &alone] {
            assert!(matches!(outer.remove(unknown), Err(GroupError::Rejected { .. })));
            let after = outer.add(until_eof(way, 0).depends_on(unknown, DependencyCondition::Started));
            assert!(matches!(after, Err(GroupError::Rejected { .. })), "{after:?}");
        }
        assert!(worker.wait_timeout(Duration::ZERO).is_none() && strange.wait_timeout(Duration::ZERO).is_none());
        outer.remove(&worker).unwrap();
        assert!(worker.wait_timeout(DEADLINE).expect("an exit").success());
    }

    fn p13_member_that_cannot_start_is_refused(way: Way) {
        for strategy in [Strategy::OneForOne, Strategy::OneForAll, Strategy::RestForOne] {
            let mut story = Story::new();
            let group = group(&story, strategy);
            let steady = group.add(always(until_eof(way, 0))).unwrap();
            let error = group.add(way.program("/nonexistent/program").restart(Restart::Always)).unwrap_err();
            assert!(matches!(&error, GroupError::SpawnFailed(error) if error.is_permanent()), "{error:?}");
            assert!(error.to_string().contains("/nonexistent/program"), "{error}");
            let status = group.status().expect("a group");
            assert_eq!((status.state, status.members.len(), status.restarts), (GroupState::Running, 1, 0));
            assert!(group.add(until_eof(way, 0)).unwrap().wait_ready(DEADLINE).is_ok(), "{:?}", story.told);
            assert_eq!((steady.incarnation(), steady.wait_timeout(Duration::ZERO).is_none()), (1, true));
            group.stop();
            let outline = outline(&story.rest(), &[]);
            assert_eq!(outline.last().map(String::as_str), Some("ended"), "unexpected events: {outline:?}");
        }
    }

    fn p01_give_up_is_reported_once_it_is_final(way: Way) {
        let mut story = Story::new();
        let outer = group(&story, GroupPolicy::default().intensity(1, DEADLINE));
        let inner = outer.group(Strategy::OneForAll).unwrap();
        let fatal = RestartPolicy::from(Restart::Always).fatal([ExitMatch::Code(3)]);
        let worker = inner.add(until_eof(way, 3).restart(fatal.backoff(Backoff::constant(Duration::ZERO)))).unwrap();
        let mut reasons = Vec::new();
        for incarnation in 1..=2 {
            started(&mut story, &worker, incarnation);
            drop(worker.take_stdin());
            story.find(|event| {
                assert!(!event.kind.is_final() || incarnation == 2, "{event:?}");
                match event.kind {
                    EventKind::Exited { next: AfterExit::GaveUp(why), .. } => reasons.push(why),
                    EventKind::GroupRestarting(id) if id == inner.id() => return Some(()),
                    EventKind::GroupEnded(id) if id == outer.id() => return Some(()),
                    _ => {}
                }
                None
            });
        }
        assert_eq!(reasons, [GiveUpReason::FatalCode], "once, before the end of its group: {:?}", story.told);
        assert!(worker.wait_timeout(DEADLINE).is_some());
    }

    fn p01_group_end_is_reported_once(way: Way) {
        let mut story = Story::new();
        let outer = group(&story, Strategy::OneForOne);
        let inner = outer.group(Strategy::OneForOne).unwrap();
        let worker = inner.add(always(until_eof(way, 0))).unwrap();
        assert!(worker.wait_ready(DEADLINE).is_ok());
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

    fn p16_single_member_is_started(way: Way) {
        let mut story = Story::new();
        let group = group(&story, Strategy::OneForAll);
        let job = group.add(until_eof(way, 0).name("job")).unwrap();
        let steady = group.add(always(until_eof(way, 0)).ready(Readiness::log_line("up"))).unwrap();
        assert!(steady.wait_ready(DEADLINE).is_ok());
        assert!(group.start_member(&steady).unwrap().wait(Duration::ZERO).is_ok(), "it is already running");
        steady.stop().wait(DEADLINE);
        drop(job.take_stdin());
        assert!(job.wait_timeout(DEADLINE).is_some(), "{:?}", story.told);
        for worker in [&steady, &job] {
            assert!(group.start_member(worker).unwrap().wait(DEADLINE).is_ok(), "{:?}", story.told);
        }
        assert_eq!((steady.incarnation(), job.incarnation()), (2, 2));
        group.stop().wait(DEADLINE);
        assert!(matches!(group.start_member(&steady), Err(GroupError::Rejected { .. })), "the group has ended");
        let ended = |event: Event| matches!(event.kind, EventKind::GroupEnded(_)).then_some(());
        story.find(ended);
    }

    fn p16_batch_is_declared_before_any_member_starts(way: Way) {
        let story = Story::new();
        let group = group(&story, Strategy::RestForOne);
        let mut batch = group.batch();
        let database = batch.add(until_eof(way, 0).name("database").ready(Readiness::log_line("up"))).unwrap();
        let web = batch.add(until_eof(way, 0).name("web").depends_on(&database, DependencyCondition::Ready)).unwrap();
        assert_eq!(group.status().expect("a group").members.len(), 0);
        assert!(batch.start().unwrap().wait(DEADLINE).is_ok(), "{:?}", story.told);
        assert_eq!((database.incarnation(), web.incarnation()), (1, 1));
        let names: Vec<_> = group.status().expect("a group").members.into_iter().map(|member| member.name).collect();
        assert_eq!(names, ["database".into(), "web".into()]);
        // A batch is declared as a whole or not at all; its workers then have ended without a start.
        let mut refused = group.batch();
        let good = refused.add(until_eof(way, 0).depends_on(&web, DependencyCondition::Started)).unwrap();
        refused.add(until_eof(way, 0).significant().depends_on(&good, DependencyCondition::Started)).unwrap();
        assert!(matches!(refused.start(), Err(GroupError::Rejected { .. })));
        let mut dropped = group.batch();
        let never = dropped.add(until_eof(way, 0)).unwrap();
        drop(dropped);
        for worker in [good, never] {
            assert_eq!(worker.wait_timeout(DEADLINE).expect("an exit").status, ExitStatus::NeverStarted);
        }
        assert_eq!(group.status().expect("a group").members.len(), 2);
        group.remove_all().unwrap().wait(DEADLINE);
        assert_eq!(group.wait_timeout(DEADLINE), Some(GroupEndReason::Removed));
        assert!(group.status().is_none());
        drop(story);
    }

    fn p13_restarts_of_all_members_count_together(way: Way) {
        let mut story = Story::new();
        let group = group(&story, GroupPolicy::default().intensity(2, DEADLINE));
        let workers = [0; 3].map(|_| group.add(always(until_eof(way, 0))).unwrap());
        for worker in &workers {
            assert!(worker.wait_incarnation(1, DEADLINE).is_ok());
            drop(worker.take_stdin());
            story.find(|event| (event.worker == worker.id() && matches!(event.kind, EventKind::Exited { .. })).then_some(()));
        }
        assert_eq!(group.wait_timeout(DEADLINE), Some(GroupEndReason::GaveUp), "{:?}", story.told);
    }

    fn p09_dropped_supervisor_ends_its_groups(way: Way) {
        let story = Story::new();
        let group = group(&story, Strategy::OneForAll);
        let first = group.add(always(until_eof(way, 0))).unwrap();
        let second = group.add(always(until_eof(way, 0)).depends_on(&first, DependencyCondition::Ready)).unwrap();
        assert!(second.wait_ready(DEADLINE).is_ok());
        drop(story);
        for worker in [first, second] {
            worker.wait_timeout(Duration::ZERO).expect("an exit");
            assert!(!crate::support::is_alive(worker.pid().unwrap()));
        }
        assert!(matches!(group.add(WorkerSpec::new("true")), Err(GroupError::SupervisorGone)));
    }

    fn p08_shutdown_ends_groups_within_its_timeout(way: Way) {
        let mut story = Story::new();
        let group = group(&story, Strategy::OneForOne);
        let first = group.add(until_eof(way, 0).name("first")).unwrap();
        let stubborn = way.fixture("ignore-term").name("stubborn").depends_on(&first, DependencyCondition::Ready);
        let stubborn = group.add(stubborn).unwrap();
        story.message();
        let report = story.supervisor.shutdown(Duration::from_millis(300));
        assert_eq!(report.unfinished().count(), 0, "{report}");
        assert_eq!(stubborn.wait().signal(), Some(libc::SIGKILL), "{report}");
        let events = story.rest();
        let outline = outline(&events, &[&first, &stubborn]);
        // The order does not hold after the timeout.
        assert_eq!(outline.iter().filter(|line| line.ends_with(" ends")).count(), 2, "{outline:?}");
        assert_eq!(outline.last().map(String::as_str), Some("ended"), "{outline:?}");
    }
}
