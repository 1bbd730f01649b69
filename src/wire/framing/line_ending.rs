//! The ending of a captured line.

/// The ending of a [`Line`](crate::Line).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LineEnding {
    /// `\n`.
    LineFeed,
    /// `\r\n`.
    CarriageReturnLineFeed,
    /// `\r` alone.
    CarriageReturn,
    /// None: the line is longer than 64 KiB and continues in the next [`Line`](crate::Line) of its stream. It is split between
    /// characters.
    Partial,
    /// None: the stream has ended, or is no longer read.
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

    /// Three bits; zero for frames that are not lines.
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
