//! One scenario a test.

use super::{
    dispatcher::{Dispatch, DispatchState},
    ids::{CallNumber, MemberId, TaskNumber},
    limit::TimeLimit,
    settings::{DispatchSettings, Halt},
    task::{DispatchOutput, Ending, TaskTerms},
};
use crate::deadline::start;
use DispatchOutput::{Cancel, Kill, Send, Slow, Start, Stop};
use std::time::{Duration, Instant};

fn settings(max: usize, in_flight: usize) -> DispatchSettings {
    DispatchSettings { min: max, max, in_flight, ..DispatchSettings::default() }
}

/// A pool whose first workers are ready.
fn pool(settings: DispatchSettings) -> (Dispatch, Instant) {
    let now = start();
    let mut dispatch = Dispatch::new(settings);
    dispatch.open(now);
    for output in dispatch.take_outputs() {
        let Start(member) = output else { panic!("{output:?}") };
        dispatch.ready(member, now);
    }
    (dispatch, now)
}

fn send(call: u64, task: u64, member: u64) -> DispatchOutput {
    Send { call: CallNumber(call), task: TaskNumber(task), member: MemberId(member) }
}

fn end(task: u64, attempts: u32, ending: Ending) -> DispatchOutput {
    DispatchOutput::End { task: TaskNumber(task), attempts, ending }
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn submit(dispatch: &mut Dispatch, terms: TaskTerms, now: Instant) {
    dispatch.submit(terms, now).unwrap();
}

#[test]
fn tasks_go_to_the_least_loaded_worker_by_priority_and_order() {
    let (mut dispatch, now) = pool(settings(2, 2));
    for _ in 0..4 {
        submit(&mut dispatch, TaskTerms::default(), now);
    }
    assert_eq!(dispatch.take_outputs(), [send(1, 1, 1), send(2, 2, 2), send(3, 3, 1), send(4, 4, 2)]);
    for priority in [0, 0, 5] {
        submit(&mut dispatch, TaskTerms { priority, ..TaskTerms::default() }, now);
    }
    assert_eq!((dispatch.take_outputs(), dispatch.count_waiting()), (vec![], 3));
    for (call, next) in [(3, send(5, 7, 1)), (2, send(6, 5, 2)), (1, send(7, 6, 1))] {
        assert_eq!(dispatch.answered(CallNumber(call), false, now), Some((TaskNumber(call), 1)));
        assert_eq!(dispatch.take_outputs(), [next]);
    }
    assert_eq!(dispatch.answered(CallNumber(1), false, now), None, "an answer counts once");
}

#[test]
fn task_that_kills_its_workers_runs_alone_and_is_poison() {
    let (mut dispatch, now) = pool(settings(1, 2));
    submit(&mut dispatch, TaskTerms { retries: 9, ..TaskTerms::default() }, now);
    submit(&mut dispatch, TaskTerms { retries: 9, ..TaskTerms::default() }, now);
    assert_eq!(dispatch.take_outputs(), [send(1, 1, 1), send(2, 2, 1)]);
    let replace = |dispatch: &mut Dispatch, member: u64| {
        dispatch.exited(MemberId(member), now);
        let outputs = dispatch.take_outputs();
        assert_eq!(outputs.last(), Some(&Start(MemberId(member + 1))));
        dispatch.ready(MemberId(member + 1), now);
        (outputs.len(), dispatch.take_outputs())
    };
    assert_eq!(replace(&mut dispatch, 1), (1, vec![send(3, 1, 2), send(4, 2, 2)]), "both may be the cause");
    assert_eq!(replace(&mut dispatch, 2), (1, vec![send(5, 1, 3)]), "from the second death on they run alone");
    assert_eq!(replace(&mut dispatch, 3), (1, vec![send(6, 1, 4)]), "once may be chance");
    dispatch.exited(MemberId(4), now);
    assert_eq!(dispatch.take_outputs(), [end(1, 4, Ending::Poison), Start(MemberId(5))]);
    dispatch.ready(MemberId(5), now);
    submit(&mut dispatch, TaskTerms::default(), now);
    assert_eq!(dispatch.take_outputs(), [send(7, 2, 5)], "and nothing beside them");
    assert_eq!(dispatch.answered(CallNumber(7), false, now), Some((TaskNumber(2), 3)), "the other one was innocent");
    assert_eq!(dispatch.take_outputs(), [send(8, 3, 5)]);
    dispatch.exited(MemberId(5), now);
    assert_eq!(dispatch.take_outputs(), [end(3, 1, Ending::Died), Start(MemberId(6))], "no retries");
}

#[test]
fn timeout_cancels_the_call_and_then_kills_its_worker() {
    let grace = ms(200);
    let (mut dispatch, now) = pool(DispatchSettings { cancel_grace: grace, ..settings(1, 2) });
    let terms = TaskTerms { timeout: TimeLimit::After(ms(50)), slow: TimeLimit::After(ms(30)), ..TaskTerms::default() };
    submit(&mut dispatch, terms, now);
    submit(&mut dispatch, TaskTerms { retries: 1, ..TaskTerms::default() }, now);
    assert_eq!(dispatch.take_outputs(), [send(1, 1, 1), send(2, 2, 1)]);
    assert_eq!(dispatch.next_timer(), Some(now + ms(30)));
    dispatch.run_timers(now + ms(30));
    assert_eq!(dispatch.take_outputs(), [Slow { task: TaskNumber(1), after: ms(30) }]);
    dispatch.run_timers(now + ms(50));
    let cancel = Cancel { call: CallNumber(1), member: MemberId(1) };
    let timed_out = Ending::TimedOut(ms(50));
    assert_eq!(dispatch.take_outputs(), [cancel, end(1, 1, timed_out)]);
    dispatch.run_timers(now + ms(50) + grace);
    assert_eq!(dispatch.take_outputs(), [Kill(MemberId(1)), Start(MemberId(2))], "and replaced at once");
    assert_eq!(dispatch.answered(CallNumber(1), false, now), None, "too late");
    dispatch.exited(MemberId(1), now);
    dispatch.ready(MemberId(2), now);
    assert_eq!(dispatch.take_outputs(), [send(3, 2, 2)]);
}

#[test]
fn cancelled_call_that_is_answered_leaves_its_worker() {
    let (mut dispatch, now) = pool(settings(1, 1));
    submit(&mut dispatch, TaskTerms::default(), now);
    submit(&mut dispatch, TaskTerms::default(), now);
    assert!(dispatch.cancel(TaskNumber(2), now) && dispatch.cancel(TaskNumber(1), now));
    let cancel = Cancel { call: CallNumber(1), member: MemberId(1) };
    let cancelled = |task, attempts| end(task, attempts, Ending::Cancelled);
    assert_eq!(dispatch.take_outputs(), [send(1, 1, 1), cancelled(2, 0), cancel, cancelled(1, 1)]);
    submit(&mut dispatch, TaskTerms::default(), now);
    assert_eq!(dispatch.take_outputs(), [], "the worker is busy with the cancelled call");
    assert_eq!(dispatch.answered(CallNumber(1), true, now), None);
    assert_eq!((dispatch.take_outputs(), dispatch.next_timer()), (vec![send(2, 3, 1)], None));
}

#[test]
fn pool_grows_while_tasks_wait_and_shrinks_when_idle() {
    let (mut dispatch, now) = pool(DispatchSettings { min: 0, idle_time: ms(100), ..settings(3, 1) });
    assert_eq!(dispatch.count_tasks(), 0);
    for _ in 0..2 {
        submit(&mut dispatch, TaskTerms::default(), now);
    }
    assert_eq!(dispatch.take_outputs(), [Start(MemberId(1)), Start(MemberId(2))]);
    dispatch.ready(MemberId(1), now);
    dispatch.ready(MemberId(2), now);
    assert_eq!(dispatch.take_outputs(), [send(1, 1, 1), send(2, 2, 2)]);
    dispatch.answered(CallNumber(1), false, now + ms(10));
    dispatch.answered(CallNumber(2), false, now + ms(50));
    submit(&mut dispatch, TaskTerms::default(), now + ms(60));
    assert_eq!(dispatch.take_outputs(), [send(3, 3, 1)]);
    dispatch.answered(CallNumber(3), false, now + ms(70));
    dispatch.run_timers(now + ms(150));
    assert_eq!(dispatch.take_outputs(), [Stop(MemberId(2))], "idle since 50 ms");
    dispatch.run_timers(now + ms(170));
    assert_eq!(dispatch.take_outputs(), [Stop(MemberId(1))]);
    dispatch.exited(MemberId(1), now);
    dispatch.exited(MemberId(2), now);
    assert_eq!((dispatch.take_outputs(), dispatch.next_timer()), (vec![], None));
}

#[test]
fn workers_are_replaced_after_their_tasks_or_age_without_losing_one() {
    let (mut dispatch, now) = pool(DispatchSettings { tasks_max: Some(2), ..settings(1, 2) });
    for _ in 0..3 {
        submit(&mut dispatch, TaskTerms::default(), now);
    }
    assert_eq!(dispatch.take_outputs(), [send(1, 1, 1), send(2, 2, 1), Start(MemberId(2))]);
    dispatch.answered(CallNumber(1), false, now);
    dispatch.ready(MemberId(2), now);
    assert_eq!(dispatch.take_outputs(), [send(3, 3, 2)]);
    dispatch.answered(CallNumber(2), false, now);
    assert_eq!(dispatch.take_outputs(), [Stop(MemberId(1))]);

    let (mut dispatch, now) = pool(DispatchSettings { age_max: Some(ms(100)), ..settings(1, 1) });
    dispatch.run_timers(now + ms(99));
    assert_eq!(dispatch.take_outputs(), []);
    dispatch.run_timers(now + ms(100));
    assert_eq!(dispatch.take_outputs(), [Stop(MemberId(1)), Start(MemberId(2))]);
}

#[test]
fn starts_that_fail_are_delayed_and_then_end_the_tasks() {
    let now = start();
    let mut dispatch = Dispatch::new(DispatchSettings { start_failures_max: 2, ..settings(2, 1) });
    dispatch.open(now);
    submit(&mut dispatch, TaskTerms::default(), now);
    assert_eq!(dispatch.take_outputs(), [Start(MemberId(1)), Start(MemberId(2))]);
    // Its connection ends just before the process.
    dispatch.lost(MemberId(1), now);
    assert_eq!(dispatch.take_outputs(), [Kill(MemberId(1))]);
    dispatch.exited(MemberId(1), now);
    dispatch.exited(MemberId(2), now);
    assert_eq!((dispatch.take_outputs(), dispatch.next_timer()), (vec![], Some(now + ms(100))), "one round");
    dispatch.run_timers(now + ms(100));
    assert_eq!(dispatch.take_outputs(), [Start(MemberId(3)), Start(MemberId(4))]);
    dispatch.exited(MemberId(3), now);
    assert_eq!(dispatch.take_outputs(), [end(1, 0, Ending::NoWorkers), Stop(MemberId(4))]);
    assert_eq!(dispatch.submit(TaskTerms::default(), now), Err(DispatchState::Broken));
    dispatch.exited(MemberId(4), now);
    assert!(dispatch.is_over());
}

#[test]
fn tasks_with_a_key_stay_with_their_worker() {
    let (mut dispatch, now) = pool(settings(3, 1));
    let keyed = |key| TaskTerms { key: Some(key), ..TaskTerms::default() };
    let mut workers = [const { Vec::new() }; 20];
    for round in 0..3 {
        for (key, workers) in workers.iter_mut().enumerate() {
            submit(&mut dispatch, keyed(key as u64), now);
            let outputs = dispatch.take_outputs();
            let [Send { call, member, .. }] = outputs[..] else { panic!("{outputs:?}") };
            workers.push(member);
            dispatch.answered(call, false, now);
        }
        if round == 1 {
            // The one that replaces another one gets its keys.
            dispatch.exited(MemberId(2), now);
            dispatch.ready(MemberId(4), now);
            dispatch.take_outputs();
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    for of_key in workers {
        let replaced = if of_key[0] == MemberId(2) { MemberId(4) } else { of_key[0] };
        assert_eq!(of_key, [of_key[0], of_key[0], replaced]);
        seen.insert(of_key[0]);
    }
    assert_eq!(seen.len(), 3, "keys are spread");
    submit(&mut dispatch, keyed(7), now);
    submit(&mut dispatch, keyed(7), now);
    assert_eq!(
        (dispatch.take_outputs().len(), dispatch.count_waiting()),
        (1, 1),
        "the second one waits for its worker"
    );
}

#[test]
fn halt_policy_ends_what_waits_and_perhaps_what_runs() {
    for is_immediate in [false, true] {
        let halt = Some(Halt { failures: 2, is_immediate });
        let (mut dispatch, now) = pool(DispatchSettings { halt, ..settings(3, 1) });
        for _ in 0..4 {
            submit(&mut dispatch, TaskTerms::default(), now);
        }
        dispatch.take_outputs();
        assert!(dispatch.answered(CallNumber(1), true, now).is_some());
        dispatch.take_outputs();
        assert!(dispatch.answered(CallNumber(2), true, now).is_some());
        let outputs = dispatch.take_outputs();
        let ended: Vec<_> = outputs.iter().filter(|output| matches!(output, DispatchOutput::End { .. })).collect();
        let halted = |task| end(task, 1, Ending::Halted);
        let expected = if is_immediate { vec![halted(3), halted(4)] } else { vec![] };
        assert_eq!(ended, expected.iter().collect::<Vec<_>>());
        assert_eq!(dispatch.submit(TaskTerms::default(), now), Err(DispatchState::Halted));
    }
}

#[test]
fn shutdown_drains_or_ends_everything() {
    let (mut dispatch, now) = pool(settings(1, 1));
    submit(&mut dispatch, TaskTerms::default(), now);
    submit(&mut dispatch, TaskTerms::default(), now);
    dispatch.close(now);
    assert_eq!(dispatch.submit(TaskTerms::default(), now), Err(DispatchState::Closed));
    dispatch.answered(CallNumber(1), false, now);
    assert_eq!(dispatch.take_outputs(), [send(1, 1, 1), send(2, 2, 1)], "what is there is finished");
    dispatch.shut_down(now);
    let cancel = Cancel { call: CallNumber(2), member: MemberId(1) };
    assert_eq!(dispatch.take_outputs(), [cancel, end(2, 1, Ending::ShutDown), Stop(MemberId(1))]);
    assert!(!dispatch.is_over());
    dispatch.exited(MemberId(1), now);
    assert!(dispatch.is_over());
}
