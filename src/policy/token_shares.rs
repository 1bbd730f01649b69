//! How the tokens of one jobserver are divided between programs that each have a pipe of their own.
//!
//! It is not visible that a program waits for a token: only how many are in its pipe. So each pipe has at least one where possible. A token
//! that was not taken for a whole round moves on to a program whose pipe has been empty for longer.

use std::collections::BTreeMap;

/// The program with a pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct HolderId(pub(crate) u64);

/// A token to be moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TokenMove {
    /// From the stock into the pipe of this program.
    Give(HolderId),
    /// Back from the pipe.
    Take(HolderId),
}

/// The tokens of a jobserver: in stock, or given to programs.
#[derive(Debug)]
pub(crate) struct TokenShares {
    stock: usize,
    holders: BTreeMap<HolderId, Holder>,
    last_id: u64,
    round: u64,
}

#[derive(Debug)]
struct Holder {
    /// The tokens that it has got: those in its pipe, and those that it has taken out of it.
    given: usize,
    /// The most that may be in its pipe.
    limit: usize,
    /// The tokens in its pipe.
    idle: usize,
    /// The round in which `idle` has changed.
    changed: u64,
}

impl Holder {
    fn is_empty(&self) -> bool {
        self.idle == 0 && self.given < self.limit
    }
}

impl TokenShares {
    pub(crate) fn new(tokens: usize) -> Self {
        Self { stock: tokens, holders: BTreeMap::new(), last_id: 0, round: 0 }
    }

    /// Adds a program, whose pipe has room for `limit` tokens.
    pub(crate) fn add(&mut self, limit: usize) -> HolderId {
        self.last_id += 1;
        let holder = Holder { given: 0, limit, idle: 0, changed: self.round };
        self.holders.insert(HolderId(self.last_id), holder);
        HolderId(self.last_id)
    }

    /// A program has ended with its descendants: what it has got is in stock again, whether it has returned it or not.
    pub(crate) fn remove(&mut self, id: HolderId) {
        self.stock += self.holders.remove(&id).map_or(0, |holder| holder.given);
    }

    /// Begins a round with what is in the pipes. Returns whether anything has changed since the last one.
    pub(crate) fn begin_round(&mut self, mut in_pipe: impl FnMut(HolderId) -> usize) -> bool {
        self.round += 1;
        let mut has_changed = false;
        for (id, holder) in &mut self.holders {
            // More than it has got was not ours.
            let idle = in_pipe(*id).min(holder.given);
            if idle != holder.idle {
                (holder.idle, holder.changed, has_changed) = (idle, self.round, true);
            }
        }
        has_changed
    }

    /// The next move of this round; `None` at its end. The caller reports each as [`moved`](Self::moved) or [`refused`](Self::refused).
    pub(crate) fn next_move(&self) -> Option<TokenMove> {
        let empty = self.holders.iter().filter(|(_, holder)| holder.is_empty());
        let longest_empty = empty.min_by_key(|(id, holder)| (holder.changed, holder.given, **id));
        let Some((id, waiting)) = longest_empty else {
            let open = self.holders.iter().filter(|(_, holder)| holder.given < holder.limit);
            let poorest = open.min_by_key(|(id, holder)| (holder.idle, holder.given, **id));
            return poorest.filter(|_| self.stock > 0).map(|(id, _)| TokenMove::Give(*id));
        };
        if self.stock > 0 {
            return Some(TokenMove::Give(*id));
        }
        let (richest, holder) =
            self.holders.iter().max_by_key(|(_, holder)| (holder.idle, u64::MAX - holder.changed))?;
        let is_unused = holder.changed < self.round && waiting.changed < self.round;
        (holder.idle > 1 || (holder.idle == 1 && is_unused)).then_some(TokenMove::Take(*richest))
    }

    /// A token was moved.
    pub(crate) fn moved(&mut self, which: TokenMove) {
        let round = self.round;
        let (TokenMove::Give(id) | TokenMove::Take(id)) = which;
        let Some(holder) = self.holders.get_mut(&id) else { return };
        holder.changed = round;
        match which {
            TokenMove::Give(_) => {
                (holder.given, holder.idle) = (holder.given + 1, holder.idle + 1);
                self.stock = self.stock.saturating_sub(1);
            }
            TokenMove::Take(_) => {
                (holder.given, holder.idle) = (holder.given.saturating_sub(1), holder.idle.saturating_sub(1));
                self.stock += 1;
            }
        }
    }

    /// A token was not moved: there is no room in the pipe, or the program was faster to take it.
    pub(crate) fn refused(&mut self, which: TokenMove) {
        let (TokenMove::Give(id) | TokenMove::Take(id)) = which;
        let Some(holder) = self.holders.get_mut(&id) else { return };
        holder.changed = self.round;
        match which {
            TokenMove::Give(_) => holder.limit = holder.given,
            TokenMove::Take(_) => holder.idle = 0,
        }
    }

    /// Whether the tokens stay as they are until a program is added or removed: the only one has them all.
    pub(crate) fn is_settled(&self) -> bool {
        self.holders.len() < 2 || self.stock + self.holders.values().map(|holder| holder.given).sum::<usize>() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The pipes, and what was taken out of them.
    #[derive(Default)]
    struct World {
        pipes: BTreeMap<HolderId, (usize, usize)>,
    }

    impl World {
        /// Plays a round, as the server does.
        fn round(&mut self, shares: &mut TokenShares) {
            shares.begin_round(|id| self.pipes[&id].0);
            for _ in 0..1000 {
                let Some(next) = shares.next_move() else { return };
                match next {
                    TokenMove::Give(id) => self.pipes.get_mut(&id).unwrap().0 += 1,
                    TokenMove::Take(id) => self.pipes.get_mut(&id).unwrap().0 -= 1,
                }
                shares.moved(next);
            }
            panic!("the round does not end: {shares:?}");
        }

        fn count(&self) -> usize {
            self.pipes.values().map(|(idle, taken)| idle + taken).sum()
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Add,
        Remove(usize),
        Take(usize),
        Return(usize),
    }

    fn any_steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            Just(Step::Add),
            (0..6_usize).prop_map(Step::Remove),
            (0..6_usize).prop_map(Step::Take),
            (0..6_usize).prop_map(Step::Take),
            (0..6_usize).prop_map(Step::Return),
        ];
        proptest::collection::vec(step, 0..80)
    }

    proptest! {
        /// No token is created or lost; none lies idle in a second place while a pipe is empty; one that lies idle reaches every program.
        #[test]
        fn tokens_are_conserved_and_reach_every_program(tokens in 0..8_usize, steps in any_steps()) {
            let mut shares = TokenShares::new(tokens);
            let mut world = World::default();
            for step in steps {
                let ids: Vec<HolderId> = world.pipes.keys().copied().collect();
                let pick = |at: usize| ids.get(at % ids.len().max(1)).copied();
                match step {
                    Step::Add if ids.len() < 6 => drop(world.pipes.insert(shares.add(15), (0, 0))),
                    Step::Add => {}
                    Step::Remove(at) => {
                        let Some(id) = pick(at) else { continue };
                        world.pipes.remove(&id);
                        shares.remove(id);
                    }
                    Step::Take(at) => {
                        let Some(pipe) = pick(at).and_then(|id| world.pipes.get_mut(&id)) else { continue };
                        if pipe.0 > 0 {
                            *pipe = (pipe.0 - 1, pipe.1 + 1);
                        }
                    }
                    Step::Return(at) => {
                        let Some(pipe) = pick(at).and_then(|id| world.pipes.get_mut(&id)) else { continue };
                        if pipe.1 > 0 {
                            *pipe = (pipe.0 + 1, pipe.1 - 1);
                        }
                    }
                }
                world.round(&mut shares);
                prop_assert_eq!(shares.stock + world.count(), tokens);
                let is_any_empty = world.pipes.values().any(|(idle, _)| *idle == 0);
                let is_any_rich = world.pipes.values().any(|(idle, _)| *idle > 1) || shares.stock > 0;
                prop_assert!(!(is_any_empty && is_any_rich), "{:?} {:?}", shares, world.pipes);
            }
            // Every program that waits gets a token, as long as one lies idle.
            for id in world.pipes.keys().copied().collect::<Vec<_>>() {
                let has_idle = world.pipes.values().any(|(idle, _)| *idle > 0);
                let mut rounds = 0;
                while has_idle && world.pipes[&id].0 == 0 && rounds < 30 {
                    world.round(&mut shares);
                    rounds += 1;
                }
                prop_assert!(rounds < 30, "{id:?} waits forever: {shares:?} {:?}", world.pipes);
            }
        }
    }

    #[test]
    fn only_program_has_all_tokens() {
        let mut shares = TokenShares::new(3);
        let mut world = World::default();
        let one = shares.add(15);
        world.pipes.insert(one, (0, 0));
        world.round(&mut shares);
        assert_eq!((world.pipes[&one], shares.is_settled()), ((3, 0), true));
        // Two of them are held when another program comes.
        world.pipes.insert(one, (1, 2));
        let other = shares.add(15);
        world.pipes.insert(other, (0, 0));
        assert!(!shares.is_settled());
        world.round(&mut shares);
        world.round(&mut shares);
        assert_eq!((world.pipes[&one], world.pipes[&other]), ((0, 2), (1, 0)), "unused for a round");
        // The first is killed with both.
        world.pipes.remove(&one);
        shares.remove(one);
        world.round(&mut shares);
        assert_eq!((world.pipes[&other], shares.stock), ((3, 0), 0));
    }

    #[test]
    fn refused_moves_end_the_round() {
        let mut shares = TokenShares::new(3);
        let one = shares.add(15);
        shares.begin_round(|_| 0);
        assert_eq!(shares.next_move(), Some(TokenMove::Give(one)));
        shares.refused(TokenMove::Give(one));
        assert_eq!(shares.next_move(), None);
        shares.remove(one);
        assert_eq!(shares.stock, 3);
    }
}
