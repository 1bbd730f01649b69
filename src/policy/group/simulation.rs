//! Groups in an invented world: what they promise, in any history.

use crate::deadline::start;
use crate::ids::{GroupId, WorkerId};
use crate::policy::group::{
    dependencies::Towards,
    examples::{PERIOD, PERMANENT, ROOT, TRANSIENT, crashed, done, gave_up},
    members::Outlook,
    model::{AutoShutdown, DependencyCondition, GroupIntensity, GroupSettings, Lifetime, Node, Role, Strategy},
    state::{Down, Groups, Phase, State},
    transition::{Input, Output, Verdict},
};
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

/// What the world knows of a member, apart from `Groups`.
#[derive(Debug, Default, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "facts, each true or not, apart from the states they are to check")]
struct Fact {
    alive: bool,
    over: bool,
    started: bool,
    ready: bool,
    told: bool,
    /// Its last life ended with success, and what it was then.
    succeeded: bool,
    was_ready: bool,
    starts_allowed: u32,
    after: BTreeMap<WorkerId, DependencyCondition>,
}

struct World {
    groups: Groups,
    facts: BTreeMap<WorkerId, Fact>,
    restarts: BTreeMap<GroupId, Vec<Instant>>,
    /// Those whose end is limited and has been begun and not told.
    ending: BTreeSet<GroupId>,
    /// Those that have run since their end was reported last.
    running: BTreeSet<GroupId>,
    next_id: u64,
    now: Instant,
}

impl World {
    fn new(bytes: &[u8]) -> Self {
        let mut byte = bytes.iter().copied().cycle();
        let mut next = move || byte.next().unwrap();
        let mut settings = || GroupSettings {
            strategy: [Strategy::OneForOne, Strategy::OneForAll, Strategy::RestForOne][usize::from(next() % 3)],
            auto_shutdown: [AutoShutdown::Never, AutoShutdown::AnySignificant, AutoShutdown::AllSignificant]
                [usize::from(next() % 3)],
            intensity: Some(GroupIntensity { restarts: u32::from(next() % 5), period: PERIOD }),
            stop_within: next().is_multiple_of(2).then_some(PERIOD),
        };
        let mut groups = Groups::new(ROOT, settings());
        for group in 1..4 {
            let settings = settings();
            let parent = GroupId(u64::from(bytes[usize::try_from(group).unwrap()]) % group);
            let added = groups.add_group(GroupId(group), parent, role(bytes[5]), settings);
            if added.is_err() {
                groups.add_group(GroupId(group), parent, PERMANENT, settings).unwrap();
            }
        }
        let (facts, restarts) = (BTreeMap::new(), BTreeMap::new());
        let mut world = Self {
            groups,
            facts,
            restarts,
            ending: BTreeSet::new(),
            running: BTreeSet::new(),
            next_id: 0,
            now: start(),
        };
        for byte in bytes.iter().take(9) {
            world.add(*byte);
        }
        for pair in bytes.chunks_exact(3) {
            world.link(pair[0], pair[1], pair[2]);
        }
        world
    }

    fn add(&mut self, byte: u8) {
        let (id, group) = (WorkerId(self.next_id), GroupId(u64::from(byte / 16) % 4));
        let added = self.groups.add_member(id, group, role(byte)).is_ok()
            || self.groups.add_member(id, group, TRANSIENT).is_ok();
        if added {
            self.next_id += 1;
            let over = self.groups.is_over(Node::Member(id));
            self.facts.insert(id, Fact { starts_allowed: 1, over, ..Fact::default() });
        }
    }

    fn link(&mut self, member: u8, on: u8, when: u8) {
        let ids = self.next_id.max(1);
        let (member, on) = (WorkerId(u64::from(member) % ids), WorkerId(u64::from(on) % ids));
        let when = [DependencyCondition::Started, DependencyCondition::Ready, DependencyCondition::Completed]
            [usize::from(when % 3)];
        if self.groups.add_dependency(member, on, when).is_ok() {
            self.facts.get_mut(&member).unwrap().after.insert(on, when);
        }
    }

    fn pick(&self, byte: u8, wanted: impl Fn(&Fact) -> bool) -> Option<WorkerId> {
        let found: Vec<_> = self.facts.iter().filter(|(_, fact)| wanted(fact)).map(|(id, _)| *id).collect();
        (!found.is_empty()).then(|| found[usize::from(byte) % found.len()])
    }

    fn node(&self, byte: u8) -> Node {
        if byte.is_multiple_of(4) {
            return Node::Group(GroupId(u64::from(byte / 4) % 4));
        }
        self.pick(byte / 4, |_| true).map_or(Node::Group(ROOT), Node::Member)
    }

    fn end_of(&self, member: WorkerId, byte: u8) -> Input {
        let success = byte.is_multiple_of(2);
        let verdict = match self.groups.role(Node::Member(member)).unwrap().lifetime {
            Lifetime::Temporary => Verdict::Finished,
            Lifetime::Transient if success => Verdict::Finished,
            Lifetime::Transient | Lifetime::Permanent if byte & 6 == 0 => Verdict::GaveUp,
            Lifetime::Transient | Lifetime::Permanent => Verdict::Again,
        };
        Input::Ended { member, success, verdict }
    }

    /// One step of the world; `None` if there is nobody to take it.
    fn input(&mut self, step: u8, byte: u8) -> Option<Input> {
        Some(match step % 16 {
            0..=2 => Input::Started(self.pick(byte, |fact| fact.alive && !fact.started)?),
            3 | 4 => Input::Ready(self.pick(byte, |fact| fact.started && !fact.ready)?),
            5..=7 => self.end_of(self.pick(byte, |fact| fact.alive && !fact.told)?, byte.wrapping_add(step / 16)),
            8..=10 => self.end_of(self.pick(byte, |fact| fact.told)?, byte.wrapping_add(step / 16)),
            11 => Input::Stop(self.node(byte)),
            12 => Input::Start(self.node(byte)),
            13 => Input::Restart(self.node(byte)),
            14 if byte < 40 => Input::Remove(self.node(step ^ byte.wrapping_mul(7))),
            14 => {
                self.add(byte);
                self.link(u8::try_from(self.next_id.saturating_sub(1) % 256).unwrap(), byte, step / 16);
                Input::Start(Node::Member(WorkerId(self.next_id.saturating_sub(1))))
            }
            // Told late, or twice.
            _ => [Input::Started, Input::Ready, done, crashed, gave_up][usize::from(step / 16 % 5)](
                self.pick(byte, |fact| !fact.alive)?,
            ),
        })
    }

    fn step(&mut self, input: Input) -> Vec<Output> {
        let counted = self.before(input);
        let outputs = self.groups.handle(input, self.now);
        for output in &outputs {
            self.see(*output, input);
        }
        if let Some(group) = counted
            && !outputs.contains(&Output::GroupGaveUp(group))
        {
            self.count(group);
        }
        self.check(input);
        self.check_touched(input);
        self.check_ends(input);
        outputs
    }

    /// Whether a group that takes siblings along has declared the first of them, or its group, before the other.
    fn is_ordered_before(&self, earlier: WorkerId, later: WorkerId) -> bool {
        self.groups.groups.iter().filter(|(_, group)| group.settings.strategy != Strategy::OneForOne).any(|(id, _)| {
            let children = self.groups.children(*id);
            let place = |member| children.iter().position(|child| self.groups.members_under(*child).contains(&member));
            place(earlier).zip(place(later)).is_some_and(|(earlier, later)| earlier < later)
        })
    }

    /// The end of each group that has run is reported once it is final.
    fn check_ends(&mut self, input: Input) {
        for (id, group) in &self.groups.groups {
            if self.groups.is_over(Node::Group(*id)) {
                assert!(!self.running.contains(id), "{id:?} at {input:?}: its end was not reported");
            } else if !matches!(group.phase, Phase::Rest(_)) || group.is_unreported {
                self.running.insert(*id);
            }
        }
    }

    /// Who is over, or is not any more, is told of: the driver looks at nobody else.
    fn check_touched(&mut self, input: Input) {
        let touched = self.groups.take_touched();
        for (id, fact) in &mut self.facts {
            let node = Node::Member(*id);
            let is_over = self.groups.is_over(node);
            assert!(fact.over == is_over || touched.contains(&node), "{id:?} at {input:?}: {is_over}");
            fact.over = is_over;
        }
    }

    /// Takes note of what is told; the group, if this is an end that makes it restart siblings.
    fn before(&mut self, input: Input) -> Option<GroupId> {
        match input {
            Input::Start(node) | Input::Restart(node) => {
                for member in self.groups.members_under(node) {
                    if let Some(fact) = self.facts.get_mut(&member) {
                        fact.starts_allowed += 1;
                    }
                }
            }
            Input::Started(member) | Input::Ready(member) => {
                let fact = self.facts.get_mut(&member).unwrap();
                fact.started |= fact.alive;
                fact.ready |= fact.alive && input == Input::Ready(member);
            }
            Input::Ended { member, success, verdict } => {
                let fact = self.facts.get_mut(&member).unwrap();
                if fact.alive {
                    let own = !matches!(self.groups.members[&member].state, State::Leaving { .. });
                    (fact.succeeded, fact.was_ready) = (success, fact.ready);
                    (fact.alive, fact.started, fact.ready, fact.told) = (false, false, false, false);
                    let group = self.groups.parent(Node::Member(member)).unwrap();
                    return (own && verdict == Verdict::Again).then_some(group);
                }
            }
            Input::Stop(_) | Input::StopAll | Input::Remove(_) => {}
        }
        None
    }

    fn count(&mut self, group: GroupId) {
        let intensity = self.groups.groups[&group].settings.intensity.unwrap();
        let restarts = self.restarts.entry(group).or_default();
        restarts.push(self.now);
        let recent = restarts.iter().filter(|at| self.now.saturating_duration_since(**at) <= intensity.period).count();
        assert!(recent <= usize::try_from(intensity.restarts).unwrap(), "{group:?}: {recent} of {intensity:?}");
    }

    fn see(&mut self, output: Output, input: Input) {
        match output {
            Output::Start(member) => {
                for (on, when) in &self.facts[&member].after {
                    // Whom others wait for is not removed before them.
                    let on = &self.facts[on];
                    let is_met = match when {
                        DependencyCondition::Started => on.started || !on.alive && on.succeeded,
                        DependencyCondition::Ready => on.ready || !on.alive && on.succeeded && on.was_ready,
                        DependencyCondition::Completed => !on.alive && on.succeeded,
                    };
                    assert!(is_met, "{output:?} at {input:?} without {on:?}");
                }
                let is_starting = |other: &WorkerId| {
                    let fact = &self.facts[other];
                    fact.alive && !fact.started && !fact.told && !self.groups.is_leaving(*other)
                };
                let mut earlier = self.facts.keys().filter(|other| self.is_ordered_before(**other, member));
                let early = earlier.find(|other| is_starting(other));
                assert_eq!(early, None, "{output:?} at {input:?} before an earlier one runs");
                let fact = self.facts.get_mut(&member).unwrap();
                assert!(!fact.alive, "{output:?} at {input:?} while it runs");
                fact.alive = true;
                if self.groups.role(Node::Member(member)).unwrap().lifetime == Lifetime::Temporary {
                    assert!(fact.starts_allowed > 0, "{output:?} at {input:?}, for which no user has asked");
                    fact.starts_allowed = 0;
                }
            }
            Output::Stop(member) => {
                let needing = self.groups.order.reach([member], Towards::Needing);
                let is_leaving = |other: &WorkerId| self.facts[other].told && self.facts[other].alive;
                assert!(!needing.iter().any(is_leaving), "{output:?} at {input:?} before those that need it");
                let fact = self.facts.get_mut(&member).unwrap();
                assert!(fact.alive && !fact.told, "{output:?} at {input:?}: {fact:?}");
                fact.told = true;
            }
            Output::DependencyFailed { member, .. } => assert!(!self.facts[&member].alive),
            Output::GroupEnds { group, within } => {
                assert_eq!(within, PERIOD);
                self.ending.insert(group);
            }
            Output::GroupGaveUp(_) | Output::Removed(Node::Group(_)) => {}
            Output::GroupEnded(group) => {
                // One that begins and ends with the same input has not been seen to run.
                let begins = matches!(input, Input::Start(_) | Input::Restart(_) | Input::Ended { .. });
                assert!(self.running.remove(&group) || begins, "{output:?} at {input:?}: its end was reported before");
                assert!(self.groups.is_over(Node::Group(group)), "{output:?} at {input:?}, and it will run again");
                self.ending.remove(&group);
                self.restarts.remove(&group);
            }
            Output::GroupRestarting(group) => {
                self.ending.remove(&group);
                self.restarts.remove(&group);
            }
            Output::Removed(Node::Member(member)) => {
                let fact = self.facts.remove(&member).unwrap();
                assert!(!fact.alive);
                for (other, _) in self.facts.iter().filter(|(_, fact)| fact.after.contains_key(&member)) {
                    let other = Node::Member(*other);
                    let leaves = self.groups.role(other).is_none() || self.groups.is_being_removed(other);
                    assert!(leaves, "{member:?} is gone, and {other:?} waits for it");
                }
            }
        }
    }

    /// What must hold between any two inputs: the books agree, and nobody waits for nothing.
    fn check(&self, input: Input) {
        let groups = &self.groups;
        for (id, member) in &groups.members {
            assert_eq!(member.state.is_alive(), self.facts[id].alive, "{id:?} at {input:?}: {member:?}");
            match member.state {
                State::Waiting => {
                    assert!(groups.is_open(Node::Member(*id)), "{id:?} at {input:?} waits in a stopped group");
                    let outlooks: Vec<_> =
                        groups.order.after(*id).iter().map(|on| groups.outlook(on.0, on.1)).collect();
                    let has_turn = groups.turn_before(*id).is_none();
                    let waits = outlooks.contains(&Outlook::Pending) || !has_turn;
                    assert!(waits && !outlooks.contains(&Outlook::Hopeless), "{id:?} at {input:?}: {outlooks:?}");
                }
                State::Leaving { told: false, .. } => {
                    let needing = groups.order.reach([*id], Towards::Needing);
                    let leaves = |other| matches!(groups.members[other].state, State::Leaving { .. });
                    assert!(needing.iter().any(leaves), "{id:?} at {input:?} is not told to stop");
                }
                State::Down(Down::New) => {
                    assert!(
                        !groups.is_open(Node::Member(*id))
                            || groups.is_being_removed(Node::Member(*id))
                            || self.is_unasked(*id),
                        "{id:?} at {input:?} is forgotten"
                    );
                }
                State::Down(_) | State::Starting | State::Running { .. } | State::Leaving { told: true, .. } => {}
            }
        }
        for (id, group) in &groups.groups {
            let alive = groups.members_under(Node::Group(*id)).iter().filter(|member| self.facts[member].alive).count();
            assert_eq!(group.alive, alive, "{id:?} at {input:?}: {group:?}");
            let is_limited = matches!(group.phase, Phase::Ending { .. }) && group.settings.stop_within.is_some();
            assert!(self.ending.contains(id) || !is_limited, "{id:?} at {input:?}: {group:?}");
            match &group.phase {
                Phase::Up => {}
                Phase::Rest(_) => assert_eq!(alive, 0, "{id:?} at {input:?}"),
                Phase::Ending { .. } => assert!(alive > 0, "{id:?} at {input:?} never ends"),
                Phase::Restarting { set, pending } => {
                    assert!(pending.iter().any(|node| !groups.is_at_rest(*node)), "{id:?} at {input:?} never starts");
                    let is_quiet = |node: &Node| match node {
                        Node::Member(member) => !matches!(
                            groups.members[member].state,
                            State::Starting | State::Running { .. } | State::Waiting
                        ),
                        Node::Group(group) => groups.groups[group].phase != Phase::Up,
                    };
                    assert!(
                        set.iter().filter(|node| groups.role(**node).is_some()).all(is_quiet),
                        "{id:?} at {input:?}: {set:?}"
                    );
                }
            }
        }
    }

    /// Declared, but `Start` was not heard yet.
    fn is_unasked(&self, member: WorkerId) -> bool {
        self.facts[&member].starts_allowed == 1
    }
}

fn role(byte: u8) -> Role {
    let lifetime = [Lifetime::Temporary, Lifetime::Transient, Lifetime::Permanent][usize::from(byte % 3)];
    Role { lifetime, significant: byte & 4 == 0 && lifetime != Lifetime::Permanent }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn p08_p13_any_history_keeps_order_and_bounds_and_ends(
        shape in prop::collection::vec(any::<u8>(), 12..40),
        history in prop::collection::vec((any::<u8>(), any::<u8>(), 0..4000_u64), 0..120),
        choices in prop::collection::vec(any::<u8>(), 64),
        whole: bool,
    ) {
        let mut world = World::new(&shape);
        world.step(Input::Start(Node::Group(ROOT)));
        for (step, byte, pause_ms) in history {
            world.now += Duration::from_millis(pause_ms);
            if let Some(input) = world.input(step, byte) {
                world.step(input);
            }
        }
        // Whatever came before: after a stop of all, all end, in reverse, and nothing starts.
        let ends = usize::from(world.running.contains(&ROOT));
        let mut outputs = world.step(if whole { Input::Stop(Node::Group(ROOT)) } else { Input::StopAll });
        for byte in choices.iter().cycle() {
            if !world.facts.values().any(|fact| fact.alive) {
                break;
            }
            let member = world.pick(*byte, |fact| fact.told).expect("somebody alive has been told to stop");
            let before = outputs.len();
            outputs.extend(world.step(world.end_of(member, *byte)));
            for output in &outputs[before..] {
                if let Output::Stop(member) = output {
                    let needing = world.groups.order.reach([*member], Towards::Needing);
                    prop_assert!(needing.iter().all(|other| !world.facts[other].alive), "{member:?} before {needing:?}");
                }
            }
        }
        let is_start = |output: &&Output| matches!(output, Output::Start(_));
        prop_assert_eq!(outputs.iter().find(is_start), None);
        if whole {
            prop_assert_eq!(outputs.iter().filter(|output| **output == Output::GroupEnded(ROOT)).count(), ends);
            prop_assert!(world.groups.is_at_rest(Node::Group(ROOT)));
        }
    }
}
