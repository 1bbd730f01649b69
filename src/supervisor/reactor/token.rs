//! The tokens of kernel events: which file descriptor of which incarnation is ready.

use crate::{policy::lifecycle::StreamId, supervisor::reactor::arena::Key};

/// The file descriptor that a kernel event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Token {
    Waker,
    /// The listener of the control server.
    Listener,
    /// A connection to the control server that is not authenticated yet.
    Handshake(u64),
    Process(Key),
    Stream(Key, StreamId),
    Control(Key),
    /// The worker's standard input, if that carries control.
    ControlInput(Key),
    /// A descendant that has outlived its worker.
    Orphan(Key),
    /// The pipe on which a worker writes a newline when it is ready.
    ReadinessPipe(Key),
    /// The socket of `sd_notify(3)`.
    NotifySocket(Key),
    /// A process that was reported as unkillable.
    Unkillable(u64),
    /// The guard's process.
    Guard,
    /// The jobserver of the host, while jobs wait for its tokens.
    Jobserver,
}

impl Token {
    const KINDS: u64 = 16;
    const PROCESS: u64 = 3;
    const CONTROL: u64 = 4;
    const ORPHAN: u64 = 5;
    const READINESS_PIPE: u64 = 6;
    const NOTIFY_SOCKET: u64 = 7;
    const UNKILLABLE: u64 = 8;
    const GUARD: u64 = 9;
    const CONTROL_INPUT: u64 = 10;
    const JOBSERVER: u64 = 11;
    const OTHER: u64 = 15;

    /// Encodes the token for `epoll_event.u64`: the kind in the lowest four bits, the owner in the others.
    pub(crate) fn as_u64(self) -> u64 {
        let of = |key: Key, kind: u64| (key.slot as u64) << 36 | u64::from(key.generation) << 4 | kind;
        match self {
            Self::Waker => Self::OTHER,
            Self::Listener => Self::KINDS | Self::OTHER,
            Self::Handshake(handshake) => (handshake + 2) << 4 | Self::OTHER,
            Self::Process(key) => of(key, Self::PROCESS),
            Self::Stream(key, stream) => of(key, stream.index() as u64),
            Self::Control(key) => of(key, Self::CONTROL),
            Self::ControlInput(key) => of(key, Self::CONTROL_INPUT),
            Self::Orphan(key) => of(key, Self::ORPHAN),
            Self::ReadinessPipe(key) => of(key, Self::READINESS_PIPE),
            Self::NotifySocket(key) => of(key, Self::NOTIFY_SOCKET),
            Self::Unkillable(number) => number << 4 | Self::UNKILLABLE,
            Self::Guard => Self::GUARD,
            Self::Jobserver => Self::JOBSERVER,
        }
    }

    /// Returns the key of the incarnation, if the file descriptor belongs to one.
    pub(crate) fn key(self) -> Option<Key> {
        match self {
            Self::Process(key)
            | Self::Stream(key, _)
            | Self::Control(key)
            | Self::ControlInput(key)
            | Self::Orphan(key)
            | Self::ReadinessPipe(key)
            | Self::NotifySocket(key) => Some(key),
            Self::Waker | Self::Listener | Self::Handshake(_) | Self::Unkillable(_) | Self::Guard | Self::Jobserver => {
                None
            }
        }
    }

    pub(crate) fn from_u64(value: u64) -> Self {
        let rest = value >> 4;
        let generation = u32::try_from(rest & u64::from(u32::MAX)).unwrap_or_default();
        let key = Key { slot: (value >> 36) as usize, generation };
        match value % Self::KINDS {
            Self::OTHER => match rest {
                0 => Self::Waker,
                1 => Self::Listener,
                handshake => Self::Handshake(handshake - 2),
            },
            Self::CONTROL => Self::Control(key),
            Self::CONTROL_INPUT => Self::ControlInput(key),
            Self::ORPHAN => Self::Orphan(key),
            Self::READINESS_PIPE => Self::ReadinessPipe(key),
            Self::NOTIFY_SOCKET => Self::NotifySocket(key),
            Self::UNKILLABLE => Self::Unkillable(rest),
            Self::GUARD => Self::Guard,
            Self::JOBSERVER => Self::Jobserver,
            kind => match StreamId::ALL.into_iter().find(|stream| stream.index() as u64 == kind) {
                Some(stream) => Self::Stream(key, stream),
                None => Self::Process(key),
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
        fn from_u64_encoded_token_returns_same_token(slot in 0..1_usize << 27, generation: u32, handshake in 0..1_u64 << 50) {
            let key = Key { slot, generation };
            let of_key = [
                Token::Process(key), Token::Control(key), Token::Orphan(key), Token::ReadinessPipe(key),
                Token::NotifySocket(key), Token::ControlInput(key),
            ];
            let streams = StreamId::ALL.map(|stream| Token::Stream(key, stream));
            let others =
                [Token::Waker, Token::Listener, Token::Handshake(handshake), Token::Unkillable(handshake), Token::Guard, Token::Jobserver];
            for token in of_key.into_iter().chain(streams).chain(others) {
                prop_assert_eq!(Token::from_u64(token.as_u64()), token);
            }
        }
    }
}
