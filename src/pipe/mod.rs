//! Pipes between processes, useful without the rest of the library.
//!
//! * [`anonymous`]: one way, local, cheap. One end stays here, the other reaches a child as an inherited descriptor whose
//!   number stands on the child's command line.

pub mod anonymous;
mod ends;
mod handle;

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

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::In => "reading",
            Self::Out => "writing",
            Self::InOut => "reading and writing",
        })
    }
}
