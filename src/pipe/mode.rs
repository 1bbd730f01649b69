//! Directions and modes of pipes.

use std::fmt;

/// Which way the bytes of an end go, seen from whoever holds it.
///
/// ```
/// use pipewright::pipe::{Direction, anonymous};
///
/// let (_writer, child_end) = anonymous::to_child()?;
/// assert_eq!(child_end.direction(), Direction::In);
/// # Ok::<(), std::io::Error>(())
/// ```
#[doc(alias = "PipeDirection")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Direction {
    /// The holder reads.
    In,
    /// The holder writes.
    Out,
    /// The holder reads and writes.
    InOut,
}

impl Direction {
    pub(crate) const fn reads(self) -> bool {
        matches!(self, Self::In | Self::InOut)
    }

    pub(crate) const fn writes(self) -> bool {
        matches!(self, Self::Out | Self::InOut)
    }
}

/// What a named pipe carries.
#[doc(alias = "PipeTransmissionMode")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PipeMode {
    /// Bytes without borders, over a stream socket. Any program that can open a local socket can be the other side.
    #[default]
    Byte,
    /// Whole messages, whose borders the kernel keeps (`SOCK_SEQPACKET`): writers never mix, and an empty message is one. The
    /// longest is about 208 KiB, or what the sender's buffer is made to hold, up to 4 MiB.
    Message,
    /// Whole messages over a stream socket, each after its length (four bytes, the most significant first). Longer messages,
    /// and a way through tunnels that only carry streams.
    Framed,
}

impl fmt::Display for PipeMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Byte => "byte",
            Self::Message => "message",
            Self::Framed => "framed",
        })
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::In => "reading",
            Self::Out => "writing",
            Self::InOut => "reading and writing",
        })
    }
}
