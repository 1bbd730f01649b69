//! Checks the invariants of groups in random histories.

use crate::{
    deadline::start,
    ids::{GroupId, WorkerId},
    policy::{
        group::{
            dependencies::Traversal,
            examples::{PERIOD, PERMANENT, ROOT, TRANSIENT, crashed, done, gave_up},
            members::DependencyState,
            model::{AutoShutdown, DependencyCondition, GroupSettings, NodeId, Role, Strategy},
            state::{DownReason, GroupPhase, Groups, MemberState},
            transition::{GroupInput, GroupOutput},
        },
        restart::{GiveUpReason, Restart, RestartIntensity},
        restart_history::RestartDecision,
    },
};
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

/// What is known of a member independently of `Groups`.
#[derive(Debug, Default, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts, to check the states against")]
struct Fact {
    alive: bool,
    over: bool,
    started: bool,
    ready: bool,
    is_sent: bool,
    /// Of its last run.
    succeeded: bool,
    was_ready: bool,
    starts_allowed: u32,
    after: BTreeMap<WorkerId, DependencyCondition>,
}

struct World {
    groups: Groups,
    facts: BTreeMap<WorkerId, Fact>,
    restarts: BTreeMap<GroupId, Vec<Instant>>,
    /// Groups with a stop timeout that are stopping.
    ending: BTreeSet<GroupId>,
    /// Groups that were up since their end was last reported.
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
            intensity: Some(RestartIntensity::new(u32::from(next() % 5), PERIOD)),
            stop_timeout: next().is_multiple_of(2).then_some(PERIOD),
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
            let over = self.groups.is_finished(NodeId::Member(id));
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

    fn node(&self, byte: u8) -> NodeId {
        if byte.is_multiple_of(4) {
            return NodeId::Group(GroupId(u64::from(byte / 4) % 4));
        }
        self.pick(byte / 4, |_| true).map_or(NodeId::Group(ROOT), NodeId::Member)
    }

    fn end_of(&self, member: WorkerId, byte: u8) -> GroupInput {
        let success = byte.is_multiple_of(2);
        let decision = match self.groups.role(NodeId::Member(member)).unwrap().restart {
            Restart::Never => RestartDecision::Finish,
            Restart::OnFailure if success => RestartDecision::Finish,
            Restart::OnFailure | Restart::Always if byte & 6 == 0 => {
                RestartDecision::GiveUp(GiveUpReason::IntensityExceeded)
            }
            Restart::OnFailure | Restart::Always => RestartDecision::Restart { after: Duration::ZERO },
        };
        GroupInput::Ended { member, success, decision }
    }

    /// The input of one step; `None` if no member fits.
    fn input(&mut self, step: u8, byte: u8) -> Option<GroupInput> {
        Some(match step % 16 {
            0..=2 => GroupInput::Started(self.pick(byte, |fact| fact.alive && !fact.started)?),
            3 | 4 => GroupInput::Ready(self.pick(byte, |fact| fact.started && !fact.ready)?),
            5..=7 => self.end_of(self.pick(byte, |fact| fact.alive && !fact.is_sent)?, byte.wrapping_add(step / 16)),
            8..=10 => self.end_of(self.pick(byte, |fact| fact.is_sent)?, byte.wrapping_add(step / 16)),
            11 => GroupInput::Stop(self.node(byte)),
            12 => GroupInput::Start(self.node(byte)),
            13 => GroupInput::Restart(self.node(byte)),
            14 if byte < 40 => GroupInput::Remove(self.node(step ^ byte.wrapping_mul(7))),
            14 => {
                self.add(byte);
                self.link(u8::try_from(self.next_id.saturating_sub(1) % 256).unwrap(), byte, step / 16);
                GroupInput::Start(NodeId::Member(WorkerId(self.next_id.saturating_sub(1))))
            }
            // A late or repeated report.
            _ => [GroupInput::Started, GroupInput::Ready, done, crashed, gave_up][usize::from(step / 16 % 5)](
                self.pick(byte, |fact| !fact.alive)?,
            ),
        })
    }

    fn step(&mut self, input: GroupInput) -> Vec<GroupOutput> {
        let counted = self.before(input);
        let outputs = self.groups.handle(input, self.now);
        for output in &outputs {
            self.check_output(*output, input);
        }
        if let Some(group) = counted
            && !outputs.contains(&GroupOutput::GroupGaveUp(group))
        {
            self.count(group);
        }
        self.check(input);
        self.check_changed(input);
        self.check_ends(input);
        outputs
    }

    /// Whether a group with ordered starts declares `earlier`, or its group, before `later`.
    fn is_ordered_before(&self, earlier: WorkerId, later: WorkerId) -> bool {
        self.groups.groups.iter().filter(|(_, group)| group.settings.strategy != Strategy::OneForOne).any(|(id, _)| {
            let children = self.groups.children(*id);
            let place = |member| children.iter().position(|child| self.groups.members_under(*child).contains(&member));
            place(earlier).zip(place(later)).is_some_and(|(earlier, later)| earlier < later)
        })
    }

    /// Each group that was up reports its end once it is final.
    fn check_ends(&mut self, input: GroupInput) {
        for (id, group) in &self.groups.groups {
            if self.groups.is_finished(NodeId::Group(*id)) {
                assert!(!self.running.contains(id), "{id:?} at {input:?}: its end was not reported");
            } else if !matches!(group.phase, GroupPhase::Down(_)) || group.is_unreported {
                self.running.insert(*id);
            }
        }
    }

    /// `take_changed` contains every node whose `is_finished` changed: the event loop checks no other nodes.
    fn check_changed(&mut self, input: GroupInput) {
        let changed = self.groups.take_changed();
        for (id, fact) in &mut self.facts {
            let node = NodeId::Member(*id);
            let is_finished = self.groups.is_finished(node);
            assert!(fact.over == is_finished || changed.contains(&node), "{id:?} at {input:?}: {is_finished}");
            fact.over = is_finished;
        }
    }

    /// Records an input. Returns the group that restarts siblings because of it, if any.
    fn before(&mut self, input: GroupInput) -> Option<GroupId> {
        match input {
            GroupInput::Start(node) | GroupInput::Restart(node) => {
                for member in self.groups.members_under(node) {
                    if let Some(fact) = self.facts.get_mut(&member) {
                        fact.starts_allowed += 1;
                    }
                }
            }
            GroupInput::Started(member) | GroupInput::Ready(member) => {
                let fact = self.facts.get_mut(&member).unwrap();
                fact.started |= fact.alive;
                fact.ready |= fact.alive && input == GroupInput::Ready(member);
            }
            GroupInput::Ended { member, success, decision } => {
                let fact = self.facts.get_mut(&member).unwrap();
                if fact.alive {
                    let own = !matches!(self.groups.members[&member].state, MemberState::Stopping { .. });
                    (fact.succeeded, fact.was_ready) = (success, fact.ready);
                    (fact.alive, fact.started, fact.ready, fact.is_sent) = (false, false, false, false);
                    let group = self.groups.parent(NodeId::Member(member)).unwrap();
                    return (own && decision == RestartDecision::Restart { after: Duration::ZERO }).then_some(group);
                }
            }
            GroupInput::Stop(_) | GroupInput::StopAll | GroupInput::Remove(_) => {}
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

    fn check_output(&mut self, output: GroupOutput, input: GroupInput) {
        match output {
            GroupOutput::Start(member) => {
                for (on, when) in &self.facts[&member].after {
                    // A dependency is not removed before its dependents.
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
                    fact.alive && !fact.started && !fact.is_sent && !self.groups.is_stopping(*other)
                };
                let mut earlier = self.facts.keys().filter(|other| self.is_ordered_before(**other, member));
                let early = earlier.find(|other| is_starting(other));
                assert_eq!(early, None, "{output:?} at {input:?} before an earlier member runs");
                let fact = self.facts.get_mut(&member).unwrap();
                assert!(!fact.alive, "{output:?} at {input:?} while it runs");
                fact.alive = true;
                if self.groups.role(NodeId::Member(member)).unwrap().restart == Restart::Never {
                    assert!(fact.starts_allowed > 0, "{output:?} at {input:?}, which no user started");
                    fact.starts_allowed = 0;
                }
            }
            GroupOutput::Stop(member) => {
                let dependents = self.groups.dependencies.reachable([member], Traversal::Dependents);
                let is_stopping = |other: &WorkerId| self.facts[other].is_sent && self.facts[other].alive;
                assert!(!dependents.iter().any(is_stopping), "{output:?} at {input:?} before its dependents");
                let fact = self.facts.get_mut(&member).unwrap();
                assert!(fact.alive && !fact.is_sent, "{output:?} at {input:?}: {fact:?}");
                fact.is_sent = true;
            }
            GroupOutput::DependencyFailed { member, .. } => assert!(!self.facts[&member].alive),
            GroupOutput::GroupStopping { group, timeout } => {
                assert_eq!(timeout, PERIOD);
                self.ending.insert(group);
            }
            GroupOutput::GroupGaveUp(_) | GroupOutput::Removed(NodeId::Group(_)) => {}
            GroupOutput::GroupEnded(group) => {
                // A group that starts and ends with the same input was not seen to be up.
                let begins = matches!(input, GroupInput::Start(_) | GroupInput::Restart(_) | GroupInput::Ended { .. });
                assert!(self.running.remove(&group) || begins, "{output:?} at {input:?}: its end was already reported");
                assert!(
                    self.groups.is_finished(NodeId::Group(group)),
                    "{output:?} at {input:?}, although it starts again"
                );
                self.ending.remove(&group);
                self.restarts.remove(&group);
            }
            GroupOutput::GroupRestarting(group) => {
                self.ending.remove(&group);
                self.restarts.remove(&group);
            }
            GroupOutput::Removed(NodeId::Member(member)) => {
                let fact = self.facts.remove(&member).unwrap();
                assert!(!fact.alive);
                for (other, _) in self.facts.iter().filter(|(_, fact)| fact.after.contains_key(&member)) {
                    let other = NodeId::Member(*other);
                    let leaves = self.groups.role(other).is_none() || self.groups.is_being_removed(other);
                    assert!(leaves, "{member:?} was removed, but {other:?} depends on it");
                }
            }
        }
    }

    /// The invariants between any two inputs: the states agree, and every wait has a cause.
    fn check(&self, input: GroupInput) {
        let groups = &self.groups;
        for (id, member) in &groups.members {
            assert_eq!(member.state.is_alive(), self.facts[id].alive, "{id:?} at {input:?}: {member:?}");
            match member.state {
                MemberState::Waiting => {
                    assert!(groups.is_open(NodeId::Member(*id)), "{id:?} at {input:?} waits in a stopped group");
                    let dependency_states: Vec<_> = groups
                        .dependencies
                        .dependencies_of(*id)
                        .iter()
                        .map(|on| groups.dependency_state(on.0, on.1))
                        .collect();
                    let has_turn = groups.blocking_group(*id).is_none();
                    let waits = dependency_states.contains(&DependencyState::Pending) || !has_turn;
                    assert!(
                        waits && !dependency_states.contains(&DependencyState::Failed),
                        "{id:?} at {input:?}: {dependency_states:?}"
                    );
                }
                MemberState::Stopping { is_sent: false, .. } => {
                    let dependents = groups.dependencies.reachable([*id], Traversal::Dependents);
                    let leaves = |other| matches!(groups.members[other].state, MemberState::Stopping { .. });
                    assert!(dependents.iter().any(leaves), "{id:?} at {input:?} is not told to stop");
                }
                MemberState::Down(DownReason::New) => {
                    assert!(
                        !groups.is_open(NodeId::Member(*id))
                            || groups.is_being_removed(NodeId::Member(*id))
                            || self.is_unstarted(*id),
                        "{id:?} at {input:?} is left waiting"
                    );
                }
                MemberState::Down(_)
                | MemberState::Starting
                | MemberState::Running { .. }
                | MemberState::Stopping { is_sent: true, .. } => {}
            }
        }
        for (id, group) in &groups.groups {
            let alive =
                groups.members_under(NodeId::Group(*id)).iter().filter(|member| self.facts[member].alive).count();
            assert_eq!(group.active_members, alive, "{id:?} at {input:?}: {group:?}");
            let is_limited =
                matches!(group.phase, GroupPhase::Stopping { .. }) && group.settings.stop_timeout.is_some();
            assert!(self.ending.contains(id) || !is_limited, "{id:?} at {input:?}: {group:?}");
            match &group.phase {
                GroupPhase::Up => {}
                GroupPhase::Down(_) => assert_eq!(alive, 0, "{id:?} at {input:?}"),
                GroupPhase::Stopping { .. } => assert!(alive > 0, "{id:?} at {input:?} never stops"),
                GroupPhase::Restarting { set, pending } => {
                    assert!(pending.iter().any(|node| !groups.is_down(*node)), "{id:?} at {input:?} never starts");
                    let is_quiet = |node: &NodeId| match node {
                        NodeId::Member(member) => !matches!(
                            groups.members[member].state,
                            MemberState::Starting | MemberState::Running { .. } | MemberState::Waiting
                        ),
                        NodeId::Group(group) => groups.groups[group].phase != GroupPhase::Up,
                    };
                    assert!(
                        set.iter().filter(|node| groups.role(**node).is_some()).all(is_quiet),
                        "{id:?} at {input:?}: {set:?}"
                    );
                }
            }
        }
    }

    /// Declared, but not started by a user yet.
    fn is_unstarted(&self, member: WorkerId) -> bool {
        self.facts[&member].starts_allowed == 1
    }
}

fn role(byte: u8) -> Role {
    let restart = [Restart::Never, Restart::OnFailure, Restart::Always][usize::from(byte % 3)];
    Role { restart, significant: byte & 4 == 0 && restart != Restart::Always }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn p08_p13_any_history_keeps_order_and_limits_and_ends(
        shape in prop::collection::vec(any::<u8>(), 12..40),
        history in prop::collection::vec((any::<u8>(), any::<u8>(), 0..4000_u64), 0..120),
        choices in prop::collection::vec(any::<u8>(), 64),
        whole: bool,
    ) {
        let mut world = World::new(&shape);
        world.step(GroupInput::Start(NodeId::Group(ROOT)));
        for (step, byte, pause_ms) in history {
            world.now += Duration::from_millis(pause_ms);
            if let Some(input) = world.input(step, byte) {
                world.step(input);
            }
        }
        // Whatever came before: after `StopAll` all members end, in reverse order, and none starts.
        let ends = usize::from(world.running.contains(&ROOT));
        let mut outputs = world.step(if whole { GroupInput::Stop(NodeId::Group(ROOT)) } else { GroupInput::StopAll });
        for byte in choices.iter().cycle() {
            if !world.facts.values().any(|fact| fact.alive) {
                break;
            }
            let member = world.pick(*byte, |fact| fact.is_sent).expect("a running member was told to stop");
            let before = outputs.len();
            outputs.extend(world.step(world.end_of(member, *byte)));
            for output in &outputs[before..] {
                if let GroupOutput::Stop(member) = output {
                    let dependents = world.groups.dependencies.reachable([*member], Traversal::Dependents);
                    prop_assert!(dependents.iter().all(|other| !world.facts[other].alive), "{member:?} before {dependents:?}");
                }
            }
        }
        let is_start = |output: &&GroupOutput| matches!(output, GroupOutput::Start(_));
        prop_assert_eq!(outputs.iter().find(is_start), None);
        if whole {
            prop_assert_eq!(outputs.iter().filter(|output| **output == GroupOutput::GroupEnded(ROOT)).count(), ends);
            prop_assert!(world.groups.is_down(NodeId::Group(ROOT)));
        }
    }
}
