//! What groups promise, by example. `group_sim` holds them to it in any history.

use super::{
    due::start,
    group::{
        AutoShutdown, GroupId, GroupIntensity, GroupSettings, Groups, Lifetime, MemberId, Node, Role, Strategy, When,
    },
    members::{Input, Output, Verdict},
    refusal::GroupError,
};
use std::time::{Duration, Instant};

pub(super) const ROOT: GroupId = GroupId(0);
const INNER: GroupId = GroupId(1);
const A: MemberId = MemberId(1);
const B: MemberId = MemberId(2);
const C: MemberId = MemberId(3);
pub(super) const PERIOD: Duration = Duration::from_secs(10);
const INTENSITY: GroupIntensity = GroupIntensity { restarts: 2, period: PERIOD };
const SETTINGS: GroupSettings = GroupSettings {
    strategy: Strategy::OneForOne,
    auto_shutdown: AutoShutdown::Never,
    intensity: INTENSITY,
    stop_within: None,
};
pub(super) const PERMANENT: Role = Role { lifetime: Lifetime::Permanent, significant: false };
pub(super) const TRANSIENT: Role = Role { lifetime: Lifetime::Transient, significant: false };
const TEMPORARY: Role = Role { lifetime: Lifetime::Temporary, significant: false };

fn with(strategy: Strategy) -> GroupSettings {
    GroupSettings { strategy, ..SETTINGS }
}

/// The root alone, with these members in it.
fn root(settings: GroupSettings, members: &[(MemberId, Role)]) -> Groups {
    let mut groups = Groups::new(ROOT, settings);
    for (member, role) in members {
        groups.add_member(*member, ROOT, *role).unwrap();
    }
    groups
}

/// Starts everything, and whatever starts runs and is ready at once. What was started, in order.
fn run_all(groups: &mut Groups, now: Instant) -> Vec<Output> {
    let outputs = groups.handle(Input::Start(Node::Group(ROOT)), now);
    run(groups, outputs, now)
}

fn run(groups: &mut Groups, mut outputs: Vec<Output>, now: Instant) -> Vec<Output> {
    let mut at = 0;
    while let Some(output) = outputs.get(at).copied() {
        if let Output::Start(member) | Output::Restart(member) = output {
            outputs.extend(groups.handle(Input::Started(member), now));
            outputs.extend(groups.handle(Input::Ready(member), now));
        }
        at += 1;
    }
    outputs
}

pub(super) fn crashed(member: MemberId) -> Input {
    Input::Ended { member, success: false, verdict: Verdict::Again }
}

pub(super) fn done(member: MemberId) -> Input {
    Input::Ended { member, success: true, verdict: Verdict::Finished }
}

fn failed(member: MemberId) -> Input {
    Input::Ended { member, success: false, verdict: Verdict::Finished }
}

pub(super) fn gave_up(member: MemberId) -> Input {
    Input::Ended { member, success: false, verdict: Verdict::GaveUp }
}

#[test]
fn p13_one_for_one_restarts_one() {
    let t0 = start();
    let mut groups = root(SETTINGS, &[(A, PERMANENT), (B, PERMANENT)]);
    assert_eq!(run_all(&mut groups, t0), [Output::Start(A), Output::Start(B)]);
    for _ in 0..5 {
        let restarts = groups.handle(crashed(A), t0);
        assert_eq!(run(&mut groups, restarts, t0), [Output::Restart(A)], "alone, it is bounded by its own intensity");
    }
    assert_eq!(groups.handle(gave_up(A), t0), [], "the others never needed it");
    assert_eq!(groups.handle(crashed(B), t0), [Output::Restart(B)]);
}

#[test]
fn p13_one_for_all_starts_when_all_are_gone() {
    let t0 = start();
    let mut groups = root(with(Strategy::OneForAll), &[(A, PERMANENT), (B, PERMANENT), (C, TRANSIENT)]);
    groups.after(B, A, When::Ready).unwrap();
    assert_eq!(run_all(&mut groups, t0), [Output::Start(A), Output::Start(C), Output::Start(B)]);
    assert_eq!(groups.handle(crashed(C), t0), [Output::Stop(B)], "A is needed by B");
    assert_eq!(groups.handle(failed(B), t0), [Output::Stop(A)]);
    assert_eq!(groups.handle(failed(A), t0), [Output::Start(A), Output::Restart(C)]);
    assert_eq!(groups.handle(Input::Started(A), t0), []);
    assert_eq!(groups.handle(Input::Ready(A), t0), [Output::Start(B)]);
}

#[test]
fn p13_one_for_all_runs_a_finished_one_again() {
    let t0 = start();
    let mut groups = root(with(Strategy::OneForAll), &[(A, TRANSIENT), (B, PERMANENT)]);
    groups.after(B, A, When::Exited).unwrap();
    assert_eq!(run_all(&mut groups, t0), [Output::Start(A)]);
    assert_eq!(groups.handle(done(A), t0), [Output::Start(B)]);
    assert_eq!(groups.handle(crashed(B), t0), [Output::Start(A)], "as in OTP: all are started, in order");
    assert_eq!(groups.handle(done(A), t0), [Output::Restart(B)]);
}

#[test]
fn p13_rest_for_one_restarts_those_that_start_later() {
    let t0 = start();
    let first = MemberId(9);
    let mut groups =
        root(with(Strategy::RestForOne), &[(first, PERMANENT), (A, PERMANENT), (B, PERMANENT), (C, PERMANENT)]);
    // Declared before it but needing it; declared after it but needed by it.
    groups.after(A, B, When::Started).unwrap();
    groups.after(B, C, When::Started).unwrap();
    assert_eq!(run_all(&mut groups, t0).len(), 4);
    assert_eq!(groups.handle(crashed(B), t0), [Output::Stop(A)]);
    assert_eq!(groups.handle(done(A), t0), [Output::Restart(B)]);
    assert_eq!(groups.handle(Input::Started(B), t0), [Output::Start(A)]);
    groups.handle(Input::Started(A), t0);
    assert_eq!(groups.handle(crashed(first), t0), [Output::Stop(A)], "all the others, in reverse");
    assert_eq!(groups.handle(done(A), t0), [Output::Stop(B)]);
    assert_eq!(groups.handle(done(B), t0), [Output::Stop(C)]);
    assert_eq!(groups.handle(done(C), t0), [Output::Restart(first), Output::Start(C)]);
}

#[test]
fn p13_a_second_crash_widens_the_restart() {
    let t0 = start();
    let mut groups = root(with(Strategy::RestForOne), &[(A, PERMANENT), (B, PERMANENT), (C, PERMANENT)]);
    run_all(&mut groups, t0);
    assert_eq!(groups.handle(crashed(B), t0), [Output::Stop(C)]);
    assert_eq!(groups.handle(crashed(A), t0), []);
    assert_eq!(groups.handle(done(C), t0), [Output::Restart(A), Output::Restart(B), Output::Start(C)]);
    assert_eq!(groups.handle(crashed(C), t0), [Output::GroupGaveUp(ROOT), Output::Stop(B), Output::Stop(A)]);
}

#[test]
fn p13_temporary_ones_are_never_restarted() {
    let t0 = start();
    let mut groups = root(with(Strategy::OneForAll), &[(A, PERMANENT), (B, TEMPORARY)]);
    groups.add_group(INNER, ROOT, TEMPORARY, SETTINGS).unwrap();
    groups.add_member(C, INNER, PERMANENT).unwrap();
    run_all(&mut groups, t0);
    assert_eq!(groups.handle(crashed(A), t0), [Output::Stop(C), Output::Stop(B)]);
    assert_eq!(groups.handle(done(B), t0), []);
    assert_eq!(groups.handle(done(C), t0), [Output::GroupEnded(INNER), Output::Restart(A)]);
    assert_eq!(groups.handle(Input::Start(Node::Member(B)), t0), [Output::Start(B)], "a user may");
    assert_eq!(groups.handle(crashed(B), t0), [], "whatever its verdict says");
    assert_eq!(groups.handle(Input::Start(Node::Group(INNER)), t0), [Output::Start(C)]);
}

#[test]
fn p13_what_a_user_has_stopped_stays_stopped() {
    let t0 = start();
    let mut groups = root(with(Strategy::OneForAll), &[(A, PERMANENT), (B, PERMANENT)]);
    run_all(&mut groups, t0);
    assert_eq!(groups.handle(Input::Stop(Node::Member(B)), t0), [Output::Stop(B)]);
    assert_eq!(groups.handle(Input::Stop(Node::Member(B)), t0), [], "asked twice");
    assert_eq!(groups.handle(crashed(B), t0), []);
    assert_eq!(groups.handle(crashed(A), t0), [Output::Restart(A)]);
    assert_eq!(groups.handle(Input::Start(Node::Member(B)), t0), [Output::Start(B)]);
    assert_eq!(groups.handle(Input::Restart(Node::Member(B)), t0), [Output::Stop(B)]);
    assert_eq!(groups.handle(failed(B), t0), [Output::Start(B)], "no backoff: this end was not its own");
}

#[test]
fn p13_too_many_restarts_escalate() {
    let t0 = start();
    let mut groups = root(SETTINGS, &[(A, PERMANENT)]);
    groups.add_group(INNER, ROOT, PERMANENT, with(Strategy::OneForAll)).unwrap();
    groups.add_member(B, INNER, PERMANENT).unwrap();
    groups.add_member(C, INNER, PERMANENT).unwrap();
    run_all(&mut groups, t0);
    for inner_life in 0..=INTENSITY.restarts {
        for _ in 0..INTENSITY.restarts {
            assert_eq!(groups.handle(crashed(B), t0), [Output::Stop(C)]);
            assert_eq!(groups.handle(done(C), t0), [Output::Restart(B), Output::Start(C)]);
        }
        assert_eq!(groups.handle(crashed(B), t0), [Output::GroupGaveUp(INNER), Output::Stop(C)]);
        let outputs = groups.handle(done(C), t0);
        let expected: &[Output] = if inner_life < INTENSITY.restarts {
            &[Output::GroupEnded(INNER), Output::Restart(B), Output::Start(C)]
        } else {
            &[Output::GroupEnded(INNER), Output::GroupGaveUp(ROOT), Output::Stop(A)]
        };
        assert_eq!(outputs, expected);
    }
    assert_eq!(groups.handle(crashed(A), t0), [Output::GroupEnded(ROOT)]);
    assert!(groups.is_at_rest(Node::Group(ROOT)));
}

#[test]
fn p13_restarts_are_forgotten_after_the_period() {
    let t0 = start();
    let mut groups = root(with(Strategy::OneForAll), &[(A, PERMANENT)]);
    run_all(&mut groups, t0);
    for round in 0..20 {
        let now = t0 + PERIOD / 2 * round;
        assert_eq!(groups.handle(crashed(A), now), [Output::Restart(A)], "{round}");
    }
    let late = t0 + PERIOD / 2 * 19;
    assert_eq!(groups.handle(crashed(A), late), [Output::GroupGaveUp(ROOT), Output::GroupEnded(ROOT)]);
}

#[test]
fn p13_who_cannot_be_missed_takes_its_group_along() {
    let t0 = start();
    for strategy in [Strategy::OneForAll, Strategy::RestForOne] {
        let mut groups = root(with(strategy), &[(A, PERMANENT), (B, TEMPORARY), (C, PERMANENT)]);
        run_all(&mut groups, t0);
        assert_eq!(groups.handle(gave_up(B), t0), [], "nobody counts on a temporary one");
        assert_eq!(groups.handle(gave_up(C), t0), [Output::GroupGaveUp(ROOT), Output::Stop(A)]);
        assert_eq!(groups.handle(done(A), t0), [Output::GroupEnded(ROOT)]);
    }
}

#[test]
fn p08_stopping_goes_in_reverse_through_what_has_ended() {
    let t0 = start();
    let (database, migration, application) = (A, B, C);
    let mut groups = root(SETTINGS, &[(application, PERMANENT), (migration, TRANSIENT), (database, PERMANENT)]);
    groups.after(application, migration, When::Exited).unwrap();
    groups.after(migration, database, When::Ready).unwrap();
    assert_eq!(groups.handle(Input::Start(Node::Group(ROOT)), t0), [Output::Start(database)]);
    assert_eq!(groups.handle(Input::Started(database), t0), []);
    assert_eq!(groups.handle(Input::Ready(database), t0), [Output::Start(migration)]);
    assert_eq!(groups.handle(Input::Started(migration), t0), []);
    assert_eq!(groups.handle(done(migration), t0), [Output::Start(application)]);
    assert_eq!(
        groups.handle(Input::Stop(Node::Group(ROOT)), t0),
        [Output::Stop(application)],
        "the database is needed still"
    );
    assert_eq!(groups.handle(failed(application), t0), [Output::Stop(database)]);
    assert_eq!(groups.handle(crashed(database), t0), [Output::GroupEnded(ROOT)]);
    assert_eq!(
        groups.handle(Input::Stop(Node::Group(ROOT)), t0),
        [Output::GroupEnded(ROOT)],
        "whoever asks is answered"
    );
    assert_eq!(groups.handle(Input::Start(Node::Member(database)), t0), [], "the group is stopped");
    assert_eq!(groups.handle(Input::Start(Node::Group(ROOT)), t0), [Output::Start(database)]);
}

#[test]
fn p08_stopping_calls_off_what_waits_and_what_restarts() {
    let t0 = start();
    let mut groups = root(with(Strategy::OneForAll), &[(A, PERMANENT), (B, PERMANENT), (C, PERMANENT)]);
    groups.after(C, B, When::Ready).unwrap();
    groups.handle(Input::Start(Node::Group(ROOT)), t0);
    assert_eq!(groups.handle(crashed(A), t0), [Output::Stop(B)], "a start that has not happened is called off");
    assert_eq!(groups.handle(Input::Stop(Node::Group(ROOT)), t0), []);
    assert_eq!(groups.handle(failed(B), t0), [Output::GroupEnded(ROOT)]);
}

#[test]
fn what_comes_after_all_were_stopped_starts() {
    let t0 = start();
    let mut groups = root(SETTINGS, &[(A, PERMANENT)]);
    groups.add_group(INNER, ROOT, PERMANENT, SETTINGS).unwrap();
    groups.add_member(B, INNER, PERMANENT).unwrap();
    run_all(&mut groups, t0);
    assert_eq!(groups.handle(Input::StopAll, t0), [Output::Stop(B), Output::Stop(A)]);
    assert_eq!(groups.handle(done(A), t0), []);
    assert_eq!(groups.handle(done(B), t0), [Output::GroupEnded(INNER)]);
    groups.add_member(C, ROOT, PERMANENT).unwrap();
    assert_eq!(groups.handle(Input::Start(Node::Member(C)), t0), [Output::Start(C)]);
    assert_eq!(groups.handle(Input::Start(Node::Group(INNER)), t0), [Output::Start(B)]);
}

#[test]
fn a_group_started_while_it_stops_starts_when_it_has() {
    let t0 = start();
    let mut groups = root(SETTINGS, &[]);
    groups.add_group(INNER, ROOT, PERMANENT, SETTINGS).unwrap();
    groups.add_member(A, INNER, PERMANENT).unwrap();
    groups.add_member(B, INNER, TEMPORARY).unwrap();
    run_all(&mut groups, t0);
    assert_eq!(groups.handle(Input::Stop(Node::Group(INNER)), t0), [Output::Stop(B), Output::Stop(A)]);
    assert_eq!(groups.handle(Input::Start(Node::Group(INNER)), t0), []);
    assert_eq!(groups.handle(done(A), t0), []);
    let outputs = groups.handle(done(B), t0);
    assert_eq!(outputs, [Output::GroupEnded(INNER), Output::Start(A), Output::Start(B)]);
}

#[test]
fn what_can_never_come_is_told_to_all_who_wait() {
    let t0 = start();
    for (end, when) in [(failed(A), When::Exited), (gave_up(A), When::Started), (done(A), When::Ready)] {
        let mut groups = root(SETTINGS, &[(A, TRANSIENT), (B, PERMANENT), (C, PERMANENT)]);
        groups.after(B, A, when).unwrap();
        groups.after(C, B, When::Started).unwrap();
        assert_eq!(groups.handle(Input::Start(Node::Group(ROOT)), t0), [Output::Start(A)]);
        let expected = [Output::DependencyFailed { member: B, on: A }, Output::DependencyFailed { member: C, on: B }];
        assert_eq!(groups.handle(end, t0), expected, "{when:?}");
        assert_eq!(groups.handle(Input::Start(Node::Member(A)), t0), [Output::Start(A)]);
        assert_eq!(groups.handle(Input::Start(Node::Member(B)), t0), [], "a user may try again");
    }
}

#[test]
fn a_group_that_is_over_fails_those_that_wait_for_its_members() {
    let t0 = start();
    let mut groups = root(SETTINGS, &[(C, PERMANENT)]);
    groups.add_group(INNER, ROOT, TEMPORARY, with(Strategy::OneForAll)).unwrap();
    groups.add_member(A, INNER, PERMANENT).unwrap();
    groups.add_member(B, INNER, PERMANENT).unwrap();
    groups.after(C, B, When::Ready).unwrap();
    groups.handle(Input::Start(Node::Group(ROOT)), t0);
    assert_eq!(groups.handle(gave_up(A), t0), [Output::GroupGaveUp(INNER), Output::Stop(B)]);
    let expected = [Output::GroupEnded(INNER), Output::DependencyFailed { member: C, on: B }];
    assert_eq!(groups.handle(done(B), t0), expected);
}

#[test]
fn circles_are_refused_by_name() {
    let mut groups = root(SETTINGS, &[(A, PERMANENT), (B, PERMANENT), (C, PERMANENT)]);
    groups.after(A, B, When::Started).unwrap();
    groups.after(B, C, When::Ready).unwrap();
    let circle = |members: &[MemberId]| Err(GroupError::Circle { members: members.into() });
    assert_eq!(groups.after(C, A, When::Started), circle(&[C, A, B]));
    assert_eq!(groups.after(A, A, When::Started), circle(&[A]));
    assert_eq!(groups.after(A, C, When::Started), Ok(()));
}

#[test]
fn impossible_declarations_are_refused() {
    let mut groups = root(SETTINGS, &[(A, PERMANENT), (B, TRANSIENT)]);
    let significant = |role| Role { significant: true, ..role };
    let node = Node::Member(C);
    let in_vain = GroupError::SignificantInVain { node, group: ROOT };
    assert_eq!(groups.add_member(C, ROOT, significant(TRANSIENT)), Err(in_vain));
    assert_eq!(groups.add_member(C, ROOT, significant(PERMANENT)), Err(GroupError::SignificantPermanent(node)));
    assert_eq!(groups.add_member(C, INNER, PERMANENT), Err(GroupError::Unknown(Node::Group(INNER))));
    assert_eq!(groups.add_member(A, ROOT, PERMANENT), Err(GroupError::Taken(Node::Member(A))));
    assert_eq!(groups.after(B, A, When::Exited), Err(GroupError::NeverExits { member: B, on: A }));
    assert_eq!(groups.after(B, C, When::Started), Err(GroupError::Unknown(node)));
    assert_eq!(groups.check_removal(Node::Group(ROOT)), Err(GroupError::Root));
    assert!(size_of::<GroupError>() < 64);
}

#[test]
fn significant_ends_shut_the_group_down() {
    let t0 = start();
    let role = |lifetime| Role { lifetime, significant: true };
    let members = [(A, role(Lifetime::Transient)), (B, role(Lifetime::Temporary)), (C, PERMANENT)];
    let any = GroupSettings { auto_shutdown: AutoShutdown::AnySignificant, ..SETTINGS };
    let all = GroupSettings { auto_shutdown: AutoShutdown::AllSignificant, ..SETTINGS };

    let mut groups = root(any, &members);
    run_all(&mut groups, t0);
    assert_eq!(groups.handle(gave_up(A), t0), [], "a transient one counts when it ends with success");
    assert_eq!(groups.handle(failed(B), t0), [Output::Stop(C)], "a temporary one always");
    assert_eq!(groups.handle(done(C), t0), [Output::GroupEnded(ROOT)]);

    let mut groups = root(all, &members);
    run_all(&mut groups, t0);
    assert_eq!(groups.handle(failed(B), t0), []);
    assert_eq!(groups.handle(crashed(A), t0), [Output::Restart(A)]);
    assert_eq!(groups.handle(done(A), t0), [Output::Stop(C)]);
}

#[test]
fn a_group_can_be_significant() {
    let t0 = start();
    let any = GroupSettings { auto_shutdown: AutoShutdown::AnySignificant, ..SETTINGS };
    let role = Role { lifetime: Lifetime::Transient, significant: true };
    let mut groups = root(any, &[(A, PERMANENT)]);
    groups.add_group(INNER, ROOT, role, any).unwrap();
    groups.add_member(B, INNER, role).unwrap();
    run_all(&mut groups, t0);
    assert_eq!(groups.handle(done(B), t0), [Output::GroupEnded(INNER), Output::Stop(A)]);
}

#[test]
fn a_group_on_its_way_out_is_restarted_with_its_siblings() {
    let t0 = start();
    let any = GroupSettings { auto_shutdown: AutoShutdown::AnySignificant, ..SETTINGS };
    let mut groups = root(with(Strategy::OneForAll), &[(A, PERMANENT)]);
    groups.add_group(INNER, ROOT, TRANSIENT, any).unwrap();
    groups.add_member(B, INNER, Role { significant: true, ..TRANSIENT }).unwrap();
    groups.add_member(C, INNER, PERMANENT).unwrap();
    run_all(&mut groups, t0);
    assert_eq!(groups.handle(done(B), t0), [Output::Stop(C)]);
    assert_eq!(groups.handle(crashed(A), t0), []);
    let expected = [Output::GroupEnded(INNER), Output::Restart(A), Output::Start(B), Output::Start(C)];
    assert_eq!(groups.handle(done(C), t0), expected);
}

#[test]
fn members_are_removed_while_others_run() {
    let t0 = start();
    let mut groups = root(with(Strategy::OneForAll), &[(A, PERMANENT), (B, PERMANENT)]);
    groups.after(B, A, When::Started).unwrap();
    run_all(&mut groups, t0);
    let needed = GroupError::StillNeeded { member: A, by: B };
    assert_eq!(groups.check_removal(Node::Member(A)), Err(needed));
    assert_eq!(groups.handle(Input::Remove(Node::Member(A)), t0), []);
    assert_eq!(groups.handle(Input::Remove(Node::Member(B)), t0), [Output::Stop(B)]);
    assert_eq!(groups.handle(Input::Restart(Node::Member(B)), t0), [], "it is on its way out");
    assert_eq!(groups.after(B, A, When::Ready), Err(GroupError::Unknown(Node::Member(B))));
    assert_eq!(groups.handle(crashed(B), t0), [Output::Removed(Node::Member(B))]);
    assert_eq!(groups.handle(crashed(A), t0), [Output::Restart(A)]);
    groups.add_member(B, ROOT, PERMANENT).unwrap();
    assert_eq!(groups.handle(Input::Start(Node::Member(B)), t0), [Output::Start(B)], "a new one of that id");
}

#[test]
fn one_added_during_a_restart_starts_in_its_turn() {
    let t0 = start();
    let mut groups = root(with(Strategy::RestForOne), &[(A, PERMANENT), (B, PERMANENT)]);
    run_all(&mut groups, t0);
    assert_eq!(groups.handle(crashed(A), t0), [Output::Stop(B)]);
    groups.add_member(C, ROOT, PERMANENT).unwrap();
    assert_eq!(groups.handle(Input::Start(Node::Member(C)), t0), []);
    assert_eq!(groups.handle(done(B), t0), [Output::Restart(A), Output::Start(B), Output::Start(C)]);
}

#[test]
fn the_end_of_a_group_is_limited_from_its_first_order_to_end() {
    let t0 = start();
    let mut groups = root(SETTINGS, &[(A, PERMANENT)]);
    let limited = GroupSettings { stop_within: Some(PERIOD), ..SETTINGS };
    groups.add_group(INNER, ROOT, PERMANENT, limited).unwrap();
    groups.add_member(B, INNER, PERMANENT).unwrap();
    assert_eq!((groups.stop_within(INNER), groups.stop_within(ROOT)), (Some(PERIOD), None));
    run_all(&mut groups, t0);
    let ends = Output::GroupEnds { group: INNER, within: PERIOD };
    assert_eq!(groups.handle(Input::Stop(Node::Group(INNER)), t0), [ends, Output::Stop(B)]);
    assert_eq!(groups.handle(Input::Stop(Node::Group(INNER)), t0), [], "asked again, it has no more time than it had");
    assert_eq!(groups.handle(done(B), t0), [Output::GroupEnded(INNER)]);
}

#[test]
fn p14_ten_thousand_cost_no_more_each_than_ten() {
    let t0 = start();
    let members: Vec<_> = (0..10_000).map(|id| (MemberId(id), PERMANENT)).collect();
    let mut groups = root(with(Strategy::OneForAll), &members);
    assert_eq!(run_all(&mut groups, t0).len(), members.len());
    assert_eq!(groups.handle(crashed(MemberId(0)), t0).len(), members.len() - 1);
    let mut outputs = Vec::new();
    for (member, _) in members.iter().skip(1) {
        outputs = groups.handle(done(*member), t0);
    }
    assert_eq!(outputs.len(), members.len(), "quadratic, this would take minutes");
}
