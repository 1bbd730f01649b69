//! Declarations that groups refuse.

use pipewright::{
    Backoff, DependencyCondition, ExitMatch, GroupError, GroupPolicy, Restart, RestartPolicy, SpecError, StopPolicy,
    StopStep, Supervisor, WorkerSpec,
};
use std::time::Duration;

#[test]
fn contradictory_members_and_groups_are_refused() {
    let supervisor = Supervisor::new().unwrap();
    let group = supervisor.group(GroupPolicy::default()).unwrap();
    let refused = |spec: WorkerSpec| match group.add(spec) {
        Err(GroupError::Rejected { reason }) => reason,
        other => panic!("{other:?}"),
    };
    let hanging = || WorkerSpec::new("sleep").arg("1000");
    let first = group.add(hanging().restart(Restart::Always)).unwrap();
    assert!(refused(hanging().significant()).contains("automatic shutdown"));
    let policies = [
        RestartPolicy::from(Restart::Never).force_restart([ExitMatch::Code(3)]),
        RestartPolicy::from(Restart::Never).force_restart([ExitMatch::Signal(libc::SIGHUP)]),
    ];
    for policy in policies {
        assert!(refused(hanging().restart(policy)).contains("Restart::Never"));
    }
    group.add(hanging().restart(RestartPolicy::from(Restart::OnFailure).force_restart([ExitMatch::Code(3)]))).unwrap();
    assert!(refused(hanging().depends_on(&first, DependencyCondition::Completed)).contains("never ends"));
    let ungrouped = supervisor.spawn(hanging()).unwrap();
    assert!(
        refused(hanging().depends_on(&ungrouped, DependencyCondition::Ready)).contains("is not a member of a group")
    );
    assert!(supervisor.spawn(hanging().depends_on(&first, DependencyCondition::Ready)).is_err(), "members only");
    assert!(supervisor.group(GroupPolicy::default().significant()).is_err());
    for policy in [GroupPolicy::default().restart(Restart::Always), GroupPolicy::default().intensity(3, Duration::ZERO)]
    {
        assert!(matches!(supervisor.group(policy), Err(GroupError::Rejected { .. })), "{policy:?}");
    }
}

#[test]
fn p13_unreachable_intensity_is_refused() {
    let supervisor = Supervisor::new().unwrap();
    let slow = RestartPolicy::from(Restart::Always).backoff(Backoff::constant(Duration::from_secs(10)));
    let add = |policy: GroupPolicy| {
        supervisor.group(policy).unwrap().add(WorkerSpec::new("sleep").arg("1000").restart(slow.clone()))
    };
    match add(GroupPolicy::default()) {
        Err(GroupError::Spec(SpecError::Conflict { settings, reason })) => {
            assert_eq!(settings, ["intensity", "backoff"]);
            assert!(reason.contains("50s") && reason.contains("30s"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    add(GroupPolicy::default().intensity(5, Duration::from_secs(60))).unwrap();
    add(GroupPolicy::default().unlimited_restarts()).unwrap();
}

#[test]
fn stop_policy_longer_than_group_timeout_is_refused() {
    let supervisor = Supervisor::new().unwrap();
    let short = GroupPolicy::default().stop_timeout(Duration::from_secs(1));
    let group = supervisor.group(short).unwrap();
    let inner = group.group(GroupPolicy::default()).unwrap();
    let stop = StopPolicy::kill().step([StopStep::ClosePipes], Duration::from_secs(2));
    for group in [&group, &inner] {
        match group.add(WorkerSpec::new("true").stop(stop.clone())) {
            Err(GroupError::Spec(SpecError::Conflict { settings, reason })) => {
                assert_eq!(settings, ["stop", "stop_timeout"]);
                assert!(reason.contains("2s") && reason.contains("1s"), "{reason}");
            }
            other => panic!("{other:?}"),
        }
    }
    match inner.group(GroupPolicy::default().stop_timeout(Duration::from_secs(3))) {
        Err(GroupError::Rejected { reason }) => assert!(reason.contains("3s") && reason.contains("1s"), "{reason}"),
        other => panic!("{other:?}"),
    }
    group.add(WorkerSpec::new("true").stop(StopPolicy::kill())).unwrap();
}

#[test]
fn p16_dependency_outside_of_groups_is_refused() {
    let supervisor = Supervisor::new().unwrap();
    let group = supervisor.group(GroupPolicy::default()).unwrap();
    let outside = supervisor.spawn(WorkerSpec::new("true")).unwrap();
    let error =
        group.add(WorkerSpec::new("true").depends_on(&outside, DependencyCondition::Started)).map(drop).unwrap_err();
    assert!(error.to_string().contains("is not a member of a group"), "{error}");
}
