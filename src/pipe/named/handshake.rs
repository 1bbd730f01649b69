//! Messages of the handshake, which two ends of this library exchange before the first byte of data.
//!
//! The client sends a [`ClientHello`] after connecting, the server a [`ServerReply`] when it accepts or rejects the client. Both
//! have 16 bytes:
//!
//! | byte | hello | reply |
//! |---|---|---|
//! | 0..8 | `pipewrt` and NUL | the same |
//! | 8 | version, 1 | version, 1 |
//! | 9 | mode: 0 byte, 1 message, 2 framed | answer: 0 accepted, 1 version, 2 mode, 3 direction, 4 not allowed |
//! | 10 | direction of the client: 1 in, 2 out, 3 both | the server's mode |
//! | 11 | level: 0 anonymous, 1 identification, 2 impersonation | the server's direction |
//! | 12..16 | 0 | 0 |

use super::peer::ImpersonationLevel;
use crate::pipe::mode::{Direction, PipeMode};

pub(super) const BYTES: usize = 16;
pub(super) const VERSION: u8 = 1;
const MAGIC: [u8; 8] = *b"pipewrt\0";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ClientHello {
    pub(super) mode: PipeMode,
    pub(super) direction: Direction,
    pub(super) level: ImpersonationLevel,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HandshakeAnswer {
    Accepted,
    WrongVersion,
    WrongMode,
    WrongDirection,
    NotAllowed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ServerReply {
    pub(super) answer: HandshakeAnswer,
    pub(super) mode: PipeMode,
    pub(super) direction: Direction,
}

/// Error of parsing a handshake message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InvalidHandshake {
    Unrecognized,
    Version(u8),
}

impl ClientHello {
    pub(super) fn to_bytes(self) -> [u8; BYTES] {
        let level = match self.level {
            ImpersonationLevel::Anonymous => 0,
            ImpersonationLevel::Identification => 1,
            ImpersonationLevel::Impersonation => 2,
        };
        bytes([mode_number(self.mode), direction_number(self.direction), level])
    }

    pub(super) fn parse(bytes: [u8; BYTES]) -> Result<Self, InvalidHandshake> {
        let [mode, direction, level] = fields(bytes)?;
        let level = match level {
            0 => ImpersonationLevel::Anonymous,
            1 => ImpersonationLevel::Identification,
            2 => ImpersonationLevel::Impersonation,
            _ => return Err(InvalidHandshake::Unrecognized),
        };
        Ok(Self { mode: mode_of(mode)?, direction: direction_of(direction)?, level })
    }
}

impl ServerReply {
    pub(super) fn to_bytes(self) -> [u8; BYTES] {
        let answer = match self.answer {
            HandshakeAnswer::Accepted => 0,
            HandshakeAnswer::WrongVersion => 1,
            HandshakeAnswer::WrongMode => 2,
            HandshakeAnswer::WrongDirection => 3,
            HandshakeAnswer::NotAllowed => 4,
        };
        bytes([answer, mode_number(self.mode), direction_number(self.direction)])
    }

    pub(super) fn parse(bytes: [u8; BYTES]) -> Result<Self, InvalidHandshake> {
        let [answer, mode, direction] = fields(bytes)?;
        let answer = match answer {
            0 => HandshakeAnswer::Accepted,
            1 => HandshakeAnswer::WrongVersion,
            2 => HandshakeAnswer::WrongMode,
            3 => HandshakeAnswer::WrongDirection,
            4 => HandshakeAnswer::NotAllowed,
            _ => return Err(InvalidHandshake::Unrecognized),
        };
        Ok(Self { answer, mode: mode_of(mode)?, direction: direction_of(direction)? })
    }
}

/// The reply of a server of this mode and direction. The server must support every direction of the client: a server for both
/// directions also accepts a client for one. Returns `None` for a client that does not perform the handshake.
pub(super) fn answer(
    hello: Result<ClientHello, InvalidHandshake>,
    mode: PipeMode,
    direction: Direction,
) -> Option<ServerReply> {
    let answer = match hello {
        Err(InvalidHandshake::Unrecognized) => return None,
        Err(InvalidHandshake::Version(_)) => HandshakeAnswer::WrongVersion,
        Ok(hello) if hello.mode != mode => HandshakeAnswer::WrongMode,
        Ok(hello)
            if (hello.direction.reads() && !direction.writes()) || (hello.direction.writes() && !direction.reads()) =>
        {
            HandshakeAnswer::WrongDirection
        }
        Ok(_) => HandshakeAnswer::Accepted,
    };
    Some(ServerReply { answer, mode, direction })
}

fn bytes(fields: [u8; 3]) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    let values = MAGIC.into_iter().chain([VERSION]).chain(fields);
    for (slot, value) in bytes.iter_mut().zip(values) {
        *slot = value;
    }
    bytes
}

fn fields(bytes: [u8; BYTES]) -> Result<[u8; 3], InvalidHandshake> {
    let [magic @ .., version, first, second, third, _, _, _, _] = bytes;
    if magic != MAGIC {
        return Err(InvalidHandshake::Unrecognized);
    }
    if version != VERSION {
        return Err(InvalidHandshake::Version(version));
    }
    Ok([first, second, third])
}

const fn mode_number(mode: PipeMode) -> u8 {
    match mode {
        PipeMode::Byte => 0,
        PipeMode::Message => 1,
        PipeMode::Framed => 2,
    }
}

const fn mode_of(number: u8) -> Result<PipeMode, InvalidHandshake> {
    match number {
        0 => Ok(PipeMode::Byte),
        1 => Ok(PipeMode::Message),
        2 => Ok(PipeMode::Framed),
        _ => Err(InvalidHandshake::Unrecognized),
    }
}

const fn direction_number(direction: Direction) -> u8 {
    match direction {
        Direction::In => 1,
        Direction::Out => 2,
        Direction::InOut => 3,
    }
}

const fn direction_of(number: u8) -> Result<Direction, InvalidHandshake> {
    match number {
        1 => Ok(Direction::In),
        2 => Ok(Direction::Out),
        3 => Ok(Direction::InOut),
        _ => Err(InvalidHandshake::Unrecognized),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODES: [PipeMode; 3] = [PipeMode::Byte, PipeMode::Message, PipeMode::Framed];
    const DIRECTIONS: [Direction; 3] = [Direction::In, Direction::Out, Direction::InOut];

    #[test]
    fn messages_round_trip() {
        for mode in MODES {
            for direction in DIRECTIONS {
                for level in [
                    ImpersonationLevel::Anonymous,
                    ImpersonationLevel::Identification,
                    ImpersonationLevel::Impersonation,
                ] {
                    let hello = ClientHello { mode, direction, level };
                    assert_eq!(ClientHello::parse(hello.to_bytes()), Ok(hello));
                }
                for answer in [
                    HandshakeAnswer::Accepted,
                    HandshakeAnswer::WrongVersion,
                    HandshakeAnswer::WrongMode,
                    HandshakeAnswer::WrongDirection,
                    HandshakeAnswer::NotAllowed,
                ] {
                    let reply = ServerReply { answer, mode, direction };
                    assert_eq!(ServerReply::parse(reply.to_bytes()), Ok(reply));
                }
            }
        }
    }

    #[test]
    fn parse_distinguishes_unknown_protocol_from_other_version() {
        assert_eq!(ClientHello::parse(*b"GET / HTTP/1.1\r\n"), Err(InvalidHandshake::Unrecognized));
        let mut other =
            ClientHello { mode: PipeMode::Byte, direction: Direction::In, level: ImpersonationLevel::Anonymous }
                .to_bytes();
        other[8] = 9;
        assert_eq!(ClientHello::parse(other), Err(InvalidHandshake::Version(9)));
        other[8] = VERSION;
        other[9] = 7;
        assert_eq!(ClientHello::parse(other), Err(InvalidHandshake::Unrecognized));
    }

    #[test]
    fn server_accepts_directions_that_it_supports() {
        let fits = |client, server| {
            let hello = ClientHello { mode: PipeMode::Byte, direction: client, level: ImpersonationLevel::Anonymous };
            answer(Ok(hello), PipeMode::Byte, server).unwrap().answer == HandshakeAnswer::Accepted
        };
        let table = DIRECTIONS.map(|client| DIRECTIONS.map(|server| fits(client, server)));
        //                      server: In     Out    InOut
        assert_eq!(table, [[false, true, true], [true, false, true], [false, false, true]]);
    }
}
