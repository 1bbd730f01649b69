//! What ended a line.

/// What ended a [`Line`](crate::Line).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LineEnding {
    /// `\n`.
    LineFeed,
    /// `\r\n`.
    CarriageReturnLineFeed,
    /// `\r` alone.
    CarriageReturn,
    /// Nothing: the line is longer than 64 KiB, and goes on in the next [`Line`](crate::Line) of its stream. Such pieces end between
    /// characters.
    Partial,
    /// Nothing: the stream has ended, or was given up.
    None,
}

impl LineEnding {
    /// The bytes that the worker wrote.
    pub const fn as_bytes(self) -> &'static [u8] {
        match self {
            Self::LineFeed => b"\n",
            Self::CarriageReturnLineFeed => b"\r\n",
            Self::CarriageReturn => b"\r",
            Self::Partial | Self::None => b"",
        }
    }

    /// As three bits; zero for frames that are no lines.
    pub(super) const fn code(self) -> u32 {
        match self {
            Self::None => 0,
            Self::LineFeed => 1,
            Self::CarriageReturnLineFeed => 2,
            Self::CarriageReturn => 3,
            Self::Partial => 4,
        }
    }

    pub(super) const fn of_code(code: u32) -> Self {
        match code {
            1 => Self::LineFeed,
            2 => Self::CarriageReturnLineFeed,
            3 => Self::CarriageReturn,
            4 => Self::Partial,
            _ => Self::None,
        }
    }
}
