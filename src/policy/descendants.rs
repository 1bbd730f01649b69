//! Which processes belong to the tree of an ended worker, by what the kernel shows of each.
//!
//! No single sign holds for every descendant: an environment can be thrown away or be unreadable, a session and a group can be
//! left, and a parent is replaced when it ends. A process belongs to the tree if any of these is so:
//!
//! * It carries the incarnation's token, or holds one of its pipes.
//! * Its parent belongs to the tree.
//! * Its session was begun in the tree: a session is entered by fork alone, so all its members descend from the process that began
//!   it. A member of the tree that is not in the session the worker was born in is in such a session.
//! * Its process group was begun by a process of the tree.

use std::collections::{HashMap, HashSet};

/// What is known of one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) pid: i32,
    pub(crate) parent: i32,
    pub(crate) group: i32,
    pub(crate) session: i32,
    pub(crate) sign: Sign,
    /// The host has adopted it, as a subreaper, and it can be of no other tree than the one that is looked for.
    pub(crate) is_adopted: bool,
}

/// What its environment and its descriptors show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sign {
    /// The token of the incarnation, or one of its pipes.
    Ours,
    /// The token of another incarnation of this supervisor, or it is the process of another worker.
    OfAnother,
    /// Neither.
    Nothing,
    /// It is in the middle of an exec, and shows no environment until that is through.
    NotYet,
    /// Neither may be read.
    Unreadable,
}

/// The tree whose members are looked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Root<'a> {
    /// The worker's process.
    pub(crate) pid: i32,
    /// Whether its number is still its own: it is not reaped.
    pub(crate) is_unreaped: bool,
    pub(crate) leads_group: bool,
    /// The session that the worker was born in, which others are in too.
    pub(crate) born_in: i32,
    /// Sessions that were seen in the tree earlier.
    pub(crate) sessions: &'a HashSet<i32>,
}

/// The members of a tree, and what could not be told.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tree {
    pub(crate) members: Vec<i32>,
    /// Those that will show their environment in a moment.
    pub(crate) not_yet: Vec<i32>,
    /// Those of which nothing could be read.
    pub(crate) unreadable: Vec<i32>,
}

/// Sorts `all` by whether they belong to the tree of `root`. Linear in the number of processes.
pub(crate) fn tree_of(root: Root<'_>, all: &[Facts]) -> Tree {
    let of_others = Seed { born_in: root.born_in, ..Seed::default() };
    let others = spread(all, &of_others, |facts| facts.sign == Sign::OfAnother, |facts| facts.sign != Sign::Ours);
    let mut seed = Seed { sessions: root.sessions.clone(), born_in: root.born_in, ..Seed::default() };
    if root.is_unreaped {
        seed.parents.insert(root.pid);
        if root.leads_group {
            seed.groups.insert(root.pid);
            seed.sessions.insert(root.pid);
        }
    }
    let is_ours = |facts: &Facts| facts.sign == Sign::Ours || facts.is_adopted && !others.contains(&facts.pid);
    let members = spread(all, &seed, is_ours, |facts| facts.sign != Sign::OfAnother);
    let mut tree = Tree::default();
    for facts in all.iter().filter(|facts| facts.pid != root.pid) {
        if members.contains(&facts.pid) {
            tree.members.push(facts.pid);
        } else if !others.contains(&facts.pid) {
            match facts.sign {
                Sign::NotYet => tree.not_yet.push(facts.pid),
                Sign::Unreadable => tree.unreadable.push(facts.pid),
                Sign::Ours | Sign::OfAnother | Sign::Nothing => {}
            }
        }
    }
    tree
}

/// Where a tree begins.
#[derive(Debug, Default)]
struct Seed {
    parents: HashSet<i32>,
    groups: HashSet<i32>,
    sessions: HashSet<i32>,
    born_in: i32,
}

/// All that follow from the seed and from those that are `first`, by parent, session and group.
fn spread(
    all: &[Facts],
    seed: &Seed,
    first: impl Fn(&Facts) -> bool,
    may_join: impl Fn(&Facts) -> bool,
) -> HashSet<i32> {
    let (mut by_parent, mut by_group, mut by_session) = (Index::new(), Index::new(), Index::new());
    for facts in all {
        by_parent.entry(facts.parent).or_default().push(facts);
        by_group.entry(facts.group).or_default().push(facts);
        by_session.entry(facts.session).or_default().push(facts);
    }
    // Each list is taken once, so that a large group costs no more than its size.
    let mut next: Vec<&Facts> = all.iter().filter(|facts| first(facts)).collect();
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
        // 0: it was begun outside of our pid namespace.
        if facts.session != 0 && facts.session != seed.born_in {
            next.extend(by_session.remove(&facts.session).unwrap_or_default());
        }
    }
    found
}

type Index<'a> = HashMap<i32, Vec<&'a Facts>>;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOST_SESSION: i32 = 10;
    const WORKER: i32 = 100;

    fn facts(pid: i32, parent: i32, group: i32, session: i32, sign: Sign) -> Facts {
        Facts { pid, parent, group, session, sign, is_adopted: false }
    }

    fn root(sessions: &HashSet<i32>) -> Root<'_> {
        Root { pid: WORKER, is_unreaped: true, leads_group: true, born_in: HOST_SESSION, sessions }
    }

    fn members(all: &[Facts]) -> Vec<i32> {
        tree_of(root(&HashSet::new()), all).members
    }

    #[test]
    fn p09_finds_members_without_environment_by_group_session_and_parent() {
        let all = [
            facts(101, 1, WORKER, HOST_SESSION, Sign::Nothing),
            facts(102, 1, 102, 102, Sign::Ours),
            facts(103, 102, 103, 103, Sign::Unreadable),
            facts(104, 1, 104, 103, Sign::Unreadable),
            facts(105, 104, 104, 103, Sign::NotYet),
            facts(106, 1, 106, HOST_SESSION, Sign::Nothing),
            facts(107, 1, 106, HOST_SESSION, Sign::Unreadable),
        ];
        let tree = tree_of(root(&HashSet::new()), &all);
        assert_eq!(tree.members, [101, 102, 103, 104, 105]);
        assert_eq!((tree.not_yet, tree.unreadable), (vec![], vec![107]));
    }

    #[test]
    fn p10_leaves_what_only_shares_the_hosts_session_or_group() {
        let all = [
            // A worker in the host's group: its tree's member is there too, and so is the host's shell.
            facts(101, 1, HOST_SESSION, HOST_SESSION, Sign::Ours),
            facts(102, 1, HOST_SESSION, HOST_SESSION, Sign::Nothing),
            facts(103, 1, 103, 103, Sign::Nothing),
        ];
        assert_eq!(members(&all), [101]);
    }

    #[test]
    fn p10_leaves_the_trees_of_other_workers() {
        let all = [
            facts(101, 5, 101, HOST_SESSION, Sign::OfAnother),
            facts(102, 101, 102, 102, Sign::Unreadable),
            facts(103, 102, 102, 102, Sign::NotYet),
        ];
        assert_eq!(tree_of(root(&HashSet::new()), &all), Tree::default());
        let adopted = all.map(|facts| Facts { is_adopted: true, ..facts });
        assert_eq!(members(&adopted), [0; 0]);
        let orphan = facts(104, 5, 104, 104, Sign::Nothing);
        assert_eq!(members(&[Facts { is_adopted: true, ..orphan }]), [104]);
        assert_eq!(members(&[orphan]), [0; 0]);
    }

    #[test]
    fn p10_a_reused_number_is_no_parent() {
        let all = [facts(101, WORKER, WORKER, WORKER, Sign::Nothing)];
        let sessions = HashSet::new();
        assert_eq!(tree_of(Root { is_unreaped: false, ..root(&sessions) }, &all).members, [0; 0]);
        assert_eq!(members(&all), [101]);
        let seen = HashSet::from([77]);
        let late = [facts(120, 1, 77, 77, Sign::Unreadable)];
        assert_eq!(tree_of(root(&seen), &late).members, [120], "a session that was seen while its leader lived");
    }

    proptest! {
        /// A tree of forks in which any process may have left its group or session, hidden its environment, or ended.
        #[test]
        fn finds_no_stranger_and_every_child_of_a_member(
            steps in prop::collection::vec((0..8_usize, 0..4_u8, any::<bool>(), any::<bool>()), 1..60),
        ) {
            let mut all = vec![
                facts(WORKER, 5, WORKER, HOST_SESSION, Sign::Nothing),
                facts(50, 1, HOST_SESSION, HOST_SESSION, Sign::Nothing),
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
                let sign = match (is_ours, hides) {
                    (true, false) => Sign::Ours,
                    (_, true) => Sign::Unreadable,
                    (false, false) => Sign::Nothing,
                };
                all.push(facts(pid, if orphaned { 1 } else { parent.pid }, group, session, sign));
                if is_ours {
                    ours.insert(pid);
                }
            }
            let found = members(&all);
            prop_assert!(found.iter().all(|pid| ours.contains(pid)), "{found:?} of {all:?}");
            for one in &all[2..] {
                let is_certain = one.sign == Sign::Ours || found.contains(&one.parent) || one.parent == WORKER;
                prop_assert!(!is_certain || found.contains(&one.pid), "{one:?}, {found:?}");
            }
        }
    }
}
