//! Finds the descendants of a worker among all processes, by what the kernel shows of each.
//!
//! No single criterion finds every descendant: an environment can be cleared or unreadable, a session or a process group can be
//! left, and the parent changes when the parent exits. A process belongs to the tree if any of these holds:
//!
//! * It carries the token of the incarnation, or holds one of its pipes.
//! * Its parent belongs to the tree.
//! * Its session was created in the tree: a session is entered by fork alone, so all its members descend from the process that
//!   created it. A member of the tree outside the worker's initial session is in such a session.
//! * Its process group was created by a process of the tree.

use std::collections::{HashMap, HashSet};

/// What the kernel shows of one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProcessFacts {
    pub(crate) pid: i32,
    pub(crate) parent: i32,
    pub(crate) group: i32,
    pub(crate) session: i32,
    pub(crate) ownership: Ownership,
    /// The host adopted it as a subreaper, and the tree that is searched for is the only one it can belong to.
    pub(crate) is_adopted: bool,
}

/// What the environment and the file descriptors of a process show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ownership {
    /// It has the token of the incarnation, or one of its pipes.
    Own,
    /// It has the token of another incarnation of this supervisor, or is the process of another worker.
    Other,
    /// It has neither.
    None,
    /// It is executing a new program, and its environment cannot be read until that is done.
    Pending,
    /// Neither can be read.
    Unreadable,
}

/// The worker whose descendants are searched for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TreeRoot<'a> {
    pub(crate) pid: i32,
    /// Whether `pid` still belongs to the worker: it is not reaped.
    pub(crate) is_unreaped: bool,
    pub(crate) leads_group: bool,
    /// The session in which the worker was started. Other processes are in it too.
    pub(crate) initial_session: i32,
    /// Sessions of the tree that were seen earlier.
    pub(crate) sessions: &'a HashSet<i32>,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Descendants {
    pub(crate) members: Vec<i32>,
    /// Processes in the middle of an exec, to be looked at again.
    pub(crate) pending: Vec<i32>,
    /// Processes of which nothing could be read.
    pub(crate) unreadable: Vec<i32>,
}

/// Finds the processes of the tree of `root` in `all`. Linear in the number of processes.
pub(crate) fn find_descendants(root: TreeRoot<'_>, all: &[ProcessFacts]) -> Descendants {
    let of_others = Seed { initial_session: root.initial_session, ..Seed::default() };
    let others =
        spread(all, &of_others, |facts| facts.ownership == Ownership::Other, |facts| facts.ownership != Ownership::Own);
    let mut seed = Seed { sessions: root.sessions.clone(), initial_session: root.initial_session, ..Seed::default() };
    if root.is_unreaped {
        seed.parents.insert(root.pid);
        if root.leads_group {
            seed.groups.insert(root.pid);
            seed.sessions.insert(root.pid);
        }
    }
    let is_ours =
        |facts: &ProcessFacts| facts.ownership == Ownership::Own || facts.is_adopted && !others.contains(&facts.pid);
    let members = spread(all, &seed, is_ours, |facts| facts.ownership != Ownership::Other);
    let mut tree = Descendants::default();
    for facts in all.iter().filter(|facts| facts.pid != root.pid) {
        if members.contains(&facts.pid) {
            tree.members.push(facts.pid);
        } else if !others.contains(&facts.pid) {
            match facts.ownership {
                Ownership::Pending => tree.pending.push(facts.pid),
                Ownership::Unreadable => tree.unreadable.push(facts.pid),
                Ownership::Own | Ownership::Other | Ownership::None => {}
            }
        }
    }
    tree
}

/// Parents, process groups and sessions whose members belong to the tree.
#[derive(Debug, Default)]
struct Seed {
    parents: HashSet<i32>,
    groups: HashSet<i32>,
    sessions: HashSet<i32>,
    initial_session: i32,
}

/// All processes reachable from the seed and from those that are `first`, by parent, session and process group.
fn spread(
    all: &[ProcessFacts],
    seed: &Seed,
    first: impl Fn(&ProcessFacts) -> bool,
    may_join: impl Fn(&ProcessFacts) -> bool,
) -> HashSet<i32> {
    let (mut by_parent, mut by_group, mut by_session) = (Index::new(), Index::new(), Index::new());
    for facts in all {
        by_parent.entry(facts.parent).or_default().push(facts);
        by_group.entry(facts.group).or_default().push(facts);
        by_session.entry(facts.session).or_default().push(facts);
    }
    // Each list is taken once, so that a large group costs no more than its size.
    let mut next: Vec<&ProcessFacts> = all.iter().filter(|facts| first(facts)).collect();
    for (index, keys) in
        [(&mut by_parent, &seed.parents), (&mut by_group, &seed.groups), (&mut by_session, &seed.sessions)]
    {
        next.extend(keys.iter().filter_map(|key| index.remove(key)).flatten());
    }
    let mut found = HashSet::new();
    while let Some(facts) = next.pop() {
        if !may_join(facts) || !found.insert(facts.pid) {
            continue;
        }
        next.extend(by_parent.remove(&facts.pid).unwrap_or_default());
        if facts.group == facts.pid {
            next.extend(by_group.remove(&facts.pid).unwrap_or_default());
        }
        // 0: the session was created outside of this pid namespace.
        if facts.session != 0 && facts.session != seed.initial_session {
            next.extend(by_session.remove(&facts.session).unwrap_or_default());
        }
    }
    found
}

type Index<'a> = HashMap<i32, Vec<&'a ProcessFacts>>;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOST_SESSION: i32 = 10;
    const WORKER: i32 = 100;

    fn facts(pid: i32, parent: i32, group: i32, session: i32, ownership: Ownership) -> ProcessFacts {
        ProcessFacts { pid, parent, group, session, ownership, is_adopted: false }
    }

    fn root(sessions: &HashSet<i32>) -> TreeRoot<'_> {
        TreeRoot { pid: WORKER, is_unreaped: true, leads_group: true, initial_session: HOST_SESSION, sessions }
    }

    fn members(all: &[ProcessFacts]) -> Vec<i32> {
        find_descendants(root(&HashSet::new()), all).members
    }

    #[test]
    fn p09_finds_members_without_environment_by_group_session_and_parent() {
        let all = [
            facts(101, 1, WORKER, HOST_SESSION, Ownership::None),
            facts(102, 1, 102, 102, Ownership::Own),
            facts(103, 102, 103, 103, Ownership::Unreadable),
            facts(104, 1, 104, 103, Ownership::Unreadable),
            facts(105, 104, 104, 103, Ownership::Pending),
            facts(106, 1, 106, HOST_SESSION, Ownership::None),
            facts(107, 1, 106, HOST_SESSION, Ownership::Unreadable),
        ];
        let tree = find_descendants(root(&HashSet::new()), &all);
        assert_eq!(tree.members, [101, 102, 103, 104, 105]);
        assert_eq!((tree.pending, tree.unreadable), (vec![], vec![107]));
    }

    #[test]
    fn p10_spares_processes_in_the_host_session_or_group() {
        let all = [
            // A worker in the process group of the host: its descendants and the shell of the host are in it too.
            facts(101, 1, HOST_SESSION, HOST_SESSION, Ownership::Own),
            facts(102, 1, HOST_SESSION, HOST_SESSION, Ownership::None),
            facts(103, 1, 103, 103, Ownership::None),
        ];
        assert_eq!(members(&all), [101]);
    }

    #[test]
    fn p10_spares_trees_of_other_workers() {
        let all = [
            facts(101, 5, 101, HOST_SESSION, Ownership::Other),
            facts(102, 101, 102, 102, Ownership::Unreadable),
            facts(103, 102, 102, 102, Ownership::Pending),
        ];
        assert_eq!(find_descendants(root(&HashSet::new()), &all), Descendants::default());
        let adopted = all.map(|facts| ProcessFacts { is_adopted: true, ..facts });
        assert_eq!(members(&adopted), [0; 0]);
        let orphan = facts(104, 5, 104, 104, Ownership::None);
        assert_eq!(members(&[ProcessFacts { is_adopted: true, ..orphan }]), [104]);
        assert_eq!(members(&[orphan]), [0; 0]);
    }

    #[test]
    fn p10_reused_pid_is_no_parent() {
        let all = [facts(101, WORKER, WORKER, WORKER, Ownership::None)];
        let sessions = HashSet::new();
        assert_eq!(find_descendants(TreeRoot { is_unreaped: false, ..root(&sessions) }, &all).members, [0; 0]);
        assert_eq!(members(&all), [101]);
        let seen = HashSet::from([77]);
        let late = [facts(120, 1, 77, 77, Ownership::Unreadable)];
        assert_eq!(find_descendants(root(&seen), &late).members, [120], "a session that was seen while its leader ran");
    }

    proptest! {
        /// A tree of forks in which any process may have left its group or session, hidden its environment, or ended.
        #[test]
        fn finds_only_descendants_and_every_child_of_a_member(
            steps in prop::collection::vec((0..8_usize, 0..4_u8, any::<bool>(), any::<bool>()), 1..60),
        ) {
            let mut all = vec![
                facts(WORKER, 5, WORKER, HOST_SESSION, Ownership::None),
                facts(50, 1, HOST_SESSION, HOST_SESSION, Ownership::None),
            ];
            let mut ours = HashSet::from([WORKER]);
            for (number, (parent, change, hides, orphaned)) in steps.into_iter().enumerate() {
                let parent = all[parent % all.len()];
                let pid = 200 + i32::try_from(number).unwrap();
                let (group, session) = match change {
                    0 => (pid, pid),
                    1 => (pid, parent.session),
                    _ => (parent.group, parent.session),
                };
                let is_ours = ours.contains(&parent.pid);
                let ownership = match (is_ours, hides) {
                    (true, false) => Ownership::Own,
                    (_, true) => Ownership::Unreadable,
                    (false, false) => Ownership::None,
                };
                all.push(facts(pid, if orphaned { 1 } else { parent.pid }, group, session, ownership));
                if is_ours {
                    ours.insert(pid);
                }
            }
            let found = members(&all);
            prop_assert!(found.iter().all(|pid| ours.contains(pid)), "{found:?} of {all:?}");
            for one in &all[2..] {
                let is_certain = one.ownership == Ownership::Own || found.contains(&one.parent) || one.parent == WORKER;
                prop_assert!(!is_certain || found.contains(&one.pid), "{one:?}, {found:?}");
            }
        }
    }
}
