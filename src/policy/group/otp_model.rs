//! Compares groups with a small executable specification of OTP's `supervisor`, in random histories.
//!
//! The specification is sequential, like OTP: each exit is handled completely before the next one. Here a member that is started
//! runs at once, and one that is stopped has ended at once; `simulation` tests overlapping histories. Intended differences from OTP are
//! marked with the word "difference".

use crate::{
    deadline::start,
    ids::{GroupId, WorkerId},
    policy::{
        group::{
            examples::{PERIOD, ROOT},
            model::{AutoShutdown, GroupActivity, GroupSettings, NodeId, Role, Strategy},
            state::Groups,
            transition::{GroupInput, GroupOutput},
        },
        restart::{GiveUpReason, Restart, RestartIntensity},
        restart_history::RestartDecision,
    },
};
use proptest::prelude::*;
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// The reason of an exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    Normal,
    Abnormal,
    /// The worker gave up, which OTP does not know. Treated as if the intensity were exceeded.
    Fatal,
}

struct Child {
    node: NodeId,
    role: Role,
    runs: bool,
    /// A difference: a child stopped by a user is not started with its siblings. OTP forgets `terminate_child` then.
    is_stopped: bool,
    /// OTP deletes temporary children. A difference: they stay declared, so that a user can start them.
    is_deleted: bool,
}

struct Supervisor {
    settings: GroupSettings,
    children: Vec<Child>,
    restarts: Vec<Instant>,
}

/// The observable actions.
#[derive(Debug, Default, PartialEq, Eq)]
struct Log {
    starts: Vec<WorkerId>,
    stops: Vec<WorkerId>,
}

struct Otp {
    supervisors: BTreeMap<GroupId, Supervisor>,
    root_runs: bool,
    log: Log,
}

impl Otp {
    /// The supervisor of a node, and its place there.
    fn find(&self, node: NodeId) -> Option<(GroupId, usize)> {
        self.supervisors
            .iter()
            .find_map(|(id, supervisor)| Some((*id, supervisor.children.iter().position(|child| child.node == node)?)))
    }

    fn child(&mut self, id: GroupId, place: usize) -> &mut Child {
        &mut self.supervisors.get_mut(&id).unwrap().children[place]
    }

    fn start_all(&mut self, id: GroupId) {
        for place in 0..self.supervisors[&id].children.len() {
            self.start(id, place);
        }
    }

    fn start(&mut self, id: GroupId, place: usize) {
        let child = self.child(id, place);
        if child.runs || child.is_stopped || child.is_deleted {
            return;
        }
        child.runs = true;
        match child.node {
            NodeId::Member(member) => self.log.starts.push(member),
            NodeId::Group(group) => {
                // A new supervisor process has no history.
                self.supervisors.get_mut(&group).unwrap().restarts.clear();
                self.start_all(group);
            }
        }
    }

    /// `terminate_children`, in reverse order.
    fn terminate(&mut self, id: GroupId, places: impl DoubleEndedIterator<Item = usize>) {
        for place in places.rev() {
            let child = self.child(id, place);
            let (node, ran) = (child.node, std::mem::replace(&mut child.runs, false));
            if !ran {
                continue;
            }
            child.is_deleted = child.role.restart == Restart::Never;
            match node {
                NodeId::Member(member) => self.log.stops.push(member),
                NodeId::Group(group) => self.terminate(group, 0..self.supervisors[&group].children.len()),
            }
        }
    }

    /// `handle_info({'EXIT', ..})` and `restart_child`.
    fn exit(&mut self, node: NodeId, reason: Reason, now: Instant) {
        let (id, place) = self.find(node).unwrap();
        let child = self.child(id, place);
        child.runs = false;
        match (child.role.restart, reason) {
            (Restart::Never, _) => {
                child.is_deleted = true;
                self.auto_shutdown(id, place, now);
            }
            (Restart::OnFailure, Reason::Normal) => self.auto_shutdown(id, place, now),
            (Restart::OnFailure | Restart::Always, Reason::Fatal) => self.shut_down(id, Reason::Abnormal, now),
            (Restart::OnFailure, Reason::Abnormal) | (Restart::Always, Reason::Normal | Reason::Abnormal) => {
                self.restart(id, place, now);
            }
        }
    }

    /// `add_restart` and `restart/2`.
    fn restart(&mut self, id: GroupId, place: usize, now: Instant) {
        let supervisor = self.supervisors.get_mut(&id).unwrap();
        let RestartIntensity { restarts, period } = supervisor.settings.intensity.unwrap();
        supervisor.restarts.push(now);
        supervisor.restarts.retain(|at| now - *at <= period);
        let count = supervisor.children.len();
        if supervisor.restarts.len() > usize::try_from(restarts).unwrap() {
            // A difference: in OTP the reason is `shutdown`, which is no failure of a transient child.
            return self.shut_down(id, Reason::Abnormal, now);
        }
        let affected = match supervisor.settings.strategy {
            Strategy::OneForOne => place..place + 1,
            Strategy::RestForOne => place..count,
            Strategy::OneForAll => 0..count,
        };
        self.terminate(id, affected.clone());
        affected.for_each(|place| self.start(id, place));
    }

    fn auto_shutdown(&mut self, id: GroupId, place: usize, now: Instant) {
        let Supervisor { settings, children, .. } = &self.supervisors[&id];
        let is_last = !children.iter().any(|child| child.role.significant && child.runs);
        let is_shutdown_due = match settings.auto_shutdown {
            AutoShutdown::Never => false,
            AutoShutdown::AnySignificant => true,
            AutoShutdown::AllSignificant => is_last,
        };
        if children[place].role.significant && is_shutdown_due {
            self.shut_down(id, Reason::Normal, now);
        }
    }

    fn shut_down(&mut self, id: GroupId, reason: Reason, now: Instant) {
        self.terminate(id, 0..self.supervisors[&id].children.len());
        if id == ROOT {
            self.root_runs = false;
        } else {
            self.exit(NodeId::Group(id), reason, now);
        }
    }

    fn runs(&self, node: NodeId) -> bool {
        match self.find(node) {
            Some((id, place)) => self.supervisors[&id].children[place].runs,
            None => self.root_runs,
        }
    }

    fn stop_child(&mut self, member: WorkerId) {
        let (id, place) = self.find(NodeId::Member(member)).unwrap();
        let child = self.child(id, place);
        child.is_stopped = true;
        if std::mem::replace(&mut child.runs, false) {
            self.log.stops.push(member);
        }
    }

    fn start_child(&mut self, member: WorkerId) {
        let (id, place) = self.find(NodeId::Member(member)).unwrap();
        let child = self.child(id, place);
        (child.is_stopped, child.is_deleted) = (false, false);
        self.start(id, place);
    }
}

/// The groups under test, with processes that start and end at once.
struct Real {
    groups: Groups,
    log: Log,
}

impl Real {
    fn handle(&mut self, input: GroupInput, now: Instant) {
        let mut outputs = self.groups.handle(input, now);
        let mut at = 0;
        while let Some(output) = outputs.get(at).copied() {
            match output {
                GroupOutput::Start(member) => {
                    self.log.starts.push(member);
                    outputs.extend(self.groups.handle(GroupInput::Started(member), now));
                }
                GroupOutput::Stop(member) => {
                    self.log.stops.push(member);
                    let ended = GroupInput::Ended { member, success: true, decision: RestartDecision::Finish };
                    outputs.extend(self.groups.handle(ended, now));
                }
                GroupOutput::DependencyFailed { .. }
                | GroupOutput::GroupGaveUp(_)
                | GroupOutput::GroupStopping { .. }
                | GroupOutput::GroupEnded(_)
                | GroupOutput::GroupRestarting(_)
                | GroupOutput::Removed(_) => {}
            }
            at += 1;
        }
    }
}

/// Declares the same nodes in both.
fn build(top: [u8; 3], nodes: &[[u8; 5]]) -> (Otp, Real) {
    let settings = |[strategy, shutdown, restarts]: [u8; 3]| GroupSettings {
        strategy: [Strategy::OneForOne, Strategy::OneForAll, Strategy::RestForOne][usize::from(strategy % 3)],
        auto_shutdown: [AutoShutdown::Never, AutoShutdown::AnySignificant, AutoShutdown::AllSignificant]
            [usize::from(shutdown % 3)],
        intensity: Some(RestartIntensity::new(u32::from(restarts % 4), PERIOD)),
        stop_timeout: None,
    };
    let supervisor = |settings| Supervisor { settings, children: Vec::new(), restarts: Vec::new() };
    let mut supervisors = BTreeMap::from([(ROOT, supervisor(settings(top)))]);
    let mut groups = Groups::new(ROOT, settings(top));
    for (id, &[kind, parent, role, strategy, restarts]) in (1..).zip(nodes) {
        let parents: Vec<GroupId> = supervisors.keys().copied().collect();
        let parent = parents[usize::from(parent) % parents.len()];
        let restart = [Restart::Always, Restart::OnFailure, Restart::Never][usize::from(role % 3)];
        let is_heeded = supervisors[&parent].settings.auto_shutdown != AutoShutdown::Never;
        let significant = role & 4 != 0 && is_heeded && restart != Restart::Always;
        let role = Role { restart, significant };
        let node = if kind % 4 == 0 { NodeId::Group(GroupId(id)) } else { NodeId::Member(WorkerId(id)) };
        match node {
            NodeId::Group(group) => {
                let settings = settings([strategy, strategy / 3, restarts]);
                groups.add_group(group, parent, role, settings).unwrap();
                supervisors.insert(group, supervisor(settings));
            }
            NodeId::Member(member) => groups.add_member(member, parent, role).unwrap(),
        }
        let child = Child { node, role, runs: false, is_stopped: false, is_deleted: false };
        supervisors.get_mut(&parent).unwrap().children.push(child);
    }
    let otp = Otp { supervisors, root_runs: true, log: Log::default() };
    (otp, Real { groups, log: Log::default() })
}

/// Whether two members start in the order of declaration. A difference: members of a one-for-one group do not wait for each
/// other.
fn are_ordered(groups: &Groups, first: WorkerId, second: WorkerId) -> bool {
    let around = groups.groups_of(NodeId::Member(second));
    let common = groups.groups_of(NodeId::Member(first)).into_iter().find(|group| around.contains(group));
    common.is_some_and(|group| groups.groups[&group].settings.strategy != Strategy::OneForOne)
}

fn compare(otp: &mut Otp, real: &mut Real, what: &str) {
    let (expected, seen) = (std::mem::take(&mut otp.log), std::mem::take(&mut real.log));
    let sorted = |members: &[WorkerId]| {
        let mut members = members.to_vec();
        members.sort_unstable();
        members
    };
    assert_eq!(sorted(&seen.starts), sorted(&expected.starts), "starts after {what}");
    for (at, first) in expected.starts.iter().enumerate() {
        for second in expected.starts.iter().skip(at + 1).filter(|second| are_ordered(&real.groups, *first, **second)) {
            let place = |member| seen.starts.iter().position(|seen| seen == member);
            let last = |member| seen.starts.iter().rposition(|seen| seen == member);
            assert!(place(first) < last(second), "{first} before {second} after {what}: {seen:?}, {expected:?}");
        }
    }
    assert_eq!(seen.stops, expected.stops, "stops after {what}");
    for (id, supervisor) in &otp.supervisors {
        for child in &supervisor.children {
            let NodeId::Member(member) = child.node else { continue };
            assert_eq!(real.groups.members[&member].state.is_alive(), child.runs, "{member} after {what}");
        }
        let runs = real.groups.snapshot(*id).unwrap().activity == GroupActivity::Running;
        assert_eq!(runs, otp.runs(NodeId::Group(*id)), "{id} after {what}");
        assert_eq!(real.groups.is_finished(NodeId::Group(*id)), !runs, "{id} after {what}");
    }
}

/// Applies one event to both.
fn apply(otp: &mut Otp, real: &mut Real, [what, pick]: [u8; 2], now: Instant) {
    let members: Vec<WorkerId> = real.groups.members.keys().copied().collect();
    let is_user = what % 10 >= 8;
    let supervised =
        |member: &WorkerId| otp.find(NodeId::Member(*member)).is_some_and(|(id, _)| otp.runs(NodeId::Group(id)));
    let may = |member: &&WorkerId| if is_user { supervised(member) } else { otp.runs(NodeId::Member(**member)) };
    let candidates: Vec<_> = members.iter().filter(may).collect();
    if candidates.is_empty() {
        return;
    }
    let member = *candidates[usize::from(pick) % candidates.len()];
    let restart = real.groups.role(NodeId::Member(member)).unwrap().restart;
    let end = |success, decision| GroupInput::Ended { member, success, decision };
    let (reason, input) = match (what % 10, restart) {
        (8, _) => {
            otp.stop_child(member);
            (None, GroupInput::Stop(NodeId::Member(member)))
        }
        (9, _) => {
            otp.start_child(member);
            (None, GroupInput::Start(NodeId::Member(member)))
        }
        (7, _) => (Some(Reason::Fatal), end(false, RestartDecision::GiveUp(GiveUpReason::IntensityExceeded))),
        (0..=3, Restart::Never) => (Some(Reason::Abnormal), end(false, RestartDecision::Finish)),
        (0..=3, Restart::OnFailure | Restart::Always) => {
            (Some(Reason::Abnormal), end(false, RestartDecision::Restart { after: Duration::ZERO }))
        }
        (_, Restart::Always) => (Some(Reason::Normal), end(true, RestartDecision::Restart { after: Duration::ZERO })),
        (_, Restart::Never | Restart::OnFailure) => (Some(Reason::Normal), end(true, RestartDecision::Finish)),
    };
    if let Some(reason) = reason {
        otp.exit(NodeId::Member(member), reason, now);
    }
    real.handle(input, now);
    compare(otp, real, &format!("{input:?}"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    #[test]
    fn p13_groups_behave_like_otp_supervisors(
        top: [u8; 3],
        nodes in prop::collection::vec(any::<[u8; 5]>(), 1..12),
        history in prop::collection::vec((any::<[u8; 2]>(), 0..5000_u64), 0..60),
    ) {
        let (mut otp, mut real) = build(top, &nodes);
        let mut now = start();
        otp.start_all(ROOT);
        real.handle(GroupInput::Start(NodeId::Group(ROOT)), now);
        compare(&mut otp, &mut real, "the start");
        for (what, pause_ms) in history {
            now += Duration::from_millis(pause_ms);
            apply(&mut otp, &mut real, what, now);
        }
    }
}
