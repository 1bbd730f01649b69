//! Checks the schedule against a model in random histories.

use super::{
    task::{DemandError, NewTask, QueueId, TaskId, TaskOutput, TaskResult},
    tasks::Schedule,
};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const RESOURCES: [&str; 2] = ["link", "memory"];

#[derive(Debug, Clone)]
enum Step {
    Submit {
        queue: usize,
        slots: u64,
        needs: [u64; 2],
        priority: i32,
        after: Vec<usize>,
    },
    /// A run of a task ends.
    End {
        which: usize,
        result: TaskResult,
    },
    /// A task that runs is to be tried again later.
    Pause(usize),
    Resume(usize),
    Cancel(usize),
    SetLimit(u64),
    SetResource(usize, u64),
}

fn step() -> impl Strategy<Value = Step> {
    let result = prop_oneof![9 => Just(TaskResult::Success), 1 => Just(TaskResult::Failure)];
    let after = prop_oneof![2 => Just(Vec::new()), 1 => prop::collection::vec(0_usize..64, 1..4)];
    let slots = prop_oneof![9 => 1_u64..5, 1 => 0_u64..9];
    let needs = prop_oneof![2 => Just([0, 0]), 1 => prop::array::uniform2(0_u64..4)];
    prop_oneof![
        8 => (0_usize..3, slots, needs, -1_i32..2, after)
            .prop_map(|(queue, slots, needs, priority, after)| Step::Submit { queue, slots, needs, priority, after }),
        5 => (any::<usize>(), result).prop_map(|(which, result)| Step::End { which, result }),
        1 => any::<usize>().prop_map(Step::Pause),
        1 => any::<usize>().prop_map(Step::Resume),
        1 => any::<usize>().prop_map(Step::Cancel),
        1 => (0_u64..9).prop_map(Step::SetLimit),
        1 => (0_usize..2, 0_u64..4).prop_map(|(which, amount)| Step::SetResource(which, amount)),
    ]
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Waiting,
    Running { slot: u32 },
    Paused,
    Doomed,
    Ended(TaskResult),
}

/// What is known of a task independently of the schedule.
#[derive(Debug, Clone)]
struct Fact {
    queue: usize,
    slots: u64,
    needs: [u64; 2],
    priority: i32,
    after: BTreeSet<u64>,
    phase: Phase,
    /// What it took at its start.
    taken: (u64, [u64; 2]),
    starts_allowed: u32,
}

struct World {
    schedule: Schedule,
    queues: Vec<QueueId>,
    facts: BTreeMap<u64, Fact>,
    limit: u64,
    resources: [u64; 2],
    turns: Vec<(usize, u64)>,
}

impl World {
    fn new() -> Self {
        let limit = 6;
        let mut schedule = Schedule::new(limit);
        let queues = (0..3).map(|_| schedule.add_queue()).collect();
        let resources = [1, 3];
        for (name, amount) in RESOURCES.iter().zip(resources) {
            schedule.set_resource(name, amount);
        }
        Self { schedule, queues, facts: BTreeMap::new(), limit, resources, turns: Vec::new() }
    }

    fn used(&self) -> (u64, [u64; 2]) {
        let running = self.facts.values().filter(|fact| matches!(fact.phase, Phase::Running { .. }));
        running.fold((0, [0; 2]), |(slots, [link, memory]), Fact { taken: (more, [a, b]), .. }| {
            (slots + more, [link + a, memory + b])
        })
    }

    fn share(&self, fact: &Fact) -> (u64, [u64; 2]) {
        let [link, memory] = fact.needs;
        (fact.slots.min(self.limit), [link.min(self.resources[0]), memory.min(self.resources[1])])
    }

    fn fits(&self, fact: &Fact) -> bool {
        let (slots, resources) = self.used();
        let (wanted, amounts) = self.share(fact);
        let fits = |used: u64, asked: u64, wanted: u64, limit: u64| asked == 0 || limit > 0 && used + wanted <= limit;
        fits(slots, fact.slots, wanted, self.limit)
            && (0..2).all(|at| fits(resources[at], fact.needs[at], amounts[at], self.resources[at]))
    }

    /// Tasks that wait for a slot only.
    fn ready(&self) -> impl Iterator<Item = (u64, &Fact)> {
        let has_succeeded = |on: &u64| self.facts[on].phase == Phase::Ended(TaskResult::Success);
        let ready = move |fact: &&Fact| fact.phase == Phase::Waiting && fact.after.iter().all(has_succeeded);
        self.facts.iter().map(|(id, fact)| (*id, fact)).filter(move |(_, fact)| ready(fact))
    }

    fn pick(&self, which: usize, wanted: impl Fn(Phase) -> bool) -> Option<u64> {
        let fitting: Vec<u64> = self.facts.iter().filter(|(_, fact)| wanted(fact.phase)).map(|(id, _)| *id).collect();
        fitting.get(which.checked_rem(fitting.len())?).copied()
    }

    fn set(&mut self, id: u64, phase: Phase) {
        self.facts.get_mut(&id).unwrap().phase = phase;
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Submit { queue, slots, needs, priority, after } => {
                self.submit((queue, priority), (slots, needs), &after);
            }
            Step::End { which, result } => {
                let Some(id) = self.pick(which, |phase| matches!(phase, Phase::Running { .. })) else { return };
                self.finish(id, result);
            }
            Step::Pause(which) => {
                let Some(id) = self.pick(which, |phase| matches!(phase, Phase::Running { .. })) else { return };
                self.set(id, Phase::Paused);
                self.facts.get_mut(&id).unwrap().starts_allowed += 1;
                self.schedule.pause(TaskId(id));
            }
            Step::Resume(which) => {
                let Some(id) = self.pick(which, |phase| phase == Phase::Paused) else { return };
                self.set(id, Phase::Waiting);
                self.schedule.resume(TaskId(id));
            }
            Step::Cancel(which) => {
                let Some(id) = self.pick(which, |phase| !matches!(phase, Phase::Ended(_))) else { return };
                self.finish(id, TaskResult::Failure);
            }
            Step::SetLimit(limit) => {
                self.limit = limit;
                self.schedule.set_limit(limit);
            }
            Step::SetResource(which, amount) => {
                self.resources[which] = amount;
                self.schedule.set_resource(RESOURCES[which], amount);
            }
        }
        self.follow();
    }

    fn submit(&mut self, (queue, priority): (usize, i32), (slots, needs): (u64, [u64; 2]), after: &[usize]) {
        let id = self.facts.len() as u64;
        let demand = self.schedule.demand(slots, &RESOURCES.map(Box::from).into_iter().zip(needs).collect::<Vec<_>>());
        let is_met = |wanted: u64, limit: u64| wanted <= limit || limit == 0;
        let is_possible = slots > 0
            && is_met(slots, self.limit)
            && needs.iter().zip(self.resources).all(|(wanted, limit)| is_met(*wanted, limit));
        assert_eq!(demand.is_ok(), is_possible, "{demand:?}");
        let Ok(demand) = demand else { return };
        let after: BTreeSet<u64> = after.iter().map(|on| *on as u64).filter(|on| *on < id).collect();
        let failed = after.iter().find(|on| self.facts[on].phase == Phase::Ended(TaskResult::Failure));
        let failed = failed.map(|on| TaskId(*on));
        let (starts_allowed, phase) = (1, Phase::Waiting);
        let new = NewTask { id: TaskId(id), demand, priority, after: after.iter().map(|on| TaskId(*on)).collect() };
        self.facts.insert(id, Fact { queue, slots, needs, priority, after, phase, taken: (0, [0; 2]), starts_allowed });
        self.schedule.submit(self.queues[queue], new, failed);
    }

    fn finish(&mut self, id: u64, result: TaskResult) {
        self.set(id, Phase::Ended(result));
        self.schedule.finish(TaskId(id), result);
    }

    /// Follows the decisions of the schedule, and checks each. The owner ends tasks whose dependency has failed.
    fn follow(&mut self) {
        loop {
            let outputs = self.schedule.take_outputs();
            if outputs.is_empty() {
                break;
            }
            let mut doomed = Vec::new();
            for (queue, output) in outputs {
                let (TaskOutput::Start { task, .. } | TaskOutput::DependencyFailed { task, .. }) = output;
                assert_eq!(queue, self.queues[self.facts[&task.0].queue], "the decision is for the queue of the task");
                match output {
                    TaskOutput::Start { task, slot } => self.started(task.0, slot),
                    TaskOutput::DependencyFailed { task, on } => {
                        let fact = &self.facts[&task.0];
                        assert_eq!(fact.phase, Phase::Waiting);
                        assert!(fact.after.contains(&on.0));
                        assert_eq!(self.facts[&on.0].phase, Phase::Ended(TaskResult::Failure));
                        self.set(task.0, Phase::Doomed);
                        doomed.push(task.0);
                    }
                }
            }
            for id in doomed {
                self.finish(id, TaskResult::Failure);
            }
        }
        self.check();
    }

    fn started(&mut self, id: u64, slot: u32) {
        let fact = self.facts[&id].clone();
        assert!(self.ready().any(|(ready, _)| ready == id), "{id} starts: {fact:?}");
        assert!(self.fits(&fact), "{id} fits");
        assert!(fact.starts_allowed > 0, "{id} starts once for each run");
        let busy: BTreeSet<u32> = self
            .facts
            .values()
            .filter_map(|fact| if let Phase::Running { slot } = fact.phase { Some(slot) } else { None })
            .collect();
        assert!(!busy.contains(&slot) && (1..slot).all(|lower| busy.contains(&lower)), "the lowest free number");
        let first = |queue: usize| {
            let fitting = self.ready().filter(|(_, other)| other.queue == queue && self.fits(other));
            fitting.map(|(id, other)| (-i64::from(other.priority), id)).min()
        };
        assert_eq!(first(fact.queue).map(|(_, first)| first), Some(id), "the first of its queue that fits");
        let slots_of = |queue: usize| {
            let of_queue = self.facts.values().filter(|fact| fact.queue == queue);
            of_queue.filter(|fact| matches!(fact.phase, Phase::Running { .. })).map(|fact| fact.taken.0).sum::<u64>()
        };
        let fair = (0..3).filter(|queue| first(*queue).is_some()).map(slots_of).min();
        assert_eq!(fair, Some(slots_of(fact.queue)), "its queue has the fewest slots");
        let taken = self.share(&fact);
        let fact = self.facts.get_mut(&id).unwrap();
        fact.starts_allowed -= 1;
        (fact.phase, fact.taken) = (Phase::Running { slot }, taken);
        self.turns.push((fact.queue, id));
    }

    fn check(&self) {
        if let Some((id, _)) = self.ready().find(|(_, fact)| self.fits(fact)) {
            panic!("{id} fits and does not run");
        }
        for (id, fact) in &self.facts {
            let has_ended = matches!(fact.phase, Phase::Ended(_));
            assert_eq!(self.schedule.contains(TaskId(*id)), !has_ended, "{id}");
            let is_doomed = fact.after.iter().any(|on| self.facts[on].phase == Phase::Ended(TaskResult::Failure));
            assert!(has_ended || !is_doomed, "{id} has ended with its dependency");
        }
    }

    /// Ends everything, and checks that every task has ended.
    fn drain(&mut self) {
        self.step(Step::SetLimit(self.limit.max(1)));
        for which in 0..2 {
            self.step(Step::SetResource(which, self.resources[which].max(1)));
        }
        while self.pick(0, |phase| !matches!(phase, Phase::Ended(_))).is_some() {
            if let Some(id) = self.pick(0, |phase| phase == Phase::Paused) {
                self.step(Step::Resume(0));
                assert_ne!(self.facts[&id].phase, Phase::Paused);
                continue;
            }
            assert!(
                self.pick(0, |phase| matches!(phase, Phase::Running { .. })).is_some(),
                "tasks are left, and none runs"
            );
            self.step(Step::End { which: 0, result: TaskResult::Success });
        }
    }
}

proptest! {
    #[test]
    fn random_histories_end_every_task_once_within_the_limits(steps in prop::collection::vec(step(), 0..120)) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        world.drain();
        let queues = world.queues.clone();
        for queue in queues {
            world.schedule.remove_queue(queue);
        }
        prop_assert!(world.schedule.take_outputs().is_empty());
    }
}

fn submit(schedule: &mut Schedule, queue: QueueId, id: u64, after: &[u64]) {
    let demand = schedule.demand(1, &[]).unwrap();
    let after = after.iter().map(|on| TaskId(*on)).collect();
    schedule.submit(queue, NewTask { id: TaskId(id), demand, priority: 0, after }, None);
}

fn starts(schedule: &mut Schedule) -> Vec<u64> {
    let outputs = schedule.take_outputs().into_iter();
    outputs
        .filter_map(|(_, output)| if let TaskOutput::Start { task, .. } = output { Some(task.0) } else { None })
        .collect()
}

#[test]
fn queues_of_equal_demand_take_turns() {
    let mut schedule = Schedule::new(1);
    let (left, right) = (schedule.add_queue(), schedule.add_queue());
    for id in 0..4 {
        submit(&mut schedule, left, id, &[]);
    }
    for id in 10..14 {
        submit(&mut schedule, right, id, &[]);
    }
    let mut order = Vec::new();
    while let [id] = *starts(&mut schedule) {
        order.push(id);
        schedule.finish(TaskId(id), TaskResult::Success);
    }
    assert_eq!(order, [0, 10, 1, 11, 2, 12, 3, 13]);
}

#[test]
fn impossible_demands_are_refused_by_name() {
    let mut schedule = Schedule::new(2);
    schedule.set_resource("link", 1);
    let refused = |slots, needs: &[(&str, u64)]| {
        let needs: Vec<_> = needs.iter().map(|(name, amount)| (Box::from(*name), *amount)).collect();
        schedule.demand(slots, &needs).unwrap_err()
    };
    assert_eq!(refused(0, &[]), DemandError::NoSlots);
    assert_eq!(refused(3, &[]), DemandError::TooManySlots { wanted: 3, limit: 2 });
    assert_eq!(refused(1, &[("gpu", 1)]), DemandError::UnknownResource { name: "gpu".into() });
    let twice = [("link", 1), ("link", 1)];
    assert_eq!(refused(1, &twice), DemandError::TooMuch { name: "link".into(), wanted: 2, limit: 1 });
}

#[test]
fn cancelled_dependents_are_forgotten() {
    let mut schedule = Schedule::new(1);
    let queue = schedule.add_queue();
    submit(&mut schedule, queue, 0, &[]);
    for id in 1..1000 {
        submit(&mut schedule, queue, id, &[0]);
        schedule.finish(TaskId(id), TaskResult::Failure);
    }
    assert_eq!(schedule.dependents(TaskId(0)), 0);
}

/// 20,000 tasks that wait for everything: each step must not look at all of them.
#[test]
fn steps_of_a_long_queue_take_little_time() {
    let mut schedule = Schedule::new(8);
    let queue = schedule.add_queue();
    let count = 20_000;
    let all: Vec<u64> = (0..count).collect();
    for id in 0..count {
        submit(&mut schedule, queue, id, &[]);
    }
    submit(&mut schedule, queue, count, &all);
    let mut running = starts(&mut schedule);
    let mut ended = 0;
    while let Some(id) = running.pop() {
        schedule.finish(TaskId(id), TaskResult::Success);
        ended += 1;
        running.extend(starts(&mut schedule));
        assert!(running.len() <= 8);
    }
    assert_eq!(ended, count + 1);
}
