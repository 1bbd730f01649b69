//! Why groups are not made or changed as somebody wants.

use super::model::Node;
use crate::ids::{GroupId, WorkerId};
use std::time::Duration;

/// Why a declaration, or a removal, is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum GroupError {
    #[error("{0} is significant and permanent: it would never end for good, so it cannot end its group")]
    SignificantPermanent(Node),
    #[error("{node} is significant, and {group} never shuts down by itself: set its automatic shutdown")]
    SignificantInVain { node: Node, group: GroupId },
    /// Each waits for the next, and the last for the first.
    #[error("they wait for each other in a circle: {}", members.iter().map(|member| format!("worker {member}")).collect::<Vec<_>>().join(", "))]
    Circle { members: Box<[WorkerId]> },
    #[error("worker {member} waits for the end of worker {on}, which is permanent and never ends for good")]
    NeverExits { member: WorkerId, on: WorkerId },
    #[error("{}", unknown(*.0))]
    Unknown(Node),
    #[error("worker {member} is not a member of {group}, nor of a group within it")]
    Elsewhere { member: WorkerId, group: GroupId },
    #[error("{0} is there already")]
    Taken(Node),
    #[error("worker {member} cannot be removed, worker {by} waits for it: remove that one first")]
    StillNeeded { member: WorkerId, by: WorkerId },
    #[error("the outermost group cannot be removed")]
    Root,
    #[error("its end may take {within:?} (stop_within), and that of {outer} around it no longer than {limit:?}")]
    LongerEnd { within: Duration, outer: GroupId, limit: Duration },
}

/// A worker may be there without being a member; a group is there or not.
fn unknown(node: Node) -> String {
    match node {
        Node::Member(worker) => {
            format!(
                "worker {worker} is no member of a group, or is being removed; a member is added by `WorkerGroup::add`"
            )
        }
        Node::Group(group) => format!("there is no {group}, or it is being removed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_and_groups_are_named_as_in_events() {
        let (member, on) = (WorkerId(5), WorkerId(7));
        let unknown = GroupError::Unknown(Node::Group(GroupId(3)));
        assert_eq!(unknown.to_string(), "there is no group #3, or it is being removed");
        let unknown = GroupError::Unknown(Node::Member(member));
        assert!(unknown.to_string().starts_with("worker #5 is no member of a group, "), "{unknown}");
        let circle = GroupError::Circle { members: [member, on].into() };
        assert_eq!(circle.to_string(), "they wait for each other in a circle: worker #5, worker #7");
        let never = GroupError::NeverExits { member, on };
        assert!(never.to_string().starts_with("worker #5 waits for the end of worker #7, "), "{never}");
    }
}
