//! Where incarnations live in the loop, and how the kernel's reports and the timers name them.

use crate::{policy::lifecycle::StreamId, supervisor::reactor::arena::Key};

/// Who a kernel report is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Target {
    Waker,
    /// The control server.
    Door,
    /// Somebody who has connected to it and has not said yet who it is.
    Visitor(u64),
    Process(Key),
    Stream(Key, StreamId),
    Control(Key),
    /// One who has outlived the worker of this place.
    Survivor(Key),
    /// The pipe on which it tells that it is ready.
    Bell(Key),
    /// The socket to which it tells how it is.
    Notices(Key),
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
        let of = |place: Key, part: u64| (place.slot as u64) << 36 | u64::from(place.generation) << 4 | part;
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

    /// The incarnation that it is about.
    pub(crate) fn key(self) -> Option<Key> {
        match self {
            Self::Process(key)
            | Self::Stream(key, _)
            | Self::Control(key)
            | Self::Survivor(key)
            | Self::Bell(key)
            | Self::Notices(key) => Some(key),
            Self::Waker | Self::Door | Self::Visitor(_) | Self::Stuck(_) | Self::Guard => None,
        }
    }

    pub(crate) fn of_token(token: u64) -> Self {
        let rest = token >> 4;
        let occupant = u32::try_from(rest & u64::from(u32::MAX)).unwrap_or_default();
        let place = Key { slot: (token >> 36) as usize, generation: occupant };
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_token_says_whose_it_is(slot in 0..1_usize << 27, occupant: u32, visitor in 0..1_u64 << 50) {
            let place = Key { slot, generation: occupant };
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
