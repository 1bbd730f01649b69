//! The workers of a pool.

use super::ids::{CallNumber, MemberId};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) phase: MemberPhase,
    /// Its number among those that take tasks, from 0: a worker that replaces another one gets its keys with its number.
    pub(crate) seat: usize,
    pub(crate) calls: Vec<CallNumber>,
    /// How many tasks it has got.
    pub(crate) tasks: u64,
    /// A task runs in it that runs alone.
    pub(crate) is_isolated: bool,
    /// When it has started or become ready.
    pub(crate) since: Instant,
    /// Since when it has no task.
    pub(crate) idle_since: Instant,
    /// The round of starts; see `Starts`.
    pub(crate) round: u32,
    /// The timers that are set.
    pub(crate) age: Option<Instant>,
    pub(crate) idle: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MemberPhase {
    Starting,
    /// It was lost before it was ready. Counts as one that starts until its exit, which says why.
    Failed,
    Ready,
    /// It takes no more tasks, and is stopped when those that it has are done.
    Draining,
    /// Its exit is awaited.
    Stopping,
}

impl Member {
    pub(crate) fn takes_tasks(&self) -> bool {
        matches!(self.phase, MemberPhase::Starting | MemberPhase::Failed | MemberPhase::Ready)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Members {
    pub(crate) all: BTreeMap<MemberId, Member>,
    /// Those with room for a task, by the number of their tasks.
    free: BTreeSet<(usize, MemberId)>,
    /// The number of those that take tasks.
    taking: usize,
    last: u64,
}

impl Members {
    pub(crate) fn add(&mut self, now: Instant, round: u32) -> MemberId {
        self.last += 1;
        let id = MemberId(self.last);
        let seats: BTreeSet<usize> = self.taking().map(|(_, member)| member.seat).collect();
        let seat = (0..=seats.len()).find(|seat| !seats.contains(seat)).unwrap_or_default();
        let member = Member {
            phase: MemberPhase::Starting,
            seat,
            calls: Vec::new(),
            tasks: 0,
            is_isolated: false,
            since: now,
            idle_since: now,
            round,
            age: None,
            idle: None,
        };
        self.all.insert(id, member);
        self.taking += 1;
        id
    }

    /// Changes a member, and the order of those with room.
    pub(crate) fn change<T>(
        &mut self,
        id: MemberId,
        in_flight: usize,
        change: impl FnOnce(&mut Member) -> T,
    ) -> Option<T> {
        let member = self.all.get_mut(&id)?;
        self.free.remove(&(member.calls.len(), id));
        let took = member.takes_tasks();
        let result = change(member);
        if took && !member.takes_tasks() {
            self.taking -= 1;
        }
        let has_room = member.calls.len() < in_flight && !member.is_isolated;
        if has_room && member.phase == MemberPhase::Ready {
            self.free.insert((member.calls.len(), id));
        }
        Some(result)
    }

    pub(crate) fn remove(&mut self, id: MemberId) -> Option<Member> {
        let member = self.all.remove(&id)?;
        self.free.remove(&(member.calls.len(), id));
        if member.takes_tasks() {
            self.taking -= 1;
        }
        Some(member)
    }

    /// Those with room, the least loaded first.
    pub(crate) fn free(&self) -> impl Iterator<Item = (usize, MemberId)> {
        self.free.iter().copied()
    }

    /// Those that take tasks, now or when they are ready.
    pub(crate) fn taking(&self) -> impl Iterator<Item = (MemberId, &Member)> {
        self.all.iter().filter(|(_, member)| member.takes_tasks()).map(|(id, member)| (*id, member))
    }

    pub(crate) fn count_taking(&self) -> usize {
        self.taking
    }

    pub(crate) fn count(&self, phase: MemberPhase) -> usize {
        self.all.values().filter(|member| member.phase == phase).count()
    }

    /// The member for a key, by rendezvous hashing: when one is added or removed, only the keys of that one move.
    pub(crate) fn for_key(&self, key: u64) -> Option<MemberId> {
        self.taking().max_by_key(|(_, member)| mix(key ^ mix(member.seat as u64 + 1))).map(|(id, _)| id)
    }
}

/// The finalizer of splitmix64.
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}
