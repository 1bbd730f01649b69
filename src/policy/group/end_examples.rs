//! Examples of stops, shutdowns and removals in groups.

use crate::{
    deadline::start,
    ids::{GroupId, WorkerId},
    policy::{
        group::{
            error::DeclarationError,
            examples::{
                A, B, C, INNER, PERIOD, PERMANENT, ROOT, SETTINGS, TEMPORARY, TRANSIENT, crashed, done, failed,
                gave_up, root, run, run_all, with,
            },
            model::{
                AutoShutdown, DependencyCondition, GroupActivity, GroupOutcome, GroupSettings, NodeId, Role, Strategy,
            },
            transition::{GroupInput, GroupOutput},
        },
        restart::Restart,
    },
};

#[test]
fn p08_stop_order_includes_dependencies_of_ended_members() {
    let t0 = start();
    let (database, migration, application) = (A, B, C);
    let mut groups = root(SETTINGS, &[(application, PERMANENT), (migration, TRANSIENT), (database, PERMANENT)]);
    groups.add_dependency(application, migration, DependencyCondition::Completed).unwrap();
    groups.add_dependency(migration, database, DependencyCondition::Ready).unwrap();
    assert_eq!(groups.handle(GroupInput::Start(NodeId::Group(ROOT)), t0), [GroupOutput::Start(database)]);
    assert_eq!(groups.handle(GroupInput::Started(database), t0), []);
    assert_eq!(groups.handle(GroupInput::Ready(database), t0), [GroupOutput::Start(migration)]);
    assert_eq!(groups.handle(GroupInput::Started(migration), t0), []);
    assert_eq!(groups.handle(done(migration), t0), [GroupOutput::Start(application)]);
    assert_eq!(
        groups.handle(GroupInput::Stop(NodeId::Group(ROOT)), t0),
        [GroupOutput::Stop(application)],
        "the database is still needed"
    );
    assert_eq!(groups.handle(failed(application), t0), [GroupOutput::Stop(database)]);
    assert_eq!(groups.handle(crashed(database), t0), [GroupOutput::GroupEnded(ROOT)]);
    assert_eq!(groups.handle(GroupInput::Stop(NodeId::Group(ROOT)), t0), [], "the end is reported once");
    assert_eq!(groups.handle(GroupInput::Start(NodeId::Member(database)), t0), [], "the group is stopped");
    assert_eq!(groups.handle(GroupInput::Start(NodeId::Group(ROOT)), t0), [GroupOutput::Start(database)]);
}

#[test]
fn p08_stop_cancels_waiting_and_restarting_members() {
    let t0 = start();
    let mut groups = root(with(Strategy::OneForAll), &[(A, PERMANENT), (B, PERMANENT), (C, PERMANENT)]);
    groups.add_dependency(C, B, DependencyCondition::Ready).unwrap();
    groups.handle(GroupInput::Start(NodeId::Group(ROOT)), t0);
    assert_eq!(groups.handle(GroupInput::Started(A), t0), [GroupOutput::Start(B)]);
    assert_eq!(groups.handle(crashed(A), t0), [GroupOutput::Stop(B)], "a start that has not happened is cancelled");
    assert_eq!(groups.handle(GroupInput::Stop(NodeId::Group(ROOT)), t0), []);
    assert_eq!(groups.handle(failed(B), t0), [GroupOutput::GroupEnded(ROOT)]);
}

#[test]
fn significant_members_shut_the_group_down() {
    let t0 = start();
    let role = |restart| Role { restart, significant: true };
    let members = [(A, role(Restart::OnFailure)), (B, role(Restart::Never)), (C, PERMANENT)];
    let any = GroupSettings { auto_shutdown: AutoShutdown::AnySignificant, ..SETTINGS };
    let all = GroupSettings { auto_shutdown: AutoShutdown::AllSignificant, ..SETTINGS };

    let mut groups = root(any, &members);
    run_all(&mut groups, t0);
    assert_eq!(groups.handle(crashed(A), t0), [GroupOutput::Start(A)], "it is restarted, so it has not ended");
    assert_eq!(groups.handle(failed(B), t0), [GroupOutput::Stop(C), GroupOutput::Stop(A)]);
    groups.handle(failed(A), t0);
    assert_eq!(groups.handle(done(C), t0), [GroupOutput::GroupEnded(ROOT)]);
    assert_eq!(groups.snapshot(ROOT).unwrap().activity, GroupActivity::Down(GroupOutcome::ShutDown));

    let mut groups = root(any, &members);
    run_all(&mut groups, t0);
    assert_eq!(
        groups.handle(gave_up(A), t0),
        [GroupOutput::GroupGaveUp(ROOT), GroupOutput::Stop(C), GroupOutput::Stop(B)]
    );

    let mut groups = root(all, &members);
    run_all(&mut groups, t0);
    assert_eq!(groups.handle(failed(B), t0), []);
    assert_eq!(groups.handle(crashed(A), t0), [GroupOutput::Start(A)]);
    assert_eq!(groups.handle(done(A), t0), [GroupOutput::Stop(C)]);
}

#[test]
fn every_end_of_a_significant_member_counts() {
    let t0 = start();
    let all = GroupSettings { auto_shutdown: AutoShutdown::AllSignificant, ..SETTINGS };
    let [first, dependent] = [WorkerId(8), WorkerId(9)];
    let significant = Role { significant: true, ..TEMPORARY };
    let members = [(C, PERMANENT), (first, TEMPORARY), (A, significant), (B, significant), (dependent, significant)];
    // One member fails, one gives up, and the dependency of one fails.
    for order in [[A, B, first], [A, first, B], [B, A, first], [B, first, A], [first, A, B], [first, B, A]] {
        let mut groups = root(all, &members);
        groups.add_dependency(dependent, first, DependencyCondition::Completed).unwrap();
        run_all(&mut groups, t0);
        for (at, member) in order.into_iter().enumerate() {
            let outputs = groups.handle(if member == B { gave_up(B) } else { failed(member) }, t0);
            assert_eq!(outputs.contains(&GroupOutput::Stop(C)), at == 2, "{order:?}: {outputs:?}");
        }
    }
    // As in OTP, a member that a user stops does not trigger the shutdown, but counts as ended.
    let mut groups = root(all, &[(C, PERMANENT), (A, significant), (B, significant)]);
    run_all(&mut groups, t0);
    assert_eq!(groups.handle(GroupInput::Stop(NodeId::Member(A)), t0), [GroupOutput::Stop(A)]);
    assert_eq!(groups.handle(done(A), t0), []);
    assert_eq!(groups.handle(done(B), t0), [GroupOutput::Stop(C)]);
}

#[test]
fn group_can_be_significant() {
    let t0 = start();
    let any = GroupSettings { auto_shutdown: AutoShutdown::AnySignificant, ..SETTINGS };
    let role = Role { restart: Restart::OnFailure, significant: true };
    let mut groups = root(any, &[(A, PERMANENT)]);
    groups.add_group(INNER, ROOT, role, any).unwrap();
    groups.add_member(B, INNER, role).unwrap();
    run_all(&mut groups, t0);
    assert_eq!(groups.handle(done(B), t0), [GroupOutput::Stop(A)]);
    assert_eq!(groups.handle(done(A), t0), [GroupOutput::GroupEnded(INNER), GroupOutput::GroupEnded(ROOT)]);
}

#[test]
fn stopping_group_is_restarted_with_its_siblings() {
    let t0 = start();
    let any = GroupSettings { auto_shutdown: AutoShutdown::AnySignificant, ..SETTINGS };
    let mut groups = root(with(Strategy::OneForAll), &[(A, PERMANENT)]);
    groups.add_group(INNER, ROOT, TRANSIENT, any).unwrap();
    groups.add_member(B, INNER, Role { significant: true, ..TRANSIENT }).unwrap();
    groups.add_member(C, INNER, PERMANENT).unwrap();
    run_all(&mut groups, t0);
    assert_eq!(groups.handle(done(B), t0), [GroupOutput::Stop(C)]);
    assert_eq!(groups.handle(crashed(A), t0), []);
    let expected =
        [GroupOutput::GroupRestarting(INNER), GroupOutput::Start(A), GroupOutput::Start(B), GroupOutput::Start(C)];
    let outputs = groups.handle(done(C), t0);
    assert_eq!(run(&mut groups, outputs, t0), expected);
}

#[test]
fn restarted_group_restarts_its_inner_groups() {
    let t0 = start();
    let any = GroupSettings { auto_shutdown: AutoShutdown::AnySignificant, ..SETTINGS };
    let innermost = GroupId(2);
    let mut groups = root(with(Strategy::OneForAll), &[(A, PERMANENT)]);
    groups.add_group(INNER, ROOT, TRANSIENT, any).unwrap();
    groups.add_group(innermost, INNER, PERMANENT, SETTINGS).unwrap();
    groups.add_member(B, innermost, PERMANENT).unwrap();
    groups.add_member(C, INNER, Role { significant: true, ..TRANSIENT }).unwrap();
    run_all(&mut groups, t0);
    assert_eq!(groups.handle(done(C), t0), [GroupOutput::Stop(B)]);
    assert_eq!(groups.handle(done(B), t0), [GroupOutput::GroupEnded(innermost), GroupOutput::GroupEnded(INNER)]);
    assert!(groups.is_finished(NodeId::Member(B)));
    let outputs = groups.handle(crashed(A), t0);
    assert_eq!(run(&mut groups, outputs, t0), [GroupOutput::Start(A), GroupOutput::Start(B), GroupOutput::Start(C)]);
}

#[test]
fn member_is_removed_while_others_run() {
    let t0 = start();
    let mut groups = root(with(Strategy::OneForAll), &[(A, PERMANENT), (B, PERMANENT)]);
    groups.add_dependency(B, A, DependencyCondition::Started).unwrap();
    run_all(&mut groups, t0);
    let needed = DeclarationError::HasDependents { member: A, by: B };
    assert_eq!(groups.check_removal(NodeId::Member(A)), Err(needed));
    assert_eq!(groups.handle(GroupInput::Remove(NodeId::Member(A)), t0), []);
    assert_eq!(groups.handle(GroupInput::Remove(NodeId::Member(B)), t0), [GroupOutput::Stop(B)]);
    assert_eq!(groups.handle(GroupInput::Restart(NodeId::Member(B)), t0), [], "it is being removed");
    assert_eq!(
        groups.add_dependency(B, A, DependencyCondition::Ready),
        Err(DeclarationError::Unknown(NodeId::Member(B)))
    );
    assert_eq!(groups.handle(crashed(B), t0), [GroupOutput::Removed(NodeId::Member(B))]);
    assert_eq!(groups.handle(crashed(A), t0), [GroupOutput::Start(A)]);
    groups.handle(GroupInput::Started(A), t0);
    groups.add_member(B, ROOT, PERMANENT).unwrap();
    assert_eq!(
        groups.handle(GroupInput::Start(NodeId::Member(B)), t0),
        [GroupOutput::Start(B)],
        "a new member with the same id"
    );
}

#[test]
fn member_added_during_a_restart_starts_in_order() {
    let t0 = start();
    let mut groups = root(with(Strategy::RestForOne), &[(A, PERMANENT), (B, PERMANENT)]);
    run_all(&mut groups, t0);
    assert_eq!(groups.handle(crashed(A), t0), [GroupOutput::Stop(B)]);
    groups.add_member(C, ROOT, PERMANENT).unwrap();
    assert_eq!(groups.handle(GroupInput::Start(NodeId::Member(C)), t0), []);
    let outputs = groups.handle(done(B), t0);
    assert_eq!(run(&mut groups, outputs, t0), [GroupOutput::Start(A), GroupOutput::Start(B), GroupOutput::Start(C)]);
}

#[test]
fn stop_timeout_counts_from_the_first_stop() {
    let t0 = start();
    let mut groups = root(SETTINGS, &[(A, PERMANENT)]);
    let limited = GroupSettings { stop_timeout: Some(PERIOD), ..SETTINGS };
    groups.add_group(INNER, ROOT, PERMANENT, limited).unwrap();
    groups.add_member(B, INNER, PERMANENT).unwrap();
    assert_eq!((groups.stop_timeout(INNER), groups.stop_timeout(ROOT)), (Some(PERIOD), None));
    run_all(&mut groups, t0);
    let ends = GroupOutput::GroupStopping { group: INNER, timeout: PERIOD };
    assert_eq!(groups.handle(GroupInput::Stop(NodeId::Group(INNER)), t0), [ends, GroupOutput::Stop(B)]);
    assert_eq!(
        groups.handle(GroupInput::Stop(NodeId::Group(INNER)), t0),
        [],
        "a second stop does not extend the timeout"
    );
    assert_eq!(groups.handle(done(B), t0), [GroupOutput::GroupEnded(INNER)]);
}
