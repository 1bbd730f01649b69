//! Where incarnations live in the loop, and how the kernel's reports and the timers name them.

use crate::{policy::lifecycle::StreamId, supervisor::reactor::arena::Key};

/// Who a kernel report is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Token {
    Waker,
    /// The listener of the control server.
    Listener,
    /// A connection to it that has not shown a key yet.
    Handshake(u64),
    Process(Key),
    Stream(Key, StreamId),
    Control(Key),
    /// A process of a tree that has outlived its worker.
    Orphan(Key),
    /// The pipe on which a worker reports that it is ready.
    ReadinessPipe(Key),
    /// The socket of `sd_notify(3)`.
    NotifySocket(Key),
    /// A process that was reported as unkillable.
    Unkillable(u64),
    /// The guard's process.
    Guard,
}

impl Token {
    const PARTS: u64 = 16;
    const PROCESS: u64 = 3;
    const CONTROL: u64 = 4;
    const SURVIVOR: u64 = 5;
    const READINESS_PIPE: u64 = 6;
    const NOTICES: u64 = 7;
    const STUCK: u64 = 8;
    const GUARD: u64 = 9;
    const OTHER: u64 = 15;

    /// The lowest four bits say what it is, the others whose.
    pub(crate) fn as_u64(self) -> u64 {
        let of = |place: Key, part: u64| (place.slot as u64) << 36 | u64::from(place.generation) << 4 | part;
        match self {
            Self::Waker => Self::OTHER,
            Self::Listener => Self::PARTS | Self::OTHER,
            Self::Handshake(handshake) => (handshake + 2) << 4 | Self::OTHER,
            Self::Process(place) => of(place, Self::PROCESS),
            Self::Stream(place, stream) => of(place, stream.index() as u64),
            Self::Control(place) => of(place, Self::CONTROL),
            Self::Orphan(place) => of(place, Self::SURVIVOR),
            Self::ReadinessPipe(place) => of(place, Self::READINESS_PIPE),
            Self::NotifySocket(place) => of(place, Self::NOTICES),
            Self::Unkillable(number) => number << 4 | Self::STUCK,
            Self::Guard => Self::GUARD,
        }
    }

    /// The incarnation that it is about.
    pub(crate) fn key(self) -> Option<Key> {
        match self {
            Self::Process(key)
            | Self::Stream(key, _)
            | Self::Control(key)
            | Self::Orphan(key)
            | Self::ReadinessPipe(key)
            | Self::NotifySocket(key) => Some(key),
            Self::Waker | Self::Listener | Self::Handshake(_) | Self::Unkillable(_) | Self::Guard => None,
        }
    }

    pub(crate) fn from_u64(value: u64) -> Self {
        let rest = value >> 4;
        let occupant = u32::try_from(rest & u64::from(u32::MAX)).unwrap_or_default();
        let place = Key { slot: (value >> 36) as usize, generation: occupant };
        match value % Self::PARTS {
            Self::OTHER => match rest {
                0 => Self::Waker,
                1 => Self::Listener,
                handshake => Self::Handshake(handshake - 2),
            },
            Self::CONTROL => Self::Control(place),
            Self::SURVIVOR => Self::Orphan(place),
            Self::READINESS_PIPE => Self::ReadinessPipe(place),
            Self::NOTICES => Self::NotifySocket(place),
            Self::STUCK => Self::Unkillable(rest),
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
        fn a_token_says_whose_it_is(slot in 0..1_usize << 27, occupant: u32, handshake in 0..1_u64 << 50) {
            let place = Key { slot, generation: occupant };
            let of_place = [
                Token::Process(place), Token::Control(place), Token::Orphan(place), Token::ReadinessPipe(place),
                Token::NotifySocket(place),
            ];
            let streams = StreamId::ALL.map(|stream| Token::Stream(place, stream));
            let others =
                [Token::Waker, Token::Listener, Token::Handshake(handshake), Token::Unkillable(handshake), Token::Guard];
            for token in of_place.into_iter().chain(streams).chain(others) {
                prop_assert_eq!(Token::from_u64(token.as_u64()), token);
            }
        }
    }
}
