//! Who waits for whom: the dependencies between members, without circles.

use super::model::DependencyCondition;
use crate::ids::WorkerId;
use std::collections::{BTreeMap, BTreeSet};

/// Where to look from a member: at what it needs, or at those who need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Dependencies,
    Dependents,
}

#[derive(Debug, Default)]
pub(super) struct DependencyGraph {
    nodes: BTreeMap<WorkerId, Edges>,
}

#[derive(Debug, Default)]
struct Edges {
    dependencies: Vec<(WorkerId, DependencyCondition)>,
    dependents: BTreeSet<WorkerId>,
}

impl DependencyGraph {
    /// What a member waits for.
    pub(super) fn dependencies_of(&self, member: WorkerId) -> &[(WorkerId, DependencyCondition)] {
        self.nodes.get(&member).map_or(&[], |edges| &edges.dependencies)
    }

    /// Who waits for it, directly.
    pub(super) fn dependents_of(&self, member: WorkerId) -> impl Iterator<Item = WorkerId> {
        self.nodes.get(&member).into_iter().flat_map(|edges| edges.dependents.iter().copied())
    }

    /// Everybody who is reached from these, over any number of steps; these themselves only where one reaches another.
    ///
    /// Steps lead through members that have ended, since an application that waits for a migration which needed the database
    /// needs the database too.
    pub(super) fn reachable(&self, from: impl IntoIterator<Item = WorkerId>, towards: Direction) -> BTreeSet<WorkerId> {
        let mut reached = BTreeSet::new();
        let mut todo: Vec<_> = from.into_iter().collect();
        while let Some(member) = todo.pop() {
            todo.extend(self.step(member, towards).into_iter().filter(|next| reached.insert(*next)));
        }
        reached
    }

    /// Says that one waits for another; what both said before about the same two is replaced.
    ///
    /// # Errors
    ///
    /// The circle that this would close: each waits for the next, and the last for the first.
    pub(super) fn link(
        &mut self,
        member: WorkerId,
        on: WorkerId,
        condition: DependencyCondition,
    ) -> Result<(), Box<[WorkerId]>> {
        if let Some(circle) = self.path(on, member) {
            return Err(circle);
        }
        let dependencies = &mut self.nodes.entry(member).or_default().dependencies;
        dependencies.retain(|(other, _)| *other != on);
        dependencies.push((on, condition));
        self.nodes.entry(on).or_default().dependents.insert(member);
        Ok(())
    }

    pub(super) fn forget(&mut self, member: WorkerId) {
        let Some(edges) = self.nodes.remove(&member) else { return };
        for (on, _) in edges.dependencies {
            if let Some(needed) = self.nodes.get_mut(&on) {
                needed.dependents.remove(&member);
            }
        }
        for needing in edges.dependents {
            if let Some(needing) = self.nodes.get_mut(&needing) {
                needing.dependencies.retain(|(on, _)| *on != member);
            }
        }
    }

    fn step(&self, member: WorkerId, towards: Direction) -> Vec<WorkerId> {
        match towards {
            Direction::Dependencies => self.dependencies_of(member).iter().map(|(on, _)| *on).collect(),
            Direction::Dependents => self.dependents_of(member).collect(),
        }
    }

    /// How one needs another: `to`, which would wait for `from`, first.
    fn path(&self, from: WorkerId, to: WorkerId) -> Option<Box<[WorkerId]>> {
        let mut came_from = BTreeMap::new();
        let mut todo = vec![from];
        while let Some(member) = todo.pop() {
            if member == to {
                // Backwards from `to` over those that led to it: the last one is `from`.
                let mut path: Vec<_> = std::iter::successors(Some(to), |at| came_from.get(at).copied()).collect();
                if let Some((_, rest)) = path.split_first_mut() {
                    rest.reverse();
                }
                return Some(path.into());
            }
            for next in self.step(member, Direction::Dependencies) {
                if next != from && !came_from.contains_key(&next) {
                    came_from.insert(next, member);
                    todo.push(next);
                }
            }
        }
        None
    }
}
