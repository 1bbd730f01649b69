//! Why groups are not made or changed as somebody wants.

use super::{GroupId, MemberId, Node};
use std::{fmt, time::Duration};

/// Why a declaration, or a removal, is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum GroupError {
    #[error("{0} is significant and permanent: it would never end for good, so it cannot end its group")]
    SignificantPermanent(Node),
    #[error("{node} is significant, and {group} never shuts down by itself: set its automatic shutdown")]
    SignificantInVain { node: Node, group: GroupId },
    /// Each waits for the next, and the last for the first.
    #[error("they wait for each other in a circle: {}", members.iter().map(MemberId::to_string).collect::<Vec<_>>().join(", "))]
    Circle { members: Box<[MemberId]> },
    #[error("{member} waits for the end of {on}, which is permanent and never ends for good")]
    NeverExits { member: MemberId, on: MemberId },
    #[error("{}", unknown(*.0))]
    Unknown(Node),
    #[error("{member} is not a member of {group}, nor of a group within it")]
    Elsewhere { member: MemberId, group: GroupId },
    #[error("{0} is there already")]
    Taken(Node),
    #[error("{member} cannot be removed, {by} waits for it: remove that one first")]
    StillNeeded { member: MemberId, by: MemberId },
    #[error("the outermost group cannot be removed")]
    Root,
    #[error("its end may take {within:?} (stop_within), and that of {outer} around it no longer than {limit:?}")]
    LongerEnd { within: Duration, outer: GroupId, limit: Duration },
}

/// A worker may be there without being a member; a group is there or not.
fn unknown(node: Node) -> String {
    match node {
        Node::Member(worker) => {
            format!("{worker} is no member of a group, or is being removed; a member is added by `WorkerGroup::add`")
        }
        Node::Group(group) => format!("there is no {group}, or it is being removed"),
    }
}

/// As users know them.
impl fmt::Display for MemberId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "worker #{}", self.0)
    }
}

impl fmt::Display for GroupId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "group #{}", self.0)
    }
}

impl fmt::Display for Node {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Member(member) => member.fmt(formatter),
            Self::Group(group) => group.fmt(formatter),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_and_groups_are_named_as_in_events() {
        let (member, on) = (MemberId(5), MemberId(7));
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
