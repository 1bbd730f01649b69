//! Any interleaving of submits, answers, deaths, cancellations and timers, with invented workers and an invented clock.

use super::{
    dispatcher::{Dispatch, DispatchState},
    ids::{CallNumber, DemandClass, MemberId, TaskNumber},
    limit::TimeLimit,
    settings::{DispatchSettings, Halt},
    task::{DispatchOutput, Ending, TaskTerms},
    waiting::Place,
};
use crate::deadline::start;
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

#[derive(Debug, Clone, Copy)]
enum Step {
    Submit {
        priority: i32,
        retries: u32,
        key: Option<u64>,
        timeout: Option<u64>,
        is_poison: bool,
        class: Option<usize>,
    },
    Ready(usize),
    Answer(usize, bool),
    Exit(usize),
    Unsent(usize),
    Lost(usize),
    Cancel(usize),
    Recycle(usize),
    Grant(usize),
    Wait(u64),
    Close,
    ShutDown,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let submit = (
        0..3,
        0_u32..4,
        prop::option::of(0..3_u64),
        prop::option::of(1..500_u64),
        prop::bool::weighted(0.1),
        prop::option::of(0..2_usize),
    )
        .prop_map(|(priority, retries, key, timeout, is_poison, class)| Step::Submit {
            priority,
            retries,
            key,
            timeout,
            is_poison,
            class,
        });
    let at = 0..1000_usize;
    let step = prop_oneof![
        8 => submit,
        6 => at.clone().prop_map(Step::Ready),
        12 => (at.clone(), any::<bool>()).prop_map(|(at, fails)| Step::Answer(at, fails)),
        4 => at.clone().prop_map(Step::Exit),
        1 => at.clone().prop_map(Step::Unsent),
        1 => at.clone().prop_map(Step::Lost),
        2 => at.clone().prop_map(Step::Cancel),
        1 => at.prop_map(Step::Recycle),
        6 => (0..1000_usize).prop_map(Step::Grant),
        4 => (1..400_u64).prop_map(Step::Wait),
        1 => prop::bool::weighted(0.05).prop_map(|closes| if closes { Step::Close } else { Step::Wait(1) }),
        1 => prop::bool::weighted(0.05).prop_map(|ends| if ends { Step::ShutDown } else { Step::Wait(1) }),
    ];
    prop::collection::vec(step, 0..200)
}

fn settings() -> impl Strategy<Value = DispatchSettings> {
    let halt = prop::option::weighted(0.2, (1..5_u64, any::<bool>()))
        .prop_map(|halt| halt.map(|(failures, is_immediate)| Halt { failures, is_immediate }));
    let limits = (prop::option::of(1..5_u64), prop::option::of(1..3000_u64));
    (0..3_usize, 1..4_usize, 1..4_usize, limits, halt).prop_map(|(min, max, in_flight, (tasks_max, age), halt)| {
        DispatchSettings {
            min: min.min(max),
            max,
            in_flight,
            tasks_max,
            age_max: age.map(Duration::from_millis),
            idle_time: Duration::from_millis(300),
            cancel_grace: Duration::from_millis(200),
            start_failures_max: 20,
            halt,
            ..DispatchSettings::default()
        }
    })
}

/// What the decisions have led to.
struct World {
    dispatch: Dispatch,
    now: Instant,
    open: BTreeSet<TaskNumber>,
    poison: BTreeSet<TaskNumber>,
    suspects: BTreeMap<TaskNumber, u32>,
    /// The workers that run or start, with their tasks.
    members: BTreeMap<MemberId, Worker>,
    endings: Vec<Ending>,
    /// The requests that the budget has not answered, and the grants that are not returned.
    requested: Vec<DemandClass>,
    granted: Vec<DemandClass>,
    classes: BTreeMap<TaskNumber, DemandClass>,
}

#[derive(Default)]
struct Worker {
    is_ready: bool,
    is_stopping: bool,
    is_killed: bool,
    calls: BTreeMap<CallNumber, TaskNumber>,
    isolated: Option<CallNumber>,
}

fn nth<T: Copy>(of: impl Iterator<Item = T>, at: usize) -> Option<T> {
    let all: Vec<_> = of.collect();
    (!all.is_empty()).then(|| all[at % all.len()])
}

impl World {
    fn new(settings: DispatchSettings) -> Self {
        let mut dispatch = Dispatch::new(settings);
        let now = start();
        dispatch.open(now);
        let mut world = Self {
            dispatch,
            now,
            open: BTreeSet::new(),
            poison: BTreeSet::new(),
            suspects: BTreeMap::new(),
            members: BTreeMap::new(),
            endings: Vec::new(),
            requested: Vec::new(),
            granted: Vec::new(),
            classes: BTreeMap::new(),
        };
        world.carry_out();
        world
    }

    fn carry_out(&mut self) {
        let in_flight = self.dispatch.settings.in_flight;
        for output in self.dispatch.take_outputs() {
            match output {
                DispatchOutput::Start(member) => {
                    assert!(self.members.insert(member, Worker::default()).is_none(), "{member:?} starts once");
                    let taking = self.members.values().filter(|worker| !worker.is_stopping && !worker.is_killed);
                    // Those that drain have tasks.
                    let idle_or_starting = taking.filter(|worker| worker.calls.is_empty()).count();
                    assert!(idle_or_starting <= self.dispatch.settings.max);
                }
                DispatchOutput::Send { call, task, member } => {
                    assert!(self.open.contains(&task), "{task:?} has not ended");
                    let is_suspect = self.suspects.get(&task).is_some_and(|deaths| *deaths >= 2);
                    let worker = self.members.get_mut(&member).expect("a worker that runs");
                    assert!(worker.is_ready && !worker.is_stopping && !worker.is_killed && worker.isolated.is_none());
                    assert!(!is_suspect || worker.calls.is_empty(), "runs alone");
                    worker.isolated = is_suspect.then_some(call);
                    assert!(worker.calls.insert(call, task).is_none());
                    assert!(worker.calls.len() <= in_flight);
                    let runs = |worker: &Worker| worker.calls.contains_key(&call);
                    assert_eq!(self.members.values().filter(|worker| runs(worker)).count(), 1);
                }
                DispatchOutput::Cancel { call, member } => {
                    assert!(self.members[&member].calls.contains_key(&call), "{call:?} runs");
                }
                DispatchOutput::Stop(member) => {
                    let worker = self.members.get_mut(&member).expect("a worker that runs");
                    assert!(!worker.is_stopping, "stopped once");
                    worker.is_stopping = true;
                }
                DispatchOutput::Kill(member) => {
                    self.members.get_mut(&member).expect("a worker that runs").is_killed = true;
                }
                DispatchOutput::Request(class) => self.requested.push(class),
                DispatchOutput::Return(class) => {
                    let at = self.granted.iter().position(|granted| *granted == class).expect("a grant");
                    self.granted.swap_remove(at);
                }
                DispatchOutput::Slow { task, .. } => assert!(self.open.contains(&task)),
                DispatchOutput::End { task, ending, .. } => {
                    assert!(self.open.remove(&task), "{task:?} ends once");
                    self.endings.push(ending);
                }
            }
        }
        self.check_grants();
        self.check_idleness();
    }

    /// Each call has what its task takes.
    fn check_grants(&self) {
        for class in [DemandClass(0), DemandClass(1)] {
            let calls = self.members.values().flat_map(|worker| worker.calls.values());
            let taken = calls.filter(|task| self.classes.get(task) == Some(&class)).count();
            let granted = self.granted.iter().filter(|granted| **granted == class).count();
            assert!(taken <= granted, "nothing runs without a grant");
            // The worker that is kept free for a suspect may have one that it cannot use yet.
            let is_reserved = self.dispatch.waiting.first(Place::Suspects, |_| true).is_some();
            assert!(taken == granted || is_reserved, "none is kept without a call: {:?}", self.dispatch);
        }
    }

    /// No worker is idle while a task waits that it may get.
    fn check_idleness(&self) {
        let free = self.members.values().filter(|worker| worker.is_ready && !worker.is_stopping && !worker.is_killed);
        let idle = free.filter(|worker| worker.calls.is_empty()).count();
        let waits = |place| self.dispatch.waiting.first(place, |class| class.is_none()).is_some();
        let may_be_sent = waits(Place::General) || waits(Place::Suspects);
        assert!(idle == 0 || !may_be_sent, "an idle worker, and a task for any worker");
    }

    fn call(&self, at: usize) -> Option<(MemberId, CallNumber, TaskNumber)> {
        nth(
            self.members.iter().flat_map(|(id, worker)| worker.calls.iter().map(|(call, task)| (*id, *call, *task))),
            at,
        )
    }

    fn end_call(&mut self, member: MemberId, call: CallNumber) {
        let worker = self.members.get_mut(&member).unwrap();
        worker.calls.remove(&call);
        worker.isolated.take_if(|isolated| *isolated == call);
    }

    fn exit(&mut self, member: MemberId) {
        for task in self.members.remove(&member).unwrap().calls.into_values() {
            *self.suspects.entry(task).or_default() += 1;
        }
        self.dispatch.exited(member, self.now);
    }

    fn answer(&mut self, (member, call, task): (MemberId, CallNumber, TaskNumber), is_failure: bool) {
        if self.poison.contains(&task) {
            return self.exit(member);
        }
        self.end_call(member, call);
        let ended = self.dispatch.answered(call, is_failure, self.now);
        if let Some((ended, attempts)) = ended {
            assert!(ended == task && attempts > 0 && self.open.remove(&task), "{task:?} ends once");
        } else {
            assert!(!self.open.contains(&task));
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Submit { priority, retries, key, timeout, is_poison, class } => {
                let timeout = timeout.map_or(TimeLimit::Never, |ms| TimeLimit::After(Duration::from_millis(ms)));
                let terms = TaskTerms { priority, retries, key, timeout, slow: timeout, class: class.map(DemandClass) };
                let before = self.dispatch.state();
                match self.dispatch.submit(terms, self.now) {
                    Ok(task) => {
                        assert!(self.open.insert(task));
                        self.classes.extend(class.map(|class| (task, DemandClass(class))));
                        if is_poison {
                            self.poison.insert(task);
                        }
                    }
                    Err(state) => assert!(state == before && state != DispatchState::Open),
                }
            }
            Step::Ready(at) => {
                let starting = self.members.iter().filter(|(_, worker)| !worker.is_ready).map(|(id, _)| *id);
                if let Some(member) = nth(starting, at) {
                    self.members.get_mut(&member).unwrap().is_ready = true;
                    self.dispatch.ready(member, self.now);
                }
            }
            Step::Answer(at, is_failure) => {
                if let Some(call) = self.call(at) {
                    self.answer(call, is_failure);
                }
            }
            Step::Exit(at) => {
                if let Some(member) = nth(self.members.keys().copied(), at) {
                    self.exit(member);
                }
            }
            Step::Unsent(at) => {
                if let Some((member, call, _)) = self.call(at) {
                    self.end_call(member, call);
                    self.dispatch.unsent(call, self.now);
                }
            }
            Step::Lost(at) => {
                if let Some(member) = nth(self.members.keys().copied(), at) {
                    self.dispatch.lost(member, self.now);
                }
            }
            Step::Cancel(at) => {
                if let Some(task) = nth(self.open.iter().copied(), at) {
                    assert!(self.dispatch.cancel(task, self.now));
                    assert!(!self.dispatch.cancel(task, self.now), "once");
                }
            }
            Step::Recycle(at) => {
                if let Some(member) = nth(self.members.keys().copied(), at) {
                    self.dispatch.recycle(member, self.now);
                }
            }
            Step::Grant(at) => {
                if !self.requested.is_empty() {
                    let class = self.requested.swap_remove(at % self.requested.len());
                    self.granted.push(class);
                    self.dispatch.granted(class, self.now);
                }
            }
            Step::Wait(ms) => {
                self.now += Duration::from_millis(ms);
                self.dispatch.run_timers(self.now);
            }
            Step::Close => self.dispatch.close(self.now),
            Step::ShutDown => self.dispatch.shut_down(self.now),
        }
        self.carry_out();
    }

    /// Lets everything go well from now on, until all tasks have ended.
    fn finish(&mut self) {
        self.dispatch.close(self.now);
        self.carry_out();
        for _ in 0..10_000 {
            if self.dispatch.is_over() {
                break;
            }
            if let Some(member) =
                self.members.iter().find(|(_, worker)| worker.is_stopping || worker.is_killed).map(|(id, _)| *id)
            {
                self.exit(member);
            } else if let Some(call) = self.call(0) {
                self.answer(call, false);
            } else if self.members.values().any(|worker| !worker.is_ready) {
                self.step(Step::Ready(0));
                continue;
            } else if !self.requested.is_empty() {
                self.step(Step::Grant(0));
                continue;
            } else {
                let next = self.dispatch.next_timer().expect("something to do");
                self.now = self.now.max(next);
                self.dispatch.run_timers(self.now);
            }
            self.carry_out();
        }
        assert!(self.dispatch.is_over() && self.members.is_empty(), "{:?}", self.dispatch);
        assert!(self.open.is_empty(), "every task has ended");
        assert_eq!(self.dispatch.next_timer().filter(|_| self.dispatch.timers.len() > 1), None, "timers are cancelled");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn p15_every_task_ends_once_whatever_dies(settings in settings(), steps in steps()) {
        let mut world = World::new(settings);
        for step in steps {
            world.step(step);
        }
        world.finish();
    }
}
