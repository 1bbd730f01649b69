//! Why a declaration or a removal is refused.

use super::model::NodeId;
use crate::ids::{GroupId, WorkerId};
use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum DeclarationError {
    #[error("{0} is significant but always restarted, so it would never end for good")]
    SignificantPermanent(NodeId),
    #[error("{node} is significant, but {group} has no automatic shutdown")]
    SignificantWithoutShutdown { node: NodeId, group: GroupId },
    /// Each member depends on the next, and the last on the first.
    #[error("dependency cycle: {}", display_cycle(members))]
    Cycle { members: Box<[WorkerId]> },
    #[error("worker {member} waits for worker {on} to complete, which is always restarted and never ends for good")]
    NeverCompletes { member: WorkerId, on: WorkerId },
    #[error("{}", display_unknown(*.0))]
    Unknown(NodeId),
    #[error("worker {member} is not a member of {group} or of a group within it")]
    NotInGroup { member: WorkerId, group: GroupId },
    #[error("{0} already exists")]
    AlreadyExists(NodeId),
    #[error("worker {member} cannot be removed: worker {by} depends on it")]
    HasDependents { member: WorkerId, by: WorkerId },
    #[error("the outermost group cannot be removed")]
    RootGroup,
    #[error("stop timeout {timeout:?} exceeds the stop timeout {limit:?} of {outer} around it")]
    ExceedsParentTimeout { timeout: Duration, outer: GroupId, limit: Duration },
}

fn display_cycle(members: &[WorkerId]) -> String {
    let names: Vec<_> = members.iter().chain(members.first()).map(|member| format!("worker {member}")).collect();
    names.join(" -> ")
}

/// A worker can exist without being a member; a group cannot be unknown otherwise.
fn display_unknown(node: NodeId) -> String {
    match node {
        NodeId::Member(worker) => {
            format!("worker {worker} is not a member of a group, or is being removed: add it by `WorkerGroup::add`")
        }
        NodeId::Group(group) => format!("{group} does not exist, or is being removed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_workers_and_groups_like_events() {
        let (member, on) = (WorkerId(5), WorkerId(7));
        let unknown = DeclarationError::Unknown(NodeId::Group(GroupId(3)));
        assert_eq!(unknown.to_string(), "group #3 does not exist, or is being removed");
        let unknown = DeclarationError::Unknown(NodeId::Member(member));
        assert!(unknown.to_string().starts_with("worker #5 is not a member of a group, "), "{unknown}");
        let cycle = DeclarationError::Cycle { members: [member, on].into() };
        assert_eq!(cycle.to_string(), "dependency cycle: worker #5 -> worker #7 -> worker #5");
        let never = DeclarationError::NeverCompletes { member, on };
        assert!(never.to_string().starts_with("worker #5 waits for worker #7 to complete, "), "{never}");
    }
}
