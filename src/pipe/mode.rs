//! Directions and modes of pipes.

use std::fmt;

/// Direction of the data, as seen from the process that owns the end.
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
    /// The owner reads.
    In,
    /// The owner writes.
    Out,
    /// The owner reads and writes.
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
    /// Bytes without boundaries, over a stream socket. The peer can be any program that opens a Unix domain socket.
    #[default]
    Byte,
    /// Messages whose boundaries the kernel keeps (`SOCK_SEQPACKET`). Concurrent writers never mix their messages, and a
    /// message may be empty. The longest message is about 208 KiB, or what fits into the sender's buffer, up to 4 MiB.
    Message,
    /// Messages over a stream socket, each after its length (four bytes, big-endian). Allows longer messages, and works through
    /// tunnels, which carry only streams.
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
