//! Starts in the order of declaration, in groups that restart several members together.
//!
//! In these groups each child relies on the children declared before it, as in OTP, where `start_link` of one returns before the
//! next is called. A member waits while an earlier sibling is being started, including its backoff. A sibling that waits for its
//! dependencies does not delay later ones, since it may depend on them.

use super::{
    model::Strategy,
    state::{Groups, Path, StartOrder},
};
use crate::ids::{GroupId, WorkerId};

impl Groups {
    /// Whether the member may start now: in none of its ordered groups an earlier sibling is being started or waits. Otherwise the
    /// member is queued, and returned by `next_waiting` later.
    pub(super) fn try_take_turn(&mut self, member: WorkerId) -> bool {
        let Some((group, path)) = self.blocking_group(member) else { return true };
        if let Some(group) = self.groups.get_mut(&group) {
            group.start_order.waiting.insert(path, member);
        }
        false
    }

    /// The innermost group in which the member has to wait for an earlier child, and its path in that group.
    pub(super) fn blocking_group(&self, member: WorkerId) -> Option<(GroupId, Path)> {
        self.paths(member).into_iter().find(|(group, path)| {
            self.groups.get(group).is_some_and(|group| {
                let StartOrder { starting, waiting } = &group.start_order;
                let is_after = |place: &u64| path.first().is_some_and(|own| place < own);
                group.settings.strategy != Strategy::OneForOne
                    && (starting.keys().next().is_some_and(is_after)
                        || waiting.keys().next().is_some_and(|first| first < path))
            })
        })
    }

    /// Removes and returns the next queued member of this group that need not wait any longer.
    pub(super) fn next_waiting(&mut self, group: GroupId) -> Option<WorkerId> {
        let StartOrder { starting, waiting } = &mut self.groups.get_mut(&group)?.start_order;
        let next = waiting.first_entry()?;
        let is_early = |first: &u64| next.key().first().is_some_and(|place| first < place);
        if starting.keys().next().is_some_and(is_early) { None } else { Some(next.remove()) }
    }

    /// The start of a member begins, or it has succeeded, failed or been cancelled.
    pub(super) fn count_starting(&mut self, member: WorkerId, is_starting: bool) {
        for (id, path) in self.paths(member) {
            let (Some(&place), Some(group)) = (path.first(), self.groups.get_mut(&id)) else { continue };
            let count = group.start_order.starting.entry(place).or_default();
            if is_starting {
                *count += 1;
            } else {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    group.start_order.starting.remove(&place);
                }
                self.work.turns.push_back(id);
            }
        }
    }

    /// The groups around the member, from the innermost, each with the path to the member.
    fn paths(&self, member: WorkerId) -> Vec<(GroupId, Path)> {
        let mut below = self.members.get(&member).map(|member| (member.group, vec![member.place]));
        std::iter::from_fn(|| {
            let (group, path) = below.take()?;
            below = self.groups.get(&group).and_then(|outer| Some((outer.parent?, [&[outer.place], &*path].concat())));
            Some((group, path))
        })
        .collect()
    }

    /// Removes the member from all queues.
    pub(super) fn stop_waiting(&mut self, member: WorkerId) {
        for (group, path) in self.paths(member) {
            if let Some(group) = self.groups.get_mut(&group) {
                group.start_order.waiting.remove(&path);
            }
        }
    }
}
