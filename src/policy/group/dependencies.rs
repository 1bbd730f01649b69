//! The acyclic graph of dependencies between members.

use super::model::DependencyCondition;
use crate::ids::WorkerId;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Traversal {
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
    pub(super) fn dependencies_of(&self, member: WorkerId) -> &[(WorkerId, DependencyCondition)] {
        self.nodes.get(&member).map_or(&[], |edges| &edges.dependencies)
    }

    /// Direct dependents.
    pub(super) fn dependents_of(&self, member: WorkerId) -> impl Iterator<Item = WorkerId> {
        self.nodes.get(&member).into_iter().flat_map(|edges| edges.dependents.iter().copied())
    }

    /// All members reachable from these. Contains a member of `from` only if it is reachable from another one.
    ///
    /// Paths lead through members that have ended: an application that waits for a migration, which needed the database, needs
    /// the database too.
    pub(super) fn reachable(
        &self,
        from: impl IntoIterator<Item = WorkerId>,
        direction: Traversal,
    ) -> BTreeSet<WorkerId> {
        let mut reached = BTreeSet::new();
        let mut todo: Vec<_> = from.into_iter().collect();
        while let Some(member) = todo.pop() {
            todo.extend(self.neighbors(member, direction).into_iter().filter(|next| reached.insert(*next)));
        }
        reached
    }

    /// Adds a dependency, or replaces the condition of an existing one.
    ///
    /// # Errors
    ///
    /// The cycle that this would close: each member depends on the next, and the last on the first.
    pub(super) fn add(
        &mut self,
        member: WorkerId,
        on: WorkerId,
        condition: DependencyCondition,
    ) -> Result<(), Box<[WorkerId]>> {
        if let Some(cycle) = self.path(on, member) {
            return Err(cycle);
        }
        let dependencies = &mut self.nodes.entry(member).or_default().dependencies;
        dependencies.retain(|(other, _)| *other != on);
        dependencies.push((on, condition));
        self.nodes.entry(on).or_default().dependents.insert(member);
        Ok(())
    }

    pub(super) fn remove(&mut self, member: WorkerId) {
        let Some(edges) = self.nodes.remove(&member) else { return };
        for (on, _) in edges.dependencies {
            if let Some(dependency) = self.nodes.get_mut(&on) {
                dependency.dependents.remove(&member);
            }
        }
        for dependent in edges.dependents {
            if let Some(dependent) = self.nodes.get_mut(&dependent) {
                dependent.dependencies.retain(|(on, _)| *on != member);
            }
        }
    }

    fn neighbors(&self, member: WorkerId, direction: Traversal) -> Vec<WorkerId> {
        match direction {
            Traversal::Dependencies => self.dependencies_of(member).iter().map(|(on, _)| *on).collect(),
            Traversal::Dependents => self.dependents_of(member).collect(),
        }
    }

    /// The path by which `from` depends on `to`, with `to` first and `from` second.
    fn path(&self, from: WorkerId, to: WorkerId) -> Option<Box<[WorkerId]>> {
        let mut came_from = BTreeMap::new();
        let mut todo = vec![from];
        while let Some(member) = todo.pop() {
            if member == to {
                // The predecessors of `to`, back to `from`.
                let mut path: Vec<_> = std::iter::successors(Some(to), |at| came_from.get(at).copied()).collect();
                if let Some((_, rest)) = path.split_first_mut() {
                    rest.reverse();
                }
                return Some(path.into());
            }
            for next in self.neighbors(member, Traversal::Dependencies) {
                if next != from && !came_from.contains_key(&next) {
                    came_from.insert(next, member);
                    todo.push(next);
                }
            }
        }
        None
    }
}
