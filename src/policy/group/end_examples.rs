//! How groups and their members end, by example.

use crate::deadline::start;
use crate::ids::{GroupId, WorkerId};
use crate::policy::group::{
    error::GroupError,
    examples::{
        A, B, C, INNER, PERIOD, PERMANENT, ROOT, SETTINGS, TEMPORARY, TRANSIENT, crashed, done, failed, gave_up, root,
        run, run_all, with,
    },
    model::{Activity, AutoShutdown, DependencyCondition, End, GroupSettings, Lifetime, Node, Role, Strategy},
    transition::{Input, Output},
};

#[test]
fn p08_stopping_goes_in_reverse_through_what_has_ended() {
    let t0 = start();
    let (database, migration, application) = (A, B, C);
    let mut groups = root(SETTINGS, &[(application, PERMANENT), (migration, TRANSIENT), (database, PERMANENT)]);
    groups.add_dependency(application, migration, DependencyCondition::Completed).unwrap();
    groups.add_dependency(migration, database, DependencyCondition::Ready).unwrap();
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
    assert_eq!(groups.handle(Input::Stop(Node::Group(ROOT)), t0), [], "it has ended, and that is said once");
    assert_eq!(groups.handle(Input::Start(Node::Member(database)), t0), [], "the group is stopped");
    assert_eq!(groups.handle(Input::Start(Node::Group(ROOT)), t0), [Output::Start(database)]);
}

#[test]
fn p08_stopping_calls_off_what_waits_and_what_restarts() {
    let t0 = start();
    let mut groups = root(with(Strategy::OneForAll), &[(A, PERMANENT), (B, PERMANENT), (C, PERMANENT)]);
    groups.add_dependency(C, B, DependencyCondition::Ready).unwrap();
    groups.handle(Input::Start(Node::Group(ROOT)), t0);
    assert_eq!(groups.handle(Input::Started(A), t0), [Output::Start(B)]);
    assert_eq!(groups.handle(crashed(A), t0), [Output::Stop(B)], "a start that has not happened is called off");
    assert_eq!(groups.handle(Input::Stop(Node::Group(ROOT)), t0), []);
    assert_eq!(groups.handle(failed(B), t0), [Output::GroupEnded(ROOT)]);
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
    assert_eq!(groups.handle(crashed(A), t0), [Output::Start(A)], "it has not ended");
    assert_eq!(groups.handle(failed(B), t0), [Output::Stop(C), Output::Stop(A)]);
    groups.handle(failed(A), t0);
    assert_eq!(groups.handle(done(C), t0), [Output::GroupEnded(ROOT)]);
    assert_eq!(groups.survey(ROOT).unwrap().activity, Activity::Over(End::ShutDown));

    let mut groups = root(any, &members);
    run_all(&mut groups, t0);
    assert_eq!(groups.handle(gave_up(A), t0), [Output::GroupGaveUp(ROOT), Output::Stop(C), Output::Stop(B)]);

    let mut groups = root(all, &members);
    run_all(&mut groups, t0);
    assert_eq!(groups.handle(failed(B), t0), []);
    assert_eq!(groups.handle(crashed(A), t0), [Output::Start(A)]);
    assert_eq!(groups.handle(done(A), t0), [Output::Stop(C)]);
}

#[test]
fn every_end_of_a_significant_one_counts_in_any_order() {
    let t0 = start();
    let all = GroupSettings { auto_shutdown: AutoShutdown::AllSignificant, ..SETTINGS };
    let [first, vain] = [WorkerId(8), WorkerId(9)];
    let significant = Role { significant: true, ..TEMPORARY };
    let members = [(C, PERMANENT), (first, TEMPORARY), (A, significant), (B, significant), (vain, significant)];
    // One fails, one gives up, and one waits for what never comes.
    for order in [[A, B, first], [A, first, B], [B, A, first], [B, first, A], [first, A, B], [first, B, A]] {
        let mut groups = root(all, &members);
        groups.add_dependency(vain, first, DependencyCondition::Completed).unwrap();
        run_all(&mut groups, t0);
        for (at, member) in order.into_iter().enumerate() {
            let outputs = groups.handle(if member == B { gave_up(B) } else { failed(member) }, t0);
            assert_eq!(outputs.contains(&Output::Stop(C)), at == 2, "{order:?}: {outputs:?}");
        }
    }
    // As in OTP, what a user stops ends nothing, but is gone.
    let mut groups = root(all, &[(C, PERMANENT), (A, significant), (B, significant)]);
    run_all(&mut groups, t0);
    assert_eq!(groups.handle(Input::Stop(Node::Member(A)), t0), [Output::Stop(A)]);
    assert_eq!(groups.handle(done(A), t0), []);
    assert_eq!(groups.handle(done(B), t0), [Output::Stop(C)]);
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
    assert_eq!(groups.handle(done(B), t0), [Output::Stop(A)]);
    assert_eq!(groups.handle(done(A), t0), [Output::GroupEnded(INNER), Output::GroupEnded(ROOT)]);
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
    let expected = [Output::GroupRestarting(INNER), Output::Start(A), Output::Start(B), Output::Start(C)];
    let outputs = groups.handle(done(C), t0);
    assert_eq!(run(&mut groups, outputs, t0), expected);
}

#[test]
fn what_a_group_had_in_inner_ones_comes_back_with_it() {
    let t0 = start();
    let any = GroupSettings { auto_shutdown: AutoShutdown::AnySignificant, ..SETTINGS };
    let innermost = GroupId(2);
    let mut groups = root(with(Strategy::OneForAll), &[(A, PERMANENT)]);
    groups.add_group(INNER, ROOT, TRANSIENT, any).unwrap();
    groups.add_group(innermost, INNER, PERMANENT, SETTINGS).unwrap();
    groups.add_member(B, innermost, PERMANENT).unwrap();
    groups.add_member(C, INNER, Role { significant: true, ..TRANSIENT }).unwrap();
    run_all(&mut groups, t0);
    assert_eq!(groups.handle(done(C), t0), [Output::Stop(B)]);
    assert_eq!(groups.handle(done(B), t0), [Output::GroupEnded(innermost), Output::GroupEnded(INNER)]);
    assert!(groups.is_over(Node::Member(B)));
    let outputs = groups.handle(crashed(A), t0);
    assert_eq!(run(&mut groups, outputs, t0), [Output::Start(A), Output::Start(B), Output::Start(C)]);
}

#[test]
fn members_are_removed_while_others_run() {
    let t0 = start();
    let mut groups = root(with(Strategy::OneForAll), &[(A, PERMANENT), (B, PERMANENT)]);
    groups.add_dependency(B, A, DependencyCondition::Started).unwrap();
    run_all(&mut groups, t0);
    let needed = GroupError::StillNeeded { member: A, by: B };
    assert_eq!(groups.check_removal(Node::Member(A)), Err(needed));
    assert_eq!(groups.handle(Input::Remove(Node::Member(A)), t0), []);
    assert_eq!(groups.handle(Input::Remove(Node::Member(B)), t0), [Output::Stop(B)]);
    assert_eq!(groups.handle(Input::Restart(Node::Member(B)), t0), [], "it is on its way out");
    assert_eq!(groups.add_dependency(B, A, DependencyCondition::Ready), Err(GroupError::Unknown(Node::Member(B))));
    assert_eq!(groups.handle(crashed(B), t0), [Output::Removed(Node::Member(B))]);
    assert_eq!(groups.handle(crashed(A), t0), [Output::Start(A)]);
    groups.handle(Input::Started(A), t0);
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
    let outputs = groups.handle(done(B), t0);
    assert_eq!(run(&mut groups, outputs, t0), [Output::Start(A), Output::Start(B), Output::Start(C)]);
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
