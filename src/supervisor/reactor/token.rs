//! Where incarnations live in the loop, and how the kernel's reports and the timers name them.

use crate::policy::{group::GroupId, lifecycle::StreamId};
use crate::supervisor::{ids::WorkerId, incarnation::Live};

/// A place for one incarnation. The count tells a late report about a former occupant from one about the present one.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    pub(crate) occupants: u32,
    pub(crate) live: Option<Box<Live>>,
}

/// The place of one incarnation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Place {
    pub(crate) slot: usize,
    pub(crate) occupant: u32,
}

/// Who a kernel report is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Target {
    Waker,
    /// The control server.
    Door,
    /// Somebody who has connected to it and has not said yet who it is.
    Visitor(u64),
    Process(Place),
    Stream(Place, StreamId),
    Control(Place),
    /// One who has outlived the worker of this place.
    Survivor(Place),
    /// The pipe on which it tells that it is ready.
    Bell(Place),
    /// The socket to which it tells how it is.
    Notices(Place),
    /// One that was told as stuck.
    Stuck(u64),
    /// The guard's process.
    Guard,
}

impl Target {
    const PARTS: u64 = 16;
    const PROCESS: u64 = 3;
    const CONTROL: u64 = 4;
    const SURVIVOR: u64 = 5;
    const BELL: u64 = 6;
    const NOTICES: u64 = 7;
    const STUCK: u64 = 8;
    const GUARD: u64 = 9;
    const OTHER: u64 = 15;

    /// The lowest four bits say what it is, the others whose.
    pub(crate) fn token(self) -> u64 {
        let of = |place: Place, part: u64| (place.slot as u64) << 36 | u64::from(place.occupant) << 4 | part;
        match self {
            Self::Waker => Self::OTHER,
            Self::Door => Self::PARTS | Self::OTHER,
            Self::Visitor(visitor) => (visitor + 2) << 4 | Self::OTHER,
            Self::Process(place) => of(place, Self::PROCESS),
            Self::Stream(place, stream) => of(place, stream.index() as u64),
            Self::Control(place) => of(place, Self::CONTROL),
            Self::Survivor(place) => of(place, Self::SURVIVOR),
            Self::Bell(place) => of(place, Self::BELL),
            Self::Notices(place) => of(place, Self::NOTICES),
            Self::Stuck(number) => number << 4 | Self::STUCK,
            Self::Guard => Self::GUARD,
        }
    }

    pub(crate) fn of_token(token: u64) -> Self {
        let rest = token >> 4;
        let occupant = u32::try_from(rest & u64::from(u32::MAX)).unwrap_or_default();
        let place = Place { slot: (token >> 36) as usize, occupant };
        match token % Self::PARTS {
            Self::OTHER => match rest {
                0 => Self::Waker,
                1 => Self::Door,
                visitor => Self::Visitor(visitor - 2),
            },
            Self::CONTROL => Self::Control(place),
            Self::SURVIVOR => Self::Survivor(place),
            Self::BELL => Self::Bell(place),
            Self::NOTICES => Self::Notices(place),
            Self::STUCK => Self::Stuck(rest),
            Self::GUARD => Self::Guard,
            part => match StreamId::ALL.into_iter().find(|stream| stream.index() as u64 == part) {
                Some(stream) => Self::Stream(place, stream),
                None => Self::Process(place),
            },
        }
    }
}

/// What a timer is for. Each is set once at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Timer {
    Incarnation(Place),
    /// It should be ready by now, or have given a sign of life.
    Health(Place),
    /// The thread that asks whether it is ready could not be started.
    Probe(Place),
    /// It has run as long as it may.
    TimeLimit(Place),
    /// Its tree is to be looked at again.
    Bury(Place),
    /// What is left of its tree is not waited for any longer.
    BuryEnd(Place),
    /// Its tree should have been killed by the inspector.
    Kill(Place),
    /// The inspector should get on.
    Inspector,
    /// It is tried again to kill this one.
    Stuck(u64),
    /// Whoever should have ended by now is killed.
    Force,
    /// The same, of one.
    ForceOne(Place),
    /// The same, in one group.
    Group(GroupId),
    /// It is to be started again.
    Restart(WorkerId),
    /// It was stopped while it was started, and should have arrived by now.
    Arrival(WorkerId),
    /// The kernel has refused to report something.
    Watch,
    /// Starts wait, and those before them may hang.
    Starts,
    /// It should have connected to control by now.
    Connect(Place),
    /// Its control connection has ended a while ago.
    Disconnect(Place),
    /// It should have said by now who it is.
    Visitor(u64),
    /// The door has been shut for a while.
    Door,
    /// The guard is to be replaced, or watched.
    Guard,
    /// Callers ask a worker one thing after the other.
    Burst(Place),
    /// The kernel was short of memory for its control connection.
    Rest(Place),
    /// The pipe on which it should have told that it is ready has ended.
    Bell(Place),
    /// It has ended, and the judge of its messages has had its time.
    Verdict(Place),
}

impl Timer {
    /// All timers of one incarnation.
    pub(crate) fn of(place: Place) -> [Self; 14] {
        [
            Self::Incarnation(place),
            Self::Health(place),
            Self::Probe(place),
            Self::TimeLimit(place),
            Self::Bury(place),
            Self::BuryEnd(place),
            Self::Kill(place),
            Self::ForceOne(place),
            Self::Connect(place),
            Self::Disconnect(place),
            Self::Burst(place),
            Self::Rest(place),
            Self::Bell(place),
            Self::Verdict(place),
        ]
    }
}

/// The incarnation that a report is about, if it is still there.
pub(crate) fn live_at(slots: &mut [Slot], place: Place) -> Option<&mut Live> {
    slots.get_mut(place.slot).filter(|slot| slot.occupants == place.occupant)?.live.as_deref_mut()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_token_says_whose_it_is(slot in 0..1_usize << 27, occupant: u32, visitor in 0..1_u64 << 50) {
            let place = Place { slot, occupant };
            let of_place = [
                Target::Process(place), Target::Control(place), Target::Survivor(place), Target::Bell(place),
                Target::Notices(place),
            ];
            let streams = StreamId::ALL.map(|stream| Target::Stream(place, stream));
            let others =
                [Target::Waker, Target::Door, Target::Visitor(visitor), Target::Stuck(visitor), Target::Guard];
            for target in of_place.into_iter().chain(streams).chain(others) {
                prop_assert_eq!(Target::of_token(target.token()), target);
            }
        }
    }
}
