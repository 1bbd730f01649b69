//! Examples of starts, restarts and failures in groups. `simulation` tests random histories.

use crate::{
    deadline::start,
    ids::{GroupId, WorkerId},
    policy::{
        group::{
            error::DeclarationError,
            model::{AutoShutdown, DependencyCondition, GroupSettings, NodeId, Role, Strategy},
            state::Groups,
            transition::{GroupInput, GroupOutput},
        },
        restart::{GiveUpReason, Restart, RestartIntensity},
        restart_history::RestartDecision,
    },
};
use std::time::{Duration, Instant};

pub(super) const ROOT: GroupId = GroupId(0);
pub(super) const INNER: GroupId = GroupId(1);
pub(super) const A: WorkerId = WorkerId(1);
pub(super) const B: WorkerId = WorkerId(2);
pub(super) const C: WorkerId = WorkerId(3);
pub(super) const PERIOD: Duration = Duration::from_secs(10);
const INTENSITY: RestartIntensity = RestartIntensity::new(2, PERIOD);
pub(super) const SETTINGS: GroupSettings = GroupSettings {
    strategy: Strategy::OneForOne,
    auto_shutdown: AutoShutdown::Never,
    intensity: Some(INTENSITY),
    stop_timeout: None,
};
pub(super) const PERMANENT: Role = Role { restart: Restart::Always, significant: false };
pub(super) const TRANSIENT: Role = Role { restart: Restart::OnFailure, significant: false };
pub(super) const TEMPORARY: Role = Role { restart: Restart::Never, significant: false };

pub(super) fn with(strategy: Strategy) -> GroupSettings {
    GroupSettings { strategy, ..SETTINGS }
}

/// A root group with these members.
pub(super) fn root(settings: GroupSettings, members: &[(WorkerId, Role)]) -> Groups {
    let mut groups = Groups::new(ROOT, settings);
    for (member, role) in members {
        groups.add_member(*member, ROOT, *role).unwrap();
    }
    groups
}

/// Starts everything; each member runs and is ready at once. Returns all outputs in order.
pub(super) fn run_all(groups: &mut Groups, now: Instant) -> Vec<GroupOutput> {
    let outputs = groups.handle(GroupInput::Start(NodeId::Group(ROOT)), now);
    run(groups, outputs, now)
}

pub(super) fn run(groups: &mut Groups, mut outputs: Vec<GroupOutput>, now: Instant) -> Vec<GroupOutput> {
    let mut at = 0;
    while let Some(output) = outputs.get(at).copied() {
        if let GroupOutput::Start(member) = output {
            outputs.extend(groups.handle(GroupInput::Started(member), now));
            outputs.extend(groups.handle(GroupInput::Ready(member), now));
        }
        at += 1;
    }
    outputs
}

pub(super) fn crashed(member: WorkerId) -> GroupInput {
    GroupInput::Ended { member, success: false, decision: RestartDecision::Restart { after: Duration::ZERO } }
}

pub(super) fn done(member: WorkerId) -> GroupInput {
    GroupInput::Ended { member, success: true, decision: RestartDecision::Finish }
}

pub(super) fn failed(member: WorkerId) -> GroupInput {
    GroupInput::Ended { member, success: false, decision: RestartDecision::Finish }
}

pub(super) fn gave_up(member: WorkerId) -> GroupInput {
    GroupInput::Ended { member, success: false, decision: RestartDecision::GiveUp(GiveUpReason::IntensityExceeded) }
}

#[test]
fn p13_one_for_one_restarts_only_the_failed_member() {
    let t0 = start();
    let mut groups = root(SETTINGS, &[(A, PERMANENT), (B, PERMANENT)]);
    assert_eq!(run_all(&mut groups, t0), [GroupOutput::Start(A), GroupOutput::Start(B)]);
    for member in [A, B] {
        let restarts = groups.handle(crashed(member), t0);
        assert_eq!(run(&mut groups, restarts, t0), [GroupOutput::Start(member)]);
    }
    assert_eq!(
        groups.handle(crashed(A), t0),
        [GroupOutput::GroupGaveUp(ROOT), GroupOutput::Stop(B)],
        "all restarts count together"
    );
    assert_eq!(groups.handle(failed(B), t0), [GroupOutput::GroupEnded(ROOT)]);
}

#[test]
fn p13_group_without_intensity_never_gives_up() {
    let t0 = start();
    let mut groups = root(GroupSettings { intensity: None, ..with(Strategy::OneForAll) }, &[(A, PERMANENT)]);
    run_all(&mut groups, t0);
    for _ in 0..1000 {
        assert_eq!(groups.handle(crashed(A), t0), [GroupOutput::Start(A)]);
    }
    assert_eq!(groups.snapshot(ROOT).unwrap().restarts, 0, "no history is kept");
}

#[test]
fn p13_postponed_start_counts_as_no_restart() {
    let t0 = start();
    let mut groups = root(with(Strategy::OneForAll), &[(A, TEMPORARY), (B, PERMANENT)]);
    let postponed = |member| GroupInput::Ended {
        member,
        success: false,
        decision: RestartDecision::Postpone { after: Duration::ZERO },
    };
    assert_eq!(groups.handle(GroupInput::Start(NodeId::Group(ROOT)), t0), [GroupOutput::Start(A)]);
    for _ in 0..10 {
        assert_eq!(groups.handle(postponed(A), t0), [GroupOutput::Start(A)]);
    }
    assert_eq!(groups.handle(GroupInput::Started(A), t0), [GroupOutput::Start(B)]);
    for _ in 0..10 {
        assert_eq!(groups.handle(postponed(B), t0), [GroupOutput::Start(B)], "A keeps running");
    }
    assert_eq!(groups.snapshot(ROOT).unwrap().restarts, 0);
}

#[test]
fn p13_one_for_all_starts_when_all_have_ended() {
    let t0 = start();
    let mut groups = root(with(Strategy::OneForAll), &[(A, PERMANENT), (B, PERMANENT), (C, TRANSIENT)]);
    groups.add_dependency(B, A, DependencyCondition::Ready).unwrap();
    assert_eq!(run_all(&mut groups, t0), [GroupOutput::Start(A), GroupOutput::Start(C), GroupOutput::Start(B)]);
    assert_eq!(groups.handle(crashed(C), t0), [GroupOutput::Stop(B)], "A is needed by B");
    assert_eq!(groups.handle(failed(B), t0), [GroupOutput::Stop(A)]);
    assert_eq!(groups.handle(failed(A), t0), [GroupOutput::Start(A)]);
    assert_eq!(
        groups.handle(GroupInput::Started(A), t0),
        [GroupOutput::Start(C)],
        "B waits for more, which does not delay C"
    );
    assert_eq!(groups.handle(GroupInput::Ready(A), t0), [GroupOutput::Start(B)]);
}

#[test]
fn p13_restarts_keep_the_order_of_declaration() {
    let t0 = start();
    for strategy in [Strategy::OneForAll, Strategy::RestForOne] {
        let mut groups = root(with(strategy), &[(A, PERMANENT)]);
        groups.add_group(INNER, ROOT, PERMANENT, SETTINGS).unwrap();
        let [within, last] = [WorkerId(7), WorkerId(8)];
        groups.add_member(B, INNER, PERMANENT).unwrap();
        groups.add_member(within, INNER, PERMANENT).unwrap();
        groups.add_member(C, ROOT, PERMANENT).unwrap();
        groups.add_member(last, ROOT, PERMANENT).unwrap();
        groups.add_dependency(last, A, DependencyCondition::Started).unwrap();
        assert_eq!(groups.handle(GroupInput::Start(NodeId::Group(ROOT)), t0), [GroupOutput::Start(A)]);
        for round in 0..2 {
            let begun: &[_] = if round == 0 { &[] } else { &[GroupOutput::GroupRestarting(INNER)] };
            let within_start = [GroupOutput::Start(B), GroupOutput::Start(within)];
            let outputs = groups.handle(GroupInput::Started(A), t0);
            assert_eq!(outputs, within_start, "members of the inner group do not wait for each other: {begun:?}");
            assert_eq!(groups.handle(GroupInput::Started(within), t0), []);
            assert_eq!(groups.handle(GroupInput::Started(B), t0), [GroupOutput::Start(C)]);
            assert_eq!(groups.handle(GroupInput::Started(C), t0), [GroupOutput::Start(last)]);
            groups.handle(GroupInput::Started(last), t0);
            if round == 0 {
                let stops: Vec<_> = [last, C, within, B].map(GroupOutput::Stop).into();
                assert_eq!(groups.handle(crashed(A), t0), stops);
                for member in [B, within, C] {
                    assert_eq!(groups.handle(done(member), t0), []);
                }
                assert_eq!(groups.handle(done(last), t0), [GroupOutput::GroupRestarting(INNER), GroupOutput::Start(A)]);
            }
        }
    }
}

#[test]
fn p13_one_for_all_restarts_completed_members() {
    let t0 = start();
    let mut groups = root(with(Strategy::OneForAll), &[(A, TRANSIENT), (B, PERMANENT)]);
    groups.add_dependency(B, A, DependencyCondition::Completed).unwrap();
    assert_eq!(run_all(&mut groups, t0), [GroupOutput::Start(A)]);
    assert_eq!(groups.handle(done(A), t0), [GroupOutput::Start(B)]);
    assert_eq!(groups.handle(crashed(B), t0), [GroupOutput::Start(A)], "as in OTP: all are started, in order");
    assert_eq!(groups.handle(done(A), t0), [GroupOutput::Start(B)]);
}

#[test]
fn p13_rest_for_one_restarts_later_members_and_dependents() {
    let t0 = start();
    let first = WorkerId(9);
    let mut groups =
        root(with(Strategy::RestForOne), &[(first, PERMANENT), (A, PERMANENT), (B, PERMANENT), (C, PERMANENT)]);
    // A is declared before B but depends on it; C is declared after B, which depends on it.
    groups.add_dependency(A, B, DependencyCondition::Started).unwrap();
    groups.add_dependency(B, C, DependencyCondition::Started).unwrap();
    assert_eq!(run_all(&mut groups, t0).len(), 4);
    assert_eq!(groups.handle(crashed(B), t0), [GroupOutput::Stop(A)]);
    assert_eq!(groups.handle(done(A), t0), [GroupOutput::Start(B)]);
    assert_eq!(groups.handle(GroupInput::Started(B), t0), [GroupOutput::Start(A)]);
    groups.handle(GroupInput::Started(A), t0);
    assert_eq!(groups.handle(crashed(first), t0), [GroupOutput::Stop(A)], "all others, in reverse order");
    assert_eq!(groups.handle(done(A), t0), [GroupOutput::Stop(B)]);
    assert_eq!(groups.handle(done(B), t0), [GroupOutput::Stop(C)]);
    assert_eq!(groups.handle(done(C), t0), [GroupOutput::Start(first)]);
    assert_eq!(groups.handle(GroupInput::Started(first), t0), [GroupOutput::Start(C)]);
}

#[test]
fn p13_second_crash_extends_the_restart() {
    let t0 = start();
    let mut groups = root(with(Strategy::RestForOne), &[(A, PERMANENT), (B, PERMANENT), (C, PERMANENT)]);
    run_all(&mut groups, t0);
    assert_eq!(groups.handle(crashed(B), t0), [GroupOutput::Stop(C)]);
    assert_eq!(groups.handle(crashed(A), t0), []);
    let outputs = groups.handle(done(C), t0);
    assert_eq!(run(&mut groups, outputs, t0), [GroupOutput::Start(A), GroupOutput::Start(B), GroupOutput::Start(C)]);
    assert_eq!(
        groups.handle(crashed(C), t0),
        [GroupOutput::GroupGaveUp(ROOT), GroupOutput::Stop(B), GroupOutput::Stop(A)]
    );
}

#[test]
fn p13_temporary_nodes_are_never_restarted() {
    let t0 = start();
    let mut groups = root(with(Strategy::OneForAll), &[(A, PERMANENT), (B, TEMPORARY)]);
    groups.add_group(INNER, ROOT, TEMPORARY, SETTINGS).unwrap();
    groups.add_member(C, INNER, PERMANENT).unwrap();
    run_all(&mut groups, t0);
    assert_eq!(groups.handle(crashed(A), t0), [GroupOutput::Stop(C), GroupOutput::Stop(B)]);
    assert_eq!(groups.handle(done(B), t0), []);
    assert_eq!(groups.handle(done(C), t0), [GroupOutput::Start(A), GroupOutput::GroupEnded(INNER)]);
    groups.handle(GroupInput::Started(A), t0);
    assert_eq!(groups.handle(GroupInput::Start(NodeId::Member(B)), t0), [GroupOutput::Start(B)], "a user can start it");
    assert_eq!(groups.handle(crashed(B), t0), [], "whatever its own policy decides");
    assert_eq!(groups.handle(GroupInput::Start(NodeId::Group(INNER)), t0), [GroupOutput::Start(C)]);
}

#[test]
fn p13_member_stopped_by_user_stays_stopped() {
    let t0 = start();
    let mut groups = root(with(Strategy::OneForAll), &[(A, PERMANENT), (B, PERMANENT)]);
    run_all(&mut groups, t0);
    assert_eq!(groups.handle(GroupInput::Stop(NodeId::Member(B)), t0), [GroupOutput::Stop(B)]);
    assert_eq!(groups.handle(GroupInput::Stop(NodeId::Member(B)), t0), [], "a repeated request");
    assert_eq!(groups.handle(crashed(B), t0), []);
    assert_eq!(groups.handle(crashed(A), t0), [GroupOutput::Start(A)]);
    assert_eq!(groups.handle(GroupInput::Start(NodeId::Member(B)), t0), [], "it waits for its turn");
    assert_eq!(groups.handle(GroupInput::Started(A), t0), [GroupOutput::Start(B)]);
    assert_eq!(groups.handle(GroupInput::Restart(NodeId::Member(B)), t0), [GroupOutput::Stop(B)]);
    assert_eq!(groups.handle(failed(B), t0), [GroupOutput::Start(B)], "no backoff: the member did not end by itself");
}

#[test]
fn p13_too_many_restarts_escalate_to_the_parent() {
    let t0 = start();
    let mut groups = root(SETTINGS, &[(A, PERMANENT)]);
    groups.add_group(INNER, ROOT, PERMANENT, with(Strategy::OneForAll)).unwrap();
    groups.add_member(B, INNER, PERMANENT).unwrap();
    groups.add_member(C, INNER, PERMANENT).unwrap();
    run_all(&mut groups, t0);
    for inner_restart in 0..=INTENSITY.restarts {
        for _ in 0..INTENSITY.restarts {
            assert_eq!(groups.handle(crashed(B), t0), [GroupOutput::Stop(C)]);
            let outputs = groups.handle(done(C), t0);
            assert_eq!(run(&mut groups, outputs, t0), [GroupOutput::Start(B), GroupOutput::Start(C)]);
        }
        assert_eq!(groups.handle(crashed(B), t0), [GroupOutput::GroupGaveUp(INNER), GroupOutput::Stop(C)]);
        let outputs = groups.handle(done(C), t0);
        let expected: &[GroupOutput] = if inner_restart < INTENSITY.restarts {
            &[GroupOutput::GroupRestarting(INNER), GroupOutput::Start(B), GroupOutput::Start(C)]
        } else {
            &[GroupOutput::GroupGaveUp(ROOT), GroupOutput::Stop(A)]
        };
        assert_eq!(run(&mut groups, outputs, t0), expected);
        assert!(!groups.is_finished(NodeId::Group(INNER)), "the outer group has not ended yet");
        let is_last = inner_restart == INTENSITY.restarts;
        assert_eq!(groups.is_finished(NodeId::Member(B)), is_last, "nothing starts it after the outer group gave up");
    }
    assert_eq!(groups.handle(crashed(A), t0), [GroupOutput::GroupEnded(INNER), GroupOutput::GroupEnded(ROOT)]);
    assert!(groups.is_finished(NodeId::Member(B)) && groups.is_finished(NodeId::Group(INNER)));
    assert!(groups.is_down(NodeId::Group(ROOT)));
}

#[test]
fn p13_restarts_are_forgotten_after_the_period() {
    let t0 = start();
    let mut groups = root(with(Strategy::OneForAll), &[(A, PERMANENT)]);
    run_all(&mut groups, t0);
    for round in 0..20 {
        let now = t0 + (PERIOD / 2 + Duration::from_millis(1)) * round;
        assert_eq!(groups.handle(crashed(A), now), [GroupOutput::Start(A)], "{round}");
    }
    let late = t0 + (PERIOD / 2 + Duration::from_millis(1)) * 19;
    assert_eq!(groups.handle(crashed(A), late), [GroupOutput::GroupGaveUp(ROOT), GroupOutput::GroupEnded(ROOT)]);
}

#[test]
fn p13_group_gives_up_with_a_permanent_member() {
    let t0 = start();
    for strategy in [Strategy::OneForOne, Strategy::OneForAll, Strategy::RestForOne] {
        let mut groups = root(with(strategy), &[(A, PERMANENT), (B, TEMPORARY), (C, PERMANENT)]);
        run_all(&mut groups, t0);
        assert_eq!(groups.handle(gave_up(B), t0), [], "the group does not need a temporary member");
        assert_eq!(groups.handle(gave_up(C), t0), [GroupOutput::GroupGaveUp(ROOT), GroupOutput::Stop(A)]);
        assert_eq!(groups.handle(done(A), t0), [GroupOutput::GroupEnded(ROOT)]);
    }
}

#[test]
fn nodes_added_after_stop_all_can_start() {
    let t0 = start();
    let mut groups = root(SETTINGS, &[(A, PERMANENT)]);
    groups.add_group(INNER, ROOT, PERMANENT, SETTINGS).unwrap();
    groups.add_member(B, INNER, PERMANENT).unwrap();
    run_all(&mut groups, t0);
    assert_eq!(groups.handle(GroupInput::StopAll, t0), [GroupOutput::Stop(B), GroupOutput::Stop(A)]);
    assert_eq!(groups.handle(done(A), t0), []);
    assert_eq!(groups.handle(done(B), t0), [GroupOutput::GroupEnded(INNER)]);
    groups.add_member(C, ROOT, PERMANENT).unwrap();
    assert_eq!(groups.handle(GroupInput::Start(NodeId::Member(C)), t0), [GroupOutput::Start(C)]);
    assert_eq!(groups.handle(GroupInput::Start(NodeId::Group(INNER)), t0), [GroupOutput::Start(B)]);
}

#[test]
fn group_started_during_its_stop_starts_afterwards() {
    let t0 = start();
    let mut groups = root(SETTINGS, &[]);
    groups.add_group(INNER, ROOT, PERMANENT, SETTINGS).unwrap();
    groups.add_member(A, INNER, PERMANENT).unwrap();
    groups.add_member(B, INNER, TEMPORARY).unwrap();
    run_all(&mut groups, t0);
    assert_eq!(groups.handle(GroupInput::Stop(NodeId::Group(INNER)), t0), [GroupOutput::Stop(B), GroupOutput::Stop(A)]);
    assert_eq!(groups.handle(GroupInput::Start(NodeId::Group(INNER)), t0), []);
    assert_eq!(groups.handle(done(A), t0), []);
    let outputs = groups.handle(done(B), t0);
    assert_eq!(outputs, [GroupOutput::GroupRestarting(INNER), GroupOutput::Start(A), GroupOutput::Start(B)]);
}

#[test]
fn failed_dependency_fails_all_dependents() {
    let t0 = start();
    for (end, condition) in [
        (failed(A), DependencyCondition::Completed),
        (failed(A), DependencyCondition::Started),
        (done(A), DependencyCondition::Ready),
    ] {
        let mut groups = root(SETTINGS, &[(A, TRANSIENT), (B, PERMANENT), (C, PERMANENT)]);
        groups.add_dependency(B, A, condition).unwrap();
        groups.add_dependency(C, B, DependencyCondition::Started).unwrap();
        assert_eq!(groups.handle(GroupInput::Start(NodeId::Group(ROOT)), t0), [GroupOutput::Start(A)]);
        let expected =
            [GroupOutput::DependencyFailed { member: B, on: A }, GroupOutput::DependencyFailed { member: C, on: B }];
        assert_eq!(groups.handle(end, t0), expected, "{condition:?}");
        assert_eq!(groups.handle(GroupInput::Start(NodeId::Member(A)), t0), [GroupOutput::Start(A)]);
        assert_eq!(groups.handle(GroupInput::Start(NodeId::Member(B)), t0), [], "a user can start it again");
    }
}

#[test]
fn finished_group_fails_dependents_of_its_members() {
    let t0 = start();
    let mut groups = root(SETTINGS, &[(C, PERMANENT)]);
    groups.add_group(INNER, ROOT, TEMPORARY, with(Strategy::OneForAll)).unwrap();
    groups.add_member(A, INNER, PERMANENT).unwrap();
    groups.add_member(B, INNER, PERMANENT).unwrap();
    groups.add_dependency(C, B, DependencyCondition::Ready).unwrap();
    groups.handle(GroupInput::Start(NodeId::Group(ROOT)), t0);
    assert_eq!(groups.handle(GroupInput::Started(A), t0), [GroupOutput::Start(B)]);
    assert_eq!(groups.handle(gave_up(A), t0), [GroupOutput::GroupGaveUp(INNER), GroupOutput::Stop(B)]);
    let expected = [GroupOutput::DependencyFailed { member: C, on: B }, GroupOutput::GroupEnded(INNER)];
    assert_eq!(groups.handle(done(B), t0), expected);
}

#[test]
fn cycles_are_refused_by_name() {
    let mut groups = root(SETTINGS, &[(A, PERMANENT), (B, PERMANENT), (C, PERMANENT)]);
    groups.add_dependency(A, B, DependencyCondition::Started).unwrap();
    groups.add_dependency(B, C, DependencyCondition::Ready).unwrap();
    let cycle = |members: &[WorkerId]| Err(DeclarationError::Cycle { members: members.into() });
    assert_eq!(groups.add_dependency(C, A, DependencyCondition::Started), cycle(&[C, A, B]));
    assert_eq!(groups.add_dependency(A, A, DependencyCondition::Started), cycle(&[A]));
    assert_eq!(groups.add_dependency(A, C, DependencyCondition::Started), Ok(()));
}

#[test]
fn contradictory_declarations_are_refused() {
    let mut groups = root(SETTINGS, &[(A, PERMANENT), (B, TRANSIENT)]);
    let significant = |role| Role { significant: true, ..role };
    let node = NodeId::Member(C);
    let without_shutdown = DeclarationError::SignificantWithoutShutdown { node, group: ROOT };
    assert_eq!(groups.add_member(C, ROOT, significant(TRANSIENT)), Err(without_shutdown));
    assert_eq!(groups.add_member(C, ROOT, significant(PERMANENT)), Err(DeclarationError::SignificantPermanent(node)));
    assert_eq!(groups.add_member(C, INNER, PERMANENT), Err(DeclarationError::Unknown(NodeId::Group(INNER))));
    assert_eq!(groups.add_member(A, ROOT, PERMANENT), Err(DeclarationError::AlreadyExists(NodeId::Member(A))));
    assert_eq!(
        groups.add_dependency(B, A, DependencyCondition::Completed),
        Err(DeclarationError::NeverCompletes { member: B, on: A })
    );
    assert_eq!(groups.add_dependency(B, C, DependencyCondition::Started), Err(DeclarationError::Unknown(node)));
    assert_eq!(groups.check_removal(NodeId::Group(ROOT)), Err(DeclarationError::RootGroup));
    assert!(size_of::<DeclarationError>() < 64);
}

#[test]
fn p14_cost_of_ten_thousand_members_is_linear() {
    let t0 = start();
    let members: Vec<_> = (0..10_000).map(|id| (WorkerId(id), PERMANENT)).collect();
    let mut groups = root(with(Strategy::OneForAll), &members);
    assert_eq!(run_all(&mut groups, t0).len(), members.len());
    assert_eq!(groups.handle(crashed(WorkerId(0)), t0).len(), members.len() - 1);
    let mut outputs = Vec::new();
    for (member, _) in members.iter().skip(1) {
        outputs = groups.handle(done(*member), t0);
    }
    let outputs = run(&mut groups, outputs, t0);
    assert_eq!(outputs.len(), members.len(), "at quadratic cost this test would take minutes");
}
